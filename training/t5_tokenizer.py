"""A small Unigram vocabulary in T5's format, made of the captions' words; no sentencepiece is needed to read it."""

from __future__ import annotations

import json
import math
import string
from collections import Counter
from pathlib import Path

from transformers import T5Tokenizer

from training.tokenizer import MAX_LENGTH

PAD, END, UNKNOWN = "<pad>", "</s>", "<unk>"
PAD_ID, END_ID = 0, 1
SPACE = "\u2581"  # T5's mark before the first symbol of a word
# Log probability of a piece of one sign: any word costs less, so that words are never spelt.
SIGN_SCORE = -20.0


def pieces(captions: list[str]) -> list[tuple[str, float]]:
    """T5's special tokens, words and printable ASCII signs with their log probabilities; a token's id is its place."""
    words = Counter(SPACE + word for caption in captions for word in caption.split())
    total = sum(words.values())
    ordered = sorted(words, key=lambda word: (-words[word], word))
    spelt = [(sign, SIGN_SCORE) for sign in [SPACE, *string.ascii_letters, *string.digits, *string.punctuation]]
    special = [(token, 0.0) for token in (PAD, END, UNKNOWN)]
    return special + [(word, math.log(words[word] / total)) for word in ordered] + spelt


def write_t5_tokenizer(folder: Path, captions: list[str]) -> None:
    """Write ``tokenizer.json`` and its configuration, as T5Tokenizer (once T5TokenizerFast) reads them.

    The hundred sentinels of T5's own training are left out.
    """
    tokenizer = T5Tokenizer(vocab=pieces(captions), extra_ids=0, model_max_length=MAX_LENGTH)
    folder.mkdir(parents=True, exist_ok=True)
    text = tokenizer.backend_tokenizer.to_str(pretty=True)
    (folder / "tokenizer.json").write_text(text + "\n", encoding="utf-8")
    special = {"eos_token": END, "pad_token": PAD, "unk_token": UNKNOWN}
    config = {**special, "extra_ids": 0, "model_max_length": MAX_LENGTH, "tokenizer_class": "T5Tokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2) + "\n", encoding="utf-8")


def load_t5_tokenizer(folder: Path) -> T5Tokenizer:
    """The tokenizer of a folder, from this disk alone."""
    tokenizer: T5Tokenizer = T5Tokenizer.from_pretrained(folder, local_files_only=True)
    return tokenizer
