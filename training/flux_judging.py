"""What the judgement measures on FLUX.1's stand-in: as of other pipelines, what guidance does, and what CLIP says."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pytest_diffaccel.matrix import Params
from pytest_diffaccel.measure.metrics.lpips import lpips_distances
from training.captions import COLOUR_NAMES, Scene, caption, held_out_scenes, sample_prompts
from training.clip_judging import Clip, generated_held_out, rendered_held_out
from training.figures import held_out_grid, save_grid, seeds_grid
from training.flux_parts import MADE_FILE
from training.flux_report import GUIDANCE, Made
from training.judging import Judged, Pictures, check_held_out, reference, spread
from training.objects import OBJECTS
from training.parts import load_pipeline

STEPS, FINER = 28, 50
SCALES = (1.0, 2.0, 3.5, 5.0)  # of guidance
BATCH = 16
PROMPTS = 32  # of the LPIPS figures
SEEDS = 2  # of each held-out prompt, for CLIP


@dataclass(frozen=True)
class FluxJudged(Judged):
    """FLUX.1's stand-in under judgement. ``two_calls``: guided from an empty prompt, by two calls a step."""

    guidance: float = GUIDANCE
    steps: int = STEPS
    finer: int = FINER
    two_calls: bool = False

    @classmethod
    def load(cls, folder: Path, device: str) -> FluxJudged:
        """The pipeline of a folder, on a device."""
        pipeline = load_pipeline(folder).to(device)
        pipeline.set_progress_bar_config(disable=True)
        return cls(pipeline)

    @property
    def pixels(self) -> int:
        """The side of its pictures: not the pipeline's default, which is 128 latents."""
        return int(self.pipeline.vae.config.sample_size)

    def generate(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        params: Params | None = None,
        steps: int | None = None,
    ) -> Pictures:
        """One picture per prompt, in batches; ``params`` must be empty, since nothing is accelerated here."""
        if params:
            raise ValueError(f"{params}: FLUX.1's stand-in is judged without acceleration")
        options: dict[str, Any] = {"guidance_scale": self.guidance}
        pictures: Pictures = []
        for start in range(0, len(prompts), BATCH):
            batch = list(prompts[start : start + BATCH])
            if self.two_calls:
                guided = {"true_cfg_scale": self.guidance, "negative_prompt": [""] * len(batch)}
                options = {"guidance_scale": 1.0, **guided}
            pictures += self.pipeline(
                batch,
                num_inference_steps=steps or self.steps,
                generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds[start : start + BATCH]],
                height=self.pixels,
                width=self.pixels,
                max_sequence_length=self.pipeline.tokenizer_2.model_max_length,
                **options,
            ).images
        return pictures


def made_of(folder: Path) -> Made:
    """How a folder's weights were made.

    Raises:
        FileNotFoundError: when nothing was trained into it.
    """
    file = folder / MADE_FILE
    if not file.exists():
        raise FileNotFoundError(f"no {file}: train FLUX.1's stand-in first, with python -m training --stage flux")
    return Made(**json.loads(file.read_text(encoding="utf-8")))


def mean_lpips(left: Pictures, right: Pictures) -> float:
    """Mean LPIPS of pictures at the same places."""
    return statistics.fmean(lpips_distances(left, right))


def named_right(clip: Clip, pictures: Pictures, scenes: Sequence[Scene]) -> dict[str, float]:
    """What CLIP takes the pictures for, among the captions of all objects before all backgrounds."""
    every = [Scene(thing, colour) for thing in range(len(OBJECTS)) for colour in range(len(COLOUR_NAMES))]
    table: NDArray[np.float64] = clip.scores(pictures, [caption(scene) for scene in every])
    taken = [every[place] for place in table.argmax(axis=1)]
    pairs = list(zip(taken, scenes, strict=True))
    own = [table[row, every.index(scene)] for row, scene in enumerate(scenes)]
    return {
        "right object": statistics.fmean(ours.thing == asked.thing for ours, asked in pairs),
        "right background": statistics.fmean(ours.colour == asked.colour for ours, asked in pairs),
        "right caption of all 512": statistics.fmean(ours == asked for ours, asked in pairs),
        "score": float(np.mean(own)),
    }


def judge_guidance(judged: FluxJudged, clip: Clip) -> dict[str, float]:
    """What the scale does to held-out pictures, and how near its one call comes to guiding by two."""
    scenes = held_out_scenes()
    prompts, seeds = [caption(scene) for scene in scenes], range(len(scenes))
    figures: dict[str, float] = {}
    for scale in SCALES:
        told = named_right(clip, replace(judged, guidance=scale).generate(prompts, seeds), scenes)
        figures |= {f"guidance {scale}: {name}": told[name] for name in ("right caption of all 512", "score")}
    chosen, at = sample_prompts()[:PROMPTS], range(PROMPTS)
    base = judged.generate(chosen, at)
    two_calls = replace(judged, two_calls=True).generate(chosen, at)
    unguided = replace(judged, guidance=1.0).generate(chosen, at)
    return figures | {
        f"LPIPS between guidance {judged.guidance} in one call and in two": mean_lpips(base, two_calls),
        f"LPIPS between guidance {judged.guidance} and 1.0": mean_lpips(base, unguided),
    }


def judge_flux(judged: FluxJudged, clip: Clip, figures: Path | None) -> dict[str, float]:
    """All figures, at the judged guidance unless they name another; distances are LPIPS. Writes grids, too."""
    held_out = check_held_out(judged, first_seed=0)
    prompts, seeds = sample_prompts()[:PROMPTS], range(PROMPTS)
    if figures is not None:
        held_out_grid(held_out.pictures, figures / "flux1_held_out.png")
        seeds_grid(judged, figures / "flux1_seeds.png")
        rows = [replace(judged, guidance=scale).generate(prompts[:6], range(6)) for scale in SCALES]
        save_grid(rows, figures / "flux1_guidance.png")
    references = [reference(scene, judged.pixels) for scene in held_out_scenes()]
    rendered = rendered_held_out(judged.pixels)
    apart = spread(judged, prompts, seeds)
    told = named_right(clip, *generated_held_out(judged, SEEDS))
    return {
        f"held-out prompts (of {len(held_out.beaten)}) nearer to own reference than to 95%": held_out.passed,
        "... nearest to own reference of all": held_out.nearest,
        "LPIPS to own reference": mean_lpips(held_out.pictures, references),
        "... of rendered pictures in other layouts": mean_lpips(rendered[0][: len(references)], references),
        **{f"CLIP: {name}": value for name, value in told.items()},
        **{f"CLIP, rendered: {name}": value for name, value in named_right(clip, *rendered).items()},
        "LPIPS between prompts": apart.prompts,
        "LPIPS between seeds of a prompt": apart.seeds,
        f"LPIPS between {judged.steps} and {judged.finer} steps": apart.steps,
        **judge_guidance(judged, clip),
    }
