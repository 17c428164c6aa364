"""The 1134 tasks, their sentences and the files that list them; pure Python."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache

from pytest_diffaccel.matrix import PIPES, SCHEDULERS, STEPS, TARGETS, Cell, cells, slug
from pytest_diffaccel.pipes import is_step_count, known
from pytest_diffaccel.records.golden_key import ACCELERATORS, GoldenKey

#: Id of the first task: earlier ids belong to other categories of the benchmark that the tasks come from.
FIRST_ID = 192
#: Heading of the list that ``diffaccel tasks --print`` prints.
HEADING = "### **IV. Acceleration with Specified Parameters**"
#: Name of each file, the key of its paths and the folder they point to.
TASK_FILES: Mapping[str, tuple[str, str]] = {
    "gen_4_category.json": ("path_to_gen_code", "gen_code"),
    "anno_4_category.json": ("path_to_gt_code", "gt_code"),
}
#: A speedup beyond this is a typing error.
MAX_TARGET = 100.0

_CATEGORY = 4
# It stands in a script. Whether diffusers has it is known where it was measured.
_SCHEDULER_CLASS = re.compile(r"[A-Za-z][A-Za-z0-9]{0,60}Scheduler", re.ASCII)
_ID_RANGE = re.compile(r"(\d{1,6})(?:\s*-\s*(\d{1,6}))?", re.ASCII)


@dataclass(frozen=True)
class Task:
    """What a script is asked to do. Every value is checked on construction.

    Attributes:
        cell: a known pipe, a scheduler of the cells or of diffusers, and number of steps (1 to 1000).
        accelerator: one of ``accelerators``.
        target: required speedup, above 1 and at most 100.
        accelerators: those that there are: the built-in ones, unless methods of the user's own count too.

    Raises:
        ValueError: naming the bad value and the valid ones.
    """

    cell: Cell
    accelerator: str
    target: float
    accelerators: tuple[str, ...] = field(default=ACCELERATORS, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "target", float(self.target))
        other = (self.cell.scheduler,) if _SCHEDULER_CLASS.fullmatch(self.cell.scheduler) else ()
        for value, valid, noun in (
            (self.cell.pipe, [pipe.name for pipe in known()], "pipe"),
            (self.cell.scheduler, other or SCHEDULERS, "scheduler"),
            (self.accelerator, self.accelerators, "accelerator"),
        ):
            if value not in valid:
                raise ValueError(f"no {noun} {value!r}; valid: {'; '.join(valid)}")
        steps = self.cell.steps
        if not is_step_count(steps):
            raise ValueError(f"steps={steps!r} must be a whole number from 1 to 1000")
        if not 1 < self.target <= MAX_TARGET:
            raise ValueError(f"a speedup of {self.target}x must be above 1 and at most {MAX_TARGET:g}")

    @property
    def sentence(self) -> str:
        """The task in words, one spelling per task."""
        return (
            f"Generate a {self.cell.pipe} pipeline using the {self.cell.scheduler} sampler with {self.cell.steps} "
            f"steps, accelerated by {self.accelerator} with {self.target}x speedup"
        )

    @property
    def methods(self) -> tuple[str, ...]:
        """Names of the accelerator's methods, in its order."""
        return tuple(slug(self.accelerator).split("+"))

    @property
    def key(self) -> GoldenKey:
        """The golden key that answers exactly this task."""
        return GoldenKey(self.cell, self.accelerator, self.target)

    @property
    def prompt_id(self) -> str | None:
        """``"192"`` to ``"1325"``; None for a task that is not one of the 1134."""
        return _ids().get(self)

    @property
    def name(self) -> str:
        """The id of one of the 1134, else what it is of: ``"SD1.5-DDIM-12-DeepCache-1.5x"``."""
        return self.prompt_id or f"{self.cell}-{slug(self.accelerator)}-{self.target:g}x"


@cache
def all_tasks() -> Mapping[str, Task]:
    """The 1134 tasks by id: pipe, scheduler, steps, accelerator, target, the last changing fastest."""
    tasks = (
        Task(cell, accelerator, target)
        for cell in cells(PIPES, SCHEDULERS, STEPS)
        for accelerator in ACCELERATORS
        for target in TARGETS
    )
    return {str(number): task for number, task in enumerate(tasks, FIRST_ID)}


@cache
def _ids() -> Mapping[Task, str]:
    return {task: prompt_id for prompt_id, task in all_tasks().items()}


def tasks_of_ids(text: str) -> dict[str, Task]:
    """The tasks that ``--ids`` names, in task order.

    Args:
        text: ids and ranges of ids with commas between them: ``"192"``, ``"192-200"``, ``"192,195-197"``.

    Raises:
        ValueError: naming the part that is no id or range, and the valid ones.
    """
    last = FIRST_ID + len(all_tasks()) - 1
    wanted: set[int] = set()
    for part in text.split(","):
        match = _ID_RANGE.fullmatch(part.strip())
        low, high = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        if not FIRST_ID <= low <= high <= last:
            raise ValueError(f"ids {part.strip()!r}: write ids from {FIRST_ID} to {last}, such as 192-200,{last}")
        wanted.update(range(low, high + 1))
    return {prompt_id: task for prompt_id, task in all_tasks().items() if int(prompt_id) in wanted}


def ids_text(ids: Iterable[str]) -> str:
    """What ``--ids`` takes for these tasks: ``"192,195-197"``.

    Args:
        ids: tasks' ids.
    """
    numbers = sorted(map(int, ids))
    parts: list[list[int]] = []
    for number in numbers:
        if parts and parts[-1][-1] == number - 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ",".join(f"{part[0]}-{part[-1]}" if len(part) > 1 else str(part[0]) for part in parts)


def file_text(name: str) -> str:
    """Content of the task file ``name``, a key of :data:`TASK_FILES`; it has no newline at its end."""
    path_key, folder = TASK_FILES[name]
    items = [
        {
            "prompt_id": prompt_id,
            "category": _CATEGORY,
            "prompt_context": task.sentence,
            path_key: f"{folder}/{prompt_id}.py",
        }
        for prompt_id, task in all_tasks().items()
    ]
    return json.dumps(items, indent=2, ensure_ascii=False)


def list_text() -> str:
    """The heading, a line per task, and an empty line."""
    return "\n".join([HEADING, *(task.sentence for task in all_tasks().values()), "", ""])
