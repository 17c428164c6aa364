"""Pipes of one's own whose denoiser is a transformer: what a class entry of a models file makes of them."""

from __future__ import annotations

import runpy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from recorded import environment as recorded_environment
from searches import TESTS, SmallSearch
from timings import SteadyClock
from tiny_transformers import MADE, save_tiny

from pytest_diffaccel import accelerate, load_pipeline
from pytest_diffaccel.accelerators.acceleration import StepCountError
from pytest_diffaccel.accelerators.base import InvalidParams
from pytest_diffaccel.accelerators.calls import UnsupportedPipeline, guidance_scale_of, is_guided
from pytest_diffaccel.accelerators.registry import default_registry
from pytest_diffaccel.codegen.lookup import Answer
from pytest_diffaccel.codegen.script import render
from pytest_diffaccel.codegen.tasks import Task
from pytest_diffaccel.matrix import Cell
from pytest_diffaccel.measure.clock import timed
from pytest_diffaccel.models.registry import ModelSource, know_pipes
from pytest_diffaccel.pipes import PipeRegistry, PipeSpec, known, make_known
from pytest_diffaccel.records.golden import GoldenEntry
from pytest_diffaccel.records.golden_file import read_golden

SIZE = {"height": 32, "width": 32}
STEPS = 3
PROMPTS, SEEDS = ["red apple", "a blue pear"], [0, 1]
#: Denoiser calls of a step with guidance, and the scale that each class takes by itself.
CALLS = {"CogView4Pipeline": 2, "PixArtSigmaPipeline": 1, "QwenImagePipeline": 2}
SCALES = {"CogView4Pipeline": 5.0, "PixArtSigmaPipeline": 4.5, "QwenImagePipeline": 4.0}
FLOW = "FlowMatchEulerDiscreteScheduler"
SCHEDULERS = {"CogView4Pipeline": FLOW, "PixArtSigmaPipeline": "DDIMScheduler", "QwenImagePipeline": FLOW}
# A method that leaves out the last blocks, in both of a step's calls.
SHORT = f"""
import sys
from pathlib import Path

sys.path.insert(0, {str(TESTS)!r})
from echo import spend_little
from pytest_diffaccel.accelerators.base import Method, points

spend_little()

class Short(Method):
    name, param_names = "Short", ("blocks_left",)
    template = Path(__file__).with_name("short.py.j2")

    def grid(self, cell, size):
        return points(self.param_names, [(1,)])

    def check(self, point, steps):
        self.check_names(point)

    def kinds(self, point, steps, restarts):
        return ["short"] * steps

    def apply(self, pipeline, call, params):
        blocks = pipeline.transformer.transformer_blocks
        pipeline.transformer.transformer_blocks = blocks[: params[self.name]["blocks_left"]]
        return call

def pytest_diffaccel_accelerators(registry):
    registry.register(Short())
"""
SHORT_SCRIPT = """
{% set constant = "SHORT" %}
{% set meaning = "Of the transformer's blocks, so many are left." %}
{% macro apply() %}
    blocks = pipeline.transformer.transformer_blocks
    pipeline.transformer.transformer_blocks = blocks[: SHORT["blocks_left"]]
{% endmacro %}
{% macro undo() %}
        pipeline.transformer.transformer_blocks = blocks
{% endmacro %}
"""
each_class = pytest.mark.parametrize("name", sorted(MADE))


@pytest.fixture(autouse=True)
def only_built_in_pipes() -> Iterator[None]:
    """What a test knew is none of the next test's business."""
    yield
    make_known(PipeRegistry())


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("transformers")
    return {name: save_tiny(name, place / name) for name in MADE}


def entry(name: str, folder: Path) -> str:
    return f'[mine]\nclass = "{name}"\npath = "{folder}"\nheight = 32\nwidth = 32\nsteps = [4]\n'


@pytest.fixture
def load(folders: dict[str, Path], tmp_path: Path) -> Any:
    """Loads the pipeline of a class as a models file's entry, and makes it known."""

    def loaded(name: str) -> Any:
        models = tmp_path / "models.toml"
        models.write_text(entry(name, folders[name]), encoding="utf-8")
        know_pipes(PipeRegistry(), str(models))
        return load_pipeline("mine", models=str(models), device="cpu")

    return loaded


def drawn(pipeline: Any, prompts: list[str] = PROMPTS, **options: Any) -> list[bytes]:
    with accelerate(pipeline, {}, steps=STEPS, **SIZE, **options) as generate:
        return [image.tobytes() for image in generate(prompts, SEEDS)]


@each_class
def test_its_baseline_is_generated_and_timed(name: str, load: Any) -> None:
    pipeline = load(name)
    assert (type(pipeline).__name__, type(pipeline.scheduler).__name__) == (name, SCHEDULERS[name])
    with accelerate(pipeline, {}, steps=STEPS, **SIZE) as generate:
        before = [image.tobytes() for image in generate(PROMPTS, SEEDS)]
        _, run = timed(generate, PROMPTS, SEEDS)
    assert generate.fired["denoiser_calls"] == CALLS[name] * STEPS
    assert (len(run.step_s), run.kinds) == (STEPS, ("plain",) * STEPS)
    assert drawn(pipeline) == before
    assert drawn(pipeline, ["a green dog", "a white cat"]) != before


