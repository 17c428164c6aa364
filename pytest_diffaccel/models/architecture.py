"""Full-size pipelines without their weights: published shapes, random numbers.

How long a denoiser call takes depends on the shapes of its tensors, not on what is in them. So the speed of SD1.5,
SD2.1 and SDXL can be measured without their weights; what their pictures look like cannot.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_diffaccel.pipe_shapes import Architecture
from pytest_diffaccel.pipes import PipeSpec

if TYPE_CHECKING:
    import torch

#: Of the random weights.
SEED = 0
# CLIP's context length, in tokens; the embedded tokenizers are cut to shorter captions.
_TOKENS = 77
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
    """A pipeline of random weights, made where it will run: a second on a GPU, minutes for SDXL on a CPU.

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
    parts |= {name: _tokenizer(tokenizers / name) for name in pipe.tokenizers}
    parts["scheduler"] = diffusers.DDIMScheduler(**_SCHEDULE, prediction_type=architecture.prediction_type)
    pipeline_class: Any = getattr(diffusers, pipe.pipeline_class)
    return pipeline_class(**parts, **pipe.left_out)


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
