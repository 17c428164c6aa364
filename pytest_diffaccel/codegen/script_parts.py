"""A method's part of a script, as the method's own template (:attr:`.Method.template`) gives it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from functools import cache
from keyword import iskeyword
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_diffaccel.accelerators.base import Method

if TYPE_CHECKING:
    from jinja2 import Environment, Template


class NoScriptPart(ValueError):
    """A method brings nothing that a script could be made of, or something that cannot be used; the message says so."""


@dataclass(frozen=True)
class ScriptPart:
    """What a template sets (``{% set constant = ... %}``), and the two macros that it defines.

    Attributes:
        name: the method's.
        constant: the script's constant that holds the parameters.
        meaning: what they do, in one line.
        apply: the lines, indented by 4, that accelerate ``pipeline``.
        undo: the lines, indented by 8, that put it back as it was.
        library: what a package index calls the library; empty for none.
        import_line: how the library is imported; empty for none.
        standard_import: a line that imports from the standard library; empty for none.
        call: what is called in place of the pipeline; empty for the pipeline.
        draws: what it draws at random with torch's generator, which is seeded then; empty for nothing.
        cache_config: the lines that make ``config``, which is all that ``enable_cache`` of diffusers' denoisers takes;
            empty where diffusers has no cache for it.
        cache_dit: the lines that enable it on ``pipe`` with cache-dit; empty where that is none of its caches.
        settings: the lines that give the constant its value, where that is not all parameters.
    """

    name: str
    constant: str
    meaning: str
    apply: str
    undo: str
    library: str = ""
    import_line: str = ""
    standard_import: str = ""
    call: str = ""
    draws: str = ""
    cache_config: str = ""
    cache_dit: str = ""
    settings: str = ""

    def __post_init__(self) -> None:
        for one in fields(self):
            if not isinstance(value := getattr(self, one.name), str):
                raise ValueError(f"`{one.name}` is {value!r}, which is no text")
        if not (self.constant.isidentifier() and self.constant.isascii()) or iskeyword(self.constant):
            raise ValueError(f"`constant` is {self.constant!r}, which is no name in Python")
        for name, line in (("import_line", self.import_line), ("standard_import", self.standard_import)):
            if line and not re.match(r"(import|from) \S", line):
                raise ValueError(f"`{name}` is {line!r}, which imports nothing; write import ... or from ...")
        for line in ("meaning", "library", "import_line", "standard_import", "call", "draws"):
            if not getattr(self, line).isprintable():
                raise ValueError(f"`{line}` is more than one line of printable text")

    @classmethod
    def of(cls, method: Method, templates: Environment, context: Mapping[str, Any]) -> ScriptPart:
        """The part of a method.

        Args:
            method: whose template it is.
            templates: knows the filters.
            context: what a template may use.

        Raises:
            NoScriptPart: when the method has no template, or one that cannot be read or lacks something.
        """
        if method.template is None:
            raise NoScriptPart(
                f"{method.name} brings no template for scripts, so none can be generated with it: use its recorded "
                f"settings through accelerate(), or give {type(method).__name__} a `template` (docs/own_method.md)"
            )
        try:
            module = _template(templates, Path(method.template)).make_module({**context, "lesson": method.lesson})
            found = {field.name: getattr(module, field.name) for field in fields(cls) if hasattr(module, field.name)}
            missing = [field.name for field in fields(cls)[1:] if field.default is MISSING and field.name not in found]
            if missing:
                raise ValueError(f"sets or defines no {', '.join(missing)} (docs/own_method.md)")
            macros = {name: found[name]() for name in ("apply", "undo")}
            return cls(**found | macros | {"name": method.name})
        except Exception as error:  # of any class: what a template says is the user's code
            raise NoScriptPart(f"{method.template}, the template of {method.name}: {error}") from error


@cache
def _template(templates: Environment, path: Path) -> Template:
    return templates.from_string(path.read_text(encoding="utf-8"))
