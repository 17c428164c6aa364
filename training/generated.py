"""Pictures that the finished pipelines draw of trained scenes, kept on disk: the CLIP has to know their kind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import Tensor

from training.architectures import PIPES
from training.captions import DRAWN_BADLY, Scene, caption, training_scenes
from training.judging import Judged
from training.objects import OBJECTS
from training.parts import load_pipeline
from training.render import resized

CHUNK = 32  # pictures per file: what a killed run loses
STEPS = (10, 15, 20)  # of DDIM; files take turns
FIRST_SEED = 1_000_000  # far from those of any judgement
STRIDE = 187  # shares no factor with the number of trained scenes, so that a file's scenes differ in object and colour


def chunk_scenes(number: int) -> list[Scene]:
    """The trained scenes that file ``number`` shows."""
    scenes = training_scenes()
    return [scenes[place * STRIDE % len(scenes)] for place in range(number * CHUNK, (number + 1) * CHUNK)]


def of_drawn_well(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The pictures of a file, with their labels, less those of objects that some pipeline takes for others."""
    kept = torch.tensor([OBJECTS[thing].name not in DRAWN_BADLY for thing in tensors["things"].tolist()])
    return {name: values[kept] for name, values in tensors.items()}


def draw_chunk(judged: Judged, number: int, side: int) -> dict[str, Tensor]:
    """The pictures of file ``number``, drawn by one pipeline, as bytes ``[CHUNK, side, side, 3]`` with their labels."""
    scenes = chunk_scenes(number)
    seeds = range(FIRST_SEED + number * CHUNK, FIRST_SEED + (number + 1) * CHUNK)
    steps = STEPS[number // len(PIPES) % len(STEPS)]
    pictures = judged.generate([caption(scene) for scene in scenes], seeds, steps=steps)
    return {
        "pictures": torch.from_numpy(np.stack([resized(np.asarray(picture), side) for picture in pictures])),
        "things": torch.tensor([scene.thing for scene in scenes]),
        "colours": torch.tensor([scene.colour for scene in scenes]),
    }


def chunks(count: int, pipelines: Path, work: Path, side: int, device: torch.device) -> Iterator[dict[str, Tensor]]:
    """The files that hold the first ``count`` pictures, less what is drawn badly; missing files are drawn first."""
    folder = work / f"generated-{side}"
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{number:05}.safetensors" for number in range(-(-count // CHUNK))]
    for place, name in enumerate(PIPES):
        missing = [number for number in range(place, len(files), len(PIPES)) if not files[number].exists()]
        if not missing:
            continue
        pipeline = load_pipeline(pipelines / name).to(device)
        pipeline.set_progress_bar_config(disable=True)
        for number in missing:
            Console(stderr=True).print(f"clip: pictures {number * CHUNK} to {(number + 1) * CHUNK - 1}, by {name}")
            temporary = files[number].with_suffix(".new")
            save_file(draw_chunk(Judged(pipeline), number, side), temporary)
            temporary.rename(files[number])
    yield from (of_drawn_well(load_file(file)) for file in files)
