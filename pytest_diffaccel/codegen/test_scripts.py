"""One case per task: its script is run in a confined process of its own, and judged by what it does there."""

from __future__ import annotations

from typing import Any


def test_script(diffaccel_task_id: str, diffaccel_judge: Any) -> None:
    """Static, runs, speed, quality: whatever of them was asked for must hold."""
    verdict = diffaccel_judge(diffaccel_task_id)
    assert verdict.passed
