"""What a diffusers pipeline's call takes where it names nothing, and what it cannot take."""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

from pytest_diffaccel.accelerators.composition import Accelerator
from pytest_diffaccel.matrix import Params
from pytest_diffaccel.pipes import denoiser_of, families_of, known


class UnsupportedPipeline(TypeError):
    """A pipeline that no method here knows how to accelerate; the message says which it does."""


def check_class(pipeline: Any) -> None:
    """Refuse a pipeline that no method knows.

    Raises:
        UnsupportedPipeline: naming its class and those that are supported.
    """
    if not families_of(pipeline):
        classes = sorted({spec.pipeline_class for spec in known()})
        raise UnsupportedPipeline(
            f"{type(pipeline).__name__} cannot be accelerated here: supported are {' and '.join(classes)}, which draw "
            "from a prompt with a UNet; to add a pipeline that does so too, make its class a subclass of one of them, "
            "or register it with the hook pytest_diffaccel_pipes"
        )


def guidance_scale_of(pipeline: Any, given: float | None) -> float:
    """The guidance scale of a call: the given one, or for None what the pipeline takes when its call names none."""
    kind: Any = type(pipeline)
    return _default_scale(kind) if given is None else given


@cache
def _default_scale(kind: Any) -> float:
    """Of a pipeline's class: a search asks for each of thousands of points."""
    calls = [inspect.signature(vars(base)["__call__"]).parameters for base in kind.__mro__ if "__call__" in vars(base)]
    # A subclass may hand on whatever it is given.
    return float(next(call["guidance_scale"].default for call in calls if "guidance_scale" in call))


def is_guided(pipeline: Any, guidance_scale: float | None) -> bool:
    """Whether a call computes each image with and without its prompt (classifier-free guidance).

    Args:
        pipeline: the diffusers pipeline.
        guidance_scale: None for the pipeline's own default.
    """
    return guidance_scale_of(pipeline, guidance_scale) > 1 and not _takes_scale(pipeline)


def own_size(pipeline: Any) -> tuple[int, int]:
    """Height and width, in pixels, of what a pipeline draws when its call names no size."""
    side = denoiser_of(pipeline).config.sample_size
    height, width = side if isinstance(side, (list, tuple)) else (side, side)
    return height * pipeline.vae_scale_factor, width * pipeline.vae_scale_factor


def check_call(
    pipeline: Any,
    accelerator: Accelerator,
    params: Params,
    *,
    steps: int,
    guidance_scale: float | None = None,
    height: int | None = None,
    width: int | None = None,
) -> None:
    """Refuse parameters that a call of ``pipeline`` cannot take.

    Args:
        pipeline: the diffusers pipeline.
        accelerator: the methods of ``params``.
        params: parameters by method.
        steps: denoising steps, at least 1.
        guidance_scale: None for the pipeline's own default.
        height: image height in pixels; None for the pipeline's own default.
        width: image width in pixels; None for the pipeline's own default.

    Raises:
        InvalidParams: naming the bad value and the valid range, or what a method cannot work with.
    """
    accelerator.check(params, steps)
    accelerator.check_guidance(guidance_scale_of(pipeline, guidance_scale), takes_scale=_takes_scale(pipeline))
    own_height, own_width = own_size(pipeline)
    accelerator.check_pipeline(params, pipeline, height or own_height, width or own_width)


def _takes_scale(pipeline: Any) -> bool:
    """Whether the guidance scale is an input of the denoiser, as in latent consistency models: then there is none."""
    return getattr(denoiser_of(pipeline).config, "time_cond_proj_dim", None) is not None
