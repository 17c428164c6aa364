"""What README and docs show of commands and code: fenced blocks, and commands within sentences."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    page
    for page in (
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "examples").rglob("*.md"),
        ROOT / "benchmarks" / "README.md",
        ROOT / "training" / "README.md",
    )
    if page.exists()  # not all are part of the source distribution
)
_BLOCK = re.compile(
    r"^(?:<!-- (?:(?P<program>\S+) )?not run: (?P<reason>.+?) -->\n\n?)?"
    r"^(?P<indent> *)```(?P<language>\w*)\n(?P<text>.*?)^ *```$",
    re.MULTILINE | re.DOTALL,
)
_PROGRAMS = r"(?:pytest|diffaccel|tox|pip|python -m (?:benchmarks|training)[\w.]*)"
_INLINE = re.compile(rf"(?<!`)`({_PROGRAMS} [^`]+|python -m (?:benchmarks|training)[\w.]*)`(?!`)")
# A sentence names a command's form with capitals, dots or brackets.
_FORM = re.compile(r"\.\.\.|[|\[]|\b(?:A|B|FILE|FOLDER|KEY|NAME)\b")


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        page: the file that it stands in.
        line: where its text begins, from 1.
        language: what it is said to be; empty where nothing is said.
        text: its lines.
        reason: why it is not run, as a comment before it says: ``<!-- not run: needs a GPU -->``; empty: it is run.
        program: where the comment begins with a program's name, only that program's commands are not run.
    """

    page: Path
    line: int
    language: str
    text: str
    reason: str
    program: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    def is_run(self, program: str) -> bool:
        """Whether commands of a program are run, as far as the block's comment goes."""
        return not self.reason or self.program not in ("", program)

    @property
    def commands(self) -> Iterator[list[str]]:
        """The words of each command of a console block, without comments and what it prints."""
        for line in self.text.replace("\\\n", " ").splitlines():
            if line.startswith("$ "):
                yield from split(line.removeprefix("$ "))

    @property
    def script_commands(self) -> Iterator[list[str]]:
        """The words of each command of pytest in a shell script."""
        for line in self.text.replace("\\\n", " ").splitlines():
            if found := re.search(r"\bpytest .*", line):
                yield from split(found[0].replace("$SLURM_SUBMIT_DIR/", ""))


def blocks(page: Path) -> list[Block]:
    """A page's fenced blocks."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(
            page,
            text.count("\n", 0, found.start("text")) + 1,
            found["language"],
            found["text"],
            found["reason"] or "",
            found["program"] or "",
        )
        for found in _BLOCK.finditer(text)
    ]


def inline_commands(page: Path) -> Iterator[list[str]]:
    """The words of each command in a sentence or a table, less those that show a form (``diffaccel explain KEY``)."""
    text = _BLOCK.sub("", page.read_text(encoding="utf-8"))
    for found in _INLINE.findall(text):
        if not _FORM.search(found):
            yield from split(" ".join(found.split()))


def split(line: str) -> Iterator[list[str]]:
    """The commands of a line of a shell, each without the variables that it sets."""
    words = shlex.shlex(line, posix=True, punctuation_chars=";&|")
    words.whitespace_split = True
    command: list[str] = []
    for word in [*words, ";"]:
        if word in (";", "&&", "||", "|"):
            if command:
                yield command
            command = []
        elif command or not re.fullmatch(r"[A-Z_]+=.*", word):
            command.append(word)
