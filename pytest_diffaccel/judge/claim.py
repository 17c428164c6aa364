"""What a script's process says of a pipeline call, checked for form, and how it differs from the task."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, TypeAlias

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked_dataclass

from pytest_diffaccel.accelerators.base import Method
from pytest_diffaccel.accelerators.registry import Registry, default_registry
from pytest_diffaccel.codegen.tasks import Task
from pytest_diffaccel.matrix import Number
from pytest_diffaccel.models.schedulers import SCHEDULER_CLASSES

#: A setting of a scheduler, where it is a plain one.
Setting: TypeAlias = str | int | float | bool | None

#: Images of one call beyond which it is no script of the tasks.
MOST_IMAGES = 32
# Characters of a prompt: CLIP reads the first 77 tokens.
_Text = Annotated[str, Field(max_length=2000)]
_Prompts = _Text | Annotated[list[_Text], Field(min_length=1, max_length=MOST_IMAGES)]
_TEXTS = ("prompt", "prompt_2", "negative_prompt", "negative_prompt_2")
# What people give. Outside, work need not be done: a guidance of 1.000001 needs no unconditional half of a batch, and
# one of 1e38 draws the same black picture of any noise.
_RANGES: Mapping[str, tuple[float, float]] = {
    "guidance_scale": (2, 20),
    "guidance_rescale": (0, 1),
    "eta": (0, 1),
    "clip_skip": (0, 12),
}


@checked_dataclass(frozen=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class Arguments:
    """A pipeline call's arguments, those that are repeated."""

    num_inference_steps: Annotated[int, Field(ge=1, le=1000)]
    prompt: _Prompts
    height: Annotated[int, Field(ge=8, le=8192)]
    width: Annotated[int, Field(ge=8, le=8192)]
    guidance_scale: float
    prompt_2: _Prompts | None = None
    negative_prompt: _Prompts | None = None
    negative_prompt_2: _Prompts | None = None
    num_images_per_prompt: Annotated[int, Field(ge=1, le=MOST_IMAGES)] = 1
    guidance_rescale: float = 0.0
    eta: float = 0.0
    clip_skip: int | None = None
    max_sequence_length: int | None = None

    def __post_init__(self) -> None:
        if self.images > MOST_IMAGES:
            raise ValueError(f"{self.images} images in one call; at most {MOST_IMAGES} are repeated")

    @property
    def images(self) -> int:
        """How many images the call gives."""
        prompts = 1 if isinstance(self.prompt, str) else len(self.prompt)
        return prompts * self.num_images_per_prompt

    @property
    def wording(self) -> dict[str, Any]:
        """What is drawn how often, by argument: plain values, what is left open among them."""
        return {name: getattr(self, name) for name in (*_TEXTS, "num_images_per_prompt")}

    def oddities(self, own_guidance_scale: float) -> list[str]:
        """Why nobody needs to compute all that this call asks for, a sentence each; empty for what people ask for.

        Args:
            own_guidance_scale: the model source's, which is as good as any above 1.
        """
        said = [
            f"{name}: {value!r} is not from {low:g} to {high:g}, as people give it"
            for name, (low, high) in _RANGES.items()
            if (value := getattr(self, name)) is not None and not low <= value <= high
        ]
        if self.guidance_scale == own_guidance_scale > 1:
            said = [oddity for oddity in said if not oddity.startswith("guidance_scale:")]
        prompts, negatives = (
            {text.strip() for text in ([value] if isinstance(value, str) else value or [""])}
            for value in (self.prompt, self.negative_prompt)
        )
        if prompts & {*negatives, ""}:
            said.append("prompt: empty, or its own negative prompt, for which guidance does nothing")
        return said

    def for_prompts(self, prompts: list[str], *, negatives: bool = True) -> Arguments:
        """The same call for other prompts, one image each.

        Args:
            prompts: at least one.
            negatives: whether a negative prompt stays, if it is one for all.
        """
        wording: dict[str, Any] = {**dict.fromkeys(_TEXTS), "prompt": prompts, "num_images_per_prompt": 1}
        for name in ("negative_prompt", "negative_prompt_2"):
            if negatives and isinstance(value := getattr(self, name), str):
                wording[name] = [value] * len(prompts)
        return replace(self, **wording)

    def as_usual(self, guidance_scale: float) -> Arguments:
        """The same call with this guidance, and without what else changes how it is drawn."""
        return replace(self, guidance_scale=guidance_scale, guidance_rescale=0.0, eta=0.0, clip_skip=None)

    @property
    def options(self) -> dict[str, Any]:
        """As keyword arguments; those of other pipelines and those left open are absent."""
        given = {name: value for name, value in vars(self).items() if not name.startswith("_") and value is not None}
        # SDXL has no eta worth naming at 0, and SD no second prompt: what is at its default need not be said.
        return {name: value for name, value in given.items() if value != 0.0 or name == "guidance_scale"}


