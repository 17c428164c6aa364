"""The clocks that a case is timed by, and what is known of each before anything is timed.

On a CPU there is one, the wall clock. On a GPU there are two questions. Have the kernels become slower? That the GPU's
own time tells, to a fraction of a percent, however restless the host. Has the host become slower at launching
accelerated steps, beside unaccelerated ones? That matters where the GPU waits for launches, and is as noisy as the
host.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pytest_diffaccel.records.gate_sessions import ClockName


@dataclass(frozen=True)
class Clock:
    """A clock.

    Attributes:
        name: ``"wall"``; on a GPU ``"device"`` (what it is busy for) and ``"host"`` (what a launch-bound step takes).
        most: figures of a case at the most.
        session_sd: how far the speed-ups of two sessions lie apart though nothing changed (standard deviation of a
            session's logarithm): memory comes to lie otherwise, neighbours are others. Learnt from references of
            several sessions.
        lasting_share: of what figures scatter beyond those of a quiet device, how much lasts for a whole session.
        figure_sd: how much a figure varies where no session tells (standard deviation of the logarithm).
        blocks: of a figure.
    """

    name: ClockName
    most: int
    session_sd: float
    lasting_share: float
    figure_sd: float
    blocks: int

    @property
    def words(self) -> str:
        """What its seconds are, for a sentence; empty for wall time."""
        return "" if self.name == "wall" else f" of {self.name} time"


#: Whole runs by wall time, by type of device. On a CPU enough for 5% on shared cores, whose disturbance is over within
#: a session; on a GPU enough for 3% at 1% per run, where what scatters more is the host's doing, which slows launches
#: for minutes, too (searches of one cell repeated on virtual machines: docs/gpus.md).
WALL: Mapping[str, Clock] = {
    "cpu": Clock("wall", most=24, session_sd=0.004, lasting_share=0.0, figure_sd=0.0142, blocks=4),
    "cuda": Clock("wall", most=48, session_sd=0.002, lasting_share=0.6, figure_sd=0.0142, blocks=1),
}
#: The first steps of runs by the GPU's own time. Ratios of kinds of steps varied by 0.1% to 0.4% from run to run on an
#: H100 of a shared host (docs/ci.md).
DEVICE = Clock("device", most=16, session_sd=0.0015, lasting_share=0.0, figure_sd=0.005, blocks=1)
#: The first steps of runs of one sample by what the host takes to launch them. On that host such ratios varied by 7% to
#: 14%: its cores change their speed by half within a second, and runs beside each other seldom share that.
HOST = Clock("host", most=48, session_sd=0.01, lasting_share=0.0, figure_sd=0.08, blocks=3)


def wall_clock(device_type: str) -> Clock:
    """The clock of whole runs; a device that is not known is taken for a CPU."""
    return WALL.get(device_type, WALL["cpu"])
