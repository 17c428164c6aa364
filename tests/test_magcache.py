"""MagCache on pipes whose residuals' growth is not published: it is measured once, kept with the environment, used."""

from __future__ import annotations

import ast
import json
import runpy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import MagCacheConfig
from diffusers.hooks.mag_cache import MagCacheBlockHook
from searches import SearchFolder, embedded_folder, run_here, without_scale
from test_accelerators import Accident, accident_at, same, untouched
from test_generate import ROOT, findings
from test_transformer_caches import distance
from test_transformers import FLOW, entry
from timings import SteadyClock
from tiny_transformers import save_tiny

from pytest_diffaccel import accelerate, generate_script, load_pipeline
from pytest_diffaccel.accelerators.base import InvalidParams
from pytest_diffaccel.accelerators.magcache import MagCache
from pytest_diffaccel.accelerators.registry import default_registry
from pytest_diffaccel.accelerators.restoration import restored
from pytest_diffaccel.audit.preset import read_preset
from pytest_diffaccel.cli.main import main
from pytest_diffaccel.codegen.lookup import find
from pytest_diffaccel.codegen.tasks import Task
from pytest_diffaccel.judge.claim import Arguments
from pytest_diffaccel.judge.replay import Replay
from pytest_diffaccel.matrix import Cell, Lesson, Params
from pytest_diffaccel.models.registry import ModelSource, know_pipes
from pytest_diffaccel.pipes import PipeRegistry, PipeSpec, make_known
from pytest_diffaccel.records.environment import Environment
from pytest_diffaccel.records.golden_file import Golden, write_golden
from pytest_diffaccel.records.store import Store

SIZE = {"height": 32, "width": 32}
STEPS = 10
PROMPTS, SEEDS = ["red apple", "a blue pear"], [0, 1]
CLASSES = ("CogView4Pipeline", "QwenImagePipeline")
each_class = pytest.mark.parametrize("name", CLASSES)
# Grow not at all, so that as many steps are skipped as may be; a little; and so much that none is.
FLAT: Lesson = (1.0,) * STEPS
SLOPING: Lesson = (1.0,) + (1.2,) * (STEPS - 1)
STEEP: Lesson = (1.0,) + (3.0,) * (STEPS - 1)


def magcache(threshold: float, skips: int, retention: float) -> Params:
    return {"MagCache": {"threshold": threshold, "max_skip_steps": skips, "retention_ratio": retention}}


ACTING = magcache(0.3, 2, 0.2)


@pytest.fixture(autouse=True)
def only_built_in_pipes() -> Iterator[None]:
    """What a test knew is none of the next test's business."""
    yield
    make_known(PipeRegistry())


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """Loads the pipeline of a class as a models file's entry, whose output changes little from step to step, once."""
    place, pipelines = tmp_path_factory.mktemp("transformers"), dict[str, Any]()

    def load(name: str) -> Any:
        models = place / f"{name}.toml"
        if name not in pipelines:
            models.write_text(entry(name, save_tiny(name, place / name)), encoding="utf-8")
        know_pipes(PipeRegistry(), str(models))
        if name not in pipelines:
            pipelines[name] = load_pipeline("mine", models=str(models), device="cpu")
            calm(pipelines[name])
            generated(pipelines[name], {})  # text encoders get attributes at their first call
        return pipelines[name]

    return load


def calm(pipeline: Any) -> None:
    """By chance, weights of the timestep are wild, which those of a trained transformer are not."""
    with torch.no_grad():
        for module_name, module in pipeline.transformer.named_modules():
            if module_name.endswith("timestep_embedder"):
                for parameter in module.parameters():
                    parameter.mul_(0.1)


def denoiser_untouched(pipeline: Any) -> AbstractContextManager[None]:
    """Of the denoiser alone: Qwen-Image's VAE keeps something of each call that it decodes."""
    return untouched(SimpleNamespace(components={"transformer": pipeline.transformer}))


def generated(pipeline: Any, params: Params, learnt: Any = None) -> list[Any]:
    with accelerate(pipeline, params, steps=STEPS, learnt=learnt, **SIZE) as generate:
        return generate(PROMPTS, SEEDS)


def learnt_of(pipeline: Any, steps: int = STEPS) -> dict[str, Lesson]:
    with accelerate(pipeline, {}, steps=steps, **SIZE) as generate:
        return generate.learn(PROMPTS, SEEDS)


