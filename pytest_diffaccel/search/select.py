"""Choosing winners: of the candidates that are fast enough and good enough, the one that loses least."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from pytest_diffaccel.matrix import Candidate
from pytest_diffaccel.measure.measurement import Interval

Reason: TypeAlias = Literal["speed", "quality"]


@dataclass(frozen=True)
class Option:
    """A measured candidate as the choice sees it.

    Attributes:
        candidate: what it is.
        speedup: with its interval.
        lpips: mean loss on the images of the search, for all options the same prompts and seeds.
        verified: whether the speed-up is from the final measurement, to be believed as it stands.
    """

    candidate: Candidate
    speedup: Interval
    lpips: float
    verified: bool

    def reaches(self, target: float) -> bool:
        """Whether it is fast enough; one not yet verified gets the benefit of its interval."""
        return (self.speedup.value if self.verified else self.speedup.high) >= target


@dataclass(frozen=True)
class Choice:
    """What was chosen for a target.

    Attributes:
        target: the required speed-up.
        option: the winner; when ``reason`` is given, the best reached; None when nothing was measured.
        reason: why the target is unattainable; None when it is met.
    """

    target: float
    option: Option | None
    reason: Reason | None


def choose(options: Sequence[Option], target: float, max_loss: float) -> Choice:
    """The winner for a target.

    Of the options that reach it with a loss of at most ``max_loss``, the one with the least loss; equal loss goes to
    the faster, then to the first by key.

    Args:
        options: measured candidates of one cell and accelerator.
        target: required speed-up.
        max_loss: largest LPIPS allowed.
    """
    fast = [option for option in options if option.reaches(target)]
    good = [option for option in fast if option.lpips <= max_loss]
    if good:
        return Choice(target, min(good, key=_loss_then_speed), None)
    allowed = [option for option in options if option.lpips <= max_loss] or list(options)
    fastest = max(allowed, key=lambda option: (option.speedup.value, option.candidate.key), default=None)
    return Choice(target, fastest, "quality" if fast else "speed")


def _loss_then_speed(option: Option) -> tuple[float, float, str]:
    return option.lpips, -option.speedup.value, option.candidate.key
