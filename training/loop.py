"""The training loop of every stage: budget, learning rate, average, checkpoints, progress, and its end by Ctrl-C."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from training.schedule import Budget, learning_rate
from training.state import Average, Checkpoint, Counters
from training.stepper import Stepper, Task

LOG_EVERY_S = 15.0


@dataclass(frozen=True)
class Run:
    """How a stage is trained: peak learning rate, pictures per step, end, device, and where its checkpoint lies."""

    name: str
    peak_rate: float
    batch: int
    budget: Budget
    device: torch.device
    folder: Path
    save_every_s: float = 120.0


class Meter:
    """Shows a bar with the time left, and prints a line now and then for those who read a log instead.

    The time left is reckoned by the pace of the last few seconds, checkpoints included. The first steps tell nothing of
    it: they compile and capture.
    """

    def __init__(self, run: Run, progress: Progress) -> None:
        self.run, self.progress = run, progress
        self.bar: TaskID = progress.add_task(run.name, total=1.0, loss="")
        self.last_time, self.last_step = time.monotonic(), 0

    def show(self, counters: Counters, loss: torch.Tensor, force: bool = False) -> None:
        """Update the bar; every few seconds read the loss from the device and print it."""
        self.progress.update(self.bar, completed=self.run.budget.fraction(counters.step, counters.elapsed_s))
        seconds = time.monotonic() - self.last_time
        if seconds < LOG_EVERY_S and not force:
            return
        text = f"loss {loss.item():.4f}"
        if self.last_step:
            step_s = seconds / (counters.step - self.last_step)
            left_s = self.run.budget.left_s(counters.step, counters.elapsed_s, step_s)
            text += f", {self.run.batch / step_s:,.0f} pictures/s, {left_s / 60:.1f} min left"
        self.last_time, self.last_step = time.monotonic(), counters.step
        self.progress.update(self.bar, loss=text)
        self.progress.console.print(f"{self.run.name}: step {counters.step}, {counters.elapsed_s:.0f} s, {text}")


def progress_bar() -> Progress:
    """The bar of a stage, with its time left."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    return Progress(*columns, TextColumn("{task.fields[loss]}"), console=Console(stderr=True))


@contextmanager
def held_back() -> Iterator[list[signal.Signals]]:
    """Ctrl-C and polite kills are added to this list instead of breaking a step off; a second one acts as ever."""
    came: list[signal.Signals] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def hold(number: int, frame: FrameType | None) -> None:
        came.append(signal.Signals(number))
        signal.signal(number, before[signal.Signals(number)])

    for number in before:
        signal.signal(number, hold)
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def train(task: Task, run: Run, on_save: Callable[[Counters], None] | None = None) -> Counters:
    """Train to the end of the budget, from the checkpoint where there is one; leaves the averaged weights in the model.

    ``on_save`` is called, with the averaged weights in the model, whenever a checkpoint was written.

    Raises:
        SystemExit: after Ctrl-C or a polite kill, when the step is done and its checkpoint written: nothing is lost.
    """
    stepper = Stepper(task, run.device)
    average = Average(task.model)
    checkpoint = Checkpoint(run.folder)
    counters = checkpoint.load(task.model, average, stepper.optimiser)
    with held_back() as came, progress_bar() as progress:
        meter = Meter(run, progress)
        saved_at = counters.elapsed_s
        while not came and (fraction := run.budget.fraction(counters.step, counters.elapsed_s)) < 1.0:
            started = time.monotonic()
            stepper.set_rate(learning_rate(run.peak_rate, counters.step, fraction))
            loss = stepper(task.draw(counters.step))
            counters.step += 1
            counters.samples += run.batch
            average.update(counters.step)
            meter.show(counters, loss)
            counters.elapsed_s += time.monotonic() - started
            if counters.elapsed_s - saved_at > run.save_every_s:
                saved_at = counters.elapsed_s
                _save(checkpoint, task, average, stepper, counters, on_save)
        _save(checkpoint, task, average, stepper, counters, on_save)
    if came:
        Console(stderr=True).print(
            f"{run.name}: stopped at step {counters.step}, which is kept: the same command goes on from there"
        )
        raise SystemExit(128 + came[0])
    average.swap()
    return counters


def _save(
    checkpoint: Checkpoint,
    task: Task,
    average: Average,
    stepper: Stepper,
    counters: Counters,
    on_save: Callable[[Counters], None] | None,
) -> None:
    checkpoint.save(task.model, average, stepper.optimiser, counters)
    if on_save is not None:
        average.swap()
        on_save(counters)
        average.swap()
