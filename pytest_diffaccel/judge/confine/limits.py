"""How much a script may use."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """What a script may use.

    Attributes:
        seconds: wall time, without what the judge spends on its own work.
        memory_mb: memory that the script's process may reserve beyond what libraries and pipelines take.
        file_mb: size of any file that it writes.
        folder_mb: size of all of them.
        folder_entries: number of its files and folders.
    """

    seconds: float = 120.0
    memory_mb: int = 4096
    file_mb: int = 64
    folder_mb: int = 256
    folder_entries: int = 10_000
