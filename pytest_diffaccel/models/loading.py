"""Loading pipelines: real diffusers objects, from safetensors only, without remote code or safety checker."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from pytest_diffaccel.models.architecture import build_pipeline
from pytest_diffaccel.models.copies import loadable
from pytest_diffaccel.models.entries import DTYPES
from pytest_diffaccel.models.hub import cached_folder, fetch_command, fetched_folder
from pytest_diffaccel.models.registry import ModelSource, ModelSpec
from pytest_diffaccel.models.schedulers import check_markers, check_scheduler, read_markers, set_scheduler
from pytest_diffaccel.models.settings_files import LEFT_OUT, read_json, refuse_code
from pytest_diffaccel.models.vae import check_latents, load_vae
from pytest_diffaccel.models.weights import (
    beside_denoiser,
    check_folder,
    check_index,
    check_settings,
    check_single_file,
    folder_files,
    no_settings,
    settings_place,
    weight_files,
)
from pytest_diffaccel.pipes import PipeSpec, denoiser_of

if TYPE_CHECKING:
    import torch

    # From their own modules: for type checkers, the names of the diffusers package are empty stand-ins.
    from diffusers.pipelines.flux.pipeline_flux import FluxPipeline
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
    from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline

    Pipeline: TypeAlias = StableDiffusionPipeline | StableDiffusionXLPipeline | FluxPipeline

__all__ = ["load_pipeline", "weight_files"]


def load_pipeline(
    pipe: str,
    *,
    scheduler: str | None = None,
    models: str | ModelSource = "embedded",
    device: str | None = None,
    dtype: str | None = None,
) -> Pipeline:
    """Load a pipeline, ready to generate.

    Args:
        pipe: ``"SD1.5"``, ``"SD2.1"``, ``"SDXL"``, ``"FLUX.1"``, or the name of one of your own, registered or
            described by ``models``.
        scheduler: ``"DDIM"``, ``"DPM-Solver++"``, ``"UniPCMultistepScheduler"`` or a diffusers scheduler's class name;
            None: the first of the pipe's, which is ``"DDIM"``, or ``"FlowMatchEulerDiscreteScheduler"`` for FLUX.1.
        models: where weights come from: ``"embedded"`` (small stand-ins that this package carries),
            ``"hub"``, ``"architecture"`` (full size, random weights), the path of a TOML file, or a
            :class:`~pytest_diffaccel.models.registry.ModelSource`.
        device: a torch device such as ``"cpu"`` or ``"cuda:1"``; None: CUDA where there is any, else the CPU.
        dtype: ``"float32"``, ``"float16"`` or ``"bfloat16"``; None: the model source's, else float32, and on CUDA
            float16 for UNets and bfloat16 for transformers.

    Returns:
        A :class:`diffusers.StableDiffusionPipeline`, for SDXL a :class:`diffusers.StableDiffusionXLPipeline`, for
        FLUX.1 a :class:`diffusers.FluxPipeline`, for a pipe of your own what it names; in evaluation mode, with its
        progress bar off.

    Raises:
        ValueError: for an unknown name, a device that is not there, weights of another architecture, a
            truncated file, or weights that ask for code of their own; the message names the fix.
        FileNotFoundError: for missing weights; the message names the fix, for hub ids the command that
            fetches them.
    """
    if scheduler is not None:
        check_scheduler(scheduler)
    source = models if isinstance(models, ModelSource) else ModelSource.from_option(models)
    spec = source.spec(pipe)
    target = _device(device)
    number_type = _dtype(dtype or spec.dtype or default_dtype(target.type, spec.family))
    with no_progress_bars():
        if spec.kind == "architecture":
            pipeline = build_pipeline(spec.family, Path(spec.location), target, number_type)
        else:
            load = _from_file if spec.kind == "file" else _from_folder
            pipeline = load(spec, number_type)
    if spec.vae is not None:
        check_latents(pipeline, denoiser_of(pipeline), spec.vae)
    pipeline.to(target)
    pipeline.set_progress_bar_config(disable=True)
    set_scheduler(pipeline, scheduler or spec.family.schedulers[0])
    _warn_once(pipeline)
    return cast("Pipeline", pipeline)


def _folder(spec: ModelSpec) -> Path:
    """The diffusers folder behind a spec, downloaded if need be."""
    if spec.kind != "hub":
        return Path(spec.location)
    # The cached copy first: a search must not change its weights half way because the repository did.
    try:
        folder = cached_folder(spec.location)
    except FileNotFoundError:
        return fetched_folder(spec.location)
    if lack := _lack(folder, spec.family):
        try:
            folder = fetched_folder(spec.location)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{lack}. {error}") from error
    return folder


def _lack(folder: Path, pipe: PipeSpec) -> str:
    """Which file a cached folder lacks; empty for none. What is broken is refused when it is checked."""
    try:
        folder_files(folder, pipe)
        check_settings(folder, pipe, own=False)
    except FileNotFoundError as error:
        return str(error)
    except ValueError:
        pass
    return ""


def _from_folder(spec: ModelSpec, dtype: torch.dtype, given: Mapping[str, Any] | None = None) -> Any:
    """The pipeline in a diffusers folder, with components that are ``given`` in place of its own."""
    folder = _folder(spec)
    try:
        check_folder(folder, spec.family, own=spec.kind != "hub")
    except (OSError, ValueError) as error:
        if spec.kind != "hub":
            raise
        command = f"{fetch_command(spec.location)} --force-download"
        raise type(error)(f"{error}. Fetch all of {spec.location} again: {command}") from error
    named = read_json(folder / "model_index.json")
    options = {name: None for name in LEFT_OUT if name in named} | _options(spec, dtype) | dict(given or {})
    with loadable(folder, spec.family.with_weights) as place:
        return _pipeline_class(spec.family).from_pretrained(str(place), dtype=dtype, use_safetensors=True, **options)


def _from_file(spec: ModelSpec, dtype: torch.dtype) -> Any:
    path = Path(spec.location)
    tensors = check_single_file(path, spec.family)
    check_markers(tensors, path)
    if spec.family.lone_denoiser_files:
        return _from_denoiser_file(spec, dtype)
    config = settings_place(spec)
    if Path(config).is_absolute():
        check_index(Path(config), spec.family)
        refuse_code(Path(config) / "model_index.json")
        check_settings(Path(config), spec.family)
    options = _options(spec, dtype)
    try:
        pipeline = _pipeline_class(spec.family).from_single_file(str(path), dtype=dtype, config=config, **options)
    except OSError as error:
        raise FileNotFoundError(no_settings(path, config, spec.family)) from error
    except NotImplementedError as error:  # of a tensor without numbers
        raise ValueError(_misfit(path, config, spec.pipe, "it lacks tensors")) from error
    except Exception as error:  # of many classes, none of which names the file
        raise ValueError(_misfit(path, config, spec.pipe, str(error).partition("\n")[0])) from error
    if missing := _missing_tensors(pipeline):
        raise ValueError(_misfit(path, config, spec.pipe, f"it lacks the tensors of {missing}"))
    if unfit := _unfit_tokenizers(pipeline, spec.family):
        raise FileNotFoundError(
            f"{config}, whose settings {path} is read with, has no vocabulary or length that fits the text encoder for "
            f"{unfit}. Fetch all of it: {fetch_command(config)}"
        )
    read_markers(pipeline, tensors)
    return pipeline


def _from_denoiser_file(spec: ModelSpec, dtype: torch.dtype) -> Any:
    """The pipeline whose settings are named, with the denoiser of a single file in place of its own."""
    import diffusers

    path, rest, name = Path(spec.location), beside_denoiser(spec), spec.family.denoiser
    folder = _folder(rest)
    check_folder(folder, spec.family, own=rest.kind != "hub")
    its_class = getattr(diffusers, str(read_json(folder / name / "config.json").get("_class_name")), None)
    try:
        denoiser = its_class.from_single_file(str(path), config=str(folder), subfolder=name, dtype=dtype)  # type: ignore[union-attr]
    except NotImplementedError as error:  # of a tensor without numbers
        raise ValueError(_misfit(path, rest.location, spec.pipe, f"it lacks tensors of the {name}")) from error
    except Exception as error:  # of many classes, none of which names the file
        raise ValueError(_misfit(path, rest.location, spec.pipe, str(error).partition("\n")[0])) from error
    return _from_folder(rest, dtype, {name: denoiser.eval()})


def _unfit_tokenizers(pipeline: Any, pipe: PipeSpec) -> str:
    """Tokenizers that know no words, or no length: what transformers makes of a folder without their files.

    And those that know more than their text encoder.
    """

    def is_unfit(tokenizer: Any, encoder: Any) -> bool:
        return bool(
            tokenizer is None
            or len(tokenizer) <= len(tokenizer.all_special_tokens)
            or tokenizer.model_max_length > getattr(encoder.config, "max_position_embeddings", math.inf)
            or max(tokenizer.get_vocab().values()) >= encoder.config.vocab_size
        )

    parts = zip(pipe.tokenizers, pipe.text_encoders, strict=True)
    return ", ".join(name for name, encoder in parts if is_unfit(getattr(pipeline, name), getattr(pipeline, encoder)))


def _misfit(path: Path, config: str, pipe: str, reason: str) -> str:
    return (
        f"{path} cannot be read as {pipe} with the settings of {config} ({reason}); "
        f'set config = "a diffusers folder" of the same architecture, or give a whole {pipe} checkpoint'
    )


def _missing_tensors(pipeline: Any) -> str:
    """Components that have parameters without numbers; of text encoders, diffusers does not say."""
    parts = {name: part for name, part in pipeline.components.items() if hasattr(part, "parameters")}
    return ", ".join(name for name, part in parts.items() if any(parameter.is_meta for parameter in part.parameters()))


def _options(spec: ModelSpec, dtype: torch.dtype) -> dict[str, Any]:
    """Components that diffusers is given instead of loading them itself."""
    options = dict(spec.family.left_out)
    return options if spec.vae is None else {**options, "vae": load_vae(spec.vae, settings_place(spec), dtype)}


def _pipeline_class(pipe: PipeSpec) -> Any:
    """A class of diffusers' own, by name: never one that lies beside weights."""
    import diffusers

    found = getattr(diffusers, pipe.pipeline_class, None)
    if not (isinstance(found, type) and issubclass(found, diffusers.DiffusionPipeline)):
        raise ValueError(
            f"{pipe.name}: diffusers has no pipeline class {pipe.pipeline_class!r}; name one, such as "
            "StableDiffusionPipeline"
        )
    return found


