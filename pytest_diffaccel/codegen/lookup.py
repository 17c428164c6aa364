"""From a task to the golden record that answers it: its own, or the nearest that is known to hold; else a refusal."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from pytest_diffaccel.accelerators.composition import Accelerator
from pytest_diffaccel.accelerators.registry import Registry, default_registry
from pytest_diffaccel.codegen.tasks import Task
from pytest_diffaccel.matrix import PIPES, SCHEDULERS, STEPS, TARGETS, Group, Params
from pytest_diffaccel.models.schedulers import misplaced
from pytest_diffaccel.pipes import PipeSpec, described
from pytest_diffaccel.records.environment import Environment
from pytest_diffaccel.records.golden import GoldenEntry
from pytest_diffaccel.records.golden_file import Golden, incomplete, other_file
from pytest_diffaccel.records.golden_key import ACCELERATORS, GoldenKey
from pytest_diffaccel.settings.metric_options import deciding_options
from pytest_diffaccel.settings.options import benches_command
from pytest_diffaccel.settings.work_folder import GOLDEN

_Entries: TypeAlias = Mapping[GoldenKey, GoldenEntry]
_Choice: TypeAlias = tuple[GoldenKey, bool]


class NoRecord(ValueError):
    """No golden record answers a task. The message says why and what to run.

    Attributes:
        task: the task.
    """

    def __init__(self, task: Task, message: str) -> None:
        super().__init__(message)
        self.task = task


@dataclass(frozen=True)
class Answer:
    """A task and the record whose parameters its script uses.

    Attributes:
        task: the task.
        key: the record's key; another than the task's own where there is none.
        entry: the record; its parameters have been checked against the task's number of steps.
        environment: where it was measured.
        accelerator: what the parameters are of.
        attained: whether the task's target is reached; if not, these are the parameters of the best reached.
    """

    task: Task
    key: GoldenKey
    entry: GoldenEntry
    environment: Environment
    accelerator: Accelerator
    attained: bool


def find(task: Task, records: Golden, registry: Registry | None = None) -> Answer:
    """The answer to a task.

    Without a record of its own, a task is answered by one of the same pipe, scheduler and accelerator: of the same
    steps and the next higher target that is met, else one whose measured interval lies above the target; of fewer
    steps, when the share of each kind of step, and so the meaning of its parameters, is kept to within one step and
    the speedup is still reached with the shares as they are. A target above an unattainable one is unattainable too, or
    one above the whole interval of the best reached, unless the searched target next below is undecided. A script shows
    what the wall clock does: what was decided by a GPU's own time attains a target only where the wall clock reaches
    it, too.

    Args:
        task: the task.
        records: the golden database.
        registry: the methods known, which say what parameters mean; None for the built-in ones.

    Raises:
        NoRecord: when no record holds; the message names the command that records one.
        ValueError: when the record's parameters or environment are not valid.
    """
    methods = registry or default_registry()
    choice = _choose(task, records, methods)
    if choice is None:
        raise NoRecord(task, _unsuited(task, methods) or _refusal(task, records))
    key, attained = choice
    entry = records.entries[key]
    accelerator = _accelerator(task, key, entry.params, methods)
    environment = records.environment_of(entry)
    if environment is None:
        raise _incomplete(f"does not spell out environment {entry.environment} of {key}", key, records, methods)
    return Answer(task, key, entry, environment, _taught(accelerator, key, environment, records, methods), attained)


def record_command(tasks: Iterable[Task], golden: Golden, *more: str) -> str:
    """The search that records ``tasks``.

    Args:
        tasks: what it is to record.
        golden: where, and on which stack its records are.
        more: further options.
    """
    chosen = list(tasks)
    sources = {_weights_of(described(task.cell.pipe)) for task in chosen}
    options = [part for source in sorted(sources - {""}) for part in ("--models", source)]
    known: Sequence[Any]
    values: set[Any]
    for option, known, values in (
        ("--pipe", PIPES, {task.cell.pipe for task in chosen}),
        ("--sched", SCHEDULERS, {task.cell.scheduler for task in chosen}),
        ("--steps", STEPS, {task.cell.steps for task in chosen}),
        ("--search-targets", ACCELERATORS, {task.accelerator for task in chosen}),
    ):
        if values != set(known):
            named = [*(value for value in known if value in values), *sorted(values - set(known))]
            options += [part for name in named for part in (option, str(name))]
    options += ["--stack", "compiled"] if golden.on_stack else []
    if golden.path != GOLDEN:
        options += ["--golden", str(golden.path)]
    return benches_command(*options, *more)


def _weights_of(pipe: PipeSpec) -> str:
    """Which ``--models`` has a pipe; empty: that of no option."""
    return pipe.models_file or ("hub" if pipe.hub_id and not pipe.embedded_folder else "")


def update_command(task: Task, records: Golden | None = None) -> str:
    """The search that measures a task's winner again; its expression picks the group's candidates and its winners.

    Args:
        task: the task.
        records: what decided them decides again.
    """
    group = Group(task.cell, task.accelerator).name
    options = _as_decided(_of_group(task, records.entries)) if records else []
    return shlex.join(["pytest", "--update-golden", *options, "-k", f"{group}- or {group}]"])


def _of_group(task: Task, entries: _Entries) -> list[GoldenEntry]:
    same = replace(task.key, target=1.0)
    return [entry for key, entry in entries.items() if replace(key, target=1.0) == same]


def _as_decided(entries: Collection[GoldenEntry]) -> list[str]:
    """Options with which a search decides as golden's records were."""
    return deciding_options({entry.quality for entry in entries}, {entry.rule for entry in entries})


