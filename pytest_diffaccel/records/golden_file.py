"""Golden files: read strictly, merged by key under a lock, written in one step, never shrunk unasked."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal, TypeAlias

from pytest_diffaccel.matrix import Cell, Lesson, spaced_params
from pytest_diffaccel.records.environment import Environment
from pytest_diffaccel.records.golden import GoldenEntry, dump_entries
from pytest_diffaccel.records.golden_key import GoldenKey
from pytest_diffaccel.records.golden_parts import printable
from pytest_diffaccel.records.jsonfile import folder_lock, read_object, write_text
from pytest_diffaccel.settings.options import FIRST_SEARCH, benches_command

#: Spells out, beside the golden files of a folder, the environments that their entries name.
ENVIRONMENTS_NAME = "environments.json"
_NO_ENVIRONMENTS: Mapping[str, Environment] = MappingProxyType({})

ChangeKind: TypeAlias = Literal["new", "updated", "differs", "unchanged", "pruned"]


@dataclass(frozen=True)
class Change:
    """What merging meant for one key.

    Attributes:
        key: the key.
        kind: ``"new"``, ``"updated"`` and ``"pruned"`` changed the file; ``"differs"`` would have, with
            ``update``; ``"unchanged"`` says the same as the file.
        before: the file's entry, None for a new key.
        after: the entry found, rounded; None for a pruned key.
    """

    key: GoldenKey
    kind: ChangeKind
    before: GoldenEntry | None
    after: GoldenEntry | None

    @property
    def details(self) -> list[str]:
        """Each difference but that of the environment, in words; of a key that is new or gone, its entry in short."""
        if self.before and self.after:
            return self.before.differences(self.after)
        entry = self.before or self.after
        return [_summary(entry)] if entry else []

    def describe(self) -> str:
        """All in one line."""
        details = self.before.difference(self.after) if self.before and self.after else ", ".join(self.details)
        return f"{self.kind}: {self.key}" + (f": {details}" if details else "")


def read_golden(path: Path) -> dict[GoldenKey, GoldenEntry]:
    """The entries of a golden file, in its order; empty when there is no such file.

    Raises:
        JsonFileError: when the file does not parse or validate; names path, line and reason.
    """
    return read_object(path, GoldenKey.parse, lambda _, text: GoldenEntry.from_json(text))


def read_environments(golden_path: Path) -> dict[str, Environment]:
    """The environments spelled out beside a golden file, by id; empty when there is no such file.

    Raises:
        JsonFileError: when the file does not parse or validate, or an environment stands under another id.
    """
    return read_object(golden_path.resolve().with_name(ENVIRONMENTS_NAME), str, _parse_environment)


def incomplete(golden_path: Path, lacking: str, again: str) -> str:
    """That the environments beside a golden file lack something, and what to do about it.

    Args:
        golden_path: as its user names it.
        lacking: what, as a clause of the environments' file: ``"does not spell out environment ..."``.
        again: the command that records it.
    """
    return f"{golden_path.with_name(ENVIRONMENTS_NAME)} {lacking}; restore it from git, or record anew: {again}"


@dataclass(frozen=True)
class Golden:
    """A golden file and the environments beside it.

    Attributes:
        path: the golden file, as its user names it.
        entries: by key.
        environments: by id; those that its folder spells out.
    """

    path: Path
    entries: Mapping[GoldenKey, GoldenEntry]
    environments: Mapping[str, Environment]

    @classmethod
    def read(cls, path: Path) -> Golden:
        """The golden database at ``path``; empty when there is none.

        Raises:
            JsonFileError: (a ``ValueError``) when it, or the environments beside it, do not parse or validate.
        """
        return cls(path, read_golden(path), read_environments(path))

    @classmethod
    def existing(cls, path: Path) -> Golden:
        """The same of a database that must be there.

        Raises:
            FileNotFoundError: when there is none.
            JsonFileError: as :meth:`read`.
        """
        if not path.is_file():
            raise FileNotFoundError(
                f"there is no golden file {path}; a search records one: {benches_command(*FIRST_SEARCH)}"
            )
        return cls.read(path)

    def lessons(self, cell: Cell, methods: Collection[str]) -> dict[str, Lesson]:
        """What methods of these names had learnt where a cell's records were measured, by method (:data:`.Lessons`).

        Raises:
            ValueError: when two records of a method have it from environments that tell it differently.
        """
        found: dict[str, Lesson] = {}
        for key, entry in self.entries.items():
            environment = self.environment_of(entry) if key.cell == cell else None
            told = environment.lessons(cell) if environment else {}
            for method in (name for name in told if name in methods and name in entry.params):
                if found.setdefault(method, told[method]) != told[method]:
                    raise ValueError(
                        f"{self.path} has records of {method} in {cell} of several environments, in which it had "
                        "learnt different things: record all of them anew with --update-golden"
                    )
        return found

    def environment_of(self, entry: GoldenEntry) -> Environment | None:
        """Where an entry was measured; None where its environment is not spelled out."""
        return self.environments.get(entry.environment)

    @property
    def on_stack(self) -> bool:
        """Whether records are of a compiled stack."""
        return any(one and one.stack for one in map(self.environment_of, self.entries.values()))


def other_file(golden: Path) -> Path | None:
    """A golden file of a device or stack of its own, beside where there is none; None where there is no such one."""
    return min(golden.parent.glob(f"*.{golden.name}"), default=None)


def merge(
    path: Path,
    found: Mapping[GoldenKey, GoldenEntry],
    *,
    update: bool,
    prune: Collection[GoldenKey] | None = None,
    undecided: Collection[GoldenKey] = (),
    environments: Mapping[str, Environment] = _NO_ENVIRONMENTS,
) -> list[Change]:
    """Merge what a search found into the golden file, against what is on disk at this moment.

    New keys are recorded; keys that say something else are written only with ``update``; a file that nothing
    changes stays byte-identical. Safe from several processes at once and against a kill at any moment.

    Args:
        path: the golden file; it and its folder are created if missing.
        found: entries by key; rounded before they are compared.
        update: overwrite entries that differ.
        prune: keys to delete, those in ``found`` excepted.
        undecided: keys of which it is not known whether a candidate reaches them; with ``update``, records that call
            them unattainable are deleted, too. Nothing else ever is.
        environments: by id; those that entries of the file name are added to ``environments.json`` beside it.

    Returns:
        One change for each key of ``found`` and each key pruned, in prompt order.

    Raises:
        JsonFileError: when either file on disk does not parse or validate; both are left as they are.
        TimeoutError: when another process holds the folder's lock for a minute.
    """
    path = path.resolve()
    with folder_lock(path.parent):
        entries = read_golden(path)
        doubtful = {key for key in undecided if update and key in entries and entries[key].status == "unattainable"}
        changes = _changes(entries, found, update=update, prune={*(prune or ()), *doubtful})
        merged = _apply(entries, changes)
        _add_environments(path, merged, environments)
        if merged != entries:
            write_text(path, dump_entries(merged))
    return changes


def differences_from(entries: Mapping[GoldenKey, GoldenEntry], found: Mapping[GoldenKey, GoldenEntry]) -> list[Change]:
    """What merging ``found`` into ``entries`` without updating would mean, in prompt order; nothing is written."""
    return _changes(entries, found, update=False, prune=())


def write_golden(
    path: Path, entries: Mapping[GoldenKey, GoldenEntry], environments: Mapping[str, Environment] = _NO_ENVIRONMENTS
) -> None:
    """Write a whole golden file in one step, and its environments beside it; call it under the folder's lock.

    Args:
        path: the golden file, resolved; what it holds is replaced.
        entries: by key.
        environments: by id; those that ``entries`` name are added to ``environments.json`` beside it.

    Raises:
        JsonFileError: when the environments on disk do not parse or validate; nothing is written.
    """
    _add_environments(path, entries, environments)
    write_text(path, dump_entries(entries))


def _add_environments(
    path: Path, entries: Mapping[GoldenKey, GoldenEntry], environments: Mapping[str, Environment]
) -> None:
    """Spell out what entries name; before they are written: a kill in between leaves one unused, not one unknown."""
    known = read_environments(path)
    named = {entry.environment for entry in entries.values()}
    spelled = {
        name: known[name].knowing_also(environment) if name in known else environment
        for name, environment in environments.items()
        if name in named
    }
    if any(name not in known or known[name].to_json() != one.to_json() for name, one in spelled.items()):
        write_text(path.with_name(ENVIRONMENTS_NAME), _dump_environments({**known, **spelled}))


def _changes(
    entries: Mapping[GoldenKey, GoldenEntry],
    found: Mapping[GoldenKey, GoldenEntry],
    *,
    update: bool,
    prune: Collection[GoldenKey],
) -> list[Change]:
    changes = [_change(key, entries.get(key), entry.rounded(), update=update) for key, entry in found.items()]
    changes += [Change(key, "pruned", entries[key], None) for key in set(prune) - found.keys() if key in entries]
    return sorted(changes, key=lambda change: change.key.prompt_order)


def _change(key: GoldenKey, before: GoldenEntry | None, after: GoldenEntry, *, update: bool) -> Change:
    if before is None:
        return Change(key, "new", None, after)
    if not before.difference(after):
        return Change(key, "unchanged", before, after)
    return Change(key, "updated" if update else "differs", before, after)


def _apply(entries: Mapping[GoldenKey, GoldenEntry], changes: Collection[Change]) -> dict[GoldenKey, GoldenEntry]:
    merged = dict(entries)
    for change in changes:
        if change.kind == "pruned":
            del merged[change.key]
        elif change.kind in ("new", "updated") and change.after is not None:
            merged[change.key] = change.after
    return merged


def _summary(entry: GoldenEntry) -> str:
    status = entry.status + (f" ({entry.reason})" if entry.reason else "")
    if entry.speedup is None or entry.lpips is None:
        return f"{status}, nothing measured"
    return f"{status}, speedup {entry.speedup:g}, lpips {entry.lpips:g}, {printable(spaced_params(entry.params))}"


def _parse_environment(name: str, text: str) -> Environment:
    environment = Environment.from_json(text)
    if environment.id != name:
        raise ValueError(f"environment {name} was edited: what it says has the id {environment.id}")
    return environment


def _dump_environments(environments: Mapping[str, Environment]) -> str:
    fields = {name: environment.to_json() for name, environment in environments.items()}
    return json.dumps(fields, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
