"""Text conditioning in training, through the very calls that the two pipelines make at inference."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import CLIPTokenizer, T5Tokenizer

from training.architectures import TextEncoder
from training.captions import COLOUR_NAMES, WORDINGS, Scene, caption
from training.objects import OBJECTS
from training.tokenizer import MAX_LENGTH

# The plain wording is what prompts use, so half of all captions have it.
WORDING_WEIGHTS: tuple[float, ...] = (0.5,) + (0.5 / (len(WORDINGS) - 1),) * (len(WORDINGS) - 1)


@dataclass(frozen=True)
class Conditioning:
    """What the UNet is told: text states ``[n, 24, width]`` and, for XL, the pooled text ``[n, projection]``."""

    states: Tensor
    pooled: Tensor | None


def tokenize(tokenizer: CLIPTokenizer | T5Tokenizer, texts: list[str]) -> Tensor:
    """Token ids ``[n, 24]``, padded and cut as the pipelines do it."""
    encoded = tokenizer(texts, padding="max_length", max_length=MAX_LENGTH, truncation=True, return_tensors="pt")
    ids: Tensor = encoded.input_ids
    return ids


def caption_table(tokenizer: CLIPTokenizer | T5Tokenizer) -> Tensor:
    """Token ids ``[objects, colours, wordings, 24]`` of all captions."""
    texts = [
        caption(Scene(thing, colour), wording)
        for thing in range(len(OBJECTS))
        for colour in range(len(COLOUR_NAMES))
        for wording in range(len(WORDINGS))
    ]
    return tokenize(tokenizer, texts).view(len(OBJECTS), len(COLOUR_NAMES), len(WORDINGS), MAX_LENGTH)


class TextEncoders(nn.Module):
    """One encoder (its last hidden states) or XL's two (penultimate states joined, and the second's pooled text)."""

    def __init__(self, encoders: list[TextEncoder]) -> None:
        super().__init__()
        self.encoders = nn.ModuleList(encoders)

    def forward(self, ids: Tensor, dropped: Tensor, empty: Tensor) -> Conditioning:
        """Encode ``ids [n, 24]``; where ``dropped [n]`` is true, as the pipeline does without a prompt.

        That is the empty caption ``empty [24]`` for SD, and zeros for XL (its ``force_zeros_for_empty_prompt``).
        """
        if len(self.encoders) == 1:
            ids = torch.where(dropped[:, None], empty, ids)
            return Conditioning(self.encoders[0](ids)[0], None)
        outputs = [encoder(ids, output_hidden_states=True) for encoder in self.encoders]
        states = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
        kept = ~dropped
        return Conditioning(states * kept[:, None, None], outputs[1][0] * kept[:, None])
