"""The cases that the package carries: searched from any folder, by pytest, by ``diffaccel``, in a new project."""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path

import pytest
import yaml

from pytest_diffaccel.cli import pytest_commands
from pytest_diffaccel.cli.init_command import project
from pytest_diffaccel.cli.main import main
from pytest_diffaccel.plugin.fixtures import is_searching

ROOT = Path(__file__).resolve().parents[1]
CELL = ("--pipe", "SD1.5", "--sched", "DDIM", "--steps", "20", "--grid", "coarse", "--search-targets", "tome")


def test_the_package_has_the_cases(pytester: pytest.Pytester) -> None:
    result = pytester.runpytest_subprocess("--pyargs", "pytest_diffaccel.benches", *CELL, "--collect-only", "-q")
    assert result.ret == 0
    cases = [line.partition("::")[2] for line in result.outlines if "::" in line]
    assert cases[-1] == "test_winners[SD1.5-DDIM-20-ToMe]"
    assert all(case.startswith("test_search[SD1.5-DDIM-20-ToMe-ratio=") for case in cases[:-1])
    assert len(cases) > 2


def test_without_any_option_the_packages_cases_are_a_search(pytester: pytest.Pytester) -> None:
    """Also for the controller under ``-n``, which collects nothing."""
    assert is_searching(pytester.parseconfigure("--pyargs", "pytest_diffaccel.benches"))
    assert not is_searching(pytester.parseconfigure())


def test_options_of_a_search_without_its_cases_say_where_they_are(pytester: pytest.Pytester) -> None:
    result = pytester.runpytest_subprocess("--pipe", "SD1.5")
    assert result.ret == pytest.ExitCode.NO_TESTS_COLLECTED
    result.stdout.fnmatch_lines(
        ["diffaccel: no case of a search was collected; run them with: diffaccel search, and the same options"]
    )
    assert "diffaccel" not in pytester.runpytest_subprocess("-q").stdout.str()


def test_update_golden_alone_searches_what_there_is(pytester: pytest.Pytester) -> None:
    alone = ("--update-golden", *CELL, "--collect-only", "-q")
    result = pytester.runpytest_subprocess(*alone)
    assert "5 tests collected" in result.outlines[-1]
    (pytester.path / "benches").mkdir()
    result = pytester.runpytest_subprocess(*alone)
    assert result.ret == pytest.ExitCode.NO_TESTS_COLLECTED


def test_a_new_project_calls_the_package(
    pytester: pytest.Pytester, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["init", "mine"]) == 0
    written = capsys.readouterr().out.splitlines()
    assert written[:-1] == [str(Path("mine") / name) for name in project()]
    assert written[-1].startswith("next, a first search, of small stand-ins: cd mine && pytest benches ")
    monkeypatch.chdir("mine")
    result = pytester.run("python", "-m", "pytest", "benches", *CELL, "--models", "models.toml", "--collect-only", "-q")
    assert "benches/test_search.py::test_winners[SD1.5-DDIM-20-ToMe]" in result.outlines
    # Nothing that is there is written over.
    Path("models.toml").write_text("mine", encoding="utf-8")
    assert main(["init"]) == 2
    assert "models.toml, " in capsys.readouterr().err
    assert Path("models.toml").read_text(encoding="utf-8") == "mine"


def test_a_new_projects_workflow_gates_with_options_that_there_are(pytester: pytest.Pytester) -> None:
    workflow = yaml.safe_load(project()[".github/workflows/diffaccel-gate.yml"])
    (job,) = workflow["jobs"].values()
    (run,) = (step["run"] for step in job["steps"] if step.get("run", "").startswith("pytest "))
    (kept,) = (step["with"]["path"] for step in job["steps"] if "path" in step.get("with", {}))
    first, again = (pytester.parseconfig(*gate.split()[2:]).option for gate in run.split("||"))
    for options in (first, again):
        assert options.gate
        assert options.models == "models.toml"
        assert fnmatch(options.xmlpath, kept)
    assert (first.lf, again.lf) == (False, True)
    assert first.xmlpath != again.xmlpath


def test_this_repositorys_benches_are_those_of_a_new_project() -> None:
    for name, text in project().items():
        if name.startswith("benches/"):
            assert (ROOT / name).read_text(encoding="utf-8") == text


@pytest.mark.parametrize("command", pytest_commands.COMMANDS)
def test_commands_hand_on_all_that_pytest_knows(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[list[str]] = []
    monkeypatch.setattr(pytest, "main", lambda arguments: given.append(list(arguments)) or 5)
    assert main([command, "-n", "2", "--seed", "3", "-k", "not slow"]) == 5
    (arguments,) = given
    assert arguments[-6:] == ["-n", "2", "--seed", "3", "-k", "not slow"]
    assert arguments[-8] == "--pyargs"


def test_commands_refuse_what_they_cannot_use(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["tasks", "--print", "--fast"])
    assert "unrecognized arguments: --fast" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["search", "--num-samples", "none"])
    assert "argument --num-samples/--num_samples: 'none' must be a whole number" in capsys.readouterr().err
