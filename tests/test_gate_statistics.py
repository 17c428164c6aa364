"""The gate's statistics: laws of the sequential test, false alarms and power on simulated clocks, findings in words."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from entries import MET
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from timings import BASELINE, CANDIDATE, FIXED_S, FULL, kernels_of_h100, noisy_block, run, speedup_of

from pytest_diffaccel.gate import pictures, timing
from pytest_diffaccel.gate.case_plan import (
    Budget,
    GateCase,
    affordable,
    design,
    power,
    recordable,
    speed_share,
)
from pytest_diffaccel.gate.clocks import DEVICE, HOST, WALL, Clock
from pytest_diffaccel.gate.figures import Figure, FirstSteps, fast_seconds, later_steps, steps_that_tell
from pytest_diffaccel.gate.judged_losses import (
    Scores,
    explain_by_pictures,
    hidden_loss,
    not_recorded,
    pictures_moved,
    quality_finding,
    same_pictures,
)
from pytest_diffaccel.gate.judged_speed import Judged, SpeedJudge, beside_others
from pytest_diffaccel.gate.prospects import Prospect, in_words, least_to_record_s, prospects, seconds_beside
from pytest_diffaccel.gate.reference import Reference, learnt_session_sd
from pytest_diffaccel.gate.sequential import (
    IMPROVED,
    LOOKS,
    OK,
    OPEN,
    REGRESSED,
    Design,
    Estimate,
    lasting_sd,
    robust_mean,
)
from pytest_diffaccel.gate.speed import Timed, explain_by_times, slower_baseline, speed_finding, time_until_certain
from pytest_diffaccel.gate.timing import CaseTimer, GpuUse, PlainRuns
from pytest_diffaccel.gate.verdict import Finding, Verdict
from pytest_diffaccel.matrix import Candidate, Cell
from pytest_diffaccel.measure.busy_clock import Activity, KernelTimes, MarkersLost, busy_timing
from pytest_diffaccel.measure.measurement import Block, RunTiming
from pytest_diffaccel.measure.metrics.base import Metric
from pytest_diffaccel.measure.metrics.lpips import Lpips
from pytest_diffaccel.measure.metrics.psnr import Psnr
from pytest_diffaccel.measure.step_kinds import RunTimes
from pytest_diffaccel.records.gate_sessions import GateSession, MetricSamples, Speed, add_sessions, read_references
from pytest_diffaccel.settings.gate_options import GateSettings
from pytest_diffaccel.settings.option_types import duration

CASES = 50
DESIGN = Design(32, math.log1p(0.03), speed_share(CASES), 0.002)
KNOWN = Reference(math.log(1.7), 0.003, 30.0, 0.002, 1.0, 0.014, "a test")
SESSION = GateSession(0.5, 0.002, 20.0, 0.01, 2.0, (0.01,), 0, "abc", "0123456789ab")
numbers = st.floats(-1.0, 1.0)
figures = st.lists(numbers, min_size=5, max_size=40).map(np.array)


def decided(values: np.ndarray, reference: Reference = KNOWN, design: Design = DESIGN) -> int:
    return int(design.decide(values, reference.estimate))


@given(st.integers(5, 200), st.floats(1e-6, 0.5))
def test_looks_spend_the_error_rate_and_no_more(most: int, rate: float) -> None:
    design = replace(DESIGN, most=most)
    portions = [design.portion(look, rate) for look in design.looks]
    assert sum(portions) == pytest.approx(rate)
    assert min(portions) > 0
    assert design.looks[-1] == most
    assert set(design.looks[:-1]) <= set(LOOKS)


@given(figures, numbers)
def test_a_mean_moves_with_its_values_and_its_error_does_not(values: np.ndarray, shift: float) -> None:
    before, after = robust_mean(values), robust_mean(values + shift)
    assert after.mean == pytest.approx(before.mean + shift, abs=1e-9)
    assert after.error == pytest.approx(before.error, abs=1e-6)
    assert values.min() - 1e-12 <= before.mean <= values.max() + 1e-12


def test_figures_that_follow_each_other_widen_the_error() -> None:
    noise = np.random.default_rng(0).normal(size=64)
    assert robust_mean(np.sort(noise)).error > 2 * robust_mean(noise).error


def test_a_figure_is_the_speedup_of_undisturbed_steps() -> None:
    """Every second step takes twice as long in the candidate's runs only; and one of four runs three times as long."""
    disturbed = [2.0 if place % 4 < 2 else 1.0 for place in range(len(CANDIDATE) + 1)]
    blocks = [Block(run(BASELINE), (run(CANDIDATE, disturbed),)) for _ in range(4)]
    truth = math.log(speedup_of(CANDIDATE))
    assert Figure.from_blocks(blocks).log_speedup == pytest.approx(truth, abs=0.14)
    slow = [3.0] * len(CANDIDATE) + [1.0]
    times = RunTimes.of([(run(CANDIDATE),), (run(CANDIDATE),), (run(CANDIDATE),), (run(CANDIDATE, slow),)])
    assert fast_seconds(times) == pytest.approx(run(CANDIDATE).total_s)


@given(st.integers(0, 2**32 - 1), st.integers(1, 5))
def test_a_figure_lies_near_the_truth_on_a_quiet_machine(seed: int, count: int) -> None:
    generator = np.random.default_rng(seed)
    blocks = [noisy_block(generator, CANDIDATE, drift_sd=0.1, run_sd=0.003, step_sd=0.005) for _ in range(count)]
    assert Figure.from_blocks(blocks).log_speedup == pytest.approx(math.log(speedup_of(CANDIDATE)), abs=0.03)


def _first_steps(kinds: Sequence[str], noise: float = 0.0) -> RunTiming:
    """The first steps that tell; the very first one takes longer."""
    first = kinds[: steps_that_tell(kinds)]
    return run(first, [1.3 + noise, *[1.0 + noise] * len(first)])


