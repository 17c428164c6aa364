"""The golden database: strict reading, merging by key, and files that no kill, race or typo can damage."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import count, product
from pathlib import Path
from typing import Any, Literal

import pytest
from entries import MET
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pytest_diffaccel.matrix import PIPES, SCHEDULERS, STEPS, TARGETS, Cell, cells
from pytest_diffaccel.pipes import described
from pytest_diffaccel.records.environment import Environment
from pytest_diffaccel.records.found_out import QualityScale
from pytest_diffaccel.records.golden import GoldenEntry, dump_entries
from pytest_diffaccel.records.golden_file import merge, read_environments, read_golden
from pytest_diffaccel.records.golden_key import ACCELERATORS, GoldenKey
from pytest_diffaccel.records.golden_parts import FewerSteps, GoldenMetric
from pytest_diffaccel.records.jsonfile import JsonFileError

KEY = GoldenKey(Cell("SD1.5", "DDIM", 20), "DeepCache", 1.5)
NOTHING_MEASURED = GoldenEntry(
    status="unattainable",
    params={},
    speedup=None,
    speedup_ci95=None,
    wall_speedup=None,
    wall_speedup_ci95=None,
    lpips=None,
    lpips_ci95=None,
    num_samples=8,
    batch_size=4,
    environment="3f9c2ab01d7e",
    reason="speed",
)
CLIP = GoldenMetric(28.1, (27.9, 28.3), -0.01, (-0.02, 0.0))
FEWER_STEPS = FewerSteps(steps=11, speedup=1.69, lpips=0.062, lpips_ci95=(0.05, 0.074))
FILE = """\
{
  "('SD1.5', 'DDIM', 20, 'DeepCache', 1.5)": {
    "status": "met", "params": {"DeepCache": {"cache_interval": 2, "cache_branch_id": 0}},
    "speedup": 1.67, "speedup_ci95": [1.65, 1.69], "wall_speedup": 1.71, "wall_speedup_ci95": [1.6, 1.83],
    "lpips": 0.041, "lpips_ci95": [0.036, 0.047],
    "num_samples": 32, "batch_size": 8, "environment": "3f9c2ab01d7e"
  },
  "('SD1.5', 'DDIM', 20, 'DeepCache', 4.0)": {
    "status": "unattainable", "reason": "speed", "params": {},
    "speedup": null, "speedup_ci95": null, "wall_speedup": null, "wall_speedup_ci95": null,
    "lpips": null, "lpips_ci95": null,
    "num_samples": 8, "batch_size": 4, "environment": "3f9c2ab01d7e"
  }
}
"""
ENVIRONMENT = Environment(
    pipe="SD1.5",
    model_source="embedded stand-in, not SD1.5",
    weights={"unet": "a" * 64},
    device="a CPU (2 cores)",
    driver="",
    threads=2,
    versions={"torch": "2.14.1"},
    dtype="float32",
    image_size=(64, 64),
    batch_size=4,
    guidance_scale=5.0,
)

names = st.text(min_size=1, max_size=12)
keys = st.builds(
    GoldenKey,
    cell=st.builds(
        Cell,
        pipe=st.sampled_from(PIPES) | names,
        scheduler=st.sampled_from(SCHEDULERS) | names,
        steps=st.sampled_from(STEPS) | st.integers(1, 10_000),
    ),
    accelerator=st.sampled_from(ACCELERATORS) | names,
    target=st.sampled_from(TARGETS) | st.floats(0.001, 1e6),
)
figures = st.lists(st.floats(0, 1e4), min_size=3, max_size=3).map(sorted)
numbers = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
params = st.dictionaries(names, st.dictionaries(names, numbers), min_size=1)


@st.composite
def metrics(draw: st.DrawFn) -> GoldenMetric:
    value, change = draw(figures), draw(st.none() | figures)
    interval = (value[0], value[2]) if draw(st.booleans()) else None
    return GoldenMetric(value[1], interval, change and change[1], change and (change[0], change[2]))


@st.composite
def measured_entries(draw: st.DrawFn) -> GoldenEntry:
    speedup, wall, lpips = draw(figures), draw(figures), draw(figures)
    device = draw(st.none() | figures)
    reason: Literal["speed", "quality"] | None = draw(st.sampled_from([None, "speed", "quality"]))
    return GoldenEntry(
        status="unattainable" if reason else "met",
        reason=reason,
        params=draw(params),
        speedup=speedup[1],
        speedup_ci95=(speedup[0], speedup[2]),
        wall_speedup=wall[1],
        wall_speedup_ci95=(wall[0], wall[2]),
        lpips=lpips[1],
        lpips_ci95=(lpips[0], lpips[2]),
        num_samples=draw(st.integers(1, 10_000)),
        batch_size=draw(st.integers(1, 64)),
        environment=draw(st.text("0123456789abcdef", min_size=12, max_size=12)),
        device_speedup=device and device[1],
        device_speedup_ci95=device and (device[0], device[2]),
        decided_by=draw(st.sampled_from(["wall", "device"])) if device else "wall",
        metrics=draw(st.none() | st.dictionaries(names, metrics(), min_size=1, max_size=3)),
    )


entries = measured_entries() | st.just(NOTHING_MEASURED)
databases = st.dictionaries(keys, entries, max_size=6)
quick = settings(max_examples=20)


@pytest.fixture(scope="module")
def new_path(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    """Another folder for each example of a property."""
    base, numbers = tmp_path_factory.mktemp("golden"), count()
    return lambda: base / str(next(numbers)) / "search_params.json"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "golden" / "search_params.json"


# Keys


@given(keys)
@quick
def test_key_round_trip(key: GoldenKey) -> None:
    assert GoldenKey.parse(str(key)) == key


def test_key_is_the_tuples_text() -> None:
    assert str(KEY) == "('SD1.5', 'DDIM', 20, 'DeepCache', 1.5)"
    assert str(GoldenKey(Cell("SDXL", "DDIM", 20), "ToMe", 2)) == "('SDXL', 'DDIM', 20, 'ToMe', 2.0)"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "SD1.5",
        "('SD1.5', 'DDIM', 20, 'DeepCache')",
        "('SD1.5', 'DDIM', 20, 'DeepCache', 1.5, 1)",
        "['SD1.5', 'DDIM', 20, 'DeepCache', 1.5]",
        "('SD1.5', 'DDIM', '20', 'DeepCache', 1.5)",
        "('SD1.5', 'DDIM', True, 'DeepCache', 1.5)",
        "('SD1.5', 'DDIM', 20, 'DeepCache', 2)",
        "('SD1.5', 'DDIM', 0, 'DeepCache', 1.5)",
        "('', 'DDIM', 20, 'DeepCache', 1.5)",
        "('SD1.5', 'DDIM', 20, 'DeepCache', 1e999)",
        "('SD1.5', 'DDIM', 20, 'DeepCache', -1.5)",
        "('SD1.5','DDIM',20,'DeepCache',1.5)",
        "('SD1.5', 'DDIM', 20, 'DeepCache', 1.50)",
        '("SD1.5", "DDIM", 20, "DeepCache", 1.5)',
        "('SD1.5', 'DDIM', 20, __import__('os').name, 1.5)",
        "(" * 500,
        "(" * 100_000,
        "('SD1.5', 'DDIM', 20, 'DeepCache', 1.5)\0",
    ],
)
def test_key_parser_refuses(text: str) -> None:
    with pytest.raises(ValueError, match="golden key"):
        GoldenKey.parse(text)


def test_keys_are_in_prompt_order() -> None:
    expected = [
        GoldenKey(Cell(pipe, scheduler, steps), accelerator, target)
        for pipe in (*PIPES, "Other")
        for scheduler in (*SCHEDULERS, "Another")
        for steps in STEPS
        for accelerator in (*ACCELERATORS, "A user's", "Z")
        for target in TARGETS
    ]
    mixed = random.Random(0).sample(expected, len(expected))
    assert sorted(mixed, key=lambda key: key.prompt_order) == expected


# Entries


@given(entries)
@quick
def test_entry_round_trip(entry: GoldenEntry) -> None:
    assert GoldenEntry.from_json(entry.to_json()) == entry.rounded()
    assert entry.rounded().rounded() == entry.rounded()
    assert not entry.rounded().difference(entry.rounded())


def test_entry_is_rounded() -> None:
    entry = replace(MET, speedup=1.666666, lpips=0.0412345678, lpips_ci95=(-1e-9, 0.05))
    data = json.loads(entry.to_json())
    assert data["speedup"] == 1.6667
    assert data["lpips"] == 0.041235
    assert '"lpips_ci95": [0.0, 0.05]' in entry.to_json()


@pytest.mark.parametrize(
    "change",
    [
        {"status": "won"},
        {"params": {}},
        {"params": {"DeepCache": {"cache_interval": "2"}}},
        {"params": {"DeepCache": {"cache_interval": True}}},
        {"speedup": None},
        {"speedup": "1.67"},
        {"speedup": float("nan")},
        {"speedup": -1.0, "speedup_ci95": (-2.0, 3.0)},
        {"speedup_ci95": (1.7, 1.65)},
        {"speedup_ci95": (1.7, 1.8)},
        {"lpips_ci95": (0.03,)},
        {"num_samples": -1},
        {"batch_size": 0},
        {"environment": "3F9C2AB01D7E"},
        {"environment": "3f9c2ab01d7e\n"},
        {"reason": "speed"},
        {"status": "unattainable"},
        {"status": "unattainable", "reason": "luck"},
    ],
)
def test_entry_refuses(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        replace(MET, **change)


@pytest.mark.parametrize("change", [{"reason": "quality"}, {"params": MET.params}, {"lpips": 0.1}])
def test_entry_with_nothing_measured_refuses(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        replace(NOTHING_MEASURED, **change)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, ""),
        ({"speedup": 1.7, "speedup_ci95": (1.69, 1.71), "num_samples": 8}, ""),
        ({"wall_speedup": 9.0, "wall_speedup_ci95": (9.0, 9.0)}, ""),
        ({"speedup": 2.0, "speedup_ci95": (1.9, 2.1)}, "speedup 1.67 [1.65, 1.69] -> 2 [1.9, 2.1]"),
        ({"lpips": 0.1, "lpips_ci95": (0.09, 0.1)}, "lpips 0.041 [0.036, 0.047] -> 0.1 [0.09, 0.1]"),
        ({"metrics": {"clip_score": CLIP}}, "clip_score none -> 28.1"),
        ({"environment": "0" * 12}, "environment 3f9c2ab01d7e -> 000000000000"),
        ({"params": {"DeepCache": {"cache_interval": 3, "cache_branch_id": 0}}}, "cache_interval 2 -> 3"),
        (
            {"params": {"B": {"cache_interval": 2, "cache_branch_id": 0}}},
            "cache_interval=2, cache_branch_id=0 -> cache_",
        ),
        ({"quality_from": "\x1b[31mred\n"}, "quality from none -> \\x1b[31mred\\n"),
        ({"params": {"ToMe": {"ratio": 0.5}}}, "cache_interval=2, cache_branch_id=0 -> ratio=0.5"),
        ({"status": "unattainable", "reason": "quality"}, "met -> unattainable (quality)"),
    ],
)
def test_difference(change: dict[str, Any], words: str) -> None:
    found = MET.difference(replace(MET, **change))
    assert found.startswith(words)
    assert bool(found) == bool(words)


@pytest.mark.parametrize(
    ("after", "words"),
    [
        (None, ""),
        ({"clip_score": replace(CLIP, value=28.2)}, ""),
        ({"clip_score": replace(CLIP, value=20.0, ci95=(19.0, 21.0))}, "clip_score 28.1 [27.9, 28.3] -> 20 [19, 21]"),
        ({"psnr": GoldenMetric(30.0)}, "psnr none -> 30"),
    ],
)
def test_metrics_differ_where_both_sides_have_them(after: dict[str, GoldenMetric] | None, words: str) -> None:
    assert replace(MET, metrics={"clip_score": CLIP}).difference(replace(MET, metrics=after)) == words


def test_a_metric_outside_its_interval_is_refused() -> None:
    with pytest.raises(ValidationError):
        GoldenMetric(1.0, (2.0, 3.0))
    with pytest.raises(ValidationError):
        GoldenMetric(1.0, change=0.1)
    assert GoldenEntry.from_json(replace(MET, metrics={"clip_score": CLIP}).to_json()).metrics == {"clip_score": CLIP}


# Files


def test_file_is_as_the_design_shows(path: Path) -> None:
    merge(path, {replace(KEY, target=4.0): NOTHING_MEASURED, KEY: MET}, update=False)
    assert path.read_text(encoding="utf-8") == FILE


def test_no_file_is_an_empty_database(path: Path) -> None:
    assert read_golden(path) == {}
    assert merge(path, {}, update=True) == []
    assert not path.exists()


@given(databases)
@quick
def test_file_round_trip(new_path: Callable[[], Path], database: dict[GoldenKey, GoldenEntry]) -> None:
    path = new_path()
    merge(path, database, update=False)
    found = read_golden(path)
    assert found == {key: entry.rounded() for key, entry in database.items()}
    assert list(found) == sorted(database, key=lambda key: key.prompt_order)
    if database:
        text = path.read_bytes()
        assert json.loads(text).keys() == {str(key) for key in database}
        assert text.endswith(b"}\n")
        assert not text.endswith(b"\n\n")


@given(databases, st.booleans())
@quick
def test_merging_again_changes_nothing(
    new_path: Callable[[], Path], database: dict[GoldenKey, GoldenEntry], update: bool
) -> None:
    path = new_path()
    merge(path, database, update=update)
    before = path.read_bytes() if database else b""
    changes = merge(path, database, update=update)
    assert {change.kind for change in changes} <= {"unchanged"}
    assert len(changes) == len(database)
    assert (path.read_bytes() if database else b"") == before


@given(databases, databases)
@quick
def test_merging_disjoint_sets_in_any_order_is_the_same(
    new_path: Callable[[], Path], one: dict[GoldenKey, GoldenEntry], other: dict[GoldenKey, GoldenEntry]
) -> None:
    other = {key: entry for key, entry in other.items() if key not in one}
    path, swapped = new_path(), new_path()
    for database in (one, other):
        merge(path, database, update=False)
    for database in (other, one):
        merge(swapped, database, update=False)
    assert read_golden(path) == read_golden(swapped)
    if one or other:
        assert path.read_bytes() == swapped.read_bytes()


@given(databases, databases, st.booleans())
@quick
def test_merging_never_loses_a_key(
    new_path: Callable[[], Path],
    one: dict[GoldenKey, GoldenEntry],
    other: dict[GoldenKey, GoldenEntry],
    update: bool,
) -> None:
    path = new_path()
    merge(path, one, update=False)
    changes = merge(path, other, update=update)
    found = read_golden(path)
    assert found.keys() == one.keys() | other.keys()
    assert {change.key for change in changes} == other.keys()
    for change in changes:
        written = change.kind in ("new", "updated")
        assert found[change.key] == (change.after if written else change.before)
        assert "\n" not in change.describe()
    if not update:
        assert all(found[key] == entry.rounded() for key, entry in one.items())


def test_only_update_overwrites_what_differs(path: Path) -> None:
    merge(path, {KEY: MET}, update=False)
    before = path.read_bytes()
    faster = replace(MET, speedup=2.0, speedup_ci95=(1.9, 2.1))
    (shown,) = merge(path, {KEY: faster}, update=False)
    assert (shown.kind, path.read_bytes()) == ("differs", before)
    assert shown.describe() == f"differs: {KEY}: speedup 1.67 [1.65, 1.69] -> 2 [1.9, 2.1]"
    (written,) = merge(path, {KEY: faster}, update=True)
    assert written.kind == "updated"
    assert read_golden(path) == {KEY: faster}


def test_an_overlapping_repetition_leaves_the_file_byte_identical(path: Path) -> None:
    path.parent.mkdir()
    by_hand = json.dumps(json.loads(FILE)).encode()  # valid, if not as we would write it
    path.write_bytes(by_hand)
    repeated = replace(MET, speedup=1.66, speedup_ci95=(1.64, 1.68), num_samples=64)
    (change,) = merge(path, {KEY: repeated}, update=True)
    assert change.kind == "unchanged"
    assert path.read_bytes() == by_hand


def test_only_prune_deletes(path: Path) -> None:
    kept, gone = replace(KEY, target=2.0), replace(KEY, target=3.0)
    merge(path, {KEY: MET, kept: MET, gone: MET}, update=False)
    changes = merge(path, {KEY: MET}, update=False, prune=[KEY, gone, replace(KEY, cell=replace(KEY.cell, steps=50))])
    assert [(change.key, change.kind) for change in changes] == [(KEY, "unchanged"), (gone, "pruned")]
    assert changes[1].describe().startswith(f"pruned: {gone}: met, speedup 1.67")
    assert list(read_golden(path)) == [KEY, kept]


def test_what_is_undecided_now_is_unattainable_no_more(path: Path) -> None:
    """Where records are rewritten; a winner stays, whatever a noisy search makes of it."""
    out_of_reach = replace(KEY, target=4.0)
    merge(path, {KEY: MET, out_of_reach: NOTHING_MEASURED}, update=False)
    assert merge(path, {}, update=False, undecided=[KEY, out_of_reach]) == []
    (change,) = merge(path, {}, update=True, undecided=[KEY, out_of_reach, replace(KEY, target=3.0)])
    assert (change.key, change.kind) == (out_of_reach, "pruned")
    assert list(read_golden(path)) == [KEY]


@pytest.mark.parametrize(
    ("old", "new", "line", "reason"),
    [
        ("1.67,", "1.67", 4, "not JSON: Expecting ',' delimiter"),
        ('"met"', '"won"', 3, "status: Input should be 'met' or 'unattainable'"),
        ("1.67", '"1.67"', 4, "speedup: Input should be a valid number"),
        ("[0.036, 0.047]", "[0.036]", 5, "lpips_ci95"),
        ("0.041", "NaN", 2, "NaN"),
        ('"batch_size": 8, ', "", 2, "batch_size: Field required"),
        ('"batch_size": 8', '"batch_size": 8, "batch_size": 4', 2, "twice"),
        ('"batch_size": 8', '"batch_size": 8, "steps": 4', 6, "steps: Unexpected"),
        ("'DeepCache', 4.0", "'DeepCache', 1.5", 8, "is there twice"),
        ("'DeepCache', 4.0", "'DeepCache', 4", 8, "not a golden key"),
        ("[1.65, 1.69]", "[1.69, 1.65]", 2, "outside its own interval"),
        ("{\n  \"('SD1.5', 'DDIM', 20, 'DeepCache', 1", "<<<<<<< ours\n{", 1, "not JSON"),
    ],
)
def test_a_wrong_file_is_refused_with_its_line(path: Path, old: str, new: str, line: int, reason: str) -> None:
    assert old in FILE
    text = FILE.replace(old, new, 1)
    path.parent.mkdir()
    path.write_text(text, encoding="utf-8")
    with pytest.raises(JsonFileError) as caught:
        merge(path, {replace(KEY, cell=replace(KEY.cell, steps=50)): MET}, update=True)
    assert caught.value.path == path
    assert caught.value.line == line
    assert reason in caught.value.reason
    assert str(caught.value).startswith(f"{path}:{line}: ")
    assert path.read_text(encoding="utf-8") == text


@pytest.mark.parametrize(
    "data",
    [b"", b"\n", b"[]", b"null", b'"{}"', b"{}{}", b"{}\xff", b"[" * 100_000, b"9" * 9999],
    ids=["empty", "blank", "list", "null", "text", "two", "not-utf8", "deep", "long"],
)
def test_what_is_no_object_is_refused(path: Path, data: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(data)
    with pytest.raises(JsonFileError):
        merge(path, {KEY: MET}, update=True)
    assert path.read_bytes() == data


@given(st.integers(0, len(FILE) - 2))
@settings(max_examples=40)
def test_a_truncated_file_is_refused_and_left_alone(new_path: Callable[[], Path], length: int) -> None:
    path = new_path()
    path.parent.mkdir()
    path.write_text(FILE[:length], encoding="utf-8")
    with pytest.raises(JsonFileError):
        merge(path, {KEY: MET}, update=True, prune=[KEY])
    assert path.read_text(encoding="utf-8") == FILE[:length]


@given(st.integers(0, len(FILE) - 1), st.characters(codec="utf-8"))
@settings(max_examples=60)
def test_a_corrupted_file_is_refused_or_still_a_database(
    new_path: Callable[[], Path], place: int, character: str
) -> None:
    path = new_path()
    path.parent.mkdir()
    data = (FILE[:place] + character + FILE[place + 1 :]).encode()
    path.write_bytes(data)
    try:
        found = read_golden(path)
    except JsonFileError:
        with pytest.raises(JsonFileError):
            merge(path, {KEY: MET}, update=True)
        assert path.read_bytes() == data
    else:
        assert len(found) == 2


def test_a_link_stays_a_link_and_the_mode_stays(path: Path, tmp_path: Path) -> None:
    target = tmp_path / "real.json"
    target.write_text(FILE, encoding="utf-8")
    target.chmod(0o640)
    path.parent.mkdir()
    path.symlink_to(target)
    merge(path, {replace(KEY, cell=replace(KEY.cell, steps=50)): MET}, update=False)
    assert path.is_symlink()
    assert len(read_golden(target)) == 3
    assert target.stat().st_mode & 0o777 == 0o640


# Environments


def test_environments_that_entries_name_are_spelled_out(path: Path) -> None:
    unused = replace(ENVIRONMENT, threads=64)
    found = {environment.id: environment for environment in (ENVIRONMENT, unused)}
    merge(path, {KEY: replace(MET, environment=ENVIRONMENT.id)}, update=False, environments=found)
    assert read_environments(path) == {ENVIRONMENT.id: ENVIRONMENT}
    later = replace(ENVIRONMENT, dtype="float16")
    entry = replace(MET, environment=later.id)
    merge(path, {KEY: entry}, update=True, environments={later.id: later})
    kept = read_environments(path)
    assert kept == {environment.id: environment for environment in (ENVIRONMENT, later)}
    assert list(kept) == sorted(kept)
    before = (path.parent / "environments.json").read_bytes()
    merge(path, {KEY: entry}, update=True, environments={later.id: later})
    assert (path.parent / "environments.json").read_bytes() == before


def test_what_is_learnt_of_an_environment_is_added_and_stays(path: Path) -> None:
    entry = replace(MET, environment=ENVIRONMENT.id)
    merge(path, {KEY: entry}, update=False, environments={ENVIRONMENT.id: ENVIRONMENT})
    assert read_environments(path)[ENVIRONMENT.id].scale is None
    scaled = replace(ENVIRONMENT, scale=QualityScale(repeat=0.0, batch=0.001, one_ulp=0.002, unrelated=0.5))
    assert scaled.id == ENVIRONMENT.id
    for environment in (scaled, ENVIRONMENT):
        merge(path, {KEY: entry}, update=False, environments={environment.id: environment})
        assert read_environments(path)[ENVIRONMENT.id].scale == scaled.scale


def test_golden_files_of_a_folder_share_their_environments(path: Path) -> None:
    for number, name in enumerate(("search_params.json", "NVIDIA H200.search_params.json"), start=1):
        environment = replace(ENVIRONMENT, threads=number)
        entry = replace(MET, environment=environment.id)
        merge(path.with_name(name), {KEY: entry}, update=False, environments={environment.id: environment})
    assert len(read_environments(path)) == 2


@pytest.mark.parametrize(
    ("old", "new"), [('"threads": 2', '"threads": 3'), ('"threads": 2', '"threads": '), ("{", "[")]
)
def test_wrong_environments_are_refused_and_nothing_is_written(path: Path, old: str, new: str) -> None:
    environments = {ENVIRONMENT.id: ENVIRONMENT}
    merge(path, {KEY: replace(MET, environment=ENVIRONMENT.id)}, update=False, environments=environments)
    file = path.parent / "environments.json"
    file.write_text(file.read_text().replace(old, new, 1))
    before = file.read_bytes(), path.read_bytes()
    with pytest.raises(JsonFileError, match=r"environments\.json:"):
        merge(path, {replace(KEY, cell=replace(KEY.cell, steps=50)): MET}, update=True, environments=environments)
    assert (file.read_bytes(), path.read_bytes()) == before


# Processes

WRITER = textwrap.dedent(
    """
    import sys
    from dataclasses import replace
    from pathlib import Path
    from pytest_diffaccel.records.golden import GoldenEntry
    from pytest_diffaccel.matrix import Cell
    from pytest_diffaccel.records.golden_key import GoldenKey
    from pytest_diffaccel.records.golden_file import merge

    path, entry, first, count = Path(sys.argv[1]), GoldenEntry.from_json(sys.argv[2]), *map(int, sys.argv[3:])
    for steps in range(first, first + count):
        merge(path, {GoldenKey(Cell("SD1.5", "DDIM", steps), "DeepCache", 1.5): entry}, update=True)
        print(steps, flush=True)
    """
)


def start_writer(path: Path, first: int, count: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, str(path), MET.to_json(), str(first), str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_concurrent_merges_lose_nothing(path: Path) -> None:
    writers = [start_writer(path, first, 15) for first in (100, 200, 300)]
    assert [writer.wait(600) for writer in writers] == [0, 0, 0]
    for writer in writers:
        writer.communicate()
    expected = {first + number for first in (100, 200, 300) for number in range(15)}
    assert {key.cell.steps for key in read_golden(path)} == expected


def test_a_killed_writer_leaves_a_whole_file(path: Path) -> None:
    moments = random.Random(1)
    confirmed: set[int] = set()
    for first in (1000, 2000, 3000):
        writer = start_writer(path, first, 999)
        assert writer.stdout is not None
        confirmed.add(int(writer.stdout.readline()))
        time.sleep(moments.uniform(0, 0.05))
        writer.kill()
        confirmed |= {int(line) for line in writer.communicate()[0].splitlines()}
        assert {key.cell.steps for key in read_golden(path)} >= confirmed
    merge(path, {KEY: MET}, update=False)  # and no dead writer holds the lock
    assert KEY in read_golden(path)


def test_a_temporary_file_left_by_a_kill_is_harmless(path: Path) -> None:
    merge(path, {KEY: MET}, update=False)
    left = path.with_name(".search_params.json.tmp")
    left.write_text(dump_entries({KEY: MET})[:50], encoding="utf-8")
    assert read_golden(path) == {KEY: MET}
    merge(path, {replace(KEY, cell=replace(KEY.cell, steps=50)): MET}, update=False)
    assert len(read_golden(path)) == 2
    assert not left.exists()


# --- two clocks --------------------------------------------------------------------------------------------------


def test_device_time_is_recorded_whole_or_not_at_all() -> None:
    both = replace(MET, device_speedup=2.1, device_speedup_ci95=(2.0, 2.2))
    assert "device_speedup" not in MET.to_json()
    assert '"device_speedup": 2.1, "device_speedup_ci95": [2.0, 2.2]' in both.to_json()
    assert '"decided_by": "device"' in replace(both, decided_by="device").to_json()
    with pytest.raises(ValueError, match="go together"):
        replace(both, device_speedup_ci95=None)
    with pytest.raises(ValueError, match="what device time decided has a device_speedup"):
        replace(MET, decided_by="device")
    with pytest.raises(ValueError, match="outside its own interval"):
        replace(both, device_speedup=2.3)


def test_a_speedup_by_another_clock_is_another_record() -> None:
    both = replace(MET, device_speedup=2.1, device_speedup_ci95=(2.0, 2.2))
    faster = replace(both, device_speedup=2.4, device_speedup_ci95=(2.3, 2.5), decided_by="device")
    assert both.differences(faster) == [
        "decided by wall -> device",
        "device speedup 2.1 [2, 2.2] -> 2.4 [2.3, 2.5]",
    ]
    assert MET.differences(both) == ["device speedup none -> 2.1 [2, 2.2]"]
    assert both.differences(MET) == []  # a container that refuses to tell it


# --- the rival: fewer steps ------------------------------------------------------------------------------------


def test_an_entry_says_whether_it_beats_fewer_steps() -> None:
    better, worse = replace(MET, fewer_steps=FEWER_STEPS), replace(MET, lpips=0.07, lpips_ci95=(0.06, 0.08))
    assert better.beats_fewer_steps is True
    assert replace(worse, fewer_steps=FEWER_STEPS).beats_fewer_steps is False
    assert MET.beats_fewer_steps is None


def test_fewer_steps_are_written_and_read_back() -> None:
    entry = replace(MET, fewer_steps=FEWER_STEPS)
    assert GoldenEntry.from_json(entry.to_json()) == entry
    assert '"fewer_steps": {"steps": 11, "speedup": 1.69, "lpips": 0.062' in entry.to_json()
    assert '"beats_fewer_steps": true' in entry.to_json()


def test_the_loss_on_which_a_winner_was_chosen_stands_beside_its_own() -> None:
    entry = replace(MET, selection_lpips=0.0312345678)
    assert '"lpips_ci95": [0.036, 0.047], "selection_lpips": 0.031235' in entry.to_json()
    assert GoldenEntry.from_json(entry.to_json()) == entry.rounded()
    assert "selection_lpips" not in MET.to_json()
    with pytest.raises(ValueError, match="selection_lpips"):
        replace(NOTHING_MEASURED, selection_lpips=0.1)


@pytest.mark.parametrize("lie", [{"beats_fewer_steps": False, "fewer_steps": FEWER_STEPS}, {"beats_fewer_steps": True}])
def test_a_claim_about_fewer_steps_that_the_figures_deny_is_refused(lie: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="fewer_steps"):
        replace(MET, **lie)


def test_basis_and_quality_source_are_kept_off_the_file_when_default() -> None:
    plain = MET
    assert "basis" not in plain.to_json()
    assert "quality_from" not in plain.to_json()
    predicted = replace(plain, basis="predicted", quality_from="embedded SD1.5-DDIM-20")
    assert '"basis": "predicted", "quality_from": "embedded SD1.5-DDIM-20"' in predicted.to_json()
    assert GoldenEntry.from_json(predicted.to_json()) == predicted
    assert GoldenEntry.from_json(plain.to_json()).basis == "measured"


@pytest.mark.parametrize("change", [{"basis": "guessed"}, {"quality_from": ""}])
def test_unknown_basis_and_empty_quality_source_are_refused(change: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        replace(MET, **change)


def test_a_prediction_that_was_measured_is_a_difference() -> None:
    predicted = replace(MET, basis="predicted")
    assert "basis predicted -> measured" in predicted.difference(MET)


def test_the_golden_file_of_the_h200_says_what_each_record_stands_on() -> None:
    path = Path(__file__).resolve().parent.parent / "golden" / "nvidia-h200.search_params.json"
    entries, environments = read_golden(path), read_environments(path)
    # Of FLUX.1's caches those that do not decide by the picture: the pictures of random weights say nothing.
    flux = cells(["FLUX.1"], described("FLUX.1").schedulers, described("FLUX.1").steps)
    groups = [*product(cells(PIPES, SCHEDULERS, STEPS), ACCELERATORS), *product(flux, ["TaylorSeer", "MagCache"])]
    # Targets of which it is not known whether they are reached are not in it.
    assert set(entries) <= {GoldenKey(*group, target) for group in groups for target in TARGETS}
    assert {(key.cell, key.accelerator) for key in entries} == set(groups)
    assert {entry.basis for entry in entries.values()} == {"measured", "predicted"}
    assert {key.cell.steps for key, entry in entries.items() if entry.basis == "measured"} == {*STEPS, 28}
    for key, entry in entries.items():
        assert (entry.quality_from or "").startswith(f"embedded {key.cell.pipe}-")
        assert "architecture only" in environments[entry.environment].model_source
