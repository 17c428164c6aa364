"""A component's weight files: their digests, and by their headers whether they hold what settings ask for."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

from pytest_diffaccel.models.settings_files import read_json

_CHUNK_BYTES = 1 << 20
_Shapes: TypeAlias = dict[str, tuple[int, ...]]
# diffusers renames these as it loads old VAEs; a text model's prefix comes and goes with transformers' versions.
_RENAMED = "mid_block.attentions."
_PREFIX = "text_model."
# T5 reads its words' vectors by a second name, under which few files have them.
_ALIAS = "encoder.embed_tokens.weight"
_OF_DIFFUSERS = ("UNet2DConditionModel", "FluxTransformer2DModel", "AutoencoderKL")
_TEXT_CONFIGS = {
    "CLIPTextModel": "CLIPTextConfig",
    "CLIPTextModelWithProjection": "CLIPTextConfig",
    "T5EncoderModel": "T5Config",
}


def file_digest(path: Path) -> str:
    """SHA-256 of a file, 64 hex digits; a file that did not change is read once.

    Raises:
        OSError: when it cannot be read.
    """
    path = path.resolve(strict=True)
    status = path.stat()
    return _digest_of_state(path, status.st_size, status.st_mtime_ns)


@cache
def _digest_of_state(path: Path, size_bytes: int, mtime_ns: int) -> str:
    """SHA-256 of the file; size and time are there to make another state of the file another cache entry."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def tensor_shapes(path: Path) -> _Shapes:
    """Shapes by name, from a file's header, which also tells whether the file has all its bytes.

    Raises:
        ValueError: if it is truncated or no safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as tensors:
            return {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{path} is truncated or no safetensors file ({error}); fetch or save it again"
            " (a file of some hundred bytes is a Git LFS pointer: run 'git lfs pull')"
        ) from error


def check_component(folder: Path, paths: Sequence[Path]) -> None:
    """Refuse weights that are not those of a component's settings; missing ones would be random numbers.

    Args:
        folder: of a component, with its ``config.json``.
        paths: its weight files.

    Raises:
        ValueError: naming the file, and the tensor that is missing or of another shape.
    """
    found = {name: shape for path in paths for name, shape in tensor_shapes(path).items()}
    expected = _expected(read_json(folder / "config.json"))
    found = {name.removeprefix(_PREFIX): shape for name, shape in found.items()}
    for name, shape in expected.items():
        if found.get(name, shape) != shape or (name not in found and _RENAMED not in name):
            has = f"of shape {found[name]}, not {shape}" if name in found else "missing"
            raise ValueError(
                f"{paths[0]} is not of the architecture that {folder / 'config.json'} describes: "
                f"tensor {name} is {has}; fetch or save the folder again"
            )


def _expected(config: dict[str, Any]) -> _Shapes:
    """Shapes by name of a component built from its settings; nothing of a class that is not known here."""
    import diffusers
    import torch
    import transformers

    name = config.get("_class_name") or next(iter(config.get("architectures") or ()), None)
    if name not in (*_OF_DIFFUSERS, *_TEXT_CONFIGS) or "quantization_config" in config:
        return {}
    with torch.device("meta"):
        if "_class_name" in config:
            component = getattr(diffusers, name).from_config(config)
        else:
            component = getattr(transformers, name)(getattr(transformers, _TEXT_CONFIGS[name])(**config))
    shapes = {name.removeprefix(_PREFIX): tuple(tensor.shape) for name, tensor in component.state_dict().items()}
    return {name: shape for name, shape in shapes.items() if name != _ALIAS}
