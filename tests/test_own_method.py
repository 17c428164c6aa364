"""The example of a method of one's own, from its search to its script; and what such methods may bring for scripts."""

from __future__ import annotations

import runpy
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jinja2  # noqa: F401 -- once in a process: pytester forgets it, and its errors would be others then
import numpy as np
import pytest
from echo import EXAMPLE, Echo
from entries import ENVIRONMENT, MET
from searches import SmallSearch, embedded_folder

from pytest_diffaccel import accelerate
from pytest_diffaccel.accelerators.registry import Registry, default_registry
from pytest_diffaccel.cli.main import main
from pytest_diffaccel.codegen.lookup import NoRecord
from pytest_diffaccel.codegen.parser import SentenceError, parse_task
from pytest_diffaccel.codegen.script import generate_script
from pytest_diffaccel.codegen.script_parts import NoScriptPart
from pytest_diffaccel.codegen.tasks import Task
from pytest_diffaccel.matrix import Cell
from pytest_diffaccel.pipes import PipeRegistry
from pytest_diffaccel.records.golden_file import Golden, merge, read_golden
from pytest_diffaccel.records.golden_key import GoldenKey

CELL = Cell("SD1.5", "DDIM", 20)
POINT = {"echo_interval": 3, "mishap": 0}
QUIET = """
from pytest_diffaccel.measure import blocks

blocks._REPEATS = 0
print("a conftest file that talks")
"""


def copy_example(folder: Path) -> None:
    """Do what its README says."""
    for name in ("conftest.py", "echo.py.j2"):
        shutil.copy(EXAMPLE / name, folder / name)


def write_golden(folder: Path, accelerator: str, params: dict[str, Any], pipe: str = CELL.pipe) -> None:
    entry = replace(MET, params=params, environment=ENVIRONMENT.id)
    key = GoldenKey(replace(CELL, pipe=pipe), accelerator, 1.5)
    environments = {ENVIRONMENT.id: ENVIRONMENT}
    merge(folder / "golden" / "search_params.json", {key: entry}, update=False, environments=environments)


# --- the example -----------------------------------------------------------------------------------------------


