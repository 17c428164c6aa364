"""Does the gate cry wolf on a real machine, and does it name real faults? Real gate runs, each a process of its own.

Run ``python -m benchmarks.gate_faults --folder gate_faults`` on a quiet machine: it records one golden winner
on few samples and the gate's reference of it, runs the gate 20 times unchanged (A/A) and once with each fault, and
prints what came of it; every run has a budget of a minute, and is kept in the folder, so that the same command goes on
where it was interrupted. ``--golden FILE`` judges winners that are recorded already, with their references; what
follows ``--`` then says which, and goes to ``pytest benches --gate``.

``--gpus`` does the same on a CUDA device: the stand-in at 512 px, half precision, batches of 8, one or two winners. One
unchanged run has other work on the GPU beside it, and the faults are those of a GPU: one of its own time, one of the
host's.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.output import parser, show
from pytest_diffaccel.models.registry import ModelSpec
from pytest_diffaccel.records.golden import dump_entries
from pytest_diffaccel.records.golden_file import read_golden

ROOT = Path(__file__).resolve().parent.parent
# A small choice: one cell, one accelerator, one target, few samples.
CELL = ("--pipe", "SD1.5", "--sched", "DDIM", "--steps", "20", "--search-targets", "deepcache")
TARGETS, TARGETS_GPU = (2.0,), (1.5, 2.0)
SMALL = ("--grid", "coarse", "--num-samples", "2", "--batch-size", "1", "--blocks", "4")
CHOICE = (*CELL, "--gate-slowdown", "5%", "--gate-budget", "1min")


# On a GPU, with the models file that is written beside the runs.
MODELS = "models.toml"
ON_GPU = ("--gpus", "--models", MODELS)
SMALL_GPU = ("--grid", "coarse", "--num-samples", "8", "--batch-size", "8")
CHOICE_GPU = (*CELL, "--gate-budget", "1min")
# A matrix product after another, with pauses, as a neighbour's jobs make them.
OTHER_WORK = """
import time, torch
one = torch.ones(4096, 4096, device="cuda", dtype=torch.half)
while True:
    for _ in range(50):
        one @ one
    torch.cuda.synchronize()
    time.sleep(0.05)