@pytest.mark.parametrize(
    ("kinds", "steps"),
    [
        (BASELINE, 3),
        (CANDIDATE, 7),
        (("a", "b", "a", "a"), 4),  # b comes once, and after it a has not come twice
        (("a", "b", "b", "b", "b"), 3),  # a comes first only
        (("a",), 1),
    ],
)
def test_few_steps_tell_what_all_cost(kinds: tuple[str, ...], steps: int) -> None:
    assert steps_that_tell(kinds) == steps


def test_a_figure_of_first_steps_is_the_speedup_of_whole_runs() -> None:
    blocks = [Block(_first_steps(BASELINE), (_first_steps(CANDIDATE),))]
    baseline = FirstSteps(BASELINE, FIXED_S)
    figure = Figure.from_first_steps(blocks, baseline, FirstSteps(CANDIDATE, FIXED_S))
    assert figure.log_speedup == pytest.approx(math.log(speedup_of(CANDIDATE)))
    assert figure.baseline_s == pytest.approx(run(BASELINE).total_s)
    # A method that does not skip any more after its first steps is as slow as its whole runs show.
    whole = run(CANDIDATE[:7] + (FULL,) * 3)
    as_told = replace(whole, kinds=CANDIDATE)
    assert later_steps(as_told) > 1.1
    assert later_steps(run(CANDIDATE, [1.004] * 7 + [1.0] * 4)) == 1
    figure = Figure.from_first_steps(blocks, baseline, FirstSteps(CANDIDATE, FIXED_S, later_steps(as_told)))
    assert figure.log_speedup == pytest.approx(math.log(run(BASELINE).total_s / whole.total_s))


def test_a_baseline_that_takes_longer_is_a_warning_where_the_device_alone_decides() -> None:
    timed = Timed((Figure(0.0, 1.05),), (), OK)
    found = slower_baseline(timed, replace(KNOWN, baseline_s=1.0), 0.03)
    assert found is not None
    assert (found.subject, found.status) == ("baseline", "warning")
    assert "1.050 s of device time instead of 1.000 s (+5.0%)" in found.text
    assert slower_baseline(timed, replace(KNOWN, baseline_s=1.03), 0.03) is None
    assert slower_baseline(timed, replace(KNOWN, baseline_s=None), 0.03) is None


def test_many_cases_at_once_are_judged_as_each_alone() -> None:
    generator = np.random.default_rng(1)
    many = generator.normal(math.log(1.65), 0.014, (30, 16))
    together = DESIGN.decide(many, KNOWN.estimate)
    assert list(together) == [decided(row) for row in many]
    assert len(set(together)) > 1


def _chances(
    noise: np.ndarray, shift: float, design: Design = DESIGN, reference_error: float = 0.003
) -> dict[int, float]:
    """Shares of decisions after all looks, of cases whose figures have this noise; known reference."""
    found = np.full(len(noise), OPEN)
    reference = Estimate(*(np.array(value) for value in (0.0, reference_error, 30.0)))
    for look in design.looks:
        still = found == OPEN
        found[still] = design.decide(noise[still, :look] + shift, reference)
    return {decision: float((found == decision).mean()) for decision in range(4)}


@pytest.mark.parametrize("kind", ["normal", "heavy-tailed", "skewed"])
def test_few_false_alarms_and_few_misses(kind: str) -> None:
    generator = np.random.default_rng(2)
    shape = (20_000, DESIGN.most)
    noise = {
        "normal": generator.normal(size=shape),
        "heavy-tailed": generator.standard_t(3, shape) / math.sqrt(3),
        "skewed": (generator.lognormal(size=shape) - math.exp(0.5)) / 2.16,
    }[kind] * 0.014
    unchanged, slower = _chances(noise, 0.0), _chances(noise, -math.log1p(0.03))
    # One in 10,000 per case: 2 expected of 20,000 at the most, and 8 has a chance of 1 in 1000.
    assert unchanged[REGRESSED] < 8 / 20_000
    assert slower[REGRESSED] > 0.95
    assert slower[OK] < 0.02


def _slow_host(cases: int, figure_sd: float = 0.047) -> np.ndarray:
    """Figures of sessions on a host that slows launches for seconds and minutes, as the reference's was, too."""
    generator = np.random.default_rng(3)
    lasting = float(lasting_sd(figure_sd, 0.6))
    sessions = generator.normal(0, math.sqrt(2) * lasting, (cases, 1))
    found: np.ndarray = sessions + generator.normal(0, figure_sd, (cases, DESIGN.most))
    return found


def test_a_host_that_slows_whole_sessions_is_no_regression() -> None:
    """Figures that scatter more than a device does tell that other sessions will lie elsewhere."""
    noise, design = _slow_host(20_000), replace(DESIGN, lasting_share=0.6)
    error = math.hypot(0.003, float(lasting_sd(0.047, 0.6)))  # the reference's, see below
    aware = _chances(noise, 0.0, design, error)
    assert aware[REGRESSED] < 8 / 20_000
    assert aware[IMPROVED] < 0.02
    assert _chances(noise, 0.0)[REGRESSED] > 0.01
    # What is gross is shown all the same.
    assert _chances(noise[:2000], -math.log1p(0.5), design, error)[REGRESSED] > 0.99


@given(figures, numbers)
def test_only_scatter_beyond_a_quiet_devices_counts_for_the_session(values: np.ndarray, shift: float) -> None:
    aware = replace(DESIGN, lasting_share=0.6)
    quiet = 0.019 * (values - values.mean()) / max(float(values.std()), 1e-9) + shift
    # The largest deviation that a sample of so many can show beside the population's.
    quiet *= math.sqrt((len(quiet) - 1) / len(quiet))
    changes = [design.change(quiet, KNOWN.estimate) for design in (aware, DESIGN)]
    assert changes[0].error == changes[1].error
    wide, narrow = (float(design.change(values, KNOWN.estimate).error) for design in (aware, DESIGN))
    assert wide >= narrow
    assert aware.power(0.047, 0.003) < DESIGN.power(0.047, 0.003)
    assert aware.power(0.014, 0.003) == DESIGN.power(0.014, 0.003)


