"""The fingerprint of a measurement: what must be equal for two measurements to be comparable.

Identity only. Whatever changes between two runs on one machine (clocks, temperature, free memory, host name)
stays out, or every run would be an environment of its own.
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from pydantic import ConfigDict, TypeAdapter

from pytest_diffaccel.accelerators.stack import SetUp, stack_words
from pytest_diffaccel.matrix import Cell, Lesson
from pytest_diffaccel.measure.threads import cores
from pytest_diffaccel.models.tensors import file_digest
from pytest_diffaccel.records.found_out import OverEager, QualityScale, Word, better_known

if TYPE_CHECKING:
    import torch

#: Distributions whose version can change a speed or an image; of pipelines with a transformer, cache-dit's too.
LIBRARIES = ("torch", "diffusers", "transformers", "DeepCache", "tgate", "tomesd", "lpips")
_OF_TRANSFORMERS = ("cache-dit",)
ID_DIGITS = 12
#: ``nvidia-smi`` answers within seconds; a wedged driver must not hang a search.
_DRIVER_TIMEOUT_S = 60.0
_OPTIONAL = ("scale", "settings", "scheduler_defaults", "learnt", "stack", "over_eager", "set_up")
# What was found out in an environment, and is no part of what it is.
_FOUND_OUT = ("scale", "learnt", "over_eager", "set_up")
# What a part of a field of several parts is called in a difference.
_NOUNS: Mapping[str, str] = {
    "weights": " weights",
    "settings": " settings",
    "scheduler_defaults": " (open in the model's scheduler)",
}
_SHA256 = re.compile("[0-9a-f]{64}")

#: What methods have learnt: by method, scheduler and number of steps.
Learnt: TypeAlias = Mapping[str, Mapping[str, Mapping[str, Lesson]]]
#: A component's weights: a hub revision in words, a file, files, or a folder with safetensors files.
WeightSource: TypeAlias = str | Path | Sequence[Path]


@dataclass(frozen=True)
class Environment:
    """Everything that identifies the conditions of a measurement.

    Attributes:
        pipe: name of the pipeline family, for example ``"SD1.5"``.
        model_source: where the weights come from, in plain words ("embedded stand-in, not SD1.5").
        weights: by component, SHA-256 (64 hex digits) of its weight files, or the revision of a hub model.
        device: the GPU's model name, or the CPU's with the number of cores this process may use.
        driver: the NVIDIA driver's version; empty without one.
        threads: CPU threads torch computes with.
        versions: version of Python and of each installed library that matters, by name.
        dtype: of the denoiser, for example ``"float16"``.
        image_size: (height, width) in pixels.
        batch_size: images per call.
        guidance_scale: classifier-free guidance.
        scale: what LPIPS means here, once measured; no part of the identity.
        settings: by component, SHA-256 (64 hex digits) of what it is set to
            (:func:`~pytest_diffaccel.models.component_settings.settings_digests`); empty where an older version of this
            program recorded none.
        scheduler_defaults: settings that the model's own scheduler leaves open, as they were set for it
            (:func:`~pytest_diffaccel.models.schedulers.open_settings`).
        learnt: what methods have learnt of the pipe (:meth:`.Method.learns`), as far as any had to; no part of the
            identity.
        stack: how the pipeline is prepared before any method, in words, by what was done to it
            (:attr:`.Prepared.parts`); empty for the eager one.
        over_eager: how fast that alone makes it, once measured; no part of the identity.
        set_up: what torch compiled in one process, by accelerator (of the unaccelerated pipeline, ``""``), as far as
            it did; no part of the identity.
    """

    __pydantic_config__ = ConfigDict(strict=True, extra="forbid")

    pipe: str
    model_source: str
    weights: Mapping[str, str]
    device: str
    driver: str
    threads: int
    versions: Mapping[str, str]
    dtype: str
    image_size: tuple[int, int]
    batch_size: int
    guidance_scale: float
    scale: QualityScale | None = field(default=None, compare=False)
    settings: Mapping[str, str] = field(default_factory=dict)
    scheduler_defaults: Mapping[str, bool | int] = field(default_factory=dict)
    learnt: Learnt = field(default_factory=dict, compare=False)
    stack: Mapping[Word, Word] = field(default_factory=dict)
    over_eager: OverEager | None = field(default=None, compare=False)
    set_up: Mapping[Word, SetUp] = field(default_factory=dict, compare=False)

    @property
    def id(self) -> str:
        """First 12 hex digits of the SHA-256 of the canonical JSON; the same in every process."""
        # 5 == 5.0 makes equal environments, so it must not make two ids.
        identity = {**self.to_json(), "guidance_scale": float(self.guidance_scale)}
        for name in _FOUND_OUT:
            identity.pop(name, None)
        canonical = json.dumps(identity, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(canonical.encode()).hexdigest()[:ID_DIGITS]

    def is_scaled(self, began_at: float) -> bool:
        """Whether it is known what a loss means here, and a speed-up beside the eager pipeline.

        Args:
            began_at: what a restless machine left vague before is not, seconds since the epoch.
        """
        if self.scale is None or not self.stack:
            return self.scale is not None
        return self.over_eager is not None and self.over_eager.is_known(began_at)

    def __hash__(self) -> int:
        return hash(self.id)

    def lessons(self, cell: Cell) -> dict[str, Lesson]:
        """What methods have learnt of a cell, by method."""
        place = cell.scheduler, str(cell.steps)
        found = {method: rows.get(place[0], {}).get(place[1]) for method, rows in self.learnt.items()}
        return {method: lesson for method, lesson in found.items() if lesson is not None}

    def having_learnt(self, cell: Cell, lessons: Mapping[str, Lesson]) -> Environment:
        """The same, with what methods have learnt of a cell; what is known of it stays."""
        new = {method: {cell.scheduler: {str(cell.steps): lesson}} for method, lesson in lessons.items()}
        return self.knowing_also(replace(self, scale=None, learnt=new))

    def having_set_up(self, accelerator: str, set_up: SetUp) -> Environment:
        """The same, with what torch compiled of an accelerator in this process."""
        return self.knowing_also(replace(self, set_up={accelerator: set_up}))

    def knowing_also(self, other: Environment) -> Environment:
        """The same, with what an equal environment tells beside what is known here."""
        learnt: dict[str, dict[str, dict[str, Lesson]]] = {}
        for told in (other.learnt, self.learnt):
            for method, by_scheduler in told.items():
                for scheduler, by_steps in by_scheduler.items():
                    learnt.setdefault(method, {}).setdefault(scheduler, {}).update(by_steps)
        set_up = {**other.set_up}
        for name, here in self.set_up.items():
            set_up[name] = max(here, set_up.get(name, here), key=lambda one: (one.graphs, one.graph_breaks))
        return replace(
            self,
            scale=self.scale or other.scale,
            learnt=learnt,
            over_eager=better_known(self.over_eager, other.over_eager),
            set_up=set_up,
        )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types, all fields that are known; :meth:`from_json` reads them back equal."""
        known = asdict(self)
        # What is not known stays out, so that records of older versions keep their ids.
        return {name: value for name, value in known.items() if name not in _OPTIONAL or value}

    @classmethod
    def from_json(cls, text: str) -> Environment:
        """The environment whose :meth:`to_json` was dumped as ``text``.

        Raises:
            pydantic.ValidationError: (a ``ValueError``) when a field is missing, unknown or of another type.
        """
        return _adapter().validate_json(text)


