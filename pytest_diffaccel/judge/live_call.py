"""A call that waits in a script's process: run as often as the judge likes, and what its images are."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from pytest_diffaccel.judge.channel import Message
from pytest_diffaccel.judge.claim import Claim

if TYPE_CHECKING:
    from PIL.Image import Image

    from pytest_diffaccel.judge.work_clock import WorkClock
    from pytest_diffaccel.judge.workplace import ScriptProcess

# torch's CPU generator keeps 32 bits of a seed.
_SEED_BITS = 31


class ScriptMisbehaved(Exception):
    """The script or its process did what no honest script does; the message says what."""


@dataclass
class LiveCall:
    """The judged call of a script, waiting in its process to be repeated as often as the judge likes.

    Attributes:
        claim: what the process says it is.
        seconds: time of its last run, by the judge's clocks (:class:`.WorkClock`).
    """

    claim: Claim
    _process: ScriptProcess
    seconds: float = field(default=0.0, init=False)

    @property
    def clock(self) -> WorkClock:
        """Times the process's work."""
        return self._process.clock

    def for_prompts(self, prompts: list[str], *, negatives: bool = True) -> LiveCall:
        """The same call for other prompts (:meth:`.Arguments.for_prompts`)."""
        arguments = self.claim.arguments.for_prompts(prompts, negatives=negatives)
        return replace(self, claim=replace(self.claim, arguments=arguments))

    def run_again(self) -> tuple[list[Image], list[int]]:
        """As :meth:`run`; it is the judge's wish, so it has the script's whole time, and takes none of it."""
        spent_s, self._process.waited_s = self._process.waited_s, 0.0
        try:
            return self.run()
        finally:
            self._process.waited_s = spent_s

    def run(self) -> tuple[list[Image], list[int]]:
        """Run it once from start noise that nobody knows before.

        Returns:
            The images, and the seeds of their start noise.

        Raises:
            ScriptMisbehaved: when it does not give the images that it should.
            TimeoutError: when the script's time is up.
            ChannelClosed: when its process has ended.
        """
        arguments = self.claim.arguments
        began = self.clock.read()
        images, first = drawn(self._process, arguments.wording)
        self.seconds = self.clock.since(began)
        found, wanted = [image.size for image in images], [(arguments.width, arguments.height)] * arguments.images
        if found != wanted:
            raise ScriptMisbehaved(f"images: {_sizes(found)}, not {_sizes(wanted)}")
        return images, [first + place for place in range(arguments.images)]


def drawn(process: ScriptProcess, wording: Mapping[str, Any]) -> tuple[list[Image], int]:
    """Run the call that a script waits in, once.

    Args:
        process: the script's.
        wording: what is drawn, by argument, in place of what the script says; without any, as it says.

    Returns:
        The images, and the seed of their start noise, which nobody knew before.
    """
    first = secrets.randbits(_SEED_BITS)
    process.channel.send({"order": "generate", "seed": first, "wording": dict(wording)})
    return _images(process.receive()), first


def difference_levels(images: Sequence[Image], references: Sequence[Image]) -> float:
    """The largest mean absolute difference of an image to the reference at its place, in levels of 255."""
    import numpy as np

    return max(
        float(np.abs(np.asarray(image, dtype=np.int16) - np.asarray(reference, dtype=np.int16)).mean())
        for image, reference in zip(images, references, strict=True)
    )


def _images(message: Message) -> list[Image]:
    from PIL import Image

    header, body = message.header, message.body
    sizes = header.get("sizes")
    if header.get("event") != "images" or not isinstance(sizes, list):
        raise ScriptMisbehaved("sent something else where images were due")
    images, place = [], 0
    for size in sizes:
        if not (isinstance(size, list) and len(size) == 2 and all(type(side) is int and side > 0 for side in size)):
            raise ScriptMisbehaved("sent images of no size")
        length = 3 * size[0] * size[1]
        if place + length > len(body):
            raise ScriptMisbehaved("sent fewer pixels than its images have")
        images.append(Image.frombytes("RGB", (size[1], size[0]), body[place : place + length]))
        place += length
    return images


def _sizes(sizes: Sequence[tuple[int, int]]) -> str:
    if not sizes:
        return "none"
    return f"{len(sizes)} of {' and '.join(sorted({f'{width}x{height}' for width, height in sizes}))} pixels"
