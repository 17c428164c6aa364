"""What a report is made of, gathered from where a search leaves it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pytest_diffaccel.accelerators.composition import Registry
from pytest_diffaccel.matrix import Cell
from pytest_diffaccel.records.contents import Contents
from pytest_diffaccel.records.environment import Environment
from pytest_diffaccel.records.golden import GoldenEntry
from pytest_diffaccel.records.golden_file import Change
from pytest_diffaccel.records.golden_key import GoldenKey
from pytest_diffaccel.records.images import ImageStore
from pytest_diffaccel.report.html.content.prompt_texts import Prompts


@dataclass(frozen=True)
class Material:
    """What a report is made of.

    Attributes:
        contents: everything in the store.
        registry: the accelerators known.
        max_loss: largest LPIPS that a winner may have.
        golden_path: the golden file, as its user names it.
        golden: what it holds.
        environments: those spelled out beside it, by id.
        images: the search's pictures.
        logs: folder of the search's logs, a file a cell.
        prompts: what was drawn.
        command: what searches these cells again, as typed.
        changes: what a search that just ended did to golden; None: golden is compared with the store.
        wanted: which cells to show.
    """

    contents: Contents
    registry: Registry
    max_loss: float
    golden_path: Path
    golden: Mapping[GoldenKey, GoldenEntry]
    environments: Mapping[str, Environment]
    images: ImageStore
    logs: Path
    prompts: Prompts = field(default_factory=Prompts)
    command: str = ""
    changes: tuple[Change, ...] | None = None
    wanted: Callable[[Cell], bool] = lambda _: True