def _device(name: str | None) -> torch.device:
    import torch

    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"no device {name!r}; write cpu, cuda or cuda:1") from error
    seen = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= seen:
        raise ValueError(f"device {name!r}: torch sees {seen} CUDA devices; take another, or cpu")
    return device


def default_dtype(device_type: str, pipe: PipeSpec) -> str:
    """What weights are loaded as, on a type of device, when neither the caller nor the model source says."""
    return pipe.gpu_dtype if device_type == "cuda" else "float32"


def _dtype(name: str) -> torch.dtype:
    import torch

    if name not in DTYPES:
        raise ValueError(f"no dtype {name!r}; valid: {', '.join(DTYPES)}")
    chosen: torch.dtype = getattr(torch, name)
    return chosen


class _Once(logging.Filter):
    """Lets each warning through once: pipelines warn of the same long prompt in every call."""

    def __init__(self) -> None:
        super().__init__()
        self._said: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        is_new = message not in self._said
        self._said.add(message)
        return is_new


def _warn_once(pipeline: Any) -> None:
    log = logging.getLogger(type(pipeline).__module__)
    if not any(isinstance(known, _Once) for known in log.filters):
        log.addFilter(_Once())


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Loading bars off, and back as they were: they would fill the logs of every worker."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    shown = [log for log in (diffusers_logging, transformers_logging) if log.is_progress_bar_enabled()]
    for log in shown:
        log.disable_progress_bar()
    try:
        yield
    finally:
        for log in shown:
            log.enable_progress_bar()
