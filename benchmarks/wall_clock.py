"""Does a search beat the brute force that it replaces, on the clock? Both as whole processes, taking turns.

Run ``python -m benchmarks.wall_clock --repeats 3 -- --pipe SD1.5 --sched DDIM --steps 20 --grid coarse`` on a quiet
machine; what follows ``--`` goes to both, to :mod:`benchmarks.plain_loop` and to ``pytest benches``. Each run starts
from nothing, in a folder of its own, and is timed from outside, imports included; the pairs take turns in who is first.
On two CPU cores a pair of one cell takes 5 to 15 minutes with the coarse grid, and about an hour with the full one.
``--folder`` keeps the runs, and the same command goes on where it was interrupted.

With ``--truth FILE`` the winners of both are judged by a table of what is true, which
``python -m benchmarks.wall_clock --make-truth FILE --blocks 8 -- <options>`` makes once: in about a quarter of an hour
for the coarse grid of one cell, and two hours for the full one. :mod:`benchmarks.true_table` says how, and what counts
as right. A search of the full grid may name points beyond it: ``--also FOLDER`` adds to the table those that the runs
in ``--folder FOLDER`` named. ``--setting NAME`` keeps the result as that setting's row of
``docs/figures/wall_clock.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from datetime import datetime
from pathlib import Path
from typing import Any

from benchmarks.output import parser, show
from benchmarks.plain_loop import search_parser, settings_of
from benchmarks.true_table import Answers, Judgement, Truth, conditions, judge, make, named
from pytest_diffaccel.matrix import Candidate, Params
from pytest_diffaccel.records.golden_key import GoldenKey
from pytest_diffaccel.records.jsonfile import write_text
from pytest_diffaccel.settings.option_types import count
from pytest_diffaccel.settings.search_settings import Settings

ROOT = Path(__file__).resolve().parent.parent
_FIGURES = ROOT / "docs" / "figures" / "wall_clock.json"
_LOOP, _SEARCH = "plain loop", "search"
_GOLDEN, _LOG, _RESULT = "golden.json", "cases.jsonl", "loop.json"
# How a record of --diffaccel-log says that it has winners to show.
_SHOWN = ("winners", "golden", "provisional")


@dataclass(frozen=True)
class Looped:
    """What a plain loop left.

    Attributes:
        seconds: of the whole process.
        answers: its winners.
        device: what it ran on.
    """

    seconds: float
    answers: Answers
    device: str

    @classmethod
    def read(cls, folder: Path) -> Looped:
        """From its folder."""
        result = _json(folder / _RESULT)
        answers = {key: _winner(key, params) for key, params in _keyed(result["winners"])}
        return cls(_json(folder / "finished.json")["seconds"], answers, result["device"])


@dataclass(frozen=True)
class Searched:
    """What a search left.

    Attributes:
        seconds: of the whole process.
        answers: its winners; a key that is undecided is absent.
        half_width: median half-width of the winners' 95% intervals of the speed-up, as a share of it; None without any.
        first_winners_s: from the beginning of the first case until winners were shown; None if they never were.
        phases_s: where its time went.
    """

    seconds: float
    answers: Answers
    half_width: float | None
    first_winners_s: float | None
    phases_s: Mapping[str, float]

    @classmethod
    def read(cls, folder: Path) -> Searched:
        """From its folder."""
        finished = _json(folder / "finished.json")
        golden = _keyed(_json(folder / _GOLDEN))
        cases = [json.loads(line) for line in (folder / _LOG).read_text(encoding="utf-8").splitlines()]
        return cls(
            seconds=finished["seconds"],
            answers=answers_of(golden),
            half_width=half_width(golden),
            first_winners_s=first_winners_s(cases),
            phases_s=phases_s(cases, finished["began_at"], finished["seconds"]),
        )


@dataclass(frozen=True)
class Pair:
    """A plain loop and a search of the same cells.

    Attributes:
        first: which of the two ran first.
        looped: the plain loop.
        searched: the search.
    """

    first: str
    looped: Looped
    searched: Searched

    @property
    def ratio(self) -> float:
        """The search's time as a share of the plain loop's: below 1 it was sooner done."""
        return self.searched.seconds / self.looped.seconds


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _keyed(entries: Mapping[str, Any]) -> list[tuple[GoldenKey, Any]]:
    return [(GoldenKey.parse(text), entry) for text, entry in entries.items()]


def _winner(key: GoldenKey, params: Params | None) -> Candidate | None:
    return Candidate(key.cell, key.accelerator, params) if params else None


def answers_of(golden: Sequence[tuple[GoldenKey, Mapping[str, Any]]]) -> Answers:
    """What a golden file's entries say; those of another status than met and unattainable say nothing."""
    return {
        key: _winner(key, entry["params"]) if entry["status"] == "met" else None
        for key, entry in golden
        if entry["status"] in ("met", "unattainable")
    }


def half_width(golden: Sequence[tuple[GoldenKey, Mapping[str, Any]]]) -> float | None:
    """Median half-width of the winners' intervals, as a share of the speed-up; a winner of several targets once."""
    widths = {
        (key.accelerator, json.dumps(entry["params"])): (high - low) / 2 / entry["speedup"]
        for key, entry in golden
        if entry["status"] == "met"
        for low, high in [entry["speedup_ci95"]]
    }
    return statistics.median(widths.values()) if widths else None


def first_winners_s(cases: Sequence[Mapping[str, Any]]) -> float | None:
    """Seconds from the beginning of the first case to the end of the first that had winners to show."""
    shown = [_ended_at(case) for case in cases if any(case.get(name) for name in _SHOWN)]
    return min(shown) - _first_began_at(cases) if shown else None


def phases_s(cases: Sequence[Mapping[str, Any]], began_at: float, seconds: float) -> dict[str, float]:
    """Where a search's time went, of all workers together.

    Args:
        cases: records of its log; each may tell phases of its own, which are summed.
        began_at: when the process was started, seconds since the epoch.
        seconds: how long it took.

    Returns:
        Seconds by name: ``start`` is until the first case began, ``end`` after the last one ended.
    """
    phases = {"start": _first_began_at(cases) - began_at}
    told = any(case.get("phases_s") for case in cases)
    for case in cases:
        part = "winners' cases" if "::test_winners" in case["nodeid"] else "candidates' cases"
        for name, took_s in case.get("phases_s", {}).items() if told else [(part, case["duration_s"])]:
            phases[name] = phases.get(name, 0.0) + took_s
    phases["end"] = began_at + seconds - max(_ended_at(case) for case in cases)
    return phases


def _ended_at(case: Mapping[str, Any]) -> float:
    return datetime.fromisoformat(case["ended_at"]).timestamp()


def _first_began_at(cases: Sequence[Mapping[str, Any]]) -> float:
    return min(_ended_at(case) - float(case["duration_s"]) for case in cases)


@dataclass(frozen=True)
class Plan:
    """What is run.

    Attributes:
        options: of ``pytest benches``, as given.
        settings: what they mean.
        workers: of the search; 0 for its own process.
        busy: whether another process keeps a core busy meanwhile.
    """

    options: Sequence[str]
    settings: Settings
    workers: int
    busy: bool

    def run(self, kind: str, folder: Path) -> None:
        """Run the plain loop or the search, from nothing, unless ``folder`` holds a finished one.

        Raises:
            SystemExit: when it fails; its output went to standard error.
        """
        if (folder / "finished.json").exists():
            return
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        with _busy_process() if self.busy else ExitStack():
            began_at, began = time.time(), time.monotonic()
            command = [sys.executable, "-m", *self._command(kind)]
            # This clone's package, whatever is installed.
            path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
            environment = {**os.environ, "PYTHONPATH": path}
            code = subprocess.run(command, cwd=folder, env=environment, stdout=sys.stderr).returncode
            seconds = time.monotonic() - began
        if code:
            raise SystemExit(f"the {kind} failed (exit code {code}); see above")
        write_text(folder / "finished.json", json.dumps({"began_at": began_at, "seconds": seconds}) + "\n")
        print(f"{kind}: {seconds:.1f} s", file=sys.stderr)

    def _command(self, kind: str) -> list[str]:
        if kind == _LOOP:
            return ["benchmarks.plain_loop", "--result", _RESULT, *self._options]
        workers = ["-n", str(self.workers)] if self.workers else []
        where = ["--rootdir", str(ROOT), "-p", "no:cacheprovider", "--golden", _GOLDEN, "--diffaccel-log", _LOG]
        return ["pytest", str(ROOT / "benches"), *where, *workers, *self._options]

    @property
    def _options(self) -> list[str]:
        """The options, with files named so that they are found from another folder."""
        given = {"--models": self.settings.models, "--prompts": self.settings.prompts}
        files = {option: Path(value).resolve() for option, value in given.items() if value and Path(value).is_file()}
        return [*self.options, *(f"{option}={path}" for option, path in files.items())]


@contextmanager
def _busy_process() -> Iterator[None]:
    """Keep a core busy."""
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        busy.kill()
        busy.wait()


def run_pairs(plan: Plan, folder: Path, repeats: int) -> list[Pair]:
    """Run both ``repeats`` times, each pair in the other order than the one before."""
    pairs = []
    for repeat in range(1, repeats + 1):
        order = (_LOOP, _SEARCH) if repeat % 2 else (_SEARCH, _LOOP)
        places = {kind: folder / f"{kind.replace(' ', '-')}-{repeat}" for kind in order}
        for kind in order:
            plan.run(kind, places[kind])
        pairs.append(Pair(order[0], Looped.read(places[_LOOP]), Searched.read(places[_SEARCH])))
    return pairs


