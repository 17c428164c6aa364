"""FirstBlockCache: what the pictures decide is what runs, is foreseen, counted and recorded, and is searched once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffusers import DiffusionPipeline
from test_accelerators import same
from test_store import measurement
from tiny_transformers import save_tiny

from pytest_diffaccel import accelerate
from pytest_diffaccel.accelerators.acceleration import MethodDidNotAct
from pytest_diffaccel.accelerators.base import Method
from pytest_diffaccel.accelerators.decisions import by_step
from pytest_diffaccel.accelerators.first_block_cache import FirstBlockCache
from pytest_diffaccel.accelerators.registry import default_registry
from pytest_diffaccel.accelerators.restoration import restored
from pytest_diffaccel.gate.figures import FirstSteps, fast_seconds
from pytest_diffaccel.matrix import Candidate, Cell, Group, Params
from pytest_diffaccel.measure.clock import WallClock
from pytest_diffaccel.measure.measurement import Block, Measurement, RunTiming
from pytest_diffaccel.measure.step_kinds import RunTimes, step_kind_speedup
from pytest_diffaccel.pipes import PipeRegistry, PipeSpec, make_known
from pytest_diffaccel.search.decide.plan import Plan
from pytest_diffaccel.search.predict.cost_model import CostModel
from pytest_diffaccel.search.predict.loss_model import loss_of
from pytest_diffaccel.search.predict.step_counts import StepCounts

NAME = "FirstBlockCache"
SIZE = {"height": 96, "width": 96}
PROMPTS, SEEDS = ["red apple on a blue background", "frog on a yellow background"], [3, 4]
CELL = Cell("FLUX.1", "FlowMatchEulerDiscreteScheduler", 10)
REGISTRY = default_registry()
PLAIN, COMPUTED, HALF, REUSED = "plain", f"{NAME}:computed", f"{NAME}:half reused", f"{NAME}:reused"


def params(threshold: float) -> Params:
    return {NAME: {"threshold": threshold}}


def candidate(threshold: float, cell: Cell = CELL) -> Candidate:
    return Candidate(cell, NAME, params(threshold))


@pytest.fixture
def generating(pipeline_of: Callable[[str, str], Any]) -> Callable[..., Any]:
    """Generates with the trained stand-in."""
    pipeline = pipeline_of(CELL.pipe, CELL.scheduler)
    return lambda threshold, steps=CELL.steps: accelerate(pipeline, params(threshold), steps=steps, **SIZE)


# --- deciding -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threshold", [0.3, 0.45, 0.6, 100])
def test_what_is_decided_is_what_runs_and_what_was_foreseen(generating: Callable[..., Any], threshold: float) -> None:
    ran: list[set[int]] = []
    with generating(threshold) as generate, restored(generate.pipeline):
        transformer = generate.pipeline.transformer
        blocks = [*transformer.transformer_blocks, *transformer.single_transformer_blocks]
        transformer.register_forward_pre_hook(lambda *_: ran.append(set()))
        for place, block in enumerate(blocks):
            part = block.norm1 if hasattr(block, "norm1") else block.norm
            part.register_forward_pre_hook(lambda *_, place=place: ran[-1].add(place))
        generate(PROMPTS, SEEDS)
        kinds = {len(blocks): COMPUTED, 1: REUSED}
        assert generate.decided == generate.kinds == tuple(kinds[len(step)] for step in ran)
        assert 0 < generate.kinds.count(REUSED) == generate.fired["reused_calls"]
        foreseen = generate.foreseen(PROMPTS, SEEDS).decisions({"threshold": threshold})
    assert abs(sum(map(all, foreseen)) - generate.kinds.count(REUSED)) <= 1


def test_in_many_steps_all_is_decided_as_foreseen(generating: Callable[..., Any]) -> None:
    with generating(0.2, 28) as generate:
        generate(PROMPTS, SEEDS)
        foreseen = generate.foreseen(PROMPTS, SEEDS).decisions({"threshold": 0.2})
    assert generate.accelerator.decided_kinds(params(0.2), foreseen) == generate.kinds
    assert 15 < generate.kinds.count(REUSED) < 24


def test_thresholds_reuse_nothing_or_all_at_their_ends_and_more_in_between(generating: Callable[..., Any]) -> None:
    with generating(0) as generate:
        told = generate.foreseen(PROMPTS, SEEDS)
        assert not generate.decided
    never, always = FirstBlockCache.extremes
    assert [any(step) for step in told.decisions(never)] == [False] * CELL.steps
    assert [all(step) for step in told.decisions(always)] == [False] + [True] * (CELL.steps - 1)
    shares = [sum(map(all, told.decisions({"threshold": one}))) for one in (0.1, 0.3, 0.45, 0.6, 0.9)]
    assert shares == sorted(shares)
    assert len(set(shares)) > 2


def test_the_mean_over_the_batch_decides(generating: Callable[..., Any]) -> None:
    """So a picture's steps depend on what is drawn beside it, and the batch size belongs to a record."""
    thresholds = np.linspace(0.05, 1, 96)
    with generating(0) as generate:
        alone = [generate.foreseen([prompt], [seed]) for prompt, seed in zip(PROMPTS, SEEDS, strict=True)]
        together = generate.foreseen(PROMPTS, SEEDS)
    masks = [[told.decisions({"threshold": float(one)}) for one in thresholds] for told in (*alone, together)]
    assert masks[0] != masks[1]
    assert masks[2] not in masks[:2]
    for first, second, both in zip(*masks, strict=True):
        if first == second and sum(map(all, first)) in (0, CELL.steps - 1):
            assert both == first


