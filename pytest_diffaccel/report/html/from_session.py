"""The report of a search that just ended, as ``--diffaccel-report`` asks for it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pytest_diffaccel.accelerators.registry import Registry
from pytest_diffaccel.records.golden_file import Change, Golden
from pytest_diffaccel.records.images import ImageStore
from pytest_diffaccel.records.store import Store
from pytest_diffaccel.records.tables import StoreError
from pytest_diffaccel.report.html.content.material import Material
from pytest_diffaccel.report.html.content.prompt_texts import Prompts
from pytest_diffaccel.report.html.page import path_and_size, write_report
from pytest_diffaccel.settings.search_settings import Settings
from pytest_diffaccel.settings.work_folder import WORK


def write_session_report(
    path: Path, settings: Settings, registry: Registry, changes: Sequence[Change], command: str
) -> str:
    """Write the report of a search's cells; whatever goes wrong, the search's own results are safe.

    Args:
        path: the HTML file.
        settings: the search's.
        registry: its accelerators.
        changes: what it did to golden.
        command: how it was started.

    Returns:
        A line that says where the report is, or why it is not.
    """
    try:
        write_report(path, _material(settings, registry, changes, command))
    except (OSError, ValueError, StoreError, ImportError) as error:
        return f"report: {path} could not be written: {error}"
    return f"report: {path_and_size(path)}"


def _material(settings: Settings, registry: Registry, changes: Sequence[Change], command: str) -> Material:
    with Store.open(settings.store) as store:
        contents = store.contents()
    return Material(
        contents=contents,
        registry=registry,
        quality=settings.quality.rule,
        golden=Golden.read(settings.golden),
        images=ImageStore(WORK.images),
        logs=WORK.logs,
        prompts=Prompts(settings.prompts),
        command=command,
        changes=tuple(changes),
        wanted=lambda cell: cell in settings.cells,
    )
