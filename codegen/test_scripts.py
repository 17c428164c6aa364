"""One case per task: its script is run in a confined process of its own, and judged by what it does there."""


def test_script(diffaccel_task_id, diffaccel_judge):
    """Static, runs, speed, quality: whatever of them was asked for must hold."""
    verdict = diffaccel_judge(diffaccel_task_id)
    assert verdict.passed
