"""The command line: every spelling that a user may try, and refusals that list what is valid."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import pytest_diffaccel
from pytest_diffaccel.accelerators.registry import default_registry
from pytest_diffaccel.cli.main import main
from pytest_diffaccel.matrix import PIPES, SCHEDULERS, STEPS, cells
from pytest_diffaccel.measure.metrics.clip_score import ClipScore
from pytest_diffaccel.models.clip import ClipSource
from pytest_diffaccel.plugin.registered import metrics_of
from pytest_diffaccel.settings.gate_options import GateSettings
from pytest_diffaccel.settings.option_types import OptionError
from pytest_diffaccel.settings.options import add_options, benches_command, command_of, is_given
from pytest_diffaccel.settings.search_settings import Settings

ACCELERATORS = default_registry().names


@pytest.fixture(scope="session")
def settings() -> Any:
    """Parses a command line as pytest does: ``settings("--pipe", "SDXL")``."""

    def parse(*arguments: str) -> Settings:
        return Settings.from_options(parsed(*arguments), ACCELERATORS)

    return parse


def parsed(*arguments: str) -> Namespace:
    parser = pytest.Parser(_ispytest=True)
    add_options(parser)
    return parser.parse_known_args(arguments)


# --- defaults --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "why"),
    [((), "needs --gpus"), (("--gpus=0", "--exhaustive"), "--exhaustive times every candidate by the wall clock")],
)
def test_device_time_decides_only_where_there_is_any(settings: Any, given: tuple[str, ...], why: str) -> None:
    with pytest.raises(OptionError, match=f"--decide-by device: .*{why}"):
        settings("--decide-by", "device", *given)
    assert settings("--decide-by", "device", "--gpus=0").decide_by == "device"
    assert settings().decide_by == "wall"


def test_without_options_everything_is_searched(settings: Any) -> None:
    chosen = settings()
    assert list(chosen.cells) == cells(PIPES, SCHEDULERS, STEPS)
    assert list(chosen.accelerators) == ACCELERATORS
    assert (chosen.num_samples, chosen.batch_size, chosen.blocks, chosen.coarse) == (8, 4, 2, False)
    assert (chosen.models, chosen.gpus, chosen.case_timeout_s, chosen.seed) == ("embedded", None, None, 0)
    assert (chosen.golden, chosen.store) == (
        Path("golden/search_params.json"),
        "sqlite:///.diffaccel/search.sqlite",
    )


def test_other_models_are_scored_on_more_samples(settings: Any) -> None:
    assert settings("--models", "hub").num_samples == 32
    assert settings("--models", "hub", "--num-samples", "5").num_samples == 5


def test_other_models_are_scored_by_another_clip(pytester: pytest.Pytester) -> None:
    def clip(*arguments: str) -> ClipSource:
        metric = metrics_of(pytester.parseconfig(*arguments))["clip_score"]
        assert isinstance(metric, ClipScore)
        return metric.source

    assert clip().description == "embedded stand-in, not CLIP"
    assert clip("--models", "hub").location == "openai/clip-vit-base-patch32"
    assert clip("--models", "hub", "--clip-model", "embedded") == clip()
    assert clip("--clip-model", "mine/clip@v2").revision == "v2"


def test_a_coarse_search_times_one_block(settings: Any) -> None:
    assert settings("--grid", "coarse").blocks == 1
    assert settings("--grid", "coarse", "--blocks", "3").blocks == 3


def test_a_batch_is_never_larger_than_the_samples(settings: Any) -> None:
    assert settings("--num-samples", "3").batch_size == 3


# --- spellings -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("DDIM", "DDIM"),
        ("ddim", "DDIM"),
        ("DDIMScheduler", "DDIM"),
        ("DPM-Solver++", "DPM-Solver++"),
        ("dpm-solver++", "DPM-Solver++"),
        ("DPM Solver++", "DPM-Solver++"),
        ("dpmsolverpp", "DPM-Solver++"),
        ("dpmpp", "DPM-Solver++"),
        ("dpm++", "DPM-Solver++"),
        ("DPM++", "DPM-Solver++"),
        ("DPMSolverMultistepScheduler", "DPM-Solver++"),
        ("UniPCMultistepScheduler", "UniPCMultistepScheduler"),
        ("unipc", "UniPCMultistepScheduler"),
        ("UniPC", "UniPCMultistepScheduler"),
    ],
)
def test_spellings_of_schedulers(settings: Any, spelling: str, name: str) -> None:
    assert {cell.scheduler for cell in settings("--sched", spelling).cells} == {name}


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        *(("sd1.5", "SD1.5"), ("SD1.5", "SD1.5"), ("SD 2.1", "SD2.1"), ("sdxl", "SDXL"), ("sd15", "SD1.5")),
        *(("stable-diffusion-v1-5", "SD1.5"), ("SD21", "SD2.1"), ("Stable Diffusion XL", "SDXL")),
    ],
)
def test_spellings_of_pipes(settings: Any, spelling: str, name: str) -> None:
    assert {cell.pipe for cell in settings("--pipe", spelling).cells} == {name}


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("deepcache", "DeepCache"),
        ("tgate", "T-Gate"),
        ("T-GATE", "T-Gate"),
        ("t_gate", "T-Gate"),
        ("tome", "ToMe"),
        ("deepcache and tome", "DeepCache and ToMe"),
        ("deepcache and tgate", "DeepCache and T-Gate"),
        ("DeepCache+T-Gate", "DeepCache and T-Gate"),
        ("DeepCache, T-Gate, and ToMe", "DeepCache, T-Gate, and ToMe"),
        ("deepcache, tgate and tome", "DeepCache, T-Gate, and ToMe"),
        ("DeepCache+T-Gate+ToMe", "DeepCache, T-Gate, and ToMe"),
    ],
)
def test_spellings_of_accelerators(settings: Any, spelling: str, name: str) -> None:
    assert settings("--search-targets", spelling).accelerators == (name,)


@pytest.mark.parametrize("name", ACCELERATORS)
def test_every_accelerator_is_known_by_its_own_name(settings: Any, name: str) -> None:
    assert settings("--search-targets", name).accelerators == (name,)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--search-targets", "tome,deepcache"),
        ("--search-targets", "tome, deepcache"),
        ("--search-targets", "tome", "--search-targets", "deepcache"),
        ("--search_targets", "tome", "--search-targets=deepcache"),
        ("--search-targets", "deepcache,tome,deepcache"),
        ("--search-targets", "deepcache,,tome,"),
        ("--search-targets", "deepcache,tome"),
    ],
)
def test_lists_and_repetitions_keep_the_matrix_order(settings: Any, arguments: tuple[str, ...]) -> None:
    assert settings(*arguments).accelerators == ("DeepCache", "ToMe")


@pytest.mark.parametrize("everything", ["all", "ALL", "sdxl,all"])
def test_all_means_all(settings: Any, everything: str) -> None:
    assert settings("--pipe", everything) == settings()


def test_steps_are_chosen_likewise(settings: Any) -> None:
    assert [cell.steps for cell in settings("--pipe", "SDXL", "--sched", "DDIM", "--steps", "50,20").cells] == [20, 50]


def test_any_number_of_steps_and_scheduler_can_be_named(settings: Any) -> None:
    chosen = settings("--pipe", "sd15", "--sched", "eulerdiscretescheduler,DDIM", "--steps", "30,20,7").cells
    assert list(chosen) == cells(["SD1.5"], ["DDIM", "EulerDiscreteScheduler"], [7, 20, 30])


@pytest.mark.parametrize(
    ("dashed", "underscored", "value"),
    [
        ("--search-targets", "--search_targets", "tome"),
        ("--num-samples", "--num_samples", "3"),
        ("--batch-size", "--batch_size", "2"),
    ],
)
def test_underscores_do_as_well_as_dashes(settings: Any, dashed: str, underscored: str, value: str) -> None:
    assert settings(underscored, value) == settings(dashed, value) != settings()


@given(
    st.lists(st.sampled_from(ACCELERATORS), min_size=1, max_size=4),
    st.sampled_from([str.lower, str.upper, str.swapcase]),
)
def test_case_and_order_of_names_never_matter(names: list[str], recase: Any) -> None:
    options = parsed(*(part for name in names for part in ("--search-targets", recase(name))))
    assert set(Settings.from_options(options, ACCELERATORS).accelerators) == set(names)


def test_a_list_of_three_is_no_combination_of_three(settings: Any) -> None:
    assert settings("--search-targets", "deepcache,tgate,tome").accelerators == ("DeepCache", "T-Gate", "ToMe")


def test_a_combination_in_a_list(settings: Any) -> None:
    assert settings("--search-targets", "deepcache and tgate,tome").accelerators == ("ToMe", "DeepCache and T-Gate")


@given(st.text(max_size=30).filter(lambda text: "all" not in text.lower()))
def test_any_other_text_is_refused_in_words(text: str) -> None:
    options = parsed()
    options.search_targets = [text]
    with pytest.raises(OptionError, match=r"choose from DeepCache; T-Gate; ToMe; .*; all"):
        Settings.from_options(options, ACCELERATORS)


# --- GPUs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "gpus"),
    [
        ((), None),
        (("--gpus",), ()),
        (("--gpus=all",), ()),
        (("--gpus=0,1",), ("0", "1")),
        (("--gpus", "0, 2"), ("0", "2")),
        (("--gpus=GPU-8932f937-d72c,MIG-4a/1/0",), ("GPU-8932f937-d72c", "MIG-4a/1/0")),
    ],
)
def test_gpus(settings: Any, arguments: tuple[str, ...], gpus: tuple[str, ...] | None) -> None:
    assert settings(*arguments).gpus == gpus


def test_a_path_swallowed_by_gpus_is_noticed(settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "benches").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OptionError, match=r"'benches' is not a list of GPU.*did you mean `--gpus=all benches`\?"):
        settings("--gpus", "benches")


@pytest.mark.parametrize("bad", ["one", "0,", "-1", "0 1", "0;1", ""])
def test_bad_gpus_are_refused(settings: Any, bad: str) -> None:
    with pytest.raises(OptionError, match=r"--gpus=0,1"):
        settings(f"--gpus={bad}")


# --- golden options --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "update"),
    [((), False), (("--update-golden",), True), (("--update-golden", "--golden-new-only"), False)],
)
def test_new_only_wins_over_update(settings: Any, arguments: tuple[str, ...], update: bool) -> None:
    assert settings(*arguments).update_golden is update


def test_settings_cannot_be_changed(settings: Any) -> None:
    with pytest.raises(AttributeError):
        settings().seed = 1
    assert replace(settings(), seed=1).seed == 1


# --- an unrelated run ------------------------------------------------------------------------------------------


def test_an_unrelated_run_has_given_nothing() -> None:
    assert not is_given(parsed())


@pytest.mark.parametrize("argument", ["--fresh", "--update-golden", "--gpus", "--seed=1", "--pipe=SDXL"])
def test_any_option_counts_as_given(argument: str) -> None:
    assert is_given(parsed(argument))


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("30min", 1800), ("30m", 1800), ("2h", 7200), ("1h30min", 5400), ("1.5 h", 5400)]
)
def test_a_budget_is_a_duration(settings: Any, text: str, seconds: float) -> None:
    assert settings("--search-budget", text).search_budget_s == seconds


# --- advice ----------------------------------------------------------------------------------------------------


def test_advice_names_a_folder_that_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ("--search-targets", "DeepCache and ToMe")
    assert benches_command(*arguments) == "diffaccel search --search-targets 'DeepCache and ToMe'"
    (tmp_path / "benches").mkdir()
    assert benches_command(*arguments) == "pytest benches --search-targets 'DeepCache and ToMe'"


def test_what_was_typed_is_shown_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not as what a command hands on to pytest."""
    given: list[list[str]] = []
    monkeypatch.setattr(pytest, "main", lambda arguments: given.append(arguments) or 0)
    assert main(["search", "--search-targets", "DeepCache and ToMe", "-x"]) == 0
    assert command_of(given[0]) == "diffaccel search --search-targets 'DeepCache and ToMe' -x"
    assert command_of(["benches", "-k", "a or b"]) == "pytest benches -k 'a or b'"


