"""A preset in Python, of which the syntax tree is read as data: nothing of it is imported, called or evaluated."""

from __future__ import annotations

import ast
import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from pytest_diffaccel.audit.given import Given, PresetError
from pytest_diffaccel.audit.known_calls import CACHE_CONFIG, KNOWN_CALLS, FoundCall, KnownCall
from pytest_diffaccel.audit.masks import MAKES_MASK, made_mask

_PARTIAL = "partial"


def read_python(text: str) -> tuple[list[FoundCall], list[str]]:
    """The known calls of a Python file or snippet, in its order, and remarks on configs that are left out.

    A setting is a literal, or a name that is given one literal and nothing else, anywhere in the file. A mask of
    cache-dit that is made of literals is one, too.

    Raises:
        PresetError: naming the line, for what is no Python, another cache's config, and a parameter that is no literal.
    """
    tree = _tree(text)
    literals = _literals(tree)
    found, remarks = [], []
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    for node in sorted(calls, key=lambda node: (node.lineno, node.col_offset)):
        name, arguments = _called(node)
        if name in KNOWN_CALLS:
            place, call = f"line {node.lineno}", KNOWN_CALLS[name]
            found.append(FoundCall(name, call, place, _settings(name, call, arguments, node, literals)))
        elif CACHE_CONFIG.fullmatch(name):
            raise PresetError(f"line {node.lineno}: {name} is no config that is known here; {known_calls()}")
        elif name.endswith("Config"):
            remarks.append(f"line {node.lineno}: {name} is left out")
    return found, remarks


def known_calls() -> str:
    """Those that are, in words."""
    return f"known are {', '.join(KNOWN_CALLS)}"


def _tree(text: str) -> ast.Module:
    try:
        return ast.parse(textwrap.dedent(text))
    except SyntaxError as error:
        raise PresetError(f"line {error.lineno}: no Python: {error.msg}: {(error.text or '').strip()!r}") from error
    except (ValueError, RecursionError, MemoryError) as error:
        raise PresetError(f"no Python that can be read: {error}") from error


def _literals(tree: ast.Module) -> dict[str, Any]:
    """What names stand for that are given one literal, and nothing else."""
    stored = Counter(node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and _is_changed(node))
    stored.update(node.arg for node in ast.walk(tree) if isinstance(node, ast.arg))
    found: dict[str, Any] = {}
    for name, value in _assignments(tree):
        given = _given(value, found if isinstance(value, ast.Call) else {})
        if stored[name] == 1 and given.is_literal:
            found[name] = given.value
    return found


def _is_changed(node: ast.Name) -> bool:
    return isinstance(node.ctx, ast.Store | ast.Del)


def _assignments(tree: ast.Module) -> Iterator[tuple[str, ast.expr]]:
    """Each ``name = value``, also with an annotation."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            target = node.targets[0]
        elif isinstance(node, ast.AnnAssign):
            target = node.target
        else:
            continue
        if isinstance(target, ast.Name) and node.value is not None:
            yield target.id, node.value


def _called(node: ast.Call) -> tuple[str, list[ast.expr]]:
    """The last part of what is called, and its arguments by position; ``partial(f, 1)`` is a call of ``f``."""
    called, arguments = node.func, list(node.args)
    if _last_part(called) == _PARTIAL and arguments:
        called = arguments.pop(0)
    return _last_part(called), arguments


def _last_part(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def _settings(
    name: str, call: KnownCall, arguments: list[ast.expr], node: ast.Call, literals: Mapping[str, Any]
) -> dict[str, Given]:
    """What a call gives, by name, of which the method's parameters are literals."""
    if call.is_generating:  # its pictures' prompts and so on
        arguments = []
    if len(arguments) > len(call.order) or any(isinstance(one, ast.Starred) for one in arguments):
        raise PresetError(f"line {node.lineno}: {name} takes {_taken(call)} by position; name the others")
    given = {setting: _given(value, literals) for setting, value in zip(call.order, arguments, strict=False) if setting}
    for keyword in node.keywords:
        if keyword.arg is not None:
            given[keyword.arg] = _given(keyword.value, literals)
        else:
            given |= dict(_unpacked(keyword.value, literals))
    for setting, value in given.items():
        if setting in call.params and not value.is_literal:
            raise PresetError(
                f"line {node.lineno}: {setting}={value.text} of {name} is no literal; a preset is read, not run: "
                "write the value there"
            )
    return given


def _taken(call: KnownCall) -> str:
    return f"{len(call.order)} arguments ({', '.join(one or 'a pipeline' for one in call.order)})"


def _unpacked(node: ast.expr, literals: Mapping[str, Any]) -> Iterator[tuple[str, Given]]:
    """What ``**`` puts in place of keywords."""
    given = _given(node, literals)
    if not isinstance(given.value, dict) or not all(isinstance(name, str) for name in given.value):
        raise PresetError(
            f"line {node.lineno}: **{given.text} is no dictionary of literals; a preset is read, not run: "
            "write the settings there"
        )
    for name, value in given.value.items():
        yield name, Given(repr(value), value, is_literal=True)


def _given(node: ast.expr, literals: Mapping[str, Any]) -> Given:
    text = _text(node)
    if isinstance(node, ast.Name) and node.id in literals:
        return Given(repr(literals[node.id]), literals[node.id], is_literal=True)
    if isinstance(node, ast.Call) and _last_part(node.func) == MAKES_MASK:
        mask = _made_mask(node, literals)
        return Given(text, mask, is_literal=mask is not None)
    try:
        return Given(text, ast.literal_eval(node), is_literal=True)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return Given(text)


def _text(node: ast.expr) -> str:
    try:
        return ast.unparse(node)
    except RecursionError:
        return "an expression of too many parts"


def _made_mask(node: ast.Call, literals: Mapping[str, Any]) -> list[int] | None:
    """What a call that makes a mask gives; None where that is not known from its name and literals."""
    given = {keyword.arg: _given(keyword.value, literals).value for keyword in node.keywords}
    if node.args or given.keys() - {"total_steps", "mask_policy"}:
        return None
    return made_mask(given.get("total_steps"), given.get("mask_policy", "medium"))
