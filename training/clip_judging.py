"""What the judgement measures on the embedded CLIP: which caption it finds, and what lowers its score.

A score is 100 x the cosine of picture and caption, through transformers' own classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from transformers import CLIPModel, CLIPProcessor

from training.captions import COLOUR_NAMES, Scene, caption, held_out_scenes
from training.judging import Judged, Pictures
from training.objects import OBJECTS
from training.render import render
from training.source import fetch_sprites

RENDERED_SEED = 4_000_000  # far from those of the training pictures
LAYOUTS = 4  # rendered pictures of each held-out scene, a size
BLURS = (0.015, 0.03, 0.06)  # radius, as a share of the side
NOISES = (15, 40, 80)  # deviations, of 255
ONE_COLOUR = {"black": (0, 0, 0), "white": (255, 255, 255), "gray": (128, 128, 128)}

Scores = NDArray[np.float64]
Change = Callable[[Image.Image], Image.Image]


@dataclass(frozen=True)
class Clip:
    """The CLIP under judgement."""

    model: CLIPModel
    processor: CLIPProcessor

    @classmethod
    def load(cls, folder: Path) -> Clip:
        """The CLIP of a folder, from this disk alone."""
        model = CLIPModel.from_pretrained(folder, local_files_only=True).eval()
        return cls(model, CLIPProcessor.from_pretrained(folder, local_files_only=True))

    @torch.no_grad()
    def scores(self, pictures: Sequence[Image.Image], captions: Sequence[str]) -> Scores:
        """Scores ``[pictures, captions]`` of all pairs."""
        rows = []
        for start in range(0, len(pictures), 64):
            batch = list(pictures[start : start + 64])
            inputs = self.processor(text=list(captions), images=batch, return_tensors="pt", padding=True)
            answer = self.model(**inputs)
            rows.append(100 * (answer.image_embeds @ answer.text_embeds.T).double())
        return torch.cat(rows).numpy()


def blur(radius: float, picture: Image.Image) -> Image.Image:
    """The picture blurred by a Gaussian; ``radius`` is a share of its side."""
    return picture.filter(ImageFilter.GaussianBlur(radius * picture.width))


def noise(deviation: float, picture: Image.Image) -> Image.Image:
    """The picture under Gaussian noise of this deviation (of 255), the same at every call."""
    values = np.asarray(picture, dtype=np.float64)
    noisy = values + np.random.default_rng(0).normal(0.0, deviation, values.shape)
    return Image.fromarray(np.clip(np.rint(noisy), 0, 255).astype(np.uint8))


def plain(colour: tuple[int, int, int], picture: Image.Image) -> Image.Image:
    """A picture of one colour and the same size."""
    return Image.new("RGB", picture.size, colour)


def own_background(picture: Image.Image) -> Image.Image:
    """A picture of the colour of this one's corner."""
    corner = picture.getpixel((0, 0))
    assert isinstance(corner, tuple)  # it is an RGB picture
    return plain((int(corner[0]), int(corner[1]), int(corner[2])), picture)


def changes() -> dict[str, Change]:
    """What is done to pictures, by its name in the table."""
    return {
        **{f"blur, radius {radius:.1%} of the side": partial(blur, radius) for radius in BLURS},
        **{f"noise, deviation {deviation} of 255": partial(noise, deviation) for deviation in NOISES},
        "only the corner's colour": own_background,
        **{f"all {name}": partial(plain, colour) for name, colour in ONE_COLOUR.items()},
    }


def rendered_held_out(side: int) -> tuple[Pictures, list[Scene]]:
    """Clean pictures of the held-out scenes in layouts that training never saw, with what each one shows."""
    scenes = held_out_scenes()
    batch = render(LAYOUTS * len(scenes), fetch_sprites(), scenes, side, RENDERED_SEED + side, workers=1)
    pictures = [Image.fromarray(picture) for picture in batch.pictures]
    return pictures, [scenes[number % len(scenes)] for number in range(len(pictures))]


def generated_held_out(judged: Judged, rounds: int) -> tuple[Pictures, list[Scene]]:
    """What a pipeline draws of each held-out prompt, with ``rounds`` seeds each, and what it was asked for."""
    scenes = held_out_scenes() * rounds
    return judged.generate([caption(scene) for scene in scenes], range(len(scenes))), scenes


def fall(name: str, before: Scores, after: Scores) -> dict[str, float]:
    """How a change moves scores: mean over all pairs, and the share of pairs in which the score falls."""
    return {
        f"{name}: change of the score": float((after - before).mean()),
        f"{name}: share of pairs that fall": float((after < before).mean()),
    }


def judge_clip(clip: Clip, pictures: Pictures, scenes: Sequence[Scene]) -> dict[str, float]:
    """The figures of pictures that show, or ought to show, held-out scenes; each change is paired by picture."""
    every = [Scene(thing, colour) for thing in range(len(OBJECTS)) for colour in range(len(COLOUR_NAMES))]
    table = clip.scores(pictures, [caption(scene) for scene in every])
    things, colours = np.array([scene.thing for scene in scenes]), np.array([scene.colour for scene in scenes])
    by_scene = table.reshape(len(pictures), len(OBJECTS), len(COLOUR_NAMES))
    rows = np.arange(len(pictures))
    own = by_scene[rows, things, colours]
    rivals = table[:, [every.index(scene) for scene in held_out_scenes()]]
    other_object = np.arange(len(OBJECTS))[None, :] != things[:, None]
    other_colour = np.arange(len(COLOUR_NAMES))[None, :] != colours[:, None]
    figures: dict[str, float] = {
        "pictures": len(pictures),
        "right caption first of the 64 held-out ones": float((rivals.max(axis=1) <= own).mean()),
        "right caption first of all 512": float((table.max(axis=1) <= own).mean()),
        "score of the right caption": float(own.mean()),
    }
    same_background, same_object = by_scene[rows, :, colours], by_scene[rows, things]
    figures |= fall("caption of another object", _paired(own, other_object), same_background[other_object])
    figures |= fall("caption of another background", _paired(own, other_colour), same_object[other_colour])
    held_out = [caption(scene) for scene in held_out_scenes()]
    for name, change in changes().items():
        moved = clip.scores([change(picture) for picture in pictures], held_out)
        figures |= fall(name, own, moved[rows, things])  # the held-out scenes are in the order of the objects
    return figures


def _paired(own: Scores, mask: NDArray[np.bool_]) -> Scores:
    """Each picture's score once for every one of its others that ``mask [pictures, others]`` picks."""
    return np.broadcast_to(own[:, None], mask.shape)[mask]
