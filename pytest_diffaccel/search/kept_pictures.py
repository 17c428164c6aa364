"""The pictures of a search: the unaccelerated pipeline's, which all workers share, and the winners'."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from pytest_diffaccel.matrix import Candidate, Cell
from pytest_diffaccel.measure.degenerate import USUAL_CAUSES, degenerate
from pytest_diffaccel.measure.prompts import Purpose
from pytest_diffaccel.measure.quality import References
from pytest_diffaccel.records.images import ImageStore, image_set
from pytest_diffaccel.search.pipelines import NoPipeline
from pytest_diffaccel.settings.work_folder import WORK

if TYPE_CHECKING:
    from PIL.Image import Image

    from pytest_diffaccel.search.workbench import Workbench


class KeptPictures:
    """Pictures of a workbench's cells, kept in the working folder."""

    def __init__(self, bench: Workbench) -> None:
        self._bench = bench
        self._references: dict[tuple[Cell, Purpose], References] = {}
        self._refused: dict[Cell, str] = {}

    @property
    def _images(self) -> ImageStore:
        """Beside a GPU, torch's share of the cores has nothing else to do; a CPU's compute, for other workers too."""
        if self._bench.settings.gpus is None:
            return ImageStore(WORK.images)
        import torch

        return ImageStore(WORK.images, torch.get_num_threads())

    def begin_baseline(self, cell: Cell, purpose: Purpose) -> None:
        """Make the baseline's images unless they are there, or another worker is at it: nothing needs them yet.

        Raises:
            NoPipeline: when they say nothing; so do all methods that make the baseline's images.
        """
        if (cell, purpose) not in self._references:
            self._images.make_unless_busy(*self._baseline_set(cell, purpose))

    def baseline(self, cell: Cell, purpose: Purpose) -> Sequence[Image]:
        """The unaccelerated pipeline's images, made once per cell and environment for all cases and workers."""
        return self._images.find_or_make(*self._baseline_set(cell, purpose))

    def keep_baseline(self, cell: Cell, purpose: Purpose, images: Sequence[Image]) -> None:
        """Keep the baseline's images that timed runs made, unless they are there."""
        self._images.make_unless_busy(self._baseline_set(cell, purpose)[0], lambda: self._checked(cell, images))

    def references(self, cell: Cell, purpose: Purpose) -> References:
        """The baseline's images to compare candidates with: read once, and kept until another cell's are needed."""
        key = (cell, purpose)
        if key not in self._references:
            images = self.baseline(cell, purpose)
            self._references = {known: references for known, references in self._references.items() if known[0] == cell}
            self._references[key] = References(images, str(self._bench.pipelines.of(cell).device))
        return self._references[key]

    def _baseline_set(self, cell: Cell, purpose: Purpose) -> tuple[str, Callable[[], Sequence[Image]]]:
        """Name of the set of the baseline's images, and what makes them."""

        def make() -> Sequence[Image]:
            if cell in self._refused:
                raise NoPipeline(self._refused[cell])
            with self._bench.generating(cell, {}, "pictures") as generate:
                batches = self._bench.batches(cell, purpose)
                images = [image for batch in batches for image in generate(batch.prompts, batch.seeds)]
            self._bench.pipelines.warm_kinds |= set(generate.kinds)
            return self._checked(cell, images)

        return self._image_set(cell, str(cell), purpose), make

    def _checked(self, cell: Cell, images: Sequence[Image]) -> Sequence[Image]:
        """The baseline's images, unless every candidate would look perfect beside them."""
        fault = degenerate(images)
        if fault is not None:
            self.refuse(cell, fault)
        return images

    def refuse(self, cell: Cell, fault: str) -> NoReturn:
        """Let no candidate of the cell be compared with pictures that say nothing.

        Raises:
            NoPipeline: naming the fault, and what causes it usually.
        """
        self._refused[cell] = (
            f"{cell}: the unaccelerated pipeline draws nothing to compare accelerated pictures with: {fault}. "
            f"{USUAL_CAUSES}"
        )
        raise NoPipeline(self._refused[cell])

    def baseline_folder(self, cell: Cell, purpose: Purpose) -> Path:
        """Folder of the baseline's images."""
        return self._images.path(self._image_set(cell, str(cell), purpose))

    def save_winner(self, candidate: Candidate, images: Sequence[Image]) -> None:
        """Keep a winner's images for the picture grid and the report."""
        self._images.save(self._image_set(candidate.cell, candidate.key, "winner"), images)

    def winner(self, candidate: Candidate) -> Sequence[Image] | None:
        """A winner's images as they were kept; None where they are gone."""
        return self._images.find(self._image_set(candidate.cell, candidate.key, "winner"))

    def winner_folder(self, candidate: Candidate) -> Path:
        """Folder of a winner's images."""
        return self._images.path(self._image_set(candidate.cell, candidate.key, "winner"))

    def _image_set(self, cell: Cell, subject: str, purpose: Purpose) -> str:
        return image_set(self._bench.environment(cell).id, subject, self._bench.sampling(cell, purpose))
