"""The 1134 tasks: their order, their files to the byte, and what a task may be."""

from __future__ import annotations

import hashlib
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pytest_diffaccel.cli.main import main
from pytest_diffaccel.codegen.tasks import TASK_FILES, Task, all_tasks, file_text, tasks_of_ids
from pytest_diffaccel.matrix import Cell

FOLDER = Path(__file__).resolve().parents[1] / "codegen"
# From the issue that asked for them.
SUMS = {
    "gen_4_category.json": "958e756ab3b783a3f99f51980482b6fd24497c038b027a6a1224498edfca2b5d",
    "anno_4_category.json": "fa712ffe830e4553d73715193ecac0eb680387277dd3fc77ab585386e321671e",
}
PRINTED_SUM = "40471e659b4d9ba02c8eb8fdf1df8ed69a03394edf020a24e0a09f0347b4a791"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("name", TASK_FILES)
def test_committed_files_are_what_the_issue_asks_for(name: str) -> None:
    assert sha256((FOLDER / name).read_bytes()) == SUMS[name]


def test_written_files_are_the_committed_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "new"
    assert main(["tasks", "--write", str(folder)]) == 0
    assert {path.name: sha256(path.read_bytes()) for path in folder.iterdir()} == SUMS
    assert capsys.readouterr().out.splitlines() == [str(folder / name) for name in TASK_FILES]


def test_printed_list_is_what_the_issue_asks_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tasks", "--print"]) == 0
    assert sha256(capsys.readouterr().out.encode()) == PRINTED_SUM


def test_tasks_are_in_order() -> None:
    tasks = all_tasks()
    assert list(tasks) == [str(number) for number in range(192, 1326)]
    assert tasks["192"] == Task(Cell("SD1.5", "DDIM", 20), "DeepCache", 1.2)
    assert tasks["193"] == Task(Cell("SD1.5", "DDIM", 20), "DeepCache", 1.5)
    assert tasks["199"] == Task(Cell("SD1.5", "DDIM", 20), "T-Gate", 1.2)
    assert tasks["234"] == Task(Cell("SD1.5", "DDIM", 25), "DeepCache", 1.2)
    assert tasks["1325"] == Task(Cell("SDXL", "UniPCMultistepScheduler", 50), "DeepCache, T-Gate, and ToMe", 4.0)
    assert all(task.prompt_id == prompt_id for prompt_id, task in tasks.items())
    assert len({task.sentence for task in tasks.values()}) == len(tasks)


def test_files_list_every_task() -> None:
    items = json.loads(file_text("gen_4_category.json"))
    assert items[0] == {
        "prompt_id": "192",
        "category": 4,
        "prompt_context": "Generate a SD1.5 pipeline using the DDIM sampler with 20 steps, accelerated by DeepCache "
        "with 1.2x speedup",
        "path_to_gen_code": "gen_code/192.py",
    }
    assert [item["prompt_context"] for item in items] == [task.sentence for task in all_tasks().values()]


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("192", ["192"]),
        ("192-194", ["192", "193", "194"]),
        ("1325,192 - 193, 193", ["192", "193", "1325"]),
    ],
)
def test_ids_name_tasks(text: str, ids: list[str]) -> None:
    assert list(tasks_of_ids(text)) == ids


@pytest.mark.parametrize("text", ["", "191", "1326", "200-192", "192-", "192;193", "all", "١٩٢", "192-9999999"])
def test_bad_ids_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="write ids from 192 to 1325"):
        tasks_of_ids(text)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"pipe": "SD3"}, "no pipe 'SD3'; valid: SD1.5; SD2.1; SDXL"),
        ({"scheduler": "Euler"}, "no scheduler 'Euler'; valid: DDIM"),
        ({"accelerator": "T-Gate and ToMe"}, "no accelerator 'T-Gate and ToMe'; valid: DeepCache"),
        ({"steps": 0}, "steps=0 must be"),
        ({"steps": 1001}, "steps=1001 must be"),
        ({"steps": True}, "steps=True must be"),
        ({"steps": 20.0}, "steps=20.0 must be"),
        ({"target": 1.0}, "1.0x must be above 1"),
        ({"target": 101}, "101.0x must be above 1"),
        ({"target": math.nan}, "nanx must be above 1"),
    ],
)
def test_bad_tasks_are_refused(values: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {"pipe": "SDXL", "scheduler": "DDIM", "steps": 20, "accelerator": "ToMe", "target": 2.0}
    asked = good | values
    with pytest.raises(ValueError, match=message):
        Task(Cell(asked["pipe"], asked["scheduler"], asked["steps"]), asked["accelerator"], asked["target"])


def test_other_tasks_have_no_id() -> None:
    assert Task(Cell("SDXL", "DDIM", 30), "ToMe", 2).prompt_id is None
    assert Task(Cell("SDXL", "DDIM", 20), "ToMe", 2).prompt_id == Task(Cell("SDXL", "DDIM", 20), "ToMe", 2.0).prompt_id


def test_nothing_heavy_is_imported() -> None:
    """The commands answer at once: parser, generator and command line import neither torch nor diffusers."""
    code = (
        "import sys, pytest_diffaccel.cli.main, pytest_diffaccel.codegen.batch; "
        "sys.exit(bool({'torch', 'diffusers', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
