"""What the judgement measures on one embedded pipeline. Distances are LPIPS (squeeze) of the package's own metric."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from pytest_diffaccel import accelerate
from pytest_diffaccel.matrix import Params
from pytest_diffaccel.measure.metrics.lpips import lpips_distances
from training.captions import Scene, caption, held_out_scenes
from training.cards import GUIDANCE
from training.render import Layout, draw
from training.source import fetch_sprites

STEPS = 20
FINER = 25  # steps, to tell how far more of them move a picture
BATCH = 4  # pictures per call, of the timing and of everything else
NEARER_THAN = 0.95  # share of the other prompts' references that the own one must beat
FULL_GATE = {"sp_interval": 1, "fi_interval": 1, "warm_up": 0}
Pictures = list[Image.Image]


def acceleration_ladder(max_downsample: int) -> list[Params]:
    """Settings of each method, from mild to strong."""
    tome: list[Params] = [{"ToMe": {"ratio": ratio, "max_downsample": max_downsample}} for ratio in (0.25, 0.5, 0.75)]
    gates: list[Params] = [{"T-Gate": {"gate_step": step, **FULL_GATE}} for step in (15, 10, 5)]
    caches: list[Params] = [{"DeepCache": {"cache_interval": interval, "cache_branch_id": 0}} for interval in (2, 3, 5)]
    return [*caches, *gates, *tome]


@dataclass(frozen=True)
class Judged:
    """A pipeline under judgement, and the guidance that it is judged at."""

    pipeline: Any
    guidance: float = GUIDANCE
    steps: int = STEPS
    finer: int = FINER

    @property
    def pixels(self) -> int:
        """The side of its pictures."""
        return int(self.pipeline.unet.config.sample_size * self.pipeline.vae_scale_factor)

    def generate(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        params: Params | None = None,
        steps: int | None = None,
    ) -> Pictures:
        """One picture per prompt, in batches of four."""
        pictures: Pictures = []
        steps = steps or self.steps
        with accelerate(self.pipeline, params or {}, steps=steps, guidance_scale=self.guidance) as generate:
            for start in range(0, len(prompts), BATCH):
                pictures += generate(prompts[start : start + BATCH], seeds[start : start + BATCH])
        return pictures


def reference(scene: Scene, pixels: int) -> Image.Image:
    """A prompt's reference: the object in the middle, of middle size, not mirrored, before a plain middle shade."""
    return Image.fromarray(draw(fetch_sprites(), scene, Layout(), pixels))


@dataclass(frozen=True)
class HeldOut:
    """The held-out check: each prompt's picture against the references of all held-out prompts."""

    pictures: Pictures
    beaten: list[float]  # for each prompt, the share of the other references that are farther than its own

    @property
    def passed(self) -> int:
        """Prompts whose picture is nearer to its own reference than to 95% of the others."""
        return sum(share >= NEARER_THAN for share in self.beaten)

    @property
    def nearest(self) -> int:
        """Prompts whose picture is nearest to its own reference."""
        return sum(share == 1.0 for share in self.beaten)


def check_held_out(judged: Judged, first_seed: int) -> HeldOut:
    """Generate the 64 prompts that training never saw, and rank their references by LPIPS."""
    scenes = held_out_scenes()
    pictures = judged.generate([caption(scene) for scene in scenes], range(first_seed, first_seed + len(scenes)))
    references = [reference(scene, judged.pixels) for scene in scenes]
    beaten = []
    for number, picture in enumerate(pictures):
        distances = np.asarray(lpips_distances([picture] * len(references), references))
        beaten.append(float((np.delete(distances, number) > distances[number]).mean()))
    return HeldOut(pictures, beaten)


@dataclass(frozen=True)
class Spread:
    """Mean LPIPS over prompts: between two seeds, between two prompts, and between two numbers of steps of a seed."""

    seeds: float
    prompts: float
    steps: float


def spread(judged: Judged, prompts: Sequence[str], seeds: Sequence[int]) -> Spread:
    """Measure how far pictures of one prompt lie apart, and how far more steps move them."""
    base = judged.generate(prompts, seeds)
    others = judged.generate(prompts, [seed + 1000 for seed in seeds])
    finer = judged.generate(prompts, seeds, steps=judged.finer)
    rolled = base[1:] + base[:1]
    means = [statistics.fmean(lpips_distances(base, pictures)) for pictures in (others, rolled, finer)]
    return Spread(*means)


def moved_by(judged: Judged, ladder: Sequence[Params], prompts: Sequence[str], seeds: Sequence[int]) -> list[float]:
    """Mean LPIPS between unaccelerated pictures and those of each setting, same prompts and seeds."""
    base = judged.generate(prompts, seeds)
    return [statistics.fmean(lpips_distances(judged.generate(prompts, seeds, params), base)) for params in ladder]


def fastest_s(judged: Judged, ladder: Sequence[Params], prompts: Sequence[str], rounds: int) -> list[float]:
    """Seconds of one batch at each setting: the least of some rounds in which all take turns, after one to warm up."""
    best = [float("inf")] * len(ladder)
    for turn in range(rounds + 1):
        for place, params in enumerate(ladder):
            started = time.perf_counter()
            judged.generate(prompts, range(len(prompts)), params)
            if turn:
                best[place] = min(best[place], time.perf_counter() - started)
    return best
