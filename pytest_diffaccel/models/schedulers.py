"""Schedulers by the names that cells use, always built from the settings that a pipeline was saved with."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pytest_diffaccel.words import counted

#: diffusers class and settings of its own, by scheduler name.
SCHEDULER_CLASSES: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "DDIM": ("DDIMScheduler", {}),
    "DPM-Solver++": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
    "UniPCMultistepScheduler": ("UniPCMultistepScheduler", {}),
}

#: What models trained for flow matching take; none of the others do.
FLOW_SCHEDULERS = ("FlowMatchEulerDiscreteScheduler",)

#: What pipelines in latent space need where the settings that they were saved with leave it open: as Stable Diffusion
#: was published. diffusers' classes have other defaults, for pixels: DDIM would clip latents to -1 to 1.
LATENT_SETTINGS: Mapping[str, bool | int] = {
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
#: Which of them the classes of :data:`SCHEDULER_CLASSES` take.
TAKEN: Mapping[str, tuple[str, ...]] = {
    "DDIM": ("clip_sample", "set_alpha_to_one", "steps_offset"),
    "DPM-Solver++": ("steps_offset",),
    "UniPCMultistepScheduler": ("steps_offset",),
}

# Spellings that are not the name itself. Without the pluses, DPM-Solver is an older method.
_ALIASES = {
    "ddimscheduler": "DDIM",
    "dpm++": "DPM-Solver++",
    "dpmpp": "DPM-Solver++",
    "dpmsolverpp": "DPM-Solver++",
    "dpmsolver++": "DPM-Solver++",
    "dpmsolvermultistepscheduler": "DPM-Solver++",
    "unipc": "UniPCMultistepScheduler",
    "flowmatcheuler": "FlowMatchEulerDiscreteScheduler",
    "flowmatcheulerdiscrete": "FlowMatchEulerDiscreteScheduler",
    "flowmatcheulerdiscretescheduler": "FlowMatchEulerDiscreteScheduler",
}
# Tensors by which single files say how their weights were trained, and what follows for schedulers.
_V_PREDICTION, _ZERO_SNR = "v_pred", "ztsnr"
_OTHER_MARKERS = ("edm_mean", "edm_std", "edm_vpred.sigma_max", "edm_vpred.sigma_min")
_ORIGINAL = "_diffaccel_original_scheduler_config"


def named_scheduler(text: str) -> str | None:
    """The name of the scheduler that ``text`` spells, in any case; None when it spells none.

    diffusers is imported for what looks like a further scheduler's class name, and else not.

    Args:
        text: a key of :data:`SCHEDULER_CLASSES`, another spelling of one, or the class name of a diffusers scheduler
            that takes the noise schedule of Stable Diffusion, or is one of :data:`FLOW_SCHEDULERS`.
    """
    spellings = {name.lower(): name for name in SCHEDULER_CLASSES} | _ALIASES
    plain = text.lower()
    if plain in spellings or not plain.endswith("scheduler"):
        return spellings.get(plain)
    return {name.lower(): name for name in _compatible()}.get(plain)


def classes_like(text: str) -> tuple[str, ...]:
    """Class names of diffusers that ``text`` may be a misspelling of; none where it is no class name of a scheduler."""
    return tuple(_compatible()) if text.lower().endswith("scheduler") else ()


def taken_settings(name: str) -> tuple[str, ...]:
    """Which of :data:`LATENT_SETTINGS` the class of a scheduler takes; diffusers is imported for unusual ones."""
    if name in TAKEN:
        return TAKEN[name]
    parameters = inspect.signature(_class_of(name).__init__).parameters
    return tuple(setting for setting in LATENT_SETTINGS if setting in parameters)


def check_scheduler(name: str) -> None:
    """Refuse an unknown scheduler before anything is loaded.

    Args:
        name: a key of :data:`SCHEDULER_CLASSES`, one of :data:`FLOW_SCHEDULERS`, or the class name of a diffusers
            scheduler that takes the noise schedule of Stable Diffusion, for example ``"EulerDiscreteScheduler"``.

    Raises:
        ValueError: listing the valid names.
    """
    _class_of(name)


def _class_of(name: str) -> Any:
    """The diffusers class of a scheduler's name."""
    import diffusers

    if name in SCHEDULER_CLASSES:
        return getattr(diffusers, SCHEDULER_CLASSES[name][0])
    others = _compatible()
    if name not in others:
        valid = ", ".join((*SCHEDULER_CLASSES, *sorted(others)))
        raise ValueError(f"no scheduler {name!r}; valid: {valid}")
    return others[name]


