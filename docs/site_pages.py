"""What the site has beside the texts in docs/: pages whose texts lie elsewhere, and the page of options and commands.

mkdocs calls what begins with ``on_`` (``hooks`` in mkdocs.yml). Links stay as GitHub needs them: they are followed
through the repository, and turned into links between pages. Nothing here needs the package's dependencies.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from posixpath import dirname, join, normpath, relpath
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
OPTIONS = "options.md"
#: Pages by the texts of the repository that they show.
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "benchmarks/README.md": "benchmarks.md",
    "examples/README.md": "examples.md",
    "training/README.md": "training.md",
}
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s:#]+)(#[^)\s]*)?\)")
_PICTURES = {".png", ".svg"}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Show the repository at the foot of each page where its address is known."""
    if repository := config.extra["repository"]:
        config.extra["social"] = [{"icon": "fontawesome/brands/github", "link": repository, "name": "Repository"}]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages whose texts lie elsewhere, the pictures that they show, and the page of options."""
    from mkdocs.structure.files import File

    for source, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
        for target in _targets(source):
            if Path(target).suffix in _PICTURES:
                files.append(File.generated(config, target, abs_src_path=str(ROOT / target)))
    files.append(File.generated(config, OPTIONS, content=options_page()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links through the repository into links between pages."""
    source = next((text for text, name in PAGES.items() if name == page.file.src_uri), f"docs/{page.file.src_uri}")

    titles = _titles(config.nav)

    def link(found: re.Match[str]) -> str:
        picture, label, path, anchor = found.groups(default="")
        target = normpath(join(dirname(source), path))
        if place := site_place(target):
            label = titles.get(place, label) if label.endswith(path) else label
            return f"{picture}[{label}]({relpath(place, dirname(page.file.src_uri) or '.')}{anchor})"
        if not (ROOT / target).exists():
            return found[0]  # --strict tells of it
        repository = config.extra["repository"]
        return f"[{label}]({repository}/blob/main/{target})" if repository else label

    return _LINK.sub(link, markdown)


def site_place(target: str) -> str:
    """Where the site has what lies at a path of the repository; empty where it does not have it."""
    if target in PAGES:
        return PAGES[target]
    if target.startswith("docs/"):
        return target.removeprefix("docs/")
    return target if Path(target).suffix in _PICTURES else ""


def _targets(source: str) -> Iterator[str]:
    """The paths in the repository that a text links to."""
    for found in _LINK.finditer((ROOT / source).read_text(encoding="utf-8")):
        yield normpath(join(dirname(source), found[3]))


def _titles(nav: Any) -> dict[str, str]:
    """What the navigation calls each page."""
    if isinstance(nav, list):
        return {page: title for part in nav for page, title in _titles(part).items()}
    titles: dict[str, str] = {}
    for title, inner in nav.items():
        titles.update({inner: title} if isinstance(inner, str) else _titles(inner))
    return titles


def options_page() -> str:
    """Every command and option, as the parsers of this very version declare them."""
    sys.path.insert(0, str(ROOT))
    try:
        from pytest_diffaccel.cli.main import command_parser
    finally:
        sys.path.remove(str(ROOT))
    text = [
        "# Options and commands",
        "This page is written from the plugin's own parsers. What `diffaccel search` takes, `pytest benches` takes, "
        "and what `diffaccel judge` takes, `pytest codegen`; both take all options of pytest, too. "
        "[How to search](search.md), [in CI](ci.md) and [to judge](generate.md#judge) tell what to use them for, "
        "[configuration](configuration.md) how a project sets them.",
    ]
    for name, parser in sorted(_commands(command_parser()), key=lambda one: one[0] not in ("search", "judge")):
        text += [f"## diffaccel {name}", _sentence(parser.description or "")]
        for group in parser._action_groups:
            text += _options(group)
    return "\n\n".join(text) + "\n"


def _commands(parser: argparse.ArgumentParser, name: str = "") -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """The commands of a parser that do something, those of its commands among them."""
    inner = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not inner:
        yield name, parser
    for action in inner:
        about = {choice.dest: choice.help for choice in action._choices_actions}
        for word, command in action.choices.items():
            command.description = command.description or about.get(word)
            yield from _commands(command, f"{name} {word}".strip())


def _options(group: argparse._ArgumentGroup) -> list[str]:
    """A group's title, where it has one of its own, and the table of its options."""
    actions: list[Any] = [one for one in group._group_actions if not isinstance(one, argparse._HelpAction)]
    if not actions:
        return []
    formatter = argparse.HelpFormatter("diffaccel")
    rows = ["| option | meaning |", "| --- | --- |"]
    for action in actions:
        # Spellings with an underscore are for those who are used to them.
        names = ", ".join(name for name in action.option_strings if "_" not in name)
        value = "" if action.nargs == 0 else formatter._format_args(action, action.metavar or action.dest)
        meaning = formatter._expand_help(action) if action.help else ""
        rows.append(f"| `{f'{names} {value}'.strip()}` | {_escaped(meaning)} |")
    title = _sentence((group.title or "").rpartition(": ")[2])
    own = [] if title in ("Options", "Optional arguments", "Positional arguments") else [f"### {title}"]
    return [*own, "\n".join(rows)]


def _sentence(text: str) -> str:
    """The same as a heading or a sentence."""
    return _escaped(text[:1].upper() + text[1:])


def _escaped(text: str) -> str:
    """A help text as Markdown shows it."""
    return text.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")