@checked_dataclass(frozen=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class Claim:
    """One pipeline call, as the script's process tells it.

    Attributes:
        pipe: whose weights it uses.
        scheduler: class of its scheduler.
        scheduler_config: that scheduler's settings.
        arguments: the call's.
        methods: parameters by accelerator method, as golden writes them.
        oddities: what the judge cannot repeat.
    """

    pipe: str
    scheduler: str
    scheduler_config: Mapping[str, Setting]
    arguments: Arguments
    methods: Mapping[str, Mapping[str, Number]]
    oddities: list[str]

    @classmethod
    def from_header(cls, header: Mapping[str, Any]) -> Claim:
        """The claim in a message.

        Raises:
            ValueError: when it is none, naming each argument that is at fault.
        """
        said = {name: value for name, value in header.items() if name != "event"}
        try:
            return TypeAdapter(cls).validate_python(said)
        except ValidationError as error:
            raise ValueError("; ".join([*_strange(header.get("oddities")), *_faults(error)])) from error

    def mismatches(self, expected: Expected, registry: Registry) -> list[str]:
        """How the call differs from what the task asks for, a sentence each; empty when it does not."""
        task = expected.task
        scheduler = SCHEDULER_CLASSES.get(task.cell.scheduler, (task.cell.scheduler, {}))[0]
        asked: tuple[tuple[str, object, object], ...] = (
            ("weights", self.pipe or "unknown", task.cell.pipe),
            ("scheduler", self.scheduler, scheduler),
            ("num_inference_steps", self.arguments.num_inference_steps, task.cell.steps),
            ("accelerators", sorted(self.methods), sorted(task.methods)),
            ("image size", (self.arguments.height, self.arguments.width), expected.image_size),
            ("max_sequence_length", self.arguments.max_sequence_length, expected.text_length),
        )
        said = [f"{name}: {_words(found)}, not {_words(wanted)}" for name, found, wanted in asked if found != wanted]
        if self.scheduler == scheduler:
            said += [
                f"scheduler setting {name}: {self.scheduler_config.get(name)!r}, not {wanted!r}"
                for name, wanted in expected.scheduler_config.items()
                if self.scheduler_config.get(name) != wanted
            ]
        said += self.arguments.oddities(expected.guidance_scale)
        said += [f"cannot be judged: {oddity}" for oddity in self.oddities]
        return said or self._bad_params(task.cell.steps, registry)

    def _bad_params(self, steps: int, registry: Registry) -> list[str]:
        try:
            registry.for_params(self.methods).check(self.methods, steps)
        except ValueError as error:
            return [str(error)]
        return []


@dataclass(frozen=True)
class Expected:
    """What a task's call must be.

    Attributes:
        task: the task.
        image_size: height and width of the model source's images, pixels.
        scheduler_config: settings of the scheduler that the judge gives its own pipeline.
        guidance_scale: the model source's, or its pipeline's own default.
        text_length: tokens that texts are filled up to; None: pipelines of this class are not told.
    """

    task: Task
    image_size: tuple[int, int]
    scheduler_config: Mapping[str, Setting]
    guidance_scale: float
    text_length: int | None = None


def cached_method(config_class: str) -> Method | None:
    """The built-in method that one of diffusers' caches is for, by the class of its config."""
    named = {
        f"{method.name}{end}": method for method in default_registry().methods for end in ("Config", "CacheConfig")
    }
    return named.get(config_class)


def plain_settings(config: Mapping[str, Any]) -> dict[str, Setting]:
    """The settings of a scheduler that are plain values; infinite ones, which JSON lacks, as Python prints them."""
    return {
        name: str(value) if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in config.items()
        if not name.startswith("_") and isinstance(value, str | int | float | bool | None)
    }


def _strange(oddities: object) -> list[str]:
    return [oddity for oddity in oddities if isinstance(oddity, str)] if isinstance(oddities, list) else []


def _faults(error: ValidationError) -> list[str]:
    """What is wrong with each part of a claim, once: a value may be no text and no list of texts either."""
    said: dict[str, str] = {}
    for problem in error.errors(include_url=False, include_input=False):
        place = [str(part) for part in problem["loc"] if part != "arguments"]
        message = "not given" if problem["type"] == "missing" else problem["msg"].removeprefix("Value error, ")
        said.setdefault(place[0] if place else "arguments", message[:1].lower() + message[1:])
    return [f"{name}: {message}" for name, message in said.items()]


def _words(value: object) -> str:
    if isinstance(value, tuple):
        return "x".join(map(str, value))
    if isinstance(value, list):
        return " and ".join(value) or "none"
    return str(value)
