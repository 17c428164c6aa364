"""Options in a project's configuration file: read, overridden by the command line, refused in terms of their keys."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from pytest_diffaccel.plugin.ini_keys import OPTIONS

DOCS = Path(__file__).resolve().parents[1] / "docs" / "configuration.md"
# A case of a search that writes what it would have measured with.
CASE = """
import json, os
from pathlib import Path

def test_case(diffaccel_candidate, pytestconfig, diffaccel_run):
    settings = diffaccel_run.settings
    Path("seen-by-" + os.environ.get("PYTEST_XDIST_WORKER", "main")).write_text(json.dumps(
        [diffaccel_candidate.cell.pipe, settings.seed, settings.num_samples, settings.gate is None]))
"""
UNRELATED = "def test_unrelated(): pass"


def configured(pytester: pytest.Pytester, *lines: str) -> None:
    """A project with a ``tox.ini`` of these lines."""
    pytester.makeini("\n".join(["[pytest]", *lines]))


def options(pytester: pytest.Pytester, *arguments: str) -> Any:
    return pytester.parseconfig(*arguments).option


def refused(pytester: pytest.Pytester, *arguments: str) -> str:
    """What a session is refused with; none of its tests may run."""
    pytester.makepyfile(f"{CASE}\n{UNRELATED}")
    result = pytester.runpytest_inprocess(*arguments)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stdout.no_fnmatch_line("*passed*")
    result.stdout.no_fnmatch_line("*Traceback*")
    return "\n".join(result.stderr.lines)


# --- every key ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "arguments"),
    [
        ("diffaccel_pipe = SDXL", ("--pipe", "SDXL")),
        ("diffaccel_sched = DDIM, UniPC", ("--sched", "DDIM, UniPC")),
        ("diffaccel_steps =\n  20\n  25", ("--steps", "20", "--steps", "25")),
        ("diffaccel_search_targets = deepcache and tome", ("--search-targets", "deepcache and tome")),
        ("diffaccel_grid = coarse", ("--grid", "coarse")),
        ("diffaccel_exhaustive = true", ("--exhaustive",)),
        ("diffaccel_exhaustive = no", ()),
        ("diffaccel_models = hub", ("--models", "hub")),
        ("diffaccel_clip_model = mine/clip", ("--clip-model", "mine/clip")),
        ("diffaccel_models = mine/models.toml", ("--models", "mine/models.toml")),
        ("diffaccel_num_samples = 16", ("--num-samples", "16")),
        ("diffaccel_batch_size = 2", ("--batch-size", "2")),
        ("diffaccel_blocks = 3", ("--blocks", "3")),
        ("diffaccel_prompts = prompts.txt", ("--prompts", "prompts.txt")),
        ("diffaccel_prompts = mine/p.csv:a column", ("--prompts", "mine/p.csv:a column")),
        ("diffaccel_seed = -3", ("--seed=-3",)),
        ("diffaccel_max_quality_loss = 0.1", ("--max-quality-loss", "0.1")),
        ("diffaccel_metrics = psnr, ssim", ("--metrics", "psnr, ssim")),
        ("diffaccel_bound =\n  clip_score=-5%", ("--bound", "clip_score=-5%")),
        ("diffaccel_search_budget = 1h30min", ("--search-budget", "1h30min")),
        ("diffaccel_case_timeout = 60", ("--case-timeout", "60")),
        ("diffaccel_store = all.sqlite", ("--store", "all.sqlite")),
        ("diffaccel_store = postgresql://db/search", ("--store", "postgresql://db/search")),
        ("diffaccel_heartbeat = 10s", ("--heartbeat", "10s")),
        ("diffaccel_golden = mine.json", ("--golden", "mine.json")),
        ("diffaccel_gate_slowdown = 4%", ("--gate-slowdown", "4%")),
        ("diffaccel_gate_host_slowdown = 0.2", ("--gate-host-slowdown", "0.2")),
        ("diffaccel_gate_host_fails = 1", ("--gate-host-fails",)),
        ("diffaccel_gate_quality = 10%", ("--gate-quality", "10%")),
        ("diffaccel_gate_quality =\n  psnr=3%\n  0.1", ("--gate-quality", "psnr=3%", "--gate-quality", "10%")),
        ("diffaccel_gate_budget = 2h", ("--gate-budget", "2h")),
        ("diffaccel_gate_strict = on", ("--gate-strict",)),
        ("diffaccel_stages = static,runs", ("--stages", "static,runs")),
        ("diffaccel_ratio_tolerance = 0", ("--ratio-tolerance", "0")),
        ("diffaccel_rule = both", ("--rule", "both")),
        ("diffaccel_diffbench_prompts = 3", ("--diffbench-prompts", "3")),
    ],
)
def test_a_key_is_the_option(pytester: pytest.Pytester, line: str, arguments: tuple[str, ...]) -> None:
    gate = ("--gate",) if "gate" in line else ()
    wanted = options(pytester, *gate, *arguments)
    configured(pytester, line)
    found = options(pytester, *gate)
    assert {option.dest: getattr(found, option.dest) for option in OPTIONS} == {
        option.dest: getattr(wanted, option.dest) for option in OPTIONS
    }


def test_the_page_lists_every_option() -> None:
    page = DOCS.read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`.*?) \| (.*) \|$", page, re.MULTILINE)
    keys = {option: key for key, option in rows if key.startswith("`diffaccel_")}
    of_one_run = [name for names, _ in rows if names.startswith("`--") for name in names.split()]
    assert keys == {f"`{option.names[0]}`": f"`{option.key}`" for option in OPTIONS if option.key is not None}
    assert sorted(of_one_run) == sorted(f"`{option.names[0]}`" for option in OPTIONS if option.key is None)


def test_help_lists_the_keys(pytester: pytest.Pytester) -> None:
    text = pytester.runpytest_inprocess("--help").stdout.str()
    assert [option.key for option in OPTIONS if option.key is not None and f"{option.key} (" not in text] == []
    assert "diffaccel_gate_slowdown (string):" in text
    assert "%%" not in text


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("pyproject.toml", '[tool.pytest.ini_options]\ndiffaccel_pipe = ["SDXL", "SD1.5"]\ndiffaccel_seed = 3\n'),
        ("tox.ini", "[pytest]\ndiffaccel_pipe =\n  SDXL\n  SD1.5\ndiffaccel_seed = 3\n"),
        ("setup.cfg", "[tool:pytest]\ndiffaccel_pipe =\n  SDXL\n  SD1.5\ndiffaccel_seed = 3\n"),
    ],
)
def test_any_file_of_pytest_will_do(pytester: pytest.Pytester, name: str, text: str) -> None:
    (pytester.path / name).write_text(text, encoding="utf-8")
    found = options(pytester)
    assert (found.pipe, found.seed) == (["SDXL", "SD1.5"], 3)


def test_a_list_may_hold_numbers(pytester: pytest.Pytester) -> None:
    pytester.makepyprojecttoml("[tool.pytest.ini_options]\ndiffaccel_steps = [20, 25]\n")
    assert options(pytester).steps == ["20", "25"]


def test_what_is_no_name_in_a_list_is_refused_in_terms_of_its_key(pytester: pytest.Pytester) -> None:
    pytester.makepyprojecttoml("[tool.pytest.ini_options]\ndiffaccel_steps = [20, 2.5, [30]]\n")
    assert "diffaccel_steps in pyproject.toml: '2.5' is unknown" in refused(pytester)


# --- what wins ---------------------------------------------------------------------------------------------------


def test_the_command_line_wins(pytester: pytest.Pytester) -> None:
    configured(pytester, "diffaccel_pipe = SDXL", "diffaccel_seed = 3", "diffaccel_golden = mine.json")
    golden = "golden/search_params.json"
    found = options(pytester, "--pipe", "SD1.5", "--pipe", "SD2.1", "--seed", "0", "--golden", golden)
    assert (found.pipe, found.seed, found.golden) == (["SD1.5", "SD2.1"], 0, golden)


def test_a_key_is_overridden_for_one_run(pytester: pytest.Pytester) -> None:
    configured(pytester, "diffaccel_pipe = SDXL", "diffaccel_exhaustive = true", "diffaccel_seed = 3")
    overridden = ("-o", "diffaccel_exhaustive=false", "-o", "diffaccel_seed=4", "--override-ini=diffaccel_pipe=")
    found = options(pytester, *overridden)
    assert (found.pipe, found.exhaustive, found.seed) == (None, False, 4)
    assert options(pytester, *overridden, "--seed", "5").seed == 5


@pytest.mark.parametrize(
    ("line", "argument", "left"),
    [
        ("diffaccel_search_budget = 1h", "--exhaustive", ("search_budget", None)),
        ("diffaccel_exhaustive = true", "--search-budget=1h", ("exhaustive", False)),
    ],
)
def test_what_the_command_line_excludes_is_put_aside(
    pytester: pytest.Pytester, line: str, argument: str, left: tuple[str, object]
) -> None:
    configured(pytester, line)
    assert getattr(options(pytester, argument), left[0]) == left[1]


def test_files_lie_where_the_configuration_lies(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    configured(
        pytester,
        "diffaccel_golden = golden/mine.json",
        "diffaccel_models = models.toml",
        "diffaccel_prompts = /elsewhere/prompts.txt",
        "diffaccel_store = sqlite:///here.sqlite",
    )
    monkeypatch.chdir(pytester.mkdir("below"))
    found = options(pytester)
    assert (found.golden, found.models) == ("../golden/mine.json", "../models.toml")
    assert (found.prompts, found.store) == ("/elsewhere/prompts.txt", "sqlite:///here.sqlite")


# --- refusals ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("num_samples", "many", "'many' must be a whole number of at least 1"),
        ("seed", "x", "'x' must be a whole number"),
        ("grid", "huge", "'huge' is unknown; choose from full, coarse"),
        ("gate_budget", "1week", "'1week' must be a duration such as 30min"),
        ("gate_slowdown", "3", "'3' must be a share between 0 and 100%"),
        ("gate_quality", "psnr=3%\n  ssim=x", "'ssim=x' must be a share between 0 and 100%.* or a metric and one"),
        ("exhaustive", "maybe", ".*'maybe'.*; write true or false"),
        ("ratio_tolerance", "1", "'1' must be a share from 0 to below 1"),
        ("pipe", "SD3", "'SD3' is unknown; choose from SD1.5; SD2.1; SDXL; all; FLUX.1"),
        ("search_targets", "tome\n  tricks", "'tricks' is unknown; choose from"),
        ("models", "architecture", ".*; give 'embedded', 'hub' or a TOML file"),
        ("search_budget", "1h\ndiffaccel_exhaustive = true", ".* leave one of the two out"),
        ("decide_by", "device", "device: a GPU's own time needs --gpus"),
    ],
)
def test_a_bad_value_is_refused_with_its_key(pytester: pytest.Pytester, key: str, value: str, said: str) -> None:
    configured(pytester, f"diffaccel_{key} = {value}")
    assert re.search(f"diffaccel_{key} in tox.ini: {said}", refused(pytester))


@pytest.mark.parametrize(("key", "value"), [("models", "no.toml"), ("prompts", "no.txt"), ("golden", "folder")])
def test_a_bad_file_is_refused_with_its_key(pytester: pytest.Pytester, key: str, value: str) -> None:
    pytester.mkdir("folder")
    configured(pytester, f"diffaccel_{key} = {value}")
    assert re.search(f"{value}.*diffaccel_{key} in tox.ini|diffaccel_{key} in tox.ini.*{value}", refused(pytester))


def test_a_files_key_is_named_where_the_value_names_a_column_too(pytester: pytest.Pytester) -> None:
    (pytester.path / "p.csv").write_text("id,Prompt\n", encoding="utf-8")
    configured(pytester, "diffaccel_prompts = p.csv:Promt")
    said = "p.csv: no column 'Promt' (did you mean 'Prompt'?); it has 'id', 'Prompt' (diffaccel_prompts in tox.ini)"
    assert said in refused(pytester)


def test_a_bad_files_key_is_named_however_its_path_is_quoted(pytester: pytest.Pytester) -> None:
    configured(pytester, r"diffaccel_models = models\mine")
    assert r"models 'models\\mine': not 'embedded'" in (said := refused(pytester))
    assert "(diffaccel_models in tox.ini)" in said


def test_a_bad_value_of_a_judges_key_is_refused_with_it(pytester: pytest.Pytester) -> None:
    configured(pytester, "diffaccel_stages = statik")
    pytester.makepyfile("def test_script(diffaccel_task_id, diffaccel_judge): diffaccel_judge(diffaccel_task_id)")
    result = pytester.runpytest_inprocess()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*diffaccel_stages in tox.ini: 'statik' is unknown (did you mean static?); *"])


def test_a_misspelt_key_names_the_one_that_may_be_meant(pytester: pytest.Pytester) -> None:
    configured(pytester, "diffaccel_gate_buget = 2min", "xfail_strikt = true")
    pytester.makepyfile("def test_it(): pass")
    said = pytester.runpytest_inprocess().stdout
    said.fnmatch_lines(
        ["diffaccel: there is no key diffaccel_gate_buget (did you mean diffaccel_gate_budget[?])", "*1 passed*"]
    )
    assert said.str().count("did you mean") == 1


def test_a_bad_override_is_refused_as_one(pytester: pytest.Pytester) -> None:
    assert "diffaccel_seed of --override-ini: 'x' must be a whole number" in refused(pytester, "-o", "diffaccel_seed=x")


def test_a_bad_option_on_the_command_line_is_still_called_by_its_name(pytester: pytest.Pytester) -> None:
    configured(pytester, "diffaccel_pipe = SDXL")
    assert "--pipe: 'SD3' is unknown" in refused(pytester, "--pipe", "SD3")


@pytest.mark.skipif(pytest.version_tuple < (9, 0), reason="pytest 9 reads the table tool.pytest")
def test_a_strict_table_says_how_to_write_a_number(pytester: pytest.Pytester) -> None:
    path = pytester.path / "pyproject.toml"
    path.write_text("[tool.pytest]\ndiffaccel_seed = 3\n", encoding="utf-8")
    said = refused(pytester)
    assert re.search("diffaccel_seed in pyproject.toml: .*; write one value, as text in quotes", said)
    path.write_text('[tool.pytest]\ndiffaccel_seed = "3"\ndiffaccel_pipe = ["SDXL"]\n', encoding="utf-8")
    found = options(pytester)
    assert (found.seed, found.pipe) == (3, ["SDXL"])


# --- sessions ----------------------------------------------------------------------------------------------------


def test_other_tests_of_the_project_run_whatever_the_search_lacks(pytester: pytest.Pytester) -> None:
    configured(pytester, "diffaccel_models = no.toml", "diffaccel_stages = statik", "diffaccel_gate_strict = true")
    pytester.makepyfile(UNRELATED)
    result = pytester.runpytest_inprocess()
    result.assert_outcomes(passed=1)
    result.stdout.no_fnmatch_line("*diffaccel:*")


def test_other_tests_of_the_project_do_not_pay_for_the_search(pytester: pytest.Pytester) -> None:
    """Only diffusers knows whether there is such a scheduler; nobody asks before there is a case."""
    configured(pytester, "diffaccel_sched = EulerDiscreteScheduler", "diffaccel_pipe = SDXL")
    heavy = "{'torch', 'diffusers', 'numpy', 'pytest_diffaccel.pipes', 'pytest_diffaccel.search.search_run'}"
    pytester.makepyfile(f"import sys\n\ndef test_unrelated(): assert not {heavy} & set(sys.modules)")
    pytester.runpytest_subprocess().assert_outcomes(passed=1)


def test_workers_refuse_a_bad_value_with_its_key(pytester: pytest.Pytester) -> None:
    configured(pytester, "diffaccel_pipe = SD3")
    pytester.makepyfile(CASE)
    result = pytester.runpytest_subprocess("-n", "1")
    assert result.ret != pytest.ExitCode.OK
    result.stdout.fnmatch_lines(["diffaccel_pipe in tox.ini: 'SD3' is unknown; choose from SD1.5; *"])
    result.stdout.no_fnmatch_line("*Error: *")
    result.stdout.no_fnmatch_line("*passed*")


@pytest.mark.parametrize("workers", [0, 2])
def test_all_processes_see_the_same_settings(pytester: pytest.Pytester, workers: int) -> None:
    configured(
        pytester,
        "diffaccel_pipe = SDXL",
        "diffaccel_sched = DDIM",
        "diffaccel_steps = 20",
        "diffaccel_search_targets = tgate",
        "diffaccel_grid = coarse",
        "diffaccel_seed = 3",
        "diffaccel_num_samples = 5",
        "diffaccel_gate_strict = true",
    )
    pytester.makepyfile(f"{CASE}\n{UNRELATED}")
    result = pytester.runpytest_subprocess("-n", str(workers), "--num-samples", "6")
    result.assert_outcomes(passed=result.parseoutcomes()["passed"])
    seen = {path.read_text(encoding="utf-8") for path in pytester.path.glob("seen-by-*")}
    assert seen == {'["SDXL", 3, 6, true]'}
