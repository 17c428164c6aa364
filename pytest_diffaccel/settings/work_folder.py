"""Where things lie: what a session leaves in its working folder, and the golden file unless another is named.

All paths are relative to the folder in which a session is started.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

#: Golden database of winners.
GOLDEN = Path("golden/search_params.json")


def golden_of(*parts: str) -> Path:
    """The golden file of a device, or of a stack, where none is named: ``golden/compiled.search_params.json``."""
    return GOLDEN.with_name(".".join([*parts, GOLDEN.name]))


@dataclass(frozen=True)
class WorkFolder:
    """The working folder of a search.

    Attributes:
        path: the folder.
    """

    path: Path

    @property
    def store(self) -> Path:
        """Measurements, unless ``--store`` names another place."""
        return self.path / "search.sqlite"

    @property
    def images(self) -> Path:
        """Folder of the unaccelerated pipelines' and the winners' pictures."""
        return self.path / "images"

    @property
    def logs(self) -> Path:
        """Folder of logs, a file per cell."""
        return self.path / "logs"

    @property
    def calibration(self) -> Path:
        """Folder of locks: one process looks at an environment's calibration."""
        return self.path / "calibration"

    @property
    def in_progress(self) -> Path:
        """Folder of locks: on groups that processes are in, and on cells whose last group ends."""
        return self.path / "in-progress"

    @property
    def timing_lock(self) -> Path:
        """Who times on the machine's processors has it."""
        return self.path / "timing.lock"

    @property
    def session_lock(self) -> Path:
        """The session that searches in the folder has it."""
        return self.path / "session.lock"

    @property
    def session_words(self) -> Path:
        """Which session that is, in words."""
        return self.path / "session.txt"

    @property
    def folders(self) -> tuple[Path, ...]:
        """All that a session writes into."""
        return self.path, self.calibration, self.images, self.in_progress, self.logs


#: The working folder of searches that are started here.
WORK = WorkFolder(Path(".diffaccel"))