"""


@dataclass(frozen=True)
class Fault:
    """What is broken, and how the gate should name it.

    Attributes:
        name: for people.
        call: injects it (tests/faults.py); {step} is 5% of the time of an unaccelerated step, and {own} of the longest
            accelerated one's, in seconds.
        exit_code: of the gate.
        named: words of its output.
        unnamed: words that must not be there.
        beside: a program that runs meanwhile; empty for none.
    """

    name: str
    call: str
    exit_code: int
    named: str
    unnamed: str = "improved "
    beside: str = ""


FAULTS = (
    Fault("sleep of 5% of a step", "faults.slow_steps(faults.DeepCache, {step})", 1, "speed regressed: "),
    Fault("wrong cache_branch_id", "faults.other_branch(2)", 1, " regressed: "),
    Fault("a step less", "faults.one_step_less()", 1, "function regressed: 19 denoiser calls for 20 steps"),
    Fault("slower baseline", "faults.slow_baseline(4 * {step})", 0, "of the recorded time", "golden is out of date"),
    Fault("corrupted weight", "faults.corrupt_weight()", 1, "the unaccelerated pipeline draws other pictures"),
    Fault("no effect", "faults.no_effect(faults.DeepCache)", 1, "had no effect"),
)
UNCHANGED = Fault("A-A", "", 0, "gate: ", " regressed: ")
BESIDE_OTHER_WORK = Fault("A-A beside other work", "", 0, "gate: ", " regressed: ", OTHER_WORK)
FAULTS_GPU = (
    Fault("winner slower by 5%", "faults.busy_steps(faults.DeepCache, {own})", 1, "speed regressed: "),
    Fault("GPU busy by 6% of a step more", "faults.busy_steps(faults.DeepCache, 1.2 * {step})", 1, "speed regressed: "),
    Fault("wrong cache_branch_id", "faults.other_branch(2)", 1, " regressed: "),
    Fault(
        "a step more",
        "faults.one_step_more()",
        1,
        "function regressed: DDIMScheduler calls",
    ),
    Fault("another VAE", "faults.other_vae()", 1, "the unaccelerated pipeline draws other pictures"),
    Fault(
        "host slower by 20%", "faults.slow_steps(faults.DeepCache, 2 * {step})", 0, "host warning: ", "speed regressed"
    ),
)


class Proof:
    """The runs, one after the other, as far as they are not kept in the folder already.

    Args:
        folder: where runs are kept.
        golden: whose winners are judged.
        runs: how many there are in all.
        options: of all of them.
    """

    def __init__(self, folder: Path, golden: Path, runs: int, options: Sequence[str] = ()) -> None:
        self._folder, self._golden, self._left, self._options = folder, golden, runs, options
        self._seconds: list[float] = []

    def record(self, name: str, options: Sequence[str]) -> None:
        """Record golden winners or a reference.

        Raises:
            SystemExit: when that failed; it is not kept, and the same command tries again.
        """
        self._left -= 1
        found = self._pytest(name, "", options)
        if found["exit"] != 0:
            self._kept(name).unlink()
            raise SystemExit(f"{name} failed; what it printed: {self._kept(name).with_suffix('.txt')}")

    def choose(self, targets: Sequence[float]) -> None:
        """Keep the winners for ``targets`` only: a minute is enough to judge one."""
        found = {key: entry for key, entry in read_golden(self._golden).items() if key.target in targets}
        self._golden.write_text(dump_entries(found), encoding="utf-8")

    def gate(self, name: str, fault: Fault, options: Sequence[str]) -> dict[str, Any]:
        """One gate run, and a second process where it fails, as in CI: a row of the table."""
        self._left -= 1
        step_s, own_s = self._steps_s() if fault.call else (0.0, 0.0)
        call = fault.call.format(step=0.05 * step_s, own=0.05 * own_s)
        first = last = self._pytest(name, call, ["--gate", *options], fault.beside)
        if first["exit"] == 1:
            last = self._pytest(f"{name} again", call, ["--gate", *options, "--lf"], fault.beside)
        text = self._kept(last["run"]).with_suffix(".txt").read_text(encoding="utf-8")
        right = last["exit"] == fault.exit_code and fault.named in text and fault.unnamed not in text
        return {**last, "run": name, "first": first["exit"], "says": _verdicts(text) or "?", "right": right}

    def _steps_s(self) -> tuple[float, float]:
        """Times of a recorded step, about: of the first cell's unaccelerated pipeline, and of its slowest winner."""
        path = _references_of(self._golden)
        known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        first = {name: sessions[0] for name, sessions in known.items()}
        for name, baseline in first.items():
            if name.endswith("-baseline"):
                step_s = float(baseline["baseline_s"]) / int(name.split("-")[-2])
                cell = name.removesuffix("baseline")
                winners = [one["log_speedup"] for key, one in first.items() if key.startswith(cell) and key != name]
                return step_s, step_s / math.exp(min(winners))
        raise SystemExit(f"{path} holds no baseline: record references with pytest benches --gate --update-golden")

    def _kept(self, name: str) -> Path:
        return self._folder / f"{name.replace(' ', '_')}.json"

    def _pytest(self, name: str, fault: str, options: Sequence[str], beside: str = "") -> dict[str, Any]:
        kept = self._kept(name)
        if kept.is_file():
            found: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))
            return found
        (self._folder / "injected.py").write_text(f"import faults\n{fault}\n" if fault else "", encoding="utf-8")
        command = [sys.executable, "-m", "pytest", str(ROOT / "benches"), "--rootdir", str(ROOT), "-p", "injected"]
        command += ["-o", f"cache_dir={self._folder / 'cache'}", "--golden", str(self._golden)]
        command += [*self._options, *options]
        paths = os.pathsep.join([*map(str, (ROOT, ROOT / "tests", self._folder)), os.environ.get("PYTHONPATH", "")])
        began = time.monotonic()
        with _running(beside):
            done = subprocess.run(
                command,
                cwd=self._folder,
                env={**os.environ, "PYTHONPATH": paths},
                capture_output=True,
                text=True,
                check=False,
            )
        found = {"run": name, "exit": done.returncode, "s": time.monotonic() - began}
        text = done.stdout + done.stderr
        kept.with_suffix(".txt").write_text(text, encoding="utf-8")
        kept.write_text(json.dumps(found), encoding="utf-8")
        self._seconds.append(found["s"])
        left_min = self._left * sum(self._seconds) / len(self._seconds) / 60
        print(
            f"{name}: exit {found['exit']}, {found['s']:.0f} s; {_verdicts(text)}; {self._left} to go, "
            f"about {left_min:.0f} min",
            flush=True,
        )
        return found


