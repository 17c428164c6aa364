"""Winners' pictures beside the unaccelerated ones: thumbnails for the page, full pictures in a folder beside it."""

from __future__ import annotations

import base64
import io
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_diffaccel.matrix import slug
from pytest_diffaccel.measure.measurement import Measurement
from pytest_diffaccel.records.images import ImageStore, image_set, is_damaged
from pytest_diffaccel.report.html.charts.heat_map import coloured, difference_maps
from pytest_diffaccel.report.html.content.candidate_rows import RECORDED, Row
from pytest_diffaccel.report.html.content.findings import Findings
from pytest_diffaccel.report.html.content.prompt_texts import Prompts
from pytest_diffaccel.report.html.content.scores import picture_scores

if TYPE_CHECKING:
    from PIL.Image import Image

#: Characters of thumbnails that a page of one cell may hold, and one of many.
_ONE_CELL, _MANY_CELLS = 2_500_000, 5_000_000
# Of a thumbnail as text: about so many characters per pixel of WebP at this quality (base64 included), as measured on
# photographs; and no smaller nor larger than these, in pixels.
_CHARACTERS_PER_PIXEL, _QUALITY = 0.4, 80
_SMALLEST, _LARGEST = 64, 256
# A page of more cells than this shows one winner per accelerator: the one for this target or the nearest below.
_FEW_CELLS, _SHOWN_TARGET = 3, 2.0


@dataclass(frozen=True)
class Picture:
    """One picture.

    Attributes:
        thumbnail: a data URI.
        full: relative link to the full-size picture.
    """

    thumbnail: str
    full: str


@dataclass(frozen=True)
class Triple:
    """One prompt's pictures.

    Attributes:
        rank: ``"worst"``, ``"median"`` or ``"best"`` of the winner's prompts.
        prompt: what was drawn.
        lpips: its loss.
        scores: what its secondary metrics say, in words each.
        baseline: of the unaccelerated pipeline.
        candidate: of the winner.
        difference: where they differ.
    """

    rank: str
    prompt: str
    lpips: float
    scores: Sequence[str]
    baseline: Picture
    candidate: Picture
    difference: Picture


@dataclass(frozen=True)
class WinnerPictures:
    """A winner's pictures.

    Attributes:
        row: the winner.
        kind: what the maps show.
        top: the difference that the maps show as their brightest colour.
        triples: worst, median and best prompt.
    """

    row: Row
    kind: str
    top: float
    triples: tuple[Triple, ...]


