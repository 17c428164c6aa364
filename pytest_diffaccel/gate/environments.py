"""Which environments may be compared: another machine or model is refused, another library is what the gate is for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pytest_diffaccel.matrix import Cell
from pytest_diffaccel.records.environment import Environment, differences
from pytest_diffaccel.settings.options import benches_command, options_of

#: What must be equal. Speed-ups of other hardware, models or sizes are other speed-ups.
_MUST_EQUAL = (
    "pipe",
    "device",
    "model_source",
    "image_size",
    "dtype",
    "batch_size",
    "guidance_scale",
    "weights",
    "stack",
)
# And these, where both know them: golden records of older versions do not.
_OF_COMPONENTS = ("settings", "scheduler_defaults")


@dataclass(frozen=True)
class Comparison:
    """Golden's environment beside this one.

    Attributes:
        refused: what makes them incomparable, one line each; empty when they may be compared.
        causes: what else differs: library and driver versions, threads.
        stack: how to run on golden's stack, where this is another; else empty.
    """

    refused: tuple[str, ...]
    causes: tuple[str, ...]
    stack: str = ""

    @classmethod
    def between(cls, golden: Environment, now: Environment) -> Comparison:
        """Compare two environments of one pipe."""
        known = _OF_COMPONENTS if golden.settings and now.settings else ()
        refused = [name for name in (*_MUST_EQUAL, *known) if getattr(golden, name) != getattr(now, name)]
        same = {name: getattr(golden, name) for name in refused}
        all_lines = differences(golden, now)
        causes = differences(golden, _with(now, same))
        refused_lines = tuple(line for line in all_lines if line not in causes)
        return cls(refused_lines, tuple(causes), _towards(golden.stack, now.stack))


def _towards(golden: Mapping[str, str], now: Mapping[str, str]) -> str:
    if bool(golden) == bool(now):
        return ""
    return "run with --stack compiled, as it was recorded" if golden else "leave out --stack compiled"


def _with(environment: Environment, fields: dict[str, object]) -> Environment:
    return replace(environment, **fields)  # type: ignore[arg-type]  # fields of another environment


def refusal(comparison: Comparison, golden: Path, cell: Cell, place: Sequence[str]) -> str:
    """Why a case cannot be judged here, and what to do.

    Args:
        comparison: of golden's environment with this one.
        golden: the golden file.
        cell: the case's.
        place: options that say where it was judged (:attr:`.GateSettings.place`).
    """
    at = place.index("--golden") if "--golden" in place else len(place)
    elsewhere = ("--golden", "golden/THIS_DEVICE.search_params.json")
    command = benches_command(*options_of(cell), *place[:at], *place[at + 2 :], *elsewhere)
    if comparison.stack:
        return f"{golden} was recorded on another stack: {'; '.join(comparison.refused)}; {comparison.stack}"
    return (
        f"{golden} was recorded elsewhere: {'; '.join(comparison.refused)}. Give the --golden file of this machine and "
        f"model, or record one: {command}"
    )