@each_class
def test_guidance_is_on_and_off_as_the_scale_says(name: str, load: Any) -> None:
    pipeline = load(name)
    assert guidance_scale_of(pipeline, None) == SCALES[name]
    assert is_guided(pipeline, None)
    assert not is_guided(pipeline, 1.0)
    with accelerate(pipeline, {}, steps=STEPS, guidance_scale=1.0, **SIZE) as generate:
        generate(PROMPTS, SEEDS)
    assert generate.fired["denoiser_calls"] == STEPS
    assert drawn(pipeline) == drawn(pipeline, guidance_scale=SCALES[name]) != drawn(pipeline, guidance_scale=1.0)


def test_qwen_images_scale_is_the_one_that_guides(load: Any) -> None:
    """Its call has two: ``guidance_scale`` is for models that take it as an input."""
    pipeline = load("QwenImagePipeline")
    noise = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    images = pipeline(
        PROMPTS, [" ", " "], true_cfg_scale=2.0, num_inference_steps=STEPS, generator=noise, **SIZE
    ).images
    assert drawn(pipeline, guidance_scale=2.0) == [image.tobytes() for image in images]


@each_class
def test_methods_for_unets_say_why_they_do_not_apply(name: str, load: Any) -> None:
    pipeline = load(name)
    denoiser = type(pipeline.transformer).__name__
    for params, words in (
        ({"DeepCache": {"cache_interval": 2, "cache_branch_id": 0}}, f"{denoiser} has no down and up blocks"),
        (
            {"T-Gate": {"gate_step": 2, "sp_interval": 1, "fi_interval": 1, "warm_up": 0}},
            f"tgate's functions are used for Stable Diffusion and SDXL, not for a {name}",
        ),
        ({"ToMe": {"ratio": 0.5, "max_downsample": 1}}, f"no transformer block in a {denoiser} to merge tokens in"),
    ):
        with pytest.raises(InvalidParams, match=words), accelerate(pipeline, params, steps=STEPS, **SIZE):
            pass


@each_class
def test_a_method_that_applies_is_searched_and_recorded(
    name: str, folders: dict[str, Path], small_search: SmallSearch, monkeypatch: pytest.MonkeyPatch
) -> None:
    SteadyClock(monkeypatch).step_s["Short:short"] = 0.005
    (small_search.path / "models.toml").write_text(entry(name, folders[name]), encoding="utf-8")
    (small_search.path / "conftest.py").write_text(SHORT, encoding="utf-8")
    few = ("--num-samples", "2", "--batch-size", "1", "--blocks", "1", "--max-quality-loss", "10", "--exhaustive")
    scheduler = "DDIM" if SCHEDULERS[name] != FLOW else FLOW
    options = ("--models", "models.toml", "--pipe", "mine", "--sched", scheduler, "--search-targets", "Short", *few)
    result = small_search.pytester.runpytest_inprocess("benches", *options)
    assert result.ret == 0, result.outlines
    recorded = {(key.cell, key.accelerator) for key in read_golden(small_search.golden)}
    assert recorded == {(Cell("mine", scheduler, 4), "Short")}


def test_a_script_is_guided_as_the_search_was(load: Any, folders: dict[str, Path], tmp_path: Path) -> None:
    """Qwen-Image's scale is ``true_cfg_scale``; a script by the usual argument would leave guidance out."""
    pipeline = load("QwenImagePipeline")
    for name, text in (("short.py.j2", SHORT_SCRIPT), ("conftest.py", SHORT)):
        (tmp_path / name).write_text(text, encoding="utf-8")
    registry = default_registry()
    runpy.run_path(str(tmp_path / "conftest.py"))["pytest_diffaccel_accelerators"](registry)
    cell, params = Cell("mine", FLOW, STEPS), {"Short": {"blocks_left": 1}}
    task = Task(cell, "Short", 1.5, tuple(registry.names))
    environment = replace(recorded_environment("mine"), guidance_scale=SCALES["QwenImagePipeline"])
    entry = GoldenEntry(
        status="met",
        params=params,
        speedup=1.7,
        speedup_ci95=(1.6, 1.8),
        wall_speedup=1.7,
        wall_speedup_ci95=(1.6, 1.8),
        lpips=0.1,
        lpips_ci95=(0.05, 0.15),
        num_samples=2,
        batch_size=1,
        environment=environment.id,
    )
    path = tmp_path / "script.py"
    answer = Answer(task, task.key, entry, environment, registry.for_params(params), attained=True)
    path.write_text(render(answer), encoding="utf-8")
    script = runpy.run_path(str(path))
    made = script["build_pipeline"](str(folders["QwenImagePipeline"]), "cpu", torch.float32)
    for one in (made, pipeline):
        one.default_sample_size = 4  # of 8 x 8 pixels each
        one.set_progress_bar_config(disable=True)
    with accelerate(pipeline, params, steps=STEPS, registry=registry) as generate:
        expected = [image.tobytes() for image in generate(PROMPTS, SEEDS)]
    assert [image.tobytes() for image in script["generate"](made, PROMPTS, SEEDS)] == expected
    assert generate.fired["denoiser_calls"] == 2 * STEPS
    assert script["compare"](made, PROMPTS[:1], SEEDS[:1]) > 0


