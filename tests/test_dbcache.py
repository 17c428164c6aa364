"""DBCache through cache-dit: its rule, what it reuses, that it leaves nothing behind, and where it is not installed."""

from __future__ import annotations

import gc
import runpy
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from entries import ENVIRONMENT, MET
from searches import SmallSearch, embedded_folder, without_scale
from test_accelerators import Accident, accident_at, same, untouched
from test_deciding import measurements
from test_generate import ROOT, findings
from test_transformer_caches import BROKEN_RESIDUALS, BROKEN_SERIES, everything_of_hooks, of_class, tiny_pixart
from timings import SteadyClock
from tiny_flux import SIDE, tiny_flux
from tiny_transformers import save_tiny

from pytest_diffaccel import accelerate
from pytest_diffaccel.accelerators import dbcache
from pytest_diffaccel.accelerators.acceleration import MethodDidNotAct
from pytest_diffaccel.accelerators.base import COMPUTED, REUSED, InvalidParams
from pytest_diffaccel.accelerators.block_distances import BlockDistances
from pytest_diffaccel.accelerators.cache_dit_patches import class_restored, purpose_of
from pytest_diffaccel.accelerators.dbcache import DBCache
from pytest_diffaccel.accelerators.dbcache_steps import MASK_POLICIES, has_masks, mask_number, steps_mask
from pytest_diffaccel.accelerators.registry import Registry, default_registry
from pytest_diffaccel.accelerators.restoration import restored
from pytest_diffaccel.audit.preset import read_preset
from pytest_diffaccel.cli.main import main
from pytest_diffaccel.codegen.lookup import Answer, find
from pytest_diffaccel.codegen.script import render, render_cache
from pytest_diffaccel.codegen.tasks import Task
from pytest_diffaccel.judge.confine.limits import Limits
from pytest_diffaccel.judge.judge import Judge, Rules
from pytest_diffaccel.matrix import Candidate, Cell, Group, Params, Point
from pytest_diffaccel.measure.quality import References
from pytest_diffaccel.pipes import PipeRegistry, PipeSpec, make_known
from pytest_diffaccel.records.golden_file import Golden, write_golden
from pytest_diffaccel.records.golden_key import GoldenKey
from pytest_diffaccel.search.predict.step_counts import StepCounts

IS_INSTALLED = find_spec("cache_dit") is not None
needs_cache_dit = pytest.mark.skipif(
    not IS_INSTALLED, reason="cache-dit is not installed (pip install 'pytest-diffaccel[cache-dit]')"
)
PIPE, FLOW = "FLUX.1", "FlowMatchEulerDiscreteScheduler"
STEPS, SIZE = 10, {"height": 96, "width": 96}
CELL = Cell(PIPE, FLOW, STEPS)
PROMPTS, SEEDS = ["red apple on a blue background", "frog on a yellow background"], [3, 4]
METHOD = DBCache()
BLOCKS = 12  # of the stand-in


def point(first: int, warmup: int, limit: int, threshold: float, order: int = 0, mask: int = 0) -> Point:
    return dict(zip(METHOD.param_names, (first, warmup, limit, threshold, order, mask), strict=True))


def params(*values: Any) -> Params:
    return {"DBCache": point(*values)}


#: Reuses, with the stand-in.
ACTING = params(1, 2, 3, 0.5)
SERIES = params(4, 3, 2, 0.5, 1)
MASKED = params(4, 0, -1, 1, 1, 3)
each_setting = pytest.mark.parametrize("setting", [ACTING, SERIES, MASKED], ids=["no series", "series", "mask"])


@pytest.fixture
def flux(pipeline_of: Callable[[str, str], Any]) -> Any:
    """The trained stand-in."""
    return pipeline_of(PIPE, FLOW)


def generated(pipeline: Any, setting: Params, steps: int = STEPS, *, prompts: Any = PROMPTS) -> list[Any]:
    with accelerate(pipeline, setting, steps=steps, **SIZE) as generate:
        return list(generate(prompts, SEEDS[: len(prompts)]))


def plain(pipeline: Any) -> list[Any]:
    """The images of a plain call, as a user without this package makes it."""
    noise = [torch.Generator("cpu").manual_seed(seed) for seed in SEEDS]
    call = {"num_inference_steps": STEPS, "max_sequence_length": 24, "generator": noise, **SIZE}
    return list(pipeline(list(PROMPTS), **call).images)


