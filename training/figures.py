"""The picture grids of the judgement."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from pytest_diffaccel.matrix import Params
from training.captions import sample_prompts
from training.judging import Judged, Pictures

MAX_BYTES = 400_000
SEEDS_SHOWN = 8


def save_grid(rows: Sequence[Pictures], file: Path) -> None:
    """Write rows of equal pictures as one PNG, made smaller where it would be over 400 kB."""
    side = rows[0][0].width
    grid = Image.new("RGB", (side * len(rows[0]), side * len(rows)))
    for down, row in enumerate(rows):
        for across, picture in enumerate(row):
            grid.paste(picture, (side * across, side * down))
    file.parent.mkdir(parents=True, exist_ok=True)
    grid.save(file, optimize=True)
    while (size := file.stat().st_size) > MAX_BYTES:
        scale = 0.98 * (MAX_BYTES / size) ** 0.5
        grid = grid.resize((int(grid.width * scale), int(grid.height * scale)), Image.Resampling.LANCZOS)
        grid.save(file, optimize=True)


def held_out_grid(pictures: Pictures, file: Path) -> None:
    """The 64 held-out prompts in rows of 16, objects in the order of ``training/objects.py``."""
    save_grid([pictures[start : start + 16] for start in range(0, len(pictures), 16)], file)


def seeds_grid(judged: Judged, file: Path) -> None:
    """Six prompts, a row each, with eight seeds."""
    rows = [judged.generate([prompt] * SEEDS_SHOWN, range(SEEDS_SHOWN)) for prompt in sample_prompts()[:6]]
    save_grid(rows, file)


def acceleration_grid(judged: Judged, ladder: Sequence[Params], file: Path) -> None:
    """Six prompts: a row without acceleration, then a row for each setting of the ladder."""
    prompts = sample_prompts()[:6]
    save_grid([judged.generate(prompts, range(6), params) for params in [{}, *ladder]], file)
