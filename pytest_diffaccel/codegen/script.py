"""From a task and its golden record to the text of a stand-alone script.

One template is the base; every method brings that of its part (:mod:`~.script_parts`). What enters them is checked:
numbers and names of the task, golden parameters, and descriptions of the environment in which nothing can end a
docstring.
"""

from __future__ import annotations

import ast
import json
import math
import re
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_diffaccel.accelerators.calls import guides_apart, usual_text_length
from pytest_diffaccel.accelerators.registry import Registry, default_registry
from pytest_diffaccel.accelerators.stack import BACKEND, COMPILED_BY, HOPPER, LIMITS, stack_words
from pytest_diffaccel.codegen.lookup import Answer, find
from pytest_diffaccel.codegen.parser import parse_task
from pytest_diffaccel.codegen.script_parts import NoScriptPart, ScriptPart
from pytest_diffaccel.codegen.tasks import Task
from pytest_diffaccel.matrix import Number
from pytest_diffaccel.models.entries import DTYPES
from pytest_diffaccel.models.schedulers import SCHEDULER_CLASSES, taken_settings
from pytest_diffaccel.pipes import BUILT_IN, PipeSpec, described
from pytest_diffaccel.records.golden_file import Golden
from pytest_diffaccel.settings.work_folder import GOLDEN

if TYPE_CHECKING:
    from jinja2 import Environment

#: What the script draws when it is told nothing; the embedded pipelines know these words too.
DEFAULT_PROMPT = "red apple on a blue background"
#: Within ruff's default line length, so that a script is well formed whatever project it is copied into.
LINE_LENGTH = 88

_BASE, _CACHE = "base.py.j2", "cache.py.j2"
_LIBRARIES = ("torch", "diffusers", "transformers", "accelerate")
#: Which take a winner's cache alone.
TOOLS = ("diffusers", "cache-dit")
_VERSION = re.compile(r"\d+(\.\w+)*", re.ASCII)


def generate_script(task: str | Task, golden: Path | Golden = GOLDEN, registry: Registry | None = None) -> str:
    """The script for a task, with the golden parameters; the same text for the same golden database.

    Args:
        task: a sentence such as ``"SDXL, UniPC, 25 steps, DeepCache + ToMe, at least 2x faster"``, or a task.
        golden: the golden file, or what was read of it where many scripts are made.
        registry: the methods known; None for the built-in ones.

    Raises:
        SentenceError: (a ``ValueError``) when the sentence is no task.
        NoRecord: (a ``ValueError``) when no golden record answers it; the message says what to run.
        NoScriptPart: (a ``ValueError``) when a method of yours brings nothing to make a script of.
        ValueError: when the golden file or its record is not valid.
    """
    records = golden if isinstance(golden, Golden) else Golden.read(golden)
    known = registry or default_registry()
    return render(find(parse_task(task, known.names) if isinstance(task, str) else task, records, known))


def render(answer: Answer) -> str:
    """The script of an answered task, formatted as ruff formats it.

    Raises:
        NoScriptPart: (a ``ValueError``) when a method brings no template, or one that cannot be used.
        ValueError: when a description in the environment holds what has no place in a docstring.
    """
    methods = answer.accelerator.methods
    driven = {name for method in methods for name in method.drives}
    # As `Accelerator.apply`: a driver applies those it drives, and goes last because it installs what is called.
    applied = [method.name for method in sorted(methods, key=lambda method: bool(method.drives))]
    templates, context = _templates(), _context(answer)
    parts = {method.name: ScriptPart.of(method, templates, context) for method in methods}
    libraries = dict.fromkeys([*_LIBRARIES, *(part.library for part in parts.values() if part.library)])
    text = templates.get_template(_BASE).render(
        **context,
        methods=list(parts.values()),
        applied=[parts[name] for name in applied if name not in driven],
        libraries=[_requirement(library, answer.environment.versions) for library in libraries],
    )
    _check_own(text, list(parts.values()))
    return text