@each_class
def test_an_entry_by_hub_id_says_enough(name: str, tmp_path: Path) -> None:
    (tmp_path / "models.toml").write_text(f'[mine]\nclass = "{name}"\nid = "owner/name"\n', encoding="utf-8")
    pipe = ModelSource.from_option(str(tmp_path / "models.toml")).spec("mine").family
    assert pipe.with_weights == ("text_encoder", "transformer", "vae")
    assert (pipe.schedulers[0] == FLOW) is (SCHEDULERS[name] == FLOW)


def test_a_class_that_is_not_known_is_read_from_its_folder(tmp_path: Path) -> None:
    index = '{"transformer": ["diffusers", "A"], "vae": ["diffusers", "B"], "scheduler": ["diffusers", "%s"]}'
    (tmp_path / "model_index.json").write_text(index % FLOW, encoding="utf-8")
    (tmp_path / "models.toml").write_text('[mine]\nclass = "LuminaPipeline"\npath = "."\n', encoding="utf-8")
    pipe = ModelSource.from_option(str(tmp_path / "models.toml")).spec("mine").family
    assert (pipe.denoiser, pipe.schedulers) == ("transformer", (FLOW,))


def test_a_class_whose_calls_tell_of_no_step_is_refused() -> None:
    class Silent:
        transformer = torch.nn.Identity()

        def __call__(self, prompt: str, guidance_scale: float = 4.0, **more: Any) -> None: ...

    registry = PipeRegistry()
    registry.register(PipeSpec("mine", "Silent", denoiser="transformer"))
    make_known(registry)
    with (
        pytest.raises(UnsupportedPipeline, match=r"Silent cannot be .* takes no callback_on_step_end, by which steps"),
        accelerate(Silent(), {}, steps=1),
    ):
        pass


def test_more_calls_than_guidance_takes_are_an_error(load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = load("PixArtSigmaPipeline")
    once = pipeline.transformer.forward

    def thrice(*args: Any, **options: Any) -> Any:
        for _ in range(2):
            monkeypatch.undo()
            pipeline.transformer(*args, **options)
            monkeypatch.setattr(pipeline.transformer, "forward", thrice)
        return once(*args, **options)

    monkeypatch.setattr(pipeline.transformer, "forward", thrice)
    with (
        pytest.raises(StepCountError, match=f"{3 * STEPS} denoiser calls for {STEPS} steps"),
        accelerate(pipeline, {}, steps=STEPS, **SIZE) as generate,
    ):
        generate(PROMPTS, SEEDS)


@pytest.mark.parametrize(("guidance_scale", "calls"), [(4.0, 2), (1.0, 1)])
def test_a_cache_follows_both_calls_of_a_step(load: Any, guidance_scale: float, calls: int) -> None:
    """Both are computed or predicted, each from what is its own."""
    pipeline, steps = load("QwenImagePipeline"), 6
    before = drawn(pipeline)
    params = {"TaylorSeer": {"cache_interval": 3, "disable_cache_before_step": 2, "max_order": 1}}
    with accelerate(pipeline, params, steps=steps, guidance_scale=guidance_scale, **SIZE) as generate:
        first = [image.tobytes() for image in generate(PROMPTS, SEEDS)]
        _, run = timed(generate, PROMPTS, SEEDS)
        assert [image.tobytes() for image in generate(PROMPTS, SEEDS)] == first
    predicted = run.kinds.count("TaylorSeer:predicted@1")
    assert (len(run.kinds), predicted) == (steps, 3)
    blocks = len(pipeline.transformer.transformer_blocks)
    assert generate.fired["denoiser_calls"] == calls * steps
    assert generate.fired["predicted_attention"] == calls * blocks * predicted
    assert drawn(pipeline) == before


@pytest.mark.parametrize(("name", "method"), [("CogView4Pipeline", "TaylorSeer"), ("PixArtSigmaPipeline", "MagCache")])
def test_a_search_says_what_does_not_apply(
    name: str, method: str, folders: dict[str, Path], small_search: SmallSearch
) -> None:
    (small_search.path / "models.toml").write_text(entry(name, folders[name]), encoding="utf-8")
    few = ("--num-samples", "1", "--batch-size", "1", "--grid", "coarse", "--search-targets", method)
    result = small_search.pytester.runpytest_inprocess("benches", "--models", "models.toml", "--pipe", "mine", *few)
    assert result.ret == 0, result.outlines
    scheduler = known()["mine"].schedulers[0]
    result.stdout.fnmatch_lines([f"*mine-{scheduler}-4 {method}: this model takes none of its * candidate*; *"])
