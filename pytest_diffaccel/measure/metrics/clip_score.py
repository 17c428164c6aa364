"""CLIP score: how well a picture goes with its prompt, whatever the unaccelerated picture was."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING

from pytest_diffaccel.measure.metrics.base import Metric, MetricFault
from pytest_diffaccel.models.clip import Clip, ClipSource, load_clip
from pytest_diffaccel.words import counted

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

# Pictures and texts given to the network at once: bounds its memory at those of a few hundred MiB.
_BATCH = 16


class ClipScore(Metric):
    """100 times the cosine between CLIP's embeddings of picture and prompt, at least 0 (Hessel et al., EMNLP 2021).

    Computed in float32. A prompt that is longer than what CLIP reads is cut there, and a warning says so once.

    Attributes:
        source: where its CLIP comes from.
    """

    name = "clip_score"
    higher_is_better = True
    needs_references = False
    needs_prompts = True
    lowest = 0.0
    highest = 100.0

    def __init__(self, source: ClipSource) -> None:
        """Ask the CLIP of ``source``, which is loaded when it is first needed."""
        self.source = source
        self.weights = f"a CLIP: {source.description} (--clip-model)"
        self._told: set[str] = set()

    @property
    def identity(self) -> str:
        """With its CLIP's source and the digest of that one's weights."""
        with self._faults():
            return f"{self.name} ({self.source.description}, {self.source.digest()[:12]})"

    def prepare(self, device: str) -> None:
        """Load the CLIP, which may have to be downloaded."""
        with self._faults():
            self._clip  # noqa: B018

    def score(
        self, images: Sequence[Image], references: Sequence[Image], prompts: Sequence[str], device: str
    ) -> list[float]:
        """In batches of sixteen pictures and of as many texts."""
        import torch

        self.prepare(device)
        self._tell_of_long(prompts)
        scores: list[float] = []
        with _on(self._clip, device), _without_tf32(), torch.inference_mode():
            for first in range(0, len(images), _BATCH):
                part = slice(first, first + _BATCH)
                pictures, texts = self._of_pictures(images[part], device), self._of_texts(prompts[part], device)
                scores += (100 * (pictures * texts).sum(-1)).clamp(0, 100).tolist()
        return scores

    @cached_property
    def _clip(self) -> Clip:
        return load_clip(self.source)

    @contextmanager
    def _faults(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:
            raise MetricFault(f"{self.name}: {error}") from error

    def _of_pictures(self, images: Sequence[Image], device: str) -> Tensor:
        """Embeddings of length 1, (images, width)."""
        model = self._clip.model
        inputs = self._clip.processor([image.convert("RGB") for image in images], return_tensors="pt")
        pooled = model.vision_model(pixel_values=inputs["pixel_values"].to(device)).pooler_output
        return _unit(model.visual_projection(pooled))

    def _of_texts(self, prompts: Sequence[str], device: str) -> Tensor:
        """Embeddings of length 1, (prompts, width)."""
        model, most = self._clip.model, self._clip.most_tokens
        # Always to the full length: a text has the same embedding whatever stands beside it.
        tokens = self._clip.tokenizer(
            list(prompts), padding="max_length", truncation=True, max_length=most, return_tensors="pt"
        ).to(device)
        pooled = model.text_model(tokens["input_ids"], attention_mask=tokens["attention_mask"]).pooler_output
        return _unit(model.text_projection(pooled))

    def _tell_of_long(self, prompts: Sequence[str]) -> None:
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._told]
        self._told.update(new)
        most = self._clip.most_tokens
        long = sum(len(ids) > most for ids in self._clip.tokenizer(new, verbose=False)["input_ids"]) if new else 0
        if long:
            warnings.warn(
                f"{self.name}: {long} of {counted(len(new), 'prompt')} longer than the {most} tokens that CLIP reads; "
                "what is beyond does not count",
                stacklevel=2,
            )


def _unit(embeddings: Tensor) -> Tensor:
    import torch

    return torch.nn.functional.normalize(embeddings, dim=-1)


@contextmanager
def _on(clip: Clip, device: str) -> Iterator[None]:
    """The network on ``device`` for as long as it computes: in a GPU's memory it would count as that of candidates."""
    try:
        clip.model.to(device)
        yield
    finally:
        clip.model.to("cpu")


@contextmanager
def _without_tf32() -> Iterator[None]:
    """No convolution that rounds its inputs to ten bits, which GPUs do otherwise and the CPU never does."""
    import torch

    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield
