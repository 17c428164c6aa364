"""The regression gate: one case per golden winner, and one per cell's baseline; collected with --gate only."""


def test_gate(diffaccel_gate_case, diffaccel_gate):
    """Judge one case against its golden record: it works, is as good and as fast; or it cannot be told."""
    result = diffaccel_gate.judge(diffaccel_gate_case)
    assert result.status in ("ok", "improved", "warning", "inconclusive")
