"""The gate through pytest, on a real pipeline: it passes what is unchanged, and names what was broken."""

from __future__ import annotations

import json
import re
import shutil
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType

import faults
import pytest
from entries import MET
from searches import SMALL_OPTIONS, SmallSearch, embedded_folder, run_here
from timings import FULL, SHALLOW, STEADY, SteadyClock, machines_clock

from pytest_diffaccel.gate.environments import Comparison
from pytest_diffaccel.matrix import Cell
from pytest_diffaccel.records.gate_sessions import read_references
from pytest_diffaccel.records.golden import dump_entries
from pytest_diffaccel.records.golden_file import read_environments, read_golden
from pytest_diffaccel.records.golden_key import GoldenKey
from pytest_diffaccel.records.golden_parts import GoldenMetric
from pytest_diffaccel.report.gate_report import BROKE_OFF, NOTHING_MEASURED, REFUSED, REGRESSED

DEEPCACHE = "SD1.5-DDIM-20-DeepCache-cache_interval=2,cache_branch_id=0"
OPTIONS = ("--gate", "--search-targets", "deepcache")
#: Lines of a conftest.py, for processes of their own.
QUICK = """
import faults
faults.judge_quickly()
"""
UNCHANGED: Mapping[str, float] = MappingProxyType({})
#: Lines of a conftest.py: a metric of one's own.
BRIGHTNESS = """
from pytest_diffaccel.measure.metrics.base import Metric

class Brightness(Metric):
    name, higher_is_better, needs_references = "brightness", True, False

    def score(self, images, references, prompts, device):
        return [sum(image.convert("L").histogram()[128:]) / 1024 + 1.0 for image in images]

def pytest_diffaccel_metrics(registry):
    registry.register(Brightness())
"""


