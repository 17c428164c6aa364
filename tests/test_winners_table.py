"""The table of winners on a terminal."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from entries import ENVIRONMENT, MET

from pytest_diffaccel.accelerators.registry import default_registry
from pytest_diffaccel.matrix import Cell
from pytest_diffaccel.records.found_out import QualityScale
from pytest_diffaccel.records.golden_file import Change
from pytest_diffaccel.records.golden_key import GoldenKey
from pytest_diffaccel.records.golden_parts import FewerSteps, GoldenMetric
from pytest_diffaccel.report.golden_differences import changes_text
from pytest_diffaccel.report.next_steps import announcement, finer_text, next_steps
from pytest_diffaccel.report.winners import winners_table
from pytest_diffaccel.settings.options import add_options
from pytest_diffaccel.settings.search_settings import Settings

FINER = {"DeepCache": {"cache_interval": 4, "cache_branch_id": 1}}


def key(target: float) -> GoldenKey:
    return GoldenKey(Cell("SD1.5", "DDIM", 20), "DeepCache", target)


def test_each_reason_has_a_row_of_its_own() -> None:
    slow, lossy = (replace(MET, status="unattainable", reason=reason) for reason in ("speed", "quality"))
    entries = {key(1.5): MET, key(1.8): MET, key(2.5): lossy, key(3.0): slow, key(4.0): slow}
    lines = winners_table(entries, {}, 80)
    assert [line.strip() for line in lines if line.startswith("  ") and line.strip()[0].isdigit()] == [
        "1.5-1.8x  1.67x [1.65, 1.69]  0.041 [0.036, 0.047]  -",
        "2.5x",
        "3-4x",
    ]
    text = " ".join(" ".join(lines).split())
    best = "best reached: 1.67x at LPIPS 0.041, by cache_interval=2, cache_branch_id=0"
    assert f"2.5x unattainable: the fast ones lose too much quality; {best} 3-4x" in text
    assert text.endswith(f"unattainable: no candidate is surely fast enough; {best}")


def test_the_table_fits_80_columns() -> None:
    """With the longest names, parameters and targets, every figure in its column and whole."""
    triple = "DeepCache, T-Gate, and ToMe"
    params = {
        "DeepCache": {"cache_interval": 10, "cache_branch_id": 0},
        "T-Gate": {"gate_step": 12, "sp_interval": 3, "fi_interval": 1, "warm_up": 2},
        "ToMe": {"ratio": 0.75, "max_downsample": 8},
    }
    device = {"device_speedup": 2.1, "device_speedup_ci95": (2.0, 2.2), "decided_by": "device"}
    rival = {"fewer_steps": FewerSteps(12, 1.52, 0.036, (0.03, 0.04)), "beats_fewer_steps": False}
    entry = replace(MET, params=params, **device, **rival)
    cell = Cell("SDXL", "UniPCMultistepScheduler", 50)
    scale = QualityScale(repeat=0.0, batch=0.0, one_ulp=0.0, unrelated=0.161)
    fast = replace(MET, speedup=11.5, speedup_ci95=(9.5, 12.5))
    entries = {GoldenKey(cell, triple, target): entry for target in (1.2, 1.5)} | {GoldenKey(cell, "ToMe", 1.2): fast}
    lines = winners_table(entries, {MET.environment: replace(ENVIRONMENT, scale=scale)}, 80)
    assert max(map(len, lines)) <= 80, max(lines, key=len)
    (row,) = [line for line in lines if "1.67x" in line]
    assert row == "  1.2-1.5x  1.67x [1.65, 1.69] GPU 2.10x*  0.041 [0.036, 0.047] 25%  0.036 (12)!"
    heads = next(line for line in lines if "LPIPS [95%]" in line)
    assert heads.index("LPIPS [95%]") == row.index("0.041")
    assert "".join(line.strip() for line in lines if "=" in line).count("=") == 10


def test_other_metrics_stand_below_a_winner() -> None:
    clip = GoldenMetric(28.1234, (27.2, 29.1), -0.0123, (-0.02, -0.0041))
    entries = {key(1.5): replace(MET, metrics={"clip_score": clip, "psnr": GoldenMetric(31.0, (30.0, 32.0))})}
    lines = winners_table(entries, {}, 80)
    assert "clip_score 28.12 [27.2, 29.1], -1.2% [-2.0%, -0.4%]; psnr 31 [30, 32]" in " ".join(map(str.strip, lines))
    assert max(map(len, lines)) <= 80
    assert any("change from the unaccelerated pictures'" in line for line in lines)


@pytest.mark.parametrize("width", [80, 100, 400])
def test_changes_are_as_wide_as_the_terminal(width: int) -> None:
    together = {
        "DeepCache": {"cache_interval": 3, "cache_branch_id": 0},
        "T-Gate": {"gate_step": 12, "sp_interval": 3, "fi_interval": 1, "warm_up": 2},
    }
    after = replace(MET, params=together, speedup=2.5, speedup_ci95=(2.4, 2.6))
    counted, group, *said = changes_text([Change(key(1.5), "updated", MET, after)], Path("golden.json"), {}, width)[1:]
    assert counted == "golden: golden.json: 1 updated"
    assert group == "  updated: SD1.5 DDIM 20 steps, DeepCache"
    assert max(map(len, said)) <= width
    assert " ".join(map(str.strip, said)) == (
        "1.5x: cache_interval=2, cache_branch_id=0 -> cache_interval=3, cache_branch_id=0, gate_step=12, "
        "sp_interval=3, fi_interval=1, warm_up=2, speedup 1.67 [1.65, 1.69] -> 2.5 [2.4, 2.6]"
    )


def test_targets_that_change_alike_stand_together() -> None:
    """As do those that only moved: another machine's figures are no news of these."""
    here = replace(ENVIRONMENT, device="another CPU (2 cores)")
    before = replace(MET, environment=ENVIRONMENT.id)
    moved = replace(before, environment=here.id, speedup=1.9, speedup_ci95=(1.8, 2.0))
    finer = replace(moved, params={"DeepCache": {"cache_interval": 4, "cache_branch_id": 0}})
    gone = replace(moved, status="unattainable", reason="speed")
    changes = [Change(key(target), "updated", before, after) for target, after in ((1.5, moved), (1.2, moved))]
    changes += [Change(key(2.0), "updated", before, finer), Change(key(4.0), "updated", before, gone)]
    known = {ENVIRONMENT.id: ENVIRONMENT, here.id: here}
    assert changes_text(changes, Path("golden.json"), known, 200)[1:] == [
        "golden: golden.json: 4 updated",
        f"  moved 4 from environment {ENVIRONMENT.id} to {here.id}: device a CPU (4 cores) -> another CPU (2 cores)",
        "  updated: SD1.5 DDIM 20 steps, DeepCache",
        "    1.2x, 1.5x: the same choice",
        "    2x: cache_interval 2 -> 4",
        "    4x: met -> unattainable (speed)",
    ]


