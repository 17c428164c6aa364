"""The import contract of ``tox -e lint`` is the table of rooms that ``docs/architecture.md`` shows."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def rooms() -> list[str]:
    """The table's first column from its top to its bottom: ``matrix``, ..., ``search``, ``search.predict``, ..."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = text.partition("\n## Rooms\n")[2].partition("\n## ")[0]
    found = re.findall(r"^\| `([\w/]+?)(?:/|\.py)` \|", table, re.MULTILINE)
    return [room.replace("/", ".") for room in found]


@pytest.fixture(scope="module")
def layers() -> dict[str, Any]:
    """The contract's layers from top to bottom, by the package that holds them."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    contracts = tomllib.loads(text)["tool"]["importlinter"]["contracts"]
    return {contract["containers"][0]: contract["layers"] for contract in contracts if contract["type"] == "layers"}


def test_the_contract_is_the_table(rooms: list[str], layers: dict[str, Any]) -> None:
    assert layers["pytest_diffaccel"] == [room for room in reversed(rooms) if "." not in room]


@pytest.mark.parametrize("outer", ["search", "report.html"])
def test_the_contract_inside_a_room_is_its_part_of_the_table(
    outer: str, rooms: list[str], layers: dict[str, Any]
) -> None:
    inside = [room.removeprefix(f"{outer}.") for room in reversed(rooms) if room.startswith(f"{outer}.")]
    assert layers[f"pytest_diffaccel.{outer}"] == inside


def test_every_row_is_a_room_that_is_there(rooms: list[str]) -> None:
    package = ROOT / "pytest_diffaccel"
    there = {
        *(path.parent for path in package.rglob("__init__.py")),
        *(path.with_suffix("") for path in package.glob("*.py")),
    }
    missing = [room for room in rooms if package / room.replace(".", "/") not in there]
    assert rooms
    assert not missing