def _choose(task: Task, records: Golden, registry: Registry) -> _Choice | None:
    """The key to answer from and whether it attains the target; None when none is known to hold."""
    own = task.key
    place = own.cell.pipe, own.cell.scheduler, own.accelerator
    # Records of searches in which nothing could be measured hold no parameters to use.
    group = {
        key: entry
        for key, entry in records.entries.items()
        if (key.cell.pipe, key.cell.scheduler, key.accelerator) == place and entry.params
    }
    same_steps = _at_steps(group, own.cell.steps)
    if same_steps:
        return _choose_target(own, same_steps)
    # The nearest first. Fewer steps lie further apart, and what is reused between them fits less well: never from more.
    for steps in sorted({key.cell.steps for key in group if key.cell.steps < own.cell.steps}, reverse=True):
        fewer = _at_steps(group, steps)
        key = _fast_enough(own, fewer, lambda key, entry: _kept_share(key, entry.params, own.cell.steps, registry))
        if key is not None:
            return key, True
    return None


def _choose_target(own: GoldenKey, group: _Entries) -> _Choice | None:
    if own in group and (group[own].decided_by == "wall" or _is_met(group[own], own.target)):
        return own, _is_met(group[own], own.target)
    met_above = [key for key, entry in group.items() if key.target > own.target and _is_met(entry, key.target)]
    if met_above:
        return min(met_above, key=lambda key: key.target), True
    if fast := _fast_enough(own, group, lambda _key, _entry: 1.0):
        return fast, True
    if own in group:
        return own, False
    missed = [key for key, entry in group.items() if _misses(own, key, entry, group)]
    return (min(missed, key=lambda key: abs(key.target - own.target)), False) if missed else None


def _is_met(entry: GoldenEntry, target: float) -> bool:
    """Whether a record meets a target by the wall clock: what a script shows, though the GPU's own time may decide."""
    if entry.decided_by == "wall" or entry.status != "met" or entry.speedup_ci95 is None:
        return entry.status == "met"
    from pytest_diffaccel.search.predict.reach import SPEED_TOLERANCE  # brings scipy, which other records do not need

    return entry.speedup_ci95[0] >= target * (1 - SPEED_TOLERANCE)


def _misses(own: GoldenKey, key: GoldenKey, entry: GoldenEntry, group: _Entries) -> bool:
    """Whether a record says that ``own`` cannot be reached: a lower target is not, or the best reached is slower."""
    if entry.status == "met" or entry.speedup_ci95 is None:
        return False
    is_beyond = _any_met(group) and entry.speedup_ci95[1] < own.target and _is_decided(own.target, group)
    return key.target < own.target or is_beyond


def _is_decided(target: float, group: _Entries) -> bool:
    """Whether the searched target next below is recorded; else it is undecided: candidates may yet prove faster."""
    nearest = max((searched for searched in TARGETS if searched <= target), default=min(TARGETS))
    return any(key.target == nearest for key in group)


def _any_met(group: _Entries) -> bool:
    """Whether something met a target: only then does a search take the best reached from what loses little enough."""
    return any(entry.status == "met" for entry in group.values())


def _fast_enough(
    own: GoldenKey, group: _Entries, kept_share: Callable[[GoldenKey, GoldenEntry], float]
) -> GoldenKey | None:
    """The record of least loss whose speedup surely reaches the target, with the share of it that is surely kept."""
    if not _any_met(group):
        return None
    fast = [
        (entry.lpips, key.target, key)
        for key, entry in group.items()
        if entry.lpips is not None
        and entry.speedup_ci95 is not None
        and entry.speedup_ci95[0] * kept_share(key, entry) >= own.target
    ]
    return min(fast, key=lambda item: item[:2])[2] if fast else None


