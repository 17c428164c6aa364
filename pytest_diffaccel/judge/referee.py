"""Sees, in a script's process, every call of a pipeline, and repeats it with start noise that the judge draws.

What is seen here is only claimed: the script could change this code while it runs. The judge believes a claim once it
has made the same images from it itself.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from itertools import product
from typing import Any

from pytest_diffaccel.accelerators.calls import text_length
from pytest_diffaccel.accelerators.dbcache_steps import BESIDE_A_MASK, mask_number
from pytest_diffaccel.judge.channel import Channel
from pytest_diffaccel.judge.claim import cached_method, plain_settings
from pytest_diffaccel.judge.resolving import PIPE
from pytest_diffaccel.pipes import BUILT_IN, denoiser_of

#: Arguments of a pipeline's call that the judge repeats, where they are plain values.
REPEATED = (
    *("prompt", "prompt_2", "negative_prompt", "negative_prompt_2", "num_images_per_prompt", "num_inference_steps"),
    *("guidance_scale", "guidance_rescale", "height", "width", "eta", "clip_skip", "max_sequence_length"),
)
# Arguments that say where the start noise comes from, which is the judge's, and how images are handed over.
_REPLACED = ("generator", "latents", "output_type", "return_dict")
# Functions that watch a run; whether they change it shows in the images, which the judge makes without them.
_WATCHING = ("callback_on_step_end", "callback_on_step_end_tensor_inputs", "callback", "callback_steps")
_GATE_SETTINGS = ("gate_step", "sp_interval", "fi_interval", "warm_up")
# Of a series of DBCache, which stands in a config of its own.
_ORDER = "taylorseer_order"
_TOME_DEFAULTS = {
    "sx": 2,
    "sy": 2,
    "use_rand": True,
    "merge_attn": True,
    "merge_crossattn": False,
    "merge_mlp": False,
}


@dataclass
class Referee:
    """Stands between a script and its pipelines.

    Attributes:
        channel: to the judge.
        own_size: height and width at which the published weights of the task's pipe were trained, pixels.
        source_size: those of the configured source, which stand for them.
    """

    channel: Channel
    own_size: tuple[int, int]
    source_size: tuple[int, int]
    _running: bool = False

    def watch(self) -> None:
        """See every call from now on."""
        import diffusers
        import tgate

        for name in {spec.pipeline_class for spec in BUILT_IN}:
            cls: Any = getattr(diffusers, name)
            cls.__call__ = self._watched(cls.__call__, gated=False)
        for like, cached in product({spec.built_like for spec in BUILT_IN if spec.built_like}, ("", "DeepCache")):
            module = inspect.getmodule(getattr(tgate, f"Tgate{like}{cached}Loader"))
            vars(module)["tgate"] = self._watched(vars(module)["tgate"], gated=True)

    def _watched(self, call: Callable[..., Any], *, gated: bool) -> Callable[..., Any]:
        signature = inspect.signature(call)

        @wraps(call)
        def watched(pipeline: Any, *args: Any, **options: Any) -> Any:
            if self._running:
                return call(pipeline, *args, **options)
            bound = signature.bind(pipeline, *args, **options)
            bound.apply_defaults()
            arguments = dict(list(bound.arguments.items())[1:])
            arguments |= arguments.pop("kwargs", {})
            self._running = True
            try:
                return self._repeat(call, pipeline, arguments, signature, gated=gated)
            finally:
                self._running = False

        return watched

    def _repeat(
        self,
        call: Callable[..., Any],
        pipeline: Any,
        arguments: dict[str, Any],
        signature: inspect.Signature,
        *,
        gated: bool,
    ) -> Any:
        self._take_source_size(arguments)
        _take_source_length(pipeline, arguments, signature)
        claim = _claim(pipeline, arguments, signature, gated=gated)
        self.channel.send({"event": "call", **claim})
        result: Any = None
        while (order := self.channel.receive().header)["order"] == "generate":
            # The judge's own prompts; arguments that this pipeline has.
            wording = {name: value for name, value in order["wording"].items() if name in arguments}
            made = _generate(call, pipeline, {**arguments, **wording}, int(order["seed"]))
            # The script goes on with as many images as it asked for: those of the first run.
            result = made if result is None else result
            images = [_as_image(image) for image in made[0]]
            sizes = [[image.height, image.width] for image in images]
            self.channel.send({"event": "images", "sizes": sizes}, b"".join(image.tobytes() for image in images))
        return _handed_over(result, arguments)

    def _take_source_size(self, arguments: dict[str, Any]) -> None:
        """A script that asks for its model's own size gets the source's."""
        for name, own, source in zip(("height", "width"), self.own_size, self.source_size, strict=True):
            if arguments.get(name) in (None, own):
                arguments[name] = source


def _take_source_length(pipeline: Any, arguments: dict[str, Any], signature: inspect.Signature) -> None:
    """A script that lets texts be as long as its model's may be gets the source's."""
    name = "max_sequence_length"
    if name in signature.parameters and arguments[name] == signature.parameters[name].default:
        arguments[name] = text_length(pipeline)


def _claim(pipeline: Any, arguments: Mapping[str, Any], signature: inspect.Signature, *, gated: bool) -> dict[str, Any]:
    methods, oddities = _methods(pipeline, arguments, gated=gated)
    known = {*REPEATED, *_REPLACED, *_WATCHING, *(_GATE_SETTINGS if gated else ())}
    odd = [
        name
        for name, value in arguments.items()
        if name not in known
        and not (name in signature.parameters and _is_same(value, signature.parameters[name].default))
    ]
    odd += [name for name in REPEATED if not _is_plain(arguments.get(name))]
    scheduler = pipeline.scheduler
    return {
        "pipe": str(getattr(denoiser_of(pipeline), PIPE, "")),
        "scheduler": type(scheduler).__name__,
        "scheduler_config": plain_settings(scheduler.config),
        "arguments": {
            name: arguments[name] for name in REPEATED if arguments.get(name) is not None and name not in odd
        },
        "methods": methods,
        "oddities": [*oddities, *(f"argument {name}, which the judge does not repeat" for name in odd)],
    }


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(isinstance(word, str) for word in value)
    return value is None or isinstance(value, str | int | float)


def _is_same(value: Any, default: Any) -> bool:
    return value is default or (isinstance(value, str | int | float | bool | tuple) and bool(value == default))


def _methods(
    pipeline: Any, arguments: Mapping[str, Any], *, gated: bool
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """What accelerates this call, read off the objects that do it; and settings of theirs that are not repeated."""
    methods: dict[str, dict[str, Any]] = {}
    oddities: list[str] = []
    denoiser = denoiser_of(pipeline)
    if helper := _deepcache_helper(denoiser):
        block, layer = helper.params["cache_block_id"], helper.params["cache_layer_id"]
        methods["DeepCache"] = {"cache_interval": helper.params["cache_interval"], "cache_branch_id": 3 * block + layer}
        if helper.params["skip_mode"] != "uniform":
            oddities.append(f"DeepCache with skip_mode {helper.params['skip_mode']}")
    if gated:
        methods["T-Gate"] = {name: arguments[name] for name in _GATE_SETTINGS}
    if any(type(module).__name__ == "ToMeBlock" for module in denoiser.modules()):
        settings = denoiser._tome_info["args"]
        methods["ToMe"] = {name: settings[name] for name in ("ratio", "max_downsample")}
        oddities += [f"ToMe with {name}" for name, value in _TOME_DEFAULTS.items() if settings[name] != value]
    if config := getattr(denoiser, "_cache_config", None):
        # What else it says, apart from its parameters, shows in the images.
        kind = type(config).__name__
        if method := cached_method(kind):
            methods[method.name] = {name: getattr(config, name) for name in method.param_names}
        else:
            oddities.append(f"a {kind}")
    if context := _cache_dit_context(denoiser):
        _add_cache_dit(context, int(arguments["num_inference_steps"]), methods, oddities)
    return methods, oddities


def _add_cache_dit(context: Any, steps: int, methods: dict[str, dict[str, Any]], oddities: list[str]) -> None:
    """What a context of cache-dit, which decides, was told."""
    config, series = context.cache_config, context.calibrator_config
    kind = type(config).__name__
    order = getattr(series, _ORDER, None) if series else 0
    if (method := cached_method(kind)) and isinstance(order, int):
        number = _mask_number(config, steps)
        if number is None:
            oddities.append(f"a {kind} with a mask that is none of cache-dit's own of {steps} steps, static")
        beside = BESIDE_A_MASK if number else {}
        given = {**vars(config), _ORDER: order, "steps_mask": number or 0, **beside}
        methods[method.name] = {name: given[name] for name in method.param_names}
    else:
        oddities.append(f"a {kind} with {type(series).__name__}")


def _mask_number(config: Any, steps: int) -> int | None:
    """Which mask alone decides; 0: there is none, None: it is another, or the pictures decide, too."""
    if config.steps_computation_mask is None:
        return 0
    mask = list(config.steps_computation_mask)
    is_alone = len(mask) == steps and config.steps_computation_policy == "static"
    return (mask_number(mask) if is_alone else 0) or None


def _cache_dit_context(denoiser: Any) -> Any:
    """What cache-dit decides by in the call that is under way; None where it is off."""
    manager = getattr(denoiser, "_context_manager", None)
    return manager and manager.get_context()


def _deepcache_helper(denoiser: Any) -> Any:
    """The helper whose wrapper is in force around the denoiser; None when there is none."""
    cells = getattr(vars(denoiser).get("forward"), "__closure__", None) or ()
    return next((cell.cell_contents for cell in cells if hasattr(cell.cell_contents, "cached_output")), None)


def _generate(call: Callable[..., Any], pipeline: Any, arguments: Mapping[str, Any], seed: int) -> Any:
    """One run from the judge's start noise, with what libraries keep of earlier runs forgotten."""
    import torch

    _forget(pipeline)
    prompt = arguments.get("prompt")
    # Embeddings, where there is no prompt: such a call is not judged, but it runs.
    prompt = arguments.get("prompt_embeds") if prompt is None else prompt
    prompts = 1 if isinstance(prompt, str) or prompt is None else len(prompt)
    images = prompts * int(arguments.get("num_images_per_prompt") or 1)
    torch.manual_seed(seed)
    generators = [torch._C.Generator("cpu").manual_seed(seed + place) for place in range(images)]
    ours = {"generator": generators, "latents": None, "output_type": "pil", "return_dict": False}
    return call(pipeline, **{**arguments, **ours})