def test_all_advice_asks_whether_the_folder_is_there() -> None:
    files = Path(pytest_diffaccel.__file__).parent.rglob("*.py")
    assert [file.name for file in files if "pytest benches" in file.read_text(encoding="utf-8")] == []


# --- refusals, as pytest shows them ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--pipe", "SD3"), "*--pipe: 'SD3' is unknown; choose from SD1.5; SD2.1; SDXL; all; FLUX.1"),
        (("--pipe", "sd14"), "*--pipe: 'sd14' is unknown*; choose from SD1.5; SD2.1; SDXL; all; FLUX.1"),
        (("--sched", "Euler"), "*--sched: 'Euler' is unknown; choose from DDIM; DPM-Solver++; UniPC*"),
        (
            ("--sched", "EulerScheduler"),
            "*--sched: 'EulerScheduler' is unknown*; all; a diffusers scheduler's class name",
        ),
        (("--sched", "FlowMatchHeunDiscreteScheduler"), "*--sched: 'FlowMatchHeunDiscreteScheduler' is unknown*"),
        (("--sched", "FlowMatchEulerDiscreteScheduler"), "*--sched, SD1.5: FlowMatchEulerDiscreteScheduler is for *"),
        (("--steps", "0"), "*--steps: '0' is unknown; choose from 20; 25; 50; all; any whole number from 1 to 1000"),
        (("--steps", "1001"), "*--steps: '1001' is unknown; choose from 20; 25; 50; all; *"),
        (("--steps", "-20"), "*--steps: '-20' is unknown (did you mean 20[?]); choose from 20; 25; 50; all; *"),
        (("--steps", "2-0"), "*--steps: '2-0' is unknown (did you mean 20[?]); choose from 20; 25; 50; all; *"),
        (("--pipe=-SDXL",), "*--pipe: '-SDXL' is unknown (did you mean SDXL[?]); choose from SD1.5; *"),
        (("--sched", "DPM-Solver"), "*--sched: 'DPM-Solver' is unknown (did you mean DPM-Solver++[?]); choose from *"),
        (("--sched", "!DDIM"), "*--sched: '!DDIM' is unknown (did you mean DDIM[?]); choose from *"),
        (("--targets", "tome"), "*unrecognized argument: --targets (did you mean --search-targets[?])"),
        (("--golden-update",), "*unrecognized argument: --golden-update (did you mean --update-golden[?])"),
        (("--model=hub",), "*unrecognized argument: --model=hub (did you mean --models[?])"),
        (("--nothing-like-it",), "*unrecognized arguments: --nothing-like-it*"),
        (("--search-targets", "tome,tricks"), "*'tricks' is unknown; choose from DeepCache; T-Gate; ToMe; DeepCache *"),
        (("--num-samples", "0"), "*--num*samples*'0' must be a whole number of at least 1*"),
        (("--num_samples", "many"), "*'many' must be a whole number of at least 1*"),
        (("--batch-size", "-4"), "*'-4' must be a whole number of at least 1*"),
        (("--blocks", "1.5"), "*'1.5' must be a whole number of at least 1*"),
        (("--max-quality-loss", "0"), "*'0' must be a number above 0*"),
        (("--max-quality-loss", "nan"), "*'nan' must be a number above 0*"),
        (("--case-timeout", "inf"), "*'inf' must be a number above 0*"),
        (("--search-budget", "30"), "*'30' must be a duration such as 30min, 2h, 1h30min or 90s*"),
        (("--search-budget", "min"), "*'min' must be a duration such as 30min*"),
        (("--search-budget", "0min"), "*'0min' must be a duration such as 30min*"),
        (("--search-budget", "1h", "--exhaustive"), "*--search-budget: an exhaustive search measures everything*"),
        (("--seed", "x"), "*--seed*invalid int value*"),
        (("--pipe", ","), "*--pipe: nothing is named; choose from SD1.5; SD2.1; SDXL; all; FLUX.1"),
        (("--grid", "huge"), "*--grid: 'huge' is unknown; choose from full, coarse"),
        (("--grid", "corse"), "*--grid: 'corse' is unknown (did you mean coarse[?]); choose from full, coarse"),
        (("--decide-by", "devise"), "*--decide-by: 'devise' is unknown (did you mean device[?]); choose from *"),
        (("--pipe", "sdx"), "*--pipe: 'sdx' is unknown (did you mean SDXL[?]); choose from *"),
        (("--sched", "DDMI"), "*--sched: 'DDMI' is unknown (did you mean DDIM[?]); choose from *"),
        (
            ("--sched", "EulerDiscretScheduler"),
            "*--sched: 'EulerDiscretScheduler' is unknown (did you mean EulerDiscreteScheduler[?]); choose from *",
        ),
        (("--search-targets", "depcache"), "*'depcache' is unknown (did you mean DeepCache[?]); choose from *"),
        (("--models", "embeded"), "*models 'embeded': not *exists (did you mean embedded[?]); *"),
        (("--gpus", "nosuchfolder"), "*--gpus: 'nosuchfolder' is not a list of GPU numbers or names (--gpus=0,1)"),
        (("--models", "nosuch.toml"), "*nosuch.toml*"),
        (
            ("--models", "hub", "--clip-model", "embeded"),
            "*--clip-model: 'embeded' is not 'embedded', a folder that exists or a hub id such as "
            "'openai/clip-vit-base-patch32' (did you mean embedded[?])",
        ),
        (("--models", "hub", "--clip-model", "./nosuch"), "*--clip-model: './nosuch' is not 'embedded', a folder *"),
        (("--prompts", "nosuch.txt"), "*no prompts file nosuch.txt; give a text file with one prompt per line, or *"),
    ],
)
def test_bad_values_are_usage_errors(pytester: pytest.Pytester, arguments: tuple[str, ...], said: str) -> None:
    pytester.makepyfile("def test_never_runs(): raise SystemExit('ran')")
    result = pytester.runpytest_inprocess(*arguments)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([said])
    result.stdout.no_fnmatch_line("*test_never_runs*")


