"""The commands ``diffaccel search`` and ``diffaccel judge``: pytest on the cases that the package carries."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence

from pytest_diffaccel.settings.option_types import DeclaredOption
from pytest_diffaccel.settings.options import INSTALLED_BENCHES, OF_PACKAGE, OPTION_GROUPS

_SCRIPTS = "pytest_diffaccel.codegen"
#: What hands on to pytest whatever it does not know.
COMMANDS = ("search", "judge")


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the commands; whatever else pytest knows (``-n``, ``-k``, ...) they hand on."""
    from pytest_diffaccel.plugin.judge_options import JUDGE_OPTIONS

    _add(commands, "search", "benches", "search, or with --gate judge winners", INSTALLED_BENCHES, OPTION_GROUPS)
    judging = {"judging scripts": JUDGE_OPTIONS}
    _add(commands, "judge", "codegen", "run generated scripts and judge them", _SCRIPTS, judging)


def _add(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    folder: str,
    what: str,
    package: str,
    groups: Mapping[str, Sequence[DeclaredOption]],
) -> None:
    about = f"{what}: as `pytest {folder}`, in any folder"
    made = commands.add_parser(
        name, help=about, description=f"{about}. All options of pytest can be given, too.", allow_abbrev=False
    )
    for title, options in groups.items():
        group = made.add_argument_group(title)
        for declared in options:
            group.add_argument(*declared.names, dest=declared.dest, **declared.keywords)
    made.set_defaults(run=_run, package=package)


def _run(parsed: argparse.Namespace) -> int:
    import pytest

    return int(pytest.main([*OF_PACKAGE, parsed.package, *parsed.given]))
