"""Where the time of a search on several GPUs goes, from its log of cases."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from statistics import fmean


@dataclass(frozen=True)
class WorkerTimes:
    """Times of a search's workers, seconds.

    Attributes:
        start_s: from the command to a worker's first timed block: processes, imports, loading, the first pictures;
            mean over the workers.
        work_s: from each worker's first timed block to the end of its last case, all workers together.
        idle_s: from the end of a worker's last case to that of the last of all; mean over the workers.
    """

    start_s: float
    work_s: float
    idle_s: float

    @classmethod
    def read(cls, log: Path, began_at: float, first_block_at: Mapping[str, float]) -> WorkerTimes:
        """From the file that ``--diffaccel-log`` wrote.

        Args:
            log: of a search with xdist's workers.
            began_at: when the command was started, seconds since the epoch.
            first_block_at: when the first block of each candidate began, by key; other cases count from their start.
        """
        begins: dict[str, list[float]] = defaultdict(list)
        ends: dict[str, list[float]] = defaultdict(list)
        for line in log.read_text(encoding="utf-8").splitlines():
            case = json.loads(line)
            ended_at = datetime.fromisoformat(case["ended_at"]).timestamp()
            ends[case["worker"]].append(ended_at)
            begins[case["worker"]].append(first_block_at.get(case["case"], ended_at - case["duration_s"]))
        first, last = [min(times) for times in begins.values()], [max(times) for times in ends.values()]
        return cls(
            start_s=fmean(first) - began_at,
            work_s=sum(last) - sum(first),
            idle_s=max(last) - fmean(last),
        )
