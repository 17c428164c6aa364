"""From task to script: which golden record answers, what the script says, and that it does what ``accelerate`` does."""

from __future__ import annotations

import ast
import json
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from searches import embedded_folder

import pytest_diffaccel
from pytest_diffaccel.cli.main import main
from pytest_diffaccel.codegen.lookup import NoRecord, find, update_command
from pytest_diffaccel.codegen.script import generate_script, literal, plain, render
from pytest_diffaccel.codegen.tasks import Task, all_tasks
from pytest_diffaccel.matrix import PIPES, SCHEDULERS, Cell
from pytest_diffaccel.records.environment import Environment
from pytest_diffaccel.records.golden import GoldenEntry
from pytest_diffaccel.records.golden_file import Golden, merge
from pytest_diffaccel.records.golden_key import ACCELERATORS, GoldenKey
from pytest_diffaccel.records.golden_parts import GoldenMetric

ROOT = Path(__file__).resolve().parents[1]
GUIDANCE_SCALE = 4.0
PROMPTS, SEEDS = ["red apple on a blue background", "smiling face on a green background"], [3, 4]
POINTS = {
    "DeepCache": {"cache_interval": 3, "cache_branch_id": 0},
    "T-Gate": {"gate_step": 10, "sp_interval": 3, "fi_interval": 2, "warm_up": 2},
    "ToMe": {"ratio": 0.5, "max_downsample": 2},
}
# A library that a script may import: standard, or needed by what it does.
LIBRARIES = {"DeepCache": "DeepCache", "T-Gate": "tgate", "ToMe": "tomesd"}
each_accelerator = pytest.mark.parametrize("accelerator", ACCELERATORS)


def environment(pipe: str) -> Environment:
    libraries = ("diffusers", "transformers", "DeepCache", "tgate", "tomesd", "lpips")
    return Environment(
        pipe=pipe,
        model_source=f"embedded stand-in, not {pipe}",
        weights={"unet": "a" * 64},
        device="NVIDIA A100-SXM4-80GB with a long name of its own",
        driver="550.54.15",
        threads=1,
        versions={"python": "3.11.9", "torch": "2.14.1+cpu", **dict.fromkeys(libraries, "1.2.3")},
        dtype="float32",
        image_size=(64, 128),
        batch_size=4,
        guidance_scale=GUIDANCE_SCALE,
    )


def entry(accelerator: str, pipe: str, speedup: float = 1.7, **fields: Any) -> GoldenEntry:
    params = {name: POINTS[name] for name in POINTS if name in accelerator}
    values: dict[str, Any] = {
        "status": "unattainable" if "reason" in fields else "met",
        "params": params,
        "speedup": speedup,
        "speedup_ci95": (speedup - 0.05, speedup + 0.05),
        "wall_speedup": speedup,
        "wall_speedup_ci95": (speedup - 0.1, speedup + 0.1),
        "lpips": 0.0412,
        "lpips_ci95": (0.036, 0.047),
        "num_samples": 8,
        "batch_size": 4,
        "environment": environment(pipe).id,
    }
    return GoldenEntry(**values | fields)


def write(path: Path, entries: dict[GoldenKey, GoldenEntry]) -> Path:
    merge(path, entries, update=True, environments={environment(pipe).id: environment(pipe) for pipe in PIPES})
    return path


