"""Files of evaluation prompts: plain lines, and the tables in which public sets of prompts come."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from pytest_diffaccel.words import meant

#: What a column of prompts is usually called, in lower case; of several the first is taken.
USUAL_COLUMNS = ("prompt", "prompts", "caption", "captions", "text")
_FORMATS = "give a text file with one prompt per line, or a .csv, .tsv, .json or .jsonl file with a column of prompts"
_DELIMITERS = {".csv": (",", "a comma"), ".tsv": ("\t", "a tab"), ".tab": ("\t", "a tab")}
_JSON = (".json", ".jsonl", ".ndjson")
# Columns named in an error: an object may have thousands of names.
_LISTED = 12


@dataclass(frozen=True)
class PromptFile:
    """What a file of prompts holds.

    Attributes:
        path: the file.
        column: the column or field that was read; None where there is none.
        prompts: in the file's order, each one line and without repetitions; at least one.
        repeated: how many further prompts repeat one of them.
    """

    path: Path
    column: str | None
    prompts: tuple[str, ...]
    repeated: int = 0


@dataclass(frozen=True)
class _Table:
    """Entries with their places in words: texts, or objects by column; and the columns that the first one has."""

    entries: Sequence[tuple[str, Any]]
    columns: Sequence[str]


def read_prompt_file(named: Path) -> PromptFile:
    """Read ``FILE`` or ``FILE:COLUMN``.

    By the file's ending it is CSV or TSV with a header, JSON or JSON lines; any other holds one prompt per line, where
    lines that begin with ``#`` are skipped. Empty prompts are skipped, a line break within one becomes a space. Without
    a column one of :data:`USUAL_COLUMNS` is taken. JSON may be a list of texts or objects, an object of objects, or
    one with a list of objects that have the column (as in COCO's captions).

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming file, line and fix: if it is not UTF-8 text, breaks its format, has no such column, or holds
            no prompt.
    """
    path, column = _split(named)
    text = _text(path)
    suffix = path.suffix.lower()
    if suffix in _DELIMITERS:
        table = _rows(path, text, *_DELIMITERS[suffix])
    elif suffix in _JSON:
        table = _objects(path, text, column)
    elif column is not None:
        raise ValueError(f"{path} is read as one prompt per line, without columns; {_FORMATS}")
    else:
        table = _lines(text)
    if table.columns:
        column = _column(path, column, table.columns)
    elif column is not None and table.entries:
        raise ValueError(f"{path} holds texts, without columns; leave :{column} out")
    found = [prompt for place, entry in table.entries for prompt in _prompts(f"{path}, {place}", entry, column)]
    prompts = tuple(dict.fromkeys(found))
    if not prompts:
        raise ValueError(f"{path} holds no prompt; {_FORMATS}")
    return PromptFile(path, column, prompts, len(found) - len(prompts))


def _split(named: Path) -> tuple[Path, str | None]:
    """File and column; a file's own name may have colons."""
    if named.is_file():
        return named, None
    text = str(named)
    for found in re.finditer(":", text):
        path, column = Path(text[: found.start()]), text[found.end() :]
        if path.is_file():
            if not column.strip():
                raise ValueError(f"{text}: no column is named behind the colon")
            return path, column
    raise FileNotFoundError(f"no prompts file {named}; {_FORMATS}")


def _text(path: Path) -> str:
    data = path.read_bytes()
    if b"\0" in data:
        raise ValueError(f"{path} is a binary file; {_FORMATS}")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ValueError(f"{path}, line {line}: not UTF-8 text; save the file as UTF-8") from error


def _lines(text: str) -> _Table:
    # Not splitlines, which also splits at what people paste along, such as U+2028: a prompt may hold any of it.
    lines = enumerate(re.split("\r\n|\r|\n", text), 1)
    return _Table([(f"line {number}", line) for number, line in lines if not line.strip().startswith("#")], ())


def _rows(path: Path, text: str, delimiter: str, called: str) -> _Table:
    """A table with a header. TSV that does not quote, as PartiPrompts', may have quotes wherever it likes."""
    try:
        return _parsed(path, text, delimiter, called, csv.QUOTE_MINIMAL)
    except ValueError:
        if delimiter != "\t":
            raise
        return _parsed(path, text, delimiter, called, csv.QUOTE_NONE)


def _parsed(path: Path, text: str, delimiter: str, called: str, quoting: Any) -> _Table:
    rows = csv.reader(StringIO(text, newline=""), delimiter=delimiter, quoting=quoting, strict=True)
    header: list[str] = []
    entries = []
    line = 1
    try:
        for row in rows:
            place, line = f"line {line}", rows.line_num + 1
            if not any(field.strip() for field in row):
                continue
            if not header:
                header = [name.strip() for name in row]
                continue
            if any(field.strip() for field in row[len(header) :]):
                raise ValueError(
                    f"{path}, {place}: {len(row)} fields under {len(header)} columns; put a prompt that holds {called} "
                    "in quotes"
                )
            entries.append((place, dict(zip(header, row, strict=False))))
    except csv.Error as error:
        raise ValueError(
            f"{path}, line {line}: {error}; close each quoted field, and double the quotes within it"
        ) from error
    return _Table(entries, header)


def _objects(path: Path, text: str, column: str | None) -> _Table:
    """JSON, or JSON lines, whichever it is: both endings are used for both."""
    try:
        whole = json.loads(text) if text.strip() else []
    except (ValueError, RecursionError) as error:
        if _is_json(text.strip().partition("\n")[0]):
            return _table(list(_json_lines(path, text)))
        raise ValueError(f"{path}, line {getattr(error, 'lineno', 1)}: {_no_json(error)}") from error
    return _table([(f"entry {number}", entry) for number, entry in enumerate(_within(whole, column), 1)])


def _json_lines(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield f"line {number}", json.loads(line)
            except (ValueError, RecursionError) as error:
                said = f"{_no_json(error)}; write one text or object per line"
                raise ValueError(f"{path}, line {number}: {said}") from error


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _no_json(error: Exception) -> str:
    return f"not JSON: {getattr(error, 'msg', error)}"


def _within(whole: Any, column: str | None) -> Sequence[Any]:
    """The entries of a JSON document."""
    if isinstance(whole, list):
        return whole
    if isinstance(whole, dict) and whole:
        values = list(whole.values())
        if all(isinstance(value, dict) for value in values):
            return values
        for value in values:
            rows = isinstance(value, list) and bool(value) and isinstance(value[0], dict)
            if rows and _found(column, list(value[0])) is not None:
                return list(value)
    return [whole]


def _table(entries: Sequence[tuple[str, Any]]) -> _Table:
    first = next((entry for _, entry in entries if isinstance(entry, dict)), {})
    return _Table(entries, list(first))


def _found(wanted: str | None, columns: Sequence[str]) -> str | None:
    """The column that is meant: by its own name, else whatever its capitals are."""
    if wanted in columns:
        return wanted
    by_name = {name.strip().casefold(): name for name in reversed(columns)}
    names = USUAL_COLUMNS if wanted is None else (wanted.strip().casefold(),)
    return next((by_name[name] for name in names if name in by_name), None)


def _column(path: Path, wanted: str | None, columns: Sequence[str]) -> str:
    found = _found(wanted, columns)
    if found is not None:
        return found
    # As Python writes them: names may hold anything, also what moves a terminal's cursor.
    near = meant((wanted or USUAL_COLUMNS[0]).casefold(), {name.casefold(): repr(name) for name in columns})
    names = ", ".join(map(repr, columns[:_LISTED])) + (", ..." if len(columns) > _LISTED else "")
    if wanted is not None:
        raise ValueError(f"{path}: no column {wanted!r}{near}; it has {names}")
    raise ValueError(
        f"{path}: no column is called {', '.join(USUAL_COLUMNS[:-1])} or {USUAL_COLUMNS[-1]}{near}; name the one that "
        f"holds the prompts, as in --prompts {path}:COLUMN; it has {names}. A file of one prompt per line, without "
        "columns, is a .txt"
    )


def _prompts(place: str, entry: Any, column: str | None) -> Iterator[str]:
    """The prompts of an entry, each one line."""
    if isinstance(entry, dict):
        if column not in entry:
            raise ValueError(f"{place}: no {column or 'prompt'!r} there; add it, or remove the entry")
        entry = entry[column]
    for text in entry if isinstance(entry, list) else [entry]:
        if text is None:
            continue
        if not isinstance(text, str):
            raise ValueError(f"{place}: {json.dumps(text)[:40]} is no text; write a prompt in quotes, or null for none")
        if "\0" in text or re.search("[\ud800-\udfff]", text):
            raise ValueError(f"{place}: \\u0000 or half of a character written as a pair; write the character itself")
        prompt = re.sub(r"\s*[\r\n]\s*", " ", text.strip())
        if prompt:
            yield prompt
