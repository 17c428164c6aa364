"""The calibration of real, small searches: what is timed, kept, looked at again, and forgotten.

Speeds are made by hand (:class:`timings.SteadyClock`); pipelines, pictures and stores are real.
"""

from __future__ import annotations

import math
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from echo import NOTHING, SHORT_DEATH, SHORT_ERROR, Echo
from searches import THRIFTY, SearchFolder, SmallSearch, drive, open_run, without_scale
from timings import STEADY, SteadyClock

from pytest_diffaccel.accelerators.acceleration import Generate
from pytest_diffaccel.matrix import TARGETS, Point
from pytest_diffaccel.measure.measurement import Round, RunTiming
from pytest_diffaccel.records.golden_file import read_golden
from pytest_diffaccel.records.store import Store
from pytest_diffaccel.search.calibrate.calibration import calibrate
from pytest_diffaccel.search.calibrate.timer import Timer
from pytest_diffaccel.search.cases import NotWorthwhile

POINTS = ((2, NOTHING), (10, NOTHING), (20, NOTHING))


class Folder(SearchFolder):
    """A folder in which sessions are driven without pytest."""

    def search(self, points: tuple[tuple[int, int], ...] = POINTS) -> dict[str, Any]:
        """A session of its own; what its winners' case found, and how its calibration went."""
        run = open_run(*THRIFTY, methods=[Echo(points)])
        (found,) = drive(run)
        return {**found.to_json(), "calibration": run.bench.calibrations.get("SD1.5")}

    def rounds(self) -> list[Round]:
        """Of the one environment that there is."""
        with Store.open(self.store) as store:
            (environment,) = store.environments()
            return store.rounds(environment)

    def rows(self) -> dict[str, list[tuple[Any, ...]]]:
        """All that a search has found out, by table."""
        tables = ("measurements", "failures", "attempts", "calibration", "decisions")
        return {name: sorted(self.query(f"SELECT * FROM diffaccel_{name}")) for name in tables}

    def reopen(self) -> None:
        """As if the search had been stopped before its end: one measurement and all decisions are gone."""
        self.execute("DELETE FROM diffaccel_decisions")
        self.execute(
            "DELETE FROM diffaccel_measurements WHERE candidate_key LIKE '%interval=10,%' AND purpose = 'search'"
        )


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch, one_pipeline: None) -> SteadyClock:
    """What a step takes, in this process."""
    monkeypatch.setattr("pytest_diffaccel.measure.blocks._REPEATS", 0)
    without_scale(monkeypatch)
    return SteadyClock(monkeypatch)


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    """A folder in which nothing was searched."""
    monkeypatch.chdir(tmp_path)
    return Folder(tmp_path)


@pytest.fixture(scope="module")
def finished_race(tmp_path_factory: pytest.TempPathFactory, everything_imported: None) -> Path:
    """A folder with a finished search."""
    folder = Folder(tmp_path_factory.mktemp("race"))
    folder.register(*POINTS)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder.path)
        without_scale(patch)
        SteadyClock(patch)
        folder.search()
    return folder.path


@pytest.fixture
def finished(empty: Folder, finished_race: Path) -> Folder:
    """Its copy."""
    shutil.copytree(finished_race / ".diffaccel", empty.path / ".diffaccel")
    return empty


class Choosy(Echo):
    """A method that the loaded model can take up to an interval of 10, whatever the grid has."""

    def misfit(self, point: Point, pipeline: Any, height: int, width: int) -> str:
        interval = point["echo_interval"]
        return "" if interval <= 10 else f"echo_interval={interval} must be a whole number from 1 to 10"


class Aloof(Echo):
    """A method that does not apply to the loaded model at all."""

    def applies_to(self, pipeline: Any) -> str:
        return f"{type(pipeline.unet).__name__} is beneath it"