@pytest.fixture(scope="session")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small golden file: in every cell of 20 steps, 1.5x is met, and 1.8x and 4.0x are not."""
    entries = {}
    for pipe in PIPES:
        for scheduler in SCHEDULERS:
            for accelerator in ACCELERATORS:
                for target, fields in ((1.5, {}), (1.8, {"reason": "speed"}), (4.0, {"reason": "speed"})):
                    key = GoldenKey(Cell(pipe, scheduler, 20), accelerator, target)
                    entries[key] = entry(accelerator, pipe, **fields)
    return write(tmp_path_factory.mktemp("golden") / "search_params.json", entries)


@pytest.fixture(scope="session")
def records(golden: Path) -> Golden:
    return Golden.read(golden)


def task(accelerator: str = "DeepCache", target: float = 1.5, steps: int = 20, pipe: str = "SD1.5") -> Task:
    return Task(Cell(pipe, "DDIM", steps), accelerator, target)


def records_of(*entries: tuple[int, float, GoldenEntry], accelerator: str = "DeepCache") -> Golden:
    keyed = {GoldenKey(Cell("SD1.5", "DDIM", steps), accelerator, target): value for steps, target, value in entries}
    return Golden(Path("golden.json"), keyed, {environment("SD1.5").id: environment("SD1.5")})


def tool_table(script: str) -> dict[str, Any]:
    """What the script's inline metadata says of itself."""
    line = re.search(r"^# tool\.diffaccel = \{ (.*) \}$", script, re.MULTILINE)
    assert line
    return {name: json.loads(value) for name, value in (item.split(" = ") for item in line[1].split(", "))}


# --- which record answers --------------------------------------------------------------------------------------


def test_a_tasks_own_record_answers_it(records: Golden) -> None:
    answer = find(task(), records)
    assert (answer.key, answer.attained) == (task().key, True)


def test_the_next_higher_target_that_is_met_answers() -> None:
    met, missed = entry("DeepCache", "SD1.5"), entry("DeepCache", "SD1.5", 2.2, reason="quality")
    records = records_of((20, 1.2, met), (20, 1.5, met), (20, 1.8, missed), (20, 2.5, met), (20, 3.0, met))
    assert find(task(target=1.4), records).key.target == 1.5
    assert find(task(target=1.6), records).key.target == 2.5
    assert find(task(target=1.8), records).attained is False


def test_a_record_measured_to_be_fast_enough_answers() -> None:
    """The winner for 1.5x reaches 1.7x, surely more than 1.6x."""
    records = records_of((20, 1.5, entry("DeepCache", "SD1.5", 1.7)), (20, 4.0, entry("DeepCache", "SD1.5", 3.3)))
    assert find(task(target=1.6), replace(records, entries=dict(list(records.entries.items())[:1]))).key.target == 1.5
    with pytest.raises(NoRecord, match=r"fastest recorded for 20 steps reaches 1.70x"):
        find(task(target=1.66), replace(records, entries=dict(list(records.entries.items())[:1])))


def test_the_best_reached_answers_lower_targets_where_quality_was_ever_met() -> None:
    best = entry("DeepCache", "SD1.5", 1.9, reason="speed")
    assert find(task(target=1.6), records_of((20, 1.5, entry("DeepCache", "SD1.5", 1.52)), (20, 2.0, best))).attained
    with pytest.raises(NoRecord):
        find(task(target=1.6), records_of((20, 2.0, best)))


def test_beyond_the_best_reached_nothing_is_attainable() -> None:
    """Of 2.05x to 2.15x, 2.2x is surely too much, and of 2.12x nobody knows."""
    met, best = entry("DeepCache", "SD1.5", 1.52), entry("DeepCache", "SD1.5", 2.1, reason="quality")
    records = records_of((20, 1.5, met), (20, 2.0, met), (20, 4.0, best))
    answer = find(task(target=2.2), records)
    assert (answer.attained, answer.key.target) == (False, 4.0)
    assert find(task(target=2.04), records).attained
    with pytest.raises(NoRecord, match=r"2.10x \(95% interval 2.05x to 2.15x\)\. Run: .* --update-golden"):
        find(task(target=2.12), records)