def judged(
    pairs: Sequence[Pair], truth: Truth, max_loss: float, *, sure_only: bool = False
) -> list[tuple[Judgement, Judgement]]:
    """The plain loop and the search of each pair, judged (:func:`.true_table.judge`)."""
    answers = [(pair.looped.answers, pair.searched.answers) for pair in pairs]
    return [
        (judge(truth, loop, max_loss, sure_only=sure_only), judge(truth, search, max_loss, sure_only=sure_only))
        for loop, search in answers
    ]


def pair_rows(pairs: Sequence[Pair], verdicts: Sequence[tuple[Judgement, Judgement]]) -> list[dict[str, Any]]:
    """A row per pair, narrow enough for a terminal; without verdicts, it does not say who is right."""
    rows: list[dict[str, Any]] = [
        {
            "pair": place,
            "first": pair.first,
            "brute_force_s": pair.looped.seconds,
            "ours_s": pair.searched.seconds,
            "ratio": pair.ratio,
        }
        for place, pair in enumerate(pairs, 1)
    ]
    for row, (loop, search) in zip(rows, verdicts, strict=False):
        row["right"] = f"{search.right}/{search.targets}"
        row["right_of_brute_force"] = f"{loop.right}/{loop.targets}"
    return rows


def setting_row(
    setting: str,
    command: str,
    pairs: Sequence[Pair],
    verdicts: Sequence[tuple[Judgement, Judgement]],
    sure: Sequence[tuple[Judgement, Judgement]],
) -> dict[str, Any]:
    """All pairs of a setting as one row: medians of times, means of counts, None for what is not known.

    Args:
        setting: its name.
        command: how to run it again.
        pairs: at least one.
        verdicts: of each, the plain loop and the search; empty without a table of truth.
        sure: the same of the targets that the table is sure of.
    """
    searches = [pair.searched for pair in pairs]
    row: dict[str, Any] = {
        "setting": setting,
        "brute_force_s": _median([pair.looped.seconds for pair in pairs]),
        "ours_s": _median([one.seconds for one in searches]),
        "ratio": _median([pair.ratio for pair in pairs], decimals=3),
        "targets": verdicts[0][0].targets if verdicts else None,
    }
    for field in fields(Judgement):
        if field.name != "targets":
            row[field.name] = _mean([getattr(search, field.name) for _, search in verdicts])
    for name in ("right", "false_met", "false_unattainable"):
        row[f"{name}_of_brute_force"] = _mean([getattr(loop, name) for loop, _ in verdicts])
    row["sure_targets"] = sure[0][0].targets if sure else None
    row["right_of_sure"] = _mean([search.right for _, search in sure])
    row["right_of_sure_of_brute_force"] = _mean([loop.right for loop, _ in sure])
    names = dict.fromkeys(name for one in searches for name in one.phases_s)
    return {
        **row,
        "half_width_median": _median([one.half_width for one in searches], decimals=4),
        "first_winners_s": _median([one.first_winners_s for one in searches]),
        "phases_s": {name: _median([one.phases_s.get(name, 0.0) for one in searches]) for name in names},
        "device": pairs[0].looped.device,
        "command": command,
        "repeats": len(pairs),
    }


def _median(values: Sequence[float | None], decimals: int = 2) -> float | None:
    known = [value for value in values if value is not None]
    return round(statistics.median(known), decimals) if known else None


def _mean(values: Sequence[int]) -> float | None:
    return round(statistics.fmean(values), 2) if values else None


def merge_row(path: Path, row: Mapping[str, Any]) -> None:
    """Put a setting's row into a file of rows, in place of what it held of that setting."""
    rows = _json(path)["rows"] if path.exists() else []
    others = [one for one in rows if one["setting"] != row["setting"]]
    merged = sorted([*others, row], key=lambda one: str(one["setting"]))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps({"rows": merged}, indent=2) + "\n")


def _check_folder(folder: Path, plan: Plan) -> None:
    """A folder is for one comparison: pairs of several mean nothing together."""
    note = folder / "options.json"
    told = {"options": list(plan.options), "workers": plan.workers, "busy": plan.busy}
    if note.exists() and _json(note) != told:
        raise SystemExit(f"--folder: {folder} holds another comparison ({note.name} says which); name another folder")
    folder.mkdir(parents=True, exist_ok=True)
    write_text(note, json.dumps(told) + "\n")


