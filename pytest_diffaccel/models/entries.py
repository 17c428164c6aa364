"""What an entry of a models file may say, checked value by value: pure Python.

Each function here raises a ``ValueError`` that names the bad value and what to write instead.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, TypeAlias, TypeGuard

from pytest_diffaccel.models.own_pipes import OWN_KEYS
from pytest_diffaccel.pipes import BUILT_IN

Kind: TypeAlias = Literal["embedded", "directory", "file", "hub", "architecture"]
#: What a pipeline may compute in.
DTYPES = ("float32", "float16", "bfloat16")

_TABLE_KEYS = ("path", "id", "config", "vae", "dtype", "height", "width", "guidance_scale")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_PLACES: Mapping[str, str] = {
    "config": "the directory or hub id of a pipeline's settings",
    "vae": "the directory, .safetensors file or hub id of a VAE",
}
_PICKLED_SUFFIXES = (".ckpt", ".pt", ".pth", ".bin")


def table_of(entry: object, base: Path, *, is_known: bool) -> Mapping[str, object]:
    """The entry as a table with one of ``path`` and ``id``; a mere string stands for one.

    Args:
        entry: as TOML gives it.
        base: the directory that relative paths start from.
        is_known: whether the pipe is known without the models file, which may then say nothing of its class.
    """
    if isinstance(entry, str):
        return {"path" if _is_path(entry, base) else "id": entry}
    if not isinstance(entry, dict):
        raise ValueError(f"{entry!r} is neither a string (path or hub id) nor a table")
    if is_known and "class" in entry:
        raise ValueError("a pipe of this name is known already; leave class out, or give yours another name")
    keys = _TABLE_KEYS if is_known else (*OWN_KEYS, *_TABLE_KEYS)
    if unknown := [key for key in entry if key not in keys]:
        raise ValueError(f"unknown key {unknown[0]!r}; known: {', '.join(keys)}")
    if ("path" in entry) == ("id" in entry):
        raise ValueError('give exactly one of path = "..." and id = "..."')
    return entry


def _is_path(text: str, base: Path) -> bool:
    """Whether ``text`` is a path; ``owner/name`` is one only if that directory exists."""
    marked = text.startswith((".", "/", "~")) or text.endswith((".safetensors", *_PICKLED_SUFFIXES))
    return marked or (base / text).exists()


def located(text: str, base: Path) -> tuple[Kind, str]:
    """What stands at a path, a single file or a directory, and the path from the root."""
    if text.endswith(_PICKLED_SUFFIXES):
        raise ValueError(f"{text!r} is a pickled checkpoint, which can run code; convert it to .safetensors")
    location = str(base / Path(text).expanduser())
    return ("file", location) if text.endswith(".safetensors") else ("directory", location)


def hub_id(text: str) -> str:
    """``owner/name``."""
    if not _HUB_ID.fullmatch(text):
        raise ValueError(f"{text!r} is neither a path that exists nor a hub id such as {BUILT_IN[-1].hub_id!r}")
    return text


def place(key: str, value: object, base: Path) -> str | None:
    """An absolute path or a hub id, for the key ``config`` or ``vae``; None where none is written."""
    if value is None:
        return None
    if not isinstance(value, str) or not value:
        raise ValueError(f"{key} = {value!r}; write {_PLACES[key]}")
    return located(value, base)[1] if _is_path(value, base) else hub_id(value)


def dtype(value: object) -> str | None:
    """A name of :data:`DTYPES`; None where none is written."""
    if value is not None and value not in DTYPES:
        raise ValueError(f"dtype = {value!r}; valid: {', '.join(DTYPES)}")
    return None if value is None else str(value)


def image_size(height: object, width: object, unit: int) -> tuple[int, int] | None:
    """Height and width in pixels, multiples of ``unit``; None where neither is written."""
    if height is None and width is None:
        return None
    # diffusers drops a size of which it is told one side only.
    if not (_is_side(height, unit) and _is_side(width, unit)):
        raise ValueError(f"height = {height!r}, width = {width!r}; give both, in pixels, as multiples of {unit}")
    return height, width


def _is_side(value: object, unit: int) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0 and value % unit == 0


def guidance_scale(value: object) -> float | None:
    """At least 0; None where none is written."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise ValueError(f"guidance_scale = {value!r}; write a number of at least 0, such as 7.5")
    return float(value)
