"""A grid of pictures: what each accelerator does to the baseline's images."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_diffaccel.records.golden import GoldenEntry
from pytest_diffaccel.records.golden_key import GoldenKey
from pytest_diffaccel.records.images import is_damaged
from pytest_diffaccel.report.winners import quality_text

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFont import FreeTypeFont, ImageFont

# The grid shows each accelerator at its winner for this target, or the nearest below that is met.
_SHOWN_TARGET = 2.0
_ROWS = 6
# PictureFolders of the embedded pipelines are small; enlarged to at least this, without smoothing what they show.
_SIDE = 192
_GAP = 8
_CAPTION = 64
# Prompts stand left of their row, wrapped.
_LABEL = 150
_LABEL_CHARACTERS = 18


@dataclass(frozen=True)
class PictureFolders:
    """Where a winner's pictures lie.

    Attributes:
        prompts: what was drawn, in the pictures' order.
        baseline: folder of the baseline's pictures, numbered PNG files.
        winner: folder of the winner's, of the same prompts and seeds.
    """

    prompts: tuple[str, ...]
    baseline: Path
    winner: Path


def write_picture_grid(
    path: Path, entries: Mapping[GoldenKey, GoldenEntry], folders: Mapping[GoldenKey, PictureFolders]
) -> bool:
    """Write the grid of the first cell with pictures: a column for the baseline and each accelerator, a row per prompt.

    Args:
        path: the PNG to write; its folder is made.
        entries: golden entries of the search.
        folders: their pictures; sets that are not as they were saved are left out.

    Returns:
        Whether there was anything to show.
    """
    whole = {
        key: folder for key, folder in folders.items() if not (is_damaged(folder.baseline) or is_damaged(folder.winner))
    }
    shown = _shown_keys(entries, whole)
    if not shown:
        return False
    columns = [("baseline", folders[shown[0]].baseline)]
    for key in shown:
        entry = entries[key]
        columns.append((f"{key.accelerator}\n{entry.speedup:.2f}x  {quality_text(entry)}", folders[key].winner))
    path.parent.mkdir(parents=True, exist_ok=True)
    _compose(columns, folders[shown[0]].prompts).save(path)
    return True


def _shown_keys(
    entries: Mapping[GoldenKey, GoldenEntry], folders: Mapping[GoldenKey, PictureFolders]
) -> list[GoldenKey]:
    """One key per accelerator, of one cell, in prompt order."""
    ordered = sorted((key for key in entries if key in folders), key=lambda key: key.prompt_order)
    if not ordered:
        return []
    first = ordered[0].cell
    shown: dict[str, GoldenKey] = {}
    for key in ordered:
        if key.cell == first:
            met = entries[key].status == "met" and key.target <= _SHOWN_TARGET
            if met or key.accelerator not in shown:
                shown[key.accelerator] = key
    return list(shown.values())


def _compose(columns: list[tuple[str, Path]], prompts: Sequence[str]) -> Image:
    from PIL import Image, ImageDraw

    rows = min(_ROWS, *(len(list(folder.glob("*.png"))) for _, folder in columns))
    step = _SIDE + _GAP
    grid = Image.new("RGB", (_LABEL + len(columns) * step + _GAP, _CAPTION + rows * step + _GAP), "white")
    draw = ImageDraw.Draw(grid)
    for row, prompt in enumerate(prompts[:rows]):
        label = "\n".join(textwrap.wrap(prompt, _LABEL_CHARACTERS))
        draw.multiline_text((_GAP, _CAPTION + row * step), label, fill="black", font=_font())
    for column, (caption, folder) in enumerate(columns):
        left = _LABEL + column * step
        draw.multiline_text((left, _GAP), _wrapped(caption), fill="black", font=_font())
        for row, file in enumerate(sorted(folder.glob("*.png"))[:rows]):
            with Image.open(file) as picture:
                enlarged = picture.resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)
            grid.paste(enlarged, (left, _CAPTION + row * step))
    return grid


def _wrapped(caption: str) -> str:
    name, _, figures = caption.partition("\n")
    return "\n".join(part for part in (name.replace(", and ", ",\nand "), figures) if part)


def _font() -> FreeTypeFont | ImageFont:
    from PIL import ImageFont

    return ImageFont.load_default(size=14)
