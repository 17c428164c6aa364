"""The shapes of pipes' networks, as far as they are known without a model: pure Python.

A :class:`Topology` is what grids ask of a UNet's layout; an :class:`Architecture` is all that random weights are made
of. Those of the built-in pipes are from the published repositories' config.json files; what is not named there is the
class's default.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

Config: TypeAlias = Mapping[str, Any]

_CROSS, _PLAIN = "CrossAttnDownBlock2D", "DownBlock2D"
_UP_CROSS, _UP_PLAIN = "CrossAttnUpBlock2D", "UpBlock2D"
_SD_DOWN = (_CROSS, _CROSS, _CROSS, _PLAIN)
_MID = "UNetMidBlock2DCrossAttn"
_BLOCK_LAYERS = 2


@dataclass(frozen=True)
class Topology:
    """What a UNet's layout decides of grids, which are made before any model is loaded.

    Without anything known it is the widest of the built-in pipes: where a model has less, a search leaves out what the
    methods refuse on it.

    Attributes:
        layers: resnets of each down block, shallowest first, at least one block.
        attention: downsamplings at which it has transformer blocks, ascending, at least one; 1 is full resolution.
    """

    layers: tuple[int, ...] = (_BLOCK_LAYERS,) * 4
    attention: tuple[int, ...] = (1, 2, 4, 8)

    @classmethod
    def from_config(cls, config: Config) -> Topology:
        """Of the ``config.json`` of a ``UNet2DConditionModel``; the widest for what says nothing of such blocks."""
        down = config.get("down_block_types", _SD_DOWN)
        layers = config.get("layers_per_block", _BLOCK_LAYERS)
        if not isinstance(down, Sequence) or not down or not isinstance(layers, int | Sequence):
            return cls()
        counts = (layers,) * len(down) if isinstance(layers, int) else tuple(layers)
        if len(counts) != len(down) or not all(isinstance(count, int) and count > 0 for count in counts):
            return cls()
        found = {2**depth for depth, block in enumerate(down) if "CrossAttn" in str(block)}
        # The last down block halves nothing.
        found |= {2 ** (len(down) - 1)} if "CrossAttn" in str(config.get("mid_block_type", _MID)) else set()
        return cls(counts, tuple(sorted(found)) or cls.attention)


@dataclass(frozen=True)
class FluxArchitecture:
    """The shapes of a FLUX.1, as diffusers and transformers configure them.

    Attributes:
        transformer: of a ``FluxTransformer2DModel``; it draws 1024 pixels a side where nobody says otherwise.
        vae: of an ``AutoencoderKL``, of whose latents 2 x 2 are packed into one token.
        text: of a ``CLIPTextModel``.
        text_2: of a ``T5EncoderModel``.
        scheduler: of a ``FlowMatchEulerDiscreteScheduler``.
    """

    transformer: Config
    vae: Config
    text: Config
    text_2: Config
    scheduler: Config


@dataclass(frozen=True)
class Architecture:
    """The shapes of one pipe, as diffusers and transformers configure them.

    Attributes:
        unet: of a ``UNet2DConditionModel``; ``sample_size`` times 8 is the image's side in pixels.
        vae: of an ``AutoencoderKL``.
        text: of a ``CLIPTextModel``.
        text_2: of a ``CLIPTextModelWithProjection``; None for a pipe with one text encoder.
        prediction_type: what the UNet predicts, ``"epsilon"`` or ``"v_prediction"``.
    """

    unet: Config
    vae: Config
    text: Config
    text_2: Config | None = None
    prediction_type: str = "epsilon"


_VAE = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 4,
}
_CLIP_L = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "hidden_act": "quick_gelu",
    "projection_dim": 768,
}
_OPENCLIP_H = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 23,
    "num_attention_heads": 16,
    "hidden_act": "gelu",
    "projection_dim": 512,
}
_OPENCLIP_BIG_G = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "hidden_act": "gelu",
    "projection_dim": 1280,
}
_SD_UNET = {
    "down_block_types": _SD_DOWN,
    "up_block_types": (_UP_PLAIN, _UP_CROSS, _UP_CROSS, _UP_CROSS),
    "block_out_channels": (320, 640, 1280, 1280),
}
_SDXL_UNET = {
    "down_block_types": (_PLAIN, _CROSS, _CROSS),
    "up_block_types": (_UP_CROSS, _UP_CROSS, _UP_PLAIN),
    "block_out_channels": (320, 640, 1280),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
    "sample_size": 128,
    "use_linear_projection": True,
}
_SD21_UNET = {
    **_SD_UNET,
    "sample_size": 96,
    "cross_attention_dim": 1024,
    "attention_head_dim": (5, 10, 20, 20),
    "use_linear_projection": True,
    "upcast_attention": True,
}

#: Of the built-in pipes, by name.
SD15 = Architecture(
    unet={**_SD_UNET, "sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8},
    vae={**_VAE, "sample_size": 512, "scaling_factor": 0.18215},
    text=_CLIP_L,
)
SD21 = Architecture(
    unet=_SD21_UNET,
    vae={**_VAE, "sample_size": 768, "scaling_factor": 0.18215},
    text=_OPENCLIP_H,
    prediction_type="v_prediction",
)
SDXL = Architecture(
    unet=_SDXL_UNET,
    # In half precision its activations overflow: the pipeline decodes in single precision.
    vae={**_VAE, "sample_size": 1024, "scaling_factor": 0.13025, "force_upcast": True},
    text=_CLIP_L,
    text_2=_OPENCLIP_BIG_G,
)
#: FLUX.1-dev. Blocks, widths and the VAE's factors are those of ``src/flux/util.py`` in black-forest-labs/flux too, and
#: the text encoders those of openai/clip-vit-large-patch14 and google/t5-v1_1-xxl. FLUX.1-schnell has the same shapes
#: without ``guidance_embeds``, and a scheduler without shifts.
FLUX1 = FluxArchitecture(
    transformer={
        "patch_size": 1,
        "in_channels": 64,
        "num_layers": 19,
        "num_single_layers": 38,
        "attention_head_dim": 128,
        "num_attention_heads": 24,
        "joint_attention_dim": 4096,
        "pooled_projection_dim": 768,
        "guidance_embeds": True,
        "axes_dims_rope": (16, 56, 56),
    },
    vae={
        **_VAE,
        "latent_channels": 16,
        "sample_size": 1024,
        "scaling_factor": 0.3611,
        "shift_factor": 0.1159,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
        "force_upcast": True,
    },
    text=_CLIP_L,
    text_2={
        "vocab_size": 32128,
        "d_model": 4096,
        "d_kv": 64,
        "d_ff": 10240,
        "num_layers": 24,
        "num_heads": 64,
        "feed_forward_proj": "gated-gelu",
        "relative_attention_num_buckets": 32,
        "relative_attention_max_distance": 128,
    },
    scheduler={
        "num_train_timesteps": 1000,
        "shift": 3.0,
        "use_dynamic_shifting": True,
        "base_shift": 0.5,
        "max_shift": 1.15,
        "base_image_seq_len": 256,
        "max_image_seq_len": 4096,
    },
)