def test_a_reference_of_figures_that_scatter_is_known_less_well() -> None:
    scattered = replace(SESSION, figure_sd=0.05)
    blind, aware = (Reference.from_sessions([scattered], 0.002, share).error for share in (0.0, 0.6))
    assert aware == pytest.approx(math.hypot(blind, float(lasting_sd(0.05, 0.6))))
    quiet = (Reference.from_sessions([SESSION], 0.002, share) for share in (0.0, 0.6))
    assert len({change.error for change in quiet}) == 1


def _cases(*speedups: float) -> list[GateCase]:
    """A baseline and winners that are so much faster, in the gate's order."""
    cell = Cell("SD1.5", "DDIM", 20)
    entries = [replace(MET, speedup=speedup, speedup_ci95=(speedup - 0.1, speedup + 0.1)) for speedup in speedups]
    points = [{"DeepCache": {"cache_interval": 2 + number, "cache_branch_id": 0}} for number in range(len(speedups))]
    winners = [
        GateCase(cell, Candidate(cell, "DeepCache", point), entry, ())
        for point, entry in zip(points, entries, strict=True)
    ]
    return [GateCase(cell, None, MET, ()), *winners]


def test_the_budget_keeps_a_first_look_for_every_later_winner() -> None:
    baseline, fast, slow = _cases(2.0, 1.0)
    # Blocks of 2.0, 1.5 and 2 seconds, four a figure: first looks of five figures take 40, 30 and 40 s.
    assert affordable(baseline, [fast, slow], 210, 2.0, 4) == 5
    assert affordable(baseline, [fast, slow], 168, 2.0, 4) == 0
    assert affordable(fast, [slow], 100, 1.5, 4) == 10
    assert affordable(fast, [slow], 50, 1.5, 4) == 5
    assert affordable(slow, [], 50, 2.0, 4) == 6
    assert affordable(slow, [], 20, 2.0, 4) == 2
    # So does what it takes beside timing, as far as that leaves the earlier one its own first look.
    assert affordable(baseline, [fast, slow], 230, 2.0, 4, 20.0) == 5
    assert affordable(fast, [slow], 120, 1.5, 4, 20.0) == 10
    assert affordable(fast, [slow], 70, 1.5, 4, 60.0) == 5


def test_loading_does_not_count_for_the_budget() -> None:
    """A model that takes long to load must not leave its winners without a look."""
    now = [5.0]
    budget = Budget(60.0, lambda: now[0])
    with budget.start():
        now[0] += 45.0
    assert budget.left_s == 60.0
    now[0] += 10.0
    assert budget.left_s == 50.0


def test_without_time_for_a_first_look_there_is_no_plan() -> None:
    _, winner = _cases(2.0)
    assert design(winner, KNOWN, WALL["cpu"], CASES, 0.03, 4) is None
    few, many = (design(winner, KNOWN, WALL["cuda"], CASES, 0.03, figures) for figures in (5, 40))
    assert few is not None
    assert many is not None
    assert power(few, KNOWN, WALL["cuda"]) < 0.9 < power(many, KNOWN, WALL["cuda"])


def test_recording_shares_the_budget_by_cost_and_takes_a_first_look_at_the_least() -> None:
    baseline, fast, slow = _cases(2.0, 1.0)
    # Blocks of 2.0, 1.5 and 2 seconds, four a figure: together 22 s for one figure each.
    assert recordable(baseline, [fast, slow], 220, 2.0, 4) == 10
    assert recordable(fast, [slow], 140, 1.5, 4) == 10
    assert recordable(slow, [], 80, 2.0, 4) == 10
    assert recordable(slow, [], -5, 2.0, 4) == LOOKS[0]
    assert recordable(fast, [slow], 160, 1.5, 4, 20.0) == 10
    made = design(fast, KNOWN, WALL["cpu"], CASES, 0.03, 10, recording=True)
    everything = design(fast, KNOWN, WALL["cpu"], CASES, 0.03, 1000, recording=True)
    assert made is not None
    assert everything is not None
    assert (made.most, everything.most) == (10, WALL["cpu"].most)


def test_a_slowdown_too_small_to_matter_is_ok() -> None:
    noise = np.random.default_rng(3).normal(0, 0.001, 16)
    assert decided(noise + math.log(1.7 / 1.012)) == OK


def test_heavy_noise_is_inconclusive() -> None:
    noise = np.random.default_rng(4).normal(0, 0.2, DESIGN.most)
    assert decided(noise + math.log(1.7)) == OPEN


def _timed(factor: float, seed: int = 0, *, noise: float = 0.01, most: int = 32) -> tuple[Finding, Finding, str]:
    """Findings on simulated blocks whose candidate is slower by ``factor``, before and after absolute times."""
    generator = np.random.default_rng(seed)

    def blocks() -> Sequence[Block]:
        made = [noisy_block(generator, CANDIDATE, drift_sd=0.0, run_sd=noise, step_sd=0.005) for _ in range(64)]
        return [
            replace(block, runs=tuple(replace(run, **_slower(run, factor)) for run in block.runs)) for block in made
        ]

    plain = noisy_block(generator, CANDIDATE, drift_sd=0.0, run_sd=0.0, step_sd=0.0)
    figure = Figure.from_blocks([plain])
    reference = replace(KNOWN, log_speedup=figure.log_speedup, baseline_s=figure.baseline_s)
    design = replace(DESIGN, most=most)
    timed = time_until_certain(iter(blocks()), 1, design, reference)
    finding = speed_finding(timed, design, reference)
    return finding, *explain_by_times(finding, timed, reference)


def _slower(run: object, factor: float) -> dict[str, object]:
    steps = tuple(step * factor for step in run.step_s)  # type: ignore[attr-defined]
    return {"step_s": steps, "total_s": run.total_s * factor}  # type: ignore[attr-defined]


def test_a_slower_candidate_regresses_with_figure_and_interval() -> None:
    finding, *_ = _timed(1.06)
    assert finding.status == "regressed"
    assert finding.change == pytest.approx(-0.057, abs=0.02)
    assert finding.change_ci95 is not None
    assert finding.change_ci95[0] < finding.change < finding.change_ci95[1]
    assert "instead of" in finding.text


def test_an_unchanged_candidate_is_ok_after_few_blocks() -> None:
    finding, *_ = _timed(1.0)
    assert finding.status == "ok"
    assert int(finding.text.split(" blocks")[0].split()[-1]) < 32


