"""``diffaccel golden show|diff|merge|prune``: what they print, write and refuse."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from entries import ENVIRONMENT, MET
from hypothesis import given
from hypothesis import strategies as st

from pytest_diffaccel.cli.main import main
from pytest_diffaccel.matrix import PIPES, SCHEDULERS, STEPS, TARGETS, Cell, cells
from pytest_diffaccel.records.environment import Environment
from pytest_diffaccel.records.found_out import QualityScale
from pytest_diffaccel.records.golden import GoldenEntry
from pytest_diffaccel.records.golden_changes import CATEGORIES, categories, golden_changes, merged
from pytest_diffaccel.records.golden_file import Golden, read_environments, read_golden, write_golden
from pytest_diffaccel.records.golden_key import ACCELERATORS, GoldenKey
from pytest_diffaccel.records.golden_parts import GoldenMetric

ELSEWHERE = replace(ENVIRONMENT, device="another CPU (2 cores)")
MEASURED = replace(MET, environment=ENVIRONMENT.id)
Entries = Mapping[GoldenKey, GoldenEntry]


def key(target: float = 1.5, accelerator: str = "DeepCache", steps: int = 20) -> GoldenKey:
    return GoldenKey(Cell("SD1.5", "DDIM", steps), accelerator, target)


def write(path: Path, entries: Entries, *environments: Environment) -> Path:
    path.parent.mkdir(exist_ok=True)
    write_golden(path, entries, {one.id: one for one in environments})
    return path


def faster(entry: GoldenEntry) -> GoldenEntry:
    return replace(entry, speedup=2.0, speedup_ci95=(1.9, 2.1))


def worse(entry: GoldenEntry) -> GoldenEntry:
    return replace(entry, lpips=0.1, lpips_ci95=(0.09, 0.11))


keys = st.builds(
    GoldenKey,
    st.sampled_from(cells(PIPES, SCHEDULERS, STEPS)),
    st.sampled_from(ACCELERATORS),
    st.sampled_from(TARGETS),
)
entries = st.builds(
    lambda speedup, width, environment: replace(
        MET, speedup=speedup, speedup_ci95=(speedup - width, speedup + width), environment=environment
    ),
    st.floats(1, 5).map(lambda value: round(value, 4)),
    st.sampled_from([0.125, 0.5]),
    st.sampled_from([ENVIRONMENT.id, ELSEWHERE.id]),
).map(GoldenEntry.rounded)
databases = st.dictionaries(keys, entries, max_size=6)


def golden(of: Entries) -> Golden:
    return Golden(Path("golden.json"), of, {ENVIRONMENT.id: ENVIRONMENT, ELSEWHERE.id: ELSEWHERE})


# Differences


@given(databases)
def test_a_database_does_not_differ_from_itself(database: Entries) -> None:
    assert golden_changes(database, dict(reversed(list(database.items())))) == []


@given(databases, databases)
def test_every_change_has_a_category_and_mirrors(before: Entries, after: Entries) -> None:
    mirror = {"new": "gone", "gone": "new", "faster": "slower", "slower": "faster", "better": "worse"}
    there, back = golden_changes(before, after), golden_changes(after, before)
    assert [change.key for change in there] == [change.key for change in back]
    for one, other in zip(there, back, strict=True):
        assert categories(one)
        assert set(categories(one)) <= set(CATEGORIES)
        assert tuple(mirror.get(name, name) for name in categories(one)) == categories(other)
    differing = {name for name in {*before, *after} if before.get(name) != after.get(name)}
    assert {change.key for change in there} <= differing


def test_diff_sorts_changes_into_categories(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = {key(target): MEASURED for target in (1.2, 1.5, 1.8, 2.0, 2.5)}
    new = {
        key(1.5): faster(worse(MEASURED)),
        key(1.8): replace(MEASURED, environment=ELSEWHERE.id),
        key(2.0): replace(MEASURED, params={"DeepCache": {"cache_interval": 3, "cache_branch_id": 1}}),
        key(2.5): replace(MEASURED, speedup=1.68),  # within the interval: the same
        key(3.0): MEASURED,
    }
    before = write(tmp_path / "a" / "golden.json", old, ENVIRONMENT)
    after = write(tmp_path / "b" / "golden.json", new, ENVIRONMENT, ELSEWHERE)
    assert main(["golden", "diff", str(before), str(after)]) == 1
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    headings = [line for line in lines if line.partition(":")[0] in CATEGORIES]
    assert headings == [
        "worse: 1",
        "faster: 1",
        "new: 1",
        "gone: 1",
        "moved to another environment: 1",
        "other parameters or status: 1",
    ]
    both = "speedup 1.67 [1.65, 1.69] -> 2 [1.9, 2.1], lpips 0.041 [0.036, 0.047] -> 0.1 [0.09, 0.11]"
    for category in ("worse", "faster"):
        assert lines[lines.index(f"{category}: 1") + 1] == f"  SD1.5 DDIM 20 steps, DeepCache, 1.5x: {both}"
    assert "  SD1.5 DDIM 20 steps, DeepCache, 1.8x: the same choice" in lines
    assert "  SD1.5 DDIM 20 steps, DeepCache, 2x: cache_interval 2 -> 3, cache_branch_id 0 -> 1" in lines
    moved = (
        f"moved 1 from environment {ENVIRONMENT.id} to {ELSEWHERE.id}: device a CPU (4 cores) -> another CPU (2 cores)"
    )
    assert lines[-2:] == [moved, "5 keys differ, 1 says the same"]


def test_diff_names_what_decided(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Else a record that differs in that alone would look the same."""
    by_psnr = replace(MEASURED, quality="psnr", metrics={"psnr": GoldenMetric(20.1626, (4.58, 35.74))})
    by_mean = replace(by_psnr, rule="diffbench")
    before = write(tmp_path / "a" / "golden.json", {key(1.5): by_psnr, key(2.0): by_psnr}, ENVIRONMENT)
    after = write(tmp_path / "b" / "golden.json", {key(1.5): MEASURED, key(2.0): by_mean}, ENVIRONMENT)
    assert main(["golden", "diff", str(before), str(after)]) == 1
    said = capsys.readouterr().out
    assert "DeepCache, 1.5x: quality psnr -> lpips\n" in said
    assert "DeepCache, 2x: rule ours -> diffbench\n" in said
    # Worse and better are by LPIPS, which all records have.
    assert main(["compare", str(before), str(after)]) == 0
    assert "worse and better are by LPIPS; psnr decided some of these records" in capsys.readouterr().out


