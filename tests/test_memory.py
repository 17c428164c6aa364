"""The highest memory of a process, not what it holds in the end."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pytest_diffaccel.measure import memory
from pytest_diffaccel.measure.memory import peak_memory_mb, reset_peak_memory

CPU = torch.device("cpu")
SIZE_MB = 200


def hold_and_free() -> None:
    bytearray(b"x" * (SIZE_MB << 20))


def test_memory_that_was_freed_again_counts() -> None:
    reset_peak_memory(CPU)
    before = peak_memory_mb(CPU)
    hold_and_free()
    assert before + 2 * SIZE_MB > peak_memory_mb(CPU) > before + 0.9 * SIZE_MB


def test_memory_freed_before_the_reset_does_not_count() -> None:
    hold_and_free()
    highest = peak_memory_mb(CPU)
    try:
        memory._RESET.write_text("5")
    except OSError:
        pytest.skip("the system does not forget a process's highest memory")
    reset_peak_memory(CPU)
    assert peak_memory_mb(CPU) < highest - 0.5 * SIZE_MB


def test_where_the_system_forgets_nothing_it_is_the_process_peak(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "_RESET", tmp_path / "not" / "there")
    monkeypatch.setattr(memory, "_STATUS", tmp_path / "not" / "there")
    reset_peak_memory(CPU)
    before = peak_memory_mb(CPU)
    hold_and_free()
    assert before <= peak_memory_mb(CPU)
    assert 10 < before < 1_000_000