def _compatible() -> dict[str, Any]:
    """What diffusers itself calls exchangeable; a class whose own dependencies are missing is not among them.

    And those for flow matching, of which it knows no others.
    """
    import diffusers

    classes = [*diffusers.DDIMScheduler._get_compatibles(), *(getattr(diffusers, name) for name in FLOW_SCHEDULERS)]
    return {kind.__name__: kind for kind in classes if issubclass(kind, diffusers.SchedulerMixin)}


def is_flow_matching(name: str) -> bool:
    """Whether a scheduler, by its name, is for models that were trained for flow matching: they predict velocities."""
    return name.startswith("FlowMatch")


def misplaced(name: str, usual: str) -> str:
    """Why a scheduler is none for a model, and which is; empty where it is one.

    Args:
        name: of the scheduler.
        usual: name or class of one that the model was made for.
    """
    if is_flow_matching(name) == is_flow_matching(usual):
        return ""
    if is_flow_matching(usual):
        return f"{name} is for a noise schedule, and this model was trained for flow matching: {FLOW_SCHEDULERS[0]}"
    known = ", ".join(SCHEDULER_CLASSES)
    return f"{name} is for models trained for flow matching, and this one was trained for a noise schedule: {known}"


def set_scheduler(pipeline: Any, name: str) -> None:
    """Give ``pipeline`` the scheduler ``name``, with the noise schedule and prediction type of its training.

    Each call starts from the scheduler that the pipeline was saved with. Built from the one in force, it
    would lose settings that a scheduler in between does not know, and switching back would change the images.
    What those settings leave open is as :data:`LATENT_SETTINGS` says.

    Args:
        pipeline: a diffusers pipeline; its ``scheduler`` is replaced.
        name: as :func:`check_scheduler` takes it, spelt exactly.

    Raises:
        ValueError: for an unknown name, or one that is not for such models as the pipeline's.
    """
    scheduler_class = _class_of(name)
    original = original_settings(pipeline)
    if reason := misplaced(name, original["_class_name"]):
        raise ValueError(f"{type(pipeline).__name__}: {reason}")
    setattr(pipeline, _ORIGINAL, original)
    taken = inspect.signature(scheduler_class.__init__).parameters
    open_ones = {key: value for key, value in open_settings(original).items() if key in taken}
    _, settings = SCHEDULER_CLASSES.get(name, (name, {}))
    pipeline.scheduler = scheduler_class.from_config(original, **open_ones, **settings)


def original_settings(pipeline: Any) -> Mapping[str, Any]:
    """The settings of the scheduler that a pipeline was saved with, its class as ``_class_name``."""
    own = {**pipeline.scheduler.config, "_class_name": type(pipeline.scheduler).__name__}
    settings: Mapping[str, Any] = getattr(pipeline, _ORIGINAL, own)
    return settings


def open_settings(original: Mapping[str, Any]) -> dict[str, bool | int]:
    """Those of :data:`LATENT_SETTINGS` that a scheduler's own settings leave open; none of a pipeline as published.

    Args:
        original: the settings that the pipeline was saved with, as diffusers read them.
    """
    filled_in = original.get("_use_default_values", ())  # by diffusers, from the class's defaults
    return {key: value for key, value in LATENT_SETTINGS.items() if key not in original or key in filled_in}


