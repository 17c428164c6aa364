"""Accelerators on real embedded pipelines: they act as they say, repeat exactly, and leave no trace."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import numpy as np
import pytest
import torch
from echo import Echo

from pytest_diffaccel import accelerate
from pytest_diffaccel.accelerators import deepcache
from pytest_diffaccel.accelerators.acceleration import (
    MethodDidNotAct,
    StepCountError,
    UnknownCounter,
)
from pytest_diffaccel.accelerators.base import InvalidParams, Method
from pytest_diffaccel.accelerators.calls import UnsupportedPipeline
from pytest_diffaccel.accelerators.counters import UnwatchableError, transformer_blocks
from pytest_diffaccel.accelerators.registry import Registry, default_registry
from pytest_diffaccel.accelerators.restoration import restored
from pytest_diffaccel.accelerators.tgate import TGate
from pytest_diffaccel.accelerators.tome import ToMe
from pytest_diffaccel.matrix import PIPES, SCHEDULERS, Params
from pytest_diffaccel.measure.clock import launched_steps, timed, timed_steps

GetPipeline = Callable[..., Any]

STEPS = 4
# A quarter of the embedded pipelines' picture or less: what is shown here does not hang on the size.
SIZE = {"height": 32, "width": 32}
PROMPTS = ("red apple on a blue background", "smiling face on a green background")
SEEDS = (3, 4)

# Images (height, width, max_downsample) of which tomesd mistakes a level's shape.
TOMESD_FAILS = {(72, 88, 8), (104, 152, 8), (32, 56, 8)}
DEEPCACHE = {"DeepCache": {"cache_interval": 2, "cache_branch_id": 0}}
TGATE = {"T-Gate": {"gate_step": 2, "sp_interval": 1, "fi_interval": 1, "warm_up": 0}}
TOME = {"ToMe": {"ratio": 0.5, "max_downsample": 2}}


def accelerators(*methods: Params) -> dict[str, Params]:
    """The six accelerators made of settings of DeepCache, T-GATE and ToMe."""
    deepcache, tgate, tome = methods
    return {
        "DeepCache": deepcache,
        "T-Gate": tgate,
        "ToMe": tome,
        "DeepCache and ToMe": {**deepcache, **tome},
        "DeepCache and T-Gate": {**deepcache, **tgate},
        "DeepCache, T-Gate, and ToMe": {**deepcache, **tgate, **tome},
    }


SETTINGS = accelerators(DEEPCACHE, TGATE, TOME)
IDENTITIES = accelerators(
    {"DeepCache": {"cache_interval": 1, "cache_branch_id": 0}},
    {"T-Gate": {"gate_step": STEPS, "sp_interval": 1, "fi_interval": 1, "warm_up": 0}},
    {"ToMe": {"ratio": 0, "max_downsample": 2}},
)

each_pipe = pytest.mark.parametrize("pipe", PIPES)
each_scheduler = pytest.mark.parametrize("scheduler", SCHEDULERS)
each_accelerator = pytest.mark.parametrize("accelerator", SETTINGS)


def generated(pipeline: Any, params: Params) -> list[Any]:
    with accelerate(pipeline, params, steps=STEPS, **SIZE) as generate:
        return generate(PROMPTS, SEEDS)


def plain(pipeline: Any) -> list[Any]:
    """The images of a plain call, as a user without this package makes it."""
    import torch

    noise = [torch.Generator("cpu").manual_seed(seed) for seed in SEEDS]
    return list(pipeline(list(PROMPTS), num_inference_steps=STEPS, generator=noise, **SIZE).images)


@pytest.fixture(scope="session")
def plain_before(pipeline_of: GetPipeline) -> Callable[[str, str], list[Any]]:
    """The images of plain calls, made once."""
    return cache(lambda pipe, scheduler: plain(pipeline_of(pipe, scheduler)))


def same(left: list[Any], right: list[Any]) -> bool:
    """Whether the images are equal, bit for bit."""
    assert len(left) == len(right) > 0
    return all(np.array_equal(np.asarray(one), np.asarray(other)) for one, other in zip(left, right, strict=True))


@contextmanager
def untouched(pipeline: Any) -> Iterator[None]:
    """Assert that the block leaves every object of the pipeline as it was: classes, attributes, hooks."""
    before = traces(pipeline)
    yield
    after = traces(pipeline)
    assert after.keys() == before.keys()
    for name, attributes in before.items():
        assert after[name] == attributes, f"{name} has changed"


def traces(pipeline: Any) -> dict[str, Any]:
    """Class, attributes and hooks by name of every module and of the pipeline, and the attributes of their classes."""
    found: dict[str, Any] = {"pipeline": _identities(pipeline), "its class": _identities(type(pipeline))}
    for part, component in pipeline.components.items():
        modules = component.named_modules() if hasattr(component, "named_modules") else ()
        for name, module in modules:
            hooks = {key: len(value) for key, value in vars(module).items() if key.endswith("_hooks")}
            found[f"{part}.{name}"] = (type(module), _identities(module), hooks)
            found[type(module).__qualname__] = _identities(type(module))
    return found


def _identities(holder: Any) -> dict[str, int]:
    return {name: id(value) for name, value in vars(holder).items()}


# --- identity settings -----------------------------------------------------------------------------------------


@each_pipe
@each_scheduler
def test_identity_settings_give_the_baselines_images(pipeline_of: GetPipeline, pipe: str, scheduler: str) -> None:
    pipeline = pipeline_of(pipe, scheduler)
    baseline = generated(pipeline, {})
    assert not same(baseline[:1], baseline[1:])
    for name, params in IDENTITIES.items():
        assert same(generated(pipeline, params), baseline), name


@each_pipe
@each_scheduler
def test_baseline_is_what_a_plain_call_gives(pipeline_of: GetPipeline, pipe: str, scheduler: str) -> None:
    pipeline = pipeline_of(pipe, scheduler)
    assert same(generated(pipeline, {}), plain(pipeline))


# --- no trace --------------------------------------------------------------------------------------------------


@each_pipe
@each_scheduler
def test_pipeline_is_as_it_was_after_every_accelerator(
    pipeline_of: GetPipeline, plain_before: Any, pipe: str, scheduler: str
) -> None:
    before = plain_before(pipe, scheduler)
    pipeline = pipeline_of(pipe, scheduler)
    for name, params in SETTINGS.items():
        with untouched(pipeline):
            accelerated = generated(pipeline, params)
        assert not same(accelerated, before), name
        assert same(plain(pipeline), before), name


class Accident(Exception):
    """Raised in the middle of a generation."""


@contextmanager
def accident_at(module: Any, call: int) -> Iterator[None]:
    """Raise :class:`Accident` when ``module`` is called for the ``call``-th time."""
    calls = 0

    def count(_module: Any, _args: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == call:
            raise Accident

    hook = module.register_forward_pre_hook(count)
    try:
        yield
    finally:
        hook.remove()


@each_pipe
@each_accelerator
def test_pipeline_is_as_it_was_after_an_exception_inside(
    pipeline_of: GetPipeline, plain_before: Any, pipe: str, accelerator: str
) -> None:
    """Step 1 computes in full, 2 reuses, 4 comes after the gate; the accident happens behind all patches."""
    before = plain_before(pipe, "DDIM")
    pipeline = pipeline_of(pipe, "DDIM")
    for step in (1, 2, 4):
        with untouched(pipeline), accident_at(pipeline.unet.conv_out, step), pytest.raises(Accident):
            generated(pipeline, SETTINGS[accelerator])
    assert same(plain(pipeline), before)


class Silent:
    """Is told of a generation's events, and keeps none."""

    def started(self) -> None: ...

    def denoiser_called(self) -> None: ...

    def step_ended(self) -> None: ...

    def ended(self) -> None: ...


@each_pipe
def test_an_observed_or_counted_baseline_leaves_no_trace(
    pipeline_of: GetPipeline, plain_before: Any, pipe: str
) -> None:
    """Without methods the modules are not put back: the hooks must go by themselves, also after an exception."""
    pipeline = pipeline_of(pipe, "DDIM")
    with accelerate(pipeline, {}, steps=STEPS, **SIZE) as generate:
        for run in (generate.counted, partial(generate.observed, observer=Silent())):
            with untouched(pipeline):
                images = run(PROMPTS, SEEDS)
            assert same(images, plain_before(pipe, "DDIM"))
            with untouched(pipeline), accident_at(pipeline.unet.conv_out, 2), pytest.raises(Accident):
                run(PROMPTS, SEEDS)


@each_pipe
@pytest.mark.parametrize("accelerator", ["", *SETTINGS])
def test_the_first_steps_are_told_of_and_leave_no_trace(
    pipeline_of: GetPipeline, plain_before: Any, monkeypatch: pytest.MonkeyPatch, pipe: str, accelerator: str
) -> None:
    """A generation that is ended after some steps tells of them as a whole one does, and of its end."""
    monkeypatch.setattr("torch.cuda.synchronize", lambda: None)
    before = plain_before(pipe, "DDIM")
    pipeline, params = pipeline_of(pipe, "DDIM"), SETTINGS.get(accelerator, {})
    with accelerate(pipeline, params, steps=STEPS, **SIZE) as generate:
        for steps in (1, 3, STEPS):
            with untouched(pipeline):
                timing = launched_steps(generate, PROMPTS, SEEDS, steps)
            assert timing.kinds == generate.kinds[:steps]
            assert min(timing.step_s) > 0
            assert sum(timing.step_s) < timing.total_s
        with untouched(pipeline), accident_at(pipeline.unet.conv_out, 2), pytest.raises(Accident):
            launched_steps(generate, PROMPTS, SEEDS, 3)
    assert same(plain(pipeline), before)