def test_what_a_search_left_undecided_is_not_called_unattainable() -> None:
    """2.0x is not recorded, though 4.0x is: what is not surely slower than 2.0x may prove faster than 2.2x, too."""
    met, best = entry("DeepCache", "SD1.5", 1.52), entry("DeepCache", "SD1.5", 1.7, reason="speed")
    records = records_of((20, 1.5, met), (20, 4.0, best))
    for target in (2.0, 2.2):
        with pytest.raises(NoRecord, match=r"is known to hold for: .* Run: pytest benches .*--steps 20"):
            find(task(target=target), records)
    assert not find(task(target=2.2), records_of((20, 1.5, met), (20, 2.0, best), (20, 4.0, best))).attained


def test_above_an_unattainable_target_all_are() -> None:
    answer = find(task(target=5), records_of((20, 4.0, entry("DeepCache", "SD1.5", reason="quality"))))
    assert (answer.attained, answer.key.target) == (False, 4.0)


def by_device(speedup: float, device: float, **fields: Any) -> GoldenEntry:
    ends = (device - 0.02, device + 0.02)
    by = {"device_speedup": device, "device_speedup_ci95": ends, "decided_by": "device"}
    return entry("DeepCache", "SD1.5", speedup, **by, **fields)


def test_what_a_gpus_own_time_decided_is_promised_as_far_as_the_wall_clock_shows_it() -> None:
    """A script is timed by the wall clock, by its user and by the judge."""
    met, waits = by_device(1.56, 1.8), by_device(1.31, 1.75)
    assert find(task(), records_of((20, 1.5, met))).attained
    answer = find(task(), records_of((20, 1.5, waits)))
    assert (answer.key.target, answer.attained) == (1.5, False)
    said = "This target is reached by the GPU's own time (1.75x), by the wall clock only 1.31x."
    script = generate_script(task(), records_of((20, 1.5, waits)))
    assert said in " ".join((ast.get_docstring(ast.parse(script)) or "").split())
    assert tool_table(script)["status"] == "unattainable"
    # The winner for a higher target may be fast enough by either.
    answer = find(task(), records_of((20, 1.5, waits), (20, 2.0, by_device(1.62, 2.1))))
    assert (answer.key.target, answer.attained) == (2.0, True)
    # A target of no record is not answered by a higher one that the wall clock does not show.
    with pytest.raises(NoRecord, match=r"fastest recorded for 20 steps reaches 1\.31x"):
        find(task(target=1.4), records_of((20, 1.5, waits)))
    assert not find(task(), records_of((20, 1.5, by_device(1.9, 1.45, reason="quality")))).attained


@pytest.mark.parametrize(
    ("accelerator", "steps", "answered"),
    [
        ("DeepCache", 20, True),
        ("DeepCache", 30, True),  # of 25 steps 9 are full, of 30 only 10
        ("DeepCache", 24, False),  # further apart than what was measured
        ("ToMe", 30, True),
        ("T-Gate", 30, False),  # gate at step 10: another setting
        ("DeepCache and T-Gate", 30, False),
    ],
)
def test_other_steps_are_answered_from_fewer_where_settings_mean_the_same(
    accelerator: str, steps: int, answered: bool
) -> None:
    recorded = entry(accelerator, "SD1.5", 1.7)
    records = records_of((25, 1.5, recorded), accelerator=accelerator)
    if steps == 20:
        records = records_of((20, 1.5, recorded), (25, 1.5, recorded), accelerator=accelerator)
    if answered:
        answer = find(task(accelerator, steps=steps), records)
        assert answer.key.cell.steps == min(steps, 25)
    else:
        with pytest.raises(NoRecord, match="Run: pytest benches"):
            find(task(accelerator, steps=steps), records)


def test_other_steps_need_a_speedup_to_spare() -> None:
    """Every second of 20 steps is full, but 11 of 21: the least that is sure to be left is 1.7 x 21/22."""
    point = {"DeepCache": {"cache_interval": 2, "cache_branch_id": 0}}
    recorded = entry("DeepCache", "SD1.5", 1.75, params=point)
    assert find(task(target=1.6, steps=21), records_of((20, 1.5, recorded))).attained
    with pytest.raises(NoRecord):
        find(task(target=1.65, steps=21), records_of((20, 1.5, recorded)))