def test_a_generation_that_ends_early_says_what_it_decided(generating: Callable[..., Any]) -> None:
    with generating(0.6) as generate:
        assert generate.kinds == (COMPUTED, *[REUSED] * (CELL.steps - 1))
        generate.observed(PROMPTS, SEEDS, None)
        whole = generate.decided
        clock = WallClock()
        generate.begun(PROMPTS, SEEDS, clock, 4)
        assert generate.decided == whole[:4]
        assert clock.timing(generate.kinds[:4]).kinds == whole[:4]


def test_a_threshold_that_nothing_lies_within_has_no_effect(generating: Callable[..., Any]) -> None:
    with generating(0.001) as generate, pytest.raises(MethodDidNotAct, match="reused_calls stayed 0"):
        generate(PROMPTS, SEEDS)


# --- guidance by a second call --------------------------------------------------------------------------------------


@pytest.fixture
def qwen(tmp_path: Path) -> Iterator[Any]:
    know = PipeRegistry()
    know.register(PipeSpec("mine", "QwenImagePipeline", denoiser="transformer"))
    make_known(know)
    pipeline = DiffusionPipeline.from_pretrained(str(save_tiny("QwenImagePipeline", tmp_path / "qwen")))
    pipeline.set_progress_bar_config(disable=True)
    yield pipeline
    make_known(PipeRegistry())


def test_each_of_a_steps_two_calls_decides_for_itself(qwen: Any) -> None:
    found: dict[float, tuple[str, ...]] = {}
    size = {"height": 32, "width": 32, "guidance_scale": 4.0}
    with accelerate(qwen, params(0), steps=6, **size) as generate:
        told = generate.foreseen(PROMPTS, SEEDS)
        plain = generate(PROMPTS, SEEDS)
        assert generate.fired["denoiser_calls"] == 12
        assert generate.kinds == (COMPUTED,) * 6
    thresholds = sorted(apart for _, row in told._calls for apart in row)
    for threshold in (next(one for one in thresholds if _is_divided(told, one)), thresholds[-1]):
        with accelerate(qwen, params(threshold), steps=6, **size) as generate:
            generate.observed(PROMPTS, SEEDS, None)
            found[threshold] = generate.kinds
    assert {kind for kinds in found.values() for kind in kinds} == {COMPUTED, HALF, REUSED}
    with accelerate(qwen, {}, steps=6, **size) as generate:
        assert same(generate(PROMPTS, SEEDS), plain)


