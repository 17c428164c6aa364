"""A CLIP to score pictures with where it does not matter what it says of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from searches import embedded_folder
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel


def make_clip(folder: Path) -> Path:
    """Write a small CLIP of random numbers with the embedded pipelines' tokenizer, which reads 24 tokens.

    Returns:
        ``folder``, which is there already. Equal for all calls.
    """
    tokenizer = embedded_folder("SD1.5") / "tokenizer"
    shutil.copytree(tokenizer, folder, dirs_exist_ok=True)
    words = len(json.loads((tokenizer / "vocab.json").read_text(encoding="utf-8")))
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {"bos_token_id": words - 2, "eos_token_id": words - 1, "pad_token_id": words - 1}
    config = CLIPConfig(
        text_config={**small, **ends, "vocab_size": words, "max_position_embeddings": 24},
        vision_config={**small, "image_size": 32, "patch_size": 8},
        projection_dim=16,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        CLIPModel(config).save_pretrained(folder)
    size = {"shortest_edge": 32}
    CLIPImageProcessor(size=size, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder
