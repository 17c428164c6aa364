"""Scripts per minute: the judge's ``static,runs`` beside one plain ``python script.py`` per script, on the same.

The plain runs import torch and diffusers anew each time, judge nothing, and load the embedded pipeline from its folder;
both take turns, script by script. The judge's start (libraries, pipelines) is part of its time, and shown. Run it as
``python -m benchmarks.codegen_throughput``.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.output import parser, show
from pytest_diffaccel.codegen.batch import RenderedTasks
from pytest_diffaccel.codegen.lookup import find
from pytest_diffaccel.codegen.tasks import all_tasks
from pytest_diffaccel.judge.judge import Judge, Rules
from pytest_diffaccel.models.registry import ModelSpec
from pytest_diffaccel.records.golden_file import Golden

_TASKS = 1134


def plain_s(script: Path, pipe: str) -> float:
    """Wall time of one script in a process of its own, seconds.

    Raises:
        subprocess.CalledProcessError: when it fails.
    """
    model = ModelSpec.from_embedded(pipe).location
    began = time.perf_counter()
    command = [sys.executable, str(script), "--model", model, "--output", str(script.with_suffix(".png"))]
    subprocess.run(command, check=True, capture_output=True, cwd=script.parent)
    return time.perf_counter() - began


def main() -> None:
    """Time both and print scripts per minute."""
    made = parser(__doc__ or "")
    made.add_argument("--scripts", type=int, default=20)
    made.add_argument("--golden", type=Path, default=Path("golden/search_params.json"))
    arguments = made.parse_args()
    records = Golden.read(arguments.golden)
    batch = RenderedTasks.render(all_tasks(), records)
    # Spread over what golden answers, so that accelerators take their share.
    stride = max(1, len(batch.scripts) // arguments.scripts)
    chosen = list(batch.scripts)[::stride][: arguments.scripts]
    judged, plain, failed = [], [], 0
    judge = Judge(Rules(stages=("static", "runs")))
    try:
        with tempfile.TemporaryDirectory() as name:
            for prompt_id in chosen:
                answer = find(all_tasks()[prompt_id], records)
                script = Path(name) / f"{prompt_id}.py"
                script.write_text(batch.scripts[prompt_id], encoding="utf-8")
                began = time.perf_counter()
                failed += not judge.judge(prompt_id, answer.task, script.read_bytes(), answer).passed
                judged.append(time.perf_counter() - began)
                plain.append(plain_s(script, answer.task.cell.pipe))
    finally:
        judge.close()
    later = judged[1:] or judged
    rows = [
        {"way": "judge, start included", "scripts": len(judged), "a_minute": 60 * len(judged) / sum(judged)},
        {"way": "judge, once started", "scripts": len(later), "a_minute": 60 * len(later) / sum(later)},
        {"way": "plain python", "scripts": len(plain), "a_minute": 60 * len(plain) / sum(plain)},
    ]
    summary = {
        "ratio": sum(plain) / sum(judged),
        "ratio_once_started": (sum(plain) / len(plain)) / (sum(later) / len(later)),
        "judge_start_s": judged[0],
        "failed": failed,
        f"minutes_for_{_TASKS}_like_these_in_one_process": _TASKS * sum(later) / len(later) / 60,
    }
    show("judging static,runs beside plain runs", rows, summary, as_json=arguments.json)


if __name__ == "__main__":
    main()