def render_cache(answer: Answer, tool: str = TOOLS[0]) -> str:
    """The lines that put a winner's cache on ``pipe``, a pipeline of diffusers; empty where the tool has none for it.

    Args:
        answer: to a task.
        tool: whose cache it is to be, one of :data:`TOOLS`.

    Raises:
        NoScriptPart: (a ``ValueError``) when a method brings no template, or one that cannot be used.
        ValueError: when a description in the environment holds what has no place in a comment.
    """
    templates, context = _templates(), _context(answer)
    parts = [ScriptPart.of(method, templates, context) for method in answer.accelerator.methods]
    # A denoiser takes one cache at a time.
    if len(parts) != 1 or not (parts[0].cache_dit if tool == "cache-dit" else parts[0].cache_config):
        return ""
    text = templates.get_template(_CACHE).render(**context, method=parts[0], tool=tool)
    _check_own(text, parts)
    return text


def _check_own(text: str, parts: Sequence[ScriptPart]) -> None:
    """Refuse a text that parts of the user's own made into something else.

    Raises:
        NoScriptPart: when it is no Python, or a constant has the name of something else in it.
    """
    if all(part.name in default_registry().method_names for part in parts):
        return
    own = f"the templates of {', '.join(part.name for part in parts)} together"
    try:
        lines = ast.parse(text).body
    except SyntaxError as error:
        wrong = (error.text or "").strip()
        raise NoScriptPart(f"{own} make no Python: {error.msg}: {wrong!r} (docs/own_method.md)") from error
    defined = Counter(name for line in lines for name in _defined(line))
    if twice := [part.constant for part in parts if defined[part.constant] > 1]:
        raise NoScriptPart(f"{own} give a script that has {twice[0]} twice; let `constant` be another name")


def _defined(line: ast.stmt) -> list[str]:
    """What a line of a module gives a name to."""
    if isinstance(line, ast.Import | ast.ImportFrom):
        return [(alias.asname or alias.name).partition(".")[0] for alias in line.names]
    if isinstance(line, ast.Assign):
        return [target.id for target in line.targets if isinstance(target, ast.Name)]
    return [line.name] if isinstance(line, ast.FunctionDef) else []


def _context(answer: Answer) -> dict[str, Any]:
    cell = answer.task.cell
    pipe = described(cell.pipe)
    scheduler_class, scheduler_settings = SCHEDULER_CLASSES.get(cell.scheduler, (cell.scheduler, {}))
    # As the search set them: the model's own scheduler leaves these open, and the class has others in mind.
    defaults = answer.environment.scheduler_defaults
    taken = taken_settings(cell.scheduler) if defaults else ()
    scheduler_defaults = {name: defaults[name] for name in taken if name in defaults}
    return {
        "answer": answer,
        "task": answer.task,
        "entry": answer.entry,
        "params": answer.entry.params,
        "environment": answer.environment,
        "shortfall": shortfall(answer),
        "pipe": pipe,
        **_of_class(pipe),
        "scheduler_class": scheduler_class,
        "scheduler_settings": scheduler_settings,
        "scheduler_defaults": scheduler_defaults,
        "stack": stack_words(answer.environment.stack),
        "compile_limits": LIMITS,
        "attention_from": HOPPER,
        "backend": _backend(answer.environment.stack),
        "model": pipe.hub_id or pipe.weights,
        "prompt": DEFAULT_PROMPT,
        "dtypes": DTYPES,
        "line_length": LINE_LENGTH,
    }


def _backend(stack: Mapping[str, str]) -> str:
    """The argument that names what compiles; empty where torch takes it by itself."""
    named = stack.get("blocks", "").removeprefix(COMPILED_BY)
    return f"backend={literal(named)}" if named not in ("", BACKEND) else ""


def _of_class(pipe: PipeSpec) -> dict[str, Any]:
    """What its pipeline class says of a pipe's calls: whether another argument guides them, how long texts are."""
    # Of the built-in ones it is known, and nothing heavy is imported.
    for spec in BUILT_IN:
        if spec.pipeline_class == pipe.pipeline_class:
            return {"guides_apart": False, "text_length": spec.text_length}
    import diffusers

    kind = getattr(diffusers, pipe.pipeline_class, None)
    return {
        "guides_apart": kind is not None and guides_apart(kind),
        "text_length": None if kind is None else usual_text_length(kind),
    }


