"""``diffaccel audit``: a preset is measured beside the unaccelerated pipeline, and golden is asked for better ones."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from entries import ENVIRONMENT, MET
from searches import embedded_folder, without_scale
from test_store import measurement
from timings import SteadyClock
from tiny_flux import SIDE, save_tiny_flux

from pytest_diffaccel.audit.better import InGolden, in_golden
from pytest_diffaccel.cli.main import main
from pytest_diffaccel.matrix import Cell
from pytest_diffaccel.measure.deciding import LPIPS, QualityRule
from pytest_diffaccel.measure.measurement import Interval, MetricValues
from pytest_diffaccel.pipes import PipeRegistry, make_known
from pytest_diffaccel.records.environment import Environment
from pytest_diffaccel.records.golden import GoldenEntry
from pytest_diffaccel.records.golden_file import Golden, write_golden
from pytest_diffaccel.records.golden_key import GoldenKey
from pytest_diffaccel.records.golden_parts import GoldenMetric
from pytest_diffaccel.records.store import Store

CELL = Cell("SD1.5", "DDIM", 8)
OPTIONS = ("--models", "models.toml", "--pipe", "sd15", "--steps", "8", "--num-samples", "2", "--batch-size", "1")
PRESET = "helper.set_params(cache_interval=2, cache_branch_id=0)\n"
GOLDEN = Path("golden/search_params.json")


@pytest.fixture(autouse=True)
def only_built_in_pipes() -> Iterator[None]:
    yield
    make_known(PipeRegistry())


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_pipeline: None) -> Path:
    """The present folder, with small pictures of SD1.5 and a preset; no clock is asked."""
    without_scale(monkeypatch)
    SteadyClock(monkeypatch)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    entry = f'"SD1.5" = {{ path = "{embedded_folder("SD1.5")}", height = 32, width = 32, guidance_scale = 5.0 }}\n'
    (tmp_path / "models.toml").write_text(entry, encoding="utf-8")
    (tmp_path / "preset.py").write_text(PRESET, encoding="utf-8")
    return tmp_path


@pytest.fixture
def audit(folder: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What the command prints, which fits 80 columns."""

    def printed(*more: str) -> str:
        status = main(["audit", "preset.py", *OPTIONS, *more])
        said = capsys.readouterr()
        assert status == 0, said.err
        assert "measuring preset.py beside the unaccelerated pipeline" in " ".join(said.err.split())
        # What is to be typed stays on a line of its own.
        assert max(len(line) for line in said.out.splitlines() if not line.startswith("    diffaccel ")) <= 80
        return said.out

    return printed


def here() -> Environment:
    """The environment of what was audited in the present folder."""
    with Store.open(".diffaccel/search.sqlite") as store:
        (environment,) = store.environments().values()
    return environment


def words(text: str) -> str:
    return " ".join(text.split())


def winners(environment: Environment, *entries: tuple[float, GoldenEntry]) -> None:
    """Write a golden file with entries by target."""
    GOLDEN.parent.mkdir(exist_ok=True)
    known = {
        GoldenKey(CELL, "DeepCache", target): replace(entry, environment=environment.id) for target, entry in entries
    }
    write_golden(GOLDEN.resolve(), known, {environment.id: environment})


def winner(speedup: float, lpips: float, interval: int = 3) -> GoldenEntry:
    return replace(
        MET,
        params={"DeepCache": {"cache_interval": interval, "cache_branch_id": 0}},
        speedup=speedup,
        speedup_ci95=(speedup - 0.01, speedup + 0.01),
        wall_speedup=speedup,
        wall_speedup_ci95=(speedup - 0.01, speedup + 0.01),
        lpips=lpips,
        lpips_ci95=(lpips - 0.0001, lpips + 0.0001),
    )


