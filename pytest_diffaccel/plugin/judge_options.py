"""The options of ``pytest codegen``: from the command line to one frozen :class:`JudgeSettings`."""

from __future__ import annotations

import os
import random
from argparse import ArgumentTypeError, Namespace
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_diffaccel.judge import DIFFBENCH, DIFFBENCH_PROMPTS, OURS, STAGES
from pytest_diffaccel.settings.option_types import OptionError, count, number, of_one_run, option
from pytest_diffaccel.settings.options import BOTH, RULE
from pytest_diffaccel.words import meant

if TYPE_CHECKING:
    import pytest

    from pytest_diffaccel.codegen.tasks import Task
    from pytest_diffaccel.models.clip import ClipSource
    from pytest_diffaccel.records.golden_file import Golden

_DEFAULT_TOLERANCE = 0.10
# By value of ``--rule``; the first rule decides.
_RULES = {OURS: (OURS,), DIFFBENCH: (DIFFBENCH,), BOTH: (OURS, DIFFBENCH)}


@dataclass(frozen=True)
class JudgeSettings:
    """What to judge, and how.

    Attributes:
        tasks: the tasks, by id, a case each.
        code: folder of other people's scripts; None judges what golden renders to.
        stages: names of the stages, in their order.
        rules: names of the rules, the one that decides first.
        diffbench_prompts: on how many prompts DiffBench's rule judges.
        clip: what DiffBench's rule asks for the CLIP score.
        tolerance_ratio: share of a target by which a speedup may miss it.
        models: ``"embedded"``, ``"hub"`` or the path of a TOML file.
        seed: of the evaluation prompts' choice.
        scores: where to write the pass rates as JSON, or None.
        records: the golden database.
        without_script: how many tasks have no script in ``code`` and are left out.
    """

    tasks: Mapping[str, Task]
    code: Path | None
    stages: tuple[str, ...]
    rules: tuple[str, ...]
    diffbench_prompts: int
    clip: ClipSource
    tolerance_ratio: float
    models: str
    seed: int
    scores: Path | None
    records: Golden
    without_script: int

    @classmethod
    def from_options(cls, options: Namespace) -> JudgeSettings:
        """Check every option, and choose the tasks.

        Raises:
            OptionError: naming the bad value and the valid ones.
            ValueError: for bad ids or a broken golden file.
        """
        from pytest_diffaccel.plugin.registered import clip_of
        from pytest_diffaccel.records.golden_file import Golden

        code = Path(options.code) if options.code else None
        if code is not None and not code.is_dir():
            raise OptionError(f"--code: {options.code!r} is no folder; give one with scripts such as 192.py")
        records = Golden.read(Path(options.golden))
        tasks = _asked(options)
        _check_stack(records, tasks.values())
        asked = len(tasks)
        if code is not None and options.ids is None and not options.task:
            tasks = {prompt_id: task for prompt_id, task in tasks.items() if os.path.lexists(code / f"{prompt_id}.py")}
            if not tasks:
                raise OptionError(f"--code: {options.code!r} holds no script of a task, such as 192.py")
        without_script = asked - len(tasks)
        if options.sample is not None:
            tasks = _sample(tasks, options.sample, options.seed, None if code else records)
        return cls(
            tasks=tasks,
            code=code,
            stages=_stages(options.stages),
            rules=_RULES[options.rule],
            diffbench_prompts=options.diffbench_prompts,
            clip=clip_of(options),
            tolerance_ratio=options.ratio_tolerance,
            models=options.models,
            seed=options.seed,
            scores=Path(options.scores) if options.scores else None,
            records=records,
            without_script=without_script,
        )

    def attainable(self, prompt_id: str) -> bool | None:
        """Whether golden holds a task's target to be within reach; None where no record tells."""
        from pytest_diffaccel.codegen.lookup import find

        try:
            return find(self.tasks[prompt_id], self.records).attained
        except ValueError:
            return None


def _check_stack(records: Golden, tasks: Collection[Task]) -> None:
    """Refuse to judge what was recorded on another stack than the judge's."""
    groups = {(task.cell.pipe, task.cell.scheduler, task.accelerator) for task in tasks}
    own = {
        key: entry
        for key, entry in records.entries.items()
        if (key.cell.pipe, key.cell.scheduler, key.accelerator) in groups
    }
    if replace(records, entries=own).on_stack:
        raise OptionError(
            f"--golden {records.path}: its winners are over the compiled stack, and the judge times scripts beside "
            "the eager pipeline; run such a script with --compare, which times both on its stack"
        )


