"""The commands ``diffaccel golden show|diff|merge|prune``, and ``diffaccel show``, the first by its short name."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_diffaccel.report.terminal import print_lines, width
from pytest_diffaccel.settings.option_types import one_of
from pytest_diffaccel.settings.work_folder import GOLDEN
from pytest_diffaccel.words import counted, meant

if TYPE_CHECKING:
    from pytest_diffaccel.records.golden import GoldenEntry
    from pytest_diffaccel.records.golden_key import GoldenKey

# More keys to remove than this are counted, not listed.
_LISTED_KEYS = 20


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the commands."""
    _add_show(commands)
    golden = commands.add_parser("golden", help="show, compare, merge and prune golden databases")
    actions = golden.add_subparsers(dest="action", required=True)
    _add_show(actions)
    diff = actions.add_parser("diff", help="what B says otherwise than A; exit status 1 when it does")
    diff.add_argument("before", type=Path, metavar="A")
    diff.add_argument("after", type=Path, metavar="B")
    diff.add_argument("--all", action="store_true", help="list every change, not only the first of each category")
    diff.set_defaults(run=_diff)
    merge = actions.add_parser("merge", help="several golden files, and the environments beside them, as one")
    merge.add_argument("sources", type=Path, nargs="+", metavar="FILE")
    merge.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="one of the sources, or new")
    merge.add_argument(
        "--prefer",
        type=one_of("first", "last"),
        metavar="WHICH",
        help="first or last: whose record stands where two are unequal",
    )
    merge.set_defaults(run=_merge)
    prune = actions.add_parser("prune", help="remove keys of targets and accelerators that no search knows any more")
    prune.add_argument("golden", type=Path, nargs="?", default=GOLDEN, metavar="FILE")
    prune.add_argument("--dry-run", action="store_true", help="only list them")
    prune.add_argument(
        "--accelerator",
        action="append",
        default=[],
        metavar="NAME",
        help="keep the keys of this accelerator too: one that your conftest registers, which this command cannot see",
    )
    prune.add_argument("--yes", action="store_true", help="do not ask before such keys are removed")
    prune.set_defaults(run=_prune)