# --- what the model cannot take ----------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [(), ("--exhaustive",)])
def test_a_search_leaves_out_what_the_model_cannot_take(
    empty: Folder, clock: SteadyClock, options: tuple[str, ...]
) -> None:
    """Neither a candidate nor a short run of it: such grids are of the pipe as it was published."""
    run = open_run(*THRIFTY, *options, methods=[Choosy(((10, NOTHING), (20, NOTHING)))])
    with pytest.raises(NotWorthwhile, match="echo_interval=20 must be a whole number from 1 to 10"):
        run.measure(run.candidates[1])
    (found,) = drive(run)
    assert found.of_cell is not None
    assert len(found.of_cell.decided) == len(TARGETS)
    assert {key.rpartition("interval=")[2] for key, *_ in empty.stored() if "Echo" in key} == {"10,mishap=0"}
    assert {run.params["Echo"]["echo_interval"] for made in empty.rounds() for run in made.candidates} <= {10}
    assert (empty.failures(), found.failed) == ([], ())


def test_tomes_points_that_are_the_same_as_others_are_left_out(
    empty: Folder, clock: SteadyClock, pipeline_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A UNet without a mid block has no attention where the grid's deepest points merge."""
    monkeypatch.setitem(pipeline_of("SD1.5", "DDIM").unet._modules, "mid_block", None)
    run = open_run(*THRIFTY, "--search-targets", "ToMe", methods=[Echo(POINTS)])
    deepest = [candidate for candidate in run.candidates if candidate.params.get("ToMe", {}).get("max_downsample") == 8]
    assert deepest
    for candidate in deepest:
        with pytest.raises(NotWorthwhile, match="max_downsample=8 must be one of 1, 2, 4, "):
            run.measure(candidate)
    run.close()
    assert (empty.stored(), empty.failures()) == ([], [])


@pytest.mark.parametrize(
    ("method", "reason"),
    [(Choosy, "Echo: echo_interval=15 must be"), (Aloof, "Echo: UNet2DConditionModel is beneath it; leave it out")],
)
def test_where_the_model_takes_no_candidate_nothing_failed(
    empty: Folder, clock: SteadyClock, method: type[Echo], reason: str
) -> None:
    run = open_run(*THRIFTY, methods=[method(((15, NOTHING), (20, NOTHING)))])
    with pytest.raises(NotWorthwhile, match=reason):
        run.measure(run.candidates[0])
    (found,) = drive(run)
    assert found.refused is not None
    assert found.refused.why == "unfit"
    assert f"none of its 2 candidates; the first: {reason}" in found.refused.text
    assert found.of_cell is None
    assert (empty.stored(), empty.failures(), empty.rounds()) == ([], [], [])


# --- what is timed and kept ------------------------------------------------------------------------------------


def test_a_search_begins_with_rounds_of_short_runs_and_keeps_them(finished: Folder) -> None:
    rounds = finished.rounds()
    assert rounds
    for made in rounds:
        assert set(made.baseline.kinds) == {"plain"}
        assert len({run.key for run in made.candidates}) == len(made.candidates) in range(1, 5)
        for candidate, run in zip(made.candidates, made.runs, strict=True):
            assert candidate.cell.steps in (8, 12)
            assert len(run.kinds) in range(candidate.cell.steps - 2, candidate.cell.steps + 1)
            assert set(run.kinds) <= {"Echo:full", "Echo:echo"}
    timed = finished.query(
        "SELECT record FROM diffaccel_measurements WHERE purpose = 'search' AND record LIKE '%runs%'"
    )
    assert timed == []  # no candidate of the search itself was timed


def test_the_first_step_of_a_kind_in_a_process_is_not_counted(finished: Folder) -> None:
    first, *others = finished.rounds()
    lengths = [len(run.kinds) for run in first.runs]
    assert sum(candidate.cell.steps for candidate in first.candidates) - sum(lengths) == 2  # full and echo, once each
    assert all(
        len(run.kinds) == candidate.cell.steps
        for made in others
        for candidate, run in zip(made.candidates, made.runs, strict=True)
    )


def test_three_short_runs_of_an_accelerator_draw_their_pictures(empty: Folder, clock: SteadyClock) -> None:
    """They tell what surrounds its steps, which is all that the others lack."""
    run = open_run(*THRIFTY, methods=[Echo(POINTS)])
    cell, rounds = run.groups[0].cell, 6
    known = run.bench.known(cell)
    timer = Timer(run.bench, cell)
    timer.narrow(run.candidates, lambda _: False, lambda: len(known.rounds()) == rounds)
    speedups, baseline_s = known.costs.speedups(run.candidates), known.baseline_s(20)
    run.close()
    made = empty.rounds()
    assert [one.baseline.whole for one in made] == [True] * 3 + [False] * 3
    drawn = [own.whole for one in made for own in one.runs]
    assert drawn.count(True) == 3
    assert len(drawn) > 6
    assert not any(drawn[4:])
    assert baseline_s == pytest.approx(21 * 0.02, rel=0.02)
    for candidate, speedup in zip(run.candidates, speedups, strict=True):
        full = math.ceil(20 / candidate.params["Echo"]["echo_interval"])
        assert speedup.value == pytest.approx(21 * 0.02 / (0.02 + full * 0.02 + (20 - full) * 0.001), rel=0.03)


def test_where_the_rounds_of_another_session_draw_no_pictures_this_ones_do(empty: Folder, clock: SteadyClock) -> None:
    """With ``--fresh`` a search sees what others make from now on, and not the whole runs that they began with."""
    run = open_run(*THRIFTY, "--fresh", methods=[Echo(POINTS)])
    cell = run.groups[0].cell
    plain = RunTiming(0.16, (0.02,) * 8, ("plain",) * 8, whole=False)
    other = replace(run.candidates[1], cell=replace(cell, steps=8))
    echo = RunTiming(0.03, (0.02, *(0.001,) * 7), ("Echo:full", *("Echo:echo",) * 7), whole=False)
    for _ in range(4):
        run.bench.store.save_round(run.bench.environment(cell).id, Round(plain, (other,), (echo,), "", time.time()))
    found = calibrate(run.bench, cell)
    made = run.bench.known(cell).rounds()
    run.close()
    assert found is not None
    assert found.baseline_s == pytest.approx(21 * 0.02, rel=0.05)
    assert sum(one.baseline.whole for one in made) > 0


# --- later sessions --------------------------------------------------------------------------------------------


def test_a_finished_search_that_is_started_again_times_nothing_and_changes_nothing(
    finished: Folder, clock: SteadyClock
) -> None:
    before = finished.rows()
    first, second = finished.search(), finished.search()
    assert clock.runs == []
    assert finished.rows() == before
    assert first["golden"] == second["golden"]
    assert first["calibration"] is None


def test_an_unfinished_search_looks_at_its_calibration_in_two_rounds_and_keeps_it(
    finished: Folder, clock: SteadyClock
) -> None:
    before = finished.rounds()
    finished.reopen()
    found = finished.search()
    after = finished.rounds()
    assert after[: len(before)] == before
    assert len(after) == len(before) + 2
    known = {run.key for made in before for run in made.candidates}
    assert all({run.key for run in made.candidates} <= known for made in after[len(before) :])
    # They would be all that is left, had they shown that the others hold no longer.
    assert all(run.whole for made in after[len(before) :] for run in (made.baseline, *made.runs))
    assert found["calibration"].rounds == 0
    assert len(found["golden"]) == len(TARGETS)


def test_a_calibration_is_forgotten_when_one_kind_of_step_is_suddenly_much_slower(
    finished: Folder, clock: SteadyClock, caplog: pytest.LogCaptureFixture
) -> None:
    before = finished.rounds()
    clock.step_s["Echo:echo"] *= 10
    finished.reopen()
    finished.search()
    after = finished.rounds()
    assert "the machine is not as it was calibrated" in caplog.text
    assert after
    assert not [made for made in after if made in before]
    # An echo takes half a plain step now, so that computing every 2nd and 10th call is this many times as fast.
    run = open_run(*THRIFTY, methods=[Echo(POINTS)])
    known = run.bench.known(run.groups[0][0])
    run.close()
    for candidate in run.candidates[:2]:
        full = 20 // candidate.params["Echo"]["echo_interval"]
        true = 21 / (1 + full + (20 - full) / 2)
        (speedup,) = known.costs.speedups([candidate])
        assert speedup.value == pytest.approx(true, rel=0.03)


def test_a_machine_that_is_slower_in_everything_is_the_same(finished: Folder, clock: SteadyClock) -> None:
    before = finished.rounds()
    clock.step_s = {kind: 2 * step_s for kind, step_s in clock.step_s.items()}
    clock.fixed_s *= 2
    finished.reopen()
    finished.search()
    assert finished.rounds()[: len(before)] == before


# --- short runs that fail --------------------------------------------------------------------------------------


def test_a_short_run_that_raises_is_no_failure_of_a_candidate(empty: Folder, clock: SteadyClock) -> None:
    found = empty.search(points=((2, SHORT_ERROR), (4, NOTHING), (10, NOTHING)))
    assert empty.failures() == empty.short_run_failures() == []
    assert found["failed"] == []
    assert {run.params["Echo"]["mishap"] for made in empty.rounds() for run in made.candidates} == {NOTHING}
    assert len(found["golden"]) == len(TARGETS)
    # What has no short run of its own is chosen all the same.
    assert '"echo_interval": 2' in next(iter(found["golden"].values()))


def test_without_any_short_run_that_works_a_search_still_finds_winners(empty: Folder, clock: SteadyClock) -> None:
    found = empty.search(points=((2, SHORT_ERROR), (10, SHORT_ERROR)))
    assert empty.rounds() == []
    assert empty.failures() == empty.short_run_failures() == []
    assert found["calibration"] is None
    assert "calibrated" not in found
    assert len(found["golden"]) + len(found["undecided"]) == len(TARGETS)
    assert found["verified"]


def test_an_unaccelerated_short_run_that_fails_ends_the_calibration(
    empty: Folder, clock: SteadyClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where memory suffices for accelerated runs only: it would be tried for ever."""
    from pytest_diffaccel.search.calibrate import timer

    real, tried = timer.timed, []

    def failing(generate: Generate, *arguments: Any) -> Any:
        tried.append(generate.kinds)
        assert len(tried) < 50
        if set(generate.kinds) == {"plain"}:
            raise MemoryError
        return real(generate, *arguments)

    monkeypatch.setattr(timer, "timed", failing)
    found = empty.search()
    assert empty.rounds() == []
    assert found["verified"]


def test_a_short_run_that_took_two_processes_with_it_is_not_tried_again(finished: Folder, clock: SteadyClock) -> None:
    """Neither when the calibration is looked at, where it is among the runs that had worked."""
    run = open_run(*THRIFTY, methods=[Echo(POINTS)])
    victim = finished.rounds()[0].candidates[0]
    cell = run.groups[0][0]
    # What a process leaves behind that ends within a short run.
    sampling = replace(run.bench.sampling(cell, "search"), purpose="calibration")
    for session in ("one", "another"):
        place = victim, run.bench.environment(cell).id, sampling
        run.bench.store.begin(*place, "short run", session=session)
    run.close()
    before = finished.rounds()
    finished.reopen()
    finished.search()
    later = finished.rounds()[len(before) :]
    assert later
    assert victim.key not in {run.key for made in later for run in made.candidates}
    assert [key for key, *_ in finished.short_run_failures()] == [victim.key]


@pytest.mark.slow
def test_a_short_run_that_ends_its_process_is_left_out_by_the_next_one(small_search: SmallSearch) -> None:
    small_search.register((4, SHORT_DEATH), (10, NOTHING))
    small_search.add_to_conftest(STEADY)
    result = small_search.race_apart(*THRIFTY, "-n", "1")
    result.assert_outcomes(failed=1, passed=2)
    ((key, kind, message),) = small_search.short_run_failures()
    assert key.startswith("SD1.5-DDIM-8-Echo-echo_interval=")
    assert (kind, message) == ("interrupted", "the process ended during this short run; it is tried once more")
    assert len(read_golden(small_search.golden)) == len(TARGETS)


# --- in pytest -------------------------------------------------------------------------------------------------


def test_a_finished_search_leaves_golden_as_it_is_to_the_byte(small_search: SmallSearch, finished_race: Path) -> None:
    shutil.copytree(finished_race / ".diffaccel", small_search.path / ".diffaccel")
    small_search.register(*POINTS)
    golden: list[bytes] = []
    for said in ("7 new", "7 unchanged"):
        result = small_search.race(*THRIFTY)
        result.stdout.fnmatch_lines([f"golden: *: {said}"])
        assert "calibrated" not in result.stdout.str()
        golden.append(small_search.golden.read_bytes())
    assert golden[0] == golden[1]
