"""The plain loop, the table of what is true, and the comparison of both with a search."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from searches import embedded_folder

pytest.importorskip("benchmarks.wall_clock", reason="the benchmarks are not part of the source distribution")

from benchmarks import plain_loop, true_table, wall_clock
from benchmarks.output import Progress
from benchmarks.plain_loop import Timed, search_parser, settings_of, winners
from benchmarks.true_table import Answers, Judgement, TruePoint, Truth, conditions, judge
from benchmarks.wall_clock import Looped, Pair, Searched
from pytest_diffaccel.matrix import TARGETS, Candidate, Cell
from pytest_diffaccel.measure.measurement import Block, RunTiming
from pytest_diffaccel.measure.statistics import wall_speedup
from pytest_diffaccel.records.golden_key import GoldenKey
from pytest_diffaccel.settings.search_settings import Settings

CELL = Cell("SD1.5", "DDIM", 20)
MAX_LOSS = 0.25
OPTIONS = ("--pipe", "SD1.5", "--sched", "DDIM", "--steps", "20", "--search-targets", "tome", "--grid", "coarse")
LOOP, SEARCH = "plain loop", "search"


def candidate(interval: int) -> Candidate:
    return Candidate(CELL, "DeepCache", {"DeepCache": {"cache_interval": interval, "cache_branch_id": 0}})


def key(target: float) -> GoldenKey:
    return GoldenKey(Cell("SD1.5", "DDIM", 20), "DeepCache", target)


def point(interval: int, speedup: float, loss: float, *, noise: float = 0.001, contends: bool = True) -> TruePoint:
    """A point of eight blocks; the noise is of a baseline run."""
    blocks = [(speedup * (1 + noise * side), 1.0) for side in (-1.0, 1.0) * 4]
    return TruePoint(candidate(interval), contends, (loss, loss), blocks)


def truth(*points: TruePoint) -> Truth:
    return Truth({}, "a CPU", {one.candidate.key: one for one in points})


def settings(*options: str) -> Settings:
    return settings_of(search_parser().parse_args([*OPTIONS, *options]))


def judged(table: Truth, answers: Answers) -> Judgement:
    """Answers judged; those of the other targets are that they are not met."""
    return judge(table, {**{key(target): None for target in TARGETS}, **answers}, MAX_LOSS)


def test_the_loop_names_the_least_loss_that_reaches_each_target() -> None:
    timed = [
        Timed(candidate(2), 1.0, 1.6, (0.01, 0.03)),
        Timed(candidate(3), 0.9, 1.8, (0.05, 0.05)),
        Timed(candidate(4), 0.8, 2.1, (0.04, 0.04)),
        Timed(candidate(9), 0.5, 3.5, (0.3, 0.3)),
    ]
    expected = [candidate(2), candidate(2), candidate(4), candidate(4), None, None, None]
    assert winners(timed, MAX_LOSS) == dict(zip(map(key, TARGETS), expected, strict=True))
    assert winners(timed, 0.4)[key(3.0)] == candidate(9)


TABLE = truth(
    point(2, 1.6, 0.010),
    point(3, 1.9, 0.0500),
    point(4, 2.1, 0.0505),
    point(5, 2.6, 0.100),
    point(9, 4.5, 0.300),
)


def test_true_winners_are_those_of_the_table() -> None:
    assert TABLE.keys == [key(target) for target in TARGETS]
    assert TABLE.blocks == 8
    found = [TABLE.winner(one, MAX_LOSS) for one in TABLE.keys]
    assert [one and one.candidate.params["DeepCache"]["cache_interval"] for one in found] == [2, 2, 3, 4, 5, None, None]
    assert TABLE.winner(key(4.0), 0.4) is TABLE.points[candidate(9).key]


def test_answers_are_counted_by_what_is_wrong_with_them() -> None:
    right: Answers = {key(target): candidate(n) for target, n in ((1.2, 2), (1.5, 2), (1.8, 3), (2.0, 4), (2.5, 5))}
    assert judged(TABLE, right) == Judgement(7, 7, 0, 0, 0, 0)
    # Within 2% of the winner's loss, and fast enough.
    assert judged(TABLE, {**right, key(1.8): candidate(4)}).right == 7
    # Fast enough, and worse: neither right nor false.
    assert judged(TABLE, {**right, key(1.5): candidate(3)}) == Judgement(7, 6, 0, 0, 0, 0)
    # Surely too slow.
    assert judged(TABLE, {**right, key(2.5): candidate(4)}) == Judgement(7, 6, 1, 0, 0, 0)
    assert judged(TABLE, {**right, key(3.0): candidate(5)}) == Judgement(7, 6, 1, 0, 0, 0)
    # Fast, but truth allows no such loss.
    assert judged(TABLE, {**right, key(4.0): candidate(9)}) == Judgement(7, 6, 0, 0, 0, 0)
    assert judged(TABLE, {**right, key(2.0): None}) == Judgement(7, 6, 0, 1, 0, 0)
    assert judged(TABLE, {**right, key(2.0): candidate(7)}) == Judgement(7, 6, 0, 0, 0, 1)


def test_what_is_not_said_is_undecided() -> None:
    assert judge(TABLE, {key(1.2): candidate(2), key(4.0): None}, MAX_LOSS) == Judgement(7, 2, 0, 0, 5, 0)


def test_what_truth_cannot_tell_is_not_called_false() -> None:
    # Between 1.45 and 1.58: it may reach 1.5, and may not.
    table = truth(point(3, 1.52, 0.05, noise=0.05))
    assert table.points[candidate(3).key].speedup.low < 1.5 < table.points[candidate(3).key].speedup.high
    assert not table.is_sure(key(1.5), MAX_LOSS)
    assert table.is_sure(key(1.2), MAX_LOSS)
    assert judged(table, {key(1.2): candidate(3), key(1.5): candidate(3)}).right == 7
    assert judged(table, {key(1.2): candidate(3)}) == Judgement(7, 6, 0, 0, 0, 0)
    answers = dict.fromkeys(table.keys) | {key(1.2): candidate(3)}
    assert judge(table, answers, MAX_LOSS, sure_only=True) == Judgement(6, 6, 0, 0, 0, 0)
    # The tolerance is the search's.
    assert judged(truth(point(3, 1.48, 0.05)), {key(1.2): candidate(3), key(1.5): candidate(3)}).false_met == 0
    assert judged(truth(point(3, 1.44, 0.05)), {key(1.2): candidate(3), key(1.5): candidate(3)}).false_met == 1


def test_points_beyond_the_grid_are_judged_and_never_expected() -> None:
    table = truth(point(2, 1.6, 0.05), point(7, 2.6, 0.01, contends=False))
    assert table.winner(key(2.5), MAX_LOSS) is None
    answers: Answers = {key(target): candidate(7) for target in (1.2, 1.5)}
    assert judged(table, answers) == Judgement(7, 7, 0, 0, 0, 0)
    # A find, where the grid has nothing; what loses too much is none.
    assert judged(table, {**answers, key(2.5): candidate(7)}) == Judgement(7, 7, 0, 0, 0, 0)
    lossy = truth(point(2, 1.6, 0.05), point(7, 2.6, 0.3, contends=False))
    assert judged(lossy, {key(1.2): candidate(2), key(1.5): candidate(2), key(2.5): candidate(7)}).right == 6


def test_losses_that_nobody_can_tell_apart_are_equal() -> None:
    table = truth(point(2, 1.6, 0.0001), point(3, 1.7, 0.00015), point(4, 1.7, 0.0003))
    for n, right in ((2, 7), (3, 7), (4, 5)):
        assert judged(table, {key(target): candidate(n) for target in (1.2, 1.5)}).right == right


def test_a_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    wanted = conditions(settings())
    path = tmp_path / "data" / "table.json"
    Truth(wanted, "a CPU", dict(TABLE.points)).write(path)
    read = Truth.read(path, wanted)
    assert (read.device, read.blocks, read.keys) == ("a CPU", 8, TABLE.keys)
    assert read.points[candidate(3).key].losses == (0.05, 0.05)
    text = path.read_text()
    written = json.loads(text)["points"][candidate(3).key]
    blocks = [Block(RunTiming(a, (), ()), (RunTiming(b, (), ()),)) for a, b in written["seconds"]]
    assert written["speedup"][0] == pytest.approx(wall_speedup(blocks).value, abs=1e-4)
    assert written["lpips"] == 0.05
    # The same text again: a diff shows what changed.
    read.write(path)
    assert path.read_text() == text
    assert len(text.splitlines()) == 2 + len(TABLE.points)
    with pytest.raises(SystemExit, match="name another file"):
        Truth.read(path, conditions(settings("--num-samples", "3")))


def test_a_table_does_not_depend_on_accelerators_of_other_pipes() -> None:
    """One that is added for transformers leaves the tables of UNets as they are."""
    parser = search_parser()
    every, unets = (settings_of(parser.parse_args([*OPTIONS[:6], *more])) for more in ((), ("--search-targets", "all")))
    assert conditions(every) == conditions(unets)
    assert "ToMe" in conditions(every)["accelerators"]
    assert "MagCache" not in conditions(every)["accelerators"]
    assert "MagCache" in every.accelerators


def test_what_is_left_is_told_at_the_pace_so_far(capsys: pytest.CaptureFixture[str]) -> None:
    ticks = iter([100.0, 160.0])
    Progress(100, "calls", clock=lambda: next(ticks)).add(10, "scored")
    assert capsys.readouterr().err == "scored: 10 of 100 calls, 9 min left\n"
    ticks = iter([0.0, 20.0, 40.0, 60.0, 80.0])
    seldom = Progress(4, "points", 30.0, lambda: next(ticks))
    for _ in range(3):
        seldom.add(1, "loop")
    assert capsys.readouterr().err == "loop: 2 of 4 points, 40 s left\n"


def test_what_is_left_of_a_table_is_counted_in_calls() -> None:
    # Two points of the table lack a block of the two that are wanted: two runs and a baseline's.
    fewer = truth(point(2, 1.6, 0.01), point(3, 1.9, 0.05))
    for one in fewer.points.values():
        del one.seconds[1:]
    assert true_table._calls_left(fewer, 2, 2) == 3


def golden_entry(status: str, interval: int, speedup: float) -> dict[str, Any]:
    ends = [speedup * 0.98, speedup * 1.02]
    return {"status": status, "params": candidate(interval).params, "speedup": speedup, "speedup_ci95": ends}


def test_a_golden_file_says_what_it_says() -> None:
    golden = [
        (key(1.2), golden_entry("met", 2, 1.6)),
        (key(1.5), golden_entry("met", 2, 1.6)),
        (key(2.0), golden_entry("met", 4, 2.1) | {"speedup_ci95": [2.0, 2.2]}),
        (key(3.0), golden_entry("unattainable", 5, 2.6)),
        (key(4.0), golden_entry("undecided", 5, 2.6)),
    ]
    assert wall_clock.answers_of(golden) == {
        key(1.2): candidate(2),
        key(1.5): candidate(2),
        key(2.0): candidate(4),
        key(3.0): None,
    }
    # Two winners, of 2% and 4.8%.
    assert wall_clock.half_width(golden) == pytest.approx((0.02 + 0.1 / 2.1) / 2)
    assert wall_clock.half_width(golden[-1:]) is None


def case(name: str, second: float, duration_s: float, **more: Any) -> dict[str, Any]:
    ended_at = f"1970-01-01T00:00:{second:06.3f}+00:00"
    return {"nodeid": f"benches/test_search.py::{name}[x]", "ended_at": ended_at, "duration_s": duration_s, **more}


def test_a_log_tells_where_the_time_went() -> None:
    cases = [
        case("test_search", 14.0, 4.0),
        case("test_search", 15.0, 1.0),
        case("test_winners", 20.0, 5.0, winners={"a key": {}}),
        case("test_winners", 22.0, 2.0, winners={"another": {}}),
    ]
    assert wall_clock.first_winners_s(cases) == pytest.approx(10.0)
    assert wall_clock.first_winners_s(cases[:2]) is None
    assert wall_clock.phases_s(cases, 8.0, 15.0) == pytest.approx(
        {"start": 2.0, "candidates' cases": 5.0, "winners' cases": 7.0, "end": 1.0}
    )
    cases[0] |= {"provisional": {"a key": {}}, "phases_s": {"timing": 3.0, "pictures": 1.0}}
    cases[2] |= {"phases_s": {"timing": 4.0}}
    assert wall_clock.first_winners_s(cases) == pytest.approx(4.0)
    assert wall_clock.phases_s(cases, 8.0, 15.0) == pytest.approx(
        {"start": 2.0, "timing": 7.0, "pictures": 1.0, "end": 1.0}
    )


def pair(loop_s: float, search_s: float, answers: Answers) -> Pair:
    searched = Searched(search_s, answers, 0.02, 5.0, {"start": 1.0, "end": search_s - 1.0})
    return Pair(LOOP, Looped(loop_s, {key(4.0): None}, "a CPU"), searched)


def test_pairs_become_a_row_of_their_setting(tmp_path: Path) -> None:
    pairs = [pair(30.0, 10.0, {key(1.2): candidate(2), key(4.0): None}), pair(20.0, 10.0, {key(1.2): candidate(2)})]
    verdicts = wall_clock.judged(pairs, TABLE, MAX_LOSS)
    sure = wall_clock.judged(pairs, TABLE, MAX_LOSS, sure_only=True)
    row = wall_clock.setting_row("quiet", "command", pairs, verdicts, sure)
    assert (row["brute_force_s"], row["ours_s"], row["ratio"], row["repeats"]) == (25.0, 10.0, 0.417, 2)
    assert (row["right"], row["right_of_brute_force"], row["undecided"], row["targets"]) == (1.5, 1.0, 5.5, 7)
    assert (row["half_width_median"], row["first_winners_s"], row["phases_s"]) == (
        0.02,
        5.0,
        {"start": 1.0, "end": 9.0},
    )
    assert (row["sure_targets"], row["right_of_sure"], row["right_of_sure_of_brute_force"]) == (7, 1.5, 1.0)
    assert wall_clock.pair_rows(pairs, verdicts)[0]["right"] == "2/7"
    unjudged = wall_clock.setting_row("busy", "command", pairs, [], [])
    assert (unjudged["right"], unjudged["false_met"], unjudged["ratio"]) == (None, None, 0.417)
    figures = tmp_path / "figures" / "wall_clock.json"
    for one in (row, unjudged, {**row, "ratio": 0.5}):
        wall_clock.merge_row(figures, one)
    rows = json.loads(figures.read_text())["rows"]
    assert [(one["setting"], one["ratio"]) for one in rows] == [("busy", 0.417), ("quiet", 0.5)]


def test_pairs_take_turns_and_what_is_finished_is_not_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = []

    def run(command: list[str], cwd: Path, **_: Any) -> Any:
        loop = "benchmarks.plain_loop" in command
        ran.append(cwd.name)
        assert command[-len(OPTIONS) :] == [*OPTIONS]
        if loop:
            (cwd / "loop.json").write_text(json.dumps({"winners": {str(key(1.2)): None}, "device": "a CPU"}))
        else:
            assert command[command.index("-n") + 1] == "2"
            (cwd / "golden.json").write_text(json.dumps({str(key(1.2)): golden_entry("met", 2, 1.6)}))
            (cwd / "cases.jsonl").write_text(json.dumps(case("test_search", 14.0, 4.0)) + "\n")
        return type("Done", (), {"returncode": 0})

    monkeypatch.setattr("benchmarks.wall_clock.subprocess.run", run)
    table = tmp_path / "table.json"
    Truth(conditions(settings()), "a CPU", dict(TABLE.points)).write(table)
    arguments = [
        "--repeats",
        "2",
        "--workers",
        "2",
        "--folder",
        str(tmp_path / "runs"),
        "--truth",
        str(table),
        "--json",
    ]
    arguments += ["--setting", "tiny", "--figures", str(tmp_path / "figures.json"), "--", *OPTIONS]
    for _ in range(2):
        monkeypatch.setattr(sys, "argv", ["wall_clock", *arguments])
        wall_clock.main()
    assert ran == ["plain-loop-1", "search-1", "search-2", "plain-loop-2"]
    printed = json.loads(capsys.readouterr().out.split("}\n{")[0] + "}")
    assert [row["first"] for row in printed["rows"]] == [LOOP, SEARCH]
    assert (printed["right"], printed["undecided"], printed["false_unattainable_of_brute_force"]) == (1, 6, 1)
    assert printed["command"].endswith(" ".join(OPTIONS))
    assert json.loads((tmp_path / "figures.json").read_text())["rows"][0]["setting"] == "tiny"
    monkeypatch.setattr(sys, "argv", ["wall_clock", "--folder", str(tmp_path / "runs"), "--", *OPTIONS, "--seed", "1"])
    with pytest.raises(SystemExit, match="holds another comparison"):
        wall_clock.main()


def test_a_busy_process_runs_meanwhile_and_no_longer() -> None:
    before = set(psutil.Process().children())
    with wall_clock._busy_process():
        (busy,) = set(psutil.Process().children()) - before
        assert busy.is_running()
    assert not busy.is_running()


def test_options_mean_what_they_mean_in_a_search() -> None:
    read = settings("--num-samples", "2", "--prompts", "prompts.txt")
    assert (read.cells, read.accelerators, read.coarse, read.num_samples) == ((CELL,), ("ToMe",), True, 2)
    assert read.batch_size == 2  # as many as there are samples
    assert len(plain_loop.points(read, CELL)) == 4
    with pytest.raises(SystemExit, match="--sched: 'Euler' is unknown"):
        settings("--sched", "Euler")


def test_the_loop_and_the_table_run_on_a_pipeline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    models = tmp_path / "models.toml"
    models.write_text(
        f'"SD1.5" = {{ path = "{embedded_folder("SD1.5")}", height = 32, width = 32, guidance_scale = 5.0 }}\n'
    )
    # Fewer steps than a search can be told: quick.
    cell = Cell("SD1.5", "DDIM", 3)
    small = replace(settings("--models", str(models), "--num-samples", "3", "--batch-size", "2"), cells=(cell,))
    # Of the whole process, and tests that follow want it as it was.
    monkeypatch.setattr("diffusers.utils.logging.set_verbosity_error", lambda: None)
    for module in ("plain_loop", "wall_clock"):
        monkeypatch.setattr(f"benchmarks.{module}.settings_of", lambda _: small)
    monkeypatch.setattr(sys, "argv", ["plain_loop", "--result", str(tmp_path / "loop.json")])
    plain_loop.main()
    looped = json.loads((tmp_path / "loop.json").read_text())
    assert [one["candidate"] for one in looped["points"]] == [one.key for one in plain_loop.points(small, cell)]
    assert all(len(one["lpips"]) == 3 and min(one["lpips"]) > 0 and one["seconds"] > 0 for one in looped["points"])
    assert sum(one["seconds"] for one in looped["points"]) < looped["seconds"]
    assert set(looped["winners"]) == {str(GoldenKey(Cell("SD1.5", "DDIM", 3), "ToMe", target)) for target in TARGETS}

    table = tmp_path / "table.json"
    for blocks in ("1", "2", "2"):
        monkeypatch.setattr(sys, "argv", ["wall_clock", "--make-truth", str(table), "--blocks", blocks, "--json"])
        capsys.readouterr()
        wall_clock.main()
        said = capsys.readouterr()
        assert json.loads(said.out)["blocks"] == int(blocks)
    assert not said.err  # nothing was left to do
    made = json.loads(table.read_text())
    assert made["device"] == looped["device"]
    # The same pictures, made otherwise, lose as much.
    for one in looped["points"]:
        assert made["points"][one["candidate"]]["losses"] == pytest.approx(one["lpips"], abs=2e-6)
        assert len(made["points"][one["candidate"]]["seconds"]) == 2

    # A winner that a search found beyond the grid.
    beyond = Candidate(cell, "ToMe", {"ToMe": {"ratio": 0.45, "max_downsample": 2}})
    found = tmp_path / "runs" / "search-1" / "golden.json"
    found.parent.mkdir(parents=True)
    name = str(GoldenKey(Cell("SD1.5", "DDIM", 3), "ToMe", 1.2))
    found.write_text(json.dumps({name: {"status": "met", "params": beyond.params}}))
    also = ["--also", str(tmp_path / "runs"), "--blocks", "2", "--json"]
    monkeypatch.setattr(sys, "argv", ["wall_clock", "--make-truth", str(table), *also])
    wall_clock.main()
    assert json.loads(capsys.readouterr().out)["points"] == len(looped["points"]) + 1
    points = json.loads(table.read_text())["points"]
    assert (points[beyond.key]["contends"], len(points[beyond.key]["seconds"])) == (False, 2)
    assert {key: one for key, one in points.items() if key != beyond.key} == made["points"]
