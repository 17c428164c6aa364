"""Evaluation prompts: which there are, and which a measurement uses with which seeds."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Literal, TypeAlias

from pytest_diffaccel.models.registry import ModelSpec

#: A search compares candidates; the winner is measured again on prompts and seeds that did not choose it.
Purpose: TypeAlias = Literal["search", "winner"]

_PURPOSES = ("search", "winner")
# Seeds of a purpose are consecutive, from a start of its own. torch's CPU generator keeps 32 bits of a seed.
_SEEDS_PER_PURPOSE = 2**16
_SEED_RANGE = 2**32


def default_prompts(spec: ModelSpec) -> tuple[str, ...]:
    """The prompts to use where none are given: what an embedded pipeline was trained on, else 64 varied ones.

    Raises:
        FileNotFoundError: if the embedded pipeline is not installed.
    """
    if spec.kind == "embedded":
        return read_prompts(Path(spec.location) / "prompts.txt")
    return read_prompts(Path(str(files("pytest_diffaccel.measure") / "data" / "prompts.txt")))


def read_prompts(path: Path) -> tuple[str, ...]:
    """Read a prompts file: one prompt per line; blank lines and lines that begin with ``#`` are skipped.

    Returns:
        The prompts in file order, each stripped and without repetitions, at least one.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not UTF-8 text, or holds no prompt.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no prompts file {path}; give a text file with one prompt per line")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise ValueError(f"{path}, line {line}: not UTF-8 text; save the file as UTF-8") from error
    if "\0" in text:
        raise ValueError(f"{path} is a binary file; give a text file with one prompt per line")
    # Not splitlines, which also splits at what people paste along, such as U+2028: a prompt may hold any of it.
    lines = (line.strip() for line in text.split("\n"))
    prompts = tuple(dict.fromkeys(line for line in lines if line and not line.startswith("#")))
    if not prompts:
        raise ValueError(f"{path} holds no prompt; write one per line")
    return prompts


def select(prompts: Sequence[str], num_samples: int, seed: int, purpose: Purpose) -> list[tuple[str, int]]:
    """The (prompt, image seed) pairs of a measurement; the same arguments give the same pairs anywhere.

    The two purposes share neither a prompt (unless there is only one) nor an image seed. The first pairs of a
    longer selection are those of a shorter one. Prompts come round again, with new seeds, once all were used.

    Args:
        prompts: at least one; repetitions count once.
        num_samples: how many pairs, 1 to 65536.
        seed: any integer; chooses the order of the prompts and the image seeds.
        purpose: ``"search"`` or ``"winner"``.

    Returns:
        ``num_samples`` pairs; image seeds are distinct and lie in 0 to 2**32 - 1.

    Raises:
        ValueError: for no prompts, an unknown purpose, or a number of samples out of range.
    """
    if purpose not in _PURPOSES:
        raise ValueError(f"no purpose {purpose!r}; valid: {', '.join(_PURPOSES)}")
    if not 1 <= num_samples <= _SEEDS_PER_PURPOSE:
        raise ValueError(f"{num_samples} samples; valid: 1 to {_SEEDS_PER_PURPOSE}")
    order = sorted(_half(prompts, purpose), key=lambda prompt: _sha256(f"{seed} {prompt}"))
    first = (2 * seed + _PURPOSES.index(purpose)) * _SEEDS_PER_PURPOSE % _SEED_RANGE
    return [(order[place % len(order)], first + place) for place in range(num_samples)]


def digest(prompts: Sequence[str]) -> str:
    """First 12 hex digits of the SHA-256 of the prompts in order."""
    return _sha256("\n".join(prompts))[:12]


def _half(prompts: Sequence[str], purpose: Purpose) -> list[str]:
    """Every second prompt. It does not depend on the seed, so no search ever sees a winner's prompts."""
    distinct = list(dict.fromkeys(prompts))
    if not distinct:
        raise ValueError("no prompts to select from")
    return distinct[_PURPOSES.index(purpose) :: 2] or distinct


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
