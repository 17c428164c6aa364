"""FLUX.1: a pipe whose denoiser is a transformer, with guidance as an input, packed latents and flow matching."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from searches import TESTS, SmallSearch
from timings import SteadyClock
from tiny_flux import CLIP_TOKENS, SIDE, T5_TOKENS, save_tiny_flux, tiny_flux

from pytest_diffaccel import accelerate, generate_script, load_pipeline
from pytest_diffaccel.accelerators.base import InvalidParams
from pytest_diffaccel.accelerators.calls import is_guided, own_size
from pytest_diffaccel.cli.main import main
from pytest_diffaccel.codegen.parser import SentenceError, parse_task
from pytest_diffaccel.judge.resolving import pipe_of
from pytest_diffaccel.matrix import PIPES, Cell
from pytest_diffaccel.measure.clock import timed
from pytest_diffaccel.models.architecture import build_pipeline, models
from pytest_diffaccel.models.registry import ModelSource, ModelSpec
from pytest_diffaccel.models.schedulers import set_scheduler
from pytest_diffaccel.models.weights import check_presence, weight_files
from pytest_diffaccel.pipe_shapes import FLUX1, FluxArchitecture
from pytest_diffaccel.pipes import known
from pytest_diffaccel.records.golden_file import read_golden
from pytest_diffaccel.settings.option_types import OptionError
from pytest_diffaccel.settings.options import add_options
from pytest_diffaccel.settings.search_settings import Settings

SIZE = {"height": SIDE, "width": SIDE}
PROMPTS, SEEDS = ["red apple", "blue pear"], [0, 1]
STEPS = 4
SCHEDULER = "FlowMatchEulerDiscreteScheduler"
METHODS: dict[str, dict[str, float]] = {
    "DeepCache": {"cache_interval": 2, "cache_branch_id": 0},
    "T-Gate": {"gate_step": 2, "sp_interval": 1, "fi_interval": 1, "warm_up": 0},
    "ToMe": {"ratio": 0.5, "max_downsample": 1},
}
# What `Hold` of the search's conftest file does: computes every n-th call, and gives the last output in between.
HOLD = f"""
import sys
sys.path.insert(0, {str(TESTS)!r})
from echo import Echo, spend_little
from pytest_diffaccel.accelerators.base import Method

spend_little()

class Hold(Echo):
    name, param_names, counted, watch = "Hold", ("hold_interval", "hold_mishap"), (), Method.watch

    def applies_to(self, pipeline):
        return ""

def pytest_diffaccel_accelerators(registry):
    registry.register(Hold([(2, 0), (4, 0)]))
"""

LAX = """
from pytest_diffaccel.accelerators.first_block_cache import FirstBlockCache

class Lax(FirstBlockCache):
    name = "Lax"

    def grid(self, cell, size):
        return [{{"threshold": threshold}} for threshold in {thresholds}]

def pytest_diffaccel_accelerators(registry):
    registry.register(Lax())