def test_a_swallowed_path_is_a_usage_error(pytester: pytest.Pytester) -> None:
    pytester.mkdir("benches")
    result = pytester.runpytest_inprocess("--gpus", "benches")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*did you mean `--gpus=all benches`?"])


def test_help_explains_every_option(pytester: pytest.Pytester) -> None:
    text = pytester.runpytest_inprocess("--help").stdout.str()
    for option in (
        *("--pipe=NAME", "--sched=NAME", "--steps=N", "--search-targets=NAME", "--search_targets=NAME", "--grid="),
        *(
            "--models=SOURCE",
            "--clip-model=SOURCE",
            "--gpus=[LIST]",
            "--num-samples=N",
            "--num_samples=N",
            "--batch-size=N",
            "--blocks=N",
        ),
        *("--prompts=FILE", "--seed=N", "--max-quality-loss=VALUE", "--case-timeout=SECONDS", "--store=URL"),
        *("--search-budget=TIME",),
        *("--fresh", "--golden=FILE", "--update-golden", "--golden-new-only", "--golden-prune", "--picture-grid=FILE"),
    ):
        assert option in text or option.replace("=", " ") in text, option
    assert "diffusion acceleration" in text


# --- the gate --------------------------------------------------------------------------------------------------


def test_the_gate_has_defaults_and_spellings(settings: Any) -> None:
    assert settings().gate is None
    assert settings("--gate").gate == GateSettings(0.03, 0.15, False, {"lpips": 0.05}, 600.0, False)
    chosen = ("--sched", "DDIM", "--steps", "20", "--steps", "25")
    told = settings("--gate", *chosen, "--gpus", "--golden", "mine.json").gate
    assert (told.choice, told.place) == (chosen, ("--gpus=all", "--golden", "mine.json"))
    for share in ("4%", "0.04"):
        assert settings("--gate", "--gate-slowdown", share, "--gate-quality", share).gate.slowdown == pytest.approx(
            0.04
        )
    for spelled, seconds in (("90s", 90), ("1.5min", 90), ("2 h", 7200)):
        assert settings("--gate", "--gate-budget", spelled).gate.budget_s == seconds
    with pytest.raises(OptionError, match="--gate-strict means nothing without --gate"):
        settings("--gate-strict")
    with pytest.raises(OptionError, match="--gate-quality means nothing without --gate"):
        settings("--gate-quality", "psnr=3%")