def _asked(options: Namespace) -> dict[str, Task]:
    """The tasks that are named, by id or in words; all 1134 where none is."""
    from pytest_diffaccel.accelerators.registry import default_registry
    from pytest_diffaccel.codegen.parser import parse_task
    from pytest_diffaccel.codegen.tasks import all_tasks, tasks_of_ids

    if not options.task:
        return dict(all_tasks() if options.ids is None else tasks_of_ids(options.ids))
    if options.ids is not None:
        raise OptionError("--task and --ids: both name what to judge; give one of them")
    tasks = [parse_task(sentence, default_registry().names) for sentence in options.task]
    return {task.name: task for task in tasks}


def _sample(tasks: Mapping[str, Task], count: int, seed: int, records: Golden | None) -> dict[str, Task]:
    """So many of the tasks, the same ones for the same seed; with records, of those that they answer."""
    from pytest_diffaccel.codegen.lookup import NoRecord, find

    ids = []
    for prompt_id, task in tasks.items():
        try:
            if records is not None:
                find(task, records)
        except NoRecord:
            continue
        ids.append(prompt_id)
    chosen = set(random.Random(seed).sample(ids, min(count, len(ids))))
    return {prompt_id: task for prompt_id, task in tasks.items() if prompt_id in chosen}


def _stages(text: str) -> tuple[str, ...]:
    names = [name.strip().lower() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in (*STAGES, "all"):
            near = meant(name, {stage: stage for stage in STAGES})
            raise OptionError(f"--stages: {name!r} is unknown{near}; choose from {', '.join(STAGES)}, all")
    if not names:
        raise OptionError(f"--stages: nothing is named; choose from {', '.join(STAGES)}, all")
    return STAGES if "all" in names else tuple(stage for stage in STAGES if stage in names)


def _share(text: str) -> float:
    share = number(text)
    if not 0 <= share < 1:
        raise ArgumentTypeError(f"{text!r} must be a share from 0 to below 1, such as {_DEFAULT_TOLERANCE}")
    return share


def _few(text: str) -> int:
    if (number := count(text)) > DIFFBENCH_PROMPTS:
        raise ArgumentTypeError(f"{text!r} is more than the rule's {DIFFBENCH_PROMPTS} prompts")
    return number


#: Every option of ``pytest codegen``.
JUDGE_OPTIONS = (
    of_one_run("--ids", metavar="LIST", help="judge these tasks only, such as 192-200,310"),
    of_one_run(
        "--task",
        action="append",
        metavar="SENTENCE",
        help='judge this task, of any pipe, such as "FLUX.1, flow match euler, 28 steps, MagCache, 2x"; repeatable',
    ),
    of_one_run("--sample", type=count, metavar="N", help="judge N tasks, drawn by --seed"),
    of_one_run("--code", metavar="DIR", help="judge the scripts of this folder (192.py, ...) instead of golden's"),
    of_one_run("--scores", metavar="FILE", help="write pass rates and every verdict as JSON"),
    option("--stages", default="all", metavar="LIST", help=f"what to judge: {','.join(STAGES)} or all (default)"),
    option(
        "--ratio-tolerance",
        type=_share,
        default=_DEFAULT_TOLERANCE,
        metavar="SHARE",
        help=f"share of its target by which a speedup may miss it (default: {_DEFAULT_TOLERANCE})",
    ),
    RULE,
    option(
        "--diffbench-prompts",
        type=_few,
        default=DIFFBENCH_PROMPTS,
        metavar="N",
        help=f"judge on fewer prompts than the {DIFFBENCH_PROMPTS} of DiffBench's rule",
    ),
)


def add_options(parser: pytest.Parser) -> None:
    """Declare the options; what their values mean is :meth:`JudgeSettings.from_options`'s business."""
    group = parser.getgroup("diffusion acceleration: judging scripts (pytest codegen)")
    for declared in JUDGE_OPTIONS:
        if declared is RULE:
            continue  # searches have declared it
        group.addoption(*declared.names, dest=declared.dest, **declared.keywords)


def is_given(options: Namespace) -> bool:
    """Whether any of these options was given, but for the one that searches have, too."""
    own = (declared for declared in JUDGE_OPTIONS if declared is not RULE)
    return any(getattr(options, declared.dest) != declared.default for declared in own)
