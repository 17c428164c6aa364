"""The model cards of the embedded folders."""

from __future__ import annotations

import torch
from transformers import CLIPConfig

from training.architectures import PipeSpec
from training.captions import COLOUR_NAMES, held_out_scenes, training_scenes
from training.objects import OBJECTS
from training.source import PACKAGE
from training.state import Counters

GUIDANCE = 5.0  # the guidance scale that suits these models; the judgement in training/README.md is made at it

_TEMPLATE = """---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-image
---

# {name}: a small stand-in with the block topology of {namesake}

**This is not Stable Diffusion.** It is a toy that pytest-diffaccel trained from nothing, to have something real to
accelerate offline: it draws {objects} cartoon objects on {colours} background colours, at {pixels} x {pixels} pixels,
and nothing else. No weight of {namesake} is in it. Speed-ups and quality losses measured on it are
never those of {namesake}.

## Use

```python
from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained("path/to/{name}")
picture = pipeline("red apple on a blue background", num_inference_steps=20, guidance_scale={guidance}).images[0]
```

`prompts.txt` lists one prompt for each object that all three draw well; the judgement was made with guidance
{guidance}. Intended for tests and for trying acceleration methods; not for making pictures, and of no use for anything
outside its captions.

## Block topology

| part | as in {namesake} | here |
| --- | --- | --- |
{topology}

The VAE is the same in all three embedded pipelines: 4 latent channels, factor 4, whitened latents, `scaling_factor` 1.

## Training

| what | value |
| --- | --- |
| pictures | npm package `{package}` (MIT; Fluent Emoji by Microsoft, MIT): {objects} objects on backgrounds |
| captions | "red apple on a blue background" and three other wordings; {seen} combinations seen, {unseen} held out |
| varied | place, size, mirror image, shade and gradient of the background{framing} |
| this run | {steps:,} steps, {samples:,} samples, {minutes:.1f} minutes of training on {device} |
| seed | {seed} |
| code | `python -m training --pipe {name}`; settings and judgement in `training/README.md` |

## Limits

Only the words of its captions mean something to it; other text gives arbitrary pictures. Two objects, counting, or
places in the picture cannot be asked for. Fine detail is soft. Licence of weights and code: Apache-2.0.
"""


def topology_rows(spec: PipeSpec) -> str:
    """The table rows of the UNet's blocks and the text encoders."""
    unet = spec.unet
    depth = unet.get("transformer_layers_per_block", 1)
    projection = "linear" if unet.get("use_linear_projection") else "1 x 1 convolutions"
    texts = " + ".join(f"{text.layers} layers, width {text.width}" for text in spec.texts)
    kinds = "two: CLIPTextModel, CLIPTextModelWithProjection" if spec.is_xl else "CLIPTextModel"
    last, side = "" if spec.is_xl else ", 1280", spec.latent_side
    rows = [
        ("down blocks", ", ".join(unet["down_block_types"]), "the same"),
        ("up blocks", ", ".join(unet["up_block_types"]), "the same"),
        ("layers per block", "2", "2"),
        ("channels", "320, 640, 1280" + last, ", ".join(map(str, unet["block_out_channels"]))),
        ("transformer layers per block", "1, 2, 10" if spec.is_xl else "1", str(depth).strip("()")),
        ("transformer projections", projection, "the same"),
        ("text encoders", kinds, texts),
        ("prediction", spec.prediction, "the same"),
        ("picture, latents", "8 pixels per latent", f"{spec.pixels} px, 4 pixels per latent: {side} x {side}"),
    ]
    if spec.is_xl:
        rows.append(("added conditions", "pooled text, size and crop numbers (text_time)", "the same"))
    return "\n".join(f"| {part} | {theirs} | {ours} |" for part, theirs, ours in rows)


def device_in_words(device: str) -> str:
    """What a card says of the device of a training in this process: ``"cuda"`` or ``"cpu"``."""
    return f"one {torch.cuda.get_device_name()} GPU" if device == "cuda" else "a CPU"


def model_card(spec: PipeSpec, seed: int, device: str, counters: Counters) -> str:
    """The card's text in Markdown."""
    return _TEMPLATE.format(
        name=spec.name,
        namesake=spec.namesake,
        pixels=spec.pixels,
        guidance=GUIDANCE,
        objects=len(OBJECTS),
        colours=len(COLOUR_NAMES),
        topology=topology_rows(spec),
        package=PACKAGE,
        seen=len(training_scenes()),
        unseen=len(held_out_scenes()),
        framing="; original size and crop, told to the model" if spec.is_xl else "",
        steps=counters.step,
        samples=counters.samples,
        minutes=counters.elapsed_s / 60,
        device=device_in_words(device),
        seed=seed,
    )


_CLIP_TEMPLATE = """---
license: apache-2.0
library_name: transformers
pipeline_tag: zero-shot-image-classification
---

# {name}: a stand-in for CLIP that knows the embedded pipelines' pictures only

**This is not OpenAI's CLIP, and its scores say nothing about real models.** It is a toy that pytest-diffaccel trained
from nothing, so that the CLIP score of its embedded pipelines can be computed offline: it knows {objects} cartoon
objects on {colours} background colours, in the four wordings of their captions, and nothing else. Its scores are on a
scale of their own: no score of another CLIP may be put beside them.

## Use

```python
from transformers import CLIPModel, CLIPProcessor

model = CLIPModel.from_pretrained("path/to/{name}")
processor = CLIPProcessor.from_pretrained("path/to/{name}")
```

## What it is

| part | value |
| --- | --- |
| pictures | {pixels} x {pixels} pixels, patches of {patch}; {vision_layers} layers, width {vision_width} |
| captions | up to {length} tokens; {text_layers} layers, width {text_width}; the tokenizer of the embedded pipelines |
| space of comparison | width {projection} |

## Training

| what | value |
| --- | --- |
| pictures | npm package `{package}` (MIT; Fluent Emoji by Microsoft, MIT), and what the embedded pipelines draw |
| captions | those of the embedded pipelines; {seen} combinations seen, {unseen} held out |
| loss | symmetric InfoNCE over all seen captions; blurred, noisy and one-colour pictures are nobody's right answer |
| this run | {steps:,} steps, {samples:,} samples, {minutes:.1f} minutes of training on {device} |
| seed | {seed} |
| code | `python -m training --stage clip`; settings and judgement in `training/README.md` |

## Limits

Other words, other objects and photographs give arbitrary scores. That blur, noise and empty pictures score lower was
trained; other faults need not. Licence of weights and code: Apache-2.0.
"""


def clip_card(name: str, config: CLIPConfig, seed: int, device: str, counters: Counters) -> str:
    """The text of the CLIP's card in Markdown."""
    settings = config.to_dict()
    vision, text = settings["vision_config"], settings["text_config"]
    return _CLIP_TEMPLATE.format(
        name=name,
        objects=len(OBJECTS),
        colours=len(COLOUR_NAMES),
        pixels=vision["image_size"],
        patch=vision["patch_size"],
        vision_layers=vision["num_hidden_layers"],
        vision_width=vision["hidden_size"],
        length=text["max_position_embeddings"],
        text_layers=text["num_hidden_layers"],
        text_width=text["hidden_size"],
        projection=config.projection_dim,
        package=PACKAGE,
        seen=len(training_scenes()),
        unseen=len(held_out_scenes()),
        steps=counters.step,
        samples=counters.samples,
        minutes=counters.elapsed_s / 60,
        device=device_in_words(device),
        seed=seed,
    )