# --- where it is not installed --------------------------------------------------------------------------------------


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if cache-dit were not installed."""
    monkeypatch.setattr(dbcache, "find_spec", lambda _name: None)


@pytest.mark.usefixtures("without")
def test_without_its_package_it_is_refused_with_what_to_install(flux: Any) -> None:
    words = r"DBCache: cache-dit is not installed \(pip install 'pytest-diffaccel\[cache-dit\]'\); leave it out"
    with untouched(flux), pytest.raises(InvalidParams, match=words):
        generated(flux, ACTING)


@pytest.mark.usefixtures("without")
def test_without_its_package_others_work_and_count_as_ever(flux: Any) -> None:
    with accelerate(flux, {"FirstBlockCache": {"threshold": 0.6}}, steps=4, **SIZE) as generate:
        generate(PROMPTS, SEEDS)
    assert generate.fired["reused_calls"] > 0 == generate.fired["cached_calls"]


@pytest.mark.usefixtures("without")
def test_without_its_package_a_search_leaves_it_out_with_the_reason(
    small_search: SmallSearch, monkeypatch: pytest.MonkeyPatch
) -> None:
    SteadyClock(monkeypatch).step_s["MagCache:skipped"] = 0.001
    few = ("--pipe", "flux", "--steps", "6", "--grid", "coarse", "--num-samples", "1", "--batch-size", "1")
    result = small_search.pytester.runpytest_inprocess("benches", *few, "--search-targets", "MagCache,DBCache")
    assert result.ret == 0, result.outlines
    result.stdout.fnmatch_lines([f"*{PIPE}-{FLOW}-6 DBCache: this model takes none of its 12 candidates; the first:*"])
    said = " ".join(result.stdout.str().split())
    assert "cache-dit is not installed (pip install 'pytest-diffaccel[cache-dit]')" in said
    entries = Golden.read(small_search.golden).entries
    assert {key.accelerator for key in entries} == {"MagCache"}


@pytest.mark.usefixtures("without")
def test_without_its_package_scripts_are_written(answer: Callable[[Params], Answer]) -> None:
    assert "import cache_dit" in render(answer(ACTING))


# --- no trace -------------------------------------------------------------------------------------------------------


@needs_cache_dit
@pytest.mark.parametrize(
    "values", [(1, 2, 3, 0), (4, 2, 3, 0, 1), (8, STEPS, 3, 1), (1, 2, 0, 1), (4, STEPS, -1, 1, 1)], ids=str
)
def test_identity_settings_give_the_baselines_images(flux: Any, values: Any) -> None:
    assert not METHOD.counters(point(*values), STEPS)
    assert same(generated(flux, params(*values)), generated(flux, {}))


@contextmanager
def unchanged(pipeline: Any) -> Iterator[None]:
    """As ``untouched``, and nothing is held, in no other order, and nobody's loggers are."""
    orders = {name: list(module._modules) for name, module in pipeline.transformer.named_modules()}
    forward = "forward" in vars(pipeline.transformer)
    with untouched(pipeline), everything_of_hooks(pipeline.transformer):
        yield
    assert {name: list(module._modules) for name, module in pipeline.transformer.named_modules()} == orders
    assert ("forward" in vars(pipeline.transformer)) == forward
    assert not {"_is_cached", "_original_call"} & vars(type(pipeline)).keys()


@needs_cache_dit
@each_setting
def test_pipeline_is_as_it_was(flux: Any, setting: Params, capfd: pytest.CaptureFixture[str]) -> None:
    before = plain(flux)
    capfd.readouterr()
    with unchanged(flux):
        accelerated = generated(flux, setting)
    assert capfd.readouterr().out == ""
    assert not same(accelerated, before)
    assert same(plain(flux), before)


@needs_cache_dit
@each_setting
@pytest.mark.parametrize("step", [1, 4, 6])
def test_pipeline_is_as_it_was_after_an_exception_inside(flux: Any, setting: Params, step: int) -> None:
    before = plain(flux)
    with unchanged(flux), accident_at(flux.transformer.norm_out, step), pytest.raises(Accident):
        generated(flux, setting)
    assert same(plain(flux), before)


