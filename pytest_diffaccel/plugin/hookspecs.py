"""Hooks that this plugin offers to other plugins and to conftest files."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_diffaccel.accelerators.registry import Registry
    from pytest_diffaccel.measure.metrics.registry import MetricRegistry
    from pytest_diffaccel.pipes import PipeRegistry


def pytest_diffaccel_accelerators(registry: Registry) -> None:
    """Register further methods and combinations.

    Args:
        registry: has the built-in ones; ``registry.register(method)`` adds one, ``registry.combine(...)`` applies
            several together.
    """


def pytest_diffaccel_pipes(registry: PipeRegistry) -> None:
    """Register further pipes; ``--pipe`` names them.

    Args:
        registry: has the built-in ones; ``registry.register(PipeSpec(...))`` adds one.
    """


def pytest_diffaccel_metrics(registry: MetricRegistry) -> None:
    """Register further metrics of pictures.

    Args:
        registry: has the built-in ones; ``registry.register(metric)`` adds one.
    """