def test_more_changes_than_a_cell_has_are_counted() -> None:
    faster = replace(MET, speedup=2.0, speedup_ci95=(1.9, 2.1))
    cells = [replace(key(1.5), cell=Cell("SD1.5", "DDIM", steps)) for steps in range(1, 51)]
    said = changes_text([Change(one, "differs", MET, faster) for one in cells], Path("golden.json"), {}, 80)
    assert said[1] == "golden: golden.json: 50 differ"
    assert said[-1] == "  and 8 keys more"
    assert len(said) == 2 + 2 * 42 + 1


def test_rows_of_another_environment_are_marked() -> None:
    """As where a search on this machine left some of another one's winners as they were."""
    here = replace(ENVIRONMENT, device="another CPU (2 cores)")
    entries = {key(target): replace(MET, environment=here.id) for target in (1.5, 1.8)}
    entries[key(1.2)] = replace(MET, environment=ENVIRONMENT.id)
    lines = winners_table(entries, {ENVIRONMENT.id: ENVIRONMENT, here.id: here}, 200)
    rows = [line.split("  ")[1] for line in lines if "1.67x" in line]
    assert rows == ["1.2x °", "1.5-1.8x"]
    assert lines[-1] == (
        "°: recorded in another environment than the rest: device another CPU (2 cores) -> a CPU (4 cores)."
    )
    assert not any("°" in line for line in winners_table({key(1.2): entries[key(1.2)]}, {}, 200))


