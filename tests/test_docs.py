"""README and docs: links that lead somewhere, commands that are run or at least parsed, and code that runs.

Every fenced block is run here, or a comment before it says why it is not (``tests/doc_blocks.py``). Then its commands
are still parsed by the programs' own parsers. What stands in sentences is parsed, too.
"""

from __future__ import annotations

import argparse
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from configparser import ConfigParser
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from pkgutil import resolve_name
from typing import Any
from unittest.mock import create_autospec

import pytest
import yaml
from doc_blocks import PAGES, ROOT, Block, blocks, inline_commands, split
from recorded import RecordedSearch
from test_store import measurement

import pytest_diffaccel
from pytest_diffaccel.accelerators.registry import default_registry
from pytest_diffaccel.cli import pytest_commands
from pytest_diffaccel.cli.main import command_parser, main
from pytest_diffaccel.codegen.script import generate_script
from pytest_diffaccel.measure.measurement import Interval, Quality
from pytest_diffaccel.measure.metrics.registry import MetricRegistry
from pytest_diffaccel.models.registry import ModelSource, know_pipes
from pytest_diffaccel.pipes import PipeRegistry, make_known
from pytest_diffaccel.plugin import hookspecs
from pytest_diffaccel.plugin.fixtures import OwnCases
from pytest_diffaccel.plugin.ini_keys import OPTIONS
from pytest_diffaccel.plugin.judge_options import JudgeSettings
from pytest_diffaccel.plugin.registered import methods_of, pipes_of
from pytest_diffaccel.settings.search_settings import Settings

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

GOLDEN = ROOT / "golden"
#: Programs of others, which these tests leave to them.
OTHERS = {".", "cd", "docker", "git", "jq", "kubectl", "pip", "pipx", "pre-commit", "python3", ".venv/bin/pip"}
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
# What was is history: options in it may be gone.
_TODAY = [page for page in PAGES if page.name != "CHANGELOG.md"]

each_page = pytest.mark.parametrize("page", PAGES, ids=_NAMES)


def of_language(*languages: str) -> list[Block]:
    return [block for page in PAGES for block in blocks(page) if block.language in languages]


# --- links -------------------------------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """What GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.replace(" ", "-") for heading in plain}


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    for link in _LINK.findall(page.read_text(encoding="utf-8")):
        if "://" in link or link.startswith("mailto:"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


# --- blocks ------------------------------------------------------------------------------------------------------


@each_page
def test_no_block_is_left_out(page: Path) -> None:
    """Each is of a language that is looked at here; each comment stands before a block."""
    text, found = page.read_text(encoding="utf-8"), blocks(page)
    assert len(re.findall(r"^ *```", text, re.MULTILINE)) == 2 * len(found)
    assert len(re.findall(r"^<!-- .*\bnot run\b", text, re.MULTILINE)) == sum(bool(block.reason) for block in found)
    for block in found:
        languages = ("bash", "console", "python", "toml", "yaml", "text")
        assert block.language in languages, f"{block}: say what language it is in"
        assert block.language == "console" or not block.reason, f"{block}: only commands may go without being run"


@pytest.mark.parametrize("block", of_language("python"), ids=str)
def test_code_runs(block: Block) -> None:
    """As it stands; what it leaves to its reader, and measuring, is stood in for."""
    space: dict[str, Any] = {"MyMethod": own_method}
    exec(compile(block.text, str(block), "exec"), space)
    methods, pipes = default_registry(), PipeRegistry()
    if register := space.get("pytest_diffaccel_accelerators"):
        register(registry=methods)
        assert methods.names[-2:] == ["MyMethod", "DeepCache and MyMethod"]
    if register := space.get("pytest_diffaccel_pipes"):
        register(registry=pipes)
        assert len(list(pipes)) > len(list(PipeRegistry()))
    if register := space.get("pytest_diffaccel_metrics"):
        metrics = MetricRegistry()
        register(registry=metrics)
        assert len(metrics.names) == len(MetricRegistry().names) + 1
    if "images" in space:
        assert len(space["images"]) == 1
    if case := space.get("test_mine"):
        measures = create_autospec(OwnCases, instance=True)
        losses = Quality(Interval(0.1, 0.05, 0.15), 30.0, 0.9, (0.1,))
        measures.return_value = measurement(speedup=1.7, quality=losses)
        case(measures)
        measures.assert_called_once()


def own_method() -> Any:
    """The example's method, by the name that docs give to a reader's own."""
    from echo import Echo

    return type("MyMethod", (Echo,), {"name": "MyMethod"})([(2, 0)])


@pytest.mark.parametrize("block", of_language("bash"), ids=str)
def test_scripts_are_such(block: Block) -> None:
    assert not subprocess.run(["bash", "-n"], input=block.text, capture_output=True, text=True, check=True).stderr


@pytest.mark.parametrize("block", of_language("toml"), ids=str)
def test_settings_are_understood(block: Block, pytester: pytest.Pytester) -> None:
    written = tomllib.loads(block.text)
    if "tool" in written:
        pytester.makepyprojecttoml(block.text)
        options = pytester.parseconfig().option
        keys = {option.key: option.dest for option in OPTIONS}
        assert all(getattr(options, keys[key]) is not None for key in written["tool"]["pytest"]["ini_options"])
    else:
        pytester.path.joinpath("models.toml").write_text(block.text, encoding="utf-8")
        assert [spec.pipe for spec in ModelSource.from_option("models.toml").specs] == list(written)


# --- commands ----------------------------------------------------------------------------------------------------


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.Pytester]:
    """A folder as the docs take it for granted, with what a search leaves and what their readers bring."""
    if not GOLDEN.is_dir():
        pytest.skip("the golden database is not part of the source distribution")
    monkeypatch.setenv("COLUMNS", "80")
    for name in ("benches", "codegen", "golden"):
        shutil.copytree(ROOT / name, pytester.path / name, ignore=shutil.ignore_patterns("__pycache__", "pictures"))
    for name in ("conftest.py", "echo.py.j2"):
        shutil.copy(ROOT / "examples" / "own_method" / name, pytester.path)
    models = "".join(block.text for block in of_language("toml") if block.page.name == "models.md")
    files = {"my_models.toml": models, "models.toml": models, "prompts.txt": "red apple\n", "test_mine.py": ""}
    for name, text in {**files, "gen_code/192.py": ""}.items():
        (pytester.path / name).parent.mkdir(exist_ok=True)
        (pytester.path / name).write_text(text, encoding="utf-8")
    leave_a_search(pytester.path)
    yield pytester
    make_known(PipeRegistry())


