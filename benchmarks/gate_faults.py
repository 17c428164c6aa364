"""Does the gate cry wolf on a real machine, and does it name real faults? Real gate runs, each a process of its own.

Run ``python -m benchmarks.gate_faults --folder gate_faults`` on a quiet machine: it records one golden winner
on few samples and the gate's reference of it, runs the gate 20 times unchanged (A/A) and once with each fault, and
prints what came of it; every run has a budget of a minute, and is kept in the folder, so that the same command goes on
where it was interrupted. ``--golden FILE`` judges winners that are recorded already, with their references; what
follows ``--`` then says which, and goes to ``pytest benches --gate``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.output import parser, show
from pytest_diffaccel.records.golden import dump_entries
from pytest_diffaccel.records.golden_file import read_golden

ROOT = Path(__file__).resolve().parent.parent
# A small choice: one cell, one accelerator, one target, few samples.
CELL = ("--pipe", "SD1.5", "--sched", "DDIM", "--steps", "20", "--search-targets", "deepcache")
TARGET = 2.0
SMALL = ("--grid", "coarse", "--num-samples", "2", "--batch-size", "1", "--blocks", "4")
CHOICE = (*CELL, "--gate-slowdown", "5%", "--gate-budget", "1min")


@dataclass(frozen=True)
class Fault:
    """What is broken, and how the gate should name it.

    Attributes:
        name: for people.
        call: injects it (tests/faults.py); {step} is 5% of the time of an unaccelerated step, in seconds.
        exit_code: of the gate.
        named: words of its output.
        unnamed: words that must not be there.
    """

    name: str
    call: str
    exit_code: int
    named: str
    unnamed: str = "improved "


FAULTS = (
    Fault("sleep of 5% of a step", "faults.slow_steps(faults.DeepCache, {step})", 1, "speed regressed: "),
    Fault("wrong cache_branch_id", "faults.other_branch(2)", 1, " regressed: "),
    Fault("a step less", "faults.one_step_less()", 1, "function regressed: 19 denoiser calls for 20 steps"),
    Fault("slower baseline", "faults.slow_baseline(4 * {step})", 0, "of the recorded time", "golden is out of date"),
    Fault("corrupted weight", "faults.corrupt_weight()", 1, "the unaccelerated pipeline draws other pictures"),
    Fault("no effect", "faults.no_effect(faults.DeepCache)", 1, "had no effect"),
)
UNCHANGED = Fault("A-A", "", 0, "gate: ", " regressed: ")


class Proof:
    """The runs, one after the other, as far as they are not kept in the folder already.

    Args:
        folder: where runs are kept.
        golden: whose winners are judged.
        runs: how many there are in all.
    """

    def __init__(self, folder: Path, golden: Path, runs: int) -> None:
        self._folder, self._golden, self._left = folder, golden, runs
        self._seconds: list[float] = []

    def record(self, name: str, options: Sequence[str]) -> None:
        """Record golden winners or a reference.

        Raises:
            SystemExit: when that failed; it is not kept, and the same command tries again.
        """
        found = self._pytest(name, "", options)
        if found["exit"] != 0:
            self._kept(name).unlink()
            raise SystemExit(f"{name} failed; what it printed: {self._kept(name).with_suffix('.txt')}")

    def choose(self) -> None:
        """Keep the winner for :data:`TARGET` only: a minute is enough to judge one."""
        found = {key: entry for key, entry in read_golden(self._golden).items() if key.target == TARGET}
        self._golden.write_text(dump_entries(found), encoding="utf-8")

    def gate(self, name: str, fault: Fault, options: Sequence[str]) -> dict[str, Any]:
        """One gate run: a row of the table."""
        step_s = 0.05 * self._step_s() if fault.call else 0.0
        found = self._pytest(name, fault.call.format(step=step_s), ["--gate", *options])
        text = self._kept(name).with_suffix(".txt").read_text(encoding="utf-8")
        right = found["exit"] == fault.exit_code and fault.named in text and fault.unnamed not in text
        says = [line for line in text.splitlines() if line.startswith("gate: ")]
        return {**found, "says": says[-1] if says else "?", "right": right}

    def _step_s(self) -> float:
        """Time of a step of the recorded unaccelerated pipeline, about: of the first baseline."""
        path = self._golden.with_name("gate.json")
        if path.is_file():
            for name, sessions in json.loads(path.read_text(encoding="utf-8")).items():
                if name.endswith("-baseline"):
                    return float(sessions[0]["baseline_s"]) / int(name.split("-")[-2])
        raise SystemExit(f"{path} holds no baseline: record references with pytest benches --gate --update-golden")

    def _kept(self, name: str) -> Path:
        return self._folder / f"{name.replace(' ', '_')}.json"

    def _pytest(self, name: str, fault: str, options: Sequence[str]) -> dict[str, Any]:
        kept = self._kept(name)
        self._left -= 1
        if kept.is_file():
            found: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))
            return found
        (self._folder / "injected.py").write_text(f"import faults\n{fault}\n" if fault else "", encoding="utf-8")
        command = [sys.executable, "-m", "pytest", str(ROOT / "benches"), "--rootdir", str(ROOT), "-p", "injected"]
        command += ["-p", "no:cacheprovider", "--golden", str(self._golden), *options]
        paths = os.pathsep.join(map(str, (ROOT, ROOT / "tests", self._folder)))
        began = time.monotonic()
        done = subprocess.run(
            command,
            cwd=self._folder,
            env={**os.environ, "PYTHONPATH": paths},
            capture_output=True,
            text=True,
            check=False,
        )
        found = {"run": name, "exit": done.returncode, "s": time.monotonic() - began}
        kept.with_suffix(".txt").write_text(done.stdout + done.stderr, encoding="utf-8")
        kept.write_text(json.dumps(found), encoding="utf-8")
        self._seconds.append(found["s"])
        left_min = self._left * sum(self._seconds) / len(self._seconds) / 60
        print(
            f"{name}: exit {found['exit']}, {found['s']:.0f} s; {self._left} to go, about {left_min:.0f} min",
            flush=True,
        )
        return found


def main() -> None:
    """Run the gate unchanged and with each fault, and print what it said."""
    made = parser(__doc__ or "")
    made.add_argument("--folder", type=Path, default=Path("gate_faults"), help="where runs are kept")
    made.add_argument("--golden", type=Path, help="recorded winners (default: records its own)")
    made.add_argument("--runs", type=int, default=20, help="A/A runs (default: 20)")
    made.add_argument("--references", type=int, default=1, help="sessions to record of own winners (default: 1)")
    made.add_argument("--faults", type=int, default=len(FAULTS), help="how many of the faults (default: all)")
    made.add_argument("options", nargs="*", help="options of the gate, after --")
    arguments = made.parse_args()
    folder = arguments.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    options, faults = arguments.options or CHOICE, FAULTS[: arguments.faults]
    recorded = 0 if arguments.golden else 1 + arguments.references
    golden = (arguments.golden or folder / "golden" / "search_params.json").resolve()
    proof = Proof(folder, golden, recorded + arguments.runs + len(faults))
    if recorded:
        proof.record("golden", [*CELL, *SMALL])
        proof.choose()
        for number in range(arguments.references):
            proof.record(f"reference {number}", ["--gate", "--update-golden", *options])
    unchanged = [proof.gate(f"A-A {number}", UNCHANGED, options) for number in range(arguments.runs)]
    broken = [proof.gate(fault.name, fault, options) for fault in faults]
    summary = {
        "aa_runs": len(unchanged),
        "aa_failures": sum(not row["right"] for row in unchanged),
        "faults": len(broken),
        "faults_named": sum(row["right"] for row in broken),
    }
    show("gate runs of a real pipeline", [*unchanged, *broken], summary, as_json=arguments.json)


if __name__ == "__main__":
    main()
