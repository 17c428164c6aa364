"""Does the gate cry wolf on a real machine, and does it name real faults? Real gate runs, each a process of its own.

Run ``python -m benchmarks.gate_faults --folder runs -- --pipe SD1.5 --sched DDIM --steps 20`` on a quiet machine, in a
folder whose golden file (``--golden``) has gate references; it takes hours. What follows ``--`` goes to ``pytest
benches --gate``. Each run's verdict is kept in the folder, so that the same command goes on where it was interrupted.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.output import parser, show

ROOT = Path(__file__).resolve().parent.parent
#: By name: the call that injects it (tests/faults.py), and the exit codes that are right. Step times are read from the
#: references: {step} is 5% of one.
FAULTS = {
    "sleep of 5% of a step": ("faults.slow_steps(faults.DeepCache, {step})", (1,)),
    "wrong cache_branch_id": ("faults.other_branch(2)", (1,)),
    "a step less": ("faults.one_step_less()", (1,)),
    "slower baseline": ("faults.slow_baseline({step})", (0,)),
    "corrupted weight": ("faults.corrupt_weight()", (1,)),
    "no effect": ("faults.no_effect(faults.DeepCache)", (1,)),
}


def step_s(golden: Path) -> float:
    """Time of a step of the recorded unaccelerated pipeline, about: of the first baseline.

    Raises:
        SystemExit: when no reference was recorded.
    """
    path = golden.with_name("gate.json")
    if not path.is_file():
        raise SystemExit(f"{path} is missing: record references with pytest benches --gate --update-golden")
    for name, sessions in json.loads(path.read_text(encoding="utf-8")).items():
        if name.endswith("-baseline"):
            return float(sessions[0]["baseline_s"]) / int(name.split("-")[-2])
    raise SystemExit(f"{path} holds no baseline")


def gate(folder: Path, name: str, fault: str, golden: Path, options: Sequence[str]) -> dict[str, Any]:
    """One gate run, or what an earlier one showed."""
    kept = folder / f"{name.replace(' ', '_')}.json"
    if kept.is_file():
        found: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))
        return found
    plugin = folder / "injected.py"
    plugin.write_text(f"import faults\n{fault}\n" if fault else "", encoding="utf-8")
    command = [sys.executable, "-m", "pytest", str(ROOT / "benches"), "--rootdir", str(ROOT), "-p", "injected"]
    command += ["-p", "no:cacheprovider", "--gate", "--golden", str(golden), *options]
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "tests", folder)))
    began = time.monotonic()
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, check=False
    )
    (folder / f"{name.replace(' ', '_')}.txt").write_text(done.stdout + done.stderr, encoding="utf-8")
    says = [line for line in done.stdout.splitlines() if line.startswith("gate: ")]
    found = {"run": name, "exit": done.returncode, "says": says[-1] if says else "?", "s": time.monotonic() - began}
    kept.write_text(json.dumps(found), encoding="utf-8")
    print(f"{name}: exit {found['exit']}, {found['says']}, {found['s']:.0f} s", file=sys.stderr, flush=True)
    return found


def main() -> None:
    """Run the gate unchanged and with each fault, and print what it said."""
    made = parser(__doc__ or "")
    made.add_argument("--folder", type=Path, default=Path("gate_faults"), help="where runs are kept")
    made.add_argument("--golden", type=Path, default=ROOT / "golden" / "search_params.json")
    made.add_argument("--runs", type=int, default=20, help="A/A runs (default: 20)")
    made.add_argument("--no-faults", action="store_true", help="A/A runs only")
    made.add_argument("options", nargs="*", help="options of the gate, after --")
    arguments = made.parse_args()
    folder, golden = arguments.folder.resolve(), arguments.golden.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    delay = 0.05 * step_s(golden)
    rows, right = [], 0
    for number in range(arguments.runs):
        found = gate(folder, f"A-A {number}", "", golden, arguments.options)
        rows.append({**found, "right": found["exit"] == 0})
    for name, (fault, codes) in {} if arguments.no_faults else FAULTS.items():
        found = gate(folder, name, fault.format(step=delay), golden, arguments.options)
        rows.append({**found, "right": found["exit"] in codes})
        right += found["exit"] in codes
    failures = sum(not row["right"] for row in rows[: arguments.runs])
    summary: dict[str, Any] = {"aa_runs": arguments.runs, "aa_failures": failures}
    if not arguments.no_faults:
        summary |= {"faults": len(FAULTS), "faults_named": right}
    show("gate runs of a real pipeline", rows, summary, as_json=arguments.json)


if __name__ == "__main__":
    main()