def _is_divided(told: Any, threshold: float) -> bool:
    return any(len(set(step)) == 2 for step in told.decisions({"threshold": threshold}))


def test_decisions_are_told_by_step() -> None:
    calls = [("cond", False), ("uncond", False), ("cond", True), ("uncond", False), ("cond", True), ("uncond", True)]
    steps = by_step(calls)
    assert steps == [[False, False], [True, False], [True, True]]
    (accelerator,) = REGISTRY.select([NAME])
    assert accelerator.decided_kinds(params(0.2), steps) == (COMPUTED, HALF, REUSED)
    assert by_step([("cond", False), ("cond", True)]) == [[False], [True]]


# --- counting, predicting, deciding what to evaluate ----------------------------------------------------------------


class Told:
    """Foresees that so many of the last steps are reused as the threshold says, in tenths."""

    def decisions(self, point: Any) -> list[list[bool]]:
        reused = min(9, round(10 * point["threshold"]))
        return [[step >= 10 - reused] for step in range(10)]


GROUP = Group(CELL, NAME)


def counted(decided: dict[Candidate, list[tuple[str, ...]]] | None = None, batches: int = 2) -> StepCounts:
    return StepCounts(REGISTRY, {GROUP: [Told()] * batches} if batches else {}, decided or {})  # type: ignore[list-item]


def run(kinds: tuple[str, ...], seconds: dict[str, float], fixed_s: float = 1.0) -> RunTiming:
    steps = tuple(seconds[kind] for kind in kinds)
    return RunTiming(sum(steps) + fixed_s, steps, kinds)


COSTS = {PLAIN: 1.0, COMPUTED: 1.05, REUSED: 0.1}


def model(counts: StepCounts) -> CostModel:
    """What short runs at both extremes tell."""
    short, baseline = replace(CELL, steps=8), run((PLAIN,) * 8, COSTS)
    timed = []
    for threshold, kinds in ((0, (COMPUTED,) * 8), (100, (COMPUTED, *(REUSED,) * 7))):
        timed.append((candidate(threshold, short), [Block(baseline, (run(kinds, COSTS),))] * 20))
    return CostModel.fit(REGISTRY, timed, "wall", counts)


def test_steps_are_counted_as_decided_else_as_foreseen_else_as_if_all_were_reused() -> None:
    one = candidate(0.4)
    nothing, foreseen = counted(batches=0).of(one), counted().of(one)
    decided = counted({one: [(COMPUTED,) * 7 + (REUSED,) * 3, (COMPUTED,) * 9 + (REUSED,)]}).of(one)
    assert nothing.by_kind == {COMPUTED: 1, REUSED: 9}
    assert foreseen.by_kind == {COMPUTED: 6, REUSED: 4}
    assert decided.by_kind == {COMPUTED: 8, REUSED: 2}
    assert nothing.sd == 1 > foreseen.sd > 0
    # Batches that differ say that the next ones will.
    alike = counted({one: [(COMPUTED,) * 8 + (REUSED,) * 2] * 2}).of(one)
    assert foreseen.sd > alike.sd < decided.sd
    # What parameters alone decide is known.
    for extreme in FirstBlockCache.extremes:
        assert counted().of(Candidate(CELL, NAME, {NAME: extreme})).sd == 0
    taylorseer = REGISTRY.select(["TaylorSeer"])[0].grid(CELL, coarse=True)[0]
    assert counted().of(Candidate(CELL, "TaylorSeer", taylorseer)).sd == 0
    assert counted().reused_share(Candidate(CELL, "TaylorSeer", taylorseer)) is None
    assert counted().reused_share(one) == pytest.approx(0.4)


