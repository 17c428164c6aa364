"""Images on disk: baselines that all cases and workers share, and winners' pictures for the grid and the report."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from pytest_diffaccel.measure.measurement import Sampling

if TYPE_CHECKING:
    from PIL.Image import Image


def image_set(environment: str, subject: str, sampling: Sampling) -> str:
    """Name of a set of images.

    Args:
        environment: id of the environment that made them.
        subject: a candidate's key, or a cell's name for its unaccelerated images.
        sampling: which images.
    """
    return f"{environment} {subject} {sampling}"


@dataclass(frozen=True)
class ImageStore:
    """Sets of images by name; a set is there as a whole or not at all.

    Attributes:
        folder: where the sets lie, each in a folder of its own, as numbered PNG files (lossless).
    """

    folder: Path

    def find(self, name: str) -> list[Image] | None:
        """The set's images in order, or None."""
        from PIL import Image

        if not self.path(name).is_dir():
            return None
        images = []
        for file in sorted(self.path(name).glob("*.png")):
            with Image.open(file) as image:
                images.append(image.convert("RGB"))
        return images

    def find_or_make(self, name: str, make: Callable[[], Sequence[Image]]) -> list[Image]:
        """The set's images; made by one process when they are missing, while the others wait.

        Args:
            name: the set's name.
            make: makes all of its images.
        """
        with self._lock(name):
            images = self.find(name)
            if images is None:
                images = list(make())
                self.save(name, images)
        return images

    def make_unless_busy(self, name: str, make: Callable[[], Sequence[Image]]) -> None:
        """Make a set that is missing, unless another process is at it now: nobody waits.

        Args:
            name: the set's name.
            make: makes all of its images.
        """
        try:
            held = self._lock(name).acquire(blocking=False)
        except Timeout:
            return
        with held:
            if not self.path(name).is_dir():
                self.save(name, make())

    def _lock(self, name: str) -> FileLock:
        self.folder.mkdir(parents=True, exist_ok=True)
        return FileLock(f"{self.path(name)}.lock")

    def save(self, name: str, images: Sequence[Image]) -> None:
        """Keep a set, in place of an older one of this name."""
        self.folder.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=self.folder))
        for index, image in enumerate(images):
            image.save(unfinished / f"{index:04d}.png", compress_level=1)  # the GPU waits meanwhile
        shutil.rmtree(self.path(name), ignore_errors=True)
        unfinished.rename(self.path(name))

    def path(self, name: str) -> Path:
        """The set's folder; a digest stands for names that no file system would take."""
        return self.folder / hashlib.sha256(name.encode()).hexdigest()[:24]
