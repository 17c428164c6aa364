"""The scripts of many tasks: rendered, written to a folder, or compared with what lies there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pytest_diffaccel.codegen.lookup import Answer, NoRecord, find
from pytest_diffaccel.codegen.script import render
from pytest_diffaccel.codegen.tasks import Task
from pytest_diffaccel.records.golden_file import Golden
from pytest_diffaccel.records.jsonfile import write_text

DEFAULT_FOLDER = Path("gt_code")


@dataclass(frozen=True)
class RenderedTasks:
    """What rendering some tasks gave.

    Attributes:
        scripts: text by task id.
        borrowed: ids of the scripts that use the record of another target or number of steps.
        unattained: ids of the scripts whose target is unattainable.
        unrecorded: tasks without a golden record that answers them, by id.
    """

    scripts: Mapping[str, str]
    borrowed: tuple[str, ...]
    unattained: tuple[str, ...]
    unrecorded: Mapping[str, Task]

    @classmethod
    def render(cls, tasks: Mapping[str, Task], records: Golden) -> RenderedTasks:
        """The scripts of ``tasks``, by id.

        Raises:
            ValueError: when a golden record or its environment is not valid.
        """
        answers: dict[str, Answer] = {}
        unrecorded: dict[str, Task] = {}
        for prompt_id, task in tasks.items():
            try:
                answers[prompt_id] = find(task, records)
            except NoRecord:
                unrecorded[prompt_id] = task
        scripts = {prompt_id: render(answer) for prompt_id, answer in answers.items()}
        borrowed = tuple(prompt_id for prompt_id, answer in answers.items() if answer.key != answer.task.key)
        unattained = tuple(prompt_id for prompt_id, answer in answers.items() if not answer.attained)
        return cls(scripts, borrowed, unattained, unrecorded)

    def write(self, folder: Path) -> None:
        """Write each script as ``ID.py``; the folder is created if missing, other files in it are left alone."""
        folder.mkdir(parents=True, exist_ok=True)
        for prompt_id, text in self.scripts.items():
            write_text(folder / f"{prompt_id}.py", text)

    def differences(self, folder: Path) -> list[str]:
        """How the files of ``folder`` differ from these scripts, a line per file; empty when they are the same."""
        lines = []
        for prompt_id, text in self.scripts.items():
            path = folder / f"{prompt_id}.py"
            if not path.is_file():
                lines.append(f"{path} is missing")
            elif path.read_bytes() != text.encode():
                lines.append(f"{path} differs from what golden gives")
        orphans = [folder / f"{prompt_id}.py" for prompt_id in self.unrecorded]
        return lines + [f"{path} has no golden record" for path in orphans if path.exists()]
