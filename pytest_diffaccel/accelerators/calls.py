"""What a diffusers pipeline's call takes where it names nothing, and what it cannot take."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from pytest_diffaccel.accelerators.base import InvalidParams
from pytest_diffaccel.accelerators.composition import Accelerator
from pytest_diffaccel.matrix import Params
from pytest_diffaccel.pipes import PipeSpec, denoiser_of, families_of, known

# Of a value that is refused, so many characters are shown.
_SAID = 200


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
            f"{type(pipeline).__name__} cannot be accelerated here: supported are {', '.join(classes)}, which draw "
            "from a prompt; to add a pipeline that does so too, make its class a subclass of one of them, "
            "or register it with the hook pytest_diffaccel_pipes"
        )
    step_callback(pipeline)


def step_callback(pipeline: Any) -> str:
    """The argument of a pipeline's call by which it tells of the end of each step.

    Raises:
        UnsupportedPipeline: when there is none.
    """
    defaults = _defaults(pipeline)
    for name in ("callback_on_step_end", "callback"):
        if name in defaults:
            return name
    raise UnsupportedPipeline(
        f"{type(pipeline).__name__} cannot be accelerated here: its call takes no callback_on_step_end, by which steps "
        "are timed; use a pipeline that does"
    )


def _defaults(pipeline: Any) -> Mapping[str, Any]:
    """What a pipeline's call takes where it names nothing, by argument."""
    kind: Any = type(pipeline)
    return _defaults_of(kind)


@cache
def _defaults_of(kind: Any) -> Mapping[str, Any]:
    """Of a pipeline's class: a search asks for each of thousands of points.

    A subclass may hand on whatever it is given: what counts is the nearest class that says more.
    """
    calls = [inspect.signature(vars(base)["__call__"]).parameters for base in kind.__mro__ if "__call__" in vars(base)]
    call = next((call for call in calls if "guidance_scale" in call), calls[0] if calls else {})
    return {name: parameter.default for name, parameter in call.items()}


def guidance_scale_of(pipeline: Any, given: float | None) -> float:
    """The guidance scale of a call: the given one, or for None what the pipeline takes when its call names none."""
    if given is not None:
        return given
    usual = _defaults(pipeline).get("true_cfg_scale" if _is_guided_apart(pipeline) else "guidance_scale")
    return 1.0 if usual is None else float(usual)


def guidance_options(pipeline: Any, guidance_scale: float | None, images: int) -> dict[str, Any]:
    """What a pipeline's call takes to guide by ``guidance_scale``; the value is None where its own default is meant.

    Args:
        pipeline: the diffusers pipeline.
        guidance_scale: None for the pipeline's own default.
        images: drawn by the call.
    """
    if not _is_guided_apart(pipeline):
        return {"guidance_scale": guidance_scale}
    # Without a negative prompt it would leave guidance out; a blank is what its authors take.
    scale = guidance_scale_of(pipeline, guidance_scale)
    return {"true_cfg_scale": scale, "negative_prompt": [" "] * images if scale > 1 else None}


def usual_text_length(kind: Any) -> int | None:
    """Tokens to which a call of a pipeline class fills texts up where it is told nothing; None: it cannot be told."""
    usual = _defaults_of(kind).get("max_sequence_length")
    return usual if isinstance(usual, int) else None


def text_length(pipeline: Any) -> int | None:
    """Tokens to which a call here does: no more than the last of the pipeline's tokenizers was made for."""
    usual = usual_text_length(type(pipeline))
    if usual is None:
        return None
    return min(usual, int(getattr(pipeline, families_of(pipeline)[0].tokenizers[-1]).model_max_length))


def calls_per_step(pipeline: Any, runs: int) -> tuple[int, ...]:
    """How many denoiser calls a step may have: UNets compute an image with and without its prompt in one.

    Args:
        pipeline: the diffusers pipeline.
        runs: how often each image is computed in a step: 2 with guidance, else 1.
    """
    return (1,) if families_of(pipeline)[0].denoiser == PipeSpec.denoiser else (1, runs)


def is_guided(pipeline: Any, guidance_scale: float | None) -> bool:
    """Whether a call computes each image with and without its prompt (classifier-free guidance).

    Args:
        pipeline: the diffusers pipeline.
        guidance_scale: None for the pipeline's own default.
    """
    return guidance_scale_of(pipeline, guidance_scale) > 1 and not _without_guidance(pipeline)


def weights_size(pipeline: Any) -> tuple[int, int] | None:
    """Height and width, in pixels, that a pipeline's weights name and its class takes no notice of; None: none."""
    families = families_of(pipeline)
    if not families or not families[0].sized_by_vae:
        return None
    side = int(pipeline.vae.config.sample_size)
    return side, side


