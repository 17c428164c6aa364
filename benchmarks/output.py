"""One table and its JSON: what every benchmark prints."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pytest_diffaccel.report.progress import duration


def parser(description: str) -> argparse.ArgumentParser:
    """A parser with ``--json``."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return made


@dataclass
class Progress:
    """Tells standard error how far a benchmark is, and how long what is left takes at the pace so far.

    Attributes:
        number: of what is done, in all.
        unit: what that is, in the plural.
        every_s: seconds from one line to the next, at least.
        clock: seconds.
        done: so far.
    """

    number: int
    unit: str
    every_s: float = 0.0
    clock: Callable[[], float] = time.monotonic
    done: int = 0
    _began: float = field(init=False)
    _said: float = field(init=False)

    def __post_init__(self) -> None:
        self._began = self._said = self.clock()

    def add(self, done: int, what: str) -> None:
        """So many more are done, of ``what``."""
        self.done += done
        now = self.clock()
        if now - self._said >= self.every_s:
            left = duration((now - self._began) / self.done * (self.number - self.done))
            print(f"{what}: {self.done} of {self.number} {self.unit}, {left} left", file=sys.stderr, flush=True)
            self._said = now


def needed(module: str, extra: str = "benchmarks") -> Any:
    """A module of an extra of this package.

    Raises:
        SystemExit: when it is not installed; says what to type.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError:
        package = module.partition(".")[0]
        raise SystemExit(f"this benchmark needs {package}: pip install -e '.[{extra}]'") from None


def show(title: str, rows: Sequence[Mapping[str, Any]], summary: Mapping[str, Any], *, as_json: bool) -> None:
    """Print rows of one shape and a summary.

    Args:
        title: what was measured.
        rows: a mapping per row, all with the same keys.
        summary: figures of the whole.
        as_json: print ``{**summary, "rows": rows}`` instead of the table.
    """
    if as_json:
        print(json.dumps({**summary, "rows": list(rows)}, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for name in rows[0] if rows else ():
        table.add_column(name)
    for row in rows:
        table.add_row(*(f"{value:.3f}" if isinstance(value, float) else str(value) for value in row.values()))
    console = Console(width=140)
    console.print(table)
    for name, value in summary.items():
        console.print(f"{name}: {value:.4g}" if isinstance(value, float) else f"{name}: {value}", highlight=False)
