"""The three embedded pipelines (block topology of Stable Diffusion 1.5, 2.1 and SDXL, widths of a toy) and the CLIP.

Sources of the topologies and scheduler settings: the public configuration files of the three namesakes, as diffusers
reads them. All widths, the text length and the image sizes are ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from training.tokenizer import MAX_LENGTH

TextEncoder: TypeAlias = CLIPTextModel | CLIPTextModelWithProjection

LATENT_CHANNELS = 4
VAE_FACTOR = 4  # pixels per latent, by side: 2 ** (number of VAE blocks - 1)
CLIP_PIXELS = 64  # side of the embedded CLIP's input
CLIP_PROJECTION = 96  # width of the space in which it compares pictures and captions
GROUPS = 16  # of every GroupNorm; divides all widths below


@dataclass(frozen=True)
class TextSpec:
    """One CLIP text encoder: width, number of layers, activation, and the width of its projection (0: none)."""

    width: int
    layers: int
    activation: str
    projection: int = 0

    @property
    def heads(self) -> int:
        """Attention heads of 32 channels each."""
        return self.width // 32


@dataclass(frozen=True)
class PipeSpec:
    """What distinguishes one embedded pipeline: its image size in pixels, UNet, text encoders and prediction type."""

    name: str
    namesake: str
    pixels: int
    prediction: str
    texts: tuple[TextSpec, ...]
    unet: dict[str, Any]

    @property
    def is_xl(self) -> bool:
        """Whether it loads into StableDiffusionXLPipeline."""
        return len(self.texts) == 2

    @property
    def latent_side(self) -> int:
        """Rows and columns of its latents."""
        return self.pixels // VAE_FACTOR


_CROSS_DOWN, _CROSS_UP = "CrossAttnDownBlock2D", "CrossAttnUpBlock2D"
_FOUR_BLOCKS: dict[str, Any] = {
    "down_block_types": (_CROSS_DOWN, _CROSS_DOWN, _CROSS_DOWN, "DownBlock2D"),
    "up_block_types": ("UpBlock2D", _CROSS_UP, _CROSS_UP, _CROSS_UP),
    "cross_attention_dim": 96,
}
_XL_TEXTS = (TextSpec(64, 3, "quick_gelu"), TextSpec(96, 3, "gelu", projection=96))
_XL_TIME_DIM = 16  # channels of each of the six size and crop numbers
_XL_UNET: dict[str, Any] = {
    "down_block_types": ("DownBlock2D", _CROSS_DOWN, _CROSS_DOWN),
    "up_block_types": (_CROSS_UP, _CROSS_UP, "UpBlock2D"),
    "block_out_channels": (48, 64, 96),
    "attention_head_dim": (1, 2, 3),  # diffusers reads this as the number of heads, by block
    "transformer_layers_per_block": (1, 1, 2),
    "use_linear_projection": True,
    "cross_attention_dim": sum(text.width for text in _XL_TEXTS),
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": _XL_TIME_DIM,
    "projection_class_embeddings_input_dim": _XL_TEXTS[1].projection + 6 * _XL_TIME_DIM,
}

PIPES: dict[str, PipeSpec] = {
    "sd15": PipeSpec(
        name="sd15",
        namesake="Stable Diffusion 1.5",
        pixels=64,
        prediction="epsilon",
        texts=(TextSpec(96, 2, "quick_gelu"),),
        unet={**_FOUR_BLOCKS, "block_out_channels": (48, 64, 96, 112), "attention_head_dim": 2},
    ),
    "sd21": PipeSpec(
        name="sd21",
        namesake="Stable Diffusion 2.1",
        pixels=96,
        prediction="v_prediction",
        texts=(TextSpec(96, 2, "gelu"),),
        unet={
            **_FOUR_BLOCKS,
            "block_out_channels": (48, 64, 96, 96),
            "attention_head_dim": (3, 4, 6, 6),
            "use_linear_projection": True,
        },
    ),
    "sdxl": PipeSpec(
        name="sdxl",
        namesake="Stable Diffusion XL",
        pixels=96,
        prediction="epsilon",
        texts=_XL_TEXTS,
        unet=_XL_UNET,
    ),
}


def build_unet(spec: PipeSpec) -> UNet2DConditionModel:
    """A freshly initialised UNet; input and output are latents ``[batch, 4, side, side]``."""
    unet: UNet2DConditionModel = UNet2DConditionModel(
        sample_size=spec.latent_side,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        layers_per_block=2,
        norm_num_groups=GROUPS,
        **spec.unet,
    )
    return unet


def build_vae(pixels: int) -> AutoencoderKL:
    """A freshly initialised VAE: pictures ``[batch, 3, h, w]`` in -1..1 to latents ``[batch, 4, h / 4, w / 4]``.

    One set of weights serves every size; ``pixels`` only enters its configuration, as the size it was made for.
    """
    widths = (48, 64, 64)
    vae: AutoencoderKL = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        block_out_channels=widths,
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=GROUPS,
        sample_size=pixels,
        scaling_factor=1.0,
        force_upcast=False,
    )
    return vae


def text_config(text: TextSpec, vocabulary: dict[str, int], begin: int, end: int) -> CLIPTextConfig:
    """The configuration of a text encoder over a vocabulary whose begin and end tokens have these ids."""
    return CLIPTextConfig(
        vocab_size=len(vocabulary),
        hidden_size=text.width,
        intermediate_size=4 * text.width,
        num_hidden_layers=text.layers,
        num_attention_heads=text.heads,
        max_position_embeddings=MAX_LENGTH,
        hidden_act=text.activation,
        projection_dim=text.projection or text.width,
        bos_token_id=begin,
        eos_token_id=end,
        pad_token_id=end,
    )


def build_text_encoder(text: TextSpec, vocabulary: dict[str, int], begin: int, end: int) -> TextEncoder:
    """A freshly initialised text encoder: token ids ``[batch, 24]`` to hidden states ``[batch, 24, width]``."""
    config = text_config(text, vocabulary, begin, end)
    return CLIPTextModelWithProjection(config) if text.projection else CLIPTextModel(config)


def build_clip(vocabulary: dict[str, int], begin: int, end: int) -> CLIPModel:
    """A freshly initialised CLIP of token ids ``[batch, 24]`` and pictures ``[batch, 3, 64, 64]`` in -1..1."""
    vision = {
        "image_size": CLIP_PIXELS,
        "patch_size": 8,
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": 5,
        "num_attention_heads": 4,
        "hidden_act": "gelu",
        "projection_dim": CLIP_PROJECTION,
    }
    text = text_config(TextSpec(96, 2, "gelu", projection=CLIP_PROJECTION), vocabulary, begin, end)
    config = CLIPConfig(text_config=text.to_dict(), vision_config=vision, projection_dim=CLIP_PROJECTION)
    model: CLIPModel = CLIPModel(config)
    return model


def build_scheduler(spec: PipeSpec) -> DDIMScheduler:
    """The namesakes' noise schedule: scaled-linear betas from 0.00085 to 0.012 over 1000 steps."""
    scheduler: DDIMScheduler = DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type=spec.prediction,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    return scheduler