def test_the_example_is_searched_recorded_and_generated(
    steady_search: SmallSearch, pipeline_of: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """Its script draws what ``accelerate`` draws, and leaves the pipeline as it was."""
    import torch

    copy_example(steady_search.path)
    steady_search.add_to_conftest(QUIET)
    steady_search.run().assert_outcomes(passed=5)
    (best, *_) = read_golden(steady_search.golden).values()
    assert best.params["Echo"]["echo_interval"] in (2, 3, 5, 10)
    capsys.readouterr()
    assert main(["generate", "SD1.5, DDIM, 20 steps, echo, 1.2x"]) == 0
    text = capsys.readouterr().out
    Path("script.py").write_text(text, encoding="utf-8")
    assert f'ECHO = {{"echo_interval": {best.params["Echo"]["echo_interval"]}}}' in text
    script = runpy.run_path("script.py")
    pipeline = script["build_pipeline"](str(embedded_folder("SD1.5")), "cpu", torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    drawn = [script["generate"](pipeline, ["red apple"], [3])[0] for _ in range(2)]
    assert "forward" not in vars(pipeline.unet)
    registry = default_registry()
    registry.register(Echo([]))
    params = {"Echo": {**best.params["Echo"], "mishap": 0}}
    usual = pipeline_of("SD1.5", "DDIM")
    with accelerate(usual, params, steps=20, guidance_scale=5.0, registry=registry) as generate:
        drawn += generate(["red apple"], [3])
    first, *others = (np.asarray(image) for image in drawn)
    assert all(np.array_equal(first, other) for other in others)


def test_its_combination_is_generated_too(pytester: pytest.Pytester, capsys: pytest.CaptureFixture[str]) -> None:
    copy_example(pytester.path)
    params = {"Echo": {"echo_interval": 3}, "ToMe": {"ratio": 0.5, "max_downsample": 2}}
    write_golden(pytester.path, "Echo and ToMe", params)
    assert main(["generate", "SD1.5 DDIM 20 steps, ToMe + Echo, 1.5x", "-o", "script.py"]) == 0
    assert "Generate a SD1.5 pipeline" in capsys.readouterr().out
    text = Path("script.py").read_text(encoding="utf-8")
    compile(text, "script.py", "exec")
    for line in ('ECHO = {"echo_interval": 3}', "import tomesd", "    pipeline.unet.forward = echo", '"tomesd"'):
        assert line in text


def test_a_point_that_a_grid_repeats_is_one_case(small_search: SmallSearch) -> None:
    """By its name reports, schedulers and the store know it."""
    small_search.register((10, 0), (10, 0), (20, 0))
    result = small_search.run("--collect-only", "-q")
    assert [line.partition("[")[2] for line in result.outlines if "::" in line] == [
        "SD1.5-DDIM-20-Echo-echo_interval=10,mishap=0]",
        "SD1.5-DDIM-20-Echo-echo_interval=20,mishap=0]",
        "SD1.5-DDIM-20-Echo]",
    ]


def test_it_says_on_which_denoisers_it_cannot_work() -> None:
    """Of every pipeline that a search has: its hooks are put on there, applied or not."""
    other = SimpleNamespace(unet=SimpleNamespace(config=SimpleNamespace()))
    assert (
        Echo([]).applies_to(other) == "a SimpleNamespace has no layer conv_in, which tells computed calls from echoes"
    )


# --- conftest files, as the command sees them ------------------------------------------------------------------


def test_without_a_record_the_search_to_run_is_named(
    pytester: pytest.Pytester, capsys: pytest.CaptureFixture[str]
) -> None:
    copy_example(pytester.path)
    assert main(["generate", "SD1.5, DDIM, 20 steps, Echo, 1.5x"]) == 2
    assert "Run: diffaccel search --pipe SD1.5 --sched DDIM --steps 20 --search-targets Echo" in capsys.readouterr().err


def test_a_sentence_that_is_no_task_names_the_accelerators_of_conftest_too(
    pytester: pytest.Pytester, capsys: pytest.CaptureFixture[str]
) -> None:
    copy_example(pytester.path)
    assert main(["generate", "SD1.5, DDIM, 20 steps, Echo and DeepCache, 1.5x"]) == 2
    said = capsys.readouterr().err
    assert "no known accelerator is made of Echo and DeepCache" in said
    assert (
        "DeepCache, T-Gate, and ToMe; TaylorSeer; MagCache; FirstBlockCache; DBCache; Echo; Echo and ToMe. Steps"
        in said
    )


def test_pipes_of_conftest_are_known_to_the_command_too(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("pytest_diffaccel.pipes._registry", PipeRegistry())  # puts back what the command sets
    pytester.makeconftest(
        "from pytest_diffaccel.pipes import PipeSpec\n\n"
        "def pytest_diffaccel_pipes(registry):\n"
        "    registry.register(PipeSpec('mini', 'StableDiffusionPipeline', built_like='SD'))\n"
    )
    assert main(["generate", "mini, DDIM, 20 steps, T-Gate, 1.5x"]) == 2
    assert (
        "Run: diffaccel search --pipe mini --sched DDIM --steps 20 --search-targets T-Gate" in capsys.readouterr().err
    )


def test_a_models_file_may_give_weights_to_pipes_of_conftest(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The script has no weights to name then: they are given where it runs."""
    monkeypatch.setattr("pytest_diffaccel.pipes._registry", PipeRegistry())
    pytester.makeconftest(
        "from pytest_diffaccel.pipes import PipeSpec\n\n"
        "def pytest_diffaccel_pipes(registry):\n"
        "    registry.register(PipeSpec('SD1.5-mine', 'StableDiffusionPipeline', built_like='SD'))\n"
    )
    pytester.makefile(".toml", models='"SD1.5-mine" = "./weights"')
    write_golden(pytester.path, "DeepCache", dict(MET.params), pipe="SD1.5-mine")
    assert main(["generate", "SD1.5-mine, DDIM, 20 steps, DeepCache, 1.5x", "--models", "models.toml"]) == 0
    text = capsys.readouterr().out
    assert 'parser.add_argument("--model", required=True, help="folder or hub id")' in text
    assert "MODEL" not in text
    Path("models.toml").write_text('Nobody = "./weights"', encoding="utf-8")
    assert main(["generate", "SD1.5-mine, DDIM, 20 steps, DeepCache, 1.5x", "--models", "models.toml"]) == 2
    assert (
        "models 'models.toml': no pipe 'Nobody'; valid: SD1.5, SD2.1, SDXL, FLUX.1, SD1.5-mine"
        in capsys.readouterr().err
    )


def test_conftest_files_are_not_needed_for_the_built_in_methods(
    pytester: pytest.Pytester, capsys: pytest.CaptureFixture[str]
) -> None:
    pytester.makeconftest("raise RuntimeError('an accident in conftest.py')")
    write_golden(pytester.path, "DeepCache", dict(MET.params))
    assert main(["generate", "SD1.5, DDIM, 20 steps, DeepCache, 1.5x"]) == 0
    compile(capsys.readouterr().out, "script.py", "exec")
    assert main(["generate", "SD1.5, DDIM, 20 steps, Echo, 1.5x"]) == 2
    said = capsys.readouterr().err
    assert "an accident in conftest.py" in said
    assert "diffaccel: the conftest files here, which may register methods and pipes, cannot be loaded" in said


def test_a_project_that_switches_the_plugin_off_has_the_built_in_methods(
    pytester: pytest.Pytester, capsys: pytest.CaptureFixture[str]
) -> None:
    pytester.makeini("[pytest]\naddopts = -p no:diffaccel\n")
    pytester.makeconftest("")
    assert main(["generate", "SD1.5, DDIM, 20 steps, Echo, 1.5x"]) == 2
    assert "this sentence is no task: no accelerator; no place for 'echo'" in capsys.readouterr().err


# --- templates ---------------------------------------------------------------------------------------------------


def registry_with(method: Echo) -> Registry:
    registry = default_registry()
    registry.register(method)
    return registry


def script_of(method: Echo) -> str:
    """The script of a made-up record of a method, rendered through the public function."""
    registry = registry_with(method)
    key = GoldenKey(CELL, method.name, 1.5)
    entry = replace(MET, params={method.name: POINT}, environment=ENVIRONMENT.id)
    records = Golden(Path("golden.json"), {key: entry}, {ENVIRONMENT.id: ENVIRONMENT})
    return generate_script(Task(CELL, method.name, 1.5, tuple(registry.names)), records, registry)


def with_template(path: Path, text: str) -> Echo:
    path.write_text(text, encoding="utf-8")
    method: Echo = type("Own", (Echo,), {"template": path})([])
    return method


def test_a_method_without_a_template_gives_no_script() -> None:
    class Silent(Echo):
        template = None

    with pytest.raises(NoScriptPart, match=r"^Echo brings no template for scripts, .* give Silent a `template`"):
        script_of(Silent([]))


WHOLE = (EXAMPLE / "echo.py.j2").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "sets or defines no constant, meaning, apply, undo"),
        (WHOLE.replace('"ECHO"', '"1; import os"'), "`constant` is '1; import os', which is no name in Python"),
        (WHOLE.replace("in between.", "in between.\\nimport os"), "`meaning` is more than one line"),
        (WHOLE.replace("compute, calls", "{{ nothing }}, calls"), "'nothing' is undefined"),
        (WHOLE.replace("{% macro undo() %}", ""), "Encountered unknown tag 'endmacro'"),
        (WHOLE.replace("{% macro undo() %}", "{% macro undo(why) %}{{ why }}"), "parameter 'why' was not provided"),
        (WHOLE.replace('"ECHO"', "5"), "`constant` is 5, which is no text"),
        (WHOLE.replace('"ECHO"', '"class"'), "`constant` is 'class', which is no name in Python"),
        (WHOLE.replace("compute, calls", "{{ 1 / 0 }}, calls"), "division by zero"),
        (WHOLE.replace("{% macro undo() %}", "{% macro undo() %}{{ undo() }}"), "maximum recursion depth exceeded"),
        (WHOLE + '{% set import_line = "echoes" %}', "`import_line` is 'echoes', which imports nothing; write import"),
        (WHOLE + '{% set standard_import = "re" %}', "`standard_import` is 're', which imports nothing"),
    ],
)
def test_a_template_that_cannot_be_used_is_named_with_what_is_wrong(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "own.py.j2"
    with pytest.raises(NoScriptPart, match=rf"own\.py\.j2, the template of Echo: .*({message})"):
        script_of(with_template(path, text))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (WHOLE.replace("    compute, calls", "compute, calls"), "make no Python: unexpected indent: 'def echo\\("),
        (WHOLE.replace("        del ", "        # del "), r"make no Python: .* \(docs/own_method.md\)"),
        (WHOLE + '{% set call = "partial(" %}', r"make no Python: .*: 'yield partial\('"),
        (WHOLE.replace('"ECHO"', '"STEPS"'), "give a script that has STEPS twice; let `constant` be another name"),
        (WHOLE.replace('"ECHO"', '"main"'), "give a script that has main twice"),
        (WHOLE.replace('"ECHO"', '"torch"'), "give a script that has torch twice"),
    ],
)
def test_a_template_that_spoils_the_script_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(NoScriptPart, match=rf"the templates of Echo together {message}"):
        script_of(with_template(tmp_path / "own.py.j2", text))


def test_a_template_may_be_named_by_text_and_must_be_there(tmp_path: Path) -> None:
    path = tmp_path / "own.py.j2"
    path.write_text(WHOLE, encoding="utf-8")
    assert "ECHO = " in script_of(type("Own", (Echo,), {"template": str(path)})([]))
    with pytest.raises(NoScriptPart, match=r"nowhere\.py\.j2, the template of Echo: .*No such file"):
        script_of(type("Own", (Echo,), {"template": tmp_path / "nowhere.py.j2"})([]))


def test_a_template_has_the_record_and_the_filters_of_the_built_in_ones(tmp_path: Path) -> None:
    text = WHOLE.replace('"Echo computes', '(task.cell.steps | literal) ~ " steps, " ~ entry.status ~ "; Echo computes')
    text += '{% set standard_import = "import functools" %}{% set library = "echoes" %}{% set draws = "as it likes" %}'
    script = script_of(with_template(tmp_path / "own.py.j2", text))
    for line in (
        "# 20 steps, met; Echo computes one denoiser call",
        "import argparse\nimport functools\nimport statistics\n",
        '"accelerate", "echoes"]',
        "    torch.manual_seed(seeds[0])  # as it likes",
    ):
        assert line in script


# --- sentences -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spelled", ["Super-ToMe", "super tome", "SUPERTOME"])
def test_own_methods_are_spelled_by_their_names(spelled: str) -> None:
    """Also one whose name holds that of a built-in method."""
    known = ("ToMe", "Super ToMe")
    assert parse_task(f"SD1.5, DDIM, 20 steps, {spelled}, 1.5x", known).accelerator == "Super ToMe"
    assert parse_task("SD1.5, DDIM, 20 steps, ToMe, 1.5x", known).accelerator == "ToMe"
    with pytest.raises(SentenceError, match="Accelerators: ToMe; Super ToMe"):
        parse_task("SD1.5, DDIM, 20 steps, Super, 1.5x", known)


def test_a_task_of_an_own_method_stays_one_when_it_is_changed() -> None:
    """Refusals name the search to run."""
    records = Golden(Path("golden/search_params.json"), {}, {})
    with pytest.raises(NoRecord, match="--steps 30 --search-targets Echo"):
        generate_script("SD1.5, DDIM, 30 steps, Echo, 1.5x", records, registry_with(Echo([])))
