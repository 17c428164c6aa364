"""A search by itself needs no option of ours, but its groups must stay together under ``-n`` all the same."""

import pytest

from pytest_diffaccel.fixtures import keep_groups_together


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Give all of a group to one worker."""
    keep_groups_together(config)