@pytest.mark.parametrize(
    ("asked", "command"),
    [
        (task("DeepCache and ToMe"), "pytest benches --pipe SD1.5 --sched DDIM --steps 20 --search-targets"),
        (task("DeepCache and ToMe"), "'DeepCache and ToMe' --golden golden.json"),
        (task("T-Gate", steps=30), r"pytest benches .* --steps 30 "),
        (task("T-Gate", steps=15), r"pytest benches .* --steps 15 "),
        (task("T-Gate", target=9), "targets up to 4.0x"),
    ],
)
def test_refusals_say_what_to_run(asked: Task, command: str) -> None:
    with pytest.raises(NoRecord, match=command):
        find(asked, records_of())


def test_a_record_of_nothing_measured_gives_no_script() -> None:
    names = ("speedup", "speedup_ci95", "wall_speedup", "wall_speedup_ci95", "lpips", "lpips_ci95")
    nothing = replace(entry("DeepCache", "SD1.5", reason="speed"), params={}, **dict.fromkeys(names))
    with pytest.raises(NoRecord, match="--update-golden"):
        find(task(), records_of((20, 1.5, nothing)))


def test_records_that_mean_nothing_are_refused(records: Golden) -> None:
    wrong = entry("DeepCache", "SD1.5", params={"DeepCache": {"cache_interval": 0, "cache_branch_id": 0}})
    with pytest.raises(ValueError, match=r"golden record .*cache_interval=0"):
        find(task(), records_of((20, 1.5, wrong)))
    with pytest.raises(ValueError, match="its parameters are those of ToMe"):
        find(task(), records_of((20, 1.5, entry("ToMe", "SD1.5"))))
    with pytest.raises(ValueError, match="does not spell out environment"):
        find(task(), replace(records, environments={}))


# --- what the script says ----------------------------------------------------------------------------------------


def imported(script: str) -> set[str]:
    """Names of the packages that a script imports."""
    nodes = list(ast.walk(ast.parse(script)))
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return {
        name.split(".")[0] for name in plain | {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}
    }


@each_accelerator
def test_a_script_imports_only_what_it_uses(records: Golden, accelerator: str) -> None:
    script = generate_script(task(accelerator), records)
    others = imported(script) - set(sys.stdlib_module_names)
    wanted = {LIBRARIES[name] for name in LIBRARIES if name in accelerator}
    if "DeepCache and T-Gate" in accelerator or accelerator.count(",") == 2:
        wanted.remove("DeepCache")  # driven through T-GATE's loader
    assert others == {"torch", "diffusers"} | wanted


def test_docstring_names_the_metric_that_decided(records: Golden) -> None:
    key = GoldenKey(Cell("SD1.5", "DDIM", 20), "DeepCache", 1.5)
    decided = replace(records.entries[key], quality="psnr", metrics={"psnr": GoldenMetric(20.1626)})
    said = {
        name: ast.get_docstring(ast.parse(generate_script(Task(key.cell, "DeepCache", 1.5), golden))) or ""
        for name, golden in (("lpips", records), ("psnr", replace(records, entries={**records.entries, key: decided})))
    }
    assert "Chosen by" not in said["lpips"]
    assert "Chosen by psnr, not by LPIPS: 20.16 on the same images" in said["psnr"]


def test_what_is_to_be_run_again_decides_as_the_record_was() -> None:
    """Else it would let others win, by LPIPS."""
    decided = entry("DeepCache", "SD1.5", quality="psnr", metrics={"psnr": GoldenMetric(20.1626)}, rule="diffbench")
    records = records_of((20, 1.5, decided))
    assert "--quality" not in update_command(task(), records_of((20, 1.5, entry("DeepCache", "SD1.5"))))
    assert " --update-golden --quality psnr --rule diffbench -k " in update_command(task(), records)
    with pytest.raises(ValueError, match=r"record anew: .* --update-golden --quality psnr --rule diffbench"):
        find(task(), replace(records, environments={}))


