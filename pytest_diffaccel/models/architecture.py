"""Full-size pipelines without their weights: published shapes, random numbers.

How long a denoiser call takes depends on the shapes of its tensors, not on what is in them. So the speed of SD1.5,
SD2.1, SDXL and FLUX.1 can be measured without their weights; what their pictures look like cannot.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_diffaccel.pipe_shapes import Architecture, FluxArchitecture
from pytest_diffaccel.pipes import PipeSpec

if TYPE_CHECKING:
    import torch

#: Of the random weights.
SEED = 0
# CLIP's context length, in tokens; the embedded tokenizers are cut to shorter captions. And FLUX.1's of T5.
_TOKENS = 77
_T5_TOKENS = 512
_VOCABULARY = 49408
_SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


def build_pipeline(pipe: PipeSpec, tokenizers: Path, device: torch.device, dtype: torch.dtype) -> Any:
    """A pipeline of random weights, made where it will run: seconds on a GPU, minutes for SDXL on a CPU.

    FLUX.1 has 17 billion of them, 34 GB in bfloat16.

    Args:
        pipe: whose architecture it is to have.
        tokenizers: folder of a diffusers pipeline with those of the pipe; of at most 49408 tokens.
        device: where to.
        dtype: of all weights.

    Returns:
        A pipeline of the pipe's class, on ``device``.

    Raises:
        ValueError: for a pipe whose architecture is not known.
    """
    import diffusers
    import torch

    if (architecture := pipe.architecture) is None:
        raise ValueError(f"the architecture of {pipe.name} is not known; give weights")
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices), _made_on(device, dtype):
        torch.manual_seed(SEED)
        parts = models(architecture, eos_token=_tokenizer(tokenizers / pipe.tokenizers[0]).eos_token_id)
    parts |= _others(architecture, pipe, tokenizers)
    pipeline_class: Any = getattr(diffusers, pipe.pipeline_class)
    return pipeline_class(**parts, **pipe.left_out)


def models(architecture: Architecture | FluxArchitecture, eos_token: int) -> dict[str, Any]:
    """The torch modules, by component, in evaluation mode, on torch's default device and in its default dtype.

    Args:
        architecture: their shapes.
        eos_token: id of the token that ends a text, whose place the pooled output is taken from.
    """
    from diffusers import AutoencoderKL, FluxTransformer2DModel, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, T5Config, T5EncoderModel

    def clip(shapes: Mapping[str, Any]) -> Any:
        return CLIPTextConfig(
            vocab_size=_VOCABULARY,
            max_position_embeddings=_TOKENS,
            eos_token_id=eos_token,
            pad_token_id=eos_token,
            **shapes,
        )

    parts: dict[str, Any] = {}
    if isinstance(architecture, FluxArchitecture):
        parts["transformer"] = FluxTransformer2DModel(**architecture.transformer)
    else:
        parts["unet"] = UNet2DConditionModel(**architecture.unet)
    parts["vae"] = AutoencoderKL(**architecture.vae)
    parts["text_encoder"] = CLIPTextModel(clip(architecture.text))
    if isinstance(architecture, FluxArchitecture):
        parts["text_encoder_2"] = T5EncoderModel(T5Config(**architecture.text_2))
    elif architecture.text_2 is not None:
        parts["text_encoder_2"] = CLIPTextModelWithProjection(clip(architecture.text_2))
    return {name: part.eval() for name, part in parts.items()}


def _others(architecture: Architecture | FluxArchitecture, pipe: PipeSpec, tokenizers: Path) -> dict[str, Any]:
    """The components without weights."""
    import diffusers
    from transformers import T5Tokenizer

    if not isinstance(architecture, FluxArchitecture):
        scheduler = diffusers.DDIMScheduler(**_SCHEDULE, prediction_type=architecture.prediction_type)
        return {"scheduler": scheduler, **{name: _tokenizer(tokenizers / name) for name in pipe.tokenizers}}
    return {
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(**architecture.scheduler),
        "tokenizer": _tokenizer(tokenizers / "tokenizer"),
        # Of hardly any words: the text is filled up to its full length all the same.
        "tokenizer_2": T5Tokenizer(model_max_length=_T5_TOKENS),
    }


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