def shortfall(answer: Answer) -> str:
    """Why a target that is not attained is not, in a sentence; empty for one that is."""
    if answer.attained:
        return ""
    if answer.entry.reason is None:
        by_device, by_wall = answer.entry.device_speedup, answer.entry.speedup
        return (
            f"This target is reached by the GPU's own time ({by_device:.2f}x), by the wall clock only {by_wall:.2f}x."
        )
    why = "no setting is fast enough" if answer.entry.reason == "speed" else "fast settings lose too much quality"
    return f"This target is unattainable: {why}. Best reached: {answer.entry.speedup:.2f}x."


@cache
def _templates() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    # No autoescape: it would write HTML entities into Python. Values pass the filters below instead.
    templates = Environment(
        loader=PackageLoader("pytest_diffaccel.codegen"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    templates.filters |= {
        "literal": literal,
        "assigned": _assigned,
        "plain": plain,
        "settings": _settings,
        "interval": _interval,
        "in_import_order": _in_import_order,
        "filled": _filled,
    }
    return templates


def literal(value: object) -> str:
    """A string, number, bool, or a list or dict of them, as Python writes it, with double quotes.

    Raises:
        ValueError: for anything else, an infinite number among it.
    """
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{literal(name)}: {literal(item)}" for name, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(literal, value))}]"
    if isinstance(value, str):
        # Python knows no pairs of surrogates, as JSON writes what lies beyond 16 bits.
        parts = [f"\\U{ord(sign):08x}" if sign > "\uffff" else json.dumps(sign)[1:-1] for sign in value]
        return f'"{"".join(parts)}"'
    if isinstance(value, bool | int | float) and math.isfinite(value):
        return repr(value)
    raise ValueError(f"{value!r} has no place in a script")


def _assigned(value: Mapping[str, object] | Sequence[object], name: str) -> str:
    """The lines that give a name a dict or a list: one, or one per item where that is too long."""
    line = f"{name} = {literal(value)}"
    if len(line) <= LINE_LENGTH:
        return line
    if isinstance(value, Mapping):
        return "\n".join([f"{name} = {{", *(f"    {literal(key)}: {literal(one)}," for key, one in value.items()), "}"])
    return "\n".join([f"{name} = [", *(f"    {literal(one)}," for one in value), "]"])


def plain(text: str) -> str:
    r"""``text``, fit for a docstring.

    Raises:
        ValueError: when it is empty, not printable, or holds a double quote or backslash, which can end a docstring.
    """
    if not text or not text.isprintable() or re.search(r"[\"\\]", text):
        raise ValueError(f"{text!r} in the golden database has no place in a script: quotes or unprintable text")
    return text


def _requirement(library: str, versions: Mapping[str, str]) -> str:
    """``"torch==2.14.1"``: as measured, less the build ("+cpu"), which no index serves."""
    version = versions.get(library, "").partition("+")[0]
    if not version:
        return library
    if not _VERSION.fullmatch(version):
        raise ValueError(f"{version!r} in the golden environment is no version of {library}")
    return f"{library}=={version}"


def _in_import_order(lines: Iterable[str]) -> list[str]:
    """Import statements as isort sorts them: ``import`` before ``from``, then by module, of which each stands once."""
    modules: dict[str, set[str]] = {}
    for line in filter(None, lines):
        start, _, names = line.partition(" import ")
        modules.setdefault(start, set()).update(filter(None, names.split(", ")))
    order = sorted(modules, key=lambda start: (start.startswith("from "), start.split()[1].lower()))
    return [_import(start, sorted(modules[start])) for start in order]


def _import(start: str, names: Sequence[str]) -> str:
    line = f"{start} import {', '.join(names)}" if names else start
    if len(line) <= LINE_LENGTH:
        return line
    return "\n".join([f"{start} import (", *(f"    {name}," for name in names), ")"])


def _settings(point: Mapping[str, Number]) -> str:
    return ", ".join(f"{name}={value}" for name, value in point.items())


def _interval(value: float, ends: tuple[float, float], style: str) -> str:
    return f"{style % value} ({style % ends[0]} to {style % ends[1]})"


def _filled(text: str, indent: str = "", first: str = "") -> str:
    """Each line of ``text`` as a paragraph of at most :data:`LINE_LENGTH` after ``first``, others after ``indent``."""
    wrapper = textwrap.TextWrapper(
        LINE_LENGTH,
        initial_indent=first,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return "\n".join(wrapper.fill(line) for line in text.splitlines())
