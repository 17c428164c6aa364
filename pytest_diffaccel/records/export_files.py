"""Rows as files that other tools read, and back: CSV, JSON, Parquet."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from types import ModuleType
from typing import Any

from pytest_diffaccel.records.export_rows import COLUMNS, Row, column_type

FORMATS = ("csv", "parquet", "json")


def dump_csv(rows: Sequence[Row]) -> str:
    """A heading and one line per row; empty where a row has no value."""
    text = StringIO()
    writer = csv.DictWriter(text, list(rows[0] if rows else COLUMNS), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def dump_json(rows: Sequence[Row]) -> str:
    """A list of objects, one per line; null where a row has no value."""
    return "[\n" + ",\n".join(json.dumps(row, ensure_ascii=False, allow_nan=False) for row in rows) + "\n]\n"


def write_parquet(rows: Sequence[Row], path: Path) -> None:
    """A Parquet file with typed columns.

    Raises:
        ValueError: when pyarrow is not installed.
    """
    arrow, parquet = _pyarrow()
    types = {str: arrow.string(), int: arrow.int64(), float: arrow.float64(), bool: arrow.bool_()}
    fields = [(name, types[column_type(name, rows)]) for name in (rows[0] if rows else COLUMNS)]
    parquet.write_table(arrow.Table.from_pylist(list(rows), schema=arrow.schema(fields)), path)


def read_export(path: Path) -> list[Row]:
    """The rows of an export, by the file's suffix; numbers of a CSV file are numbers again.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when it is none, or pyarrow is needed and not installed.
    """
    parquet = _pyarrow()[1] if path.suffix == ".parquet" else None
    try:
        rows: list[Row] = parquet.read_table(path).to_pylist() if parquet else _read_text(path)
    except (ValueError, RecursionError, csv.Error) as error:  # pyarrow's own are ValueErrors, too
        raise ValueError(f"{path} is no export: {error}") from error
    if not isinstance(rows, list) or any(not isinstance(row, dict) or "candidate" not in row for row in rows):
        raise ValueError(f"{path} is no export: expected rows with a column 'candidate', as `diffaccel export` writes")
    return rows


def _read_text(path: Path) -> Any:
    if path.suffix == ".csv":
        with path.open(encoding="utf-8-sig", newline="") as file:  # as spreadsheets write it
            return [_typed(row) for row in csv.DictReader(file)]
    return json.loads(path.read_text(encoding="utf-8-sig"))


def _typed(row: dict[str, Any]) -> Row:
    return {name: _value(text) if column_type(name, ()) is not str else text for name, text in row.items()}


def _value(text: str) -> Any:
    return json.loads({"True": "true", "False": "false", "": "null"}.get(text, text))


def _pyarrow() -> tuple[ModuleType, ModuleType]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ValueError("Parquet needs pyarrow: pip install 'pytest-diffaccel[export]'") from error
    return pyarrow, pyarrow.parquet