def test_diff_of_equal_files_is_silent_success(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path / "golden.json", {key(): MEASURED})
    assert main(["golden", "diff", str(file), str(file)]) == 0
    assert capsys.readouterr().out == "no difference: 1 key says the same\n"


def test_long_categories_are_counted_unless_all_is_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = write(tmp_path / "empty.json", {})
    names = [key(target, name) for target in TARGETS for name in ACCELERATORS[:2]]
    full = write(tmp_path / "full.json", dict.fromkeys(names, MEASURED))
    assert main(["golden", "diff", str(empty), str(full)]) == 1
    short = capsys.readouterr().out
    assert (short.count("SD1.5 DDIM"), "and 4 more (--all)" in short) == (10, True)
    assert main(["golden", "diff", "--all", str(empty), str(full)]) == 1
    assert capsys.readouterr().out.count("SD1.5 DDIM") == 14


def test_a_missing_file_is_not_an_empty_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path / "golden.json", {key(): MEASURED})
    for command in (["diff", str(file), "gone.json"], ["merge", str(file), "gone.json", "-o", "x.json"]):
        assert main(["golden", *command]) == 2
        assert "there is no golden file gone.json" in capsys.readouterr().err


# Merging


@given(databases, databases, databases)
def test_merging_is_associative_with_a_preference(one: Entries, two: Entries, three: Entries) -> None:
    for prefer in ("first", "last"):
        left = merged([golden(merged([golden(one), golden(two)], prefer).entries), golden(three)], prefer)
        right = merged([golden(one), golden(merged([golden(two), golden(three)], prefer).entries)], prefer)
        assert left.entries == right.entries == merged([golden(one), golden(two), golden(three)], prefer).entries


@given(databases)
def test_merging_is_idempotent_and_the_empty_database_is_neutral(database: Entries) -> None:
    for others in ([database], [{}], [database, {}, database]):
        result = merged([golden(database), *map(golden, others)])
        assert (result.entries, result.conflicts) == (database, ())