"""


@pytest.fixture(scope="module")
def pipeline() -> Any:
    return tiny_flux()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_flux(tmp_path_factory.mktemp("flux") / "tiny")


def spec_of(kind: Any, location: Path, **more: Any) -> ModelSpec:
    return ModelSpec("FLUX.1", kind, str(location), "a test", **more)


def load(spec: ModelSpec) -> Any:
    return load_pipeline("FLUX.1", models=ModelSource("test", (spec,)), device="cpu")


def plain(pipeline: Any, **more: Any) -> Any:
    """What the pipeline draws when nobody accelerates it."""
    noise = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    options: dict[str, Any] = {**SIZE, "num_inference_steps": STEPS, "max_sequence_length": T5_TOKENS, **more}
    return pipeline(PROMPTS, generator=noise, **options).images


def same(one: Any, other: Any) -> bool:
    return [image.tobytes() for image in one] == [image.tobytes() for image in other]


def first_inputs(pipeline: Any, prompts: list[str], seeds: list[int]) -> torch.Tensor:
    """What the first denoiser call of a generation is given as latents."""
    given: list[torch.Tensor] = []
    hook = pipeline.transformer.register_forward_pre_hook(
        lambda _module, _args, kwargs: given.append(kwargs["hidden_states"].clone()), with_kwargs=True
    )
    try:
        with accelerate(pipeline, {}, steps=STEPS, **SIZE) as generate:
            generate(prompts, seeds)
    finally:
        hook.remove()
    return given[0]


# --- generating -------------------------------------------------------------------------------------------------


def test_the_baseline_is_what_the_pipeline_draws_and_leaves_it_as_it_was(pipeline: Any) -> None:
    before = plain(pipeline)
    attributes = dict(vars(pipeline))
    with accelerate(pipeline, {}, steps=STEPS, **SIZE) as generate:
        drawn, again = generate(PROMPTS, SEEDS), generate(PROMPTS, SEEDS)
        generate.begun(PROMPTS, SEEDS, _Silent(), 1)
    assert same(drawn, before)
    assert same(again, before)
    assert vars(pipeline) == attributes
    assert same(plain(pipeline), before)
    assert generate.fired["denoiser_calls"] == STEPS
    assert generate.kinds == ("plain",) * STEPS


class _Silent:
    def started(self) -> None: ...

    def denoiser_called(self) -> None: ...

    def step_ended(self) -> None: ...

    def ended(self) -> None: ...


def test_every_step_is_timed(pipeline: Any) -> None:
    with accelerate(pipeline, {}, steps=STEPS, **SIZE) as generate:
        images, run = timed(generate, PROMPTS, SEEDS)
    assert (len(run.step_s), run.kinds) == (STEPS, ("plain",) * STEPS)
    assert min(run.step_s) > 0
    assert same(images, plain(pipeline))


def test_the_start_noise_of_an_image_depends_on_its_seed_alone(pipeline: Any) -> None:
    """Latents are packed: 2 x 2 tokens of 2 x 2 latents with 4 channels."""
    together = first_inputs(pipeline, PROMPTS, SEEDS)
    assert together.shape == (2, 4, 16)
    for place, seed in enumerate(SEEDS):
        assert torch.equal(first_inputs(pipeline, ["anything"], [seed])[0], together[place])
    assert not torch.equal(together[0], together[1])


@pytest.mark.parametrize("guidance_embeds", [True, False], ids=["dev", "schnell"])
def test_guidance_is_an_input_and_no_second_call(guidance_embeds: bool) -> None:
    pipeline = tiny_flux(guidance_embeds=guidance_embeds)
    drawn = []
    for scale in (None, 3.5, 1.0):
        with accelerate(pipeline, {}, steps=2, guidance_scale=scale, **SIZE) as generate:
            drawn.append(generate(PROMPTS, SEEDS))
        assert generate.fired["denoiser_calls"] == 2
        assert not is_guided(pipeline, scale)
    assert same(drawn[0], drawn[1]), "3.5 is the pipeline's own"
    assert same(drawn[0], drawn[2]) is not guidance_embeds


def test_texts_are_filled_up_to_their_tokenizers_length(pipeline: Any) -> None:
    """The pipeline's own 512 is FLUX.1's: a stand-in's T5 was made for fewer, and its pictures are others with more."""
    lengths: list[int] = []
    hook = pipeline.text_encoder_2.register_forward_pre_hook(lambda _module, args: lengths.append(args[0].shape[1]))
    try:
        with accelerate(pipeline, {}, steps=1, **SIZE) as generate:
            generate(PROMPTS, SEEDS)
    finally:
        hook.remove()
    assert lengths == [T5_TOKENS]


@pytest.mark.parametrize("size", [{"height": 40, "width": 32}, {"height": 32, "width": 8}, {"height": 32, "width": 0}])
def test_a_size_that_would_be_drawn_as_another_is_refused(pipeline: Any, size: dict[str, int]) -> None:
    """diffusers warns, and draws 32 x 32 pixels for 40 x 32."""
    with (
        pytest.raises(InvalidParams, match=r"=(40|8|0) must be a multiple of 16 for a FluxPipeline, such as (32|16)"),
        accelerate(pipeline, {}, steps=1, **size),
    ):
        pass


