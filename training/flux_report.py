"""What is said of FLUX.1's stand-in once it is trained: its model card, and its part of training/README.md."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch

from training.captions import COLOUR_NAMES, held_out_scenes, training_scenes
from training.cards import device_in_words
from training.flux_architecture import FluxSpec
from training.objects import OBJECTS
from training.source import PACKAGE
from training.state import Counters
from training.tokenizer import MAX_LENGTH

GUIDANCE = 3.5  # FluxPipeline's own
LEAST_STEPS = 1000  # of a training whose figures are worth writing down
BEGIN = "<!-- flux1: begin; what follows is written by training.judge, and goes when it is written again -->"
END = "<!-- flux1: end -->"


@dataclass(frozen=True)
class Made:
    """How weights were made; kept beside them. ``parameters`` counts what was trained, without the VAE."""

    steps: int
    samples: int
    minutes: float
    batch: int
    pictures: int
    seed: int
    device: str
    versions: str
    parameters: int

    @classmethod
    def now(
        cls, counters: Counters, batch: int, pictures: int, seed: int, device: torch.device, parameters: int
    ) -> Made:
        """Of a training that is as far as ``counters``, in this process."""
        versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "diffusers", "transformers"))
        return cls(
            counters.step,
            counters.samples,
            round(counters.elapsed_s / 60, 2),
            batch,
            pictures,
            seed,
            device_in_words(device.type),
            versions,
            parameters,
        )

    def check(self) -> None:
        """Refuse to write of weights that are hardly trained.

        Raises:
            ValueError: with what to do.
        """
        if self.steps < LEAST_STEPS:
            raise ValueError(
                f"{self.steps} steps of training are too few to write of: {LEAST_STEPS} at least; train on with "
                "python -m training --stage flux"
            )


_CARD = """---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-image
---

# {name}: a small stand-in with the block topology of FLUX.1-dev

**This is not FLUX.1.** It is a toy that pytest-diffaccel trained from nothing, to have something real to accelerate
offline: it draws {objects} cartoon objects on {colours} background colours, at {pixels} x {pixels} pixels, and nothing
else. No weight of FLUX.1 is in it. Speed-ups and quality losses measured on it are never those of FLUX.1.

## Use

```python
from diffusers import FluxPipeline

pipeline = FluxPipeline.from_pretrained("path/to/{name}")
picture = pipeline(
    "red apple on a blue background", height={pixels}, width={pixels}, max_sequence_length={length},
    num_inference_steps=28, guidance_scale={guidance},
).images[0]
```

`prompts.txt` lists one prompt for each object but two. It was trained at this picture size and with {length} tokens:
others give arbitrary pictures. Intended for tests and for trying acceleration methods; not for making pictures, and of
no use for anything outside its captions.

## Topology

| part | as in FLUX.1-dev | here |
| --- | --- | --- |
| double-stream blocks | 19 | {double_blocks} |
| single-stream blocks | 38 | {single_blocks} |
| channels | 24 heads of 128 | {heads} heads of {head} |
| rotary positions | 16 + 56 + 56 | {axes} |
| CLIPTextModel, pooled | 12 layers, width 768 | {clip_layers} layers, width {clip_width} |
| T5EncoderModel | 24 layers, width 4096 | {t5_layers} layers, width {t5_width} |
| text tokens of T5 | up to 512 | {length} |
| guidance | an input (`guidance_embeds`) | the same, from 1 to 6 |
| picture, latents | 8 pixels per latent, 2 x 2 packed | {pixels} px, 4 per latent, 2 x 2 packed: {tokens} tokens |

The VAE is the one of all embedded pipelines: 4 latent channels, whitened; `scaling_factor` 1 and `shift_factor` 0.

## Training

| what | value |
| --- | --- |
| pictures | npm package `{package}` (MIT; Fluent Emoji by Microsoft, MIT): {objects} objects on backgrounds |
| captions | "red apple on a blue background" and three other wordings; {seen} combinations seen, {unseen} held out |
| loss | flow matching; guidance learnt by "Visual Generation Without Guidance" (Chen et al. 2025) |
| this run | {steps:,} steps, {samples:,} samples, {minutes:.1f} minutes of training on {device} ({versions}) |
| seed | {seed} |
| code | `python -m training --stage flux`; settings and judgement in `training/README.md` |

## Limits

Only the words of its captions mean something to it; other text gives arbitrary pictures. Two objects, counting, or
places in the picture cannot be asked for. Licence of weights and code: Apache-2.0.
"""


def flux_card(spec: FluxSpec, made: Made) -> str:
    """The model card in Markdown."""
    return _CARD.format(
        name=spec.name,
        objects=len(OBJECTS),
        colours=len(COLOUR_NAMES),
        pixels=spec.pixels,
        length=MAX_LENGTH,
        guidance=GUIDANCE,
        double_blocks=spec.double_blocks,
        single_blocks=spec.single_blocks,
        heads=spec.heads,
        head=sum(spec.axes),
        axes=" + ".join(map(str, spec.axes)),
        clip_layers=spec.clip.layers,
        clip_width=spec.clip.width,
        t5_layers=spec.t5_layers,
        t5_width=spec.t5_width,
        tokens=spec.tokens,
        package=PACKAGE,
        seen=len(training_scenes()),
        unseen=len(held_out_scenes()),
        steps=made.steps,
        samples=made.samples,
        minutes=made.minutes,
        device=made.device,
        versions=made.versions,
        seed=made.seed,
    )


def section(made: Made, figures: Mapping[str, float]) -> str:
    """The README's part that is written: how the weights were made, and the judgement's figures."""
    rows = {
        "parameters, millions": f"{made.parameters / 1e6:.2f}",
        "steps": f"{made.steps:,}",
        "samples seen": f"{made.samples:,} of {made.pictures:,} pictures, {made.batch} per step",
        "minutes of training": f"{made.minutes:.1f}",
        "pictures/s": f"{made.samples / (60 * made.minutes):,.0f}",
        "made with": f"{made.device}, {made.versions}, seed {made.seed}",
    } | {name: f"{value:,}" if isinstance(value, int) else f"{value:.3f}" for name, value in figures.items()}
    return "\n".join(["| | flux1 |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in rows.items())])


def write_section(page: Path, made: Made, figures: Mapping[str, float]) -> None:
    """Put the figures between the page's two marks.

    Raises:
        ValueError: for weights that are hardly trained, and for a page without the marks; nothing is written.
    """
    made.check()
    text = page.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{page} lacks the lines {BEGIN!r} and {END!r}, between which the figures go")
    page.write_text(f"{before}{BEGIN}\n\n{section(made, figures)}\n\n{END}{after}", encoding="utf-8")
