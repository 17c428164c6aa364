"""Gate references: what the gate itself measured of golden winners, far more closely than a search has to.

A search knows a winner's speed-up to 2% or so, too little to show that it became 3% slower. So a gate may keep sessions
of its own beside the golden file, in ``gate.json``: recorded while all was well, and compared with from then on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, field
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import ConfigDict, Field, TypeAdapter
from pydantic.dataclasses import dataclass as checked_dataclass

from pytest_diffaccel.records.jsonfile import folder_lock, read_object, write_text

#: Lies beside the golden file.
REFERENCE_NAME = "gate.json"
#: Sessions kept of a subject; older ones make room.
_MOST_SESSIONS = 8
_DIGITS = 9

_Positive: TypeAlias = Annotated[float, Field(gt=0)]
_STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
ClockName: TypeAlias = Literal["wall", "device", "host"]


@checked_dataclass(frozen=True, config=_STRICT)
class Speed:
    """A speed-up that a session measured by one clock.

    Attributes:
        log_speedup: logarithm of the speed-up; of the baseline against itself, about 0.
        standard_error: of that, within the session.
        df: degrees of freedom of the standard error.
        figure_sd: standard deviation of a figure of a few blocks.
        baseline_s: time of an undisturbed unaccelerated run, by this clock.
        figure_s: what taking a figure took, seconds; None where it was not noted.
    """

    log_speedup: float
    standard_error: Annotated[float, Field(ge=0)]
    df: _Positive
    figure_sd: Annotated[float, Field(ge=0)]
    baseline_s: _Positive
    figure_s: _Positive | None = field(default=None, kw_only=True)


@checked_dataclass(frozen=True, config=_STRICT)
class MetricSamples:
    """What a metric beside LPIPS said of a winner's pictures.

    Attributes:
        identity: what two values must have in common to be compared (:attr:`.Metric.identity`).
        values: of each sample, in order.
    """

    identity: str
    values: tuple[float, ...]


@checked_dataclass(frozen=True, config=_STRICT)
class GateSession(Speed):
    """What one gate run measured of a subject: a winner, or a cell's baseline.

    Attributes:
        lpips: of each sample, in order; of the baseline: to a grey picture, and to pictures of other seeds.
        seed: seed of the first sample.
        prompts_digest: of the prompts used.
        environment: id of the environment.
        clock: what its speed was measured by: ``"wall"`` or, on a GPU, ``"device"``.
        host: its speed by the host's clock; None where the device alone decides, and on a CPU.
        beside_s: what the case took beside its figures (pictures, whole runs), seconds; None where it was not noted.
        control_s: what its A/A control took on top of that, which a later run needs only where it draws other pictures,
            seconds; None where it is part of ``beside_s``, as older versions noted it.
        metrics: of a winner, other metrics than LPIPS that the gate was asked to judge, by name.
    """

    lpips: tuple[float, ...]
    seed: int
    prompts_digest: str
    environment: Annotated[str, Field(pattern=r"\A[0-9a-f]{12}\z")]
    clock: Literal["wall", "device"] = "wall"
    host: Speed | None = None
    beside_s: Annotated[float, Field(ge=0)] | None = None
    control_s: Annotated[float, Field(ge=0)] | None = None
    metrics: Mapping[str, MetricSamples] = field(default_factory=dict)

    def by(self, clock: ClockName) -> Speed | None:
        """What it measured by a clock; None where it did not."""
        if clock == "host":
            return self.host
        return self if clock == self.clock else None


def subject(environment: str, key: str) -> str:
    """Name of a subject: a golden record's environment, and a candidate's or cell's key."""
    return f"{environment} {key}"


def read_references(golden: Path) -> dict[str, tuple[GateSession, ...]]:
    """Sessions by subject, oldest first; empty when there is no such file.

    Args:
        golden: the golden file that they lie beside.

    Raises:
        JsonFileError: when the file does not parse or validate.
    """
    return read_object(_path(golden), str, lambda _, text: _adapter().validate_json(text))


def add_sessions(golden: Path, found: Mapping[str, GateSession], *, fresh: bool = False) -> None:
    """Add a session to each subject; those of another environment than its own make room.

    Args:
        golden: the golden file that they lie beside.
        found: a session by subject.
        fresh: whether a subject's earlier sessions all make room.

    Raises:
        JsonFileError: when the file on disk does not parse or validate; it is left as it is.
    """
    path = _path(golden)
    with folder_lock(path.parent):
        known = read_references(golden)
        for name, session in found.items():
            earlier = () if fresh else known.get(name, ())
            same = [known for known in earlier if known.environment == session.environment]
            known[name] = (*same, session)[-_MOST_SESSIONS:]
        write_text(path, _dump(known))


def _path(golden: Path) -> Path:
    return golden.resolve().with_name(REFERENCE_NAME)


def _dump(known: Mapping[str, Sequence[GateSession]]) -> str:
    fields = {name: [_rounded(session) for session in sessions] for name, sessions in known.items()}
    return json.dumps(fields, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def _rounded(session: GateSession) -> dict[str, Any]:
    fields = _known(asdict(session))
    fields["lpips"] = _rounded_samples(session.lpips)
    # Left out where there are none: files of those who ask for none stay as they are.
    del fields["metrics"]
    metrics = {
        name: {"identity": known.identity, "values": _rounded_samples(known.values)}
        for name, known in session.metrics.items()
    }
    return fields | ({"metrics": metrics} if metrics else {})


def _rounded_samples(values: Sequence[float]) -> list[float]:
    return [round(value, _DIGITS) + 0.0 for value in values]


def _known(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields that say something, numbers rounded."""
    return {
        name: _known(value) if isinstance(value, dict) else round(value, _DIGITS) if isinstance(value, float) else value
        for name, value in fields.items()
        if value is not None
    }


@cache
def _adapter() -> TypeAdapter[tuple[GateSession, ...]]:
    return TypeAdapter(tuple[GateSession, ...])
