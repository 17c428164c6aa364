"""A pipe of one's own, registered by the hook: what searches, the gate and ``diffaccel generate`` know of it.

docs/models.md says what else a ``PipeSpec`` has; ``models.toml`` says where the weights lie.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pytest_diffaccel.pipes import PipeRegistry


# Optional: the plugin may be switched off (-p no:diffaccel).
@pytest.hookimpl(optionalhook=True)
def pytest_diffaccel_pipes(registry: PipeRegistry) -> None:
    """Let ``--pipe tiny`` name four cells: two schedulers, two numbers of steps."""
    from pytest_diffaccel.pipes import PipeSpec

    registry.register(
        PipeSpec(
            "Tiny",
            "StableDiffusionPipeline",
            built_like="SD",
            schedulers=("DDIM", "EulerDiscreteScheduler"),
            steps=(4, 8),
        )
    )
