"""``diffaccel explain``: what it says of a winner, of a target out of reach, and of what it does not know."""

from __future__ import annotations

from pathlib import Path

import pytest
from recorded import HOSTILE, RecordedSearch

from pytest_diffaccel.cli.main import main


@pytest.fixture
def search(tmp_path: Path) -> RecordedSearch:
    made = RecordedSearch(tmp_path)
    made.fill()
    return made


def explained(search: RecordedSearch, key: str, capsys: pytest.CaptureFixture[str]) -> str:
    status = main(["explain", key, "--store", str(search.store), "--golden", str(search.golden)])
    printed = capsys.readouterr()
    assert status == 0, printed.err
    return printed.out


@pytest.mark.parametrize("key", ["SD1.5, DDIM, 20 steps, DeepCache, 1.5x", "('SD1.5', 'DDIM', 20, 'DeepCache', 1.5)"])
def test_a_winner_is_explained_by_its_contenders(
    search: RecordedSearch, key: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    said = explained(search, key, capsys)
    lines = said.splitlines()
    assert lines[0] == "SD1.5 DDIM 20 steps, DeepCache, 1.5x"
    assert lines[1].startswith("winner: cache_interval=")
    assert "x, LPIPS " in lines[2]
    assert any(line.startswith("surely fast enough: ") for line in lines)
    assert any(line.startswith("  contender: cache_interval=") for line in lines)
    assert "passed over without being measured: 1" in lines
    assert f"  1 as this one: predicted 1.01x: {HOSTILE}"[:40] in said
    assert "failed without being measured: 1" in lines
    assert max(map(len, lines)) <= 80


def test_a_target_out_of_reach_is_explained_by_what_comes_nearest(
    search: RecordedSearch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = explained(search, "SD1.5, DDIM, 20 steps, DeepCache, 4x", capsys).splitlines()
    assert lines[1].startswith(("unattainable: ", "undecided: "))
    assert any(line.startswith("not surely fast enough: ") for line in lines)


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("SDXL, DDIM, 20 steps, DeepCache, 2x", "the store holds nothing of SDXL-DDIM-20; search it first"),
        ("SD1.5, DDIM, 20 steps, ToMe, 2x", "the store holds no candidate of SD1.5-DDIM-20 ToMe"),
        ("SD1.5, DDIM, 20 steps", "speed"),
    ],
)
def test_what_is_not_known_is_said(
    search: RecordedSearch, key: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explain", key, "--store", str(search.store)]) == 2
    assert said in capsys.readouterr().err