def test_inconclusive_says_what_would_have_been_shown() -> None:
    finding, *_ = _timed(1.02, noise=0.1)
    assert finding.status == "inconclusive"
    assert "in 95%" in finding.text


@given(st.lists(st.floats(-0.5, 0.5), min_size=8, max_size=8), st.floats(-1.5, 0.0))
def test_a_slowdown_that_was_not_shown_is_not_said_to_be_shown_in_most_runs(steps: list[float], shift: float) -> None:
    """Also where figures follow each other closely, and say less than their number."""
    design = replace(DESIGN, most=8)
    drifting = KNOWN.log_speedup + shift + np.cumsum(steps) / 2
    timed = Timed(tuple(Figure(value, 1.0) for value in drifting), (), decided(drifting, design=design))
    finding = speed_finding(timed, design, KNOWN)
    assert finding.change is not None
    if finding.status == "inconclusive" and finding.change < 0:
        assert "in 95%" in finding.text
        said = re.search(r"runs, one of ([0-9]+)% in 95%", finding.text)
        assert said is None or float(said[1]) / 100 >= 1 / (1 + finding.change) - 1 - 0.005


def test_a_faster_candidate_improves_and_a_slower_baseline_does_not() -> None:
    finding, explained, note = _timed(1 / 1.15)
    assert finding.status == explained.status == "improved"
    assert "of the recorded time" in note
    slow = Timed((Figure(math.log(1.7 * 1.15), 1.15),), (), IMPROVED)
    explained, note = explain_by_times(replace(finding, change=0.15), slow, KNOWN)
    assert explained.status == "ok"
    assert "unaccelerated pipeline became +15.0% slower" in explained.text
    explained, _ = explain_by_times(finding, slow, replace(KNOWN, baseline_s=None))
    assert explained.status == "ok"


def test_sessions_that_differ_widen_what_a_session_is_expected_to_differ_by() -> None:
    alike = [SESSION, SESSION, SESSION]
    apart = [replace(SESSION, log_speedup=0.5 + shift) for shift in (-0.03, 0.0, 0.03)]
    assert learnt_session_sd([[SESSION]], 0.004) == pytest.approx(0.004)
    assert learnt_session_sd([alike], 0.004) < 0.004 < learnt_session_sd([apart], 0.004)
    # What their figures' scatter explains is not put down to sessions as such.
    scattered = [replace(session, figure_sd=0.05) for session in apart]
    assert learnt_session_sd([scattered], 0.004, 0.6) < learnt_session_sd([scattered], 0.004)
    one, three = (Reference.from_sessions(sessions, 0.004) for sessions in ([SESSION], alike))
    assert three.error < one.error
    assert one.error == pytest.approx(math.hypot(0.002, 0.004))


@pytest.mark.parametrize(
    ("now", "control", "status"),
    [
        ((0.02, 0.04), (0.02, 0.04), "ok"),
        ((0.0202, 0.0404), (0.02021, 0.0404), "ok"),
        ((0.03, 0.05), (0.03001, 0.05001), "regressed"),
        ((0.03, 0.05), (0.05, 0.03), "inconclusive"),
        ((0.0201, 0.04), (0.03, 0.03), "inconclusive"),
        ((0.01, 0.02), (0.01, 0.02), "improved"),
        ((math.nan, 0.02), (0.01, 0.02), "regressed"),
    ],
)
def test_quality_needs_a_loss_that_matters_and_is_no_rounding(
    now: tuple[float, ...], control: tuple[float, ...], status: str
) -> None:
    assert quality_finding(Scores(now, control, (0.02, 0.04)), 0.05, 1e-4).status == status


def test_broken_pictures_are_other_pictures() -> None:
    def said(now: list[float], then: list[float]) -> str:
        return same_pictures(pictures_moved(now, then), 0.05)

    assert not said([0.162, 0.16], [0.16, 0.16])
    assert "moved by 100%" in said([0.0, 0.0], [0.16, 0.16])
    assert said([0.1, 0.2], [0.2, 0.1])
    assert said([math.nan], [0.16])
    assert "say nothing" in said([0.1], [0.0])
    assert pictures_moved([0.1], [0.1, 0.2]) == 0.0


def test_losses_that_are_equal_to_the_last_digit_decide_at_once() -> None:
    """However much rounding might do: it did nothing, since this is the reference's own build."""
    control = (0.09, 0.01)
    assert quality_finding(Scores((0.02, 0.04), control, (0.02, 0.04)), 0.05, 1e-4).status == "ok"
    assert quality_finding(Scores((0.02, 0.04), control, (0.03,)), 0.05, 1e-4).status == "ok"
    assert quality_finding(Scores((0.02, 0.04), control, (0.0301,)), 0.05, 1e-4).status == "inconclusive"
    assert quality_finding(Scores((0.04, 0.02), control, (0.02, 0.04)), 0.05, 1e-4).status == "inconclusive"


@pytest.mark.parametrize(
    ("then", "recording", "has_control"), [(0.0, False, False), (0.0, True, True), (0.01, False, True)]
)
def test_the_control_is_left_out_where_nothing_was_rounded_otherwise(
    monkeypatch: pytest.MonkeyPatch, then: float, recording: bool, has_control: bool
) -> None:
    """On the references' own build it would take as long as the samples, and decide nothing.

    Nor is the first batch made again, which was made when the methods' acts were counted.
    """
    plain = [Image.effect_noise((64, 64), 80.0).convert("RGB") for _ in range(2)]
    made: list[str] = []

    def generate(prompts: Sequence[str], _seeds: Sequence[int]) -> list[Image.Image]:
        made.append(prompts[0])
        return [plain[drawn.index(prompts[0])]]

    drawn = ["red apple", "blue bird"]
    bench: Any = SimpleNamespace(
        pipelines=SimpleNamespace(lock=SimpleNamespace(generating=nullcontext)),
        batches=lambda *_: [SimpleNamespace(prompts=(prompt,), seeds=(0,)) for prompt in drawn],
    )
    generating: Any = generate
    generating.pipeline = SimpleNamespace(device="cpu")
    monkeypatch.setattr(pictures, "nudged_latents", nullcontext)
    known = pictures.CellPictures(plain, lambda: plain, (), 0.0)
    recorded = [(Lpips(), (then, then))]
    (found,), control_s = pictures.scores(
        bench, _cases(2.0)[1], generating, known, recorded, first=plain[:1], recording=recording
    )
    assert (control_s > 0) == has_control
    assert made == ["blue bird", *(drawn if has_control else [])]
    assert found.now == (0.0, 0.0)
    assert found.control == ((0.0, 0.0) if has_control else ())
    assert quality_finding(found, 0.05, 1e-4).status == ("improved" if then else "ok")


