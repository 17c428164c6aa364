"""The golden database's keys: what an entry answers, how that is spelled, and in which order keys stand."""

from __future__ import annotations

import ast
import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from pytest_diffaccel.matrix import PIPES, SCHEDULERS, TARGETS, Cell

#: Prompt order; a user's own accelerators follow, alphabetically.
ACCELERATORS = (
    "DeepCache",
    "T-Gate",
    "ToMe",
    "DeepCache and ToMe",
    "DeepCache and T-Gate",
    "DeepCache, T-Gate, and ToMe",
)
#: Longer than any key of ours; ``ast.literal_eval`` can exhaust memory on much longer text.
_LONGEST_KEY = 1000

Sort: TypeAlias = tuple[Any, ...]


@dataclass(frozen=True)
class GoldenKey:
    """What a golden entry answers: which parameters reach ``target`` here?

    Attributes:
        cell: pipe, scheduler and number of denoising steps, at least 1.
        accelerator: an accelerator's name.
        target: required speed-up, above 0.
    """

    cell: Cell
    accelerator: str
    target: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "target", float(self.target))  # 2 and 2.0 are one key, spelled one way
        if not (self.cell.pipe and self.cell.scheduler and self.accelerator):
            raise ValueError(f"a golden key's names must not be empty: {self}")
        if self.cell.steps < 1:
            raise ValueError(f"a golden key's steps must be at least 1: {self}")
        if not (math.isfinite(self.target) and self.target > 0):
            raise ValueError(f"a golden key's target must be a number above 0: {self}")

    def __str__(self) -> str:
        return str((self.cell.pipe, self.cell.scheduler, self.cell.steps, self.accelerator, self.target))

    @classmethod
    def parse(cls, text: str) -> GoldenKey:
        """The key whose ``str`` is ``text``.

        Raises:
            ValueError: when ``text`` is no key, or spelled otherwise (two spellings would be two entries).
        """
        example = "expected for example \"('SD1.5', 'DDIM', 20, 'DeepCache', 1.5)\""
        parts = _literal(text)
        if [type(part) for part in parts] != [str, str, int, str, float]:
            raise ValueError(f"not a golden key: {text[:_LONGEST_KEY]!r}; {example}")
        key = cls(Cell(*parts[:3]), *parts[3:])
        if str(key) != text:
            raise ValueError(f"golden key {text!r} must be spelled {str(key)!r}")
        return key

    @property
    def in_words(self) -> str:
        """``SD1.5 DDIM 20 steps, DeepCache, 1.5x``, as commands take it."""
        return f"{self.cell.in_words}, {self.accelerator}, {self.target:g}x"

    @property
    def prompt_order(self) -> Sort:
        """Sorts as prompts list keys: pipe, scheduler, steps, accelerator, target; unknown names last."""
        return (
            rank(self.cell.pipe, PIPES),
            rank(self.cell.scheduler, SCHEDULERS),
            self.cell.steps,
            rank(self.accelerator, ACCELERATORS),
            self.target,
        )


def stale_keys(keys: Iterable[GoldenKey], accelerators: Collection[str]) -> list[GoldenKey]:
    """Those that no search can find any more: of a target that is gone, or an accelerator not in ``accelerators``."""
    return [key for key in keys if key.accelerator not in accelerators or key.target not in TARGETS]


def _literal(text: str) -> tuple[Any, ...]:
    """The tuple that ``text`` spells; empty when it spells none."""
    try:
        value = ast.literal_eval(text) if len(text) <= _LONGEST_KEY else ()
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return ()
    return value if isinstance(value, tuple) else ()


def rank(name: str, known: Sequence[str]) -> tuple[int, str]:
    """Sorts known names in their order, and others alphabetically behind them."""
    return (known.index(name), "") if name in known else (len(known), name)
