"""What a script's source says, without running it: best effort, as names can hide; the run decides."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping

from pytest_diffaccel.codegen.tasks import Task
from pytest_diffaccel.judge.claim import cached_method
from pytest_diffaccel.judge.script_verdict import StageResult
from pytest_diffaccel.models.schedulers import SCHEDULER_CLASSES
from pytest_diffaccel.pipes import described

_ANY_PIPELINE = ("DiffusionPipeline", "AutoPipelineForText2Image")
_LIBRARY_METHODS: Mapping[str, str] = {"DeepCache": "DeepCache", "tgate": "T-Gate", "tomesd": "ToMe"}
_SCHEDULER = re.compile(r"[A-Z]\w*Scheduler")
_STEPS = "num_inference_steps"
#: Bytes beyond which a script is deeper or longer than any that a person or a model writes; the parser can exhaust the
#: stack on such.
LONGEST = 200_000


def judge_source(source: bytes, task: Task) -> StageResult:
    """Whether the script parses, and names the task's pipeline class, scheduler, steps and accelerators.

    Args:
        source: the bytes of its file: Python itself decodes them, by a byte order mark or the coding that a comment
            names, else as UTF-8.
        task: what it should do.
    """
    try:
        if len(source) > LONGEST:
            raise ValueError(f"more than {LONGEST} bytes, which is no script of the tasks")
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return StageResult("static", "failed", f"does not parse: {error}")
    complaints = [*_pipeline(tree, task), *_scheduler(tree, task), *_steps(tree, task), *_methods(tree, task)]
    return StageResult("static", "failed" if complaints else "passed", "; ".join(complaints))


def _names(tree: ast.AST) -> Iterator[str]:
    """Every name that the code uses or imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.alias):
            yield node.name


def _pipeline(tree: ast.AST, task: Task) -> Iterator[str]:
    wanted = described(task.cell.pipe).pipeline_class
    names = set(_names(tree))
    if not names & {wanted, *_ANY_PIPELINE}:
        found = sorted(name for name in names if name.endswith("Pipeline"))
        yield f"pipeline: {' and '.join(found) or 'none'}, not {wanted}"


def _scheduler(tree: ast.AST, task: Task) -> Iterator[str]:
    wanted, _ = SCHEDULER_CLASSES.get(task.cell.scheduler, (task.cell.scheduler, {}))
    found = sorted({name for name in _names(tree) if _SCHEDULER.fullmatch(name)})
    if wanted not in found:
        yield f"scheduler: {' and '.join(found) or 'none'}, not {wanted}"


def _steps(tree: ast.AST, task: Task) -> Iterator[str]:
    """Complains only of calls whose number of steps can be read."""
    constants = _constants(tree)
    given = [
        keyword.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        for keyword in node.keywords
        if keyword.arg == _STEPS
    ]
    values = {_value(node, constants) for node in given}
    if not given and _STEPS not in {*_names(tree), *_strings(tree)}:
        yield f"{_STEPS}: none, not {task.cell.steps}"
    elif values and None not in values and task.cell.steps not in values:
        yield f"{_STEPS}: {' and '.join(map(str, sorted(filter(None, values))))}, not {task.cell.steps}"


def _constants(tree: ast.AST) -> dict[str, int | None]:
    """Names that are one whole number wherever they are assigned or a default; None for the others."""
    found: dict[str, set[int | None]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                if isinstance(target, ast.Name):
                    found.setdefault(target.id, set()).add(_value(node.value, {}))
        elif isinstance(node, ast.arg):
            found.setdefault(node.arg, set()).add(None)
    return {name: next(iter(values)) if len(values) == 1 else None for name, values in found.items()}


def _value(node: ast.expr | None, constants: Mapping[str, int | None]) -> int | None:
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return node.value
    return constants.get(node.id) if isinstance(node, ast.Name) else None


def _strings(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def _methods(tree: ast.AST, task: Task) -> Iterator[str]:
    configs = {name for name in _names(tree) if name.endswith("Config")}
    found = {method.name for name in configs if (method := cached_method(name))}
    for node in ast.walk(tree):
        modules = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules = [node.module]
            # T-GATE drives DeepCache through loaders of its own.
            if any("DeepCache" in alias.name for alias in node.names):
                found.add("DeepCache")
        found |= {
            _LIBRARY_METHODS[name]
            for name in (module.partition(".")[0] for module in modules)
            if name in _LIBRARY_METHODS
        }
    missing = [method for method in task.methods if method not in found]
    extra = sorted(found - set(task.methods))
    if missing:
        yield f"accelerators: {' and '.join(missing)} not imported"
    if extra:
        yield f"accelerators: {' and '.join(extra)} imported, which the task does not ask for"
