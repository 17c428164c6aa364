"""A pipe of one's own, as an entry of a models file describes it; pure Python."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pytest_diffaccel.models.schedulers import FLOW_SCHEDULERS, is_flow_matching
from pytest_diffaccel.models.settings_files import read_json
from pytest_diffaccel.pipe_shapes import Topology
from pytest_diffaccel.pipes import BUILT_IN, PipeSpec, is_step_count

#: Keys of such an entry beside those of any other.
OWN_KEYS = ("class", "steps", "schedulers")

# What pipes of one class have in common.
_SHARED = (
    *("built_like", "denoiser", "text_encoders", "tokenizers", "schedulers", "steps", "side_unit"),
    *("lone_denoiser_files", "left_out", "left_out_in_scripts", "sized_by_vae"),
)
_FLOW = {"schedulers": FLOW_SCHEDULERS}
# Classes that are known to work, and to be none of the built-in pipes'; a folder says the same of itself.
_OF_CLASSES: Mapping[str, Mapping[str, Any]] = {
    "CogView4Pipeline": {"denoiser": "transformer", "side_unit": 16, **_FLOW},
    "PixArtSigmaPipeline": {"denoiser": "transformer"},
    "QwenImagePipeline": {"denoiser": "transformer", "side_unit": 16, **_FLOW},
}


def own_pipe(name: str, table: Mapping[str, object], folder: Path | None) -> PipeSpec:
    """What an entry says; what it leaves open is as in the built-in pipes of its class, or said by the folder.

    Args:
        name: the entry's key.
        table: the entry; of the keys that it shares with other entries, ``path`` and ``id`` are read.
        folder: of its pipeline, which need not be there; None: it comes from the hub, or is a single file.

    Raises:
        ValueError: naming the bad value and what to write instead.
    """
    its_class = table["class"]
    if not isinstance(its_class, str):
        raise ValueError(
            f'class = {its_class!r}; name a pipeline class of diffusers, such as "StableDiffusionPipeline"'
        )
    written = str(table.get("path", table.get("id")))
    known = _as_in_class(its_class) or (_as_in_folder(folder) if folder else {})
    denoiser = known.get("denoiser", PipeSpec.denoiser)
    schedulers, steps = known.get("schedulers", PipeSpec.schedulers), known.get("steps", PipeSpec.steps)
    told = {
        "schedulers": _listed(table, "schedulers", _is_name, schedulers, 'names, such as ["EulerDiscreteScheduler"]'),
        "steps": _listed(table, "steps", is_step_count, steps, "whole numbers from 1 to 1000, such as [20, 30]"),
    }
    return PipeSpec(
        name,
        its_class,
        weights="" if written.endswith(".safetensors") else written,
        topology=Topology.from_config(_settings(folder / denoiser / "config.json") if folder else {}),
        **{**known, **told},
    )


def _is_name(value: object) -> bool:
    return isinstance(value, str) and bool(value)


def _listed(
    table: Mapping[str, object], key: str, is_fit: Callable[[object], bool], default: tuple[Any, ...], what: str
) -> tuple[Any, ...]:
    """The different values of a list in an entry; the default where it has none."""
    written = table.get(key)
    if written is None:
        return default
    if not isinstance(written, list) or not written or not all(map(is_fit, written)):
        raise ValueError(f"{key} = {written!r}; write a list of {what}")
    return tuple(dict.fromkeys(written))


def _as_in_class(its_class: str) -> dict[str, Any]:
    like = next((pipe for pipe in BUILT_IN if pipe.pipeline_class == its_class), None)
    return {name: getattr(like, name) for name in _SHARED} if like else dict(_OF_CLASSES.get(its_class, {}))


def _as_in_folder(folder: Path) -> dict[str, Any]:
    """The components that a ``model_index.json`` names; none where it cannot be read: checks of the folder say why."""
    index = _settings(folder / "model_index.json")
    names = [name for name, value in index.items() if isinstance(value, list) and value and None not in value]
    found = {
        "text_encoders": tuple(sorted(name for name in names if name.startswith("text_encoder"))),
        "tokenizers": tuple(sorted(name for name in names if name.startswith("tokenizer"))),
        "denoiser": next((name for name in ("unet", "transformer") if name in names), ""),
    }
    if "scheduler" in names and is_flow_matching(str(index["scheduler"][-1])):
        found["schedulers"] = FLOW_SCHEDULERS
    return {name: value for name, value in found.items() if value}


def _settings(path: Path) -> dict[str, Any]:
    try:
        return read_json(path)
    except ValueError:
        return {}
