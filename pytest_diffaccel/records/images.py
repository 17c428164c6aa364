"""Images on disk: baselines that all cases and workers share, and winners' pictures for the grid and the report."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from pytest_diffaccel.measure.measurement import Sampling
from pytest_diffaccel.measure.timing_lock import held

if TYPE_CHECKING:
    from PIL.Image import Image


#: Lies in each set's folder: the set's name, and the digest of each picture by its file's name.
_MANIFEST = "manifest.json"
_UNFINISHED = ".unfinished-"
# A set is written in seconds: what is older than this was left by a writer that was killed.
_LEFTOVER_S = 3600.0


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
    """Sets of images by name; a set is there as it was saved, to the last byte, or not at all.

    A picture that is gone, cut short or altered would be compared with all the same, or move the others to the wrong
    prompts. So each set has a manifest, and one that does not match it, or has none, is made anew.

    Attributes:
        folder: where the sets lie, each in a folder of its own, as numbered PNG files (lossless).
        threads: that compress pictures at once, at least 1.
    """

    folder: Path
    threads: int = 1

    def find(self, name: str) -> list[Image] | None:
        """The set's images in order, or None."""
        from PIL import Image

        contents = _contents(self.path(name))
        if contents is None:
            return None
        images = []
        for data in contents:
            with Image.open(io.BytesIO(data)) as image:
                images.append(image.convert("RGB"))
        return images

    def find_or_make(self, name: str, make: Callable[[], Sequence[Image]]) -> list[Image]:
        """The set's images; made by one process when they are missing, while the others wait.

        Args:
            name: the set's name.
            make: makes all of its images.
        """
        with held(self._lock(name)):
            images = self.find(name)
            if images is None:
                images = list(make())
                self._write(name, images)
        return images

    def make_unless_busy(self, name: str, make: Callable[[], Sequence[Image]]) -> None:
        """Make a set that is missing, unless another process is at it now: nobody waits.

        Args:
            name: the set's name.
            make: makes all of its images.
        """
        try:
            own = self._lock(name).acquire(blocking=False)
        except Timeout:
            return
        with own:
            if _contents(self.path(name)) is None:
                self._write(name, make())

    def _lock(self, name: str) -> FileLock:
        self.folder.mkdir(parents=True, exist_ok=True)
        return FileLock(f"{self.path(name)}.lock")

    def save(self, name: str, images: Sequence[Image]) -> None:
        """Keep a set, in place of an older one of this name."""
        with held(self._lock(name)):
            self._write(name, images)

    def _write(self, name: str, images: Sequence[Image]) -> None:
        self._sweep()
        with TemporaryDirectory(prefix=_UNFINISHED, dir=self.folder, ignore_cleanup_errors=True) as unfinished:
            new = Path(unfinished, "new")
            new.mkdir()

            def save(index: int) -> None:
                images[index].save(new / f"{index:04d}.png", compress_level=1)  # the GPU waits meanwhile

            with ThreadPoolExecutor(self.threads) as pool:
                list(pool.map(save, range(len(images))))
            digests = {file.name: _digest(file.read_bytes()) for file in sorted(new.glob("*.png"))}
            (new / _MANIFEST).write_text(json.dumps({"set": name, "pictures": digests}, indent=1), encoding="utf-8")
            if self.path(name).exists():
                self.path(name).rename(Path(unfinished, "old"))
            new.rename(self.path(name))

    def _sweep(self) -> None:
        """Remove what writers left behind that were killed."""
        for left in self.folder.glob(f"{_UNFINISHED}*"):
            try:
                is_left = time.time() - left.stat().st_mtime > _LEFTOVER_S
            except FileNotFoundError:  # its writer is done
                continue
            if is_left:
                shutil.rmtree(left, ignore_errors=True)

    def path(self, name: str) -> Path:
        """The set's folder; a digest stands for names that no file system would take."""
        return self.folder / hashlib.sha256(name.encode()).hexdigest()[:24]


def is_damaged(folder: Path) -> bool:
    """Whether a set's folder does not hold what its manifest says; older sets have none, and cannot be told."""
    return (folder / _MANIFEST).exists() and _contents(folder) is None


def _contents(folder: Path) -> list[bytes] | None:
    """The pictures' files in order, if they are those of the set's manifest; None otherwise, or where there is none."""
    try:
        digests = json.loads((folder / _MANIFEST).read_bytes())["pictures"]
        if sorted(digests) != sorted(file.name for file in folder.glob("*.png")):
            return None
        contents = {name: (folder / name).read_bytes() for name in sorted(digests)}
    except (OSError, ValueError, KeyError, TypeError):
        return None
    is_whole = all(_digest(data) == digests[name] for name, data in contents.items())
    return list(contents.values()) if is_whole else None


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
