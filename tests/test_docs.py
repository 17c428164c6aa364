"""README and docs: links that lead somewhere, and options and commands that there are."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_diffaccel.plugin.judge_options import JUDGE_OPTIONS
from pytest_diffaccel.settings.options import SEARCH_OPTIONS

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "benchmarks" / "README.md"])
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_BLOCK = re.compile(r"^```console\n(.*?)^```", re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """What GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_links_lead_somewhere(page: Path) -> None:
    for link in _LINK.findall(page.read_text(encoding="utf-8")):
        if "://" in link or link.startswith("mailto:"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def commands(page: Path) -> Iterator[str]:
    """The lines of a page's console blocks that call the search, the gate or the judge."""
    for block in _BLOCK.findall(page.read_text(encoding="utf-8")):
        for line in block.replace("\\\n", " ").splitlines():
            command = line.removeprefix("$ ").partition("  #")[0]
            if line.startswith("$ ") and re.search(r"\b(pytest (benches|codegen)|diffaccel (search|judge))\b", command):
                yield command


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_commands_name_options_that_there_are(page: Path) -> None:
    ours = {name for declared in (*SEARCH_OPTIONS, *JUDGE_OPTIONS) for name in declared.names}
    pytests = {"--junitxml", "--lf", "--collect-only", "--dist", "--tx", "--rootdir"}
    for command in commands(page):
        given = {word.partition("=")[0] for word in command.split() if word.startswith("--")}
        # What begins so is pytest-benchmark's business.
        own = {name for name in given if not name.startswith("--benchmark-")}
        assert own <= ours | pytests, command
