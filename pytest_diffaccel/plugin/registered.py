"""All methods, pipes and metrics that there are: the built-in ones, and those that conftest files and other plugins
register.
"""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_diffaccel.settings.option_types import OptionError
from pytest_diffaccel.settings.options import BENCHES

if TYPE_CHECKING:
    from pytest_diffaccel.accelerators.registry import Registry
    from pytest_diffaccel.measure.metrics.registry import MetricRegistry
    from pytest_diffaccel.models.clip import ClipSource
    from pytest_diffaccel.pipes import PipeRegistry


def methods_of(config: pytest.Config) -> Registry:
    """The methods that a session knows.

    Raises:
        ValueError: when one is refused; the message says why.
    """
    from pytest_diffaccel.accelerators.registry import default_registry

    registry = default_registry()
    # Not offered where a project switches this plugin off for its own tests.
    if hasattr(config.hook, "pytest_diffaccel_accelerators"):
        config.hook.pytest_diffaccel_accelerators(registry=registry)
    return registry


def pipes_of(config: pytest.Config) -> PipeRegistry:
    """The pipes that a session knows, less those of its models file.

    Raises:
        ValueError: when one is refused; the message says why.
    """
    from pytest_diffaccel.pipes import PipeRegistry

    registry = PipeRegistry()
    if hasattr(config.hook, "pytest_diffaccel_pipes"):
        config.hook.pytest_diffaccel_pipes(registry=registry)
    return registry


def metrics_of(config: pytest.Config) -> MetricRegistry:
    """The metrics that a session knows; ``clip_score`` asks the CLIP that its options name.

    Raises:
        ValueError: when one is refused, or the CLIP; the message says why.
    """
    from pytest_diffaccel.measure.metrics.registry import MetricRegistry

    registry = MetricRegistry(clip_of(config.option))
    if hasattr(config.hook, "pytest_diffaccel_metrics"):
        config.hook.pytest_diffaccel_metrics(registry=registry)
    return registry


def clip_of(options: Namespace) -> ClipSource:
    """The stand-in for the embedded pipelines alone, whose pictures it knows, unless another CLIP is named.

    Raises:
        OptionError: when what is named is none.
    """
    from pytest_diffaccel.models.clip import DEFAULT_HUB_ID, EMBEDDED, ClipSource

    default = EMBEDDED if options.models == EMBEDDED else DEFAULT_HUB_ID
    try:
        return ClipSource.from_option(options.clip_model or default)
    except ValueError as error:
        raise OptionError(f"--clip-model: {error}") from error


def registered_here() -> tuple[Registry, PipeRegistry]:
    """The methods and pipes that a search in this folder knows, for a process that is no session of pytest.

    What a search of the benches loads is loaded (conftest files, plugins), and nothing is collected.

    Raises:
        ValueError: when that cannot be loaded, which pytest has explained on standard error, or a method or pipe is
            refused.
    """
    asked = _Registration()
    folder = next((path for path in (BENCHES, "conftest.py") if Path(path).exists()), None)
    # Of one folder or file only: of the present folder, pytest would load the conftest files of its tests too.
    pytest.main(["--noconftest"] if folder is None else [folder], plugins=[asked])
    if asked.found is None:
        raise ValueError(
            "the conftest files here, which may register methods and pipes, cannot be loaded; pytest says why above"
        )
    return asked.found


class _Registration:
    """Takes the place of a session, once everything is loaded."""

    found: tuple[Registry, PipeRegistry] | None = None

    @pytest.hookimpl(tryfirst=True)
    def pytest_cmdline_main(self, config: pytest.Config) -> int:
        self.found = methods_of(config), pipes_of(config)
        return 0