@pytest.mark.parametrize(("worse", "status"), [(1.0, "ok"), (1.12, "regressed")])
def test_samples_whose_losses_move_alike_tell_more_than_the_control(worse: float, status: str) -> None:
    generator = np.random.default_rng(0)
    then = generator.uniform(0.02, 0.06, 8)
    now = then * worse + generator.normal(0, 1e-5, 8)
    control = now + generator.normal(0, 0.01, 8)
    assert quality_finding(Scores(tuple(now), tuple(control), tuple(then)), 0.05, 1e-3).status == status
    only_the_mean = Scores(tuple(now), tuple(control), (float(then.mean()),))
    assert quality_finding(only_the_mean, 0.05, 1e-3).status == "inconclusive"


class Error(Metric):
    """A made-up metric of which less is better, and which may be 0 or below."""

    name = "error"
    higher_is_better = False
    needs_references = False

    def score(
        self, images: Sequence[Any], references: Sequence[Any], prompts: Sequence[str], device: str
    ) -> list[float]:
        raise AssertionError("nobody asks it")


@pytest.mark.parametrize(
    ("metric", "then", "now", "status", "change"),
    [
        (Psnr(), (30.0, 32.0), (30.0, 32.0), "ok", 0.0),
        (Psnr(), (30.0, 32.0), (29.9, 31.9), "ok", -0.1 / 31),
        (Psnr(), (30.0, 32.0), (28.0, 30.0), "regressed", -2 / 31),
        (Psnr(), (30.0, 32.0), (33.0, 35.0), "improved", 3 / 31),
        (Psnr(), (31.0,), (30.0001, 32.0001), "ok", 0.0),
        (Psnr(), (31.0,), (28.0, 30.0), "regressed", -2 / 31),
        (Error(), (-2.0, -4.0), (-1.0, -3.0), "regressed", 1 / 3),
        (Error(), (-2.0, -4.0), (-3.0, -5.0), "improved", -1 / 3),
        (Error(), (1.0, -1.0), (1.0, -1.0), "ok", 0.0),
        (Error(), (1.0, -1.0), (3.0, -1.0), "inconclusive", None),
    ],
)
def test_any_metric_is_judged_by_its_own_direction(
    metric: Metric, then: tuple[float, ...], now: tuple[float, ...], status: str, change: float | None
) -> None:
    """The A/A control says that rounding does nothing."""
    found = quality_finding(Scores(now, now, then, metric), 0.05, 1e-4)
    assert (found.status, found.metric) == (status, metric.name)
    assert found.change == (None if change is None else pytest.approx(change))
    assert Verdict((found,)).describe().startswith(f"quality by {metric.name} {status}: ")
    assert f"{metric.name} {np.mean(now):.6g}" in found.text


def test_rounding_hides_the_loss_of_any_metric() -> None:
    now, control = (28.0, 30.0), (32.0, 28.0)
    assert quality_finding(Scores(now, control, (30.0, 32.0), Psnr()), 0.05, 1e-4).status == "inconclusive"
    assert hidden_loss(Scores(now, control, now, Psnr()), 0.05).startswith(
        "under another build rounding may hide a loss of psnr of "
    )


def test_why_a_metric_cannot_be_compared_is_said() -> None:
    assert not_recorded("psnr", [], "psnr") == "the references hold no psnr"
    assert not_recorded("psnr", ["psnr"], "psnr") == "the references hold that of other samples"
    other = not_recorded("clip_score", ["clip_score (A)", "clip_score (B)"], "clip_score (C)")
    assert other == "the references hold that of other weights: clip_score (B) -> clip_score (C)"


def test_references_hold_what_other_metrics_said_where_they_were_asked(tmp_path: Path) -> None:
    golden = tmp_path / "search_params.json"
    samples = MetricSamples("clip_score (a CLIP, 0123456789ab)", (27.123456789123, 0.0))
    asked = replace(SESSION, metrics={"clip_score": samples})
    add_sessions(golden, {"plain": SESSION, "asked": asked})
    text = (tmp_path / "gate.json").read_text(encoding="utf-8")
    assert text.count("metrics") == 1
    read = read_references(golden)
    assert read["plain"] == (SESSION,)
    assert read["asked"][0].metrics["clip_score"] == replace(samples, values=(27.123456789, 0.0))


def test_what_rounding_will_hide_is_said_when_a_reference_is_recorded() -> None:
    hidden = hidden_loss(Scores((0.02, 0.04), (0.021, 0.039), (0.03,)), 0.05)
    assert re.search(r"may hide a loss of \d+% at 2 samples; .*--num-samples \d+ or more", hidden)
    assert hidden_loss(Scores((0.02, 0.04), (0.02, 0.04), (0.03,)), 0.05) == ""


def _found(figure_sd: float, figure_s: float, budget_s: float = 60.0, beside_s: float | None = None) -> list[Prospect]:
    """Of two winners, with a reference by the device's and the host's clock each."""
    cases = _cases(2.0, 1.5)
    host = Speed(0.6, 0.01, 30.0, 20 * figure_sd, 1.0, figure_s=figure_s)
    session = replace(SESSION, figure_sd=figure_sd, figure_s=figure_s, clock="device", host=host, beside_s=beside_s)

    def reference(_case: GateCase, clock: Clock) -> Reference | None:
        speed = session.by(clock.name)
        return Reference.from_sessions([speed], clock.session_sd) if speed else None

    known = {case.subject: [session] for case in cases}
    return prospects(cases, known, reference, _settings(budget_s), WALL["cuda"])


