"""Stand-ins for GPUs: a driver's list that names them, and searches that compute on the CPU in their place."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from pytest_diffaccel import devices

#: Lists as ``nvidia-smi -L`` prints them.
THREE = (
    "GPU 0: NVIDIA Stand-in 80GB (UUID: GPU-aaaa0000-01)",
    "GPU 1: NVIDIA Stand-in 80GB (UUID: GPU-aaaa1111-02)",
    "GPU 2: NVIDIA Stand-in 80GB (UUID: GPU-bbbb2222-03)",
)
SLICED = (
    THREE[0],
    "  MIG 1g.10gb     Device  0: (UUID: MIG-11)",
    "  MIG 1g.10gb     Device  1: (UUID: MIG-22)",
    THREE[1],
)
MIXED = (THREE[0], "GPU 1: NVIDIA Other 24GB (UUID: GPU-aaaa1111-02)")


class StandIns:
    """A folder that stands first among those where programs are found."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def list_gpus(self, lines: Sequence[str]) -> None:
        """Let ``nvidia-smi -L`` print ``lines``."""
        program = self._folder / "nvidia-smi"
        listed = "\n".join(f"echo '{line}'" for line in lines)
        program.write_text(f'#!/bin/sh\n[ "$1" = -L ] || exit 9\n{listed}\n', encoding="utf-8")
        program.chmod(0o755)
        devices._listed.cache_clear()


@pytest.fixture
def stand_ins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIns]:
    """No GPU at first, no choice among them made before, and no sign that the test itself runs on a worker."""
    folder = tmp_path / "programs"
    folder.mkdir()
    stand_ins = StandIns(folder)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    # A driver without any, also on a machine that has some.
    stand_ins.list_gpus(())
    own = ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "PYTEST_XDIST_AUTO_NUM_WORKERS", "PYTEST_XDIST_WORKER")
    for name in own:
        # Set, then removed: so that what a test sets is gone afterwards.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    yield stand_ins
    devices._listed.cache_clear()
