"""Schedulers by the names that cells use, always built from the settings that a pipeline was saved with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: diffusers class and settings of its own, by scheduler name.
SCHEDULER_CLASSES: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "DDIM": ("DDIMScheduler", {}),
    "DPM-Solver++": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
    "UniPCMultistepScheduler": ("UniPCMultistepScheduler", {}),
}

_ORIGINAL = "_diffaccel_original_scheduler_config"


def check_scheduler(name: str) -> None:
    """Refuse an unknown scheduler before anything is loaded.

    Raises:
        ValueError: listing the valid names.
    """
    if name not in SCHEDULER_CLASSES:
        raise ValueError(f"no scheduler {name!r}; valid: {', '.join(SCHEDULER_CLASSES)}")


def set_scheduler(pipeline: Any, name: str) -> None:
    """Give ``pipeline`` the scheduler ``name``, with the noise schedule and prediction type of its training.

    Each call starts from the scheduler that the pipeline was saved with. Built from the one in force, it
    would lose settings that a scheduler in between does not know, and switching back would change the images.

    Args:
        pipeline: a diffusers pipeline; its ``scheduler`` is replaced.
        name: a key of :data:`SCHEDULER_CLASSES`, spelt exactly.

    Raises:
        ValueError: for an unknown name.
    """
    import diffusers

    check_scheduler(name)
    if not hasattr(pipeline, _ORIGINAL):
        setattr(pipeline, _ORIGINAL, pipeline.scheduler.config)
    class_name, settings = SCHEDULER_CLASSES[name]
    pipeline.scheduler = getattr(diffusers, class_name).from_config(getattr(pipeline, _ORIGINAL), **settings)


def check_timesteps(pipeline: Any, steps: int) -> None:
    """Refuse a number of steps at which the pipeline's scheduler visits a timestep twice.

    DeepCache finds its place in a run by the timestep's value and would take the second visit for the first.

    Args:
        pipeline: a diffusers pipeline; unchanged.
        steps: denoising steps.

    Raises:
        ValueError: naming the scheduler and the repeated timestep, or the range that ``steps`` must lie in.
    """
    scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config)
    name, limit = type(scheduler).__name__, scheduler.config.num_train_timesteps
    if not 1 <= steps <= limit:
        raise ValueError(f"{steps} steps; {name} takes 1 to {limit}")
    scheduler.set_timesteps(steps)
    timesteps = scheduler.timesteps.tolist()
    if repeated := sorted({step for step in timesteps if timesteps.count(step) > 1}):
        raise ValueError(
            f"{name} visits timestep {repeated[0]} more than once in {steps} steps, which DeepCache cannot "
            "follow; take another number of steps or another scheduler"
        )