def _settings(budget_s: float) -> GateSettings:
    return GateSettings(0.03, 0.15, False, {"lpips": 0.05}, budget_s, False)


def _prospects(figure_sd: float, figure_s: float, budget_s: float = 60.0) -> list[str]:
    return in_words(_found(figure_sd, figure_s, budget_s), _settings(budget_s))


def test_what_a_run_can_show_is_said_before_it() -> None:
    assert _prospects(0.003, 0.5) == [
        "a slowdown of 3.0% by device time can be shown of 2 of 2 winners (in 95% of runs, at the references' noise)",
        "a slowdown of 15.0% by host time can be shown of 2 of 2 winners (in 95% of runs, at the references' noise)",
    ]
    short = _prospects(0.003, 30.0)
    assert short[0].startswith("a slowdown of 3.0% by device time can be shown of 0 of 2 winners")
    assert short[1].endswith(": no time is left for it")
    noisy = _prospects(0.2, 0.5)
    assert re.search(r"only one of \d+\.\d% or more$", noisy[1])
    assert noisy[-1] == ("  it takes: further references (--gate --update-golden), as no budget is enough with so few")


def test_a_budget_is_named_for_the_device_where_none_is_enough_for_the_host() -> None:
    """Seen on an H100 with references of one session: the host's noise hid that a larger budget would do."""
    cases = _cases(2.0, 1.5)
    host = Speed(0.6, 0.3, 30.0, 0.5, 1.0, figure_s=0.5)
    session = replace(SESSION, figure_sd=0.003, figure_s=0.5, clock="device", host=host, beside_s=30.0)

    def found(budget_s: float) -> list[Prospect]:
        def reference(_case: GateCase, clock: Clock) -> Reference | None:
            speed = session.by(clock.name)
            return Reference.from_sessions([speed], clock.session_sd) if speed else None

        known = {case.subject: [session] for case in cases}
        return prospects(cases, known, reference, _settings(budget_s), WALL["cuda"])

    *_, said = in_words(found(60.0), _settings(60.0))
    budget = re.fullmatch(r"  it takes: --gate-budget (\w+) or more; by host time further references .*", said)
    assert budget, said
    enough = found(duration(budget[1]))
    assert [one.is_shown for one in enough if one.clock == DEVICE] == [True, True]


def test_the_budget_that_is_named_is_enough_for_all_winners_together() -> None:
    """Not each one's own time: with that of one of them, the others would still show nothing."""
    *_, said = _prospects(0.003, 30.0)
    found = re.fullmatch(r"  it takes: --gate-budget (\w+) or more: pictures take some of it", said)
    assert found, said
    named_s = duration(found[1])
    assert all(one.is_shown for one in _found(0.003, 30.0, named_s))
    assert not all(one.is_shown for one in _found(0.003, 30.0, 0.7 * named_s))


def test_what_a_run_can_show_counts_what_its_cases_take_beside_timing() -> None:
    """Pictures and whole runs of a baseline and two winners leave nothing of a minute for the last one."""
    assert all(one.is_shown for one in _found(0.003, 0.5, 60.0))
    short = _found(0.003, 0.5, 60.0, beside_s=19.9)
    assert [(one.clock, one.is_shown) for one in short] == [
        (DEVICE, True),
        (HOST, False),
        (DEVICE, False),
        (HOST, False),
    ]
    *_, said = in_words(short, _settings(60.0))
    found = re.search(r"it takes.*: --gate-budget (\w+) or more", said)
    assert found, said
    assert all(one.is_shown for one in _found(0.003, 0.5, duration(found[1]), beside_s=19.9))


def test_winners_are_told_to_be_shown_that_a_run_reaches() -> None:
    """Seconds as of full-size SD1.5 on an H200: a minute was told to show 0 of 5 winners, and showed 4 in each run."""
    cases = _cases(4.1, 3.1, 2.3, 2.0, 1.7)
    beside_s = (19.7, 5.3, 6.2, 6.9, 8.7, 8.3)
    figure_s = (0.78, 0.58, 0.85, 0.77, 0.97, 1.05)

    def found(budget_s: float) -> list[bool]:
        known = {
            case.subject: [replace(SESSION, figure_sd=0.0015, figure_s=took_s, clock="device", beside_s=own_s)]
            for case, took_s, own_s in zip(cases, figure_s, beside_s, strict=True)
        }
        own = Reference.from_sessions([Speed(0.7, 0.0007, 4.0, 0.0015, 1.0)], DEVICE.session_sd)
        told = prospects(cases, known, lambda *_: own, _settings(budget_s), WALL["cuda"])
        return [one.is_shown for one in told]

    assert found(60) == [True, True, True, False, False]
    assert found(85) == [True] * 5
    assert found(20) == [False] * 5


def test_the_control_counts_where_pictures_are_not_the_recorded_ones_only() -> None:
    """A later run on the same build leaves it out, and has its time for figures."""
    cases = _cases(2.0, 1.5)
    session = replace(SESSION, beside_s=6.0, control_s=5.0)
    known = {case.subject: [session] for case in cases}
    assert seconds_beside(cases, known) == 18.0
    assert seconds_beside(cases, known, with_control=True) == 33.0
    older = {case.subject: [replace(session, beside_s=11.0, control_s=None)] for case in cases}
    assert seconds_beside(cases, older) == seconds_beside(cases, older, with_control=True) == 33.0


def test_what_recording_takes_at_the_least_is_known_from_any_case_that_was_timed() -> None:
    _, first, other = _cases(2.0, 1.5)
    session = replace(SESSION, figure_s=3.0)
    assert least_to_record_s([first, other], {}) is None
    by_cost = 3.0 * other.cost / first.cost
    assert least_to_record_s([first, other], {first.subject: session}) == pytest.approx(5 * (3.0 + by_cost))
    beside_host = replace(session, host=Speed(0.5, 0.01, 20.0, 0.01, 1.0, figure_s=1.0))
    both = {first.subject: session, other.subject: beside_host}
    assert least_to_record_s([first, other], both) == pytest.approx(5 * (3.0 + 3.0 + 1.0))


