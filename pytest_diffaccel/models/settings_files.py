"""The files of a diffusers folder that hold no weights: there, readable, and naming no code beside the weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_LIBRARIES = ("diffusers", "transformers")
# transformers writes a length of no bounds as a number of 31 digits.
_UNBOUNDED = 1_000_000
# CLIP's, which text encoders have whose settings name none.
_CLIP, _TOKENS, _LENGTH = "clip", 49408, 77
#: Components of no use here, which are never loaded.
LEFT_OUT = ("safety_checker", "feature_extractor", "image_encoder")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        ValueError: if it is not readable, or not an object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not readable JSON ({error}); fetch or save it again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is not a JSON object; fetch or save it again")
    return content


def needed_files(folder: Path) -> None:
    """Refuse a component's folder without its settings, or a tokenizer's without its vocabulary or of another encoder.

    Args:
        folder: of a component, named as pipelines name it, beside the pipeline's others.

    Raises:
        FileNotFoundError: naming the missing file.
        ValueError: naming the file that is not readable, holds nothing, or does not fit.
    """
    if folder.name.startswith("tokenizer"):
        _check_tokenizer(folder)
    else:
        read_json(_present(folder / ("scheduler_config.json" if folder.name == "scheduler" else "config.json")))


def _check_tokenizer(folder: Path) -> None:
    place = _present(folder / "tokenizer_config.json")
    settings = read_json(place)
    length = settings.get("model_max_length")
    # Else prompts would be filled up to a length beyond all bounds.
    if not isinstance(length, int) or not 0 < length < _UNBOUNDED:
        raise ValueError(f"{place} has no model_max_length, the text encoder's length; fetch or save it again")
    largest = max(_token_ids(folder, settings))
    encoder = _present(folder.with_name(folder.name.replace("tokenizer", "text_encoder")) / "config.json")
    expected = read_json(encoder)
    expected = expected.get("text_config") or expected  # of a model of texts and pictures
    is_clip = str(expected.get("model_type", _CLIP)).startswith(_CLIP)
    # Others have places without bounds, as T5, or far more than pipelines read.
    places = [("max_position_embeddings", _LENGTH, length)] if is_clip else []
    for name, default, needed in [("vocab_size", _TOKENS, largest + 1), *places]:
        size = expected.get(name, default)
        if not isinstance(size, int) or size < needed:
            what = f"gives tokens up to {largest}" if name == "vocab_size" else f"has model_max_length {length}"
            raise ValueError(
                f"{folder} {what}, but {encoder} has {name} {size!r}: the two are not of one model; fetch or save both "
                "again"
            )


def _token_ids(folder: Path, settings: dict[str, Any]) -> list[int]:
    """The numbers of all tokens that a tokenizer may give, at least one."""
    whole = folder / "tokenizer.json"
    added: list[Any] = list(settings.get("added_tokens_decoder") or ())
    if whole.is_file():
        content = read_json(whole)
        model = content.get("model")
        vocabulary = model.get("vocab") if isinstance(model, dict) else None
        added += [token.get("id") for token in content.get("added_tokens") or () if isinstance(token, dict)]
    else:
        whole = _present(folder / "vocab.json", "tokenizer.json")
        merges = _present(folder / "merges.txt", "tokenizer.json")
        vocabulary = read_json(whole) if merges.stat().st_size else None
        whole = whole if merges.stat().st_size else merges
    if not vocabulary:
        raise ValueError(f"{whole} holds no vocabulary; fetch or save it again")
    if (beside := folder / "added_tokens.json").is_file():
        added += read_json(beside).values()
    # Other kinds of tokenizers list their words in the numbers' order.
    known = vocabulary.values() if isinstance(vocabulary, dict) else range(len(vocabulary))
    try:
        return [int(number) for number in (*known, *added)]
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{whole}, or a file beside it, has a token without a number; fetch or save it again"
        ) from error


def _present(path: Path, instead: str = "") -> Path:
    if not path.is_file():
        place = f"{path.parent.parent} has no {path.parent.name}/{path.name}"
        raise FileNotFoundError(f"{place}{instead and f' (nor {instead})'}, which its {path.parent.name} needs")
    return path


def refuse_code(index: Path) -> None:
    """Refuse a pipeline whose class, or a component's, is not one of diffusers or transformers.

    Args:
        index: a ``model_index.json``; of the settings beside it, those that are there are read.

    Raises:
        ValueError: naming the file and the class.
    """
    content = read_json(index)
    own = {name: classes for name, classes in _components(content).items() if classes[0] not in (None, *_LIBRARIES)}
    # A pipeline's class is one of diffusers' by its name alone; one of its own comes with a module's name.
    if not isinstance(content.get("_class_name"), str):
        own["_class_name"] = content.get("_class_name")
    for name, classes in own.items():
        raise ValueError(_refusal(index, f"{name} is {classes!r}, no class of {' or '.join(_LIBRARIES)}"))
    for path in sorted(index.parent.glob("*/*config.json")):
        if path.parent.name not in LEFT_OUT:
            refuse_auto_map(path)


def refuse_auto_map(path: Path) -> None:
    """Refuse a component whose settings name classes that lie beside them.

    Raises:
        ValueError: naming the file.
    """
    if "auto_map" in read_json(path):
        raise ValueError(_refusal(path, "auto_map names classes outside the libraries"))


def _components(content: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value for name, value in content.items() if isinstance(value, list) and value and name not in LEFT_OUT
    }


def _refusal(path: Path, reason: str) -> str:
    return (
        f"{path} asks for code of its own ({reason}), which is never run; "
        "save the pipeline again with the libraries' own classes, or give other weights"
    )
