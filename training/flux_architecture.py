"""The embedded stand-in for FLUX.1 (its topology, widths of a toy): transformer, T5 encoder, scheduler, how they begin.

Source of the topology and of the scheduler's settings: the public configuration files of FLUX.1-dev, as diffusers reads
them. Depths, widths, text length and picture size are ours.
"""

from __future__ import annotations

from dataclasses import dataclass

from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from torch import nn
from transformers import T5Config, T5EncoderModel

from training.architectures import LATENT_CHANNELS, VAE_FACTOR, TextSpec
from training.t5_tokenizer import END_ID, PAD_ID

PACK = 2  # latents per token, by side
CLIP_TEXT = TextSpec(96, 2, "quick_gelu")  # that of `sd15`


@dataclass(frozen=True)
class FluxSpec:
    """Sizes of a stand-in: pictures in pixels, blocks of both kinds, attention heads, and both text encoders.

    ``axes`` are the channels of a head that turn with the place in the text, the row and the column; they sum up to its
    width. FLUX.1 has 19 + 38 blocks of 24 heads, each with 16 + 56 + 56 channels.
    """

    name: str = "flux1"
    pixels: int = 96
    double_blocks: int = 4
    single_blocks: int = 8
    heads: int = 3
    axes: tuple[int, int, int] = (8, 20, 20)
    clip: TextSpec = CLIP_TEXT
    t5_width: int = 128
    t5_layers: int = 3

    @property
    def width(self) -> int:
        """Channels of a token."""
        return self.heads * sum(self.axes)

    @property
    def side(self) -> int:
        """Rows and columns of a picture's tokens."""
        return self.pixels // (VAE_FACTOR * PACK)

    @property
    def tokens(self) -> int:
        """A picture's tokens."""
        return self.side**2


FLUX = FluxSpec()


def build_transformer(spec: FluxSpec) -> FluxTransformer2DModel:
    """A freshly initialised transformer of packed latents ``[batch, tokens, 16]``.

    Initialised as a DiT (Peebles and Xie 2023, "Scalable Diffusion Models with Transformers", adaLN-Zero): every block
    begins as the identity. As diffusers makes them, blocks begin as noise.
    """
    transformer: FluxTransformer2DModel = FluxTransformer2DModel(
        in_channels=LATENT_CHANNELS * PACK**2,
        num_layers=spec.double_blocks,
        num_single_layers=spec.single_blocks,
        attention_head_dim=sum(spec.axes),
        num_attention_heads=spec.heads,
        joint_attention_dim=spec.t5_width,
        pooled_projection_dim=spec.clip.width,
        guidance_embeds=True,
        axes_dims_rope=spec.axes,
    )
    modulations = (".norm1.linear", ".norm1_context.linear", ".norm.linear", "norm_out.linear")
    for name, layer in transformer.named_modules():
        if not isinstance(layer, nn.Linear):
            continue
        nn.init.zeros_(layer.bias)
        if name == "proj_out" or name.endswith(modulations):
            nn.init.zeros_(layer.weight)
        elif name.startswith("time_text_embed"):
            nn.init.normal_(layer.weight, std=0.02)
        else:
            nn.init.xavier_uniform_(layer.weight)
    return transformer


def build_t5(spec: FluxSpec, vocabulary: int) -> T5EncoderModel:
    """A freshly initialised T5 encoder (version 1.1): token ids ``[batch, 24]`` to states ``[batch, 24, t5_width]``.

    Without T5's dropout, whose random numbers no checkpoint would keep.
    """
    config = T5Config(
        vocab_size=vocabulary,
        d_model=spec.t5_width,
        d_kv=32,
        d_ff=2 * spec.t5_width,
        num_layers=spec.t5_layers,
        num_heads=spec.t5_width // 32,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        pad_token_id=PAD_ID,
        eos_token_id=END_ID,
    )
    return T5EncoderModel(config)


def build_flux_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """FLUX.1-dev's: noise levels shifted by how many tokens a picture has."""
    scheduler: FlowMatchEulerDiscreteScheduler = FlowMatchEulerDiscreteScheduler(
        num_train_timesteps=1000,
        shift=3.0,
        use_dynamic_shifting=True,
        base_shift=0.5,
        max_shift=1.15,
        base_image_seq_len=256,
        max_image_seq_len=4096,
    )
    return scheduler


def shift_of(spec: FluxSpec) -> float:
    """``mu`` of the scheduler's shift at this picture size, as FluxPipeline computes it."""
    return float(calculate_shift(spec.tokens))
