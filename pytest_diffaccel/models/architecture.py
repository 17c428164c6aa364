"""Full-size pipelines without their weights: published shapes, random numbers.

How long a denoiser call takes depends on the shapes of its tensors, not on what is in them. So the speed of SD1.5,
SD2.1 and SDXL can be measured without their weights; what their pictures look like cannot.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

#: Of the random weights.
SEED = 0
# CLIP's context length, in tokens; the embedded tokenizers are cut to shorter captions.
_TOKENS = 77
_VOCABULARY = 49408

_CROSS, _PLAIN = "CrossAttnDownBlock2D", "DownBlock2D"
_UP_CROSS, _UP_PLAIN = "CrossAttnUpBlock2D", "UpBlock2D"
_SD_UNET = {
    "down_block_types": (_CROSS, _CROSS, _CROSS, _PLAIN),
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
}
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
_SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


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

    unet: Mapping[str, Any]
    vae: Mapping[str, Any]
    text: Mapping[str, Any]
    text_2: Mapping[str, Any] | None = None
    prediction_type: str = "epsilon"


#: From the published repositories' config.json files; what is not named there is the class's default.
ARCHITECTURES: Mapping[str, Architecture] = {
    "SD1.5": Architecture(
        unet={**_SD_UNET, "sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8},
        vae={**_VAE, "sample_size": 512, "scaling_factor": 0.18215},
        text=_CLIP_L,
    ),
    "SD2.1": Architecture(
        unet={
            **_SD_UNET,
            "sample_size": 96,
            "cross_attention_dim": 1024,
            "attention_head_dim": (5, 10, 20, 20),
            "use_linear_projection": True,
            "upcast_attention": True,
        },
        vae={**_VAE, "sample_size": 768, "scaling_factor": 0.18215},
        text=_OPENCLIP_H,
        prediction_type="v_prediction",
    ),
    "SDXL": Architecture(
        unet={**_SDXL_UNET, "sample_size": 128, "use_linear_projection": True},
        # In half precision its activations overflow: the pipeline decodes in single precision.
        vae={**_VAE, "sample_size": 1024, "scaling_factor": 0.13025, "force_upcast": True},
        text=_CLIP_L,
        text_2=_OPENCLIP_BIG_G,
    ),
}


def build_pipeline(architecture: Architecture, tokenizers: Path, device: torch.device, dtype: torch.dtype) -> Any:
    """A pipeline of random weights, made where it will run: a second on a GPU, minutes for SDXL on a CPU.

    Args:
        architecture: its shapes.
        tokenizers: folder of a diffusers pipeline with the folder ``tokenizer``, and ``tokenizer_2`` where there is
            a second text encoder; of at most 49408 tokens.
        device: where to.
        dtype: of all weights.

    Returns:
        A ``StableDiffusionPipeline``, or with two text encoders a ``StableDiffusionXLPipeline``, on ``device``.
    """
    import torch
    from diffusers import DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline

    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices), _made_on(device, dtype):
        torch.manual_seed(SEED)
        parts = models(architecture, eos_token=_tokenizer(tokenizers / "tokenizer").eos_token_id)
    parts["tokenizer"] = _tokenizer(tokenizers / "tokenizer")
    parts["scheduler"] = DDIMScheduler(**_SCHEDULE, prediction_type=architecture.prediction_type)
    if architecture.text_2 is None:
        pipeline: Any = StableDiffusionPipeline(
            **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )
    else:
        parts["tokenizer_2"] = _tokenizer(tokenizers / "tokenizer_2")
        pipeline = StableDiffusionXLPipeline(**parts, add_watermarker=False)
    return pipeline


def models(architecture: Architecture, eos_token: int) -> dict[str, Any]:
    """The torch modules, by component, in evaluation mode, on torch's default device and in its default dtype.

    Args:
        architecture: their shapes.
        eos_token: id of the token that ends a text, whose place the pooled output is taken from.
    """
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    def clip(shapes: Mapping[str, Any]) -> Any:
        return CLIPTextConfig(
            vocab_size=_VOCABULARY,
            max_position_embeddings=_TOKENS,
            eos_token_id=eos_token,
            pad_token_id=eos_token,
            **shapes,
        )

    parts: dict[str, Any] = {
        "unet": UNet2DConditionModel(**architecture.unet),
        "vae": AutoencoderKL(**architecture.vae),
        "text_encoder": CLIPTextModel(clip(architecture.text)),
    }
    if architecture.text_2 is not None:
        parts["text_encoder_2"] = CLIPTextModelWithProjection(clip(architecture.text_2))
    return {name: part.eval() for name, part in parts.items()}


def _tokenizer(folder: Path) -> Any:
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(str(folder))
    tokenizer.model_max_length = _TOKENS
    return tokenizer


@contextmanager
def _made_on(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """New modules get their weights here, rather than on the CPU in single precision and then moved."""
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            yield
    finally:
        torch.set_default_dtype(before)