@given(databases, databases)
def test_disjoint_databases_need_no_preference_and_no_order(one: Entries, two: Entries) -> None:
    rest = {name: entry for name, entry in two.items() if name not in one}
    result = merged([golden(one), golden(rest)])
    assert result.entries == {**one, **rest} == merged([golden(rest), golden(one)]).entries


def test_merge_writes_one_file_with_all_environments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    here = write(tmp_path / "a" / "golden.json", {key(1.5): MEASURED}, ENVIRONMENT)
    moved = replace(MEASURED, environment=ELSEWHERE.id)
    scaled = replace(ELSEWHERE, scale=QualityScale(0.0, 0.001, 0.002, 0.5))
    there = write(tmp_path / "b" / "golden.json", {key(1.2): moved}, scaled)
    out = tmp_path / "c" / "all.json"
    assert main(["golden", "merge", str(here), str(there), "-o", str(out)]) == 0
    assert capsys.readouterr() == (f"{out}: 2 keys of 2 files\n", "")
    assert list(read_golden(out).items()) == [(key(1.2), moved), (key(1.5), MEASURED)]
    assert read_environments(out) == {ENVIRONMENT.id: ENVIRONMENT, ELSEWHERE.id: ELSEWHERE}
    assert read_environments(out)[ELSEWHERE.id].scale == scaled.scale


@pytest.mark.parametrize(("prefer", "speedup"), [("first", 1.67), ("last", 2.0)])
def test_conflicts_are_refused_unless_one_is_preferred(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], prefer: str, speedup: float
) -> None:
    old = write(tmp_path / "old.json", {key(): MEASURED, key(3.0): MEASURED})
    new = write(tmp_path / "new.json", {key(): faster(MEASURED), key(3.0): MEASURED})
    content = old.read_bytes()
    command = ["golden", "merge", str(old), str(new), "-o", str(old)]
    assert main(command) == 2
    said = capsys.readouterr().err
    assert f"unequal records of {key()}: choose with --prefer first or --prefer last" in said
    assert old.read_bytes() == content
    assert main([*command, "--prefer", prefer]) == 0
    said = capsys.readouterr()
    assert said.out == f"{old}: 2 keys of 2 files, 1 of them chosen by --prefer {prefer}\n"
    assert f"no environments.json spells out {ENVIRONMENT.id}" in said.err
    assert read_golden(old)[key()].speedup == speedup


def test_merge_never_loses_what_stands_at_its_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = (write(tmp_path / f"{name}.json", {key(): MEASURED}) for name in ("one", "other"))
    assert main(["golden", "merge", str(one), "-o", str(other)]) == 2
    assert "exists: name it among the files to merge" in capsys.readouterr().err


# Pruning and showing


