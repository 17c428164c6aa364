"""Evaluation prompts: which there are, and which a measurement uses with which seeds."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Literal, TypeAlias

from pytest_diffaccel.measure.prompt_files import PromptFile, read_prompt_file
from pytest_diffaccel.models.registry import ModelSpec
from pytest_diffaccel.words import counted

#: A search compares candidates; the winner is measured again on prompts and seeds that did not choose it.
Purpose: TypeAlias = Literal["search", "winner"]

_PURPOSES: tuple[Purpose, ...] = ("search", "winner")
# Seeds of a purpose are consecutive, from a start of its own. torch's CPU generator keeps 32 bits of a seed.
_SEEDS_PER_PURPOSE = 2**16
_SEED_RANGE = 2**32


def default_prompts(spec: ModelSpec) -> tuple[str, ...]:
    """The prompts to use where none are given: what an embedded pipeline was trained on, else 64 varied ones.

    Raises:
        FileNotFoundError: if the embedded pipeline is not installed.
    """
    if spec.kind == "embedded":
        return _packaged(Path(spec.location) / "prompts.txt")
    return _packaged(Path(str(files("pytest_diffaccel.measure") / "data" / "prompts.txt")))


@cache
def _packaged(path: Path) -> tuple[str, ...]:
    """Read once: every sampling asks for them."""
    return read_prompt_file(path).prompts


def used(named: Path, num_samples: int, *, gate: bool = False) -> str:
    """How many of a file's prompts are used, in a sentence.

    Args:
        named: ``FILE`` or ``FILE:COLUMN``.
        num_samples: of a measurement, 1 to 65536.
        gate: whether winners are only judged again, on the prompts that verify them.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it cannot be read (:func:`.read_prompt_file`).
    """
    file = read_prompt_file(named)
    searched, verified = (min(num_samples, len(_half(file.prompts, purpose))) for purpose in _PURPOSES)
    given = f"of {counted(len(file.prompts), 'prompt')} in {_origin(file)},"
    if gate:
        return f"{given} {verified} {'are' if verified > 1 else 'is'} drawn"
    if len(file.prompts) == 1:
        return f"{given} the same one chooses winners and verifies them; give more"
    return (
        f"{given} {searched} {'choose' if searched > 1 else 'chooses'} winners and {counted(verified, 'other')} "
        f"{'verify' if verified > 1 else 'verifies'} them"
    )


def _origin(file: PromptFile) -> str:
    said = [] if file.column is None else [f"column {file.column!r}"]
    if file.repeated:
        said.append(f"without {counted(file.repeated, 'repetition')}")
    return f"{file.path} ({', '.join(said)})" if said else str(file.path)


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
