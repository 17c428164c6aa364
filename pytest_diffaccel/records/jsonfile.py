"""Flat JSON objects as files: read with the line of what is wrong, written so that no kill damages them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from filelock import FileLock
from pydantic import ValidationError

_Key = TypeVar("_Key")
_Value = TypeVar("_Value")

#: One lock a folder: the golden files in it share ``environments.json``.
LOCK_NAME = ".golden.lock"
#: A merge takes well under a second; waiting longer means that a holder hangs.
_LOCK_TIMEOUT_S = 60.0


class JsonFileError(ValueError):
    """A file that is refused; it was not touched.

    Attributes:
        path: the file.
        line: where it is wrong, from 1; 0 where nothing in it could be read.
        reason: what is wrong, in words.
    """

    def __init__(self, path: Path, line: int, reason: str) -> None:
        super().__init__(path, line, reason)
        self.path = path
        self.line = line
        self.reason = reason

    def __str__(self) -> str:
        if not self.line:
            return f"{self.path}: {self.reason}"
        advice = "the file was left as it is: mend it, or restore it from git"
        return f"{self.path}:{self.line}: {self.reason} ({advice})"


@dataclass(frozen=True)
class _Item:
    """One key of the object with its value's own text.

    Attributes:
        key: the key, decoded.
        text: the value's JSON text.
        start: offset of the key in the file's text.
        value_start: offset of the value.
    """

    key: str
    text: str
    start: int
    value_start: int


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; the folder is created if missing.

    Raises:
        TimeoutError: when another process holds the lock for a minute.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / LOCK_NAME, timeout=_LOCK_TIMEOUT_S):
        yield


def read_object(
    path: Path, parse_key: Callable[[str], _Key], parse_value: Callable[[str, str], _Value]
) -> dict[_Key, _Value]:
    """The flat object in ``path``, in the file's order; empty when there is no such file.

    Args:
        path: a UTF-8 file with one JSON object.
        parse_key: from a key's text; raises ``ValueError`` to refuse it.
        parse_value: from a key's text and its value's JSON text; raises ``ValueError`` to refuse it.

    Raises:
        JsonFileError: when the file does not parse, names a key twice, or holds a refused key or value.
    """
    text = _read_text(path)
    if text is None:
        return {}
    found: dict[_Key, _Value] = {}
    for item in _items(path, text):
        try:
            key = parse_key(item.key)
            if key in found:
                raise ValueError(f"{item.key} is there twice")
            found[key] = parse_value(item.key, item.text)
        except ValueError as error:
            reason, offset = _explain(error, item)
            raise JsonFileError(path, _line(text, offset), reason) from error
    return found


def write_text(path: Path, text: str) -> None:
    """Replace ``path`` with ``text`` in one step: a reader or a kill sees the old file or the new one, whole.

    Call it under :func:`folder_lock`: the temporary file's name is fixed, so that one left by a kill is
    overwritten by the next write and they never pile up.
    """
    path = path.resolve()  # a symbolic link stays a link: what it points to is replaced
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    if path.exists():
        shutil.copymode(path, temporary)
    os.replace(temporary, path)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":  # Windows cannot open a folder to flush it
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read_text(path: Path) -> str | None:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except IsADirectoryError as error:
        raise JsonFileError(path, 0, "it is a folder; name a file, such as search_params.json in it") from error
    except OSError as error:
        raise JsonFileError(path, 0, f"it cannot be read: {error.strerror or error}") from error
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise JsonFileError(path, data.count(b"\n", 0, error.start) + 1, "not UTF-8 text") from error


def _items(path: Path, text: str) -> Iterator[_Item]:
    """The object's items with their places, which ``json.loads`` alone does not tell."""
    decoder = json.JSONDecoder(object_pairs_hook=_unique_names, parse_constant=_refuse_constant)
    _check_syntax(path, text)
    position = _skip(text, text.index("{") + 1)
    while text[position] != "}":
        start = position
        key, position = decoder.raw_decode(text, start)
        value_start = _skip(text, position, ":")
        try:
            _, position = decoder.raw_decode(text, value_start)
        except ValueError as error:
            raise JsonFileError(path, _line(text, value_start), f"{key}: {error}") from error
        yield _Item(key, text[value_start:position], start, value_start)
        position = _skip(text, position, ",")


def _check_syntax(path: Path, text: str) -> None:
    try:
        whole = json.loads(text)
    except json.JSONDecodeError as error:
        raise JsonFileError(path, error.lineno, f"not JSON: {error.msg}, column {error.colno}") from error
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, thousands of brackets
        raise JsonFileError(path, 1, f"not JSON: {error}") from error
    if not isinstance(whole, dict):
        raise JsonFileError(path, 1, "not a JSON object")


def _skip(text: str, position: int, also: str = "") -> int:
    while text[position] in " \t\r\n" + also:
        position += 1
    return position


def _line(text: str, offset: int) -> int:
    return text.count("\n", 0, offset) + 1


def _explain(error: ValueError, item: _Item) -> tuple[str, int]:
    """The reason in words, and the offset of the field to blame, or of the key."""
    if not isinstance(error, ValidationError):
        return str(error), item.start
    first = error.errors()[0]
    place = ".".join(map(str, first["loc"]))
    field = item.text.find(json.dumps(str(first["loc"][0]))) if first["loc"] else -1
    offset = item.start if field < 0 else item.value_start + field
    return f"{item.key}: {place + ': ' if place else ''}{first['msg']}", offset


def _unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = dict(pairs)
    if len(names) < len(pairs):
        raise ValueError("a name is there twice")
    return names


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number of JSON")