def describe_environment(
    *,
    pipe: str,
    model_source: str,
    weights: Mapping[str, WeightSource],
    device: str | torch.device,
    dtype: str | torch.dtype,
    image_size: tuple[int, int],
    batch_size: int,
    guidance_scale: float,
    settings: Mapping[str, str] | None = None,
    scheduler_defaults: Mapping[str, bool | int] | None = None,
    stack: Mapping[str, str] | None = None,
) -> Environment:
    """The environment of this process, for a pipeline on ``device``.

    Args:
        pipe: name of the pipeline family.
        model_source: where the weights come from, in plain words.
        weights: by component; paths are hashed (once per process), strings are taken as they are.
        device: torch device the pipeline runs on.
        dtype: of the denoiser.
        image_size: (height, width) in pixels.
        batch_size: images per call.
        guidance_scale: classifier-free guidance.
        settings: by component, the digest of its settings.
        scheduler_defaults: what was set for a scheduler that leaves it open.
        stack: how the pipeline is prepared, in words; empty for the eager one.

    Raises:
        FileNotFoundError: when a weight file is missing or a folder holds no safetensors file.
        subprocess.TimeoutExpired: when the NVIDIA driver does not answer. Leaving it out instead would make
            this run an environment of its own.
    """
    import torch

    device = torch.device(device)
    return Environment(
        pipe=pipe,
        model_source=model_source,
        weights={name: weights_identity(source) for name, source in weights.items()},
        device=device_name(device),
        driver=driver_version() if device.type == "cuda" else "",
        threads=torch.get_num_threads(),
        versions=_versions(LIBRARIES + (_OF_TRANSFORMERS if "transformer" in weights else ())),
        dtype=str(dtype).removeprefix("torch."),
        image_size=image_size,
        batch_size=batch_size,
        guidance_scale=float(guidance_scale),
        settings=dict(settings or {}),
        scheduler_defaults=dict(scheduler_defaults or {}),
        stack=dict(stack or {}),
    )


def differences(before: Environment, after: Environment) -> list[str]:
    """What changed, one line per change ("torch 2.13.0 -> 2.14.1"); empty when the two are equal."""
    lines = []
    for name in (attribute.name for attribute in fields(before) if attribute.compare):
        old, new = getattr(before, name), getattr(after, name)
        if name == "settings" and bool(old) != bool(new):
            lines.append(_change(name, *("recorded" if recorded else "not recorded" for recorded in (old, new))))
        elif name == "stack":
            lines.append(_change(name, stack_words(old), stack_words(new)))
        elif isinstance(old, Mapping):
            noun = _NOUNS.get(name, "")
            parts = [*old, *(part for part in new if part not in old)]
            lines += [_change(f"{part}{noun}", old.get(part), new.get(part)) for part in parts]
        else:
            lines.append(_change(name.replace("_", " "), old, new))
    return [line for line in lines if line]


def differences_text(before: Environment | None, after: Environment | None) -> str:
    """The same in a line; of what a golden file's folder does not spell out, that it does not."""
    if before is None or after is None:
        return "one of them is not in environments.json"
    return "; ".join(differences(before, after))


def _change(name: str, old: object, new: object) -> str:
    return f"{name} {_words(old)} -> {_words(new)}" if old != new else ""


def _words(value: object) -> str:
    if isinstance(value, tuple):
        return "x".join(map(str, value))
    text = "absent" if value is None else str(value) or "none"
    return text[:ID_DIGITS] if _SHA256.fullmatch(text) else text


def weights_identity(source: WeightSource) -> str:
    """Of a component: SHA-256 of its weight files (64 hex digits), or the revision of a hub model as it is.

    Raises:
        FileNotFoundError: when a file is missing, or a folder holds none.
    """
    if isinstance(source, str):
        return source
    files = [source] if isinstance(source, Path) else sorted(source)
    if isinstance(source, Path) and source.is_dir():
        files = sorted(source.rglob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"no safetensors file to fingerprint in {source}; is the model complete?")
    digests = [file_digest(file) for file in files]
    # Content alone: the same weights in another folder are the same weights.
    return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()


def installed_versions(more: Sequence[str] = ()) -> dict[str, str]:
    """Version of Python and of each installed library that can change a speed or an image, and of ``more``."""
    return _versions((*LIBRARIES, *_OF_TRANSFORMERS, *more))


def _versions(libraries: Sequence[str]) -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in libraries:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def device_name(device: torch.device) -> str:
    """The GPU's model name, or the CPU's with the number of cores that this process may use."""
    if device.type == "cuda":
        import torch

        return torch.cuda.get_device_name(device)
    return cpu_name() if device.type == "cpu" else f"{device.type} of {cpu_name()}"


def cpu_name() -> str:
    """The CPU's model name, with the number of cores that this process may use."""
    return f"{_cpu_name()} ({cores()} cores)"


@cache
def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


@cache
def driver_version() -> str:
    """The NVIDIA driver's version; empty where there is none to ask (ROCm)."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=_DRIVER_TIMEOUT_S, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return answer.stdout.partition("\n")[0].strip()


@cache
def _adapter() -> TypeAdapter[Environment]:
    return TypeAdapter(Environment)