def own_size(pipeline: Any) -> tuple[int, int]:
    """Height and width, in pixels, of what is drawn here where no size is named."""
    if size := weights_size(pipeline):
        return size
    side = getattr(denoiser_of(pipeline).config, "sample_size", None) or pipeline.default_sample_size
    height, width = side if isinstance(side, (list, tuple)) else (side, side)
    return height * pipeline.vae_scale_factor, width * pipeline.vae_scale_factor


def check_params(params: object) -> None:
    """Refuse what is no parameters by method, before anything is looked up in it.

    Raises:
        InvalidParams: showing it, and what it should look like.
    """
    if not isinstance(params, Mapping) or any(
        not isinstance(method, str) or not isinstance(point, Mapping) for method, point in params.items()
    ):
        raise InvalidParams(
            f"params={_said(params)} must be parameters by method, such as {{'DeepCache': {{'cache_interval': 3, "
            "'cache_branch_id': 0}}, or {} for none"
        )


def lessons_of(learnt: object) -> dict[str, tuple[float, ...]]:
    """What methods are to have learnt, by method.

    Raises:
        InvalidParams: when it is anything else than rows of numbers by method.
    """
    if isinstance(learnt, Mapping) and all(
        isinstance(method, str)
        and isinstance(row, Sequence)
        and all(isinstance(value, (int, float)) and math.isfinite(value) for value in row)
        for method, row in learnt.items()
    ):
        return {method: tuple(row) for method, row in learnt.items()}
    raise InvalidParams(f"learnt={_said(learnt)} must be rows of numbers by method, as `generate.learn` gives them")


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
    _check_guidance_scale(guidance_scale)
    accelerator.check(params, steps)
    _check_size(pipeline, height, width)
    own_height, own_width = own_size(pipeline)
    accelerator.check_pipeline(params, pipeline, height or own_height, width or own_width)
    scale = guidance_scale_of(pipeline, guidance_scale)
    accelerator.check_guidance(scale, without=_without_guidance(pipeline))


def _check_guidance_scale(given: object) -> None:
    """Refuse a scale with which a pipeline would fail in the middle, or draw black pictures."""
    if given is None:
        return
    if isinstance(given, bool) or not isinstance(given, (int, float)) or not 0 <= given < math.inf:
        raise InvalidParams(f"guidance_scale={given!r} must be a finite number of at least 0")


def _check_size(pipeline: Any, height: int | None, width: int | None) -> None:
    """Refuse a size that the pipeline cannot draw: some say so themselves, others draw another."""
    unit = families_of(pipeline)[0].side_unit
    for name, side in (("height", height), ("width", width)):
        if side is not None and (not isinstance(side, int) or side <= 0 or side % unit):
            fit = max(unit, side // unit * unit) if isinstance(side, int) else 64 * unit
            raise InvalidParams(
                f"{name}={side!r} must be a multiple of {unit} for a {type(pipeline).__name__}, such as {fit}"
            )


def guides_apart(kind: Any) -> bool:
    """Whether a pipeline class guides by the argument ``true_cfg_scale`` and a negative prompt, as Qwen-Image's does.

    Its ``guidance_scale`` is then for models that take it as an input, and has no default.
    """
    defaults = _defaults_of(kind)
    return "true_cfg_scale" in defaults and defaults.get("guidance_scale", 0) is None


def _is_guided_apart(pipeline: Any) -> bool:
    """Whether its model is not one of those."""
    kind: Any = type(pipeline)
    return guides_apart(kind) and not getattr(denoiser_of(pipeline).config, "guidance_embeds", False)


def _without_guidance(pipeline: Any) -> str:
    """Why a pipeline has no classifier-free guidance, whatever the scale; empty where it has.

    Of the two calls of FLUX.1's pipeline with ``true_cfg_scale`` none is made without a negative prompt.
    """
    config = denoiser_of(pipeline).config
    for name in ("time_cond_proj_dim", "guidance_embeds"):
        if getattr(config, name, None) not in (None, False):
            return f"this {type(denoiser_of(pipeline)).__name__} takes guidance_scale as an input ({name})"
    if "true_cfg_scale" in _defaults(pipeline) and not _is_guided_apart(pipeline):
        return f"a {type(pipeline).__name__} has none by guidance_scale"
    return ""


def _said(value: object) -> str:
    """A value as a message can hold it."""
    text = repr(value)
    return text if len(text) <= _SAID else f"{text[:_SAID]}..."
