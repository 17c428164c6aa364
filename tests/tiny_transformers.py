"""Pipelines with a transformer beside FLUX.1, of random weights, small enough for tests: each a diffusers folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLQwenImage,
    CogView4Pipeline,
    CogView4Transformer2DModel,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
)
from tiny_flux import LATENT_CHANNELS, WIDTH, louder, small_vae, t5_encoder, t5_tokenizer
from tokenizers import pre_tokenizers, processors
from transformers import GlmConfig, GlmModel, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer

_END = "<|endoftext|>"
_WORDS = 260
# Of Qwen-Image's prompts most is a template, of which it drops 34 tokens: bytes, here.
_LONGEST = 512


def save_tiny(pipeline_class: str, folder: Path) -> Path:
    """Save the pipeline of a class of :data:`MADE` into ``folder``; gives it. Equal for equal arguments."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        MADE[pipeline_class]().save_pretrained(folder)
    return folder


def _qwen_image() -> QwenImagePipeline:
    transformer = QwenImageTransformer2DModel(
        in_channels=4 * LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        axes_dims_rope=(4, 6, 6),
    )
    vae = AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=LATENT_CHANNELS,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        latents_mean=[0.0] * LATENT_CHANNELS,
        latents_std=[1.0] * LATENT_CHANNELS,
    )
    text = {
        "hidden_size": WIDTH,
        "intermediate_size": WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": _WORDS,
        "rope_scaling": {"mrope_section": [1, 1, 2], "rope_type": "default", "type": "default"},
    }
    pictures = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": WIDTH}
    return QwenImagePipeline(
        transformer=louder(transformer),
        vae=vae,
        text_encoder=Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=pictures)),
        tokenizer=_byte_tokenizer(),
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    )


def _cogview4() -> CogView4Pipeline:
    transformer = CogView4Transformer2DModel(
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        text_embed_dim=WIDTH,
        time_embed_dim=16,
        condition_dim=8,
    )
    config = GlmConfig(
        vocab_size=_WORDS,
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        head_dim=8,
        pad_token_id=0,
        eos_token_id=0,
    )
    shifts = {"base_shift": 0.25, "max_shift": 0.75, "base_image_seq_len": 256, "time_shift_type": "linear"}
    return CogView4Pipeline(
        transformer=louder(transformer),
        vae=small_vae(),
        text_encoder=GlmModel(config),
        tokenizer=_byte_tokenizer(),
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, **shifts),
    )


def _pixart_sigma() -> PixArtSigmaPipeline:
    transformer = PixArtTransformer2DModel(
        in_channels=LATENT_CHANNELS,
        out_channels=2 * LATENT_CHANNELS,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=16,
        cross_attention_dim=WIDTH,
        caption_channels=WIDTH,
        sample_size=32,
    )
    return PixArtSigmaPipeline(
        transformer=louder(transformer),
        vae=small_vae(),
        text_encoder=t5_encoder(),
        tokenizer=t5_tokenizer(),
        scheduler=DPMSolverMultistepScheduler(),
    )


def _byte_tokenizer() -> Qwen2Tokenizer:
    """A token for each byte, after one that no text has."""
    signs = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Qwen2Tokenizer(
        vocab={_END: 0, **{sign: number for number, sign in enumerate(signs, 1)}},
        merges=[],
        model_max_length=_LONGEST,
        padding_side="left",
    )
    tokenizer._tokenizer.post_processor = processors.TemplateProcessing(
        single=[_END, "$A"], pair=None, special_tokens=[(_END, 0)]
    )
    return tokenizer


#: How each is made, by its class.
MADE: dict[str, Callable[[], Any]] = {
    "CogView4Pipeline": _cogview4,
    "PixArtSigmaPipeline": _pixart_sigma,
    "QwenImagePipeline": _qwen_image,
}
