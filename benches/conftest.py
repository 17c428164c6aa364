"""A search is a search here, whether or not an option of ours is given."""

from pytest_diffaccel.benches.conftest import pytest_cmdline_main, pytest_configure

__all__ = ["pytest_cmdline_main", "pytest_configure"]