def check_markers(tensors: Iterable[str], path: Path) -> None:
    """Refuse a single file that says that it was trained in a way that is not known here.

    Args:
        tensors: names of the file's tensors.
        path: of the file.

    Raises:
        ValueError: naming the tensor that says so, or one without the other that it belongs to.
    """
    found = set(tensors)
    if other := [name for name in _OTHER_MARKERS if name in found]:
        raise ValueError(
            f"{path} carries the tensor {other[0]}: it was trained for EDM's noise levels, which are not supported; "
            "give weights that predict noise or velocity"
        )
    if _ZERO_SNR in found and _V_PREDICTION not in found:
        raise ValueError(
            f"{path} carries the tensor {_ZERO_SNR} without {_V_PREDICTION}: weights that predict noise draw nothing "
            f"from a start without signal; remove it, or add {_V_PREDICTION}"
        )


def read_markers(pipeline: Any, tensors: Iterable[str]) -> None:
    """Give a pipeline from a single file the prediction type that the file says it was trained for.

    Such a file carries an empty tensor ``v_pred``, and ``ztsnr`` where the last step of its training had no signal. The
    settings that it is read with are those of another model, which predicts noise.

    Args:
        pipeline: a diffusers pipeline as it was read; its ``scheduler`` is replaced.
        tensors: names of the file's tensors, as :func:`check_markers` takes them.
    """
    found = set(tensors)
    settings: dict[str, Any] = {}
    if _V_PREDICTION in found:
        settings["prediction_type"] = "v_prediction"
    if _ZERO_SNR in found:
        settings |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    if settings:
        scheduler = pipeline.scheduler
        pipeline.scheduler = type(scheduler).from_config(scheduler.config, **settings)
        # A class that does not take a setting would lose it for the class that does.
        pipeline.scheduler.register_to_config(**settings)


class UnfollowedTimesteps(ValueError):
    """A scheduler visits its timesteps in a way that the methods cannot follow."""


def check_timesteps(pipeline: Any, steps: int) -> None:
    """Refuse a number of steps at which the pipeline's scheduler does not call the denoiser once per timestep.

    DeepCache finds its place in a run by the timestep's value and would take the second visit for the first. A
    second-order scheduler (Heun, KDPM2) calls the denoiser about twice per step, and methods that count calls go
    astray.

    Args:
        pipeline: a diffusers pipeline; unchanged.
        steps: denoising steps.

    Raises:
        UnfollowedTimesteps: naming the scheduler and the repeated timestep or number of calls.
        ValueError: naming the range that ``steps`` must lie in.
    """
    scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config)
    name, limit = type(scheduler).__name__, scheduler.config.num_train_timesteps
    if not 1 <= steps <= limit:
        raise ValueError(f"{steps} steps; {name} takes 1 to {limit}")
    # Which shift, the pipeline reckons from its images' size: another moves timesteps, and lets none meet another.
    shifted = {"mu": scheduler.config.get("base_shift", 0.5)} if scheduler.config.get("use_dynamic_shifting") else {}
    scheduler.set_timesteps(steps, **shifted)
    timesteps = scheduler.timesteps.tolist()
    if repeated := sorted({step for step in timesteps if timesteps.count(step) > 1}):
        raise UnfollowedTimesteps(
            f"{name} visits timestep {repeated[0]} more than once in {steps} steps, which DeepCache cannot "
            "follow; take another number of steps or another scheduler"
        )
    # Fewer are followed without fault; that a scheduler has lost a step is for the gate to say.
    if len(timesteps) > steps:
        raise UnfollowedTimesteps(
            f"{name} calls the denoiser {len(timesteps)} times in {counted(steps, 'step')}, which the accelerators "
            "cannot follow; take a scheduler of one call per step"
        )