def _references_of(golden: Path) -> Path:
    return golden.with_name("gate.json")


def _verdicts(text: str) -> str:
    """The gate's line that counts its verdicts; empty where it printed none."""
    return next((line for line in reversed(text.splitlines()) if line.startswith("gate: ")), "")


def _at_512_px() -> str:
    """A models file with the stand-in for SD1.5 at a size that keeps a GPU busy."""
    spec = ModelSpec.from_embedded("SD1.5")
    return (
        f'"SD1.5" = {{ path = {json.dumps(spec.location)}, height = 512, width = 512, '
        f"guidance_scale = {spec.guidance_scale} }}\n"
    )


@contextmanager
def _running(program: str) -> Iterator[None]:
    """Run a Python program meanwhile; none where that is empty."""
    if not program:
        yield
        return
    process = subprocess.Popen([sys.executable, "-c", program])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def main() -> None:
    """Run the gate unchanged and with each fault, and print what it said."""
    made = parser(__doc__ or "")
    made.add_argument("--folder", type=Path, default=Path("gate_faults"), help="where runs are kept")
    made.add_argument("--golden", type=Path, help="recorded winners (default: records its own)")
    made.add_argument("--runs", type=int, default=20, help="A/A runs (default: 20)")
    made.add_argument("--references", type=int, default=1, help="sessions to record as references (default: 1)")
    made.add_argument("--faults", type=int, default=99, help="how many of the faults (default: all)")
    made.add_argument("--gpus", action="store_true", help="on a CUDA device")
    made.add_argument("options", nargs="*", help="options of the gate, after --")
    arguments = made.parse_args()
    folder = arguments.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    known, small, choice, always = FAULTS, SMALL, CHOICE, ()
    if arguments.gpus:
        known, small, choice, always = FAULTS_GPU, SMALL_GPU, CHOICE_GPU, ON_GPU
        (folder / MODELS).write_text(_at_512_px(), encoding="utf-8")
    options, faults = arguments.options or choice, known[: arguments.faults]
    golden = (arguments.golden or folder / "golden" / "search_params.json").resolve()
    references = 0 if arguments.golden and _references_of(golden).is_file() else arguments.references
    proof = Proof(folder, golden, (not arguments.golden) + references + arguments.runs + len(faults), always)
    if not arguments.golden:
        proof.record("golden", [*CELL, *small])
        proof.choose(TARGETS_GPU if arguments.gpus else TARGETS)
    for number in range(references):
        proof.record(f"reference {number}", ["--gate", "--update-golden", *options])
    runs = [UNCHANGED] * arguments.runs
    if arguments.gpus and runs:
        runs[len(runs) // 2] = BESIDE_OTHER_WORK
    unchanged = [proof.gate(f"{fault.name} {number}", fault, options) for number, fault in enumerate(runs)]
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