def test_a_run_without_pictures_ends_with_its_last_step(
    pipeline_of: GetPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = pipeline_of("SD1.5", "DDIM")
    decoded: list[int] = []
    decode = pipeline.vae.decode

    def noted(latents: Any, *args: Any, **kwargs: Any) -> Any:
        decoded.append(len(latents))
        return decode(latents, *args, **kwargs)

    monkeypatch.setattr(pipeline.vae, "decode", noted)
    with accelerate(pipeline, SETTINGS["DeepCache"], steps=STEPS, **SIZE) as generate:
        _, whole = timed(generate, PROMPTS, SEEDS)
        assert decoded == [2]
        cut = timed_steps(generate, PROMPTS, SEEDS)
    assert decoded == [2]
    assert (whole.whole, cut.whole) == (True, False)
    assert cut.kinds == whole.kinds == generate.kinds
    assert min(cut.step_s) > 0


def test_what_the_user_changes_between_generations_stays(pipeline_of: GetPipeline) -> None:
    """And holds: the pipeline comes back as it was before the generation, not as it was when the block began."""
    pipeline = pipeline_of("SD1.5", "DDIM")
    calls = []
    with accelerate(pipeline, SETTINGS["DeepCache, T-Gate, and ToMe"], steps=STEPS, **SIZE) as generate:
        generate(PROMPTS, SEEDS)
        hook = pipeline.unet.conv_out.register_forward_hook(lambda *_: calls.append(1))
        with untouched(pipeline):
            generate(PROMPTS, SEEDS)
        generate(PROMPTS, SEEDS)
        hook.remove()
        generate(PROMPTS, SEEDS)
    assert len(calls) == 2 * STEPS


@each_accelerator
def test_an_exception_in_the_users_own_block_leaves_no_trace(pipeline_of: GetPipeline, accelerator: str) -> None:
    pipeline = pipeline_of("SD1.5", "DDIM")
    with untouched(pipeline), pytest.raises(Accident), accelerate(pipeline, SETTINGS[accelerator], steps=STEPS, **SIZE):
        raise Accident


def test_hooks_of_the_user_survive(pipeline_of: GetPipeline) -> None:
    pipeline = pipeline_of("SD1.5", "DDIM")
    calls = []
    hook = pipeline.unet.register_forward_hook(lambda *_: calls.append(1))
    try:
        generated(pipeline, SETTINGS["DeepCache, T-Gate, and ToMe"])
        first = len(calls)
        generated(pipeline, {})
    finally:
        hook.remove()
    assert (first, len(calls)) == (STEPS, 2 * STEPS)


def test_a_patch_that_breaks_off_leaves_the_pipeline_alone(
    pipeline_of: GetPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error while methods are being applied, not only while they run."""
    import tgate

    pipeline, load = pipeline_of("SD1.5", "DDIM"), tgate.TgateSDDeepCacheLoader

    def half_way(*arguments: Any, **options: Any) -> None:
        load(*arguments, **options)
        raise RuntimeError("half way")

    monkeypatch.setattr(tgate, "TgateSDDeepCacheLoader", half_way)
    with untouched(pipeline), pytest.raises(RuntimeError, match="half way"):
        generated(pipeline, DEEPCACHE | TGATE)


# --- the same again --------------------------------------------------------------------------------------------


@each_pipe
@each_scheduler
def test_same_seeds_give_the_same_images_twice(pipeline_of: GetPipeline, pipe: str, scheduler: str) -> None:
    """The caller's random state plays no part, nor does what ran before (ToMe draws random numbers of its own)."""
    import torch

    pipeline = pipeline_of(pipe, scheduler)
    for name, params in SETTINGS.items():
        with accelerate(pipeline, params, steps=STEPS, **SIZE) as generate:
            torch.manual_seed(1)
            first = generate(PROMPTS, SEEDS)
            torch.manual_seed(2)
            assert same(generate(PROMPTS, SEEDS), first), name


@each_accelerator
def test_same_seeds_give_the_same_images_in_another_block(pipeline_of: GetPipeline, accelerator: str) -> None:
    pipeline = pipeline_of("SDXL", "DPM-Solver++")
    assert same(generated(pipeline, SETTINGS[accelerator]), generated(pipeline, SETTINGS[accelerator]))


@each_accelerator
def test_random_state_of_the_caller_is_untouched(pipeline_of: GetPipeline, accelerator: str) -> None:
    import random

    import torch

    pipeline = pipeline_of("SD1.5", "DDIM")
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    generated(pipeline, SETTINGS[accelerator])
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states[1:]


def test_counting_and_observing_change_no_image(pipeline_of: GetPipeline) -> None:
    pipeline = pipeline_of("SDXL", "DDIM")
    with accelerate(pipeline, SETTINGS["DeepCache, T-Gate, and ToMe"], steps=STEPS, **SIZE) as generate:
        counted = generate.counted(PROMPTS, SEEDS)
        assert same(generate.observed(PROMPTS, SEEDS, None), counted)


def test_counting_compiles_nothing(pipeline_of: GetPipeline) -> None:
    compiled: list[Any] = []

    def backend(graph: Any, _inputs: Any) -> Any:
        compiled.append(graph)
        return graph.forward

    pipeline = pipeline_of("SD1.5", "DDIM")
    torch.compiler.reset()
    with restored(pipeline), accelerate(pipeline, DEEPCACHE, steps=STEPS, **SIZE) as generate:
        pipeline.unet.compile_repeated_blocks(backend=backend)
        counted = generate.counted(PROMPTS, SEEDS)
        assert compiled == []
        images = generate(PROMPTS, SEEDS)
        assert 0 < len(compiled) <= 8  # as many as torch compiles before it gives up
        assert same(images, counted)
    torch.compiler.reset()


def test_several_blocks_take_turns_on_one_pipeline(pipeline_of: GetPipeline) -> None:
    pipeline = pipeline_of("SD1.5", "DDIM")
    alone = {name: generated(pipeline, params) for name, params in SETTINGS.items()}
    baseline = generated(pipeline, {})
    with (
        accelerate(pipeline, {}, steps=STEPS, **SIZE) as generate_baseline,
        accelerate(pipeline, SETTINGS["DeepCache and T-Gate"], steps=STEPS, **SIZE) as generate_one,
        accelerate(pipeline, SETTINGS["ToMe"], steps=STEPS, **SIZE) as generate_other,
    ):
        for _ in range(2):
            assert same(generate_one(PROMPTS, SEEDS), alone["DeepCache and T-Gate"])
            assert same(generate_baseline(PROMPTS, SEEDS), baseline)
            assert same(generate_other(PROMPTS, SEEDS), alone["ToMe"])


@each_pipe
def test_start_noise_depends_on_the_seed_alone(pipeline_of: GetPipeline, pipe: str) -> None:
    """Alone, first or last in a batch: the start noise is the same, and so is the picture but for rounding."""
    pipeline = pipeline_of(pipe, "DDIM")
    start = []
    take = pipeline.unet.register_forward_pre_hook(lambda _module, args: start.append(args[0].clone()))
    try:
        with accelerate(pipeline, {}, steps=1, **SIZE) as generate:
            (alone,) = generate([PROMPTS[0]], [7])
            first, _ = generate(PROMPTS, [7, 8])
            _, last = generate([PROMPTS[1], PROMPTS[0]], [8, 7])
    finally:
        take.remove()
    assert start[0][0].equal(start[1][0])
    assert start[0][0].equal(start[2][1])
    for image in (first, last):
        assert np.abs(np.asarray(image).astype(int) - np.asarray(alone).astype(int)).max() <= 2


# --- every method acts, and as predicted -------------------------------------------------------------------------


@each_pipe
@each_accelerator
def test_what_happens_is_what_kinds_predict(pipeline_of: GetPipeline, pipe: str, accelerator: str) -> None:
    steps, params = 8, _eight_step_settings(accelerator)
    with accelerate(pipeline_of(pipe, "DDIM"), params, steps=steps, **SIZE) as generate:
        generate(PROMPTS[:1], SEEDS[:1])
    kinds, fired = generate.kinds, generate.fired
    assert len(kinds) == fired["denoiser_calls"] == steps
    assert fired["cached_steps"] == sum("shallow@" in kind for kind in kinds)
    assert fired["gated_calls"] == sum("T-Gate:gated" in kind for kind in kinds)
    assert (fired["merged_tokens"] > 0) == ("ToMe" in params)
    assert (fired["reused_attention"] > 0) == ("T-Gate" in params)
    if "DeepCache" in params:
        assert fired["cached_steps"] > 0
    if "T-Gate" in params:
        assert fired["gated_calls"] == 4


def _eight_step_settings(accelerator: str) -> Params:
    """DeepCache's rhythm of three is broken by T-GATE's gate in the middle."""
    settings = {
        "DeepCache": {"cache_interval": 3, "cache_branch_id": 1},
        "T-Gate": {"gate_step": 4, "sp_interval": 2, "fi_interval": 3, "warm_up": 0},
        "ToMe": {"ratio": 0.3, "max_downsample": 4},
    }
    return {name: settings[name] for name in SETTINGS[accelerator]}


@pytest.mark.parametrize("gate", [1, 4, 8])
@pytest.mark.parametrize("fi_interval", [1, 3])
@pytest.mark.parametrize(("sp_interval", "warm_up"), [(1, 0), (2, 0), (2, 3), (3, 1), (7, 0)])
def test_reused_attention_is_what_tgates_kinds_predict(
    pipeline_of: GetPipeline, sp_interval: int, warm_up: int, gate: int, fi_interval: int
) -> None:
    """Before the gate only self-attention is reused, after it all cross-attention too: 16 layers of each."""
    warm_up = min(warm_up, gate - 1)
    point = {"gate_step": gate, "sp_interval": sp_interval, "fi_interval": fi_interval, "warm_up": warm_up}
    with accelerate(pipeline_of("SD1.5", "DDIM"), {"T-Gate": point}, steps=8, **SIZE) as generate:
        generate(PROMPTS[:1], SEEDS[:1])
    layers = {"planning": 0, "planning-reuse": 16, "gated": 16, "gated-reuse": 32}
    expected = sum(layers[kind.removeprefix("T-Gate:")] for kind in generate.kinds)
    assert generate.fired["reused_attention"] == expected
    assert generate.fired["gated_calls"] == 8 - gate


@pytest.mark.parametrize(("pipe", "branches"), [("SD1.5", 12), ("SDXL", 9)])
def test_every_deepcache_branch_works(pipeline_of: GetPipeline, pipe: str, branches: int) -> None:
    pipeline = pipeline_of(pipe, "DDIM")
    for branch in range(branches):
        params = {"DeepCache": {"cache_interval": 2, "cache_branch_id": branch}}
        with accelerate(pipeline, params, steps=2, **SIZE) as generate:
            generate(PROMPTS[:1], SEEDS[:1])
        assert generate.fired["cached_steps"] == 1
    with pytest.raises(InvalidParams, match=f"cache_branch_id={branches} .* from 0 to {branches - 1}"):
        generated(pipeline, {"DeepCache": {"cache_interval": 2, "cache_branch_id": branches}})


def test_deepcaches_branches_are_those_of_the_unet(pipeline_of: GetPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Distilled UNets have three down blocks of one layer each; the package counts three branches per block."""
    from diffusers import UNet2DConditionModel

    pipeline = pipeline_of("SD1.5", "DDIM")
    config = dict(pipeline.unet.config)
    shapes = {"down_block_types": config["down_block_types"][:3], "up_block_types": config["up_block_types"][1:]}
    shapes |= {"block_out_channels": config["block_out_channels"][:3], "layers_per_block": 1}
    monkeypatch.setattr(pipeline, "unet", UNet2DConditionModel.from_config(config | shapes).eval())

    def draw(branch: int) -> bytes:
        params = {"DeepCache": {"cache_interval": 2, "cache_branch_id": branch}}
        with accelerate(pipeline, params, steps=2, **SIZE) as generate:
            (image,) = generate(PROMPTS[:1], SEEDS[:1])
        assert generate.fired["cached_steps"] == 1
        return image.tobytes()

    drawn = {branch: draw(branch) for branch in (0, 1, 3, 4, 6, 7)}
    for branch in (2, 5, 8, 9):
        with pytest.raises(InvalidParams, match=f"cache_branch_id={branch} must be one of 0, 1, 3, 4, 6, 7: "):
            draw(branch)
    monkeypatch.setattr(deepcache, "_branches_of", lambda _: list(range(9)))
    for branch in (2, 5, 8):
        assert draw(branch) == drawn[branch - 1]  # but for a downsampler that nothing reads


def test_more_merging_merges_more_tokens(pipeline_of: GetPipeline) -> None:
    pipeline = pipeline_of("SD1.5", "DDIM")
    merged = []
    for ratio, depth in ((0.25, 1), (0.5, 1), (0.75, 1), (0.75, 8)):
        with accelerate(pipeline, {"ToMe": {"ratio": ratio, "max_downsample": depth}}, steps=1, **SIZE) as generate:
            generate(PROMPTS[:1], SEEDS[:1])
        merged.append(generate.fired["merged_tokens"])
    assert 0 < merged[0] < merged[1] < merged[2] < merged[3]


@pytest.mark.parametrize(
    ("height", "width", "depth"), [(72, 88, 8), (104, 152, 8), (32, 56, 8), (104, 152, 4), (96, 96, 8), (72, 88, 1)]
)
def test_tome_refuses_exactly_the_sizes_that_tomesd_fails_on(
    pipeline_of: GetPipeline, monkeypatch: pytest.MonkeyPatch, height: int, width: int, depth: int
) -> None:
    pipeline, size = pipeline_of("SD1.5", "DDIM"), {"height": height, "width": width}
    params = {"ToMe": {"ratio": 0.5, "max_downsample": depth}}
    refusal = ""
    try:
        with accelerate(pipeline, params, steps=1, **size):
            pass
    except InvalidParams as error:
        refusal = str(error)
    monkeypatch.setattr(ToMe, "_missized", lambda *_: "")
    with accelerate(pipeline, params, steps=1, **size) as generate:
        if refusal:
            assert f"max_downsample={depth} fails on images of {width}x{height} pixels" in refusal
            with pytest.raises((RuntimeError, IndexError)):
                generate(PROMPTS[:1], SEEDS[:1])
        else:
            assert generate(PROMPTS[:1], SEEDS[:1])[0].size == (width, height)
    assert bool(refusal) == ((height, width, depth) in TOMESD_FAILS)


def test_tome_merges_only_where_the_unet_has_transformers(
    pipeline_of: GetPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SDXL has none at full resolution, and none deeper than two downsamplings."""
    pipeline = pipeline_of("SDXL", "DDIM")
    for depth in (1, 8):
        message = f"max_downsample={depth} must be one of 2, 4, where this UNet has tokens to merge"
        for params in (tome := {"ToMe": {"ratio": 0.5, "max_downsample": depth}}, DEEPCACHE | tome):
            with pytest.raises(InvalidParams, match=message), accelerate(pipeline, params, steps=1, **SIZE):
                pass
    monkeypatch.setattr(ToMe, "_misplaced", lambda *_: "")
    drawn = [generated(pipeline, {"ToMe": {"ratio": 0.5, "max_downsample": depth}}) for depth in (2, 4, 8)]
    assert same(drawn[1], drawn[2])
    assert not same(drawn[0], drawn[1])


@pytest.mark.parametrize(
    ("missing", "depth", "words"),
    [
        (("mid_block",), 8, "max_downsample=8 must be one of 1, 2, 4, "),
        (("down_blocks", "mid_block", "up_blocks"), 1, "finds no transformer block in this UNet .*; leave it out"),
    ],
    ids=["no deep attention", "none at all"],
)
def test_tomes_levels_are_those_of_the_unet(
    pipeline_of: GetPipeline, monkeypatch: pytest.MonkeyPatch, missing: tuple[str, ...], depth: int, words: str
) -> None:
    pipeline = pipeline_of("SD1.5", "DDIM")
    for name in missing:
        part = None if name == "mid_block" else torch.nn.ModuleList()
        monkeypatch.setitem(pipeline.unet._modules, name, part)
    params = {"ToMe": {"ratio": 0.5, "max_downsample": depth}}
    with pytest.raises(InvalidParams, match=words), accelerate(pipeline, params, steps=1, **SIZE):
        pass
    params = {"ToMe": {"ratio": 0, "max_downsample": depth}}
    if "up_blocks" in missing:
        with pytest.raises(InvalidParams, match=words), accelerate(pipeline, params, steps=1, **SIZE):
            pass
    else:
        with accelerate(pipeline, params, steps=1, **SIZE):
            pass  # an identity, wherever there is something to merge


def test_a_ratio_of_less_than_a_token_is_refused(pipeline_of: GetPipeline) -> None:
    """32 pixels are 8 latents per side."""
    pipeline = pipeline_of("SD1.5", "DDIM")
    message = r"ratio=0.015 is less than one token on images of 32x32 pixels, .* makes 64 at most"
    with (
        pytest.raises(InvalidParams, match=message),
        accelerate(pipeline, {"ToMe": {"ratio": 0.015, "max_downsample": 4}}, steps=1, **SIZE),
    ):
        pass
    with accelerate(pipeline, {"ToMe": {"ratio": 0.016, "max_downsample": 4}}, steps=1, **SIZE) as generate:
        generate(PROMPTS[:1], SEEDS[:1])
    assert generate.fired["merged_tokens"] > 0


def test_baseline_counts_nothing_but_calls(pipeline_of: GetPipeline) -> None:
    with accelerate(pipeline_of("SD1.5", "DDIM"), {}, steps=STEPS, **SIZE) as generate:
        generate(PROMPTS, SEEDS)
    assert {name: count for name, count in generate.fired.items() if count} == {"denoiser_calls": STEPS}
    assert generate.kinds == ("plain",) * STEPS


@pytest.mark.parametrize(
    ("params", "options", "message"),
    [
        (None, {}, "params=None must be parameters by method, such as"),
        ({"DeepCache": None}, {}, "params=.* must be parameters by method"),
        ({1: {}}, {}, "params=.* must be parameters by method"),
        ({}, {"learnt": [1]}, "learnt=.* must be rows of numbers by method"),
        ({}, {"learnt": {"MagCache": [float("nan")]}}, "learnt=.* must be rows of numbers by method"),
        ({}, {"guidance_scale": float("nan")}, "guidance_scale=nan must be a finite number of at least 0"),
        ({}, {"guidance_scale": float("inf")}, "guidance_scale=inf must be a finite number"),
        ({}, {"guidance_scale": -1}, "guidance_scale=-1 must be a finite number"),
        ({}, {"guidance_scale": "3"}, "guidance_scale='3' must be a finite number"),
        ({}, {"height": "96"}, "height='96' must be a multiple of 8"),
    ],
)
def test_what_a_call_cannot_take_is_refused_before_it(
    pipeline_of: GetPipeline, params: Any, options: dict[str, Any], message: str
) -> None:
    with (
        pytest.raises(InvalidParams, match=message),
        accelerate(pipeline_of("SD1.5", "DDIM"), params, steps=2, **{**SIZE, **options}),
    ):
        pass


@pytest.mark.parametrize("guidance_scale", [0.0, 1.0])
def test_without_guidance_no_call_is_gated_and_tgate_is_refused(
    pipeline_of: GetPipeline, guidance_scale: float
) -> None:
    """The package halves the batch at the gate: one prompt's picture would change with another's prompt."""
    pipeline, options = pipeline_of("SD1.5", "DDIM"), {**SIZE, "guidance_scale": guidance_scale}
    with accelerate(pipeline, {}, steps=2, **options) as generate:
        generate(PROMPTS, SEEDS)
    assert generate.fired["gated_calls"] == 0
    point = {"gate_step": 1, "sp_interval": 1, "fi_interval": 1, "warm_up": 0}
    message = f"T-Gate needs classifier-free guidance, but guidance_scale={guidance_scale:g} gives none; .* above 1"
    for params in ({"T-Gate": point}, DEEPCACHE | {"T-Gate": point}):
        with pytest.raises(InvalidParams, match=message), accelerate(pipeline, params, steps=2, **options):
            pass


def test_a_subclass_that_hands_on_its_arguments_is_accelerated_by_every_method(pipeline_of: GetPipeline) -> None:
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

    class Own(StableDiffusionPipeline):
        def __call__(self, *args: Any, **options: Any) -> Any:
            return super().__call__(*args, **options)

    usual = pipeline_of("SD1.5", "DDIM")
    own = Own(**usual.components, requires_safety_checker=False)
    own.set_progress_bar_config(disable=True)
    for params in ({}, DEEPCACHE, TGATE):
        assert same(generated(own, params), generated(usual, params))


def test_tgate_is_refused_where_the_denoiser_takes_the_guidance_scale(
    pipeline_of: GetPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = pipeline_of("SD1.5", "DDIM")
    config = type(pipeline.unet.config)({**pipeline.unet.config, "time_cond_proj_dim": 256})
    monkeypatch.setattr(pipeline.unet, "_internal_dict", config)
    params = {"T-Gate": {"gate_step": 1, "sp_interval": 1, "fi_interval": 1, "warm_up": 0}}
    with pytest.raises(InvalidParams, match="time_cond_proj_dim"), accelerate(pipeline, params, steps=2, **SIZE):
        pass


def test_a_unet_without_a_mid_block_generates_and_deepcache_says_why_it_cannot(
    pipeline_of: GetPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = pipeline_of("SD1.5", "DDIM")
    monkeypatch.setitem(pipeline.unet._modules, "mid_block", None)
    for params in ({}, {"ToMe": {"ratio": 0.5, "max_downsample": 1}}):
        with accelerate(pipeline, params, steps=2, **SIZE) as generate:
            generate(PROMPTS[:1], SEEDS[:1])
        assert (generate.fired["denoiser_calls"], generate.fired["cached_steps"]) == (2, 0)
    with pytest.raises(InvalidParams, match="without a mid block"), accelerate(pipeline, DEEPCACHE, steps=2, **SIZE):
        pass


def test_fused_projections_are_no_reused_attention(pipeline_of: GetPipeline) -> None:
    pipeline = pipeline_of("SD1.5", "DDIM")
    pipeline.fuse_qkv_projections(vae=False)
    try:
        with accelerate(pipeline, {}, steps=2, **SIZE) as generate:
            generate(PROMPTS[:1], SEEDS[:1])
    finally:
        pipeline.unfuse_qkv_projections(vae=False)
    assert generate.fired["reused_attention"] == 0


@pytest.mark.parametrize("accelerator", ["ToMe", "DeepCache and ToMe"])
def test_a_method_that_is_silent_is_an_error_alone_and_combined(
    pipeline_of: GetPipeline, monkeypatch: pytest.MonkeyPatch, accelerator: str
) -> None:
    monkeypatch.setattr("tomesd.apply_patch", lambda *_args, **_options: None)
    with pytest.raises(MethodDidNotAct, match=r"ratio=0.5,max_downsample=2 had no effect: merged_tokens stayed 0"):
        generated(pipeline_of("SDXL", "DDIM"), SETTINGS[accelerator])


def test_a_counter_that_nothing_counts_is_named(pipeline_of: GetPipeline) -> None:
    from pytest_diffaccel.accelerators.deepcache import DeepCache

    class Miscounted(DeepCache):
        name = "Miscounted"

        def counters(self, point: Any, steps: int) -> frozenset[str]:
            return frozenset({"cached_steps", "skipped_steps"})

    registry = Registry()
    registry.register(Miscounted())
    params = {"Miscounted": DEEPCACHE["DeepCache"]}
    with (
        accelerate(pipeline_of("SD1.5", "DDIM"), params, steps=2, registry=registry, **SIZE) as generate,
        pytest.raises(UnknownCounter, match="Miscounted names skipped_steps among its counters, which nothing counts"),
    ):
        generate(PROMPTS[:1], SEEDS[:1])


class Uncounted(Echo):
    """Counts nothing: that it acts shows in what the denoiser gives."""

    name = "Uncounted"
    counted = ()
    watch = Method.watch


def registry_with(*methods: Method) -> Registry:
    registry = default_registry()
    for method in methods:
        registry.register(method)
    return registry


def test_a_method_that_counts_nothing_is_proved_by_what_the_denoiser_gives(pipeline_of: GetPipeline) -> None:
    """Its second call repeats the first: the run without it, which shows that, is of two calls."""
    pipeline, calls = pipeline_of("SD1.5", "DDIM"), []
    registry = registry_with(Uncounted([(2, 0)]))
    params = {"Uncounted": {"echo_interval": 2, "mishap": 0}}
    hook = pipeline.unet.register_forward_pre_hook(lambda *_: calls.append(1))
    try:
        with untouched(pipeline), accelerate(pipeline, params, steps=STEPS, registry=registry, **SIZE) as generate:
            proved = generate(PROMPTS, SEEDS)
            assert len(calls) == STEPS + 2
            assert same(generate(PROMPTS, SEEDS), proved)
            assert len(calls) == STEPS + 2 + STEPS
    finally:
        hook.remove()


@pytest.mark.parametrize("others", [{}, DEEPCACHE], ids=["alone", "combined"])
def test_a_method_that_counts_nothing_and_does_nothing_is_an_error(pipeline_of: GetPipeline, others: Params) -> None:
    """As often as it is tried; what others do in a combination is not taken for its own."""
    registry = registry_with(Uncounted([(2, 0)]))
    params = {**others, "Uncounted": {"echo_interval": 1, "mishap": 0}}
    message = "had no effect: every call of the denoiser gave what it gives without Uncounted; .* let Uncounted count"
    pipeline = pipeline_of("SD1.5", "DDIM")
    with untouched(pipeline), accelerate(pipeline, params, steps=STEPS, registry=registry, **SIZE) as generate:
        for _ in range(2):
            with pytest.raises(MethodDidNotAct, match=message):
                generate(PROMPTS, SEEDS)


def test_another_methods_counter_shows_nothing(pipeline_of: GetPipeline) -> None:
    """It would let a method pass that does nothing, where the other one acts."""

    class Borrower(Uncounted):
        def counters(self, point: Any, steps: int) -> frozenset[str]:
            return frozenset({"cached_steps"})

    params = {**DEEPCACHE, "Uncounted": {"echo_interval": 1, "mishap": 0}}
    message = "Uncounted names cached_steps among its counters, which nothing counts for it, .* `counted` holds none"
    with (
        accelerate(
            pipeline_of("SD1.5"), params, steps=2, registry=registry_with(Borrower([(2, 0)])), **SIZE
        ) as generate,
        pytest.raises(UnknownCounter, match=message),
    ):
        generate(PROMPTS[:1], SEEDS[:1])


def test_what_is_counted_on_arrays_is_a_plain_number(pipeline_of: GetPipeline) -> None:
    class OnArrays(Echo):
        def watch(self, denoiser: Any, tally: Any) -> Any:
            def count(*_: object) -> None:
                tally.add(self.counted[0], np.ones(2, dtype=bool).sum())

            return (denoiser.register_forward_hook(count),)

    params = {"Echo": {"echo_interval": 2, "mishap": 0}}
    registry = registry_with(OnArrays([(2, 0)]))
    with accelerate(pipeline_of("SD1.5"), params, steps=2, registry=registry, **SIZE) as generate:
        generate(PROMPTS[:1], SEEDS[:1])
    assert {type(count) for count in generate.fired.values()} == {int}


def test_a_counter_must_be_named_to_be_counted(pipeline_of: GetPipeline) -> None:
    class Careless(Echo):
        counted = ("echos",)

    params = {"Echo": {"echo_interval": 2, "mishap": 0}}
    with (
        accelerate(
            pipeline_of("SD1.5"), params, steps=2, registry=registry_with(Careless([(2, 0)])), **SIZE
        ) as generate,
        pytest.raises(ValueError, match="Echo counts 'echoes', which `counted` does not name; it names echos"),
    ):
        generate(PROMPTS[:1], SEEDS[:1])


def raises(denoiser: Any, _tally: Any) -> Any:
    denoiser.register_forward_pre_hook(lambda *_: None)
    raise LookupError("no such layer")


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        (type("Broken", (Echo,), {"watch": staticmethod(raises)}), "LookupError: no such layer"),
        (type("Forgetful", (Echo,), {"watch": lambda *_: None}), "TypeError: 'NoneType' object is not iterable"),
        (type("Unsure", (Echo,), {"applies_to": lambda *_: 1 / 0}), "ZeroDivisionError: division by zero"),
    ],
)
def test_a_method_whose_hooks_fail_is_named_also_where_it_is_not_applied(
    pipeline_of: GetPipeline, method: Any, reason: str
) -> None:
    """And leaves nothing behind."""
    pipeline, registry = pipeline_of("SD1.5"), registry_with(method([(2, 0)]))
    message = f"Echo cannot watch a UNet2DConditionModel ({reason}); mend its `watch`, or let `applies_to` say why not"
    with (
        untouched(pipeline),
        accelerate(pipeline, {}, steps=1, registry=registry, **SIZE) as generate,
        pytest.raises(UnwatchableError, match=re.escape(message)),
    ):
        generate(PROMPTS[:1], SEEDS[:1])


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        (
            {"watch": Method.watch},
            "Echo names echoes in `counted`, and has no `watch` that counts it: add one, or name",
        ),
        ({"counted": ()}, "Echo has a `watch`, but names no counter: name what it counts in `counted`"),
        ({"counted": ("echoes", "merged_tokens")}, "Echo: ToMe counts merged_tokens too; take another name"),
        ({"counted": ("denoiser_calls",)}, "Echo counts denoiser_calls, as every run does: give its counter another"),
    ],
)
def test_counters_that_could_show_nothing_are_refused_at_registration(attributes: dict[str, Any], message: str) -> None:
    method = type("Odd", (Echo,), attributes)([(2, 0)])
    with pytest.raises(ValueError, match=message):
        registry_with(method)


# --- to which pipelines methods apply --------------------------------------------------------------------------


class Aloof(Echo):
    """Applies to no pipeline, and could count in none."""

    def applies_to(self, pipeline: Any) -> str:
        return f"{type(pipeline.unet).__name__} is beneath it"

    def watch(self, denoiser: Any, tally: Any) -> Any:
        raise AssertionError("asked to count in a denoiser that it does not apply to")


def test_a_method_says_to_what_it_does_not_apply_and_is_not_asked_to_count_there(pipeline_of: GetPipeline) -> None:
    registry, pipeline = registry_with(Aloof([(2, 0)])), pipeline_of("SD1.5", "DDIM")
    params = {"Echo": {"echo_interval": 2, "mishap": 0}}
    message = "^Echo: UNet2DConditionModel is beneath it; leave it out$"
    with pytest.raises(InvalidParams, match=message), accelerate(pipeline, params, steps=2, registry=registry, **SIZE):
        pass
    with accelerate(pipeline, DEEPCACHE, steps=2, registry=registry, **SIZE) as generate:
        generate(PROMPTS[:1], SEEDS[:1])
    assert (generate.fired["cached_steps"], generate.fired["echoes"]) == (1, 0)


def test_tgate_does_not_apply_without_cross_attention(
    pipeline_of: GetPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = pipeline_of("SD1.5", "DDIM")
    for block in transformer_blocks(pipeline.unet):
        monkeypatch.setitem(block._modules, "attn2", None)
    message = "^T-Gate: this denoiser has no cross-attention, whose output it reuses; leave it out$"
    for params in (TGATE, SETTINGS["DeepCache and T-Gate"]):
        with pytest.raises(InvalidParams, match=message), accelerate(pipeline, params, steps=STEPS, **SIZE):
            pass
    with accelerate(pipeline, DEEPCACHE, steps=STEPS, **SIZE) as generate:
        generate(PROMPTS[:1], SEEDS[:1])


def test_tgate_applies_to_the_pipelines_that_the_package_has_functions_for() -> None:
    other = type("FluxPipeline", (), {})()
    assert (
        TGate().applies_to(other) == "tgate's functions are used for Stable Diffusion and SDXL, not for a FluxPipeline"
    )


def test_deepcache_does_not_apply_without_skip_connections(
    pipeline_of: GetPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = pipeline_of("SD1.5", "DDIM")
    for name in ("down_blocks", "up_blocks"):
        monkeypatch.setitem(pipeline.unet._modules, name, torch.nn.ModuleList())
    message = "^DeepCache: UNet2DConditionModel has no down and up blocks, .*; leave it out$"
    with pytest.raises(InvalidParams, match=message), accelerate(pipeline, DEEPCACHE, steps=2, **SIZE):
        pass


@pytest.mark.parametrize("name", ["StableDiffusionImg2ImgPipeline", "PixArtAlphaPipeline", "NoneType"])
def test_another_pipeline_is_refused_by_the_name_of_its_class(pipeline_of: GetPipeline, name: str) -> None:
    if name == "StableDiffusionImg2ImgPipeline":
        from diffusers import StableDiffusionImg2ImgPipeline

        pipeline: Any = StableDiffusionImg2ImgPipeline(
            **pipeline_of("SD1.5", "DDIM").components, requires_safety_checker=False
        )
    else:
        pipeline = None if name == "NoneType" else type(name, (), {})()
    words = f"^{name} cannot be accelerated here: supported are FluxPipeline, StableDiffusionPipeline, StableDiff"
    with pytest.raises(UnsupportedPipeline, match=words), accelerate(pipeline, DEEPCACHE, steps=2):
        pass


def test_a_denoiser_called_twice_a_step_is_an_error(pipeline_of: GetPipeline) -> None:
    """Kinds name one call per step: figures of anything else would be sorted under the wrong kinds."""

    class Twice(Method):
        name = "Twice"
        param_names = ("times",)

        def grid(self, cell: Any, size: Any) -> list[Any]:
            return [{"times": 2}]

        def check(self, point: Any, steps: int) -> None:
            self.check_names(point)

        def kinds(self, point: Any, steps: int, restarts: frozenset[int]) -> list[str]:
            return ["twice"] * steps

        def apply(self, pipeline: Any, call: Any, params: Params) -> Any:
            def twice(**options: Any) -> Any:
                call(**options)
                return call(**options)

            return twice

    registry = Registry()
    registry.register(Twice())
    with (
        accelerate(
            pipeline_of("SD1.5", "DDIM"), {"Twice": {"times": 2}}, steps=2, registry=registry, **SIZE
        ) as generate,
        pytest.raises(StepCountError, match="4 denoiser calls for 2 steps"),
    ):
        generate(PROMPTS, SEEDS)


# --- what is refused -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"Magic": {}}, "unknown method Magic; known: DeepCache, T-Gate, ToMe"),
        ({"DeepCache": {"cache_interval": 2}}, "DeepCache: missing cache_branch_id"),
        ({"ToMe": {"ratio": 0.5, "max_downsample": 1, "sx": 2}}, "ToMe: unknown sx"),
        ({"DeepCache": {"cache_interval": 0, "cache_branch_id": 0}}, "cache_interval=0 must be a whole number from 1"),
        ({"DeepCache": {"cache_interval": 2.0, "cache_branch_id": 0}}, "cache_interval=2.0 must be"),
        ({"DeepCache": {"cache_interval": True, "cache_branch_id": 0}}, "cache_interval=True must be"),
        ({"DeepCache": {"cache_interval": 2, "cache_branch_id": 12}}, "cache_branch_id=12 .* from 0 to 11"),
        (
            {"DeepCache": {"cache_interval": 2, "cache_branch_id": -1}},
            "cache_branch_id=-1 must be .* from 0",
        ),
        ({"T-Gate": TGATE["T-Gate"] | {"gate_step": 5}}, "gate_step=5 .* from 1 to 4"),
        ({"T-Gate": TGATE["T-Gate"] | {"gate_step": 0}}, "gate_step=0 .* from 1 to 4"),
        ({"T-Gate": TGATE["T-Gate"] | {"sp_interval": 0}}, "sp_interval=0 .* from 1"),
        ({"T-Gate": TGATE["T-Gate"] | {"fi_interval": 0}}, "fi_interval=0 .* from 1"),
        ({"T-Gate": TGATE["T-Gate"] | {"warm_up": 2}}, "warm_up=2 .* from 0 to 1"),
        ({"ToMe": {"ratio": 0.76, "max_downsample": 1}}, "ratio=0.76 must be a number from 0 to 0.75"),
        ({"ToMe": {"ratio": -0.1, "max_downsample": 1}}, "ratio=-0.1 must be"),
        ({"ToMe": {"ratio": float("nan"), "max_downsample": 1}}, "ratio=nan must be"),
        ({"ToMe": {"ratio": "0.5", "max_downsample": 1}}, "ratio='0.5' must be"),
        ({"ToMe": {"ratio": 0.5, "max_downsample": 3}}, "max_downsample=3 must be one of 1, 2, 4, 8"),
        ({"ToMe": {"ratio": 0.5, "max_downsample": True}}, "max_downsample=True must be one of"),
    ],
)
def test_bad_parameters_are_refused_with_value_and_range(
    pipeline_of: GetPipeline, params: Params, message: str
) -> None:
    pipeline = pipeline_of("SD1.5", "DDIM")
    with (
        untouched(pipeline),
        pytest.raises(InvalidParams, match=message),
        accelerate(pipeline, params, steps=STEPS, **SIZE),
    ):
        pass


@pytest.mark.parametrize("steps", [0, -1, 2.0, True, "20"])
def test_bad_numbers_of_steps_are_refused(pipeline_of: GetPipeline, steps: Any) -> None:
    with (
        pytest.raises(InvalidParams, match=r"steps=.* at least 1"),
        accelerate(pipeline_of("SD1.5"), {}, steps=steps, **SIZE),
    ):
        pass


@pytest.mark.parametrize("seeds", [(), (1,), (1, 2, 3)])
def test_seeds_and_prompts_must_be_as_many(pipeline_of: GetPipeline, seeds: tuple[int, ...]) -> None:
    with (
        accelerate(pipeline_of("SD1.5"), {}, steps=1, **SIZE) as generate,
        pytest.raises(ValueError, match=f"2 prompts and {len(seeds)} seeds"),
    ):
        generate(PROMPTS, seeds)


def test_no_prompts_are_refused(pipeline_of: GetPipeline) -> None:
    with (
        accelerate(pipeline_of("SD1.5"), {}, steps=1, **SIZE) as generate,
        pytest.raises(ValueError, match="at least one"),
    ):
        generate([], [])


# --- the registry ----------------------------------------------------------------------------------------------


def test_registry_knows_the_six_accelerators_in_order() -> None:
    """Of a UNet; behind them come those of transformers."""
    registry = default_registry()
    for pipe in PIPES:
        assert [accelerator.name for accelerator in registry.suiting(pipe)] == list(SETTINGS)
    assert registry.names[: len(SETTINGS)] == list(SETTINGS)


def test_names_of_methods_are_unique_and_those_of_parameters_in_a_combination() -> None:
    registry = default_registry()
    registry.register(Echo([(2, 0)]))
    with pytest.raises(ValueError, match="Echo: a method of this name"):
        registry.register(Echo([(3, 0)]))

    class Cuckoo(Echo):
        name = "Cuckoo"
        param_names = ("ratio", "mishap")

    registry.register(Cuckoo([(2, 0)]))
    for names in (("Cuckoo", "Echo"), ("DeepCache", "Cuckoo", "ToMe")):
        with pytest.raises(ValueError, match=f"cannot combine {' with '.join(names)}: more than one has a parameter"):
            registry.combine(*names)
    assert registry.names == [*default_registry().names, "Echo", "Cuckoo"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("ToMe", "DeepCache"), "ToMe and DeepCache: DeepCache and ToMe is registered already; leave it out"),
        (("ToMe", "ToMe"), "cannot combine ToMe with ToMe: name two methods or more, each once"),
        (("ToMe",), "cannot combine ToMe: name two methods or more"),
        ((), "cannot combine nothing: name two methods or more"),
    ],
)
def test_what_is_no_further_combination_is_refused(names: tuple[str, ...], message: str) -> None:
    """Of two orders of the same methods, records would have either name."""
    registry = default_registry()
    with pytest.raises(ValueError, match=message):
        registry.combine(*names)
    assert registry.names == default_registry().names


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"name": name}, f"{name!r} is no name for a method; write letters, digits, and blanks, . _ - between them")
        for name in ("", "A|B", "A:B", "A, B", "A+B", "A and B", "A\nB", 'x"""')
    ]
    + [
        ({"param_names": "echo_interval"}, "Echo: param_names = 'echo_interval'; write names in a tuple, such as"),
        ({"param_names": ("a=1,b",)}, "Echo: param_names = ('a=1,b',); write names in a tuple"),
        ({"counted": "echoes"}, "Echo: counted = 'echoes'; write names in a tuple"),
    ],
)
def test_names_that_records_could_not_spell_are_refused_at_registration(
    attributes: dict[str, Any], message: str
) -> None:
    registry = default_registry()
    with pytest.raises(ValueError, match=re.escape(message)):
        registry.register(type("Odd", (Echo,), attributes)([(2, 0)]))
    assert registry.names == default_registry().names