def test_better_quality_needs_recorded_pictures() -> None:
    """Broken weights may draw pictures that a winner hardly moves; without a record nothing tells them apart."""
    better = Finding("quality", "improved", "LPIPS 0.01 instead of 0.02", -0.5, (-0.51, -0.49))
    worse = replace(better, status="regressed", change=0.5)
    assert explain_by_pictures(better, are_known=True) == better
    explained = explain_by_pictures(better, are_known=False)
    assert (explained.status, explained.change) == ("ok", -0.5)
    assert "no recorded pictures" in explained.text
    assert explain_by_pictures(worse, are_known=False) == worse


def test_a_gpu_that_others_use_shows_no_regression() -> None:
    """A kernel that is cut off in every run cannot be told from a slower one; nobody's slices hide a good verdict."""
    worse = Finding("speed", "regressed", "1.9x instead of 2.1x of device time", -0.1, (-0.12, -0.08))
    assert beside_others(worse, cut_share=0.13) == worse
    doubtful = beside_others(worse, cut_share=0.5)
    assert (doubtful.status, doubtful.change) == ("inconclusive", -0.1)
    assert "other processes' time slices took 50%" in doubtful.text
    good = replace(worse, status="ok")
    assert beside_others(good, cut_share=0.5) == good


def test_no_winner_improves_beside_other_processes() -> None:
    better = Finding("speed", "improved", "2.382x instead of 2.283x of device time", 0.043, (0.036, 0.05))
    assert beside_others(better, cut_share=0.01) == better
    doubtful = beside_others(better, cut_share=0.18)
    assert (doubtful.status, doubtful.change) == ("ok", 0.043)
    assert "other processes' time slices took 18% beside that" in doubtful.text
    assert beside_others(better, cut_share=0.18, of_winner=False) == better


@pytest.mark.parametrize(
    ("status", "is_reference"), [("ok", True), ("inconclusive", True), ("warning", False), ("regressed", False)]
)
def test_a_noisy_session_is_recorded_and_a_slower_one_is_not(status: Any, is_reference: bool) -> None:
    """A second session of a restless host decides nothing by itself; without it no later run could."""
    timed = Timed((Figure(0.7, 1.0),) * 5, (), OPEN)
    judged = Judged(HOST, Finding("host", status, ""), timed=timed)
    assert judged.is_reference == is_reference
    assert not replace(judged, timed=None).is_reference


class MadeUpTimer:
    """A launch-bound GPU without one; :attr:`timed` is which clocks were read."""

    device_type, cut_share = "cuda", 0.0

    def __init__(self) -> None:
        self.timed: list[Clock] = []

    def why_no_device_time(self) -> str:
        return ""

    def gpu_use(self) -> GpuUse:
        return GpuUse(0.5)

    def block_s(self, clock: Clock) -> float:
        return 0.01

    def until_certain(self, clock: Clock, *_rest: object, **_options: object) -> tuple[Timed, float]:
        self.timed.append(clock)
        return Timed((Figure(math.log(1.7), 1.0),) * 8, (), OK), 1.0


@pytest.mark.parametrize(("error", "clocks"), [(0.01, [DEVICE, HOST]), (0.3, [DEVICE])])
def test_a_clock_that_could_show_nothing_is_not_timed(error: float, clocks: list[Clock]) -> None:
    timer = MadeUpTimer()
    references = {DEVICE: KNOWN, HOST: replace(KNOWN, error=error)}
    judge = SpeedJudge(
        _cases(1.7)[1],
        cast("CaseTimer", timer),
        GateSettings(0.03, 0.15, False, {"lpips": 0.05}, 60, False),
        2,
        (),
        Budget(60),
        references.get,
        recording=False,
    )
    judged = list(judge.by_its_clocks(0.1))
    assert timer.timed == clocks
    assert [speed.clock for speed in judged] == [DEVICE, HOST]
    is_said = "not timed, since its references know it too little" in " ".join(judged[1].notes())
    assert is_said == (HOST not in clocks)
    assert judged[0].findings[0].status == "ok"


@pytest.mark.parametrize(("cut_share", "is_said"), [(0.01, False), (0.1, True)])
def test_references_that_are_recorded_beside_other_processes_say_so(cut_share: float, is_said: bool) -> None:
    timer = MadeUpTimer()
    timer.cut_share = cut_share
    settings, case = GateSettings(0.03, 0.15, False, {"lpips": 0.05}, 60, False), _cases(1.7)[1]
    for reference in (KNOWN, None):
        known = {DEVICE: reference, HOST: reference}
        rest = settings, 2, (), Budget(60), known.get
        judged = list(SpeedJudge(case, cast("CaseTimer", timer), *rest, recording=True).by_its_clocks(0.1))
        notes = [" ".join(speed.notes()) for speed in judged]
        assert ["while nobody else does" in note for note in notes] == [is_said, False]


def test_host_time_leaves_later_winners_their_pictures_and_their_device_time() -> None:
    """Seconds as of full-size SD1.5 in batches of 1 on an H100, where a gate of a minute left its last winner none."""
    now = [0.0]

    class Slow(MadeUpTimer):
        def block_s(self, clock: Clock) -> float:
            now[0] += 0.7
            return 0.45 if clock == HOST else 0.7

        def until_certain(self, clock: Clock, *rest: object, **_options: object) -> tuple[Timed, float]:
            plan = cast("Design", rest[0])
            now[0] += plan.most * (1.35 if clock == HOST else 0.7)
            return super().until_certain(clock)

    _, first, last = _cases(2.0, 1.4)
    timer = Slow()
    judge = SpeedJudge(
        first,
        cast("CaseTimer", timer),
        GateSettings(0.03, 0.15, False, 0.05, 60, False),
        3,
        (last,),
        Budget(35, lambda: now[0]),
        {DEVICE: KNOWN, HOST: replace(KNOWN, error=0.03)}.get,
        recording=False,
        later_beside_s=20.0,
    )
    by_device, by_host = judge.by_its_clocks(0.7)
    assert timer.timed == [DEVICE]
    assert by_device.finding.status == "ok"
    assert "goes to the later winners" in by_host.finding.text
    assert judge.budget.left_s > 20.0 + LOOKS[0] * 0.7 * last.cost / first.cost


class Profiled:
    """A gate's cases on a GPU that is none: :attr:`names` is whose whole runs were profiled.

    Args:
        monkeypatch: replaces what profiles.
        surrounds_ns: durations of the kernels that surround the steps, by run.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, surrounds_ns: Sequence[Sequence[int]]) -> None:
        self.names: list[str] = []
        self._surrounds_ns = surrounds_ns
        self.plain = PlainRuns()
        monkeypatch.setattr(timing, "busy", self._busy)
        monkeypatch.setattr(timing, "timed_run", lambda *_: ([], RunTiming(5.0, (2.0, 2.0), ("full", "full"))))

    def _busy(self, generate: Any, _prompts: object, _seeds: object, kernels: KernelTimes) -> tuple[list[Any], Any]:
        run_ns = self._surrounds_ns[len(self.names)]
        self.names.append(generate.name)
        ends = [10**10 + end for end in accumulate(run_ns)]
        activities = [Activity(end - lasted, end) for end, lasted in zip(ends, run_ns, strict=True)]
        steps = [Activity(0, 10**9), *(Activity(at, at, marks=True) for at in (0, 10**9, 10**9, 2 * 10**9))]
        return [], busy_timing([*steps, Activity(10**9, 2 * 10**9), *activities], generate.kinds, kernels)

    def use(self, case: GateCase) -> GpuUse:
        bench = SimpleNamespace(
            pipelines=SimpleNamespace(lock=SimpleNamespace(timing=nullcontext)),
            batches=lambda *_: [SimpleNamespace(prompts=("red apple",), seeds=(0,))],
        )
        plain, winner = (SimpleNamespace(name=name, kinds=("full", "full")) for name in ("plain", "winner"))
        generate = plain if case.candidate is None else winner
        kernels = KernelTimes(beside=self.plain.kernels)
        return CaseTimer(
            cast("Any", bench), case, cast("Any", plain), cast("Any", generate), self.plain, kernels
        ).gpu_use()


def test_whole_unaccelerated_runs_are_profiled_once_for_all_cases_of_a_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are what the cases share; each is seconds of a minute's budget. A winner may change what surrounds steps."""
    plain_ns, winner_ns = (5 * 10**8,), (2 * 10**8, 10**8)
    gpu = Profiled(monkeypatch, [plain_ns] * 2 + [winner_ns] * 6 + [plain_ns] * 2)
    baseline, fast, slow = _cases(2.0, 1.0)
    assert gpu.use(baseline) == GpuUse(2.5 / 5, 0.5, 0.5)
    assert gpu.use(fast) == GpuUse(2.3 / 5, 0.5, 0.3)
    assert gpu.use(slow).baseline_fixed_s == 0.5
    assert gpu.names == ["plain", "plain", *["winner"] * 4]
    gpu.plain = PlainRuns()  # the baseline was left out of this run
    assert gpu.use(slow) == GpuUse(2.3 / 5, 0.5, 0.3)
    assert gpu.names[-2:] == ["plain", "plain"]


def test_what_surrounds_the_steps_is_known_by_the_runs_of_both_pipelines(monkeypatch: pytest.MonkeyPatch) -> None:
    """An H200's winner seemed slower by 2.5% beside other work: two runs of its own did not tell slices of that.

    The durations are those of a step's kernels on an H100, beside another process.
    """
    recorded = kernels_of_h100()
    alone_s = np.array(recorded["alone"]["shallow"]).sum(axis=1).mean() / 1e9
    cut = sorted(recorded["beside"]["shallow"], key=sum)[-2:]
    gpu = Profiled(monkeypatch, [*cut, *recorded["beside"]["shallow"]])
    baseline, winner = _cases(2.0)
    assert gpu.use(baseline).baseline_fixed_s > 1.05 * alone_s
    found = gpu.use(winner)
    assert found.fixed_s == found.baseline_fixed_s == pytest.approx(alone_s, rel=0.01)


def test_a_profiler_that_fails_after_its_probe_leaves_the_wall_clock() -> None:
    class Refused(MadeUpTimer):
        def gpu_use(self) -> GpuUse:
            raise MarkersLost("the profiler saw 0 markers for 20 steps")

    timer = Refused()
    judge = SpeedJudge(
        _cases(1.7)[1],
        cast("CaseTimer", timer),
        GateSettings(0.03, 0.15, False, {"lpips": 0.05}, 60, False),
        2,
        (),
        Budget(60),
        {DEVICE: KNOWN, WALL["cuda"]: KNOWN}.get,
        recording=False,
    )
    (judged,) = judge.by_its_clocks(0.1)
    assert timer.timed == [WALL["cuda"]]
    assert "the profiler saw 0 markers" in " ".join(judged.remarks)


def test_a_verdict_is_its_gravest_finding() -> None:
    ok, improved, open_, worse = (
        Finding("speed", status, "") for status in ("ok", "improved", "inconclusive", "regressed")
    )
    assert Verdict((ok, improved)).status == "improved"
    assert Verdict((improved, open_)).status == "inconclusive"
    assert Verdict((worse, improved, ok)).status == "regressed"


def test_designs_have_the_power_that_is_asked_of_them() -> None:
    """At the noise that the project expects: 1% per run on a GPU, 1.4% per figure of 4 blocks on shared cores."""
    for clock, smallest in ((WALL["cuda"], 0.03), (WALL["cpu"], 0.05), (DEVICE, 0.03)):
        design = Design(clock.most, math.log1p(smallest), speed_share(CASES), clock.session_sd)
        recorded = math.hypot(clock.figure_sd / math.sqrt(design.most), clock.session_sd)
        assert design.power(clock.figure_sd, recorded) > 0.95
    times = RunTimes.from_steps(np.ones((1, 1)), np.ones((1, 1, len(BASELINE))), BASELINE)
    assert math.log(fast_seconds(times)) == pytest.approx(math.log(11))