@each_accelerator
def test_docstring_and_constants_hold_the_record(records: Golden, accelerator: str) -> None:
    asked = task(accelerator)
    script = generate_script(asked.sentence, records)
    tree = ast.parse(script)
    said = " ".join((ast.get_docstring(tree) or "").split())
    for words in (
        f"Task {asked.prompt_id}: {asked.sentence}",
        "Speedup (95% interval): 1.70x (1.65x to 1.75x), by whole runs 1.70x (1.60x to 1.80x)",
        "LPIPS (95% interval): 0.041 (0.036 to 0.047) to 8 unaccelerated images",
        "NVIDIA A100-SXM4-80GB with a long name of its own, driver 550.54.15, float32, 128x64 pixels, batches of 4",
        "Model: embedded stand-in, not SD1.5",
    ):
        assert words in said
    assigned = [node for node in tree.body if isinstance(node, ast.Assign)]
    constants = {ast.unparse(node.targets[0]): ast.literal_eval(node.value) for node in assigned}
    assert constants["MODEL"] == "stable-diffusion-v1-5/stable-diffusion-v1-5"
    assert (constants["STEPS"], constants["GUIDANCE_SCALE"], constants["TARGET_SPEEDUP"]) == (20, GUIDANCE_SCALE, 1.5)
    names = {"DEEPCACHE": "DeepCache", "TGATE": "T-Gate", "TOME": "ToMe"}
    params = {names[name]: value for name, value in constants.items() if name in names}
    assert params == {name: POINTS[name] for name in POINTS if name in accelerator}
    assert tool_table(script) == {"task": asked.prompt_id, "status": "met", "target": 1.5}
    assert '"torch==2.14.1", "diffusers==1.2.3"' in script


def test_an_unattainable_target_is_said_wherever_one_looks(
    golden: Path, records: Golden, capsys: pytest.CaptureFixture[str]
) -> None:
    script = generate_script(task(target=4.0), records)
    assert "unattainable: no setting is fast enough" in (ast.get_docstring(ast.parse(script)) or "")
    assert tool_table(script)["status"] == "unattainable"
    assert 'print(f"note: {TARGET_SPEEDUP}x was not reached, only 1.70x", file=sys.stderr)' in script
    assert main(["generate", task(target=4.0).sentence, "--golden", str(golden)]) == 0
    printed = capsys.readouterr()
    assert printed.out == script
    assert "note: Generate a SD1.5 pipeline" in printed.err
    assert "unattainable: no setting is fast enough. Best reached: 1.70x." in printed.err


def test_figures_of_another_record_are_called_so(records: Golden) -> None:
    script = generate_script("SD1.5, DDIM, 30 steps, DeepCache, 1.3x", records)
    assert "are those recorded for 20 steps and a target of 1.5x." in script
    assert "STEPS = 30\n" in script
    assert tool_table(script) == {"status": "met", "target": 1.3}


def test_a_script_is_the_same_every_time(golden: Path) -> None:
    """Also in a process with other hashes."""
    sentence = task("DeepCache, T-Gate, and ToMe").sentence
    command = [sys.executable, "-m", "pytest_diffaccel.cli", "generate", sentence, "--golden", str(golden)]
    code = f"from pytest_diffaccel.cli.main import main; main({command[3:]!r})"
    outputs = [
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, check=True, env={"PYTHONHASHSEED": seed}
        ).stdout.decode()
        for seed in ("1", "2")
    ]
    assert outputs == [generate_script(sentence, golden)] * 2


@pytest.mark.parametrize("text", ["", 'a"""\nimport os', 'quote"', "back\\slash", "new\nline", "\x1b[31m", "\u202e"])
def test_descriptions_that_could_end_a_docstring_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="has no place in a script"):
        plain(text)