def test_losses_have_no_share_of_a_scale_of_zero() -> None:
    """Pictures that no seed changes."""
    for unrelated, shown in ((0.1, True), (0.0, False)):
        scale = QualityScale(repeat=0.0, batch=0.0, one_ulp=0.0, unrelated=unrelated)
        environments = {MET.environment: replace(ENVIRONMENT, scale=scale)}
        (row,) = [line for line in winners_table({key(1.5): MET}, environments, 80) if "1.67x" in line]
        assert ("41%" in row) == shown


def test_the_gpus_own_speedup_stands_beside_the_clocks() -> None:
    waiting = replace(MET, device_speedup=2.1, device_speedup_ci95=(2.08, 2.12))
    decided = replace(waiting, decided_by="device")
    lines = winners_table({key(1.5): waiting, replace(key(1.5), accelerator="ToMe"): decided}, {}, 80)
    rows = [line for line in lines if "1.67x" in line]
    assert ["GPU 2.10x*" in row for row in rows] == [False, True]
    assert all("GPU 2.10x" in row for row in rows)
    assert any(line.startswith("GPU: speedup by its own time (*: it decided)") for line in lines)
    assert not any("GPU" in line for line in winners_table({key(1.5): MET}, {}, 80))


def test_what_is_predicted_or_of_another_models_pictures_is_marked() -> None:
    predicted = replace(MET, basis="predicted", quality_from="embedded SD1.5-DDIM-20")
    entries = {key(1.5): predicted, replace(key(1.5), accelerator="ToMe"): MET}
    lines = winners_table(entries, {}, 80)
    assert ["~1.67x" in line for line in lines if "1.67x" in line] == [True, False]
    assert "~: predicted from what its kinds of steps cost, not measured." in lines
    assert "LPIPS: not of this model's pictures, but of embedded SD1.5-DDIM-20." in lines
    assert not any("~" in line or "LPIPS: not" in line for line in winners_table({key(1.5): MET}, {}, 80))


def settings(*arguments: str) -> Settings:
    parser = pytest.Parser(_ispytest=True)
    add_options(parser)
    return Settings.from_options(parser.parse_known_args(arguments), ["DeepCache"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--pipe", "sd15", "--sched", "ddim", "--steps", "20", "--grid", "coarse"), "Ctrl-C"),
        (("--pipe", "sd15,sdxl", "--sched", "ddim", "--steps", "20,25"), "narrow with --pipe --steps --grid coarse; "),
    ],
)
def test_only_options_that_narrow_a_search_further_are_named(arguments: tuple[str, ...], said: str) -> None:
    assert announcement(settings(*arguments), 3)[-1].startswith(said)


def test_winners_that_a_coarse_search_is_to_replace_are_counted_before_it() -> None:
    golden = {
        key(1.2): MET,  # a point of the coarse grid, too
        key(1.5): replace(MET, params=FINER),
        key(4.0): replace(MET, status="unattainable", reason="speed", params=FINER),
        GoldenKey(Cell("SDXL", "DDIM", 20), "DeepCache", 1.5): replace(MET, params=FINER),  # of no cell searched
    }
    cell = ("--pipe", "sd15", "--sched", "ddim", "--steps", "20")
    (said,) = finer_text(golden, settings(*cell, "--grid", "coarse", "--update-golden"), default_registry())
    assert " holds 1 winner of a finer search; with --update-golden this coarse one replaces them" in said
    for options in (("--grid", "coarse"), ("--update-golden",)):
        assert not finer_text(golden, settings(*cell, *options), default_registry())


@pytest.mark.parametrize(("device", "is_said"), [(2.1, True), (1.7, False), (None, False)])
def test_what_waiting_for_the_host_costs_is_said_once(device: float | None, is_said: bool) -> None:
    entry = replace(MET, device_speedup=device, device_speedup_ci95=device and (device - 0.1, device + 0.1))
    entries = {key(1.2): replace(entry, speedup=1.69), key(1.5): entry}
    said = next_steps(settings("--gpus=0"), [], failed=0, launch_bound={}, entries=entries)
    waits = [line for line in said if "waits for no launches" in line]
    assert len(waits) == is_said
    assert all(line.endswith("2.10x instead of 1.67x by DeepCache for 1.5x") for line in waits)
    on_a_cpu = next_steps(settings(), [], failed=0, launch_bound={}, entries=entries)
    assert not any("waits" in line for line in on_a_cpu)
