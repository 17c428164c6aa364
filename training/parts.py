"""The parts of one pipeline, from nothing or from a folder, and their way back into a folder.

Folders are ordinary diffusers ones: fp16 safetensors, no variant names, no safety checker.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import CLIPModel, CLIPTokenizer

from training.architectures import (
    CLIP_PIXELS,
    PipeSpec,
    TextEncoder,
    build_clip,
    build_scheduler,
    build_text_encoder,
    build_unet,
    build_vae,
)
from training.captions import all_captions, sample_prompts
from training.tokenizer import load_tokenizer, write_tokenizer

ModuleT = TypeVar("ModuleT", bound=nn.Module)

# Of the CLIP's pictures: to its side, then to -1..1, as it was trained on them.
PREPROCESSING = {
    "image_processor_type": "CLIPImageProcessor",
    "do_convert_rgb": True,
    "do_resize": True,
    "size": {"shortest_edge": CLIP_PIXELS},
    "resample": 3,  # PIL's bicubic
    "do_center_crop": True,
    "crop_size": {"height": CLIP_PIXELS, "width": CLIP_PIXELS},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}


@dataclass
class Parts:
    """The trainable parts of one pipeline and its tokenizer (both encoders of an XL pipeline share one vocabulary)."""

    spec: PipeSpec
    tokenizer: CLIPTokenizer
    texts: list[TextEncoder]
    unet: UNet2DConditionModel
    vae: AutoencoderKL


def new_parts(spec: PipeSpec, seed: int, folder: Path) -> Parts:
    """Freshly initialised parts; the same seed gives the same weights. ``folder`` receives the tokenizer's files."""
    write_tokenizer(folder, all_captions())
    tokenizer = load_tokenizer(folder)
    torch.manual_seed(seed)
    unet, vae = build_unet(spec), build_vae(spec.pixels)
    vocabulary = tokenizer.get_vocab()
    begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    texts = [build_text_encoder(text, vocabulary, begin, end) for text in spec.texts]
    return Parts(spec, tokenizer, texts, unet, vae)


def new_clip(seed: int, folder: Path) -> tuple[CLIPModel, CLIPTokenizer]:
    """A freshly initialised CLIP and its tokenizer, whose files ``folder`` receives."""
    write_tokenizer(folder, all_captions())
    tokenizer = load_tokenizer(folder)
    torch.manual_seed(seed)
    return build_clip(tokenizer.get_vocab(), tokenizer.bos_token_id, tokenizer.eos_token_id), tokenizer


def to_pipeline(parts: Parts) -> DiffusionPipeline:
    """The pipeline of these parts (not copies)."""
    components: dict[str, Any] = {
        "vae": parts.vae,
        "unet": parts.unet,
        "scheduler": build_scheduler(parts.spec),
        "text_encoder": parts.texts[0],
        "tokenizer": parts.tokenizer,
        "feature_extractor": None,
    }
    if parts.spec.is_xl:
        components |= {"text_encoder_2": parts.texts[1], "tokenizer_2": parts.tokenizer, "add_watermarker": False}
        return StableDiffusionXLPipeline(**components)
    components |= {"safety_checker": None, "requires_safety_checker": False}
    return StableDiffusionPipeline(**components)


def load_pipeline(folder: Path) -> DiffusionPipeline:
    """The pipeline of a folder in float32, from this disk alone.

    Raises:
        FileNotFoundError: when none is there.
    """
    if not (folder / "model_index.json").exists():
        raise FileNotFoundError(f"no pipeline in {folder}: name the folder that holds it (its own name is the pipe's)")
    return DiffusionPipeline.from_pretrained(folder, dtype=torch.float32, local_files_only=True)


def half_copy(model: ModuleT) -> ModuleT:
    """A copy of a model in half precision on the CPU."""
    copied = copy.deepcopy(model)
    nn.Module.to(copied, "cpu", torch.float16)
    return copied


def save_folder(parts: Parts, folder: Path, card: str) -> None:
    """Write the pipeline's folder with its model card in one swap: a reader sees the old folder or the new one."""
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.new")
    shutil.rmtree(temporary, ignore_errors=True)
    halved = Parts(
        parts.spec,
        parts.tokenizer,
        [half_copy(text) for text in parts.texts],
        half_copy(parts.unet),
        half_copy(parts.vae),
    )
    to_pipeline(halved).save_pretrained(temporary, safe_serialization=True)
    for name in ("text_encoder", "text_encoder_2")[: len(parts.texts)]:
        name_text_weights(temporary / name)
    for name in ("tokenizer", "tokenizer_2")[: len(parts.texts)]:
        shutil.rmtree(temporary / name)
        write_tokenizer(temporary / name, all_captions())
    (temporary / "README.md").write_text(card, encoding="utf-8")
    (temporary / "prompts.txt").write_text("\n".join(sample_prompts()) + "\n", encoding="utf-8")
    swap(temporary, folder)


def name_text_weights(folder: Path) -> None:
    """Make a text encoder's folder readable by every transformers, and its fp16 weights load as float32.

    transformers 5 writes CLIPTextModel without the prefix ``text_model.`` and reads both ways; older ones would find
    nothing. It also loads weights in the type that the configuration names, and a half encoder fails beside a
    float32 UNet.
    """
    file = folder / "model.safetensors"
    prefixed = ("text_model.", "text_projection.")
    weights = {name if name.startswith(prefixed) else f"text_model.{name}": w for name, w in load_file(file).items()}
    save_file(weights, file, metadata={"format": "pt"})
    load_as_float32(folder)


def load_as_float32(folder: Path) -> None:
    """Name float32 in a configuration, and in those within it, as the type that its fp16 weights are loaded in."""
    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    for part in (config, config.get("text_config", {}), config.get("vision_config", {})):
        if "dtype" in part:
            part["dtype"] = "float32"
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def save_clip(model: CLIPModel, folder: Path, card: str) -> None:
    """Write the CLIP's folder, as transformers lays it out, with its model card in one swap."""
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.new")
    shutil.rmtree(temporary, ignore_errors=True)
    half_copy(model).save_pretrained(temporary, safe_serialization=True)
    load_as_float32(temporary)
    write_tokenizer(temporary, all_captions())
    (temporary / "preprocessor_config.json").write_text(json.dumps(PREPROCESSING, indent=2) + "\n", encoding="utf-8")
    (temporary / "README.md").write_text(card, encoding="utf-8")
    swap(temporary, folder)


def swap(new: Path, target: Path) -> None:
    """Put the folder ``new`` in the place of ``target``, which may not exist yet."""
    old = target.with_name(f".{target.name}.{os.getpid()}.old")
    if target.exists():
        target.rename(old)
    new.rename(target)
    shutil.rmtree(old, ignore_errors=True)
