"""Draws the training pictures: an object on a coloured background, what the caption leaves open drawn at random.

Sample ``n`` of a seed is the same picture whoever renders it, in whatever order, so that rendering can be spread over
processes.
"""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from training.captions import COLOUR_NAMES, Scene
from training.objects import COLOURS, OBJECTS

CHUNK = 512  # pictures per task of the process pool


@dataclass(frozen=True)
class Framing:
    """SDXL's size and crop numbers of a picture, in pixels: the original's side, and where the crop starts."""

    original: int
    top: int = 0
    left: int = 0

    def time_ids(self, pixels: int) -> tuple[int, int, int, int, int, int]:
        """The six numbers in the order in which StableDiffusionXLPipeline passes them."""
        return (self.original, self.original, self.top, self.left, pixels, pixels)


@dataclass(frozen=True)
class Layout:
    """What a caption leaves open. Lengths are fractions of the picture's side, angles radians."""

    size: float = 0.78
    across: float = 0.0  # the object's centre, from the picture's
    down: float = 0.0
    mirrored: bool = False
    hue_shift: float = 0.0  # degrees
    saturation_factor: float = 1.0
    value_factor: float = 1.0
    gradient: float = 0.0  # difference of brightness between the picture's ends, as a fraction
    gradient_angle: float = 0.0


def random_layout(random: np.random.Generator) -> Layout:
    """A layout as the training pictures have them."""
    size = random.uniform(0.64, 0.88)
    room = (1.0 - size) / 2
    return Layout(
        size=size,
        across=random.uniform(-room, room),
        down=random.uniform(-room, room),
        mirrored=bool(random.integers(2)),
        hue_shift=random.uniform(-7.0, 7.0),
        saturation_factor=random.uniform(0.85, 1.1),
        value_factor=random.uniform(0.82, 1.08),
        gradient=random.uniform(0.0, 0.35),
        gradient_angle=random.uniform(0.0, 2 * np.pi),
    )


def random_framing(random: np.random.Generator, pixels: int) -> Framing:
    """Mostly the whole picture at its own size; else an enlarged smaller original, or a crop of a bigger one."""
    kind = random.uniform()
    if kind < 0.7:
        return Framing(pixels)
    if kind < 0.85:
        return Framing(int(random.integers(pixels // 3, pixels)))
    original = pixels * 4 // 3
    top, left = random.integers(0, original - pixels + 1, 2)
    return Framing(original, int(top), int(left))


@lru_cache(maxsize=len(OBJECTS))
def sprite(folder: Path, code: str) -> Image.Image:
    """An object's picture, cut to its visible part, colours multiplied by opacity, so that resizing is exact."""
    picture = Image.open(folder / f"{code}.webp").convert("RGBA")
    return picture.crop(picture.getchannel("A").getbbox()).convert("RGBa")


def background(colour: int, layout: Layout, pixels: int) -> NDArray[np.float32]:
    """The background ``[pixels, pixels, 3]`` in 0..255: the named colour, shifted, with a gradient of brightness."""
    hue, saturation, value = COLOURS[COLOUR_NAMES[colour]]
    value = min(value * layout.value_factor, 1.0)
    saturation = min(saturation * layout.saturation_factor, 1.0)
    rgb = colorsys.hsv_to_rgb((hue + layout.hue_shift) % 360 / 360, saturation, value)
    place = (np.arange(pixels, dtype=np.float32) + 0.5) / pixels - 0.5
    ramp = np.cos(layout.gradient_angle) * place[None, :] + np.sin(layout.gradient_angle) * place[:, None]
    shaded = (1.0 + layout.gradient * ramp)[..., None] * np.asarray(rgb, dtype=np.float32)
    clipped: NDArray[np.float32] = np.clip(shaded * 255, 0, 255).astype(np.float32)
    return clipped


def draw(folder: Path, scene: Scene, layout: Layout, pixels: int) -> NDArray[np.uint8]:
    """One picture ``[pixels, pixels, 3]``; ``folder`` holds the sprites."""
    figure = sprite(folder, OBJECTS[scene.thing].code)
    scale = layout.size * pixels / max(figure.size)
    size = (max(round(figure.width * scale), 1), max(round(figure.height * scale), 1))
    figure = figure.resize(size, Image.Resampling.LANCZOS)
    if layout.mirrored:
        figure = figure.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    left = round((0.5 + layout.across) * pixels - size[0] / 2)
    top = round((0.5 + layout.down) * pixels - size[1] / 2)
    layer = Image.new("RGBa", (pixels, pixels))
    layer.paste(figure, (left, top))
    values = np.asarray(layer, dtype=np.float32)
    picture = values[..., :3] + background(scene.colour, layout, pixels) * (1 - values[..., 3:] / 255)
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


def frame(folder: Path, scene: Scene, layout: Layout, framing: Framing, pixels: int) -> NDArray[np.uint8]:
    """One picture ``[pixels, pixels, 3]`` as framed: enlarged from a smaller original, or cut from a bigger one."""
    whole = draw(folder, scene, layout, framing.original)
    if framing.original < pixels:
        return resized(whole, pixels)
    return whole[framing.top : framing.top + pixels, framing.left : framing.left + pixels]


def resized(picture: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """A picture ``[h, w, 3]`` as ``[side, side, 3]``."""
    if picture.shape[:2] == (side, side):
        return picture
    return np.asarray(Image.fromarray(picture).resize((side, side), Image.Resampling.BICUBIC))


@dataclass(frozen=True)
class Batch:
    """Rendered pictures ``[n, side, side, 3]`` with each one's object, colour and SDXL numbers ``[n, 6]``."""

    pictures: NDArray[np.uint8]
    things: NDArray[np.int64]
    colours: NDArray[np.int64]
    time_ids: NDArray[np.int64]


def render_range(numbers: range, folder: Path, scenes: Sequence[Scene], pixels: int, seed: int, framed: bool) -> Batch:
    """The samples ``numbers`` of a seed; ``framed``: with random framing, else each whole and at its own size."""
    pictures, chosen, ids = [], [], []
    for number in numbers:
        random = np.random.default_rng([seed, number])
        scene = scenes[number % len(scenes)]
        layout = random_layout(random)
        framing = random_framing(random, pixels) if framed else Framing(pixels)
        pictures.append(frame(folder, scene, layout, framing, pixels))
        chosen.append((scene.thing, scene.colour))
        ids.append(framing.time_ids(pixels))
    labels = np.asarray(chosen, dtype=np.int64)
    return Batch(np.stack(pictures), labels[:, 0], labels[:, 1], np.asarray(ids, dtype=np.int64))


def render(
    count: int, folder: Path, scenes: Sequence[Scene], pixels: int, seed: int, workers: int, framed: bool = False
) -> Batch:
    """The first ``count`` samples of a seed, rendered by ``workers`` processes."""
    ranges = [range(start, min(start + CHUNK, count)) for start in range(0, count, CHUNK)]
    task = partial(render_range, folder=folder, scenes=scenes, pixels=pixels, seed=seed, framed=framed)
    if workers <= 1:
        batches = [task(numbers) for numbers in ranges]
    else:  # spawn: a fork of a process that already runs torch's threads can hang
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            batches = list(pool.map(task, ranges))
    return Batch(
        np.concatenate([batch.pictures for batch in batches]),
        np.concatenate([batch.things for batch in batches]),
        np.concatenate([batch.colours for batch in batches]),
        np.concatenate([batch.time_ids for batch in batches]),
    )
