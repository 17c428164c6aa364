"""Docstrings name what is there: attributes of their classes, and what they refer to. (ruff compares parameters.)"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted(file for room in ("pytest_diffaccel", "training", "benchmarks") for file in (ROOT / room).rglob("*.py"))
# One of ours has no dot, or begins with one, or with the package's name; others are other projects' names.
_REFERENCE = re.compile(r":(?:attr|class|data|exc|func|meth|mod):`~?((?:\.|pytest_diffaccel\.)?\w+(?:\.\w+)*)`")
_ENTRY = re.compile(r"    (\w+): ")


@cache
def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def classes() -> Iterator[tuple[Path, ast.ClassDef]]:
    for file in FILES:
        yield from ((file, node) for node in ast.walk(tree(file)) if isinstance(node, ast.ClassDef))


def documented_attributes(node: ast.ClassDef) -> list[str]:
    """The names in the section ``Attributes`` of a class's docstring."""
    _, found, section = (ast.get_docstring(node) or "").partition("\nAttributes:\n")
    lines = re.split(r"^\S", section, maxsplit=1, flags=re.MULTILINE)[0].splitlines()
    return [entry[1] for line in lines if found and (entry := _ENTRY.match(line))]


def names_in(node: ast.AST) -> set[str]:
    """What a class or module defines, and what its functions set on ``self``."""
    names = set()
    for inner in ast.walk(node):
        if isinstance(inner, ast.ClassDef | ast.FunctionDef):
            names.add(inner.name)
        elif isinstance(inner, ast.Name | ast.Attribute) and isinstance(inner.ctx, ast.Store):
            names.add(inner.id if isinstance(inner, ast.Name) else inner.attr)
    return names


@cache
def all_names() -> set[str]:
    """Every module, class, function, attribute and constant."""
    rooms = {part for file in FILES for part in file.relative_to(ROOT).with_suffix("").parts}
    return rooms.union(*(names_in(tree(file)) for file in FILES))


def test_documented_attributes_are_there_and_declared_ones_documented() -> None:
    by_name = {node.name: names_in(node) for _, node in classes()}
    documented, wrong = 0, []
    for file, node in classes():
        names, declared = documented_attributes(node), [one for one in node.body if isinstance(one, ast.AnnAssign)]
        bases = [base.id for base in node.bases if isinstance(base, ast.Name) and base.id in by_name]
        there = names_in(node).union(*(by_name[base] for base in bases))
        public = {name for one in declared if not (name := ast.unparse(one.target)).startswith("_")} if names else set()
        differing = (set(names) - there) | (public - set(names))
        wrong += [f"{file.relative_to(ROOT)}: {node.name}.{name}" for name in sorted(differing)]
        documented += len(names)
    assert wrong == []
    assert documented > 500  # the sections were found


@pytest.mark.parametrize("room", sorted({file.parent for file in FILES}), ids=lambda room: str(room.relative_to(ROOT)))
def test_what_docstrings_refer_to_is_there(room: Path) -> None:
    for file in room.glob("*.py"):
        for name in _REFERENCE.findall(file.read_text(encoding="utf-8")):
            if "." in name and not name.startswith((".", "pytest_diffaccel.")) and not name[0].isupper():
                continue
            missing = [part for part in name.strip(".").split(".") if part not in all_names()]
            assert missing == [], f"{file.relative_to(ROOT)} refers to {name}"