def test_prune_removes_what_no_search_can_find(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stay = {key(): MEASURED, key(1.5, "DeepCache", steps=30): MEASURED, key(1.5, "Mine"): MEASURED}
    file = write(tmp_path / "golden.json", {**stay, key(9.0): MEASURED, key(1.2, "Gone"): MEASURED})
    content = file.read_bytes()
    assert main(["golden", "prune", str(file), "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(", cache_interval=")[0] for line in lines] == [
        f"pruned: {key(9.0)}: met, speedup 1.67, lpips 0.041",
        f"pruned: {key(1.2, 'Gone')}: met, speedup 1.67, lpips 0.041",
        f"pruned: {key(1.5, 'Mine')}: met, speedup 1.67, lpips 0.041",
        f"{file}: 3 keys would be removed, 2 stay",
        "if your conftest registers Gone or Mine, keep its keys with: --accelerator NAME",
    ]
    assert file.read_bytes() == content
    assert main(["golden", "prune", str(file), "--accelerator", "Mine", "--yes"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"{file}: 2 keys removed, 3 stay"
    assert read_golden(file) == stay


@pytest.mark.parametrize(("answer", "removed"), [("y", True), ("Yes ", True), ("", False), ("n", False)])
def test_prune_asks_before_it_removes_what_a_conftest_may_know(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    answer: str,
    removed: bool,
) -> None:
    file = write(tmp_path / "golden.json", {key(): MEASURED, key(1.2, "Mine"): MEASURED})
    asked: list[str] = []

    def respond(question: str) -> str:
        asked.append(capsys.readouterr().out)
        return answer

    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr("builtins.input", respond)
    assert main(["golden", "prune", str(file)]) == 0
    assert len(asked) == 1
    assert f"pruned: {key(1.2, 'Mine')}" in asked[0]
    assert (key(1.2, "Mine") in read_golden(file)) is not removed
    assert capsys.readouterr().out == (f"{file}: 1 key removed, 1 stays\n" if removed else f"{file}: nothing removed\n")


def test_prune_removes_nothing_of_a_conftest_where_nobody_can_be_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(tmp_path / "golden.json", {key(): MEASURED, key(9.0): MEASURED, key(1.2, "Mine"): MEASURED})
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: False))
    assert main(["golden", "prune", str(file)]) == 2
    assert "nothing removed: if your conftest registers Mine, keep its keys with" in capsys.readouterr().err
    assert len(read_golden(file)) == 3
    assert main(["golden", "prune", str(file), "--accelerator", "Mine"]) == 0
    assert read_golden(file).keys() == {key(), key(1.2, "Mine")}


def test_golden_show_is_show(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path / "golden.json", {key(): MEASURED}, ENVIRONMENT)
    assert main(["golden", "show", "--golden", str(file)]) == 0
    shown = capsys.readouterr().out
    assert main(["show", "--golden", str(file)]) == 0
    assert capsys.readouterr().out == shown
    assert "SD1.5 DDIM 20 steps (embedded stand-in, not SD1.5)" in shown


@pytest.mark.parametrize(
    "options",
    [
        ("--pipe", "sd15"),
        ("--pipe", "sd 1.5", "--sched", "ddim", "--steps", "20", "--target", "1.5x"),
        ("--search-targets", "deep cache", "--target", "1.5"),
    ],
)
def test_show_takes_names_as_people_spell_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...]
) -> None:
    other = replace(key(1.2, "ToMe"), cell=Cell("SDXL", "DPM-Solver++", 50))
    file = write(tmp_path / "golden.json", {key(1.5): MEASURED, other: MEASURED}, ENVIRONMENT)
    assert main(["show", "--golden", str(file), *options]) == 0
    shown = capsys.readouterr().out
    assert "SD1.5 DDIM 20 steps" in shown
    assert "SDXL" not in shown


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--pipe", "sd1.6"), "--pipe: no record of 'sd1.6' (did you mean SD1.5?); there are: SD1.5"),
        (("--pipe", "sd9"), "--pipe: no record of 'sd9'; there are: SD1.5"),
        (("--target", "7"), "--target: no record of 7.0; there are: 1.5"),
        (("--pipe", "sd15", "--steps", "25"), "--steps: no record of 25; there are: 20"),
    ],
)
def test_show_says_what_there_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], said: str
) -> None:
    file = write(tmp_path / "golden.json", {key(1.5): MEASURED}, ENVIRONMENT)
    assert main(["show", "--golden", str(file), *options]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("keys_shown", [1, 500])
def test_a_reader_that_has_seen_enough_is_no_error(tmp_path: Path, keys_shown: int) -> None:
    """As `diffaccel show | head` has: of a short table when it is at its end, of a long one in its middle."""
    file = write(tmp_path / "golden.json", {key(steps=steps): MEASURED for steps in range(1, keys_shown + 1)})
    command = [sys.executable, "-m", "pytest_diffaccel", "show", "--golden", str(file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as shown:
        assert shown.stdout is not None
        assert shown.stderr is not None
        shown.stdout.close()
        assert (shown.stderr.read(), shown.wait()) == ("", 141)


def test_a_command_without_standard_output_ends_as_with_one(tmp_path: Path) -> None:
    file = write(tmp_path / "golden.json", {key(): MEASURED})
    command = [sys.executable, "-m", "pytest_diffaccel", "show", "--golden", str(file)]
    closed = subprocess.run(["sh", "-c", '"$@" >&-', "sh", *command], check=False, capture_output=True, text=True)
    assert (closed.stderr, closed.returncode) == ("", 0)
