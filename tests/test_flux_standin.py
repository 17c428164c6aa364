"""The embedded stand-in of FLUX.1: drawn, searched, in scripts and before the judge, where no weights are named."""

from __future__ import annotations

import json
import runpy
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import FluxPipeline
from diffusers.hooks.first_block_cache import FBCHeadBlockHook
from entries import ENVIRONMENT, MET
from searches import SmallSearch, embedded_folder
from test_accelerators import same
from test_deciding import measurements
from test_generate import ROOT, findings
from test_transformer_caches import BROKEN_RESIDUALS, BROKEN_SERIES, break_residuals, break_series
from timings import SteadyClock

from pytest_diffaccel import accelerate
from pytest_diffaccel.accelerators.calls import text_length, usual_text_length
from pytest_diffaccel.accelerators.registry import default_registry
from pytest_diffaccel.codegen.lookup import Answer, find
from pytest_diffaccel.codegen.script import render
from pytest_diffaccel.codegen.tasks import Task
from pytest_diffaccel.judge.confine.limits import Limits
from pytest_diffaccel.judge.judge import Judge, Rules
from pytest_diffaccel.matrix import Cell, Params
from pytest_diffaccel.measure.metrics.clip_score import ClipScore
from pytest_diffaccel.measure.quality import References
from pytest_diffaccel.models.clip import ClipSource
from pytest_diffaccel.models.registry import ModelSource
from pytest_diffaccel.pipes import known
from pytest_diffaccel.records.golden_file import Golden, write_golden
from pytest_diffaccel.records.golden_key import GoldenKey

PIPE, SCHEDULER = "FLUX.1", "FlowMatchEulerDiscreteScheduler"
SIDE, GUIDANCE, TOKENS = 96, 3.5, 24
PROMPTS, SEEDS = ["red apple on a blue background", "frog on a yellow background"], [3, 4]
STEPS = 6
ACTING: dict[str, Params] = {
    "TaylorSeer": {"TaylorSeer": {"cache_interval": 2, "disable_cache_before_step": 2, "max_order": 1}},
    "MagCache": {"MagCache": {"threshold": 0.24, "max_skip_steps": 1, "retention_ratio": 0.2}},
    "FirstBlockCache": {"FirstBlockCache": {"threshold": 0.6}},
}
each_method = pytest.mark.parametrize("method", ACTING)
# Of 20 steps 8, 6 and 7 are not computed; measured: an LPIPS of at most 0.0006, 0.0002 and 0.0004, and of 0.16 for
# another seed.
MILD: dict[str, Params] = {
    "TaylorSeer": {"TaylorSeer": {"cache_interval": 2, "disable_cache_before_step": 5, "max_order": 1}},
    "MagCache": {"MagCache": {"threshold": 0.06, "max_skip_steps": 1, "retention_ratio": 0.3}},
    "FirstBlockCache": {"FirstBlockCache": {"threshold": 0.1}},
}
NEAR = {"TaylorSeer": 0.0012, "MagCache": 0.001, "FirstBlockCache": 0.001}


@pytest.fixture(scope="module")
def options() -> dict[str, Any]:
    """Of a call, as the model source says."""
    return ModelSource.from_option("embedded").spec(PIPE).call_options


@pytest.fixture
def flux(pipeline_of: Callable[[str, str], Any]) -> Any:
    return pipeline_of(PIPE, SCHEDULER)


@pytest.fixture
def drawn(flux: Any, options: dict[str, Any]) -> Callable[..., list[Any]]:
    def draw(params: Params, steps: int = STEPS, prompts: list[str] = PROMPTS, seeds: list[int] = SEEDS) -> list[Any]:
        with accelerate(flux, params, steps=steps, **options) as generate:
            return list(generate(prompts, seeds))

    return draw


# --- drawing ----------------------------------------------------------------------------------------------------


def test_it_is_drawn_as_it_was_trained_and_judged(options: dict[str, Any], flux: Any) -> None:
    settings = json.loads((embedded_folder(PIPE) / "vae" / "config.json").read_text(encoding="utf-8"))
    assert options == {"height": SIDE, "width": SIDE, "guidance_scale": GUIDANCE}
    assert (settings["sample_size"], text_length(flux)) == (SIDE, TOKENS)