@pytest.fixture(scope="session")
def gated_folder(finished_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a golden DeepCache winner, and the gate's reference of it by a steady clock."""
    folder = tmp_path_factory.mktemp("gated") / "folder"
    shutil.copytree(finished_folder, folder, ignore=shutil.ignore_patterns("__pycache__"))
    golden = folder / "golden" / "search_params.json"
    (environment,) = read_environments(golden)
    entry = replace(
        MET,
        speedup=1.5,
        speedup_ci95=(1.2, 1.9),
        wall_speedup=1.5,
        wall_speedup_ci95=(1.2, 1.9),
        lpips=0.01,
        lpips_ci95=(0.0, 0.02),
        num_samples=1,
        batch_size=1,
        environment=environment,
    )
    found = {GoldenKey(Cell("SD1.5", "DDIM", 20), "DeepCache", target): entry for target in (1.2, 1.5)}
    golden.write_text(dump_entries(found), encoding="utf-8")
    try:
        faults.judge_quickly()
        SteadyClock(faults.patches)
        assert run_here(folder, "benches", *SMALL_OPTIONS, *OPTIONS, "--update-golden") == 0
    finally:
        faults.patches.undo()
    return folder


class Gate:
    """Runs the gate in a copy of the folder."""

    def __init__(self, search: SmallSearch, folder: Path) -> None:
        self.path = search.path
        self._search = search
        for name in (".diffaccel", "golden"):
            shutil.copytree(folder / name, search.path / name)
        self.golden = search.golden

    @property
    def subject(self) -> str:
        """The winner's among the references."""
        return next(name for name in read_references(self.golden) if name.endswith(DEEPCACHE))

    def add_to_conftest(self, text: str) -> None:
        """More lines of the folder's conftest.py."""
        self._search.add_to_conftest(text)

    def run(
        self,
        *options: str,
        fault: Callable[[], object] = lambda: None,
        takes: Mapping[str, float] = UNCHANGED,
        most: int = 24,
        is_steady: bool = True,
    ) -> pytest.RunResult:
        """In this process.

        Args:
            options: of pytest.
            fault: breaks something for this run.
            takes: how many times as long as before a step of a kind takes, by a steady clock.
            most: figures of a case.
            is_steady: whether there is one, and not the machine's.
        """
        try:
            faults.judge_quickly(most)
            if is_steady:
                clock = SteadyClock(faults.patches)
                clock.step_s |= {kind: factor * clock.step_s[kind] for kind, factor in takes.items()}
            else:
                machines_clock(faults.patches)
            fault()
            return self._search.run(*OPTIONS, *options)
        finally:
            faults.patches.undo()

    def run_apart(self, *options: str) -> pytest.RunResult:
        """In processes of its own, by a steady clock."""
        self._search.add_to_conftest(QUICK + STEADY)
        return self._search.run_apart(*OPTIONS, *options)


@pytest.fixture
def gate(small_search: SmallSearch, gated_folder: Path, one_pipeline: None) -> Gate:
    return Gate(small_search, gated_folder)


def test_what_is_unchanged_passes_and_reports_its_figures(gate: Gate) -> None:
    golden = gate.golden.read_bytes()
    result = gate.run("--junitxml", "junit.xml", "--gate-slowdown", "20%", "--benchmark-json", "times.json")
    assert result.ret == 0
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(
        [
            "collected 2 items",
            "diffaccel gate: 2 cases of golden/search_params.json, models: models.toml; slowdowns of 20.0%*",
            f"* {DEEPCACHE}: *speed *% [[]*",
            "gate: * of 2",
        ]
    )
    cases = ElementTree.parse(gate.path / "junit.xml").iter("testcase")
    properties = [{part.get("name"): part.get("value") for part in case.iter("property")} for case in cases]
    (winner,) = (one for one in properties if "speed_change" in one and one["gate_status"] and "lpips" in one)
    assert float(winner["speedup"] or 0) > 1
    assert winner["quality_status"] == "ok"
    assert float(winner["quality_change"] or 1) == pytest.approx(0, abs=1e-4)
    timed = json.loads((gate.path / "times.json").read_text(encoding="utf-8"))["benchmarks"]
    (own,) = (one for one in timed if one["name"] == f"test_gate[{DEEPCACHE}]")
    assert own["stats"]["rounds"] == int(float(winner["blocks"] or 0))
    assert own["params"]["cache_interval"] == 2
    assert own["extra_info"]["gate_status"] == winner["gate_status"]
    assert gate.golden.read_bytes() == golden


def test_each_metric_that_is_named_is_judged_and_recorded(gate: Gate) -> None:
    """A reference of today knows LPIPS alone; a metric is recorded when it is named, and judged from then on."""
    gate.add_to_conftest(BRIGHTNESS)
    named = [part for name in ("psnr", "clip_score", "brightness") for part in ("--gate-quality", f"{name}=2%")]
    alone = ("-k", "DeepCache")
    asked = (*alone, *named, "--clip-model", "embedded")
    record = "record references while all is well: pytest benches --gate --update-golden"
    chosen = "--pipe SD1.5 --sched DDIM --steps 20 --search-targets Echo --search-targets deepcache"
    fix = f"{record} {' '.join(named)} {chosen} --models models.toml --clip-model embedded"
    golden = gate.golden.read_text(encoding="utf-8")
    with_metrics = {"psnr": GoldenMetric(60.0), "clip_score": GoldenMetric(60.0)}
    known = {key: replace(entry, metrics=with_metrics) for key, entry in read_golden(gate.golden).items()}
    gate.golden.write_text(dump_entries(known), encoding="utf-8")
    result = gate.run(*asked)
    assert result.ret == REGRESSED
    result.stdout.fnmatch_lines(
        [
            f"diffaccel gate: neither references nor golden hold clip_score of 1 winner, brightness of 1 winner; {fix}",
            "  quality ok: +0.0%: LPIPS * equal to the last digit",
            "  quality by psnr regressed: -2*: psnr * dB instead of 60 dB (*",
            "  quality by clip_score inconclusive: *; the references hold no clip_score",
            f"  it takes: {fix}",
        ]
    )
    decided = {key: replace(entry, quality="psnr") for key, entry in known.items()}
    gate.golden.write_text(dump_entries(decided), encoding="utf-8")
    result = gate.run(*alone)
    result.stdout.fnmatch_lines(["  quality by psnr regressed: -2*: psnr * dB instead of 60 dB (*"])
    by_brightest = {"metrics": {"brightest": GoldenMetric(60.0)}, "quality": "brightest"}
    unknown = {key: replace(entry, **by_brightest) for key, entry in decided.items()}
    gate.golden.write_text(dump_entries(unknown), encoding="utf-8")
    gate.run(*alone).stderr.fnmatch_lines(["*was decided by brightest, which is no metric here: register it*"])

    gate.golden.write_text(golden, encoding="utf-8")
    assert gate.run("--update-golden", *asked).ret == 0
    before, after = read_references(gate.golden)[gate.subject]
    assert before.metrics == {}
    assert after.metrics.keys() == {"psnr", "clip_score", "brightness"}
    assert after.metrics["clip_score"].identity.startswith("clip_score (embedded stand-in, not CLIP, ")
    assert len(after.metrics["psnr"].values) == 1

    moved = partial(faults.other_branch, 2)
    result = gate.run("--junitxml", "junit.xml", "--diffaccel-log", "cases.jsonl", *asked, fault=moved)
    assert result.ret == REGRESSED
    result.stdout.fnmatch_lines(
        [
            f"regressed * {DEEPCACHE}: *quality by psnr -*%, *quality by brightness +0.0% *",
            "  quality by psnr regressed: -*% [[]*: psnr * dB instead of * dB (*",
            "  quality by clip_score ok: +0.0%: clip_score * equal to the last digit",
            "gate: 1 regressed of 1",
        ]
    )
    (case,) = ElementTree.parse(gate.path / "junit.xml").iter("testcase")
    properties = {part.get("name"): part.get("value") for part in case.iter("property")}
    assert properties["metric_psnr_status"] == "regressed"
    assert float(properties["metric_psnr_change"] or 0) < -0.02
    assert (properties["metric_brightness_change"], properties["quality_status"]) == ("0", "regressed")
    assert float(properties["metric_psnr"] or 0) < after.metrics["psnr"].values[0]
    (line,) = (gate.path / "cases.jsonl").read_text(encoding="utf-8").splitlines()
    findings = json.loads(line)["verdict"]["findings"]
    assert [one["metric"] for one in findings] == ["", "psnr", "clip_score", "brightness", ""]


def test_a_gpus_own_time_and_its_hosts_are_told_apart(gate: Gate) -> None:
    """On a GPU that is made up, since this machine has none: what it says of steps is all that differs."""
    assert gate.run("--update-golden", "--fresh", fault=faults.two_clocks).ret == 0
    sessions = [one for found in read_references(gate.golden).values() for one in found]
    assert {one.clock for one in sessions} == {"device"}
    (host,) = (one.host for one in sessions if one.host)
    assert host.standard_error > 3 * min(one.standard_error for one in sessions)
    result = gate.run("--junitxml", "junit.xml", fault=faults.two_clocks)
    assert result.ret == 0
    result.stdout.fnmatch_lines(
        [
            "*a slowdown of 3.0% by device time can be shown of 1 of 1 winner*",
            "*a slowdown of 15.0% by host time can be shown of 1 of 1 winner*",
            f"ok * {DEEPCACHE}: *speed *host *",
            "*launch-bound: the GPU was busy for 50% of a run*",
            "gate: 2 ok of 2",
        ]
    )
    figures = (gate.path / "junit.xml").read_text(encoding="utf-8")
    assert re.search(r'name="host_speedup" value="1\.\d+"', figures)
    result = gate.run(fault=partial(faults.two_clocks, device=1.06))
    assert result.ret == REGRESSED
    # Its line begins with the verdict: pytest's letter is not before it.
    result.stdout.fnmatch_lines(["regressed *", "  speed regressed: *x instead of *x of device time (-5.*"])
    result = gate.run(fault=partial(faults.two_clocks, host=1.3))
    assert result.ret == 0
    result.stdout.fnmatch_lines(["  host warning: *of host time (-2*", "warning: 1 case became slower in a way*"])
    assert gate.run("--gate-host-fails", fault=partial(faults.two_clocks, host=1.3)).ret == REGRESSED


@pytest.mark.slow
def test_workers_judge_a_pipe_each_and_the_controller_records(gate: Gate) -> None:
    """Two pipes on two workers, which take turns in timing; golden does not know the second one's environment."""
    models = gate.path / "models.toml"
    model = f'"SDXL" = {{ path = "{embedded_folder("SDXL")}", height = 32, width = 32, guidance_scale = 5.0 }}'
    models.write_text(models.read_text(encoding="utf-8") + model, encoding="utf-8")
    golden = read_golden(gate.golden)
    unknown = {"environment": "0" * 12, "lpips": 0.5, "lpips_ci95": (0.0, 1.0)}
    of_sdxl = {
        replace(key, cell=replace(key.cell, pipe="SDXL")): replace(entry, **unknown) for key, entry in golden.items()
    }
    gate.golden.write_text(dump_entries({**golden, **of_sdxl}), encoding="utf-8")
    result = gate.run_apart("--pipe", "SDXL", "-n", "2", "--update-golden", "-v")
    assert result.ret == 0
    result.assert_outcomes(passed=4)
    result.stdout.fnmatch_lines(["gate: * of 4", "recorded: 4 sessions in golden/gate.json*"])
    lines = [line for line in result.outlines if line.startswith("[gw") and "test_gate[" in line]
    workers = {pipe: {line.split()[0] for line in lines if f"[{pipe}-" in line} for pipe in ("SD1.5", "SDXL")}
    assert sorted(map(len, workers.values())) == [1, 1], lines
    assert workers["SD1.5"] != workers["SDXL"]


def test_a_slower_accelerator_is_named(gate: Gate) -> None:
    result = gate.run(takes={FULL: 1.5, SHALLOW: 1.5})
    assert result.ret == REGRESSED
    result.stdout.fnmatch_lines(["speed regressed: *x instead of *x (-*", "gate: *regressed*of 2"])


def test_a_slower_case_is_judged_again_in_another_process_by_lf(gate: Gate) -> None:
    """A whole process may be slower though nothing changed; what is slower for a reason is so in every one."""
    slower = {FULL: 1.5, SHALLOW: 1.5}
    first = gate.run("-p", "cacheprovider", takes=slower)
    assert first.ret == REGRESSED
    first.stdout.fnmatch_lines(["next: judge it in another process before you believe it: the same command with --lf*"])
    again = gate.run("-p", "cacheprovider", "--lf", takes=slower)
    assert again.ret == REGRESSED
    again.stdout.fnmatch_lines(["gate: 1 regressed of 1"])
    unchanged = gate.run("-p", "cacheprovider", "--lf")
    assert unchanged.ret == 0
    unchanged.stdout.fnmatch_lines(["gate: 1 ok of 1"])


@pytest.mark.parametrize(("chosen", "is_told"), [("DeepCache", True), ("baseline", False)])
def test_only_chosen_cases_share_the_budget(gate: Gate, chosen: str, is_told: bool) -> None:
    """The first lines tell of what the budget shows of those."""
    result = gate.run("-k", chosen)
    assert result.ret in (0, NOTHING_MEASURED)
    told = [line for line in result.outlines if "a slowdown of 3" in line]
    assert bool(told) == is_told, result.outlines


@pytest.mark.slow
def test_a_slower_accelerator_is_named_by_the_machines_clock(gate: Gate) -> None:
    """The one test for which no clock can stand in; other work on the machine is no match for sleeps of this size."""
    of_the_winner = ("-k", "DeepCache")
    assert gate.run(*of_the_winner, "--update-golden", "--fresh", most=16, is_steady=False).ret == 0
    slow = partial(faults.slow_steps, faults.DeepCache, 0.1)
    result = gate.run(*of_the_winner, fault=slow, most=16, is_steady=False)
    assert result.ret == REGRESSED
    result.stdout.fnmatch_lines(["speed regressed: *x instead of *x (-*", "gate: 1 regressed of 1"])


@pytest.mark.parametrize(
    ("fault", "named"),
    [
        (partial(faults.other_branch, 2), "* regressed: *"),
        (faults.one_step_less, "function regressed: 19 denoiser calls for 20 steps"),
        (faults.one_step_more, "function regressed: DDIMScheduler calls the denoiser 21 times in 20 steps*"),
        (partial(faults.no_effect, faults.DeepCache), "function regressed: *had no effect*"),
    ],
    ids=["wrong branch", "a step less", "a step more", "no effect"],
)
def test_a_fault_is_named(gate: Gate, fault: Callable[[], None], named: str) -> None:
    result = gate.run(fault=fault)
    assert result.ret == REGRESSED
    result.stdout.fnmatch_lines([named, "gate: *regressed*of 2"])


@pytest.mark.parametrize(
    ("chosen", "exit_code", "said"),
    [
        (
            (),
            REGRESSED,
            [
                "  quality regressed: the unaccelerated pipeline draws other pictures*",
                "gate: 1 regressed, 1 refused of 2",
            ],
        ),
        (("-k", "DeepCache"), REFUSED, ["gate: 1 refused of 1"]),
    ],
    ids=["all cases", "the winner alone"],
)
def test_winners_of_a_broken_pipeline_are_not_compared(
    gate: Gate, chosen: tuple[str, ...], exit_code: int, said: list[str]
) -> None:
    """How far a winner moves pictures that were never recorded says nothing, and golden must not be made of them."""
    result = gate.run(*chosen, fault=faults.corrupt_weight)
    assert result.ret == exit_code
    result.stdout.fnmatch_lines_random(
        [
            "  quality refused: *SD1.5-DDIM-20-baseline*",
            *said,
            "next: look at the unaccelerated pipeline*SD1.5-DDIM-20:*",
        ]
    )
    result.stdout.no_fnmatch_line("improved *")
    result.stdout.no_fnmatch_line("*--fresh*")
    result.stdout.no_fnmatch_line("*--gate-budget*")


def test_a_broken_pipeline_is_not_recorded(gate: Gate) -> None:
    before = read_references(gate.golden)
    assert gate.run("--update-golden", fault=faults.corrupt_weight).ret == REGRESSED
    assert read_references(gate.golden) == before


@pytest.mark.slow
def test_a_pipeline_that_draws_nothing_fails_and_is_never_recorded(gate: Gate) -> None:
    """Not even where nothing tells what it drew: every winner would look perfect."""
    before = read_references(gate.golden)
    result = gate.run("--update-golden", "--fresh", fault=faults.black_pictures)
    assert result.ret == REGRESSED
    result.stdout.fnmatch_lines(
        [
            "quality regressed: the unaccelerated pipeline draws nothing: *one colour*a VAE that*",
            "gate: 2 regressed of 2",
        ]
    )
    assert read_references(gate.golden) == before


@pytest.mark.slow
def test_a_winner_that_draws_nothing_fails(gate: Gate) -> None:
    result = gate.run(fault=partial(faults.overflow, faults.DeepCache))
    assert result.ret == REGRESSED
    result.stdout.fnmatch_lines(
        ["quality regressed: these parameters draw nothing: *one colour*", "gate: * regressed of 2"]
    )


@pytest.mark.slow
def test_a_change_that_is_wanted_is_recorded_in_place_of_what_was(gate: Gate) -> None:
    before = read_references(gate.golden)
    assert gate.run("--update-golden", "--fresh", fault=faults.corrupt_weight).ret == 0
    after = read_references(gate.golden)
    assert {len(sessions) for sessions in after.values()} == {1}
    assert all(after[subject][0].lpips != sessions[0].lpips for subject, sessions in before.items())


def test_a_case_that_breaks_off_is_no_regression(gate: Gate) -> None:
    result = gate.run(fault=faults.out_of_memory)
    assert result.ret == BROKE_OFF
    result.stdout.fnmatch_lines(["*no memory for a picture*", "gate: 2 broke off of 2"])


def test_a_slower_baseline_is_no_improvement(gate: Gate) -> None:
    result = gate.run(takes={"plain": 3.0})
    assert result.ret == 0
    result.stdout.fnmatch_lines(["*an unaccelerated run takes * s, +* of the recorded time*"])
    result.stdout.no_fnmatch_line("improved *")
    result.stdout.no_fnmatch_line("next: golden is out of date*")


def test_another_machine_is_refused_and_another_library_is_a_likely_cause(gate: Gate) -> None:
    environments = gate.golden.with_name("environments.json")
    (known,) = read_environments(gate.golden).values()
    for changed, code, said in (
        (replace(known, device="NVIDIA H200"), REFUSED, "*NVIDIA H200 -> *Give the --golden file of this machine*"),
        (replace(known, versions={**known.versions, "torch": "1.0"}), 0, "*since golden was recorded: torch 1.0 -> *"),
    ):
        environments.write_text(json.dumps({changed.id: changed.to_json()}), encoding="utf-8")
        for name in ("search_params.json", "gate.json"):
            file = gate.golden.with_name(name)
            file.write_text(file.read_text(encoding="utf-8").replace(known.id, changed.id), encoding="utf-8")
        result = gate.run("--gate-slowdown", "50%")
        assert result.ret == code
        result.stdout.fnmatch_lines([said])
        if code == REFUSED:  # both cases for one reason, which stands there once
            result.stdout.fnmatch_lines(["environment refused, as SD1.5-DDIM-20-* says"])
        known = changed


def test_nothing_to_judge_is_no_success(gate: Gate) -> None:
    gate.golden.unlink()
    result = gate.run()
    assert result.ret == NOTHING_MEASURED
    result.stdout.fnmatch_lines(["diffaccel gate: golden/search_params.json holds no winner*record some: pytest*"])


def test_a_choice_of_nothing_says_so(gate: Gate) -> None:
    result = gate.run("-k", "nothing")
    result.stdout.fnmatch_lines(
        ["diffaccel gate: none of the winners in * is among the chosen tests; *: pytest *--gate*"]
    )


def test_an_empty_budget_is_inconclusive_and_fails_when_strict(gate: Gate) -> None:
    assert gate.run("--gate-budget", "0.000001s").ret == NOTHING_MEASURED
    result = gate.run("--gate-budget", "0.000001s", "--gate-strict")
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(["*the budget of 0 s was spent before this case*"])


def test_a_reference_is_recorded_once_per_session(gate: Gate) -> None:
    references = read_references(gate.golden)
    assert {len(sessions) for sessions in references.values()} == {1}
    result = gate.run("--update-golden")
    result.stdout.fnmatch_lines(["recorded: 2 sessions in golden/gate.json*"])
    assert re.search(r"speed-ups are known to \d+\.\d% in the median, \d+\.\d% at worst", result.stdout.str())
    references = read_references(gate.golden)
    assert {len(sessions) for sessions in references.values()} == {2}
    assert read_golden(gate.golden)
    # Only a winner's pictures have a control, which a run on the same build leaves out.
    for name, (_, session) in references.items():
        assert (session.control_s or 0.0) > 0.0 if name == gate.subject else session.control_s == 0.0
        assert session.beside_s is not None


def test_equal_environments_have_no_causes(gated_folder: Path) -> None:
    (known,) = read_environments(gated_folder / "golden" / "search_params.json").values()
    assert Comparison.between(known, known) == Comparison((), ())
    other = replace(known, image_size=(64, 64), threads=7, weights={**known.weights, "unet": "0" * 64})
    compared = Comparison.between(known, other)
    assert [line.split()[0] for line in compared.refused] == ["unet", "image"]
    assert [line.split()[0] for line in compared.causes] == ["threads"]