def _forget(pipeline: Any) -> None:
    denoiser = denoiser_of(pipeline)
    if helper := _deepcache_helper(denoiser):
        helper.cached_output, helper.start_timestep, helper.cur_timestep = {}, None, 0
    if hasattr(denoiser, "_tome_info"):
        denoiser._tome_info["args"]["generator"] = None
    if getattr(denoiser, "_cache_config", None):
        denoiser._reset_stateful_cache()
    if context := _cache_dit_context(denoiser):
        denoiser._context_manager.reset_context(context, *context._init_args, **context._init_kwargs)
    for module in denoiser.modules():
        if type(module).__name__ == "Attention":
            for patch in ("forward", "cache"):  # T-GATE's, put on anew by each of its runs
                vars(module).pop(patch, None)


def _as_image(image: Any) -> Any:
    return image if image.mode == "RGB" else image.convert("RGB")


def _handed_over(result: Any, arguments: Mapping[str, Any]) -> Any:
    """The last run's images as the script asked for them."""
    import numpy as np
    import torch
    from diffusers.pipelines.stable_diffusion.pipeline_output import StableDiffusionPipelineOutput

    images: Any = result[0]
    if arguments.get("output_type") in ("np", "pt"):
        images = np.stack([np.asarray(image, dtype=np.float32) / 255 for image in images])
    if arguments.get("output_type") == "pt":
        images = torch.from_numpy(images).permute(0, 3, 1, 2)
    if not arguments.get("return_dict", True):
        return (images, *result[1:])
    return StableDiffusionPipelineOutput(images=images, nsfw_content_detected=None)
