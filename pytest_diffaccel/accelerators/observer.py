"""Who is told of the events of a generation, and how one ends after its first steps."""

from __future__ import annotations

from typing import Any, Protocol


class Enough(Exception):
    """Ends a generation of which only the first steps are wanted."""


class Observer(Protocol):
    """Is told of the events of one generation, in order; :mod:`pytest_diffaccel.measure.clock` keeps their times."""

    def started(self) -> None:
        """The call is about to begin."""

    def denoiser_called(self) -> None:
        """A denoiser call is about to begin."""

    def step_ended(self) -> None:
        """The scheduler has made its step."""

    def ended(self) -> None:
        """The images are there."""


class FirstStepsOnly:
    """Tells an observer of the first steps, and ends the generation then."""

    def __init__(self, observer: Observer, steps: int) -> None:
        self._left = steps
        self._observer = observer
        self.started, self.denoiser_called = observer.started, observer.denoiser_called

    def step_ended(self) -> None:
        """Tell of the step, and end the generation after the last that is wanted.

        Raises:
            Enough: then.
        """
        self._observer.step_ended()
        self._left -= 1
        if not self._left:
            raise Enough

    def ended(self) -> None:
        """Nothing: who wanted the first steps tells of their end."""


class OncePerStep:
    """Tells an observer of the first denoiser call of each step: guidance may be a second one."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._within = False
        self.started, self.ended = observer.started, observer.ended

    def denoiser_called(self) -> None:
        """Tell of the call, if it is a step's first."""
        if not self._within:
            self._within = True
            self._observer.denoiser_called()

    def step_ended(self) -> None:
        """Tell of the step's end."""
        self._within = False
        self._observer.step_ended()


def step_end_callback(observer: Observer) -> Any:
    """What a pipeline's call takes as ``callback_on_step_end``, and older ones as ``callback``."""

    def on_step_end(*told: Any) -> Any:
        observer.step_ended()
        return told[-1]  # the tensors that a step may change

    return on_step_end
