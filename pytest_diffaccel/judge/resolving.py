"""Hub ids in scripts stand for the configured model source: no script downloads anything, and all see the same weights.

Runs in the script's process, before the script.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

from pytest_diffaccel.models.registry import ModelSource
from pytest_diffaccel.pipes import BUILT_IN, denoiser_of, described

# Distilled and special weights, which are other pipelines.
_OTHERS = re.compile(r"turbo|lightning|lcm|hyper|refiner|inpaint|unclip|base-1\.0-vae")
#: Attribute of a denoiser that names the pipe whose weights it holds.
PIPE = "_diffaccel_pipe"


def pipe_of(name: object) -> str:
    """The pipe that a hub id or file name stands for.

    Raises:
        OSError: as diffusers would where there is no network, naming what is known.
    """
    text = str(name).lower()
    if not _OTHERS.search(text):
        # The last first: a name may hold an older one's, as "sdxl" has "sd".
        for spec in reversed(BUILT_IN):
            if re.search(spec.hub_names, text):
                return spec.name
    ids = ", ".join(spec.hub_id for spec in BUILT_IN)
    raise OSError(f"{name!r} is none of the model sources here, and there is no network: {ids}")


def resolve_models(load: Callable[[str], Any], source: ModelSource, device: str) -> None:
    """Make diffusers' loading functions answer from loaded pipelines, in this process.

    Args:
        load: gives the loaded pipeline of a pipe; it is copied, so a script may change what it gets.
        source: for parts that are loaded on their own, such as a scheduler.
        device: where every pipeline goes, whatever device the script names.
    """
    import diffusers

    def from_pretrained(cls: Any, name: object, *_args: Any, **options: Any) -> Any:
        pipe = pipe_of(name)
        pipeline = copy.deepcopy(load(pipe))
        vars(denoiser_of(pipeline))[PIPE] = pipe
        wanted = described(pipe).pipeline_class
        if cls.__name__ not in ("DiffusionPipeline", "AutoPipelineForText2Image", wanted):
            raise ValueError(f"{name!r} is a {wanted}, not a {cls.__name__}")
        for part in pipeline.components:
            if options.get(part) is not None:
                setattr(pipeline, part, options[part])
        return pipeline

    pipelines: Any = diffusers.DiffusionPipeline
    owners: tuple[Any, ...] = (pipelines, diffusers.AutoPipelineForText2Image)
    for owner in owners:
        owner.from_pretrained = classmethod(from_pretrained)
    pipelines.from_single_file = classmethod(from_pretrained)
    _keep_on_device(pipelines, device)
    _resolve_parts(source)


def _keep_on_device(pipelines: Any, device: str) -> None:
    original = pipelines.to

    def to(self: Any, *_args: Any, **_options: Any) -> Any:
        return original(self, device)

    pipelines.to = to
    for name in ("enable_model_cpu_offload", "enable_sequential_cpu_offload"):
        setattr(pipelines, name, to)
    if device == "cpu":
        _stand_in_for_cuda()


def _stand_in_for_cuda() -> None:
    """What scripts written for a GPU call in passing, where there is none."""
    import torch

    generator = torch.Generator

    class AnyGenerator(generator):  # type: ignore[misc, valid-type]  # a class chosen at run time
        def __new__(cls, _device: object = None, **_options: object) -> Any:
            return generator("cpu")

    modules: Any = torch
    modules.Generator = AnyGenerator
    modules.cuda.synchronize = lambda _device=None: None


def _resolve_parts(source: ModelSource) -> None:
    """Schedulers and models by hub id come from the source's folder."""
    import diffusers

    owners: tuple[Any, ...] = (diffusers.SchedulerMixin, diffusers.ModelMixin)
    for owner in owners:
        original = owner.from_pretrained.__func__

        def from_pretrained(cls: Any, /, name: object, *args: Any, _original: Any = original, **options: Any) -> Any:
            spec = source.spec(pipe_of(name))
            folder = spec.location if spec.kind in ("embedded", "directory") else name
            kept = {key: value for key, value in options.items() if key not in ("dtype", "torch_dtype", "variant")}
            return _original(cls, folder, *args, **kept)

        owner.from_pretrained = classmethod(from_pretrained)