def _add_show(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    show = commands.add_parser("show", help="print the golden database as tables")
    show.add_argument("--golden", type=Path, default=GOLDEN, metavar="FILE")
    show.add_argument("--pipe", metavar="NAME", help="only this pipe; spelled freely, as all names here")
    show.add_argument("--sched", metavar="NAME", help="only this scheduler")
    show.add_argument("--steps", type=int, metavar="N", help="only so many steps")
    show.add_argument("--target", type=_target, metavar="X", help="only this speedup, such as 2 or 1.5x")
    show.add_argument("--search-targets", metavar="NAME", help="only this accelerator")
    show.add_argument("--summary", action="store_true", help="one row per accelerator and target, over all cells")
    show.set_defaults(run=_show)


def _show(parsed: argparse.Namespace) -> int:
    from pytest_diffaccel.records.golden_file import Golden, other_file
    from pytest_diffaccel.report.golden_summary import summary_table
    from pytest_diffaccel.report.winners import winners_table
    from pytest_diffaccel.settings.options import FIRST_SEARCH, benches_command

    golden = Golden.read(parsed.golden)
    if not golden.entries:
        named = {"--pipe": parsed.pipe, "--sched": parsed.sched, "--steps": parsed.steps}
        cell = [part for option, value in named.items() if value for part in (option, str(value))]
        command = benches_command(*cell, "--grid", "coarse") if cell else benches_command(*FIRST_SEARCH)
        if not parsed.golden.exists() and (other := other_file(parsed.golden)):
            raise ValueError(f"{parsed.golden} is not there; name the golden file that is: --golden {other}")
        lack = "has no winners to show" if parsed.golden.exists() else "is not there"
        raise ValueError(f"{parsed.golden} {lack}; record some, of one cell, with: {command}")
    entries = _chosen(golden.entries, parsed)
    if parsed.summary:
        print("\n".join(summary_table(entries, width())))
        return 0
    print_lines("\n".join(winners_table(entries, golden.environments, width())))
    print_lines(
        f"\nof golden ({parsed.golden}), which keeps a record until --update-golden replaces it; what the last search "
        "found, and why, is told by: diffaccel explain KEY"
    )
    return 0


def _target(text: str) -> float:
    """``2`` or ``1.5x``."""
    try:
        return float(text.lower().removesuffix("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no speedup; write 2 or 1.5x") from None


def _chosen(entries: Mapping[GoldenKey, GoldenEntry], parsed: argparse.Namespace) -> dict[GoldenKey, GoldenEntry]:
    """The records that the options name.

    Raises:
        ValueError: when an option names what no record has; the message lists what they have.
    """
    from pytest_diffaccel.settings.search_settings import same_name

    filters: tuple[tuple[str, str | float | None, Callable[[GoldenKey], str | float]], ...] = (
        ("--pipe", parsed.pipe, lambda key: key.cell.pipe),
        ("--sched", parsed.sched, lambda key: key.cell.scheduler),
        ("--steps", parsed.steps, lambda key: key.cell.steps),
        ("--search-targets", parsed.search_targets, lambda key: key.accelerator),
        ("--target", parsed.target, lambda key: key.target),
    )
    chosen = dict(entries)
    for option, given, value_of in filters:
        left = {key: entry for key, entry in chosen.items() if given is None or same_name(given, value_of(key))}
        if not left:
            values = dict.fromkeys(map(value_of, sorted(chosen, key=lambda key: key.prompt_order)))
            known = "; ".join(value if isinstance(value, str) else f"{value:g}" for value in values)
            near = meant(str(given), {str(value).lower(): str(value) for value in values})
            raise ValueError(f"{option}: no record of {given!r}{near}; there are: {known}")
        chosen = left
    return chosen


def _diff(parsed: argparse.Namespace) -> int:
    from pytest_diffaccel.records.golden_changes import golden_changes
    from pytest_diffaccel.records.golden_file import Golden
    from pytest_diffaccel.report.golden_differences import changes_by_category, moves_text

    before, after = Golden.existing(parsed.before), Golden.existing(parsed.after)
    changes = golden_changes(before.entries, after.entries)
    same = len(before.entries.keys() & after.entries.keys()) - sum(change.kind == "differs" for change in changes)
    if not changes:
        print_lines(f"no difference: {counted(same, 'key says', 'keys say')} the same")
        return 0
    print("\n".join(changes_by_category(changes, every=parsed.all, width=width())))
    for line in moves_text(changes, before.environments, after.environments):
        print_lines(line)
    differ = counted(len(changes), "key differs", "keys differ")
    print_lines(f"{differ}, {counted(same, 'says', 'say')} the same")
    return 1


def _merge(parsed: argparse.Namespace) -> int:
    from pytest_diffaccel.records.golden_changes import merge_files

    merged = merge_files(parsed.sources, parsed.output, parsed.prefer)
    chosen = f", {len(merged.conflicts)} of them chosen by --prefer {parsed.prefer}" if merged.conflicts else ""
    print_lines(
        f"{parsed.output}: {counted(len(merged.entries), 'key')} of {counted(len(parsed.sources), 'file')}{chosen}"
    )
    named = {entry.environment for entry in merged.entries.values()}
    if unknown := sorted(named - merged.environments.keys()):
        print_lines(f"diffaccel: note: no environments.json spells out {', '.join(unknown)}", file=sys.stderr)
    return 0


def _prune(parsed: argparse.Namespace) -> int:
    from pytest_diffaccel.accelerators.registry import default_registry
    from pytest_diffaccel.records.golden_file import Change, Golden, merge
    from pytest_diffaccel.records.golden_key import stale_keys

    entries, known = Golden.existing(parsed.golden).entries, {*default_registry().names, *parsed.accelerator}
    changes = [Change(key, "pruned", entries[key], None) for key in stale_keys(entries, known)]
    unknown = sorted({change.key.accelerator for change in changes} - known)
    for change in changes[:_LISTED_KEYS]:
        print_lines(change.describe())
    if len(changes) > _LISTED_KEYS:
        print_lines(f"and {len(changes) - _LISTED_KEYS} more")
    stay = counted(len(entries) - len(changes), "stays", "stay")
    counts = f"{parsed.golden}: {counted(len(changes), 'key')} {{}}, {stay}"
    if parsed.dry_run:
        print_lines(counts.format("would be removed"))
        if unknown:
            print_lines(_may_be_wanted(unknown))
        return 0
    if unknown and not parsed.yes and not _is_confirmed(unknown):
        print_lines(f"{parsed.golden}: nothing removed")
        return 0
    merge(parsed.golden, {}, update=False, prune=[change.key for change in changes])
    print_lines(counts.format("removed"))
    return 0


def _is_confirmed(unknown: list[str]) -> bool:
    """Ask whether records may go that a conftest's accelerators may have made.

    Raises:
        ValueError: when nobody is there to ask.
    """
    if not sys.stdin.isatty():
        raise ValueError(f"nothing removed: {_may_be_wanted(unknown)}, or remove them with: --yes")
    print_lines(_may_be_wanted(unknown))
    return input("Remove all that is listed? [y/N] ").strip().lower() in ("y", "yes")


def _may_be_wanted(unknown: list[str]) -> str:
    return f"if your conftest registers {' or '.join(unknown)}, keep its keys with: --accelerator NAME"