def test_a_preset_is_measured_and_without_golden_the_search_to_run_is_said(audit: Callable[..., str]) -> None:
    said = audit("--metrics", "psnr")
    lines = said.splitlines()
    start = next(place for place, line in enumerate(lines) if "s per picture" in line)
    title, (head, plain, own, params, metrics, *rest) = words(" ".join(lines[:start])), lines[start:]
    assert title.startswith("SD1.5 DDIM 8 steps (SD1.5 from ")
    assert title.endswith("sd15), 2 pictures in batches of 1, 3 blocks of runs")
    assert head.split() == ["s", "per", "picture", "speedup", "[95%]", "LPIPS", "[95%]"]
    # Steps of 20 ms, and of 8 where features are reused, and 20 ms around them: 180 and 132.
    assert plain.split()[::3] == ["unaccelerated", "0"]
    assert 0.175 < float(plain.split()[1]) < 0.185
    name, seconds, speedup, *_ = own.split()
    assert (name, speedup[:3]) == ("preset.py", "1.3")
    assert 0.128 < float(seconds) < 0.136
    assert params == "    DeepCache (line 1): cache_interval=2, cache_branch_id=0"
    assert metrics.startswith("    psnr ")
    assert words(" ".join(rest)) == (
        f"golden ({GOLDEN}) has no winner of this cell: what would be better is not known. Search: diffaccel search "
        "--pipe SD1.5 --sched DDIM --steps 8 --models models.toml --num-samples 2 --batch-size 1"
    )
    with Store.open(".diffaccel/search.sqlite") as store:
        assert not store.contents().measurements


