"""These tests are a search, whether or not an option of ours is given."""

import pytest

from pytest_diffaccel.plugin.fixtures import keep_groups_together, search_run


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Give all of a group to one worker."""
    keep_groups_together(config)


def pytest_configure(config: pytest.Config) -> None:
    """Let the controller know of the search too: under ``-n`` it collects nothing."""
    search_run(config)
