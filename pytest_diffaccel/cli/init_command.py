"""The command ``diffaccel init``: a small project, each of whose files is a few lines that call the package."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from pytest_diffaccel.report.terminal import print_lines
from pytest_diffaccel.settings.options import BENCHES, FIRST_SEARCH

_PROJECT = Path(__file__).with_name("project")
# Files of the project, and those of the package that their texts lie in.
_TEXTS = {
    "conftest.py": "conftest.py.txt",
    "benches/conftest.py": "benches_conftest.py.txt",
    "benches/test_search.py": "benches_test_search.py.txt",
    "benches/test_gate.py": "benches_test_gate.py.txt",
    "models.toml": "models.toml",
    ".gitignore": "gitignore.txt",
    ".github/workflows/diffaccel-gate.yml": "gate.yml",
}


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    init = commands.add_parser("init", help="write a small project: benches, models.toml, a workflow of CI")
    init.add_argument("folder", nargs="?", type=Path, default=Path(), help="where (default: here)")
    init.set_defaults(run=_init)


def _init(parsed: argparse.Namespace) -> int:
    files = {parsed.folder / name: text for name, text in project().items()}
    known = [str(path) for path in files if path.exists()]
    if known:
        raise ValueError(
            f"{', '.join(known)} is there already: move it away, or name another folder; nothing was written"
        )
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        print(path)
    go = "" if parsed.folder == Path() else f"cd {shlex.quote(str(parsed.folder))} && "
    command = shlex.join(["pytest", BENCHES, "-n", "2", *FIRST_SEARCH])
    print_lines(f"next, a first search, of small stand-ins: {go}{command}")
    return 0


def project() -> dict[str, str]:
    """The project's files: text by path, relative to its folder."""
    return {name: (_PROJECT / source).read_text(encoding="utf-8") for name, source in _TEXTS.items()}