def test_its_own_size_is_that_of_its_weights(pipeline: Any) -> None:
    """As scripts draw it; its class alone would draw 128 latents."""
    assert own_size(pipeline) == (SIDE, SIDE) == (pipeline.vae.config.sample_size,) * 2
    assert pipeline.default_sample_size * pipeline.vae_scale_factor == 1024 == known()["FLUX.1"].image_size[0]
    with accelerate(pipeline, {}, steps=1) as generate:
        assert {image.size for image in generate(PROMPTS, SEEDS)} == {(SIDE, SIDE)}


def test_any_number_of_steps_can_be_followed(pipeline: Any) -> None:
    """Its timesteps are shifted by the size of the images, which the scheduler alone does not know."""
    for steps in (1, 28, 50, 1000):
        with accelerate(pipeline, {}, steps=steps, **SIZE):
            pass
    message = f"1001 steps; {SCHEDULER} takes 1 to 1000"
    with pytest.raises(ValueError, match=message), accelerate(pipeline, {}, steps=1001, **SIZE):
        pass


def test_its_scheduler_keeps_its_settings_and_takes_no_others_place() -> None:
    pipeline = tiny_flux()
    before = dict(pipeline.scheduler.config)
    set_scheduler(pipeline, SCHEDULER)
    assert {name: pipeline.scheduler.config[name] for name in before if not name.startswith("_")} == {
        name: value for name, value in before.items() if not name.startswith("_")
    }
    with pytest.raises(ValueError, match=f"FluxPipeline: DDIM is .* trained for flow matching: {SCHEDULER}"):
        set_scheduler(pipeline, "DDIM")


def test_flow_matching_is_for_no_other_model(pipeline_of: Callable[[str, str], Any]) -> None:
    with pytest.raises(ValueError, match=f"{SCHEDULER} is for models trained for flow matching, .*: DDIM, DPM"):
        set_scheduler(pipeline_of("SD1.5", "DDIM"), SCHEDULER)


# --- methods ----------------------------------------------------------------------------------------------------

REASONS = {
    "DeepCache": "FluxTransformer2DModel has no down and up blocks, whose features it keeps from step to step",
    "T-Gate": "tgate's functions are used for Stable Diffusion and SDXL, not for a FluxPipeline",
    "ToMe": "tomesd finds no transformer block in a FluxTransformer2DModel to merge tokens in",
}


@pytest.mark.parametrize("names", [("DeepCache",), ("T-Gate",), ("ToMe",), ("DeepCache", "T-Gate", "ToMe")])
def test_methods_for_unets_say_why_they_do_not_apply(pipeline: Any, names: tuple[str, ...]) -> None:
    params = {name: METHODS[name] for name in names}
    message = re.escape(f"{names[0]}: {REASONS[names[0]]}; leave it out")
    with pytest.raises(InvalidParams, match=f"^{message}$"), accelerate(pipeline, params, steps=STEPS, **SIZE):
        pass


# --- options and sentences --------------------------------------------------------------------------------------


@pytest.fixture
def settings() -> Callable[..., Settings]:
    def read(*arguments: str) -> Settings:
        parser = pytest.Parser(_ispytest=True)
        add_options(parser)
        return Settings.from_options(parser.parse_known_args(list(arguments)), ["DeepCache"])

    return read


@pytest.mark.parametrize("name", ["FLUX.1", "flux", "flux1", "FLUX.1-dev", "flux-1-dev"])
def test_it_is_searched_where_it_is_named(settings: Callable[..., Settings], name: str) -> None:
    assert list(settings("--pipe", name).cells) == [Cell("FLUX.1", SCHEDULER, steps) for steps in (28, 50)]


@pytest.mark.parametrize("arguments", [(), ("--pipe", "all")])
def test_it_is_searched_nowhere_else(settings: Callable[..., Settings], arguments: tuple[str, ...]) -> None:
    cells = settings(*arguments).cells
    assert len(cells) == 27
    assert {cell.pipe for cell in cells} == set(PIPES) == {"SD1.5", "SD2.1", "SDXL"}