def test_the_stand_ins_of_unets_are_drawn_as_ever() -> None:
    source = ModelSource.from_option("embedded")
    assert [spec.pipe for spec in source.specs] == ["SD1.5", "SD2.1", "SDXL", PIPE]
    assert [spec.call_options for spec in source.specs[:3]] == [{"guidance_scale": 5.0}] * 3


def test_its_class_fills_texts_up_as_is_known_of_it() -> None:
    assert known()[PIPE].text_length == usual_text_length(FluxPipeline) == 512


def test_it_draws_what_is_asked_for(drawn: Callable[..., list[Any]]) -> None:
    images = drawn({}, 10)
    assert {image.size for image in images} == {(SIDE, SIDE)}
    clip = ClipScore(ClipSource.from_option("embedded"))
    right = clip.score(images, images, PROMPTS, "cpu")
    wrong = clip.score(images, images, PROMPTS[::-1], "cpu")
    assert min(right) > 70 > 40 > max(wrong)


@pytest.fixture
def mild_lpips(drawn: Callable[..., list[Any]], baseline: list[Any]) -> Callable[[str], float]:
    return lambda method: References(baseline).distances(drawn(MILD[method], 20, PROMPTS[1:], SEEDS[1:]))[0]


@pytest.fixture(scope="module")
def baseline(pipeline_of: Callable[[str, str], Any], options: dict[str, Any]) -> list[Any]:
    with accelerate(pipeline_of(PIPE, SCHEDULER), {}, steps=20, **options) as generate:
        return list(generate(PROMPTS[1:], SEEDS[1:]))


@each_method
def test_a_mild_setting_stays_near(method: str, mild_lpips: Callable[[str], float]) -> None:
    """Counters run in a cache that gives wrong pictures, too."""
    assert 0 < mild_lpips(method) < NEAR[method]


@pytest.mark.parametrize("broken", BROKEN_SERIES)
def test_a_broken_taylorseer_would_be_seen(
    broken: str, mild_lpips: Callable[[str], float], monkeypatch: pytest.MonkeyPatch
) -> None:
    break_series(monkeypatch, broken)
    assert mild_lpips("TaylorSeer") > NEAR["TaylorSeer"]


# A residual that is added twice is hardly seen: a norm follows.
@pytest.mark.parametrize("broken", sorted(BROKEN_RESIDUALS.keys() - {"twice"}))
def test_a_broken_magcache_would_be_seen(
    broken: str, mild_lpips: Callable[[str], float], monkeypatch: pytest.MonkeyPatch
) -> None:
    break_residuals(monkeypatch, broken)
    assert mild_lpips("MagCache") > NEAR["MagCache"]