# --- measuring -------------------------------------------------------------------------------------------------------


@each_class
def test_ratios_are_those_that_diffusers_finds(
    name: str, loaded: Callable[[str], Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """It prints them for both of a step's calls, with the prompt and without; a step has their mean here."""
    pipeline = loaded(name)
    with denoiser_untouched(pipeline):
        learnt = learnt_of(pipeline)
    assert "MagCache" not in capsys.readouterr().out
    with restored(pipeline), accelerate(pipeline, {}, steps=STEPS, **SIZE) as generate:
        pipeline.transformer.enable_cache(MagCacheConfig(calibrate=True, num_inference_steps=STEPS))
        generate(PROMPTS, SEEDS)
    printed = [ast.literal_eval(line) for line in capsys.readouterr().out.splitlines() if line.startswith("[1.0,")]
    assert len(printed) == 2
    assert printed[0] != printed[1]
    assert learnt == {"MagCache": pytest.approx([fmean(step) for step in zip(*printed, strict=True)], abs=1e-5)}
    assert learnt["MagCache"][0] == 1.0 != learnt["MagCache"][1]
    assert learnt_of(pipeline) == learnt


def test_flux_learns_nothing(flux_standin: Any) -> None:
    with accelerate(flux_standin, {}, steps=2) as generate:
        assert generate.learn(PROMPTS, SEEDS) == {}


@pytest.fixture
def flux_standin() -> Any:
    embedded_folder("FLUX.1")
    return load_pipeline("FLUX.1", device="cpu")


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_ratios_that_are_no_numbers_are_refused(
    loaded: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, broken: float
) -> None:
    def measure(_self: Any, state: Any, _residual: Any) -> None:
        state.calibration_ratios.append(broken)

    pipeline = loaded("QwenImagePipeline")
    monkeypatch.setattr(MagCacheBlockHook, "_perform_calibration_step", measure)
    words = f"the residuals of a step grow by {broken}, which is no number to go by"
    with denoiser_untouched(pipeline), pytest.raises(ValueError, match=words):
        learnt_of(pipeline)


@each_class
def test_without_ratios_it_is_refused_before_anything_runs(name: str, loaded: Callable[[str], Any]) -> None:
    pipeline = loaded(name)
    words = (
        f"MagCache: of a {name} it is not known how its residuals grow from step to step; give what a search has "
        r"learnt, which golden/environments.json keeps, .* accelerate\(..., learnt=generate.learn\(prompts, seeds\)\)"
    )
    with (
        denoiser_untouched(pipeline),
        pytest.raises(InvalidParams, match=words),
        accelerate(pipeline, ACTING, steps=STEPS),
    ):
        pytest.fail("nothing may run")
    with pytest.raises(InvalidParams, match=words):
        default_registry().for_params(ACTING).apply(pipeline, pipeline.__call__, ACTING)
    with pytest.raises(InvalidParams, match="unknown method Mag; known: "):
        generated(pipeline, {}, {"Mag": FLAT})


# --- acting ----------------------------------------------------------------------------------------------------------


@each_class
@pytest.mark.parametrize("point", [(0.02, 1, 0.1), (0.1, 3, 0.2), (0.3, 2, 0), (100, 5, 0.3), (0.3, 0, 0.2)], ids=str)
def test_what_is_computed_in_each_call_is_what_the_ratios_predict(
    name: str, loaded: Callable[[str], Any], point: tuple[float, int, float]
) -> None:
    pipeline, params = loaded(name), magcache(*point)
    learnt, computed = learnt_of(pipeline), list[set[int]]()
    blocks = list(pipeline.transformer.transformer_blocks)
    with restored(pipeline), accelerate(pipeline, params, steps=STEPS, learnt=learnt, **SIZE) as generate:
        pipeline.transformer.register_forward_pre_hook(lambda *_: computed.append(set()))
        for place, block in enumerate(blocks):
            attention = next(module for part, module in block.named_children() if part.startswith("attn"))
            attention.register_forward_pre_hook(lambda *_, place=place: computed[-1].add(place))
        generate(PROMPTS, SEEDS)
    made = ["MagCache:computed" if call == {*range(len(blocks))} else "MagCache:skipped" for call in computed]
    assert all(len(call) in (0, len(blocks)) for call in computed)
    assert made[::2] == made[1::2] == [*generate.kinds]
    skipped = generate.kinds.count("MagCache:skipped")
    assert generate.fired["skipped_blocks"] == 2 * len(blocks) * skipped
    taught = MagCache().taught(learnt["MagCache"])
    assert bool(taught.counters(params["MagCache"], STEPS)) == bool(skipped)


@each_class
def test_other_ratios_skip_other_steps(name: str, loaded: Callable[[str], Any]) -> None:
    pipeline, baseline = loaded(name), generated(loaded(name), {})
    skipping = generated(pipeline, ACTING, {"MagCache": FLAT})
    assert not same(skipping, baseline)
    assert not same(skipping, generated(pipeline, ACTING, {"MagCache": SLOPING}))
    with accelerate(pipeline, ACTING, steps=STEPS, learnt={"MagCache": STEEP}, **SIZE) as generate:
        assert same(generate(PROMPTS, SEEDS), baseline)
    assert generate.fired["skipped_blocks"] == 0


@each_class
@pytest.mark.parametrize("point", [(0.3, 0, 0.2), (0.3, 3, 1)], ids=["no skips", "all retained"])
def test_identity_settings_give_the_baselines_images(
    name: str, loaded: Callable[[str], Any], point: tuple[float, int, float]
) -> None:
    pipeline = loaded(name)
    assert same(generated(pipeline, magcache(*point), {"MagCache": FLAT}), generated(pipeline, {}))


@each_class
def test_nothing_is_left_behind_and_pictures_are_the_same_twice(name: str, loaded: Callable[[str], Any]) -> None:
    pipeline, learnt = loaded(name), {"MagCache": FLAT}
    before = generated(pipeline, {})
    with denoiser_untouched(pipeline), accelerate(pipeline, ACTING, steps=STEPS, learnt=learnt, **SIZE) as generate:
        first = generate(PROMPTS, SEEDS)
        assert same(generate(PROMPTS, SEEDS), first)
    assert not same(first, before)
    assert same(generated(pipeline, {}), before)


@each_class
@pytest.mark.parametrize("call", [1, 9, 14])
@pytest.mark.parametrize("learning", [False, True], ids=["skipping", "learning"])
def test_nothing_is_left_behind_after_an_exception(
    name: str, loaded: Callable[[str], Any], call: int, learning: bool
) -> None:
    pipeline = loaded(name)
    before = generated(pipeline, {})
    runs = partial(learnt_of, pipeline) if learning else partial(generated, pipeline, ACTING, {"MagCache": FLAT})
    with denoiser_untouched(pipeline), accident_at(pipeline.transformer.norm_out, call), pytest.raises(Accident):
        runs()
    assert same(generated(pipeline, {}), before)


@each_class
def test_a_mild_setting_stays_near_and_broken_ratios_would_be_seen(name: str, loaded: Callable[[str], Any]) -> None:
    """Ratios of which none is far from 1 skip as many steps as they may."""
    pipeline, learnt = loaded(name), learnt_of(loaded(name))
    # As many steps as let the residual grow hardly more than the calmest of those that are not kept does.
    params = magcache(1.01 * min(abs(1 - ratio) for ratio in learnt["MagCache"][3:]) + 1e-6, 5, 0.3)
    baseline = generated(pipeline, {})
    near = distance(generated(pipeline, params, learnt), baseline)
    assert 0 < 2 * near < distance(generated(pipeline, params, {"MagCache": FLAT}), baseline)


# --- grids -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def mine() -> None:
    registry = PipeRegistry()
    registry.register(PipeSpec("mine", "QwenImagePipeline", denoiser="transformer"))
    make_known(registry)


@pytest.mark.parametrize("steps", [2, 4, 20, 50])
@pytest.mark.parametrize("growth", [0.9, 0.98, 1.0, 1.3])
def test_a_taught_grid_is_a_part_of_the_one_before_without_repetitions(mine: None, steps: int, growth: float) -> None:
    before, taught = MagCache(), MagCache().taught((1.0,) + (growth,) * (steps - 1))
    cell = Cell("mine", FLOW, steps)
    for all_points, points in (
        *((before.grid(cell, size), taught.grid(cell, size)) for size in ("full", "coarse", "pair")),
        (before.space(cell), taught.space(cell)),
    ):
        assert [point for point in all_points if point in points] == points
        kinds = [tuple(taught.kinds(point, steps, frozenset())) for point in points]
        assert len({*kinds}) == len(kinds)
        assert all("skipped" in one for one in kinds)
        # None of those left out would have made other calls.
        assert {tuple(taught.kinds(point, steps, frozenset())) for point in all_points} <= {
            *kinds, ("computed",) * steps
        }  # fmt: skip
        for point in points:
            assert taught.counters(point, steps)
            assert all(0 <= one <= 1 for one in taught.coordinates(point, cell))


def test_a_taught_registry_has_the_same_accelerators() -> None:
    registry = default_registry()
    taught = registry.taught({"MagCache": FLAT})
    assert taught.names == registry.names
    assert taught is registry.taught({"MagCache": [*FLAT]})  # type: ignore[dict-item]  # as JSON has it
    assert registry.taught({}) is registry
    assert registry.for_params(ACTING).methods[0].lesson is None
    (method,) = taught.for_params(ACTING).methods
    assert (method.lesson, type(method)) == (FLAT, MagCache)
    unlike = [one for one, other in zip(taught.methods, registry.methods, strict=True) if one is not other]
    assert unlike == [method]


# --- a search ---------------------------------------------------------------------------------------------------------

FOUND_STEPS = 6
CELL = Cell("mine", FLOW, FOUND_STEPS)
FEW = (
    *("benches", "--models", "models.toml", "--pipe", "mine", "--sched", FLOW, "--search-targets", "MagCache"),
    *("--num-samples", "2", "--batch-size", "1", "--max-quality-loss", "10", "--grid", "coarse"),
)


class Searched(SearchFolder):
    """A folder in which pipes of CogView4's class were searched.

    Attributes:
        measured: by run, how many residuals were measured.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.measured: list[int] = []
        self.pipeline = save_tiny("CogView4Pipeline", path / "cogview4")
        pipeline = load_saved(self.pipeline)
        calm(pipeline)
        pipeline.transformer.save_pretrained(self.pipeline / "transformer")
        text = entry("CogView4Pipeline", Path("cogview4")).replace("[4]", f"[{FOUND_STEPS}]")
        (path / "models.toml").write_text(text, encoding="utf-8")
        (path / "conftest.py").write_text("", encoding="utf-8")

    def search(self, *more: str) -> int:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("pytest_diffaccel.measure.blocks._REPEATS", 0)
            without_scale(patch)
            clock = SteadyClock(patch)
            clock.step_s |= {"MagCache:computed": 0.021, "MagCache:skipped": 0.001}
            measured = _counting(patch)
            status = run_here(self.path, *FEW, *more)
        self.measured.append(len(measured))
        return status

    @property
    def records(self) -> Golden:
        return Golden.read(self.golden)

    @property
    def environment(self) -> Environment:
        (environment,) = self.records.environments.values()
        return environment


def _counting(patch: pytest.MonkeyPatch) -> list[Any]:
    """Gets an item for each residual that diffusers measures."""
    measured: list[Any] = []
    measure = MagCacheBlockHook._perform_calibration_step

    def counted(self: Any, state: Any, residual: Any) -> None:
        measured.append(self)
        measure(self, state, residual)

    patch.setattr(MagCacheBlockHook, "_perform_calibration_step", counted)
    return measured


def load_saved(folder: Path) -> Any:
    from diffusers import DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained(str(folder))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def searched(
    tmp_path_factory: pytest.TempPathFactory, everything_imported: None, loaded: Callable[[str], Any]
) -> Searched:
    generated(loaded("CogView4Pipeline"), {})  # what that imports would be forgotten after the search
    make_known(PipeRegistry())
    folder = Searched(tmp_path_factory.mktemp("searched"))
    assert folder.search() == 0
    return folder


def test_a_search_measures_ratios_once_and_ends_with_winners(searched: Searched) -> None:
    met = [entry for entry in searched.records.entries.values() if entry.status == "met"]
    assert met
    assert all([*entry.params] == ["MagCache"] for entry in met)
    lessons = searched.environment.lessons(CELL)
    assert [*lessons] == ["MagCache"]
    assert len(lessons["MagCache"]) == FOUND_STEPS
    assert searched.measured[0] > 0
    with Store.open(searched.store) as store:
        (stored,) = store.environments().values()
    assert stored.learnt == searched.environment.learnt
    assert stored.id == replace(stored, learnt={}).id
    before = searched.golden.read_bytes(), searched.golden.with_name("environments.json").read_bytes()
    assert searched.search("--fresh") == 0
    assert searched.measured[-1] == 0
    assert searched.golden.with_name("environments.json").read_bytes() == before[1]


def test_points_of_equal_masks_are_one_candidate(searched: Searched) -> None:
    taught = default_registry().taught(searched.environment.lessons(CELL))
    with Store.open(searched.store) as store:
        made = [one.measurement.candidate for one in store.contents().measurements]
    found = [candidate for candidate in made if candidate.params]
    kinds = {one.key: taught.for_params(one.params).kinds(one.params, FOUND_STEPS) for one in found}
    assert len(set(kinds.values())) == len(kinds) > 0
    assert all("MagCache:skipped" in one for one in kinds.values())


def test_what_golden_has_learnt_is_taken_where_the_store_is_gone(searched: Searched) -> None:
    """And kept in the new one; where the two differ, nothing is recorded."""
    store, golden = searched.path / "other.sqlite", searched.path / "other" / "search_params.json"
    other = replace(searched.environment, learnt={"MagCache": {FLOW: {str(FOUND_STEPS): FLAT[:FOUND_STEPS]}}})
    golden.parent.mkdir()
    write_golden(golden, searched.records.entries, {other.id: other})
    places = ("--store", str(store), "--golden", str(golden), "--update-golden")
    assert searched.search(*places) == 0
    assert Golden.read(golden).lessons(CELL, ["MagCache"]) == {"MagCache": FLAT[:FOUND_STEPS]}
    with Store.open(store) as found:
        assert found.environments()[other.id].lessons(CELL) == {"MagCache": FLAT[:FOUND_STEPS]}
    unlike = replace(other, learnt={"MagCache": {FLOW: {str(FOUND_STEPS): STEEP[:FOUND_STEPS]}}})
    golden.with_name("environments.json").unlink()
    write_golden(golden, searched.records.entries, {unlike.id: unlike})
    before = golden.read_bytes()
    assert searched.search(*places, "--fresh") != 0
    assert golden.read_bytes() == before


def task() -> Task:
    return Task(CELL, "MagCache", 1.2, tuple(default_registry().names))


@pytest.fixture
def known_pipe(searched: Searched, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(searched.path)
    know_pipes(PipeRegistry(), "models.toml")
    return searched.path / "models.toml"


def drawn_by_accelerate(searched: Searched, params: Params) -> list[Any]:
    pipeline, environment = load_pipeline("mine", models="models.toml", device="cpu"), searched.environment
    with accelerate(
        pipeline,
        params,
        steps=FOUND_STEPS,
        guidance_scale=environment.guidance_scale,
        learnt=environment.lessons(CELL),
        **SIZE,
    ) as generate:
        return generate(PROMPTS, SEEDS)


def test_a_script_has_the_ratios_and_draws_what_accelerate_draws(
    searched: Searched, known_pipe: Path, tmp_path: Path
) -> None:
    text, path = generate_script(task(), searched.golden), tmp_path / "script.py"
    path.write_text(text, encoding="utf-8")
    script = runpy.run_path(str(path))
    assert tuple(script["MAGCACHE_RATIOS"]) == searched.environment.lessons(CELL)["MagCache"]
    assert "FLUX" not in text
    pipeline = script["build_pipeline"](str(searched.pipeline), "cpu", torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.transformer.config.sample_size = 4
    pipeline.default_sample_size = 4
    answer = find(task(), searched.records)
    images = script["generate"](pipeline, PROMPTS, SEEDS)
    assert same(images, script["generate"](pipeline, PROMPTS, SEEDS))
    assert same(images, drawn_by_accelerate(searched, answer.entry.params))
    assert not pipeline.transformer.is_cache_enabled
    for command in (["check"], ["format", "--check", "--diff"]):
        for options in (["--isolated"], ["--config", str(ROOT / "pyproject.toml")]):
            assert not findings("ruff", [*command, "--no-cache", *options, str(tmp_path)])
    read = read_preset(path, default_registry(), PipeSpec("mine", "CogView4Pipeline", denoiser="transformer"))
    assert read.params == answer.entry.params
    ratios = list(searched.environment.lessons(CELL)["MagCache"])
    assert [remark.partition(": ")[2] for remark in read.remarks] == [
        f"mag_ratios={ratios}: measured with what MagCache learns of the pipe here"
    ]


def test_exported_lines_have_them_too(
    searched: Searched, known_pipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = str(task().key)
    assert main(["export", key, "--as", "diffusers", "--golden", str(searched.golden), "--models", "models.toml"]) == 0
    lines = capsys.readouterr().out
    pipeline = load_pipeline("mine", models="models.toml", device="cpu")
    exec(compile(lines, "exported", "exec"), {"pipe": pipeline})
    told = pipeline.transformer._cache_config.mag_ratios.tolist()
    assert told == pytest.approx(searched.environment.lessons(CELL)["MagCache"])
    (tmp_path / "lines.py").write_text(lines, encoding="utf-8")
    assert not findings("ruff", ["format", "--check", "--diff", "--isolated", "--no-cache", str(tmp_path)])


def test_records_without_ratios_answer_nothing(searched: Searched, known_pipe: Path) -> None:
    records, environment = searched.records, replace(searched.environment, learnt={})
    lacking = replace(records, environments={environment.id: environment})
    words = "environments.json does not tell how its residuals grow from step to step in environment"
    with pytest.raises(ValueError, match=words):
        find(task(), lacking)
    longer = Task(replace(CELL, steps=2 * FOUND_STEPS), "MagCache", 1.2, tuple(default_registry().names))
    with pytest.raises(ValueError, match=r"no golden record .* is known to hold for"):
        find(longer, records)


def test_the_judge_repeats_a_call_with_them(searched: Searched, known_pipe: Path) -> None:
    answer = find(task(), searched.records)
    registry = default_registry().learning(searched.records.lessons)
    arguments = Arguments(FOUND_STEPS, PROMPTS, 32, 32, searched.environment.guidance_scale)
    source = ModelSource.from_option("models.toml")
    images, counts = Replay(source, registry, "cpu").counted(task(), arguments, answer.entry.params, SEEDS)
    assert same(images, drawn_by_accelerate(searched, answer.entry.params))
    assert counts.fired["skipped_blocks"] > 0
    assert not counts.silent
    with pytest.raises(InvalidParams, match="MagCache: of a CogView4Pipeline it is not known how its residuals grow"):
        Replay(source, default_registry(), "cpu").images(task(), arguments, answer.entry.params, SEEDS)


def test_a_preset_is_audited_with_ratios_that_are_measured_here(
    searched: Searched, known_pipe: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    SteadyClock(monkeypatch).step_s["MagCache:skipped"] = 0.001
    Path("mine.py").write_text("MagCacheConfig(100, 3, 0.2, num_inference_steps=6, mag_ratios=FLUX_MAG_RATIOS)\n")
    few = ("--num-samples", "1", "--batch-size", "1", "--blocks", "2")
    monkeypatch.setenv("COLUMNS", "1000")
    assert main(["audit", "mine.py", "--models", "models.toml", "--pipe", "mine", *few]) == 0
    said = capsys.readouterr().out
    assert "mag_ratios=FLUX_MAG_RATIOS: measured with what MagCache learns of the pipe here" in said
    assert "acts in no step" not in said


# --- the gate --------------------------------------------------------------------------------------------------------


def test_the_gate_takes_goldens_ratios(searched: Searched, capsys: pytest.CaptureFixture[str]) -> None:
    """Where golden has lost them, it refuses to judge by others."""
    gate = ("--gate", "--gate-budget", "5s", "-k", "MagCache")
    for more in (("--update-golden",), ()):
        searched.search(*gate, *more)
        assert "REFUSED" not in capsys.readouterr().out.upper()
        assert searched.measured[-1] == 0
    environments = searched.golden.with_name("environments.json")
    whole = environments.read_text(encoding="utf-8")
    told = json.loads(whole)
    del told[searched.environment.id]["learnt"]
    try:
        environments.write_text(json.dumps(told), encoding="utf-8")
        assert searched.search(*gate) != 0
        said = " ".join(capsys.readouterr().out.split())
        assert "environments.json does not tell how its residuals grow from step to step (MagCache)" in said
        assert "--steps 6 --update-golden --models models.toml" in said
        assert searched.measured[-1] == 0
    finally:
        environments.write_text(whole, encoding="utf-8")