def test_hostile_environments_are_refused(records: Golden) -> None:
    hostile = replace(environment("SD1.5"), model_source='x"""\nimport os\n"""')
    with pytest.raises(ValueError, match="has no place in a script"):
        generate_script(task(), replace(records, environments={environment("SD1.5").id: hostile}))
    hostile = replace(environment("SD1.5"), versions={"torch": "2]\nimport os"})
    with pytest.raises(ValueError, match="is no version of torch"):
        generate_script(task(), replace(records, environments={environment("SD1.5").id: hostile}))


@pytest.mark.parametrize("text", ["a\"b\\\n'", "models/\U0001f600", "\u202e\u2028\x85\x00", "\ud800"])
def test_a_text_is_one_literal_in_ascii(text: str) -> None:
    assert ast.literal_eval(literal(text)) == text
    assert literal(text).isascii()
    assert len(literal(text).splitlines()) == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None, object(), {1, 2}])
def test_only_plain_values_become_literals(value: object) -> None:
    with pytest.raises(ValueError, match="has no place in a script"):
        literal(value)


# --- form --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def scripts(records: Golden, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every script of golden, and of tasks answered from other records."""
    folder = tmp_path_factory.mktemp("gt_code")
    for prompt_id, asked in all_tasks().items():
        if asked.cell.steps == 20 and asked.target in (1.2, 1.5, 4.0):
            (folder / f"{prompt_id}.py").write_text(generate_script(asked, records), encoding="utf-8")
    beyond = replace(task("DeepCache, T-Gate, and ToMe", 5.0), cell=Cell("SD2.1", "DPM-Solver++", 20))
    (folder / "beyond.py").write_text(generate_script(beyond, records), encoding="utf-8")
    return folder


def test_scripts_are_short(scripts: Path) -> None:
    lengths = {path.name: len(path.read_text(encoding="utf-8").splitlines()) for path in scripts.iterdir()}
    assert len(lengths) == 3 * len(PIPES) * len(SCHEDULERS) * len(ACCELERATORS) + 1
    assert max(lengths.values()) < 130, max(lengths.items(), key=lambda item: item[1])


@pytest.mark.parametrize("options", [["--isolated"], ["--config", str(ROOT / "pyproject.toml")]])
@pytest.mark.parametrize("command", [["check"], ["format", "--check", "--diff"]])
def test_ruff_finds_nothing(scripts: Path, command: list[str], options: list[str]) -> None:
    """Neither with ruff's own settings nor with this project's."""
    assert not findings("ruff", [*command, "--no-cache", *options, str(scripts)])


@pytest.mark.slow
def test_mypy_finds_nothing(scripts: Path, tmp_path: Path) -> None:
    chosen = [find_script(scripts, accelerator) for accelerator in ACCELERATORS]
    copies = [shutil.copy(path, tmp_path / f"script_{path.stem}.py") for path in chosen]
    assert not findings("mypy", ["--strict", *map(str, copies)])


def findings(name: str, arguments: Iterable[str]) -> str:
    """What a tool finds; empty when it is content."""
    if shutil.which(name, path=str(Path(sys.executable).parent)) is None:
        pytest.skip(f"{name} is not installed")
    done = subprocess.run(
        [sys.executable, "-m", name, *arguments], capture_output=True, text=True, check=False, cwd=ROOT
    )
    return done.stdout + done.stderr or "failed" if done.returncode else ""


def find_script(scripts: Path, accelerator: str) -> Path:
    return scripts / f"{task(accelerator, pipe='SDXL').prompt_id}.py"


# --- what it does ------------------------------------------------------------------------------------------------


@pytest.fixture
def reference(pipeline_of: Callable[..., Any]) -> Callable[..., list[Any]]:
    """The images that ``accelerate`` makes with the parameters of a task's record."""

    def images(asked: Task, records: Golden, prompts: list[str], seeds: list[int]) -> list[Any]:
        params = find(asked, records).entry.params
        pipeline = pipeline_of(asked.cell.pipe, asked.cell.scheduler)
        steps = asked.cell.steps
        with pytest_diffaccel.accelerate(pipeline, params, steps=steps, guidance_scale=GUIDANCE_SCALE) as generate:
            return list(generate(prompts, seeds))

    return images


