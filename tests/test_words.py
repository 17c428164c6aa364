"""Counts with their nouns, and lines that fit a terminal."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_diffaccel.cli.main import main
from pytest_diffaccel.words import counted, lines, meant

TEXT = (
    "undecided: 3 targets; SD1.5 DDIM 20 ToMe 3x: 3.02x [2.81, 3.24], LPIPS 0.123 after 12 s, in "
    "golden/search_params.json; write it with: pytest benches -n 2 --sched DPM-Solver++ --update-golden, or by "
    "--gate-budget 3min"
)
WHOLE = (
    *("3.02x", "[2.81, 3.24]", "0.123", "12 s", "golden/search_params.json", "--gate-budget 3min"),
    "pytest benches -n 2 --sched DPM-Solver++ --update-golden",
)


@pytest.mark.parametrize(("number", "said"), [(0, "0 cases"), (1, "1 case"), (2, "2 cases"), (11, "11 cases")])
def test_one_thing_is_no_several(number: int, said: str) -> None:
    assert counted(number, "case") == said


def test_a_noun_may_bring_its_verb() -> None:
    assert [counted(number, "group does", "groups do") for number in (1, 2)] == ["1 group does", "2 groups do"]


@given(st.integers(20, 200))
def test_lines_fit_but_for_what_stays_whole(width: int) -> None:
    wrapped = lines(f"  {TEXT}", width)
    assert " ".join(line.strip() for line in wrapped) == TEXT
    assert all(line.startswith("  ") for line in wrapped)
    assert all(len(line) <= width for line in wrapped) or width < 70
    for whole in WHOLE:
        assert any(whole in line for line in wrapped), (whole, wrapped)


@pytest.mark.parametrize(("text", "said"), [("sdx", " (did you mean SDXL?)"), ("flux", ""), ("50", ""), ("0", "")])
def test_only_what_is_near_is_asked_for(text: str, said: str) -> None:
    assert meant(text, {"sdxl": "SDXL", "sd1.5": "SD1.5", "500": "500"}) == said


def test_a_line_that_fits_is_left_as_it_is() -> None:
    assert lines("a  line [1, 2]", 14) == ["a  line [1, 2]"]


def test_a_misspelt_command_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["serach", "--pipe", "SDXL"])
    assert "'serach' is no command (did you mean search?); choose from show, " in capsys.readouterr().err