@pytest.mark.parametrize("broken", sorted(BROKEN_RESIDUALS.keys() - {"twice"}))
def test_a_broken_first_block_cache_would_be_seen(
    broken: str, mild_lpips: Callable[[str], float], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, first = FBCHeadBlockHook.new_forward, (SimpleNamespace(), SimpleNamespace())

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        state = self.state_manager.get_state()
        kept = state.tail_block_residuals
        if kept is not None:
            state.tail_block_residuals = tuple(map(BROKEN_RESIDUALS[broken], first, kept))
        found = whole(self, *args, **kwargs)
        state.tail_block_residuals = kept
        return found

    monkeypatch.setattr(FBCHeadBlockHook, "new_forward", forward)
    assert mild_lpips("FirstBlockCache") > NEAR["FirstBlockCache"]


# --- scripts and the judge --------------------------------------------------------------------------------------


@pytest.fixture
def answer(tmp_path: Path) -> Callable[[str], Answer]:
    """What golden answers to the task of a method."""

    def of(method: str) -> Answer:
        cell = Cell(PIPE, SCHEDULER, STEPS)
        environment = replace(ENVIRONMENT, pipe=PIPE, guidance_scale=GUIDANCE, image_size=(SIDE, SIDE), batch_size=1)
        entry = replace(MET, params=ACTING[method], environment=environment.id, batch_size=1)
        path = tmp_path / f"{method}.json"
        write_golden(path, {GoldenKey(cell, method, 1.5): entry}, {environment.id: environment})
        return find(Task(cell, method, 1.5, tuple(default_registry().names)), Golden.read(path))

    return of


@each_method
def test_a_script_draws_what_accelerate_draws(
    method: str, answer: Callable[[str], Answer], drawn: Callable[..., list[Any]], tmp_path: Path
) -> None:
    path = tmp_path / "script.py"
    path.write_text(render(answer(method)), encoding="utf-8")
    script = runpy.run_path(str(path))
    pipeline = script["build_pipeline"](str(embedded_folder(PIPE)), "cpu", torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    images = script["generate"](pipeline, PROMPTS, SEEDS)
    assert same(images, drawn(ACTING[method]))
    assert not same(images, drawn({}))
    assert same(images, script["generate"](pipeline, PROMPTS, SEEDS))


def test_a_script_times_it_at_its_own_size(
    answer: Callable[[str], Answer], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path, sizes = tmp_path / "script.py", []
    path.write_text(render(answer("MagCache")), encoding="utf-8")
    script = runpy.run_path(str(path))
    pipeline = script["build_pipeline"](str(embedded_folder(PIPE)), "cpu", torch.float32)
    decode = pipeline.vae.decode

    def noting(latents: Any, **more: Any) -> Any:
        sizes.append(latents.shape)
        return decode(latents, **more)

    monkeypatch.setattr(pipeline.vae, "decode", noting)
    monkeypatch.setitem(script["compare"].__globals__, "STEPS", 2)
    assert script["compare"](pipeline, PROMPTS[:1], SEEDS[:1]) > 0
    assert set(sizes) == {(1, 4, SIDE // 4, SIDE // 4)}


@pytest.mark.parametrize("command", [["check"], ["format", "--check", "--diff"]])
def test_ruff_finds_nothing_in_a_script(command: list[str], answer: Callable[[str], Answer], tmp_path: Path) -> None:
    for method in ACTING:
        (tmp_path / f"{method.lower()}.py").write_text(render(answer(method)), encoding="utf-8")
    for options in (["--isolated"], ["--config", str(ROOT / "pyproject.toml")]):
        assert not findings("ruff", [*command, "--no-cache", *options, str(tmp_path)])


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Judge]:
    lock = tmp_path_factory.mktemp("judge") / "timing.lock"
    judge = Judge(Rules(lock=lock, stages=("static", "runs"), limits=Limits(seconds=60.0)))
    yield judge
    judge.close()


@each_method
def test_a_script_passes_the_judge(method: str, answer: Callable[[str], Answer], judge: Judge) -> None:
    found = answer(method)
    verdict = judge.judge("flux", found.task, render(found).encode(), found)
    assert verdict.passed, verdict.failures
    runs = verdict.of("runs")
    assert runs is not None
    assert (runs.figures["params"], runs.figures["image_size"]) == (ACTING[method], [SIDE, SIDE])


#: What is written in place of what in a script, and what the judge says of it.
CHEATS = {
    "shorter texts": ("max_sequence_length=min(512, ", "max_sequence_length=min(8, ", "max_sequence_length: 8, not 24"),
    "no cache": ("pipeline.transformer.enable_cache(config)", "pass", "accelerators: none, not MagCache"),
    "never skips": ("mag_ratios=FLUX_MAG_RATIOS,", "mag_ratios=2 * FLUX_MAG_RATIOS,", "not those of its settings"),
    "skipped unseen": (
        "    with accelerated(pipeline) as call:\n",
        "    with accelerated(pipeline) as call:\n"
        "        config = pipeline.transformer._cache_config\n"
        "        pipeline.transformer._cache_config = type(config)(**vars(config))\n"
        "        config.max_skip_steps = 5\n",
        "not those of its settings",
    ),
    "another cache": (
        "pipeline.transformer.enable_cache(config)",
        "pipeline.transformer.enable_cache(__import__('diffusers').FirstBlockCacheConfig(0.2))",
        "FirstBlockCache",
    ),
}


@pytest.mark.parametrize("threshold", [0, 100], ids=["never reuses", "reuses unseen"])
def test_another_threshold_than_its_settings_say_is_caught(
    threshold: float, answer: Callable[[str], Answer], judge: Judge
) -> None:
    found, honest = answer("FirstBlockCache"), "pipeline.transformer.enable_cache(config)"
    cheat = "pipeline.transformer.transformer_blocks[0]._diffusers_hook.get_hook('fbc_leader_block_hook').threshold"
    script = render(found).replace(honest, f"{honest}\n    {cheat} = {threshold}")
    verdict = judge.judge("flux", found.task, script.encode(), found)
    assert [result.stage for result in verdict.failures] == ["runs"], verdict
    assert "not those of its settings" in verdict.failures[0].detail


@pytest.mark.parametrize("name", CHEATS)
def test_a_cheat_is_caught(name: str, answer: Callable[[str], Answer], judge: Judge) -> None:
    found = answer("MagCache")
    honest, cheat, said = CHEATS[name]
    script = render(found)
    assert honest in script
    verdict = judge.judge("flux", found.task, script.replace(honest, cheat).encode(), found)
    assert verdict.failures[-1].stage == "runs", verdict
    assert said in verdict.failures[-1].detail


def test_tasks_in_words_are_judged(
    answer: Callable[[str], Answer], pytester: pytest.Pytester, everything_imported: None, tmp_path: Path
) -> None:
    """Of any pipe, each by its name; one of the 1134 by its id."""
    name = f"{answer('MagCache').task.cell}-MagCache-1.5x"
    scripts = pytester.mkdir("codegen").joinpath("test_scripts.py")
    scripts.write_text((ROOT / "codegen" / "test_scripts.py").read_text(encoding="utf-8"), encoding="utf-8")
    asked = ("--task", f"FLUX.1, flow match euler, {STEPS} steps, MagCache, 1.5x", "--stages", "static,runs")
    few = ("--golden", str(tmp_path / "MagCache.json"), "--scores", "scores.json", "-v", "-p", "no:cacheprovider")
    done = pytester.runpytest_inprocess("codegen", *asked, "--task", "SD1.5, DDIM, 20 steps, DeepCache, 1.5x", *few)
    assert done.ret == 0, done.outlines
    done.stdout.fnmatch_lines_random([f"*test_script[[]{name}] PASSED*", "*test_script[[]193] SKIPPED*"])
    scores = json.loads((pytester.path / "scores.json").read_text(encoding="utf-8"))
    assert [script["prompt_id"] for script in scores["scripts"]] == [name]
    refused = pytester.runpytest_inprocess("codegen", *asked, "--ids", "192", *few)
    assert refused.ret == pytest.ExitCode.USAGE_ERROR
    refused.stderr.fnmatch_lines(["*--task and --ids: both name what to judge; give one of them"])


# --- searching --------------------------------------------------------------------------------------------------


def test_a_search_needs_nothing_but_its_name(small_search: SmallSearch, monkeypatch: pytest.MonkeyPatch) -> None:
    SteadyClock(monkeypatch).step_s["MagCache:skipped"] = 0.001
    few = ("--steps", "8", "--grid", "coarse", "--search-targets", "MagCache", "--num-samples", "2")
    bound = ("--batch-size", "2", "--bound", "clip_score=-50%")
    result = small_search.pytester.runpytest_inprocess("benches", "--pipe", "flux", *few, *bound)
    assert result.ret == 0, result.outlines
    result.stdout.fnmatch_lines([f"{PIPE} {SCHEDULER} 8 steps (embedded stand-in, not {PIPE})"])
    golden = Golden.read(small_search.golden)
    (environment,) = golden.environments.values()
    assert (environment.image_size, environment.guidance_scale) == ((SIDE, SIDE), GUIDANCE)
    assert any(entry.status == "met" for entry in golden.entries.values())


def test_thresholds_that_decide_alike_are_searched_once(
    small_search: SmallSearch, monkeypatch: pytest.MonkeyPatch
) -> None:
    SteadyClock(monkeypatch).step_s["FirstBlockCache:reused"] = 0.001
    few = ("--steps", "8", "--search-targets", "FirstBlockCache", "--num-samples", "2", "--batch-size", "1")
    result = small_search.pytester.runpytest_inprocess("benches", "--pipe", "flux", *few, "-rs")
    assert result.ret == 0, result.outlines
    result.stdout.fnmatch_lines(["*predicted *: reuses nothing in the first pictures*"])
    golden = Golden.read(small_search.golden)
    met = {entry.params["FirstBlockCache"]["threshold"] for entry in golden.entries.values() if entry.status == "met"}
    assert len(met) > 1
    found = [one for one in measurements(small_search) if one.sampling.purpose == "search"]
    assert all(len(kinds) == 8 for one in found for kinds in one.decided)
    decided = [one.decided[:2] for one in found]
    assert len(set(decided)) == len(decided) > 2
