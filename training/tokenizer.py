"""A small byte-level BPE vocabulary in CLIPTokenizer's format, learnt from the captions."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTokenizer

BEGIN = "<|startoftext|>"
END = "<|endoftext|>"
WORD_END = "</w>"  # CLIP's mark on the last symbol of a word
MAX_LENGTH = 24  # tokens; the longest caption takes 16, begin and end included
MAX_MERGES = 700


def learn_merges(captions: list[str]) -> list[tuple[str, str]]:
    """The BPE merges of the captions, most frequent first, under CLIPTokenizer's own normaliser and word splitter.

    Of pairs that are equally frequent the alphabet's first goes first. The trainer of ``tokenizers`` takes any of them:
    two calls give words different ids, so that what was trained with one vocabulary is read with another.
    """
    clip = CLIPTokenizer().backend_tokenizer
    texts = (clip.normalizer.normalize_str(caption) for caption in captions)
    words = Counter(word for text in texts for word, _ in clip.pre_tokenizer.pre_tokenize_str(text))
    symbols = {word: [*word[:-1], word[-1] + WORD_END] for word in words}
    merges: list[tuple[str, str]] = []
    while len(merges) < MAX_MERGES:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, parts in symbols.items():
            for pair in pairwise(parts):
                pairs[pair] += words[word]
        if not pairs:
            break
        merges.append(min(pairs, key=lambda pair: (-pairs[pair], pair)))
        symbols = {word: _merged(parts, merges[-1]) for word, parts in symbols.items()}
    return merges


def _merged(parts: list[str], pair: tuple[str, str]) -> list[str]:
    """A word's symbols with every such pair joined, from the left."""
    joined: list[str] = []
    for part in parts:
        if joined and (joined[-1], part) == pair:
            joined[-1] += part
        else:
            joined.append(part)
    return joined


def build_vocabulary(merges: list[tuple[str, str]]) -> dict[str, int]:
    """Tokens to ids in CLIP's order: bytes, bytes that end a word, merges, begin, end. No text is out of vocabulary."""
    alphabet = sorted(ByteLevel.alphabet())
    tokens = alphabet + [symbol + WORD_END for symbol in alphabet]
    tokens += [left + right for left, right in merges] + [BEGIN, END]
    return {token: number for number, token in enumerate(dict.fromkeys(tokens))}


def write_tokenizer(folder: Path, captions: list[str]) -> None:
    """Write ``vocab.json``, ``merges.txt`` and the configuration that every version of CLIPTokenizer reads."""
    merges = learn_merges(captions)
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = build_vocabulary(merges)
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False) + "\n", encoding="utf-8")
    lines = ["#version: 0.2"] + [f"{left} {right}" for left, right in merges]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    special = {"bos_token": BEGIN, "eos_token": END, "pad_token": END, "unk_token": END}
    config = {**special, "do_lower_case": True, "model_max_length": MAX_LENGTH, "tokenizer_class": "CLIPTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2) + "\n", encoding="utf-8")


def load_tokenizer(folder: Path) -> CLIPTokenizer:
    """The tokenizer of a folder, from this disk alone."""
    tokenizer: CLIPTokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    return tokenizer