@pytest.mark.parametrize("reused", [1, 4, 7])
def test_a_speedup_follows_from_what_is_foreseen_and_says_how_far_it_may_be_off(reused: int) -> None:
    true = 11 / (1 + (10 - reused) * COSTS[COMPUTED] + reused * COSTS[REUSED])
    (foreseen,) = model(counted()).speedups([candidate(reused / 10)])
    seen = {candidate(reused / 10): [(COMPUTED,) * (10 - reused) + (REUSED,) * reused] * 8}
    (decided,) = model(counted(seen)).speedups([candidate(reused / 10)])
    for speedup in (foreseen, decided):
        assert speedup.value == pytest.approx(true, rel=0.01)
    assert decided.half_width_ratio < foreseen.half_width_ratio < 0.2


def plan(evaluated: dict[Candidate, tuple[float, ...]], counts: StepCounts | None = None) -> Plan:
    return Plan(REGISTRY, REGISTRY.select([NAME])[0], CELL, model(counts or counted()), evaluated, 1.0, 2)


def test_a_threshold_that_reuses_nothing_is_never_evaluated() -> None:
    advice = plan({}).advice(candidate(0.04))
    assert not advice.evaluate
    assert "reuses nothing in the first pictures" in advice.evidence
    assert candidate(0.04) not in plan({}).distinct([candidate(0.04), candidate(0.4)])


def test_what_would_decide_as_an_evaluated_one_promises_nothing_more() -> None:
    """Its own vague speed-up may reach what the other one's, which is known, misses; it is never tried."""
    every = [candidate(round(0.02 * number, 3)) for number in range(1, 50)]
    tried = plan({}).distinct(every)
    assert 1 < len(tried) < len(every)
    known = plan(dict.fromkeys(tried, (0.05, 0.051)))
    assert known.targets_left(every) == set()
    assert plan({tried[0]: (0.05, 0.051)}).targets_left(every)


def test_nor_is_one_that_reuses_in_later_batches_only() -> None:
    """The first generation shows that a method acts, and would refuse it."""

    class Later(Told):
        def decisions(self, point: Any) -> list[list[bool]]:
            return super().decisions({"threshold": max(0.0, point["threshold"] - 0.2)})

    for foresights, words in (([Later(), Told()], "reuses nothing in the first pictures"), ([Told(), Later()], "")):
        counts = StepCounts(REGISTRY, {GROUP: foresights})  # type: ignore[dict-item]
        assert plan({}, counts).needless(candidate(0.2)) == words


def test_what_reuses_nothing_is_known_to_lose_nothing() -> None:
    """Else, when dear thresholds were looked at first, nobody would look at mild ones."""
    known = plan({candidate(0.7): (0.1, 0.1), candidate(0.9): (0.3, 0.3)})
    mild, dear = known.losses_of(known.accelerator, [params(0.1), params(0.8)])
    assert loss_of(mild) < 0.02 < 0.1 < loss_of(dear) < 0.3
    assert known.advice(candidate(0.3)).evaluate


def test_a_threshold_that_decides_as_another_is_evaluated_once() -> None:
    known = plan({candidate(0.4): (0.01, 0.02)})
    advice = known.advice(candidate(0.42))
    assert not advice.evaluate
    assert "decides in the first pictures as threshold=0.4 does" in advice.evidence
    thresholds = (0.42, 0.4, 0.44, 0.6, 0.62, 0.8)
    assert known.distinct([candidate(one) for one in thresholds]) == [candidate(0.4), candidate(0.6), candidate(0.8)]
    # Also where its own run decided a step otherwise than was foreseen: the other's would, too.
    ran = counted({candidate(0.4): [(COMPUTED,) * 5 + (REUSED,) * 5]})
    assert "as threshold=0.4 does" in plan({candidate(0.4): (0.01, 0.02)}, ran).needless(candidate(0.42))
    # Where nothing is foreseen, each may differ.
    unforeseen = plan({candidate(0.4): (0.01, 0.02)}, counted(batches=0))
    assert unforeseen.distinct([candidate(one) for one in thresholds]) == [candidate(one) for one in thresholds]


def test_thresholds_that_reuse_as_much_are_expected_to_lose_as_much() -> None:
    seen = {candidate(one / 10): (0.001 * 2**one,) * 2 for one in (2, 5, 8)}
    known = plan(seen)
    losses = known.losses_of(known.accelerator, [params(one) for one in (0.3, 0.34, 0.4, 0.6, 0.7)])
    assert losses[0] == losses[1]
    assert all(first < second for first, second in pairwise(losses[1:]))


# --- runs of different kinds, and records -------------------------------------------------------------------------


def test_runs_of_different_kinds_are_compared_by_their_own() -> None:
    few, many = (COMPUTED,) * 7 + (REUSED,) * 3, (COMPUTED,) * 4 + (REUSED,) * 6
    baseline = run((PLAIN,) * 10, COSTS)
    blocks = [Block(baseline, (run(kinds, COSTS),)) for kinds in (few, many, few, many)]
    times = RunTimes.of([block.runs for block in blocks])
    assert times.is_mixed
    assert times.counts == {COMPUTED: 5.5, REUSED: 4.5}
    assert times.run_seconds().ravel() == pytest.approx([block.runs[0].total_s for block in blocks])
    assert {kind: float(cost) for kind, cost in times.costs().items()} == pytest.approx({COMPUTED: 1.05, REUSED: 0.1})
    ratio = np.mean([np.log(11 / block.runs[0].total_s) for block in blocks])
    speedup = step_kind_speedup(blocks)
    assert speedup.value == pytest.approx(np.exp(ratio))
    # Prompts whose steps differ make the interval wider.
    alike = step_kind_speedup([Block(baseline, (run(few, COSTS),))] * 4)
    assert speedup.half_width_ratio > 2 * alike.half_width_ratio


def test_a_run_may_lack_a_kind_and_a_step_that_was_held_up_counts_little() -> None:
    none, some = (COMPUTED,) * 10, (COMPUTED,) * 7 + (REUSED,) * 3
    held_up = run(some, COSTS)
    steps = (*held_up.step_s[:3], 9.0, *held_up.step_s[4:])
    runs = [run(none, COSTS), RunTiming(sum(steps) + 1, steps, some)]
    times = RunTimes.of([(one,) for one in runs])
    assert times.run_seconds().ravel() == pytest.approx([runs[0].total_s, held_up.total_s], rel=0.06)
    assert float(times.costs()[REUSED]) == pytest.approx(0.1, rel=0.05)
    assert np.isfinite(float(times.step_variance()))


def test_the_gate_compares_whole_runs_by_their_own_kinds() -> None:
    few, many = (COMPUTED,) * 7 + (REUSED,) * 3, (COMPUTED,) * 4 + (REUSED,) * 6
    runs = [run(few, COSTS), run(many, COSTS)]
    seconds = np.mean([one.total_s for one in runs])
    assert FirstSteps(None, fixed_s=1.0).run_seconds(runs) == pytest.approx(seconds)
    times = RunTimes.of([(one,) for one in runs])
    assert float(fast_seconds(times)) == pytest.approx(min(one.total_s for one in runs))


def test_a_record_keeps_what_was_decided_and_old_ones_are_read_as_ever() -> None:
    made = measurement(decided=((COMPUTED, REUSED), (COMPUTED, COMPUTED)))
    assert Measurement.from_json(made.to_json()) == made
    assert "decided" not in measurement().to_json()
    assert Measurement.from_json(measurement().to_json()).decided == ()


# --- the registry -------------------------------------------------------------------------------------------------


def test_what_decides_by_the_picture_is_not_combined() -> None:
    with pytest.raises(ValueError, match="FirstBlockCache decides by the picture what a step reuses"):
        default_registry().combine("TaylorSeer", NAME)
    with pytest.raises(ValueError, match="more than one has a parameter threshold"):
        default_registry().combine("MagCache", NAME)


@pytest.mark.parametrize("method", [one for one in REGISTRY.methods if not one.extremes], ids=lambda one: one.name)
def test_other_methods_decide_nothing(method: Method) -> None:
    with pytest.raises(NotImplementedError, match=f"{method.name} decides nothing by the picture"):
        method.decisions(None)
    with pytest.raises(NotImplementedError, match=f"{method.name} decides nothing by the picture"):
        method.foresight()