def same(left: Iterable[Any], right: Iterable[Any]) -> bool:
    return all(np.array_equal(np.asarray(one), np.asarray(other)) for one, other in zip(left, right, strict=True))


@each_accelerator
def test_functions_do_what_accelerate_does(
    records: Golden, reference: Callable[..., list[Any]], tmp_path: Path, accelerator: str
) -> None:
    """Repeatedly, and without leaving a trace on the pipeline."""
    import torch

    index = ACCELERATORS.index(accelerator)
    asked = Task(Cell(PIPES[index % 3], SCHEDULERS[(index + index // 3) % 3], 20), accelerator, 1.5)
    path = tmp_path / "script.py"
    path.write_text(generate_script(asked, records), encoding="utf-8")
    script = runpy.run_path(str(path))
    pipeline = script["build_pipeline"](str(embedded_folder(asked.cell.pipe)), "cpu", torch.float32)
    pipeline.set_progress_bar_config(disable=True)

    def untouched() -> Any:
        return pipeline(PROMPTS[0], num_inference_steps=2, generator=torch.Generator().manual_seed(0)).images

    before = untouched()
    first = script["generate"](pipeline, PROMPTS, SEEDS)
    assert same(first, script["generate"](pipeline, PROMPTS, SEEDS))
    assert same(first, reference(asked, records, PROMPTS, SEEDS))
    assert same(before, untouched())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("accelerator", "pipe", "target"),
    [
        ("DeepCache", "SD1.5", 1.5),
        ("DeepCache and T-Gate", "SDXL", 1.5),
        ("DeepCache, T-Gate, and ToMe", "SD2.1", 4.0),
    ],
)
def test_scripts_run_on_their_own(
    records: Golden, reference: Callable[..., list[Any]], tmp_path: Path, accelerator: str, pipe: str, target: float
) -> None:
    asked = task(accelerator, target, pipe=pipe)
    path = tmp_path / f"{asked.prompt_id}.py"
    answer = find(asked, records)
    # One picture at once is timed in a quarter of the time of four.
    answer = replace(answer, entry=replace(answer.entry, batch_size=1))
    path.write_text(render(answer), encoding="utf-8")
    model = ["--model", str(embedded_folder(pipe)), "--device", "cpu", "--dtype", "float32"]
    options = ["--prompt", PROMPTS[0], "--seed", "7", "--output", "out.png", "--compare"]
    done = subprocess.run(
        [sys.executable, str(path), *model, *options], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(rf"speedup \d+\.\d\dx \(target {target}x\), 1 at once\n", done.stdout)
    assert ("note: 4.0x was not reached, only 1.70x" in done.stderr) == (target == 4.0)
    assert same([Image.open(tmp_path / "out.png")], reference(asked, records, PROMPTS[:1], [7]))


# --- the command -------------------------------------------------------------------------------------------------


def command(golden: Path, *arguments: str) -> int:
    return main(["generate", "--golden", str(golden), *arguments])


STAND_IN = "note: found on a small stand-in; search the model that you are going to use before you rely on it"


def test_a_sentences_script_is_printed_or_written(
    golden: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(golden, "sdxl, ddim, 20 steps, tome, 1.5x", "-o", str(tmp_path / "script.py")) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith(f"{tmp_path / 'script.py'}: the script for: Generate a SDXL pipeline")
    assert printed.err.splitlines() == [STAND_IN]
    written = (tmp_path / "script.py").read_text(encoding="utf-8")
    assert written == generate_script(task("ToMe", pipe="SDXL"), golden)


@pytest.mark.parametrize(("steps", "target"), [("30", "1.3x"), ("20", "1.51x")])
def test_the_settings_of_another_record_are_said_to_be_so(
    golden: Path, capsys: pytest.CaptureFixture[str], steps: str, target: str
) -> None:
    assert command(golden, f"SD1.5, DDIM, {steps} steps, DeepCache, {target}") == 0
    printed = capsys.readouterr()
    compile(printed.out, "script.py", "exec")
    said = "nothing is recorded for just that; these are the settings recorded for 20 steps and a target of 1.5x"
    assert f"{said}, which are known to hold" in printed.err


def test_all_scripts_are_written_and_checked(golden: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "gt_code"
    everything = ("--all", "-o", str(folder))
    assert command(golden, *everything) == 0
    printed = capsys.readouterr()
    # Of 54 groups each: 1.5x, 1.8x and 4.0x have records, 1.2x takes that of 1.5x; 2.0x to 3.0x, above an unattainable
    # one, take that of 1.8x or 4.0x. And for 25 and 50 steps, 27 groups (without T-GATE) take that of 1.5x for 1.2x and
    # 1.5x.
    assert printed.out == f"{7 * 54 + 2 * 2 * 27} scripts written to {folder}\n"
    assert f"{4 * 54 + 2 * 2 * 27} tasks use the record of another target or number of steps" in printed.err
    assert f"{5 * 54} targets are unattainable" in printed.err
    assert re.search(
        r"note: without a golden record: \d+ tasks; record what is missing with: pytest benches", printed.err
    )
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert command(golden, *everything, "--check") == 0
    assert command(golden, *everything) == 0
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_check_names_every_file_that_differs(golden: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = ("--ids", "192-193,241", "-o", str(tmp_path))
    assert command(golden, *chosen) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"192.py", "193.py"}
    (tmp_path / "192.py").unlink()
    (tmp_path / "193.py").write_text("print()\n", encoding="utf-8")
    (tmp_path / "241.py").touch()
    capsys.readouterr()
    assert command(golden, *chosen, "--check") == 1
    said = capsys.readouterr().err
    for line in ("192.py is missing", "193.py differs", "241.py has no golden record", "3 files"):
        assert line in said
    assert (tmp_path / "193.py").read_text(encoding="utf-8") == "print()\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give one of"),
        (
            ["SDXL", "T-GATE,", "2x"],
            "3 words where one sentence is due; quote it: diffaccel generate 'SDXL T-GATE, 2x'",
        ),
        (["SDXL", "--all"], "give one of"),
        (["--all", "--ids", "192"], "give one of"),
        (["SDXL", "--check"], "give --ids or --all"),
        (["--ids", "1"], "write ids from 192"),
        (["SDXL"], "this sentence is no task: no scheduler"),
        (["SDXL, DDIM, 25 steps, ToMe, 4x"], "Run: pytest benches --pipe SDXL --sched DDIM --steps 25"),
        (["--ids", "1325"], "golden answers none of these tasks"),
    ],
)
def test_what_cannot_be_done_says_why(
    golden: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert command(golden, *arguments) == 2
    assert message in capsys.readouterr().err


def test_without_golden_the_search_to_run_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(tmp_path / "none.json", "--all", "--check") == 2
    said = capsys.readouterr().err
    assert "without a golden record: 1134 tasks; record what is missing with: pytest benches --golden" in said


def test_a_broken_golden_file_is_refused_with_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "golden.json"
    path.write_text("{\n  broken\n}\n", encoding="utf-8")
    assert command(path, task().sentence) == 2
    assert f"{path}:2: not JSON" in capsys.readouterr().err


def test_the_committed_scripts_are_what_golden_gives(capsys: pytest.CaptureFixture[str]) -> None:
    golden = str(ROOT / "golden" / "search_params.json")
    assert main(["generate", "--all", "--check", "--golden", golden, "-o", str(ROOT / "gt_code")]) == 0
    assert "are what golden gives" in capsys.readouterr().out