@needs_cache_dit
def test_pipeline_is_as_it_was_after_an_exception_half_way_through(flux: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """When cache-dit has patched the pipeline's class, and not yet the denoiser."""
    from cache_dit.caching.cache_adapters import CachedAdapter

    before, classes = plain(flux), []

    def accident(*_: Any) -> None:
        classes.append(vars(type(flux))["_is_cached"])
        raise Accident

    monkeypatch.setattr(CachedAdapter, "mock_blocks", accident)
    with unchanged(flux), pytest.raises(Accident):
        generated(flux, ACTING)
    assert classes == [True]
    assert same(plain(flux), before)


@needs_cache_dit
@each_setting
def test_a_generation_sees_nothing_of_the_last_one(flux: Any, setting: Params) -> None:
    with accelerate(flux, setting, steps=STEPS, **SIZE) as generate:
        first = generate(PROMPTS, SEEDS)
        generate(PROMPTS[::-1], [8, 9])
        assert same(generate(PROMPTS, SEEDS), first)
    assert same(generated(flux, setting), first)


@needs_cache_dit
def test_nothing_that_is_kept_outlives_a_generation(flux: Any) -> None:
    held: list[weakref.ref[Any]] = []

    def note(module: Any, *_: Any) -> None:
        context = module._context_manager.get_context()
        held.extend(weakref.ref(one) for one in (context, *context.buffers.values()))

    with restored(flux):
        hook = flux.transformer.register_forward_hook(note)
        generated(flux, ACTING)
        hook.remove()
    assert len(held) > STEPS
    del hook
    gc.collect()
    assert not [one for one in held if one() is not None]


@needs_cache_dit
def test_a_subclass_and_its_class_are_as_they_were(flux: Any) -> None:
    class FluxOwn(diffusers.FluxPipeline):
        pass

    own = FluxOwn(**flux.components)
    own.set_progress_bar_config(disable=True)
    with unchanged(own):
        assert same(generated(own, ACTING), generated(flux, ACTING))
    assert "__call__" not in vars(FluxOwn)


# --- the rule -------------------------------------------------------------------------------------------------------


@needs_cache_dit
def test_masks_are_those_of_cache_dit() -> None:
    import cache_dit

    for steps in range(1, 121):
        for number, policy in enumerate(MASK_POLICIES, 1):
            if not has_masks(steps):
                with pytest.raises(AssertionError):
                    cache_dit.steps_mask(total_steps=steps, mask_policy=policy)
                continue
            mask = cache_dit.steps_mask(total_steps=steps, mask_policy=policy)
            assert list(steps_mask(number, steps)) == mask, (steps, policy)
            assert mask_number(mask) == (1 if steps in (4, 6) else number)
            assert not mask_number([*mask[:-1], 0])


def told_to_cache_dit(one: Point, steps: int) -> dict[str, Any]:
    """A mask beside its own defaults of what means nothing then."""
    if number := int(one["steps_mask"]):
        return {"steps_computation_mask": list(steps_mask(number, steps)), "steps_computation_policy": "static"}
    return {name: value for name, value in one.items() if name not in ("taylorseer_order", "steps_mask")}


@needs_cache_dit
@pytest.mark.parametrize("calls_per_step", [1, 2])
def test_decisions_are_those_of_cache_dit(calls_per_step: int) -> None:
    """Its own manager, asked with made-up residuals, against what is foreseen from the distances between them."""
    from cache_dit import DBCacheConfig
    from cache_dit.caching.cache_contexts import CachedContextManager

    generator = torch.Generator().manual_seed(0)
    drift = torch.randn(14, calls_per_step, 2, 5, generator=generator).mul(0.15).cumsum(0)
    residuals = list((1 + drift).flatten(0, 1))
    seen = set()
    unmasked = product((1,), (0, 2, 4), (-1, 0, 1, 2, 4), (0, 0.1, 0.2, 0.35, 1), (0,))
    masked = [(1, 0, -1, 1, 0, number) for number in (1, 2, 3, 4)]
    for values in (*unmasked, *masked):
        one = point(*values)
        told = BlockDistances()
        manager = CachedContextManager("test", persistent_context=True)
        config = DBCacheConfig(**told_to_cache_dit(one, 14), enable_separate_cfg=calls_per_step == 2)
        manager.set_context("blocks", cache_config=config)
        decided: list[bool] = []
        for residual in residuals:
            manager.mark_step_begin()
            purpose = purpose_of(manager)
            earlier = [before for before, (other, _) in zip(residuals, told._calls, strict=False) if other == purpose]
            told._calls.append((purpose, {1: [((a - residual).abs().mean() / a.abs().mean()).item() for a in earlier]}))
            decided.append(manager.can_cache(residual, prefix="Fn"))
            if decided[-1]:
                manager.add_cached_step()
            else:
                manager.set_Fn_buffer(residual, prefix="Fn")
        foreseen = told.decisions(one)
        assert {len(step) for step in foreseen} == {calls_per_step}
        assert [call for step in foreseen for call in step] == decided, one
        if one["steps_mask"]:
            assert not METHOD.decides(one)
            assert [[REUSED in kind] * calls_per_step for kind in METHOD.kinds(one, 14, frozenset())] == foreseen
        seen.add(tuple(decided))
    assert len(seen) > 20


@needs_cache_dit
@pytest.mark.parametrize(
    "values",
    [
        *((1, 2, 3, 0.5), (4, 3, 2, 0.4, 1), (8, 2, -1, 1), (8, 1, 1, 0.6, 1), (11, 4, 2, 1)),
        *((first, 0, -1, 1, order, mask) for first, order, mask in ((1, 0, 1), (4, 1, 2), (8, 0, 3), (1, 1, 4))),
    ],
    ids=str,
)
def test_what_is_decided_is_what_runs(flux: Any, values: Any) -> None:
    ran: list[set[int]] = []
    one = point(*values)
    with accelerate(flux, params(*values), steps=STEPS, **SIZE) as generate, restored(flux):
        blocks = [*flux.transformer.transformer_blocks, *flux.transformer.single_transformer_blocks]
        flux.transformer.register_forward_pre_hook(lambda *_: ran.append(set()))
        for place, block in enumerate(blocks):
            block.register_forward_pre_hook(lambda *_, place=place: ran[-1].add(place))
        generate(PROMPTS, SEEDS)
    assert len(blocks) == BLOCKS
    first = one["Fn_compute_blocks"]
    kinds = {tuple(range(BLOCKS)): COMPUTED, tuple(range(first)): REUSED}
    names = [f"DBCache:{METHOD.decided_kind(one, kinds[tuple(sorted(step))])}" for step in ran]
    assert generate.decided == generate.kinds == tuple(names)
    reused = sum("reused" in kind for kind in generate.kinds)
    assert generate.fired == {
        **dict.fromkeys(("predicted_attention", "skipped_blocks", "reused_calls"), 0),
        "denoiser_calls": STEPS,
        "cached_calls": reused,
    }
    assert reused > 0
    if one["residual_diff_threshold"] == 1:
        assert generate.kinds == generate.accelerator.kinds(params(*values), STEPS)


@needs_cache_dit
def test_one_generation_foresees_them_all(flux: Any) -> None:
    """Of 28 steps; measured on two pictures: 45 of 48 masks equal, the others off by a step in their number at most."""
    rows = product(((1, 4, 3, 0), (4, 4, 1, 1), (8, 8, 6, 0)), (0.08, 0.32))
    settings = [params(first, warmup, limit, threshold, order) for (first, warmup, limit, order), threshold in rows]
    with accelerate(flux, ACTING, steps=28, **SIZE) as generate:
        told = generate.foreseen(PROMPTS[:1], SEEDS[:1])
        assert not generate.decided
    equal = 0
    for setting in settings:
        with accelerate(flux, setting, steps=28, **SIZE) as generate:
            generate.observed(PROMPTS[:1], SEEDS[:1], None)
        foreseen = generate.accelerator.decided_kinds(setting, told.decisions(setting["DBCache"]))
        reused = [sum("reused" in kind for kind in kinds) for kinds in (foreseen, generate.kinds)]
        assert abs(reused[0] - reused[1]) <= 1
        assert 3 < reused[1] < 22
        equal += foreseen == generate.kinds
    assert equal >= len(settings) - 1


@needs_cache_dit
def test_another_number_of_first_blocks_is_foreseen_as_the_nearest(flux: Any) -> None:
    with accelerate(flux, ACTING, steps=STEPS, **SIZE) as generate:
        told = generate.foreseen(PROMPTS, SEEDS)
    masks = {first: told.decisions(point(first, 2, 3, 0.3)) for first in (1, 2, 3, 4, 7, 8, 11)}
    assert masks[1] == masks[2] != masks[8] == masks[7] == masks[11]
    assert masks[3] == masks[4]


@needs_cache_dit
def test_a_generation_that_reuses_nothing_has_no_effect(flux: Any) -> None:
    with pytest.raises(MethodDidNotAct, match="cached_calls stayed 0"):
        generated(flux, params(1, 2, 3, 0.0001))


# --- right, not only acting ------------------------------------------------------------------------------------------

# Of 20 steps 6, 9 and 5 are reused; measured: an LPIPS of 0.0002, 0.0003 and 0.0002, and of 0.16 for another seed.
MILD = {
    "no series": params(1, 8, 1, 0.16),
    "series": params(1, 6, 2, 0.16, 1),
    "mask": params(1, 0, -1, 1, 1, 1),
}
NEAR = {"no series": 0.0007, "series": 0.0006, "mask": 0.0005}


def mild_lpips(pipeline: Any, name: str) -> float:
    baseline = generated(pipeline, {}, 20, prompts=PROMPTS[1:])
    return References(baseline).distances(generated(pipeline, MILD[name], 20, prompts=PROMPTS[1:]))[0]


@needs_cache_dit
@pytest.mark.parametrize("name", MILD)
def test_a_mild_setting_stays_near(flux: Any, name: str) -> None:
    assert 0 < mild_lpips(flux, name) < NEAR[name]


@needs_cache_dit
@pytest.mark.parametrize("broken", BROKEN_RESIDUALS)
def test_a_broken_cache_would_be_seen(flux: Any, broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from cache_dit.caching.cache_contexts import CachedContextManager

    whole = CachedContextManager.get_Bn_buffer
    monkeypatch.setattr(
        CachedContextManager,
        "get_Bn_buffer",
        lambda self, prefix: BROKEN_RESIDUALS[broken](self, whole(self, prefix)),
    )
    assert mild_lpips(flux, "no series") > NEAR["no series"]


@needs_cache_dit
@pytest.mark.parametrize("broken", ["nothing", "the first", "the last", "backwards", "too far"])
def test_a_broken_series_would_be_seen(flux: Any, broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from cache_dit.caching.cache_contexts.calibrators.taylorseer import TaylorSeerState

    assert broken in BROKEN_SERIES
    whole = TaylorSeerState.approximate

    def approximate(self: Any) -> Any:
        now, terms = self.current_step, self.state["dY_current"]
        if broken == "nothing":
            return 0 * terms[0]
        if broken == "the first":
            return vars(self).setdefault("first", whole(self))
        if broken == "the last":
            return terms[0]
        self.current_step = self.last_non_approximated_step + {"backwards": -1, "too far": 4}[broken]
        found = whole(self)
        self.current_step = now
        return found

    monkeypatch.setattr(TaylorSeerState, "approximate", approximate)
    assert mild_lpips(flux, "series") > NEAR["series"]


# --- guidance by a second call, and other pipelines ------------------------------------------------------------------


@pytest.fixture
def known_as() -> Iterator[Callable[[str], None]]:
    def know(its_class: str) -> None:
        registry = PipeRegistry()
        registry.register(PipeSpec("mine", its_class, denoiser="transformer"))
        make_known(registry)

    yield know
    make_known(PipeRegistry())


@pytest.fixture
def qwen(tmp_path: Path, known_as: Callable[[str], None]) -> Any:
    known_as("QwenImagePipeline")
    pipeline = DiffusionPipeline.from_pretrained(str(save_tiny("QwenImagePipeline", tmp_path / "qwen")))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@needs_cache_dit
@pytest.mark.parametrize(("scale", "calls"), [(4.0, 2), (1.0, 1)])
def test_each_of_a_steps_calls_decides_for_itself(qwen: Any, scale: float, calls: int) -> None:
    """Without guidance cache-dit would take every other step for a call without the prompt."""
    size = {"height": 32, "width": 32, "guidance_scale": scale}
    with accelerate(qwen, params(1, 2, 2, 0), steps=8, **size) as generate:
        told = generate.foreseen(PROMPTS, SEEDS)
        identity = generate(PROMPTS, SEEDS)
        assert generate.fired["denoiser_calls"] == 8 * calls
    apart = sorted({0.999 * one for _, by_number in told._calls for row in by_number.values() for one in row})
    halves = []
    for threshold in (apart[0], apart[len(apart) // 2], 1):
        setting = params(1, 2, 2, min(threshold, 1))
        its_class = dict(vars(type(qwen)))
        with accelerate(qwen, setting, steps=8, **size) as generate:
            generate.observed(PROMPTS, SEEDS, None)
        assert dict(vars(type(qwen))) == its_class
        assert len(generate.kinds) == 8
        assert not any("reused" in kind for kind in generate.kinds[:2])
        halves += [kind for kind in generate.kinds if "half" in kind]
    assert [("reused" in kind) for kind in generate.kinds] == [False, False, True, True, False, True, True, False]
    assert calls == 2 or not halves
    with accelerate(qwen, {}, steps=8, **size) as generate:
        assert same(generate(PROMPTS, SEEDS), identity)


@needs_cache_dit
@pytest.mark.parametrize(("scale", "calls"), [(4.0, 2), (1.0, 1)])
@pytest.mark.parametrize("mask", [1, 2, 3, 4])
def test_a_mask_is_that_of_steps_with_and_without_guidance(qwen: Any, scale: float, calls: int, mask: int) -> None:
    size = {"height": 32, "width": 32, "guidance_scale": scale}
    setting = params(1, 0, -1, 1, 0, mask)
    with accelerate(qwen, params(1, 2, 2, 0), steps=8, **size) as generate:
        told = generate.foreseen(PROMPTS, SEEDS)
    with accelerate(qwen, setting, steps=8, **size) as generate:
        nominal = generate.kinds
        generate.observed(PROMPTS, SEEDS, None)
        assert (
            generate.decided
            == nominal
            == generate.accelerator.decided_kinds(setting, told.decisions(setting["DBCache"]))
        )
        generate(PROMPTS, SEEDS)
        assert generate.fired["denoiser_calls"] == 8 * calls
        assert generate.fired["cached_calls"] == calls * steps_mask(mask, 8).count(0)


@needs_cache_dit
@pytest.mark.parametrize(
    ("name", "transformer", "reason"),
    [
        ("FluxPipeline", lambda: tiny_flux().transformer, ""),
        ("PixArtSigmaPipeline", tiny_pixart, "a PixArtTransformer2DModel of one block has none after the first to"),
        ("ZImageOmniPipeline", tiny_pixart, "cache-dit knows no ZImageOmniPipeline"),
        ("StableCascadePriorPipeline", tiny_pixart, "cache-dit knows no StableCascadePriorPipeline"),
    ],
)
def test_it_says_where_it_can_do_nothing(
    known_as: Callable[[str], None], name: str, transformer: Callable[[], Any], reason: str
) -> None:
    known_as(name)
    said = METHOD.applies_to(of_class(name, transformer()))
    assert said.startswith(reason)
    assert bool(said) == bool(reason)


@needs_cache_dit
def test_blocks_that_are_decided_apart_are_refused(flux: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from cache_dit.envs import ENV

    monkeypatch.setattr(ENV, "CACHE_DIT_FLUX_ENABLE_DUMMY_BLOCKS", False)
    words = "DBCache: in a FluxPipeline cache-dit decides for some blocks apart from others; leave it out"
    with untouched(flux), pytest.raises(InvalidParams, match=words):
        generated(flux, ACTING)


@needs_cache_dit
def test_a_unet_is_refused(pipeline_of: Callable[..., Any]) -> None:
    pipeline = pipeline_of("SD1.5", "DDIM")
    words = "DBCache: cache-dit knows no StableDiffusionPipeline; leave it out"
    with untouched(pipeline), pytest.raises(InvalidParams, match=words), accelerate(pipeline, ACTING, steps=8):
        pass


@needs_cache_dit
def test_a_second_cache_is_refused(flux: Any) -> None:
    import cache_dit

    words = r"DBCache: the denoiser has a FirstBlockCacheConfig already; call its `disable_cache\(\)`"
    with restored(flux):
        flux.transformer.enable_cache(diffusers.FirstBlockCacheConfig(threshold=0.1))
        with untouched(flux), pytest.raises(InvalidParams, match=words):
            generated(flux, ACTING)
    words = "DBCache: cache-dit is on already; call `cache_dit.disable_cache` with the pipeline"
    with restored(flux), class_restored(type(flux)):
        cache_dit.enable_cache(flux)
        with untouched(flux), pytest.raises(InvalidParams, match=words):
            generated(flux, ACTING)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ((0, 4, 3, 0.1), "Fn_compute_blocks=0 must be a whole number from 1"),
        ((1, -1, 3, 0.1), "max_warmup_steps=-1 must be a whole number from 0"),
        ((1, 4, -2, 0.1), "max_continuous_cached_steps=-2 must be a whole number from -1"),
        ((1, 4, 3, -0.1), "residual_diff_threshold=-0.1 must be a number from 0 to 1"),
        ((1, 4, 3, 1.5), "residual_diff_threshold=1.5 must be a number from 0 to 1"),
        ((1, 4, 3, float("nan")), "residual_diff_threshold=nan must be a number from 0 to 1"),
        ((1, 4, 3, True), "residual_diff_threshold=True must be a number from 0 to 1"),
        ((1, 4, 3, 0.1, 2), "taylorseer_order=2 must be a whole number from 0 to 1"),
        ((1, 0, -1, 1, 0, 5), "steps_mask=5 must be a whole number from 0 to 4"),
        ((1, 0, -1, 1, 0, True), "steps_mask=True must be a whole number from 0 to 4"),
        ((1, 8, -1, 1, 0, 3), "max_warmup_steps=8 must be 0 with steps_mask=3, which alone says what is reused"),
        ((1, 0, 2, 1, 0, 3), "max_continuous_cached_steps=2 must be -1 with steps_mask=3"),
        ((1, 0, -1, 0.1, 0, 3), "residual_diff_threshold=0.1 must be 1 with steps_mask=3"),
    ],
)
def test_bad_parameters_are_refused_with_value_and_range(values: Any, words: str) -> None:
    with pytest.raises(InvalidParams, match=f"DBCache: {words}"):
        METHOD.check(point(*values), STEPS)


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 7])
def test_steps_without_masks_are_refused(steps: int) -> None:
    words = (
        f"DBCache: steps_mask=3 is none of {steps} steps: cache-dit has masks of 4, of 6, and from 8 steps on; take 0"
    )
    with pytest.raises(InvalidParams, match=words):
        METHOD.check(MASKED["DBCache"], steps)
    assert not any(one["steps_mask"] for one in METHOD.space(replace(CELL, steps=steps)))


@needs_cache_dit
def test_more_first_blocks_than_there_are_is_a_misfit() -> None:
    pipeline = tiny_flux()
    words = "Fn_compute_blocks=8 leaves none of this FluxTransformer2DModel's 5 blocks to save; take less"
    assert METHOD.misfit(point(8, 4, 3, 0.1), pipeline, SIDE, SIDE) == words
    assert METHOD.misfit(point(5, 4, 3, 0.1), pipeline, SIDE, SIDE) == words.replace("=8", "=5")
    assert not METHOD.misfit(point(4, 4, 3, 0.1), pipeline, SIDE, SIDE)


# --- grids and predictions -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [4, 8, 20, 28, 50])
@pytest.mark.parametrize("size", ["full", "coarse", "pair"])
def test_grids_are_sorted_valid_and_without_repetitions(steps: int, size: Any) -> None:
    cell = replace(CELL, steps=steps)
    grid = METHOD.grid(cell, size)
    rows = [tuple(one.values()) for one in grid]
    assert rows == sorted(set(rows))
    assert not any(one["steps_mask"] for one in grid)
    space = [tuple(one.values()) for one in METHOD.space(cell)]
    assert space == sorted(set(space))
    for one in (*grid, *METHOD.space(cell)[::7]):
        METHOD.check(one, steps)
        assert METHOD.counters(one, steps)
        assert all(0 <= place <= 1 for place in METHOD.coordinates(one, cell))
        assert not any(METHOD.decided_coordinates(one, cell, 0.0))
        for kind in METHOD.kinds(one, steps, frozenset()):
            assert METHOD.features(kind)
    sizes = {"full": {4: 0, 8: 144}, "coarse": {4: 0}, "pair": {4: 0}}
    assert len(grid) == sizes[size].get(steps, {"full": 360, "coarse": 12, "pair": 12}[size])


def test_extremes_show_every_kind_of_the_grid() -> None:
    never, *soon = METHOD.extremes
    assert not METHOD.counters(never, 8)
    wanted = {kind for one in METHOD.grid(CELL, "full") for kind in METHOD.kinds(one, STEPS, frozenset())}
    assert {kind for one in soon for kind in METHOD.kinds(one, 8, frozenset())} == wanted


@pytest.mark.parametrize(("steps", "masks"), [(4, 1), (5, 0), (6, 1), (8, 4), (28, 4)])
def test_the_space_has_each_mask_once_per_first_blocks_and_order(steps: int, masks: int) -> None:
    cell = replace(CELL, steps=steps)
    masked = [one for one in METHOD.space(cell) if one["steps_mask"]]
    assert len(masked) == 6 * masks
    assert len({(one["Fn_compute_blocks"], one["taylorseer_order"], one["steps_mask"]) for one in masked}) == 6 * masks
    for one in masked:
        METHOD.check(one, steps)
        assert METHOD.counters(one, steps)
        assert not any(METHOD.decided_coordinates(one, cell, 0.0))
        assert all(0 <= place <= 1 for place in METHOD.decided_coordinates(one, cell, 0.5))


def test_steps_of_a_mask_are_known_before_anything_is_drawn() -> None:
    """And after it, no prompt makes them others."""
    registry = default_registry()
    masked = Candidate(CELL, "DBCache", MASKED)
    by_kind = {"DBCache:computed@1": 6, "DBCache:reused@1@4": 4}
    assert steps_mask(3, STEPS).count(0) == 4
    for counts in (StepCounts(registry), StepCounts(registry, decided={masked: [["DBCache:computed@1"] * STEPS]})):
        assert (counts.of(masked).by_kind, counts.of(masked).sd) == (by_kind, 0.0)
        assert counts.reused_share(masked) == pytest.approx(0.4)
    assert StepCounts(registry).of(replace(masked, params=SERIES)).sd == 1


def test_steps_are_counted_by_what_reuses() -> None:
    """Points of one mask that compute other blocks are no equals."""

    class Told:
        def decisions(self, one: Point) -> list[list[bool]]:
            return [[step >= 6] for step in range(STEPS)]

    registry = default_registry()
    counts = StepCounts(registry, {Group(CELL, "DBCache"): [Told(), Told()]})  # type: ignore[list-item]
    first, *others = (
        Candidate(CELL, "DBCache", params(*one)) for one in ((1, 4, 3, 0.1), (4, 4, 3, 0.1), (1, 4, 3, 0.1, 1))
    )
    assert counts.of(first).by_kind == {"DBCache:computed@0": 6, "DBCache:reused@0@1": 4}
    assert [counts.reused_share(one) for one in (first, *others)] == pytest.approx([0.4] * 3)
    assert len({counts.decisions(one) for one in (first, *others)}) == 3
    assert counts.decisions(first) == counts.decisions(Candidate(CELL, "DBCache", params(1, 3, 6, 0.2)))


# --- scripts, exports and the judge ----------------------------------------------------------------------------------


@pytest.fixture
def answer(tmp_path: Path) -> Callable[[Params], Answer]:
    """What golden answers to the task."""

    def of(setting: Params) -> Answer:
        environment = replace(ENVIRONMENT, pipe=PIPE, guidance_scale=3.5, image_size=(96, 96), batch_size=1)
        entry = replace(MET, params=setting, environment=environment.id, batch_size=1)
        path = tmp_path / "golden.json"
        write_golden(path, {GoldenKey(CELL, "DBCache", 1.5): entry}, {environment.id: environment})
        return find(Task(CELL, "DBCache", 1.5, tuple(default_registry().names)), Golden.read(path))

    return of


@needs_cache_dit
@each_setting
def test_a_script_draws_what_accelerate_draws(
    answer: Callable[[Params], Answer], flux: Any, setting: Params, tmp_path: Path
) -> None:
    path = tmp_path / "script.py"
    path.write_text(render(answer(setting)), encoding="utf-8")
    script = runpy.run_path(str(path))
    pipeline = script["build_pipeline"](str(embedded_folder(PIPE)), "cpu", torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    before, call = plain(pipeline), type(pipeline).__call__
    images = script["generate"](pipeline, PROMPTS, SEEDS)
    assert same(images, generated(flux, setting))
    assert not same(images, before)
    assert same(images, script["generate"](pipeline, PROMPTS, SEEDS))
    assert same(plain(pipeline), before)
    assert type(pipeline).__call__ is call


@each_setting
def test_ruff_finds_nothing(answer: Callable[[Params], Answer], setting: Params, tmp_path: Path) -> None:
    found = answer(setting)
    (tmp_path / "script.py").write_text(render(found), encoding="utf-8")
    (tmp_path / "lines.py").write_text(render_cache(found, "cache-dit"), encoding="utf-8")
    for command in (["check", "--ignore", "F821,INP001,D100"], ["format", "--check", "--diff"]):
        for options in (["--isolated"], ["--config", str(ROOT / "pyproject.toml")]):
            assert not findings("ruff", [*command, "--no-cache", *options, str(tmp_path)])


@each_setting
def test_what_is_written_is_read_again(answer: Callable[[Params], Answer], setting: Params, tmp_path: Path) -> None:
    found, path = answer(setting), tmp_path / "written.py"
    for text in (render(found), render_cache(found, "cache-dit")):
        path.write_text(text, encoding="utf-8")
        read = read_preset(path, default_registry())
        assert (read.params, read.remarks) == (setting, ())


@needs_cache_dit
@each_setting
def test_exported_lines_draw_what_accelerate_draws(
    answer: Callable[[Params], Answer], setting: Params, flux: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import cache_dit

    answer(setting)
    key, golden = str(GoldenKey(CELL, "DBCache", 1.5)), str(tmp_path / "golden.json")
    assert main(["export", key, "--as", "cache-dit", "--golden", golden]) == 0
    lines = capsys.readouterr().out
    before = plain(flux)
    with unchanged(flux), restored(flux), class_restored(type(flux)):
        exec(compile(lines, "exported", "exec"), {"pipe": flux})
        drawn = plain(flux)
        assert same(plain(flux), drawn)
        cache_dit.disable_cache(flux)
        assert same(plain(flux), before)
    assert same(drawn, generated(flux, setting))


def test_each_tool_is_told_of_its_own_caches(
    answer: Callable[[Params], Answer],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    answer(ACTING)
    key, golden = str(GoldenKey(CELL, "DBCache", 1.5)), str(tmp_path / "golden.json")
    assert main(["export", key, "--as", "diffusers", "--golden", golden]) == 2
    assert "DBCache is a cache of cache-dit, not of diffusers: --as cache-dit" in capsys.readouterr().err


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Judge]:
    lock = tmp_path_factory.mktemp("judge") / "timing.lock"
    judge = Judge(Rules(lock=lock, stages=("static", "runs"), limits=Limits(seconds=60.0)))
    yield judge
    judge.close()


@needs_cache_dit
@each_setting
def test_a_script_passes_the_judge(answer: Callable[[Params], Answer], setting: Params, judge: Judge) -> None:
    found = answer(setting)
    verdict = judge.judge("flux", found.task, render(found).encode(), found)
    assert verdict.passed, verdict.failures
    runs = verdict.of("runs")
    assert runs is not None
    assert runs.figures["params"] == setting


#: What is written in place of what in a script, and what the judge says of it.
CHEATS = {
    "no cache": ("cache_dit.enable_cache(pipeline, config)", "pass", "accelerators: none, not DBCache"),
    "never reuses": ("(**DBCACHE)", "(**{**DBCACHE, 'residual_diff_threshold': 0.0001})", "cached_calls stayed 0"),
    "reuses unseen": (
        "    with accelerated(pipeline) as call:\n",
        "    with accelerated(pipeline) as call:\n"
        "        manager = pipeline.transformer._context_manager\n"
        "        manager.can_cache = lambda *_, **__: manager.get_current_step() > 0\n",
        "not those of its settings",
    ),
    "a mask of its own": (
        "steps_computation_mask=mask",
        "steps_computation_mask=[1, *[0] * 9]",
        "with a mask that is none",
    ),
    "a mask of more steps": (
        "total_steps=STEPS",
        "total_steps=28",
        "with a mask that is none of cache-dit's own of 10",
    ),
    "a mask that pictures change": ('"static"', '"dynamic"', "with a mask that is none of cache-dit's own of 10 steps"),
    "last blocks too": ("(**DBCACHE)", "(**DBCACHE, Bn_compute_blocks=2)", "not those of its settings"),
}


@needs_cache_dit
@pytest.mark.parametrize("name", CHEATS)
def test_a_cheat_is_caught(name: str, answer: Callable[[Params], Answer], judge: Judge) -> None:
    honest, cheat, said = CHEATS[name]
    found = answer(MASKED if "mask" in name else ACTING)
    script = render(found)
    assert honest in script
    verdict = judge.judge("flux", found.task, script.replace(honest, cheat).encode(), found)
    assert not verdict.passed
    assert said in " ".join(result.detail for result in verdict.failures)


# --- searching -------------------------------------------------------------------------------------------------------


@needs_cache_dit
def test_a_search_finds_what_to_reuse(small_search: SmallSearch, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SteadyClock(monkeypatch)
    clock.step_s |= {f"DBCache:reused@{order}@{first}": 0.0005 * first for order in (0, 1) for first in (1, 4, 8)}
    few = ("--steps", "8", "--grid", "coarse", "--num-samples", "2", "--batch-size", "1", "--search-targets", "DBCache")
    result = small_search.pytester.runpytest_inprocess("benches", "--pipe", "flux", *few)
    assert result.ret == 0, result.outlines
    golden = Golden.read(small_search.golden)
    met = [entry.params["DBCache"] for entry in golden.entries.values() if entry.status == "met"]
    assert met
    assert all(one.keys() == set(METHOD.param_names) for one in met)
    found = [one for one in measurements(small_search) if one.sampling.purpose == "search"]
    decided = [one.decided[:2] for one in found]
    assert len(set(decided)) == len(decided) > 1
    assert all(environment.versions["cache-dit"] for environment in golden.environments.values())
    assert np.isfinite([entry.lpips for entry in golden.entries.values() if entry.lpips is not None]).all()


class Few(DBCache):
    """Two cases that reuse next to nothing, and beyond them masks."""

    name = "Few"

    def grid(self, cell: Cell, size: Any) -> list[Point]:
        return [point(4, 4, 1, 0.02), point(4, 4, 1, 0.03)]

    def space(self, cell: Cell) -> list[Point]:
        return [one for one in super().space(cell) if one["steps_mask"]][::5]

    @staticmethod
    def pytest_diffaccel_accelerators(registry: Registry) -> None:
        """As a conftest registers it."""
        registry.register(Few())


@needs_cache_dit
def test_a_search_finds_a_mask_beyond_its_cases(small_search: SmallSearch, monkeypatch: pytest.MonkeyPatch) -> None:
    without_scale(monkeypatch)
    clock = SteadyClock(monkeypatch)
    clock.step_s |= {f"Few:reused@{order}@{first}": 0.0005 * first for order in (0, 1) for first in (1, 4, 8)}
    few = ("--pipe", "flux", "--steps", "8", "--num-samples", "1", "--batch-size", "1", "--search-targets", "Few")
    result = small_search.pytester.runpytest_inprocess("benches", *few, "--max-quality-loss", "10", plugins=[Few()])
    assert result.ret == 0, result.outlines
    entries = Golden.read(small_search.golden).entries.values()
    assert any(entry.status == "met" and entry.params["Few"]["steps_mask"] for entry in entries)
    masked = [one for one in measurements(small_search) if one.candidate.params.get("Few", {}).get("steps_mask")]
    assert masked
    for one in masked:
        point = one.candidate.params["Few"]
        assert set(one.decided) == {tuple(f"Few:{kind}" for kind in Few().kinds(point, 8, frozenset()))}
