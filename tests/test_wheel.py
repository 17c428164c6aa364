"""What is published: a small wheel with plugin, command and embedded pipelines, which works without this repository."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from email.parser import HeaderParser
from pathlib import Path

import pytest

from pytest_diffaccel.pipes import known

wheel_builder = pytest.importorskip("hatchling.builders.wheel", reason="hatchling is not installed")

ROOT = Path(__file__).resolve().parents[1]
#: Of which each of the four pipelines is some 15; PyPI takes 100 without asking.
MOST_BYTES = 70e6
OWN_TEST = """
def test_mine(diffaccel):
    result = diffaccel("SD1.5", {"DeepCache": {"cache_interval": 3, "cache_branch_id": 0}}, steps=6, blocks=1)
    assert result.fired["cached_steps"] == 4
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built as ``python -m build`` does."""
    folder = tmp_path_factory.mktemp("dist")
    (built,) = wheel_builder.WheelBuilder(str(ROOT)).build(directory=str(folder), versions=["standard"])
    return Path(built)


@pytest.mark.slow
def test_it_holds_all_that_is_needed_and_is_small(wheel: Path) -> None:
    assert wheel.stat().st_size < MOST_BYTES
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = next(name for name in names if name.endswith(".dist-info/METADATA"))
        fields = HeaderParser().parsestr(archive.read(metadata).decode())
    carried = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "pytest_diffaccel").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert carried <= names
    stand_ins = {pipe.embedded_folder for pipe in known() if pipe.embedded_folder}
    assert {name.split("/")[3] for name in names if name.endswith("/model_index.json")} == stand_ins
    assert {name.split("/")[0] for name in names} == {"pytest_diffaccel", metadata.split("/")[0]}
    assert {name.rpartition("/licenses/")[2] for name in names if "/licenses/" in name} == {"LICENSE", "NOTICE"}
    assert fields["License-Expression"] == "Apache-2.0 AND BSD-2-Clause AND BSD-3-Clause AND MIT"
    assert "Framework :: Pytest" in fields.get_all("Classifier", [])


class Installed:
    """The wheel, unpacked, and an empty folder to work in."""

    def __init__(self, wheel: Path, path: Path) -> None:
        self.place, self.work = path / "installed", path / "work"
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(self.place)
        self.work.mkdir()
        self._environment = {**os.environ, "PYTHONPATH": str(self.place)}

    def run(self, *arguments: str) -> str:
        """What Python prints, which ends well."""
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=self.work,
            env=self._environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def diffaccel(self, *arguments: str) -> str:
        """The same of the command."""
        main = "from importlib.metadata import distribution as of; import sys; sys.exit({}.load()())".format(
            "next(one for one in of('pytest-diffaccel').entry_points if one.group == 'console_scripts')"
        )
        return self.run("-c", main, *arguments)


@pytest.fixture
def installed(wheel: Path, tmp_path: Path) -> Installed:
    return Installed(wheel, tmp_path)


@pytest.mark.slow
def test_plugin_and_command_work_without_this_repository(installed: Installed) -> None:
    (installed.work / "test_mine.py").write_text(OWN_TEST, encoding="utf-8")
    where = installed.run("-c", "import pytest_diffaccel; print(pytest_diffaccel.__file__)")
    assert where.startswith(str(installed.place))
    assert "1 passed" in installed.run("-m", "pytest", "test_mine.py", "--num-samples", "1", "--batch-size", "1")
    assert "accelerated by DeepCache with 1.2x speedup" in installed.diffaccel("tasks", "--print")


@pytest.mark.slow
def test_the_main_job_runs_in_an_empty_folder(installed: Installed) -> None:
    """Search, gate, generate, judge and report, as someone does who has nothing but the package."""
    cell = ("--pipe", "SD1.5", "--sched", "DDIM", "--steps", "20", "--search-targets", "deepcache")
    said = installed.diffaccel("search", *cell, "--grid", "coarse", "--num-samples", "1", "--batch-size", "1")
    assert "golden: golden/search_params.json: " in said
    assert " in a clone" not in said
    gate = ("--gate", "--gate-budget", "5s", "--gate-slowdown", "50%")
    assert re.search(r"^gate: \d", installed.diffaccel("search", *cell, *gate), re.MULTILINE)
    assert "DeepCacheSDHelper" in installed.diffaccel("generate", "SD1.5, DDIM, 20 steps, DeepCache, 1.2x")
    # The same task by its number, the first of all.
    judged = installed.diffaccel("judge", "--ids", "192", "--stages", "static,runs")
    assert "1 passed" in judged
    installed.diffaccel("report", "-o", "report.html")
    assert (installed.work / "report.html").stat().st_size > 10_000