def test_the_gate_judges_the_metrics_that_are_named_and_always_lpips(settings: Any) -> None:
    def quality(*given: str) -> dict[str, float]:
        options = [part for text in given for part in ("--gate-quality", text)]
        found: dict[str, float] = settings("--gate", *options).gate.quality
        return found

    assert quality("10%") == quality("lpips=0.1") == quality(" lpips = 10%") == {"lpips": 0.1}
    named = quality("clip_score=5%", "psnr=0.03")
    assert list(named.items()) == [("lpips", 0.05), ("psnr", 0.03), ("clip_score", 0.05)]
    with pytest.raises(OptionError, match=r"--gate-quality: there is no metric 'pnsr' \(did you mean psnr\?\); choose"):
        quality("pnsr=3%")
    with pytest.raises(OptionError, match="--gate-quality: lpips is given twice: 5% and 3%; keep one"):
        quality("5%", "lpips=3%")


@pytest.mark.parametrize(
    "arguments",
    [
        ("--gate-slowdown", "3"),
        ("--gate-quality", "x%"),
        ("--gate-quality", "psnr="),
        ("--gate-quality", "psnr=-5%"),
        ("--gate-quality", "=5%"),
        ("--gate-budget", "0s"),
        ("--gate-budget", "1week"),
    ],
)
def test_a_bad_value_of_the_gate_is_refused(arguments: tuple[str, str]) -> None:
    with pytest.raises(pytest.UsageError, match="must be"):
        parsed("--gate", *arguments)
