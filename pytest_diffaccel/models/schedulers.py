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

    Args:
        name: a key of :data:`SCHEDULER_CLASSES`, or the class name of a diffusers scheduler that takes the noise
            schedule of Stable Diffusion, for example ``"EulerDiscreteScheduler"``.

    Raises:
        ValueError: listing the valid names.
    """
    _class_of(name)


def _class_of(name: str) -> Any:
    """The diffusers class of a scheduler's name."""
    import diffusers

    if name in SCHEDULER_CLASSES:
        return getattr(diffusers, SCHEDULER_CLASSES[name][0])
    # What diffusers itself calls exchangeable; a class whose own dependencies are missing is not among them.
    others = {
        one.__name__: one
        for one in diffusers.DDIMScheduler._get_compatibles()
        if issubclass(one, diffusers.SchedulerMixin)
    }
    if name not in others:
        valid = ", ".join((*SCHEDULER_CLASSES, *sorted(others)))
        raise ValueError(f"no scheduler {name!r}; valid: {valid}")
    return others[name]


def set_scheduler(pipeline: Any, name: str) -> None:
    """Give ``pipeline`` the scheduler ``name``, with the noise schedule and prediction type of its training.

    Each call starts from the scheduler that the pipeline was saved with. Built from the one in force, it
    would lose settings that a scheduler in between does not know, and switching back would change the images.

    Args:
        pipeline: a diffusers pipeline; its ``scheduler`` is replaced.
        name: as :func:`check_scheduler` takes it, spelt exactly.

    Raises:
        ValueError: for an unknown name.
    """
    scheduler_class = _class_of(name)
    if not hasattr(pipeline, _ORIGINAL):
        setattr(pipeline, _ORIGINAL, pipeline.scheduler.config)
    _, settings = SCHEDULER_CLASSES.get(name, (name, {}))
    pipeline.scheduler = scheduler_class.from_config(getattr(pipeline, _ORIGINAL), **settings)


def check_timesteps(pipeline: Any, steps: int) -> None:
    """Refuse a number of steps at which the pipeline's scheduler does not call the denoiser once a timestep.

    DeepCache finds its place in a run by the timestep's value and would take the second visit for the first. A
    second-order scheduler (Heun, KDPM2) calls the denoiser about twice a step, and methods that count calls go astray.

    Args:
        pipeline: a diffusers pipeline; unchanged.
        steps: denoising steps.

    Raises:
        ValueError: naming the scheduler and the repeated timestep or number of calls, or the range that ``steps`` must
            lie in.
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
    # Fewer are followed without fault; that a scheduler has lost a step is for the gate to say.
    if len(timesteps) > steps:
        raise ValueError(
            f"{name} calls the denoiser {len(timesteps)} times in {steps} steps, which the accelerators cannot follow; "
            "take a scheduler of one call a step"
        )
