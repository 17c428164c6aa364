"""The options of ``--gate``: from the command line to one frozen :class:`GateSettings`."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pytest_diffaccel.settings.option_types import (
    DeclaredOption,
    OptionError,
    duration,
    metric_share,
    of_one_run,
    option,
    share,
)

#: The smallest loss of LPIPS that matters unless another is given.
DEFAULT_QUALITY = 0.05


def _of_gate(name: str, **keywords: Any) -> DeclaredOption:
    """An option of the gate, which a project's configuration may hold for all runs: without ``--gate`` it is idle."""
    return option(name, when=lambda given: bool(given.gate), **keywords)


GATE_OPTIONS = (
    of_one_run("--gate", action="store_true", help="judge the golden winners instead of searching"),
    _of_gate(
        "--gate-slowdown",
        type=share,
        default=0.03,
        metavar="SHARE",
        help="smallest slowdown that matters (default: 3%%)",
    ),
    _of_gate(
        "--gate-host-slowdown",
        type=share,
        default=0.15,
        metavar="SHARE",
        help="smallest slowdown of the host's part of a launch-bound GPU step that matters (default: 15%%)",
    ),
    _of_gate("--gate-host-fails", action="store_true", help="fail a case whose host part became slower"),
    _of_gate(
        "--gate-quality",
        action="append",
        type=metric_share,
        metavar="METRIC=SHARE",
        help="smallest loss of a metric that matters, as a share of what is recorded, such as psnr=3%%; without a "
        "name, of LPIPS (default: lpips=5%%)",
    ),
    _of_gate(
        "--gate-budget",
        type=duration,
        default=600.0,
        metavar="TIME",
        help="time of all cases together (default: 10min)",
    ),
    _of_gate("--gate-strict", action="store_true", help="fail a case that cannot be decided"),
)


@dataclass(frozen=True)
class GateSettings:
    """What ``--gate`` is told.

    Attributes:
        slowdown: the smallest loss of speed that matters, as a fraction of the speed-up, between 0 and 1.
        host_slowdown: the same of what the host takes to launch a GPU's steps, where the GPU waits for that.
        host_fails: whether a case fails by the host alone.
        quality: by metric, the smallest relative loss that matters, between 0 and 1; of LPIPS always.
        budget_s: seconds that all cases may take together.
        strict: whether a case that cannot be decided fails.
        choice: options, as given, that say which winners are judged: a command that records for this gate repeats them.
        place: the same of those that say of which golden file and on what device, with which weights and prompts.
    """

    slowdown: float
    host_slowdown: float
    host_fails: bool
    quality: Mapping[str, float]
    budget_s: float
    strict: bool
    choice: tuple[str, ...] = ()
    place: tuple[str, ...] = ()

    @classmethod
    def from_options(
        cls,
        options: Namespace,
        quality: Mapping[str, float],
        choice: tuple[str, ...] = (),
        place: tuple[str, ...] = (),
    ) -> GateSettings | None:
        """What was given; None without ``--gate``.

        Args:
            options: parsed ones.
            quality: what they say of metrics.
            choice: those of them that choose winners, repeated where a command is advised.
            place: those that say where they are, repeated too.

        Raises:
            OptionError: when another of its options was given alone.
        """
        if options.gate:
            return cls(
                options.gate_slowdown,
                options.gate_host_slowdown,
                options.gate_host_fails,
                quality,
                options.gate_budget,
                options.gate_strict,
                choice,
                place,
            )
        alone = [declared.names[0] for declared in GATE_OPTIONS if getattr(options, declared.dest) != declared.default]
        if alone:
            raise OptionError(f"{alone[0]} means nothing without --gate")
        return None