def test_a_class_is_no_method() -> None:
    with pytest.raises(ValueError, match=re.escape("Echo is a class; register a method: registry.register(Echo())")):
        default_registry().register(Echo)  # type: ignore[arg-type]


def test_parameters_are_those_of_the_combination_whatever_its_order() -> None:
    registry = registry_with(Echo([(2, 0)]))
    params = {"ToMe": TOME["ToMe"], "Echo": {"echo_interval": 2, "mishap": 0}}
    assert registry.for_params(params).name == "ToMe and Echo"
    combined = registry.combine("Echo", "ToMe")
    assert registry.for_params(params) == combined
    assert registry.for_params(params).kinds(params, 2) == ("Echo:full|ToMe:0.5@2", "Echo:echo|ToMe:0.5@2")


@pytest.mark.parametrize("others", [{}, TOME], ids=["alone", "combined"])
def test_a_method_that_names_too_few_kinds_of_calls_is_named(others: Params) -> None:
    class Hasty(Echo):
        def kinds(self, point: Any, steps: int, restarts: frozenset[int]) -> list[str]:
            return ["full"] * (steps - 1)

    params = {"Echo": {"echo_interval": 2, "mishap": 0}, **others}
    accelerator = registry_with(Hasty([(2, 0)])).for_params(params)
    with pytest.raises(ValueError, match="Echo: `kinds` names 4 denoiser calls of 5; name each"):
        accelerator.kinds(params, 5)


def test_combinations_of_registered_methods_work_like_the_built_in_ones(pipeline_of: GetPipeline) -> None:
    registry = registry_with(Echo([(2, 0)]))
    assert registry.combine("Echo", "ToMe").name == "Echo and ToMe"
    with pytest.raises(ValueError, match="registered already"):
        registry.combine("Echo", "ToMe")
    with pytest.raises(ValueError, match=r"unknown methods .*Magic"):
        registry.combine("Echo", "Magic")
    pipeline = pipeline_of("SD1.5", "DDIM")
    params = {"Echo": {"echo_interval": 2, "mishap": 0}, **TOME}
    with untouched(pipeline), accelerate(pipeline, params, steps=STEPS, registry=registry, **SIZE) as generate:
        generate(PROMPTS, SEEDS)
    assert generate.fired["merged_tokens"] > 0
    assert generate.fired["cached_steps"] == generate.fired["echoes"] == 2
