"""The golden database in one table, through the command that prints it."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from entries import MET

from pytest_diffaccel.cli.main import main
from pytest_diffaccel.matrix import Cell
from pytest_diffaccel.records.golden_file import merge
from pytest_diffaccel.records.golden_key import GoldenKey
from pytest_diffaccel.records.golden_parts import FewerSteps, GoldenMetric


def test_a_row_tells_how_often_a_target_is_met_and_at_what_loss(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    golden = tmp_path / "golden.json"
    gentle = replace(MET, lpips=0.021, lpips_ci95=(0.016, 0.027), speedup=1.69, speedup_ci95=(1.67, 1.71))
    worse = replace(MET, fewer_steps=FewerSteps(steps=11, speedup=1.7, lpips=0.03, lpips_ci95=(0.02, 0.04)))
    missed = replace(MET, status="unattainable", reason="speed")
    keys = [GoldenKey(Cell("SD1.5", "DDIM", steps), "DeepCache", 1.5) for steps in (20, 25, 50)]
    merge(golden, dict(zip(keys, (gentle, worse, missed), strict=True)), update=False)
    assert main(["show", "--summary", "--golden", str(golden)]) == 0
    lines = capsys.readouterr().out.splitlines()
    headings = ["accelerator", "target", "met", "unattainable", "median speedup", "median LPIPS", "beat fewer steps"]
    assert re.split(r"  +", lines[0]) == headings
    assert re.split(r"  +", lines[1]) == ["DeepCache", "1.5x", "2", "1", "1.68x", "0.031", "0 of 1"]
    assert lines[2] == "3 keys of 3 cells"


def test_it_says_what_another_metric_decided(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    golden = tmp_path / "golden.json"
    by_psnr = replace(MET, quality="psnr", metrics={"psnr": GoldenMetric(20.16)})
    keys = [GoldenKey(Cell("SD1.5", "DDIM", steps), "DeepCache", 1.5) for steps in (20, 25, 50)]
    merge(golden, dict(zip(keys, (MET, by_psnr, by_psnr), strict=True)), update=False)
    assert main(["show", "--summary", "--golden", str(golden)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2:] == ["3 keys of 3 cells", "2 of them decided by psnr, not by LPIPS"]


def test_a_narrow_terminal_has_accelerators_above_their_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    golden, cell = tmp_path / "golden.json", Cell("SD1.5", "DDIM", 20)
    keys = [GoldenKey(cell, name, target) for name in ("DeepCache", "DeepCache, T-Gate, and ToMe") for target in (2, 4)]
    merge(golden, dict.fromkeys(keys, MET), update=False)
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["show", "--summary", "--golden", str(golden)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert [line.split()[0] for line in lines] == ["target", "DeepCache", "2x", "4x", "DeepCache,", "2x", "4x", "4"]