def test_what_golden_has_that_is_better_is_shown_with_its_script(
    audit: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    audit()
    winners(here(), (1.2, winner(1.5, 0.0002)), (2.0, winner(2.4, 0.0003, 5)))
    said = audit("--num-samples", "6")
    assert "golden, less loss                 1.50x [1.49, 1.51]  0.000 [0.000, 0.000]\n" in said
    assert "golden, faster                    2.40x [2.39, 2.41]" in said
    assert "    DeepCache: cache_interval=5, cache_branch_id=0\n" in said
    assert "recorded elsewhere" not in said
    command = said.partition("loses no more and is surely faster; its script:\n")[2].splitlines()[0]
    capsys.readouterr()
    assert main(shlex.split(command)[1:]) == 0
    assert 'DEEPCACHE = {"cache_interval": 5, "cache_branch_id": 0}' in capsys.readouterr().out


def test_figures_of_another_machine_are_said_to_be(audit: Callable[..., str]) -> None:
    audit()
    winners(replace(here(), device="another CPU"), (1.2, winner(1.38, 0.0002)))
    said = audit()
    assert "golden, in the mean: is at least as fast and loses less in the mean, which may be chance" in words(said)
    assert "Golden's figures were recorded elsewhere (device another CPU -> " in words(said)


def test_winners_of_other_weights_are_not_compared(audit: Callable[..., str]) -> None:
    audit()
    winners(replace(here(), weights={"unet": "0" * 64}), (1.2, winner(1.5, 0.0002)))
    said = words(audit())
    assert f"golden ({GOLDEN}) has 1 winner of this cell, of other weights or pictures" in said
    assert said.endswith("--batch-size 1 --golden golden/search_params-SD1.5.json")


def test_where_nothing_is_better_it_is_said_and_that_the_preset_is_a_winner(audit: Callable[..., str]) -> None:
    audit()
    winners(here(), (1.2, winner(1.35, 0.5, 2)), (2.0, winner(1.2, 0.0001)))
    said = words(audit())
    assert "The preset is golden's own winner for 1.2x: 1.35x, LPIPS 0.500 where it was recorded." in said
    nothing = f"golden ({GOLDEN}) has nothing better: among its 2 winners of this cell none is as fast and surely"
    assert nothing in said


def test_remarks_on_the_preset_follow_the_table(audit: Callable[..., str], folder: Path) -> None:
    (folder / "preset.py").write_text("tomesd.apply_patch(pipe, 0, max_downsample=2, sx=4)", encoding="utf-8")
    said = words(audit())
    assert "line 1: sx=4: measured with 2 line 1: ToMe acts in no step of 8 with these settings The preset is" in said
    assert "The preset is not surely faster than the unaccelerated pipeline." in said or "is slower than" in said


@pytest.mark.parametrize(
    ("text", "more", "message"),
    [
        ("x = 1", (), "preset.py: no settings of a method that is known here"),
        ("pipe.tgate(gate_step=9)", (), "preset.py: with 8 steps: line 1: T-Gate: gate_step=9 must be"),
        ("helper.set_params(2, 99)", (), "cache_branch_id=99 must be"),
        (PRESET, ("--steps", "8,9"), "--steps: '8,9' names several; audit one at a time"),
        (PRESET, ("--sched", "all"), "--sched: 'all' names several; audit one at a time"),
        (PRESET, ("--pipe", "all"), "--pipe: 'all' names several; audit one at a time"),
        (PRESET, ("--metrics", "beauty"), "--metrics: there is no metric 'beauty'"),
        (PRESET, ("--golden", "models.toml"), "models.toml"),
    ],
)
def test_what_cannot_be_audited_is_refused(
    text: str, more: tuple[str, ...], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "preset.py").write_text(text, encoding="utf-8")
    assert main(["audit", "preset.py", *OPTIONS, *more]) == 2
    said = capsys.readouterr()
    assert message in words(said.err)
    assert not said.out


def test_a_preset_is_not_run_where_it_has_the_name_of_a_library(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """``python -m pytest_diffaccel`` looks for modules in the present folder first."""
    monkeypatch.syspath_prepend("")
    for name in [name for name in sys.modules if name.partition(".")[0] == "tomesd"]:
        monkeypatch.delitem(sys.modules, name)
    (folder / "tomesd.py").write_text("tomesd.apply_patch(pipe, 0.5, 2)", encoding="utf-8")
    assert main(["audit", "tomesd.py", *OPTIONS]) == 0
    assert "ToMe (line 1): ratio=0.5, max_downsample=2" in capsys.readouterr().out
    assert sys.path[0] == ""


def test_a_preset_of_diffusers_is_measured_on_flux(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    everything_imported: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What it says of its steps is taken where none are given."""
    SteadyClock(monkeypatch).step_s["MagCache:skipped"] = 0.001
    monkeypatch.chdir(tmp_path)
    save_tiny_flux(tmp_path / "flux")
    (tmp_path / "models.toml").write_text(f'"FLUX.1" = {{ path = "flux", height = {SIDE}, width = {SIDE} }}\n')
    (tmp_path / "mine.py").write_text("MagCacheConfig(0.24, num_inference_steps=8, mag_ratios=FLUX_MAG_RATIOS)\n")
    few = ("--num-samples", "1", "--batch-size", "1", "--blocks", "2")
    assert main(["audit", "mine.py", "--models", "models.toml", "--pipe", "flux", *few]) == 0
    said = capsys.readouterr().out
    assert "FLUX.1 FlowMatchEulerDiscreteScheduler 8 steps" in said
    assert "MagCache (line 1): threshold=0.24, max_skip_steps=3, retention_ratio=0.2" in said
    assert "2 blocks of runs" in said


def test_of_a_preset_whose_steps_the_pictures_decide_it_is_said_how_many_are_reused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    everything_imported: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    SteadyClock(monkeypatch)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.6))\n")
    few = ("--steps", "6", "--num-samples", "2", "--batch-size", "1", "--blocks", "2")
    assert main(["audit", "mine.py", "--pipe", "flux", *few]) == 0
    said = capsys.readouterr().out
    assert "FirstBlockCache (line 1): threshold=0.6" in said
    assert re.search(r"reuses [2-5]( to [2-5])? of the 6 steps in these pictures", said)


# --- what is better -------------------------------------------------------------------------------------------------

BY_LPIPS, BY_SSIM = QualityRule(LPIPS, 0.25, higher_is_better=False), QualityRule("ssim", 0.8, higher_is_better=True)


def looked_up(entries: dict[float, GoldenEntry], quality: QualityRule = BY_LPIPS, **changes: Any) -> InGolden:
    """What golden says to a preset of 1.5x (1.4 to 1.6) that loses 0.1 (0.08 to 0.12)."""
    cell = Cell("SD1.5", "DDIM", 20)
    known = {GoldenKey(cell, "DeepCache", target): replace(entry, environment=ENVIRONMENT.id)
             for target, entry in entries.items()}  # fmt: skip
    golden = Golden(Path("golden.json"), known, {ENVIRONMENT.id: ENVIRONMENT})
    made = measurement()
    made = replace(
        made,
        candidate=replace(made.candidate, params={"ToMe": {"ratio": 0.5, "max_downsample": 1}}),
        speedup=Interval(1.5, 1.4, 1.6),
        quality=replace(made.quality, lpips=Interval(0.1, 0.08, 0.12)),
        metrics={"ssim": MetricValues("ssim", (0.9, 0.92, 0.88, 0.9))},
    )
    return in_golden(golden, cell, replace(ENVIRONMENT, **changes), made, quality)


def ranged(speedup: tuple[float, float, float], lpips: tuple[float, float, float], **changes: Any) -> GoldenEntry:
    return replace(winner(speedup[0], lpips[0]), speedup_ci95=speedup[1:], lpips_ci95=lpips[1:], **changes)


@pytest.mark.parametrize(
    ("entry", "better"),
    [
        (ranged((1.5, 1.45, 1.55), (0.05, 0.04, 0.07)), "as_fast"),
        (ranged((1.5, 1.45, 1.55), (0.05, 0.04, 0.09)), "in_mean"),
        (ranged((1.49, 1.45, 1.55), (0.05, 0.04, 0.07)), ""),
        (ranged((1.7, 1.65, 1.75), (0.1, 0.05, 0.2)), "as_good"),
        (ranged((1.7, 1.55, 1.75), (0.1, 0.05, 0.2)), ""),
        (ranged((1.7, 1.65, 1.75), (0.11, 0.1, 0.12)), ""),
        (ranged((1.7, 1.65, 1.75), (0.05, 0.04, 0.07)), "as_fast as_good"),
        (replace(ranged((1.7, 1.65, 1.75), (0.05, 0.04, 0.07)), status="unattainable", reason="quality"), ""),
    ],
)
def test_a_winner_is_better_when_one_figure_is_as_good_and_the_other_surely_better(
    entry: GoldenEntry, better: str
) -> None:
    found = looked_up({1.2: entry})
    assert [name for name in ("as_fast", "as_good", "in_mean") if getattr(found, name)] == better.split()
    assert found.own is None


def test_of_several_the_least_loss_and_the_fastest_are_taken() -> None:
    found = looked_up(
        {
            1.2: ranged((1.7, 1.65, 1.75), (0.05, 0.04, 0.07)),
            1.5: replace(ranged((1.6, 1.59, 1.61), (0.02, 0.01, 0.03)), params={"ToMe": {"ratio": 0.25}}),
            2.0: replace(ranged((2.1, 2.0, 2.2), (0.09, 0.08, 0.1)), params={"ToMe": {"ratio": 0.75}}),
        }
    )
    assert (found.as_fast and found.as_fast[0].target, found.as_good and found.as_good[0].target) == (1.5, 2.0)
    assert (found.winners, found.elsewhere) == (3, 0)


def test_another_metric_tells_losses_apart_where_it_decides() -> None:
    entry = ranged((1.6, 1.59, 1.61), (0.5, 0.4, 0.6), metrics={"ssim": GoldenMetric(0.97, (0.96, 0.98))})
    assert looked_up({1.2: entry}, BY_SSIM).as_fast is not None
    assert looked_up({1.2: entry}).as_fast is None
    worse = replace(entry, metrics={"ssim": GoldenMetric(0.8, (0.79, 0.81))})
    assert looked_up({1.2: worse}, BY_SSIM) == InGolden(1, 0)
    assert looked_up({1.2: replace(entry, metrics=None)}, BY_SSIM) == InGolden(1, 0)


@pytest.mark.parametrize(
    "changes", [{"image_size": (64, 64)}, {"guidance_scale": 7.5}, {"weights": {"unet": "1" * 64}}]
)
def test_only_losses_of_the_same_pictures_are_compared(changes: dict[str, Any]) -> None:
    entry = ranged((1.7, 1.65, 1.75), (0.05, 0.04, 0.07))
    assert looked_up({1.2: entry}, **changes) == InGolden(0, 1)