class Gallery:
    """Makes the pictures of a page."""

    def __init__(self, page: Path, images: ImageStore, prompts: Prompts, found: Sequence[Findings]) -> None:
        self._folder = page.with_name(f"{page.stem}-pictures")
        self._images = images
        self._prompts = prompts
        self._damaged: dict[Path, bool] = {}
        few = len(found) <= _FEW_CELLS
        self._chosen = {findings.cell: _shown(findings, everything=few) for findings in found}
        pictures = 9 * sum(map(len, self._chosen.values())) or 1
        side = math.isqrt(int((_ONE_CELL if few else _MANY_CELLS) / pictures / _CHARACTERS_PER_PIXEL))
        self._side = max(_SMALLEST, min(_LARGEST, side))

    def of(self, found: Findings) -> list[WinnerPictures]:
        """The pictures of a cell's winners that still lie where the search left them, as it left them."""
        pictures = (self._winner(found, row) for row in self._chosen[found.cell])
        return [picture for picture in pictures if picture is not None]

    def _winner(self, found: Findings, row: Row) -> WinnerPictures | None:
        measurement = found.record.verified.get(row.key)
        if measurement is None:
            return None
        baseline = self._set(found.record.environment, str(found.cell), measurement)
        candidate = self._set(found.record.environment, row.key, measurement)
        places = _worst_median_best(measurement.quality.lpips_per_sample)
        files = {place: (baseline / f"{place:04d}.png", candidate / f"{place:04d}.png") for place in places.values()}
        if not all(file.is_file() for pair in files.values() for file in pair):
            return None
        if self._is_damaged(baseline) or self._is_damaged(candidate):
            return None
        try:
            pairs = {place: (_open(plain), _open(winner)) for place, (plain, winner) in files.items()}
        except OSError:
            return None
        maps = difference_maps([pair[1] for pair in pairs.values()], [pair[0] for pair in pairs.values()])
        top = float(max(values.max() for values in maps.values))
        drawn = dict(zip(pairs, (coloured(values, top) for values in maps.values), strict=True))
        triples = tuple(
            Triple(
                rank=rank,
                prompt=self._prompts.of(measurement.sampling, place),
                lpips=measurement.quality.lpips_per_sample[place],
                scores=picture_scores(measurement, place),
                baseline=Picture(self._thumbnail(pairs[place][0]), self._beside(files[place][0])),
                candidate=Picture(self._thumbnail(pairs[place][1]), self._beside(files[place][1])),
                difference=Picture(self._thumbnail(drawn[place]), self._beside_map(files[place][1], drawn[place])),
            )
            for rank, place in places.items()
        )
        return WinnerPictures(row, maps.kind, top, triples)

    def _is_damaged(self, folder: Path) -> bool:
        if folder not in self._damaged:  # a cell's winners share the unaccelerated pictures
            self._damaged[folder] = is_damaged(folder)
        return self._damaged[folder]

    def _set(self, environment: str, subject: str, measurement: Measurement) -> Path:
        return self._images.path(image_set(environment, subject, measurement.sampling))

    def _thumbnail(self, image: Image) -> str:
        from PIL import Image

        if image.width > self._side:
            height = max(1, round(image.height * self._side / image.width))
            image = image.resize((self._side, height), Image.Resampling.LANCZOS)
        data = io.BytesIO()
        image.save(data, "WEBP", quality=_QUALITY, method=6)
        return f"data:image/webp;base64,{base64.b64encode(data.getvalue()).decode()}"

    def _beside(self, file: Path) -> str:
        """Put a full-size picture beside the page, without copying it where the file system allows."""
        place = self._folder / file.parent.name / file.name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.unlink(missing_ok=True)
        try:
            os.link(file, place)
        except OSError:
            shutil.copyfile(file, place)
        return f"{self._folder.name}/{file.parent.name}/{file.name}"

    def _beside_map(self, file: Path, image: Image) -> str:
        place = self._folder / file.parent.name / f"{file.stem}-difference.png"
        image.save(place)
        return f"{self._folder.name}/{file.parent.name}/{place.name}"


def _open(file: Path) -> Image:
    from PIL import Image

    with Image.open(file) as image:
        return image.convert("RGB")


def _shown(found: Findings, *, everything: bool) -> list[Row]:
    winners = [row for row in found.rows if row.verdict in RECORDED and row.key in found.record.verified]
    if everything:
        return sorted(winners, key=lambda row: (slug(row.accelerator), found.record.speedups[row.key].value))
    shown: dict[str, Row] = {}
    for row in sorted(winners, key=lambda row: (slug(row.accelerator), found.record.speedups[row.key].value)):
        reached = min(row.targets, default=math.inf) <= _SHOWN_TARGET
        if reached or row.accelerator not in shown:
            shown[row.accelerator] = row
    return list(shown.values())


def _worst_median_best(losses: Sequence[float]) -> Mapping[str, int]:
    """Places of three different samples, or of as many as there are."""
    order = sorted(range(len(losses)), key=lambda place: -losses[place])
    places = {"worst": order[0], "median": order[len(order) // 2], "best": order[-1]}
    seen: dict[int, str] = {}
    for rank, place in places.items():
        seen.setdefault(place, rank)
    return {rank: place for place, rank in seen.items()}
