"""The commands ``diffaccel golden show|diff|merge|prune``, and ``diffaccel show``, the first by its short name."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from shutil import get_terminal_size

from pytest_diffaccel.settings.work_folder import GOLDEN

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
    merge.add_argument("--prefer", choices=["first", "last"], help="whose record stands where two are unequal")
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
    show.add_argument("--pipe", help="only this pipe")
    show.add_argument("--summary", action="store_true", help="one row an accelerator and target, over all cells")
    show.set_defaults(run=_show)


def _show(parsed: argparse.Namespace) -> int:
    from pytest_diffaccel.records.golden_file import Golden
    from pytest_diffaccel.report.golden_summary import summary_table
    from pytest_diffaccel.report.winners import winners_table
    from pytest_diffaccel.settings.options import benches_command

    golden = Golden.read(parsed.golden)
    entries = {key: entry for key, entry in golden.entries.items() if parsed.pipe in (None, key.cell.pipe)}
    if not entries:
        raise ValueError(f"{parsed.golden} has no winners to show; record some with: {benches_command()}")
    if parsed.summary:
        print("\n".join(summary_table(entries)))
        return 0
    print("\n".join(winners_table(entries, golden.environments, get_terminal_size().columns)))
    return 0


def _diff(parsed: argparse.Namespace) -> int:
    from pytest_diffaccel.records.golden_changes import golden_changes
    from pytest_diffaccel.records.golden_file import Golden
    from pytest_diffaccel.report.golden_table import changes_table, moves_text

    before, after = Golden.existing(parsed.before), Golden.existing(parsed.after)
    changes = golden_changes(before.entries, after.entries)
    same = len(before.entries.keys() & after.entries.keys()) - sum(change.kind == "differs" for change in changes)
    if not changes:
        print(f"no difference: {same} keys say the same")
        return 0
    lines = changes_table(changes, every=parsed.all) + moves_text(changes, before.environments, after.environments)
    print("\n".join([*lines, f"{len(changes)} keys differ, {same} say the same"]))
    return 1


def _merge(parsed: argparse.Namespace) -> int:
    from pytest_diffaccel.records.golden_changes import merge_files

    merged = merge_files(parsed.sources, parsed.output, parsed.prefer)
    chosen = f", {len(merged.conflicts)} of them chosen by --prefer {parsed.prefer}" if merged.conflicts else ""
    print(f"{parsed.output}: {len(merged.entries)} keys of {len(parsed.sources)} files{chosen}")
    named = {entry.environment for entry in merged.entries.values()}
    if unknown := sorted(named - merged.environments.keys()):
        print(f"diffaccel: note: no environments.json spells out {', '.join(unknown)}", file=sys.stderr)
    return 0


def _prune(parsed: argparse.Namespace) -> int:
    from pytest_diffaccel.accelerators.composition import default_registry
    from pytest_diffaccel.records.golden_file import Change, Golden, merge
    from pytest_diffaccel.records.golden_key import stale_keys

    entries, known = Golden.existing(parsed.golden).entries, {*default_registry().names, *parsed.accelerator}
    changes = [Change(key, "pruned", entries[key], None) for key in stale_keys(entries, known)]
    unknown = sorted({change.key.accelerator for change in changes} - known)
    for change in changes[:_LISTED_KEYS]:
        print(change.describe())
    if len(changes) > _LISTED_KEYS:
        print(f"and {len(changes) - _LISTED_KEYS} more")
    counts = f"{parsed.golden}: {len(changes)} keys {{}}, {len(entries) - len(changes)} stay"
    if parsed.dry_run:
        print(counts.format("would be removed"))
        if unknown:
            print(_may_be_wanted(unknown))
        return 0
    if unknown and not parsed.yes and not _is_confirmed(unknown):
        print(f"{parsed.golden}: nothing removed")
        return 0
    merge(parsed.golden, {}, update=False, prune=[change.key for change in changes])
    print(counts.format("removed"))
    return 0


def _is_confirmed(unknown: list[str]) -> bool:
    """Ask whether records may go that a conftest's accelerators may have made.

    Raises:
        ValueError: when nobody is there to ask.
    """
    if not sys.stdin.isatty():
        raise ValueError(f"nothing removed: {_may_be_wanted(unknown)}, or remove them with: --yes")
    print(_may_be_wanted(unknown))
    return input("Remove all that is listed? [y/N] ").strip().lower() in ("y", "yes")


def _may_be_wanted(unknown: list[str]) -> str:
    return f"if your conftest registers {' or '.join(unknown)}, keep its keys with: --accelerator NAME"