def compare(arguments: argparse.Namespace, plan: Plan) -> None:
    """Run the pairs, judge them, print them, and keep the row if its setting has a name."""
    max_loss = plan.settings.quality.worst
    truth = Truth.read(arguments.truth, conditions(plan.settings)) if arguments.truth else None
    if truth and not truth.blocks:
        raise SystemExit(f"--truth: {arguments.truth} is not finished; make it with --make-truth")
    with ExitStack() as stack:
        folder = arguments.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        _check_folder(folder, plan)
        pairs = run_pairs(plan, folder, arguments.repeats)
    verdicts = judged(pairs, truth, max_loss) if truth else []
    sure = judged(pairs, truth, max_loss, sure_only=True) if truth else []
    if any(one.unknown for pair in verdicts for one in pair):
        print("winners that the table lacks: add them with --make-truth FILE --also FOLDER", file=sys.stderr)
    if truth and truth.device != pairs[0].looped.device:
        print(f"the table's speed-ups are those of another machine: {truth.device}", file=sys.stderr)
    row = setting_row(arguments.setting or " ".join(plan.options), _command(arguments), pairs, verdicts, sure)
    if arguments.setting:
        merge_row(arguments.figures, row)
    shown = row if arguments.json else {name: value for name, value in _flat(row).items() if name != "command"}
    show("plain loop and search, whole processes", pair_rows(pairs, verdicts), shown, as_json=arguments.json)


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row with a line for each phase."""
    phases = {f"  {name}": value for name, value in row["phases_s"].items()}
    rest = {name: value for name, value in row.items() if name != "phases_s"}
    return {**rest, "phases_s": "", **phases}


def _command(arguments: argparse.Namespace) -> str:
    """How to run it again, without where runs and figures were kept."""
    parts = ["python", "-m", "benchmarks.wall_clock", "--repeats", str(arguments.repeats)]
    parts += ["--workers", str(arguments.workers)] if arguments.workers else []
    parts += ["--busy"] if arguments.busy else []
    parts += ["--truth", os.path.relpath(arguments.truth, ROOT)] if arguments.truth else []
    return shlex.join([*parts, "--", *arguments.options])


def make_truth(arguments: argparse.Namespace, settings: Settings) -> None:
    """Make the table, or go on with it, and print what it tells."""
    goldens = sorted(arguments.also.glob(f"{_SEARCH}-*/{_GOLDEN}")) if arguments.also else []
    also = named(answers_of(_keyed(_json(path))) for path in goldens)
    truth = make(arguments.make_truth, settings, arguments.blocks, also)
    every = truth.points.values()
    summary = {
        "points": len(every),
        "of_the_grid_and_acting": sum(one.contends for one in every),
        "blocks": truth.blocks,
        "half_width_median": statistics.median(one.speedup.half_width_ratio for one in every),
        "targets": len(truth.keys),
        "targets_met": sum(truth.winner(key, settings.quality.worst) is not None for key in truth.keys),
        "winners_that_are_sure": sum(truth.is_sure(key, settings.quality.worst) for key in truth.keys),
        "device": truth.device,
    }
    show(f"{arguments.make_truth.name}: what is true", [], summary, as_json=arguments.json)


def main() -> None:
    """Compare, or make the table that comparisons are judged by."""
    made = parser(__doc__ or "")
    made.formatter_class = argparse.RawDescriptionHelpFormatter
    made.add_argument("--repeats", type=count, default=1, metavar="N", help="pairs of runs (default: 1)")
    made.add_argument("--workers", type=count, default=0, metavar="N", help="workers of the search (pytest -n N)")
    made.add_argument("--busy", action="store_true", help="keep a core busy with something else meanwhile")
    made.add_argument("--folder", type=Path, help="keep the runs here, and go on from what it holds")
    made.add_argument("--truth", type=Path, metavar="FILE", help="judge the winners by this table")
    made.add_argument("--setting", metavar="NAME", help=f"keep the result as this row of {_FIGURES.name}")
    made.add_argument("--figures", type=Path, default=_FIGURES, metavar="FILE", help="where rows are kept")
    made.add_argument("--make-truth", type=Path, metavar="FILE", help="make the table, or go on with it")
    made.add_argument("--blocks", type=count, default=8, metavar="N", help="timed blocks of a table (default: 8)")
    made.add_argument("--also", type=Path, metavar="FOLDER", help="add to the table what runs kept there have named")
    made.add_argument("options", nargs="*", help="options of pytest benches, after --")
    arguments = made.parse_args()
    settings = settings_of(search_parser().parse_args(arguments.options))
    if arguments.make_truth:
        make_truth(arguments, settings)
    else:
        compare(arguments, Plan(arguments.options, settings, arguments.workers, arguments.busy))


if __name__ == "__main__":
    main()