@pytest.mark.parametrize("name", ["flow match euler", "FlowMatchEuler", "flow-match-euler", SCHEDULER])
def test_its_scheduler_is_named_and_spelled(settings: Callable[..., Settings], name: str) -> None:
    (cell,) = settings("--pipe", "FLUX.1", "--sched", name, "--steps", "20").cells
    assert cell == Cell("FLUX.1", SCHEDULER, 20)


@pytest.mark.parametrize(
    ("pipe", "scheduler", "said"),
    [
        ("FLUX.1", "DDIM", f"--sched, FLUX.1: DDIM is .* flow matching: {SCHEDULER}"),
        ("SD1.5", SCHEDULER, f"--sched, SD1.5: {SCHEDULER} is for models .* noise schedule: DDIM, DPM-Solver"),
        ("FLUX.1", "Euler", f"--sched: 'Euler' is unknown.*choose from {SCHEDULER}; all; "),
    ],
)
def test_a_scheduler_of_another_kind_is_refused(
    settings: Callable[..., Settings], pipe: str, scheduler: str, said: str
) -> None:
    with pytest.raises(OptionError, match=said):
        settings("--pipe", pipe, "--sched", scheduler)


@pytest.mark.parametrize("pipe", ["FLUX", "FLUX.1", "FLUX.1-dev", "Flux 1", "flux1", "FLUX.1 dev"])
@pytest.mark.parametrize("scheduler", ["FlowMatchEuler", "flow match euler", "flow-matching Euler", SCHEDULER])
def test_sentences_name_it(pipe: str, scheduler: str) -> None:
    task = parse_task(
        f"Generate a {pipe} pipeline using the {scheduler} sampler with 28 steps, accelerated by ToMe with 1.5x speedup"
    )
    assert (task.cell, task.target) == (Cell("FLUX.1", SCHEDULER, 28), 1.5)
    assert parse_task(task.sentence) == task


@pytest.mark.parametrize("pipe", ["FLUX.2", "FLUX.2-dev", "FLUX.1-schnell", "FLUX.1-Kontext-dev", "fluxion"])
def test_sentences_of_its_relatives_are_not_misread(pipe: str) -> None:
    with pytest.raises(SentenceError):
        parse_task(f"Generate a {pipe} pipeline using FlowMatchEuler with 28 steps, accelerated by ToMe 1.5x")


def test_a_task_without_a_record_says_what_to_search(tmp_path: Path) -> None:
    command = rf"pytest benches --pipe FLUX\.1 --sched {SCHEDULER} --steps 28 --search-targets MagCache"
    with pytest.raises(ValueError, match=command):
        generate_script("FLUX.1, flow match euler, 28 steps, MagCache, 1.5x", tmp_path / "none.json")


