"""Trains the embedded CLIP, a stand-in that scores the embedded pipelines' pictures against their captions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPModel, CLIPTokenizer

from training.captions import COLOUR_NAMES, Scene, training_scenes
from training.conditioning import WORDING_WEIGHTS, caption_table
from training.objects import OBJECTS
from training.stepper import Task
from training.vae import to_signed

COLOURS_SHOWN = 4  # of each object in a batch: the hardest pictures to tell apart differ in the background alone
GENERATED_SHARE = 0.3  # of a batch, where there are such pictures
DEGRADED = 4  # one spoilt picture for so many good ones
BLUR = (0.8, 3.0)  # deviations in pixels of the input's 64
NOISE = (0.15, 0.9)  # deviations of pictures in -1..1
KERNEL_REACH = 8  # pixels from the middle of a blur's kernel to its end


@dataclass(frozen=True)
class ScenePool:
    """Pictures ``[n, side, side, 3]`` of bytes, and which of them show each trained scene.

    ``rows`` ``[2, scenes, most]`` holds their numbers, rendered ones first and then generated ones, and ``counts``
    ``[2, scenes]`` how many of them count.
    """

    pictures: Tensor
    rows: Tensor
    counts: Tensor

    @classmethod
    def of(cls, pictures: Tensor, things: Tensor, colours: Tensor, generated: Tensor) -> ScenePool:
        """The pool of pictures with their objects, colours and whether a pipeline drew them, ``[n]`` each."""
        numbers = {scene: number for number, scene in enumerate(training_scenes())}
        shelves: list[list[list[int]]] = [[[] for _ in numbers] for _ in range(2)]
        labels = zip(things.tolist(), colours.tolist(), generated.tolist(), strict=True)
        for row, (thing, colour, drawn) in enumerate(labels):
            shelves[drawn][numbers[Scene(thing, colour)]].append(row)
        counts = torch.tensor([[len(rows) for rows in shelf] for shelf in shelves])
        if not bool((counts[0] > 0).all()):
            raise ValueError(f"{len(pictures)} pictures leave out some trained scenes: render {len(numbers)} or more")
        most = int(counts.max())
        padded = [[rows + [0] * (most - len(rows)) for rows in shelf] for shelf in shelves]
        return cls(pictures, torch.tensor(padded), counts)

    def to(self, device: torch.device) -> ScenePool:
        """The pool on a device."""
        return ScenePool(self.pictures.to(device), self.rows.to(device), self.counts.to(device))

    def pick(self, scenes: Tensor, chances: Tensor) -> Tensor:
        """A picture of each of ``scenes [n]``, chosen by ``chances [2, n]`` in 0..1: kind, and which of its kind."""
        kind = ((chances[0] < GENERATED_SHARE) & (self.counts[1, scenes] > 0)).long()
        place = (chances[1] * self.counts[kind, scenes]).long()
        return self.pictures[self.rows[kind, scenes, place]]


def blurred(pictures: Tensor, deviation: Tensor) -> Tensor:
    """Pictures ``[n, 3, h, w]`` blurred by a Gaussian of one deviation, in pixels; edges are mirrored."""
    places = torch.arange(-KERNEL_REACH, KERNEL_REACH + 1, device=pictures.device)
    kernel = torch.exp(-0.5 * (places / deviation) ** 2)
    kernel = (kernel / kernel.sum()).expand(pictures.shape[1], 1, -1)
    padded = F.pad(pictures, (KERNEL_REACH,) * 4, mode="reflect")
    across = F.conv2d(padded, kernel[:, :, None, :], groups=pictures.shape[1])
    return F.conv2d(across, kernel[:, :, :, None], groups=pictures.shape[1])


def degraded(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Pictures ``[n, 3, h, w]`` in -1..1 spoilt: a third blurred, a third noisy, a third of one colour.

    The colours are, in turn, that of the picture's corner, a grey (often black or white), and any.
    """
    device = pictures.device
    soft, noisy, plain = pictures.tensor_split(3)
    softness = torch.rand((), device=device, generator=generator)
    soft = blurred(soft, BLUR[0] + (BLUR[1] - BLUR[0]) * softness)
    loudness = torch.rand(len(noisy), 1, 1, 1, device=device, generator=generator)
    noise = torch.randn(noisy.shape, device=device, generator=generator)
    noisy = noisy + (NOISE[0] + (NOISE[1] - NOISE[0]) * loudness) * noise
    any_colour = 2.4 * torch.rand(len(plain), 3, 1, 1, device=device, generator=generator) - 1.2
    kinds = torch.arange(len(plain), device=device)[:, None, None, None] % 3
    grey = any_colour[:, :1].expand(-1, 3, -1, -1)
    colour = torch.where(kinds == 0, plain[:, :, :1, :1], torch.where(kinds == 1, grey, any_colour))
    return torch.cat([soft, noisy, colour.expand_as(plain)]).clamp(-1, 1)


