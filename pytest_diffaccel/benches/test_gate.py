"""The regression gate: one case per golden winner, and one per cell's baseline; collected with ``--gate`` only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pytest_diffaccel.gate.case_plan import GateCase


def test_gate(diffaccel_gate_case: GateCase, diffaccel_gate: Any) -> None:
    """Judge one case against its golden record: it works, is as good and as fast; or it cannot be told."""
    result = diffaccel_gate.judge(diffaccel_gate_case)
    assert result.status in ("ok", "improved", "warning", "inconclusive")
