"""What a report is made of, gathered from where a search leaves it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from pytest_diffaccel.accelerators.registry import Registry
from pytest_diffaccel.matrix import Cell
from pytest_diffaccel.measure.deciding import QualityRule
from pytest_diffaccel.records.contents import Contents
from pytest_diffaccel.records.golden_file import Change, Golden
from pytest_diffaccel.records.images import ImageStore
from pytest_diffaccel.report.html.content.prompt_texts import Prompts


@dataclass(frozen=True)
class Material:
    """What a report is made of.

    Attributes:
        contents: everything in the store.
        registry: the accelerators known.
        quality: what decided, where the store does not say.
        golden: the golden database.
        images: the search's pictures.
        logs: folder of the search's logs, a file per cell.
        prompts: what was drawn.
        command: what searches these cells again, as typed.
        changes: what a search that just ended did to golden; None: golden is compared with the store.
        wanted: which cells to show.
    """

    contents: Contents
    registry: Registry
    quality: QualityRule
    golden: Golden
    images: ImageStore
    logs: Path
    prompts: Prompts = field(default_factory=Prompts)
    command: str = ""
    changes: tuple[Change, ...] | None = None
    wanted: Callable[[Cell], bool] = lambda _: True