class ClipTask(Task):
    """Symmetric InfoNCE: a picture's caption among all trained ones, and a caption's picture among the batch's.

    A batch has some objects before several backgrounds each. Spoilt copies of its pictures stand among those that a
    caption has to be told from, and are nobody's right answer: so blur, noise and emptiness lower the score.
    """

    precision = torch.float32

    def __init__(self, model: CLIPModel, tokenizer: CLIPTokenizer, pool: ScenePool, batch: int, seed: int) -> None:
        super().__init__(model)
        if batch % COLOURS_SHOWN or not COLOURS_SHOWN <= batch <= COLOURS_SHOWN * len(OBJECTS):
            limit = COLOURS_SHOWN * len(OBJECTS)
            raise ValueError(f"batch {batch}: a CLIP's is a multiple of {COLOURS_SHOWN}, at most {limit}")
        self.pool, self.batch, self.seed = pool, batch, seed
        device = pool.pictures.device
        self.generator = torch.Generator(device)
        scenes = training_scenes()
        table = caption_table(tokenizer)[[scene.thing for scene in scenes], [scene.colour for scene in scenes]]
        longest = int((table != tokenizer.eos_token_id).sum(dim=-1).max()) + 1
        self.captions = table[..., :longest].to(device)
        self.wordings = torch.tensor(WORDING_WEIGHTS, device=device)
        self.by_object = _numbers_by_object(scenes).to(device)

    def draw(self, step: int) -> tuple[Tensor, ...]:
        """The batch's pictures and then the spoilt ones, token ids of all trained captions, and the batch's scenes."""
        generator, device = self.generator, self.pool.pictures.device
        generator.manual_seed(self.seed * 1_000_003 + step)
        objects = torch.randperm(len(OBJECTS), device=device, generator=generator)[: self.batch // COLOURS_SHOWN]
        order = torch.rand(len(objects), self.by_object.shape[1], device=device, generator=generator).argsort(dim=1)
        scenes = self.by_object[objects].gather(1, order[:, :COLOURS_SHOWN]).flatten()
        chances = torch.rand(3, self.batch, device=device, generator=generator)
        pictures = to_signed(self.pool.pick(scenes, chances[:2]))
        pictures = torch.where(chances[2][:, None, None, None] < 0.5, pictures, pictures.flip(-1))
        chosen = torch.randperm(self.batch, device=device, generator=generator)[: self.batch // DEGRADED]
        wording = torch.multinomial(self.wordings, len(self.captions), replacement=True, generator=generator)
        ids = self.captions[torch.arange(len(wording), device=device), wording]
        return torch.cat([pictures, degraded(pictures[chosen], generator)]), ids, scenes

    def forward(self, *inputs: Tensor) -> Tensor:
        """The scalar training loss of what ``draw`` gave."""
        pictures, ids, scenes = inputs
        answer = cast(CLIPModel, self.model)(input_ids=ids, pixel_values=pictures)
        own = torch.arange(len(scenes), device=scenes.device)
        which_caption = F.cross_entropy(answer.logits_per_image[: len(scenes)], scenes)
        which_picture = F.cross_entropy(answer.logits_per_text[scenes], own)
        loss: Tensor = (which_caption + which_picture) / 2
        return loss


def _numbers_by_object(scenes: Sequence[Scene]) -> Tensor:
    """The numbers of the trained scenes of each object, ``[objects, colours - 1]``."""
    numbers = [[n for n, scene in enumerate(scenes) if scene.thing == thing] for thing in range(len(OBJECTS))]
    return torch.tensor(numbers).view(len(OBJECTS), len(COLOUR_NAMES) - 1)
