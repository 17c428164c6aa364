"""The parts of FLUX.1's stand-in, from nothing or from a folder, and their way into the folder of a FluxPipeline."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5Tokenizer

from training.architectures import build_vae, text_config
from training.captions import all_captions, sample_prompts
from training.flux_architecture import FluxSpec, build_flux_scheduler, build_t5, build_transformer
from training.flux_report import Made
from training.parts import half_copy, load_as_float32, load_pipeline, name_text_weights, swap
from training.t5_tokenizer import load_t5_tokenizer, write_t5_tokenizer
from training.tokenizer import load_tokenizer, write_tokenizer

MADE_FILE = "training.json"  # how a folder's weights were made


@dataclass
class FluxParts:
    """The parts of one pipeline; all are trained but the VAE."""

    spec: FluxSpec
    tokenizer: CLIPTokenizer
    tokenizer_2: T5Tokenizer
    text_encoder: CLIPTextModel
    text_encoder_2: T5EncoderModel
    transformer: FluxTransformer2DModel
    vae: AutoencoderKL


def embedded_vae(folder: Path, pixels: int) -> AutoencoderKL:
    """The VAE of a finished folder in float32, with the picture size and the shift that FluxPipeline asks for."""
    if not folder.exists():
        raise FileNotFoundError(f"no VAE in {folder}: FLUX.1's stand-in is trained on the latents of the embedded one")
    trained = AutoencoderKL.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
    vae = build_vae(pixels)
    vae.load_state_dict(trained.state_dict())
    vae.register_to_config(shift_factor=0.0)  # its latents are whitened
    return vae.eval()


def new_flux_parts(spec: FluxSpec, seed: int, folder: Path, vae: AutoencoderKL) -> FluxParts:
    """Freshly initialised parts; the same seed gives the same weights. ``folder`` receives the tokenizers' files."""
    write_tokenizer(folder / "tokenizer", all_captions())
    write_t5_tokenizer(folder / "tokenizer_2", all_captions())
    tokenizer, tokenizer_2 = load_tokenizer(folder / "tokenizer"), load_t5_tokenizer(folder / "tokenizer_2")
    torch.manual_seed(seed)
    clip = text_config(spec.clip, tokenizer.get_vocab(), tokenizer.bos_token_id, tokenizer.eos_token_id)
    return FluxParts(
        spec,
        tokenizer,
        tokenizer_2,
        CLIPTextModel(clip),
        build_t5(spec, len(tokenizer_2)),
        build_transformer(spec),
        vae,
    )


def take_weights(parts: FluxParts, folder: Path) -> None:
    """Put the trained weights of a finished folder into the parts."""
    trained = load_pipeline(folder)
    for name in ("transformer", "text_encoder", "text_encoder_2"):
        model: nn.Module = getattr(parts, name)
        model.load_state_dict(getattr(trained, name).state_dict())


def to_flux_pipeline(parts: FluxParts) -> FluxPipeline:
    """The pipeline of these parts (not copies)."""
    scheduler: Any = build_flux_scheduler()  # diffusers tells type checkers another class of this name
    return FluxPipeline(
        scheduler=scheduler,
        vae=parts.vae,
        text_encoder=parts.text_encoder,
        tokenizer=parts.tokenizer,
        text_encoder_2=parts.text_encoder_2,
        tokenizer_2=parts.tokenizer_2,
        transformer=parts.transformer,
    )


def save_flux(parts: FluxParts, folder: Path, card: str, made: Made) -> None:
    """Write the pipeline's folder with its model card in one swap: a reader sees the old folder or the new one."""
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.new")
    shutil.rmtree(temporary, ignore_errors=True)
    halved = FluxParts(
        parts.spec,
        parts.tokenizer,
        parts.tokenizer_2,
        half_copy(parts.text_encoder),
        half_copy(parts.text_encoder_2),
        half_copy(parts.transformer),
        half_copy(parts.vae),
    )
    to_flux_pipeline(halved).save_pretrained(temporary, safe_serialization=True)
    name_text_weights(temporary / "text_encoder")
    load_as_float32(temporary / "text_encoder_2")
    for name in ("tokenizer", "tokenizer_2"):
        shutil.rmtree(temporary / name)
    write_tokenizer(temporary / "tokenizer", all_captions())
    write_t5_tokenizer(temporary / "tokenizer_2", all_captions())
    (temporary / "README.md").write_text(card, encoding="utf-8")
    (temporary / "prompts.txt").write_text("\n".join(sample_prompts()) + "\n", encoding="utf-8")
    (temporary / MADE_FILE).write_text(json.dumps(asdict(made), indent=2) + "\n", encoding="utf-8")
    swap(temporary, folder)
