"""A FLUX.1 of random weights, small enough for tests: two double-stream blocks, then three single-stream blocks.

Its VAE, text encoders and tokenizers are those of FLUX.1 in kind and in every setting that is no size.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5Tokenizer

#: Blocks of the transformer.
DOUBLE_BLOCKS, SINGLE_BLOCKS = 2, 3
#: Height and width of pictures to draw with it: 2 x 2 tokens of packed latents. Its own size is 1024.
SIDE = 32
#: Tokens that its text encoders read, CLIP and T5.
CLIP_TOKENS, T5_TOKENS = 16, 24
#: Channels of its VAE's latents, and of its text encoders.
LATENT_CHANNELS, WIDTH = 4, 32
_HEADS = 2
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


def tiny_flux(*, guidance_embeds: bool = True, seed: int = 0) -> Any:
    """A ``FluxPipeline`` on the CPU, in evaluation mode and single precision, without progress bar.

    Equal for equal arguments; torch's own random numbers are left as they were.

    Args:
        guidance_embeds: whether guidance is an input, as in FLUX.1-dev, or none at all, as in FLUX.1-schnell.
        seed: of its weights.
    """
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        parts = {
            "transformer": _transformer(guidance_embeds=guidance_embeds),
            "vae": small_vae(),
            "text_encoder": CLIPTextModel(_clip_config()),
            "text_encoder_2": t5_encoder(),
        }
    pipeline = FluxPipeline(
        **{name: part.eval() for name, part in parts.items()},
        tokenizer=_clip_tokenizer(),
        tokenizer_2=t5_tokenizer(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def save_tiny_flux(folder: Path, **options: Any) -> Path:
    """Save :func:`tiny_flux` as a diffusers folder; gives ``folder``."""
    tiny_flux(**options).save_pretrained(folder)
    return folder


def _transformer(*, guidance_embeds: bool) -> FluxTransformer2DModel:
    model = FluxTransformer2DModel(
        in_channels=4 * LATENT_CHANNELS,  # a pack of 2 x 2
        num_layers=DOUBLE_BLOCKS,
        num_single_layers=SINGLE_BLOCKS,
        attention_head_dim=WIDTH // _HEADS,
        num_attention_heads=_HEADS,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        guidance_embeds=guidance_embeds,
        axes_dims_rope=(4, 6, 6),
    )
    return louder(model)


def small_vae() -> AutoencoderKL:
    """A pixel for 8 x 8 of the image's, of random weights."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8,) * 4,
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=LATENT_CHANNELS,
        scaling_factor=0.3611,
        shift_factor=0.1159,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def _clip_tokenizer() -> CLIPTokenizer:
    signs = [*_LETTERS, *(f"{letter}</w>" for letter in _LETTERS)]
    words = {sign: number for number, sign in enumerate([*signs, "<|startoftext|>", "<|endoftext|>"])}
    return CLIPTokenizer(vocab=words, merges=[], model_max_length=CLIP_TOKENS)


def _clip_config() -> CLIPTextConfig:
    words = 2 * len(_LETTERS) + 2
    ends = {"bos_token_id": words - 2, "eos_token_id": words - 1, "pad_token_id": words - 1}
    return CLIPTextConfig(
        **ends,
        vocab_size=words,
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=_HEADS,
        max_position_embeddings=CLIP_TOKENS,
    )


def t5_tokenizer() -> T5Tokenizer:
    """Of letters, of which it gives :data:`T5_TOKENS` at most."""
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    letters = [(letter, -3.0) for letter in _LETTERS]
    return T5Tokenizer(vocab=[*special, *letters], extra_ids=0, model_max_length=T5_TOKENS)


def t5_encoder() -> T5EncoderModel:
    """Of random weights, for :func:`t5_tokenizer`."""
    config = T5Config(
        vocab_size=len(_LETTERS) + 4,
        d_model=WIDTH,
        d_kv=WIDTH // _HEADS,
        d_ff=2 * WIDTH,
        num_layers=2,
        num_heads=_HEADS,
        feed_forward_proj="gated-gelu",
    )
    return T5EncoderModel(config)


def louder(model: Any) -> Any:
    """The model with weights twice as large: as torch makes them, no text and no block would show in what it gives."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.0)
    return model