@pytest.mark.parametrize(
    ("sentence", "words"),
    [
        (
            "FLUX.1, flow match euler, 28 steps, ToMe, 1.5x",
            r"^ToMe is not for FLUX\.1, whose denoiser is a transformer; those that are: TaylorSeer; MagCache; "
            r"FirstBlockCache; DBCache$",
        ),
        (
            "FLUX.1, DDIM, 28 steps, TaylorSeer, 1.5x",
            rf"^FLUX\.1: DDIM is for a noise schedule, and this model was trained for flow matching: {SCHEDULER}$",
        ),
        (
            "SD1.5, flow match euler, 20 steps, DeepCache, 1.5x",
            rf"^SD1\.5: {SCHEDULER} is for models trained for flow matching, and this one was trained for a noise ",
        ),
    ],
)
def test_a_task_that_no_search_can_record_says_so(tmp_path: Path, sentence: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        generate_script(sentence, tmp_path / "none.json")


def test_winners_that_another_file_holds_are_named(tmp_path: Path) -> None:
    """As those of a search with --ray-device."""
    (tmp_path / "nvidia-h100.search_params.json").write_text("{}", encoding="utf-8")
    with pytest.raises(
        ValueError,
        match=r"there is no .*; name the golden .* that is there: --golden .*nvidia-h100\.search_params\.json",
    ):
        generate_script("FLUX.1, 28 steps, MagCache, 1.5x", tmp_path / "search_params.json")


def test_a_sentence_that_is_refused_is_told_which_scheduler_is_its_pipes() -> None:
    with pytest.raises(
        SentenceError, match=rf"no task: no accelerator\.\n.*; for FLUX\.1: {SCHEDULER}\. Accelerators: "
    ):
        parse_task("FLUX.1, 28 steps, 1.5x")


def test_hub_ids_in_scripts_stand_for_it() -> None:
    assert pipe_of("black-forest-labs/FLUX.1-dev") == pipe_of("flux1-schnell.safetensors") == "FLUX.1"
    for other in ("black-forest-labs/FLUX.2-dev", "black-forest-labs/FLUX.1-Kontext-dev"):
        with pytest.raises(OSError, match="none of the model sources"):
            pipe_of(other)


# --- weights ----------------------------------------------------------------------------------------------------


def test_a_folder_loads_and_draws_as_it_was_saved(folder: Path, pipeline: Any) -> None:
    loaded = load(spec_of("directory", folder))
    assert same(plain(loaded), plain(pipeline))
    assert type(loaded.scheduler).__name__ == SCHEDULER
    assert not loaded.transformer.training


def test_its_weight_files_are_those_of_five_components(folder: Path) -> None:
    files = weight_files(spec_of("directory", folder))
    assert set(files) == {"text_encoder", "text_encoder_2", "transformer", "vae"}
    assert all(path.parent == folder / name for name in files for path in files[name])


@pytest.mark.parametrize(
    ("component", "tensor"),
    [
        ("transformer", "single_transformer_blocks.2.proj_out.weight"),
        ("text_encoder_2", "encoder.block.1.layer.0.SelfAttention.q.weight"),
    ],
)
def test_a_tensor_that_is_missing_is_named(tmp_path: Path, component: str, tensor: str) -> None:
    """Loaded as it is, it would be random numbers."""
    copy = save_tiny_flux(tmp_path / "copy")
    (file,) = (copy / component).glob("*.safetensors")
    tensors = load_file(file)
    del tensors[tensor]
    save_file(tensors, file)
    with pytest.raises(ValueError, match=rf"{component}.* tensor {re.escape(tensor)} is missing"):
        load(spec_of("directory", copy))


def test_a_tokenizer_that_does_not_fit_its_t5_is_refused(tmp_path: Path) -> None:
    copy = save_tiny_flux(tmp_path / "copy")
    place = copy / "text_encoder_2" / "config.json"
    place.write_text(json.dumps(json.loads(place.read_text(encoding="utf-8")) | {"vocab_size": 20}), encoding="utf-8")
    with pytest.raises(ValueError, match=r"tokenizer_2 gives tokens up to 29, but .* has vocab_size 20"):
        load(spec_of("directory", copy))


def test_a_single_file_is_its_transformer_and_the_rest_is_its_configs(folder: Path, tmp_path: Path) -> None:
    other = tiny_flux(seed=7)
    file = tmp_path / "tuned.safetensors"
    save_file(other.transformer.state_dict(), file)
    spec = spec_of("file", file, config=str(folder))
    loaded, whole = load(spec), tiny_flux()
    whole.transformer = other.transformer
    assert same(plain(loaded), plain(whole))
    files = weight_files(spec)
    assert files["transformer"] == [file]
    assert {path.parent.name for name in ("text_encoder", "text_encoder_2", "vae") for path in files[name]} == {
        "text_encoder",
        "text_encoder_2",
        "vae",
    }
    tensors = other.transformer.state_dict()
    del tensors["proj_out.weight"]
    save_file(tensors, file)
    with pytest.raises(ValueError, match=r"tuned\.safetensors cannot be read as FLUX\.1 with the settings of .*tiny"):
        load(spec)


def test_a_single_file_of_schnell_is_none_of_dev(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What embeds the guidance would be missing; in the published format, whose widths diffusers takes for granted."""
    from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES

    loader = SINGLE_FILE_LOADABLE_CLASSES["FluxTransformer2DModel"]
    monkeypatch.setitem(loader, "checkpoint_mapping_fn", lambda checkpoint, **_: checkpoint)
    save_file(tiny_flux(guidance_embeds=False).transformer.state_dict(), tmp_path / "schnell.safetensors")
    with pytest.raises(ValueError, match=r"schnell\.safetensors cannot be read .* lacks tensors of the transformer"):
        load(spec_of("file", tmp_path / "schnell.safetensors", config=str(folder)))


def test_a_models_file_of_it_alone_says_how_it_is_searched(tmp_path: Path) -> None:
    (tmp_path / "models.toml").write_text('"FLUX.1" = "owner/flux"\n', encoding="utf-8")
    with pytest.raises(ValueError, match=r"no entry for SD1\.5; search what it has: --pipe FLUX\.1$"):
        ModelSource.from_option(str(tmp_path / "models.toml")).spec("SD1.5")


def test_what_a_single_file_lacks_is_looked_for_before_anything_is_loaded(folder: Path, tmp_path: Path) -> None:
    spec = spec_of("file", tmp_path / "tuned.safetensors", config=str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match=r"no file .*tuned\.safetensors"):
        check_presence(spec)
    save_file({"x": torch.zeros(1)}, tmp_path / "tuned.safetensors")
    with pytest.raises(FileNotFoundError, match="nowhere is no diffusers folder"):
        check_presence(spec)
    check_presence(replace(spec, config=str(folder)))


def test_a_vae_of_other_latents_is_refused(folder: Path, tmp_path: Path) -> None:
    from diffusers import AutoencoderKL

    config = {**tiny_flux().vae.config, "latent_channels": 16}
    AutoencoderKL.from_config(config).save_pretrained(tmp_path / "vae")
    with pytest.raises(ValueError, match="has 16 latent channels and the denoiser 4"):
        load(spec_of("directory", folder, vae=str(tmp_path / "vae")))
    tiny_flux(seed=1).vae.save_pretrained(tmp_path / "fit")
    load(spec_of("directory", folder, vae=str(tmp_path / "fit")))


def test_a_models_file_gives_sizes_in_multiples_of_16(tmp_path: Path) -> None:
    def read(height: int) -> ModelSource:
        text = f'"FLUX.1" = {{ path = "./x", height = {height}, width = 32 }}\n'
        (tmp_path / "models.toml").write_text(text, encoding="utf-8")
        return ModelSource.from_option(str(tmp_path / "models.toml"))

    assert read(48).spec("FLUX.1").image_size == (48, 32)
    with pytest.raises(ValueError, match=r"height = 24, width = 32; give both, in pixels, as multiples of 16"):
        read(24)


def test_on_a_gpu_it_is_bfloat16() -> None:
    assert {pipe.name: pipe.gpu_dtype for pipe in known()} == dict.fromkeys(PIPES, "float16") | {"FLUX.1": "bfloat16"}


# --- architecture -----------------------------------------------------------------------------------------------

# Of black-forest-labs/FLUX.1-dev as published: bytes of the transformer's and T5's shards, by their indexes, are twice
# these numbers.
PARAMETERS = {
    "transformer": 11_901_408_320,
    "vae": 83_819_683,
    "text_encoder": 123_060_480,
    "text_encoder_2": 4_762_310_656,
}


def test_the_architecture_has_the_published_sizes() -> None:
    with torch.device("meta"):
        parts = models(FLUX1, eos_token=2)
    assert {name: sum(one.numel() for one in part.parameters()) for name, part in parts.items()} == PARAMETERS
    config = parts["transformer"].config
    assert (config.num_layers, config.num_single_layers, config.guidance_embeds) == (19, 38, True)


def narrow(architecture: FluxArchitecture) -> FluxArchitecture:
    """All blocks, a hundredth as wide."""
    transformer = {
        **architecture.transformer,
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "axes_dims_rope": (4, 6, 6),
        "joint_attention_dim": 32,
        "pooled_projection_dim": 32,
    }
    text = {**architecture.text, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
    text_2 = {**architecture.text_2, "d_model": 32, "d_kv": 16, "d_ff": 64, "num_heads": 2, "num_layers": 1}
    vae = {**architecture.vae, "block_out_channels": (32,) * 4, "layers_per_block": 1}
    return replace(architecture, transformer=transformer, text=text, text_2=text_2, vae=vae)


def test_a_narrow_copy_of_the_architecture_generates() -> None:
    source = ModelSource.from_option("architecture")
    pipe = replace(known()["FLUX.1"], architecture=narrow(FLUX1))
    small = replace(source, specs=(replace(source.spec("FLUX.1"), own=pipe),))
    pipeline: Any = load_pipeline("FLUX.1", models=small, device="cpu")
    assert (len(pipeline.transformer.transformer_blocks), len(pipeline.transformer.single_transformer_blocks)) == (
        19,
        38,
    )
    assert (pipeline.tokenizer.model_max_length, pipeline.tokenizer_2.model_max_length) == (77, 512)
    assert {name: pipeline.scheduler.config[name] for name in FLUX1.scheduler} == dict(FLUX1.scheduler)
    with accelerate(pipeline, {}, steps=2, **SIZE) as generate:
        (image,) = generate(["red apple"], [0])
    assert image.size == (SIDE, SIDE)
    weights = pipeline.transformer.x_embedder.weight
    again = build_pipeline(pipe, Path(small.spec("FLUX.1").location), torch.device("cpu"), torch.float32)
    assert torch.equal(again.transformer.x_embedder.weight, weights)


# --- searches ---------------------------------------------------------------------------------------------------


@pytest.fixture
def flux_search(small_search: SmallSearch, folder: Path) -> SmallSearch:
    """A folder in which searches find the tiny pipeline as FLUX.1."""
    (small_search.path / "models.toml").write_text(
        f'"FLUX.1" = {{ path = "{folder}", height = {SIDE}, width = {SIDE} }}\n', encoding="utf-8"
    )
    return small_search


OPTIONS = ("benches", "--models", "models.toml", "--pipe", "flux", "--num-samples", "1", "--batch-size", "1")


def test_a_search_of_methods_for_unets_is_refused(flux_search: SmallSearch) -> None:
    result = flux_search.pytester.runpytest_inprocess(*OPTIONS, "--search-targets", "deepcache,deepcache and tome")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    own = "TaylorSeer; MagCache; FirstBlockCache; DBCache; Echo"
    words = f"is for a pipe whose denoiser is a transformer; those that are: {own}"
    result.stderr.fnmatch_lines([f"*FLUX.1: none of the chosen accelerators (DeepCache; DeepCache and ToMe) {words}"])


def test_a_search_finds_records_and_writes_what_makes_a_transformer_faster(
    flux_search: SmallSearch, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the plan: two groups are calibrated, raced and verified; with these weights no threshold of the third acts."""
    SteadyClock(monkeypatch).step_s |= {"TaylorSeer:predicted@1": 0.008, "MagCache:skipped": 0.001}
    few = ("--steps", "8", "--grid", "coarse", "--max-quality-loss", "10")
    result = flux_search.pytester.runpytest_inprocess(*OPTIONS, *few)
    assert result.ret == 0, result.outlines
    golden = read_golden(flux_search.golden)
    met = {(key.accelerator, key.target) for key, entry in golden.items() if entry.status == "met"}
    assert met >= {("TaylorSeer", 1.2), ("MagCache", 1.5)}
    assert {accelerator for accelerator, _ in met} == {"TaylorSeer", "MagCache"}
    words = "none of its 3 candidates acts; the first reuses nothing in the first pictures"
    result.stdout.fnmatch_lines([f"*FLUX.1-{SCHEDULER}-8 FirstBlockCache: {words}"])
    capsys.readouterr()
    assert main(["generate", "FLUX.1, flow match euler, 8 steps, MagCache, 1.5x", "--models", "models.toml"]) == 0
    assert "MAGCACHE = {" in capsys.readouterr().out


def test_an_exhaustive_search_skips_a_threshold_that_reuses_nothing(
    flux_search: SmallSearch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pictures decide that, so it is no fault of the method; one of which nothing acts has one."""
    SteadyClock(monkeypatch).step_s |= {"Lax:reused": 0.001}
    few = ("--steps", "8", "--search-targets", "Lax", "--blocks", "1", "--max-quality-loss", "10", "--exhaustive")
    (flux_search.path / "conftest.py").write_text(LAX.format(thresholds=(0.001, 100)), encoding="utf-8")
    result = flux_search.pytester.runpytest_inprocess(*OPTIONS, *few, "-rs")
    result.assert_outcomes(passed=2, skipped=1)
    result.stdout.fnmatch_lines(["SKIPPED*: reuses nothing in the first pictures"])
    assert {entry.params["Lax"]["threshold"] for entry in read_golden(flux_search.golden).values()} == {100}
    (flux_search.path / "conftest.py").write_text(LAX.format(thresholds=(0.001, 0.002)), encoding="utf-8")
    result = flux_search.pytester.runpytest_inprocess(*OPTIONS, *few, "--fresh")
    result.assert_outcomes(skipped=2, failed=1)
    result.stdout.fnmatch_lines(["*all that was tried failed (2 candidates)*reused_calls stayed 0*"])


def test_a_search_finds_and_records_winners_of_a_method_that_does(
    flux_search: SmallSearch, monkeypatch: pytest.MonkeyPatch
) -> None:
    SteadyClock(monkeypatch).step_s["Hold:echo"] = 0.001
    (flux_search.path / "conftest.py").write_text(HOLD, encoding="utf-8")
    few = ("--steps", "8", "--search-targets", "Hold", "--blocks", "1", "--max-quality-loss", "10")
    result = flux_search.pytester.runpytest_inprocess(*OPTIONS, *few, "--exhaustive")
    assert result.ret == 0, result.outlines
    golden = read_golden(flux_search.golden)
    assert {(key.cell, key.accelerator) for key in golden} == {(Cell("FLUX.1", SCHEDULER, 8), "Hold")}
    assert f"('FLUX.1', '{SCHEDULER}', 8, 'Hold', 1.5)" in flux_search.golden.read_text(encoding="utf-8")
    assert any(entry.params for entry in golden.values())
    gate = ("--steps", "8", "--search-targets", "Hold", "--gate", "--gate-budget", "1s", "-v")
    gated = flux_search.pytester.runpytest_inprocess(*OPTIONS, *gate)
    assert gated.ret == 0, gated.outlines
    gated.stdout.fnmatch_lines_random(
        [f"*test_gate[[]FLUX.1-{SCHEDULER}-8-{case}] PASSED*" for case in ("base*", "Hold*")]
    )


def test_a_case_of_ones_own_takes_its_scheduler_by_itself(flux_search: SmallSearch) -> None:
    (flux_search.path / "conftest.py").write_text(HOLD, encoding="utf-8")
    flux_search.pytester.makepyfile(
        """
        def test_mine(diffaccel):
            result = diffaccel("FLUX.1", {"Hold": {"hold_interval": 2, "hold_mishap": 0}}, steps=4, blocks=1)
            assert result.candidate.cell.scheduler == "FlowMatchEulerDiscreteScheduler"
        """
    )
    arguments = ("--models", "models.toml", "--pipe", "FLUX.1", "--num-samples", "1", "--batch-size", "1")
    file = "test_a_case_of_ones_own_takes_its_scheduler_by_itself.py"
    result = flux_search.pytester.runpytest_inprocess(file, *arguments)
    result.assert_outcomes(passed=1)


def test_clip_reads_as_many_tokens_as_its_tokenizer_gives(pipeline: Any) -> None:
    assert pipeline.tokenizer_max_length == CLIP_TOKENS == pipeline.text_encoder.config.max_position_embeddings