def leave_a_search(folder: Path) -> None:
    """Put into a folder what searches, here and elsewhere, would have left."""
    RecordedSearch(folder).fill()
    for place in ("before.sqlite", "after.sqlite", "other/.diffaccel/search.sqlite"):
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / ".diffaccel" / "search.sqlite", folder / place)
    for place in ("golden/search_params.json", "a/golden.json", "b/golden.json"):
        (folder / place).parent.mkdir(exist_ok=True)
        for source, name in (("search_params.json", Path(place).name), ("environments.json", "environments.json")):
            shutil.copy(GOLDEN / source, (folder / place).with_name(name))
    shutil.copy(GOLDEN / "nvidia-h200.search_params.json", folder / "new.json")


@pytest.mark.parametrize("page", _TODAY, ids=[str(page.relative_to(ROOT)) for page in _TODAY])
def test_commands_are_understood(
    page: Path, project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those of blocks, of workflows and of sentences are parsed; those of ``diffaccel`` in blocks are run."""
    for command in inline_commands(page):
        # A sentence may call a program by its name alone.
        is_name = len(command) == (3 if command[0] == "python" else 2) and command[0] in ("python", "diffaccel")
        parse([*command, "--help"] if is_name else command, project, monkeypatch)
    for block in blocks(page):
        for command in workflow_commands(block.text) if block.language == "yaml" else ():
            parse(command, project, monkeypatch)
        for command in block.script_commands if block.language == "bash" else ():
            parse(command, project, monkeypatch)
        for command in block.commands if block.language == "console" else ():
            parse(command, project, monkeypatch)
            if block.is_run(command[0]):
                run(command, block, monkeypatch)
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err


def run(command: Sequence[str], block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a command in this process; a folder that is gone into has what a search leaves."""
    if command[0] == "cd":
        monkeypatch.chdir(command[1])
        leave_a_search(Path.cwd())
        return
    assert command[0] == "diffaccel", f"{block}: say why {command[0]} is not run: <!-- not run: needs a GPU -->"
    assert main(command[1:]) in (0, 1 if "diff" in command else 0), f"{block}: {' '.join(command)}"


def workflow_commands(text: str) -> Iterator[list[str]]:
    """The commands of a GitHub workflow, with its jobs' variables; other files have none."""
    for job in yaml.safe_load(text).get("jobs", {}).values():
        for step in job["steps"]:
            line = step.get("run", "")
            for name, value in job.get("env", {}).items():
                line = line.replace(f"${name}", value)
            for command in line.splitlines():
                yield from split(command)


def parse(command: Sequence[str], project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parse a command as its program would; a program that is not known fails."""
    program, *arguments = command
    if program == "pytest":
        parse_pytest(arguments, project)
    elif program == "pytest-benchmark":
        resolve_name("pytest_benchmark.cli:make_parser")().parse_args(arguments)
    elif program == "diffaccel":
        parse_diffaccel(arguments, project)
    elif command[:2] == ["python", "-m"]:
        parse_module(arguments[1], arguments[2:], monkeypatch)
    elif program == "python":
        script = generate_script("SD1.5, DDIM, 20 steps, DeepCache, 1.5x", GOLDEN / "search_params.json")
        given = [word for word in arguments if word.startswith("--")]
        assert all(f'"{name}"' in script for name in given), command
    elif program in ("tox", ".venv/bin/tox"):
        tox = ConfigParser(interpolation=None)
        tox.read(ROOT / "tox.ini")
        names = arguments[1].split(",") if arguments[:1] == ["-e"] else []
        assert all(f"testenv:{name}" in tox for name in names), command
    else:
        assert program in OTHERS, command
    metadata = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = re.findall(r"^(?:pytest-diffaccel|\.)\[(.+)\]$", "\n".join(arguments), re.MULTILINE)
    assert {name for names in extras for name in names.split(",")} <= set(metadata["optional-dependencies"]), command


def parse_diffaccel(arguments: Sequence[str], project: pytest.Pytester) -> None:
    """Parse a command line of ``diffaccel``; what it hands on to pytest, as pytest does."""
    try:
        parsed, others = command_parser().parse_known_args(arguments)
    except SystemExit as ended:
        if ended.code:
            raise
        return  # --help
    if parsed.command in pytest_commands.COMMANDS:
        parse_pytest(["--pyargs", parsed.package, *arguments[1:]], project)
    else:
        assert not others, arguments


def parse_pytest(arguments: Sequence[str], project: pytest.Pytester) -> None:
    """Parse a command line of pytest as a session does, with the conftest files of the project."""
    config = project.parseconfig(*arguments)
    if {"codegen", "pytest_diffaccel.codegen"} & {*arguments}:
        assert JudgeSettings.from_options(config.option).tasks
        return
    know_pipes(pipes_of(config), config.option.models)
    assert Settings.from_options(config.option, methods_of(config).names).cells


class Parsed(Exception):
    """A program came as far as having parsed its command line."""


def parse_module(name: str, arguments: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a module up to where it has parsed its command line."""
    original = argparse.ArgumentParser.parse_args

    def parsed(parser: argparse.ArgumentParser, *given: Any) -> None:
        try:
            original(parser, *given)
        except SystemExit as ended:
            if ended.code:
                raise
        raise Parsed  # also after --help

    with monkeypatch.context() as patched:
        patched.setattr(argparse.ArgumentParser, "parse_args", parsed)
        patched.setattr(sys, "argv", [name, *arguments])
        patched.delitem(sys.modules, name, raising=False)
        with pytest.raises(Parsed):
            runpy.run_module(name, run_name="__main__")


# --- the site ----------------------------------------------------------------------------------------------------


def test_the_reference_names_what_there_is_and_all_that_is_public() -> None:
    text = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    found = [resolve_name(name) for name in re.findall(r"^::: (\S+)$", text, re.MULTILINE)]
    public = [getattr(pytest_diffaccel, name) for name in pytest_diffaccel.__all__ if name != "__version__"]
    hooks = [hook for name, hook in vars(hookspecs).items() if name.startswith("pytest_")]
    assert len(hooks) == 3
    assert all(one in found for one in (*public, *hooks))


def test_the_page_of_options_has_all_of_them() -> None:
    page = site_pages().options_page()
    for option in OPTIONS:
        assert f"| `{option.names[0]}" in page
    assert "## diffaccel golden merge" in page
    assert "None" not in page


def site_pages() -> Any:
    """What mkdocs.yml hooks in; it needs no mkdocs until it is called."""
    spec = spec_from_file_location("site_pages", ROOT / "docs" / "site_pages.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_of_options_needs_no_dependency() -> None:
    """The site is built in an environment without any: not even pytest."""
    code = (
        "import runpy, sys; [sys.modules.update({name: None}) for name in ('pytest', 'torch', 'numpy', 'pydantic')]; "
        f"print(runpy.run_path({str(ROOT / 'docs' / 'site_pages.py')!r})['options_page']()[:40])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("#")


@pytest.mark.parametrize(
    "path",
    [*ROOT.glob("*.y*ml"), *ROOT.glob(".*.yaml"), *(ROOT / ".github").rglob("*.yml")],
    ids=lambda path: path.relative_to(ROOT).as_posix(),
)
def test_yaml_files_can_be_read(path: Path) -> None:
    """Those that nothing else reads before they are pushed; tags of one's own are let through."""
    assert yaml.compose(path.read_text(encoding="utf-8")) is not None
