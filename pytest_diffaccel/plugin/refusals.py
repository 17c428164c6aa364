"""How bad settings end a session: in one line, before anything is measured, in the terms of whoever set them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import pytest

from pytest_diffaccel.plugin.ini_keys import in_terms_of_keys
from pytest_diffaccel.plugin.workers import worker_number

_REFUSAL = pytest.StashKey[pytest.UsageError]()
_Case = TypeVar("_Case")


def refusal(config: pytest.Config, error: Exception) -> pytest.UsageError:
    """The error that ends the session, with the name of the key where a bad value came from the configuration."""
    return pytest.UsageError(in_terms_of_keys(str(error), config))


def cases_of(config: pytest.Config, find: Callable[[], Sequence[_Case]]) -> Sequence[_Case]:
    """The cases to collect; none where the settings are refused, which :func:`raise_refusal` says in one line.

    Raised while a module is collected, it would be shown as a traceback for each module.

    Args:
        config: pytest's.
        find: gives the cases; raises :class:`pytest.UsageError` for bad settings.
    """
    try:
        return find()
    except pytest.UsageError as error:
        if worker_number(config) is not None:  # a worker's reason reaches its controller as an error of collection only
            raise pytest.Collector.CollectError(str(error)) from error  # which pytest shows in one line
        config.stash[_REFUSAL] = error
        return ()


def raise_refusal(config: pytest.Config) -> None:
    """End a session whose cases could not be collected.

    Raises:
        pytest.UsageError: what :func:`cases_of` met.
    """
    if _REFUSAL in config.stash:
        raise config.stash[_REFUSAL]