def _kept_share(key: GoldenKey, params: Params, steps: int, registry: Registry) -> float:
    """The share of a record's speedup that its parameters surely keep at another number of steps; 0: not known.

    A step costs what its kind costs, so the time per step grows at most as much as the share of any one kind does. And
    parameters mean the same there only if each kind still has its share of the steps, to within one step: a gate step
    that half the run lay behind is another setting when a third does.
    """
    accelerator = registry.for_params(params)
    pipe = described(key.cell.pipe)
    if accelerator.deciding is not None or any(method.learns(pipe) for method in accelerator.methods):
        return 0.0  # what the pictures decide there, or what was learnt here means there, is not known
    here = Counter(accelerator.kinds(params, key.cell.steps))
    there = Counter(accelerator.kinds(params, steps))
    growth = steps / key.cell.steps
    if here.keys() != there.keys() or any(abs(there[kind] - here[kind] * growth) > 1 for kind in here):
        return 0.0
    return min(1.0, *(here[kind] * growth / there[kind] for kind in here))


def _at_steps(group: _Entries, steps: int) -> _Entries:
    return {key: entry for key, entry in group.items() if key.cell.steps == steps}


def _accelerator(task: Task, key: GoldenKey, params: Params, registry: Registry) -> Accelerator:
    """Whose parameters a record has, which must be those of its key and the task."""
    try:
        accelerator = registry.for_params(params)
        if accelerator.name != task.accelerator:
            raise ValueError(f"its parameters are those of {accelerator.name}")
        accelerator.check(params, task.cell.steps)
    except ValueError as error:
        raise ValueError(f"golden record {key}: {error}") from error
    return accelerator


def _taught(
    accelerator: Accelerator, key: GoldenKey, environment: Environment, records: Golden, registry: Registry
) -> Accelerator:
    """The accelerator of a record as it was where that was measured: with what its methods had learnt there.

    Raises:
        ValueError: when the environment does not tell what they must know.
    """
    lessons, pipe = environment.lessons(key.cell), described(key.cell.pipe)
    for method in accelerator.methods:
        if (what := method.learns(pipe)) and method.name not in lessons:
            untold = f"does not tell {what} in environment {environment.id}, which {method.name} must know for {key}"
            raise _incomplete(untold, key, records, registry)
    own = {name: lesson for name, lesson in lessons.items() if name in accelerator.method_names}
    return registry.taught(own).for_params(dict.fromkeys(accelerator.method_names))


def _incomplete(lacking: str, key: GoldenKey, records: Golden, registry: Registry) -> ValueError:
    task = Task(key.cell, key.accelerator, key.target, tuple(registry.names))
    again = record_command([task], records, "--update-golden", *_as_decided([records.entries[key]]))
    return ValueError(incomplete(records.path, lacking, again))


def _unsuited(task: Task, registry: Registry) -> str:
    """Why no search can record a task: its scheduler or its accelerator is not for its pipe; empty where both are."""
    if reason := misplaced(task.cell.scheduler, described(task.cell.pipe).schedulers[0]):
        return f"{task.cell.pipe}: {reason}"
    pipe, suiting = task.cell.pipe, [accelerator.name for accelerator in registry.suiting(task.cell.pipe)]
    if task.accelerator in suiting or task.accelerator not in registry.names:
        return ""
    return (
        f"{task.accelerator} is not for {pipe}, whose denoiser is a {described(pipe).denoiser}; "
        f"those that are: {'; '.join(suiting) or 'none that is known'}"
    )


def _refusal(task: Task, records: Golden) -> str:
    where = f"in {records.path} "
    if not records.path.exists():
        if other := other_file(records.path):
            return f"there is no {records.path}; name the golden file that is there: --golden {other}"
        where = f"(there is no {records.path}) "
    said = [f"no golden record {where}is known to hold for: {task.sentence}."]
    if task.target > max(TARGETS):
        said.append(f"Searches cover targets up to {max(TARGETS)}x: ask for at most that.")
    group = _of_group(task, records.entries)
    fastest = max(((entry.speedup, entry.speedup_ci95) for entry in group if entry.speedup_ci95), default=None)
    if fastest is not None:
        speedup, (low, high) = fastest
        said.append(
            f"The fastest recorded for {task.cell.steps} steps reaches {speedup:.2f}x "
            f"(95% interval {low:.2f}x to {high:.2f}x)."
        )
    # What is recorded stays as it is until it is measured again; so does all when the target is none that is searched.
    is_rewritten = task.key in records.entries or (group and task.target not in TARGETS)
    more = ("--update-golden", *_as_decided(group)) if is_rewritten else ()
    return " ".join([*said, f"Run: {record_command([task], records, *more)}"])
