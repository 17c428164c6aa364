"""Caches of transformers, on a FLUX.1 of random weights: they act as they say, stay near, and leave no trace."""

from __future__ import annotations

import runpy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import MagCacheConfig
from diffusers.hooks import HookRegistry, ModelHook
from diffusers.hooks.hooks import CacheContext, StateManager
from diffusers.hooks.mag_cache import FLUX_MAG_RATIOS, MagCacheHeadHook, MagCacheState
from diffusers.hooks.taylorseer_cache import TaylorSeerState
from entries import ENVIRONMENT, MET
from test_accelerators import Accident, accident_at, same, untouched
from test_generate import ROOT, findings
from tiny_flux import DOUBLE_BLOCKS, SIDE, SINGLE_BLOCKS, T5_TOKENS, save_tiny_flux, tiny_flux

from pytest_diffaccel import accelerate
from pytest_diffaccel.accelerators.acceleration import StepCountError
from pytest_diffaccel.accelerators.base import InvalidParams, Method
from pytest_diffaccel.accelerators.magcache import _RATIOS, MagCache
from pytest_diffaccel.accelerators.registry import default_registry
from pytest_diffaccel.accelerators.restoration import restored
from pytest_diffaccel.accelerators.taylorseer import TaylorSeer
from pytest_diffaccel.codegen.script import generate_script
from pytest_diffaccel.matrix import PIPES, Cell, Params, candidates, groups
from pytest_diffaccel.pipes import PipeRegistry, PipeSpec, make_known
from pytest_diffaccel.records.golden_file import Golden
from pytest_diffaccel.records.golden_key import GoldenKey

STEPS = 8
SIZE = {"height": SIDE, "width": SIDE}
PROMPTS, SEEDS = ("red apple", "blue face"), (3, 4)
BLOCKS = DOUBLE_BLOCKS + SINGLE_BLOCKS
CELL = Cell("FLUX.1", "FlowMatchEulerDiscreteScheduler", 28)
# The mean difference of a mild setting's pictures from the baseline's, of 255 levels: at most. Every broken cache here
# shows more.
NEAR = {"TaylorSeer": 0.3, "MagCache": 1.2}


def taylorseer(interval: int, before: int, order: int = 1) -> Params:
    point = {"cache_interval": interval, "disable_cache_before_step": before, "max_order": order}
    return {"TaylorSeer": point}


def magcache(threshold: float, skips: int, retention: float) -> Params:
    return {"MagCache": {"threshold": threshold, "max_skip_steps": skips, "retention_ratio": retention}}


def first_block(threshold: float) -> Params:
    return {"FirstBlockCache": {"threshold": threshold}}


#: All save the third step, and the first two compute the fourth or the sixth anew.
ACTING = {
    "TaylorSeer": taylorseer(3, 2),
    "MagCache": magcache(0.24, 3, 0.2),
    "FirstBlockCache": first_block(100),
}
#: How many of the steps are predicted or skipped.
SAVED = {"TaylorSeer": 4, "MagCache": 5}
COUNTERS = {
    "TaylorSeer": "predicted_attention",
    "MagCache": "skipped_blocks",
    "FirstBlockCache": "reused_calls",
    "DBCache": "cached_calls",
}
IDENTITIES = {
    "TaylorSeer, interval": taylorseer(1, 3),
    "TaylorSeer, begins late": taylorseer(4, STEPS),
    "MagCache, no skips": magcache(0.24, 0, 0.2),
    "MagCache, all retained": magcache(0.24, 3, 1),
    "FirstBlockCache, no distance": first_block(0),
}
each_method = pytest.mark.parametrize("method", ACTING)


@pytest.fixture(scope="module")
def flux() -> Any:
    return tiny_flux()


@pytest.fixture(scope="module")
def calm_flux() -> Any:
    """Its output changes little from step to step, as a trained one's; by chance, weights of the timestep are wild."""
    pipeline = tiny_flux()
    with torch.no_grad():
        for parameter in pipeline.transformer.time_text_embed.timestep_embedder.parameters():
            parameter.mul_(0.1)
    return pipeline


@pytest.mark.parametrize("others", [("FirstBlockCache", "MagCache"), ("MagCache", "TaylorSeer", "FirstBlockCache")])
def test_a_transformer_takes_one_cache_at_a_time(flux: Any, others: tuple[str, ...]) -> None:
    params = {name: point for other in others for name, point in ACTING[other].items()}
    with (
        pytest.raises(InvalidParams, match="a transformer takes one cache at a time; leave all but one out"),
        accelerate(flux, params, steps=STEPS, **SIZE),
    ):
        pass


@pytest.fixture
def known_as() -> Iterator[Callable[[str], None]]:
    """Lets pipelines of a class of diffusers be known, with a transformer."""

    def know(its_class: str) -> None:
        registry = PipeRegistry()
        registry.register(PipeSpec("mine", its_class, denoiser="transformer"))
        make_known(registry)

    yield know
    make_known(PipeRegistry())


def generated(pipeline: Any, params: Params, steps: int = STEPS) -> list[Any]:
    with accelerate(pipeline, params, steps=steps, **SIZE) as generate:
        return generate(PROMPTS, SEEDS)


def plain(pipeline: Any) -> list[Any]:
    """The images of a plain call, as a user without this package makes it."""
    noise = [torch.Generator("cpu").manual_seed(seed) for seed in SEEDS]
    call = {"num_inference_steps": STEPS, "max_sequence_length": T5_TOKENS, "generator": noise, **SIZE}
    return list(pipeline(list(PROMPTS), **call).images)


def distance(images: list[Any], others: list[Any]) -> float:
    """Mean difference of their pixels, of 255 levels."""
    pairs = zip(images, others, strict=True)
    return float(np.mean([np.abs(np.asarray(one, float) - np.asarray(other, float)) for one, other in pairs]))


# --- no trace ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("setting", IDENTITIES)
def test_identity_settings_give_the_baselines_images(flux: Any, setting: str) -> None:
    baseline = plain(flux)
    assert not same(baseline[:1], baseline[1:])
    assert same(generated(flux, {}), baseline)
    assert same(generated(flux, IDENTITIES[setting]), baseline)


@each_method
@pytest.mark.parametrize("called_before", [False, True])
def test_pipeline_is_as_it_was(method: str, called_before: bool) -> None:
    """Also where a plain call has left diffusers' registry of hooks on the transformer."""
    pipeline, before = tiny_flux(), plain(tiny_flux())
    if called_before:
        plain(pipeline)
    with untouched(pipeline), everything_of_hooks(pipeline.transformer):
        accelerated = generated(pipeline, ACTING[method])
    assert not same(accelerated, before)
    assert same(plain(pipeline), before)


@each_method
@pytest.mark.parametrize("step", [1, 3, 6])
def test_pipeline_is_as_it_was_after_an_exception_inside(flux: Any, method: str, step: int) -> None:
    """In a step that computes, in one that does not, and in one that renews what was kept."""
    before = plain(flux)
    with (
        untouched(flux),
        everything_of_hooks(flux.transformer),
        accident_at(flux.transformer.norm_out, step),
        pytest.raises(Accident),
    ):
        generated(flux, ACTING[method])
    assert same(plain(flux), before)


@contextmanager
def everything_of_hooks(transformer: Any) -> Iterator[None]:
    """Assert that diffusers' registries hold afterwards what they hold now."""

    def content() -> dict[str, Any]:
        registries = {name: getattr(module, "_diffusers_hook", None) for name, module in transformer.named_modules()}
        return {
            name: {key: value.copy() if isinstance(value, dict | list) else value for key, value in vars(found).items()}
            for name, found in registries.items()
            if found is not None
        }

    before = content()
    yield
    assert content() == before


def test_hooks_of_the_user_survive(flux: Any) -> None:
    """diffusers adds its own to the same registry, in place."""

    class Counting(ModelHook):
        calls = 0

        def pre_forward(self, module: Any, *args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            return args, kwargs

    counting = Counting()
    with restored(flux):
        HookRegistry.check_if_exists_or_initialize(flux.transformer.transformer_blocks[0].attn).register_hook(
            counting, "counting"
        )
        with untouched(flux), everything_of_hooks(flux.transformer):
            generated(flux, ACTING["TaylorSeer"])
        first = counting.calls
        generated(flux, {})
    assert (first, counting.calls) == (STEPS - SAVED["TaylorSeer"], 2 * STEPS - SAVED["TaylorSeer"])


@each_method
def test_same_seeds_give_the_same_images_twice(flux: Any, method: str) -> None:
    with accelerate(flux, ACTING[method], steps=STEPS, **SIZE) as generate:
        first = generate(PROMPTS, SEEDS)
        assert same(generate(PROMPTS, SEEDS), first)
    assert same(generated(flux, ACTING[method]), first)


# --- every method acts, as predicted, and stays near ----------------------------------------------------------------


@pytest.mark.parametrize(
    "params",
    [taylorseer(*one) for one in ((2, 1), (2, 3), (3, 2, 0), (3, 3, 2), (5, 1, 2), (7, 4), (2, 9), (2, 10), (1, 3))],
    ids=str,
)
def test_what_taylorseer_computes_is_what_kinds_predict(flux: Any, params: Params) -> None:
    computed: list[set[Any]] = []
    attentions = [block.attn for block in (*blocks_of(flux.transformer),)]
    with restored(flux), accelerate(flux, params, steps=10, **SIZE) as generate:
        flux.transformer.register_forward_pre_hook(lambda *_: computed.append(set()))
        for place, attention in enumerate(attentions):
            attention.to_q.register_forward_pre_hook(lambda *_, place=place: computed[-1].add(place))
        generate(PROMPTS[:1], SEEDS[:1])
    names = {BLOCKS: "computed", 0: "predicted"}
    assert [f"TaylorSeer:{names[len(step)]}@{params['TaylorSeer']['max_order']}" for step in computed] == [
        *generate.kinds
    ]
    predicted = sum("predicted" in kind for kind in generate.kinds)
    none = dict.fromkeys(COUNTERS.values(), 0)
    assert generate.fired == {"denoiser_calls": 10, **none, "predicted_attention": BLOCKS * predicted}
    counters = TaylorSeer().counters(params["TaylorSeer"], 10)
    assert counters == ({"predicted_attention"} if predicted else set())


def blocks_of(transformer: Any) -> list[Any]:
    return [*transformer.transformer_blocks, *transformer.single_transformer_blocks]


@pytest.mark.parametrize(
    "params",
    [magcache(*one) for one in ((0.06, 1, 0.1), (0.24, 3, 0.2), (0.12, 5, 0), (0.03, 2, 0.3), (0.24, 0, 0.2))],
    ids=str,
)
def test_what_magcache_computes_is_what_kinds_predict(flux: Any, params: Params) -> None:
    computed: list[set[Any]] = []
    with restored(flux), accelerate(flux, params, steps=10, **SIZE) as generate:
        flux.transformer.register_forward_pre_hook(lambda *_: computed.append(set()))
        for place, block in enumerate(blocks_of(flux.transformer)):
            block.attn.register_forward_pre_hook(lambda *_, place=place: computed[-1].add(place))
        generate(PROMPTS[:1], SEEDS[:1])
    names = {BLOCKS: "computed", 0: "skipped"}
    assert [f"MagCache:{names[len(step)]}" for step in computed] == [*generate.kinds]
    skipped = generate.kinds.count("MagCache:skipped")
    # Of a skipped step, the last block is not computed either.
    counted = {"skipped_blocks": BLOCKS * skipped, "reused_calls": skipped}
    assert generate.fired == {"denoiser_calls": 10, **dict.fromkeys(COUNTERS.values(), 0), **counted}
    assert MagCache().counters(params["MagCache"], 10) == ({"skipped_blocks"} if skipped else set())


@pytest.mark.parametrize("steps", [4, 20, 28, 50])
def test_magcaches_kinds_are_what_diffusers_hook_decides(steps: int) -> None:
    """Of the whole space: it counts in single precision, on ratios that it stretches to the number of steps itself."""
    method = MagCache()
    for point in [*method.space(Cell("FLUX.1", CELL.scheduler, steps))[::5], *EDGES]:
        config = MagCacheConfig(**point, num_inference_steps=steps, mag_ratios=FLUX_MAG_RATIOS)
        expected = ["computed" if computes else "skipped" for computes in decided(config)]
        assert method.kinds(point, steps, frozenset()) == expected, point


#: No step retained; a sum of rounded numbers that is the threshold, or one unit beyond it.
EDGES = [magcache(*one)["MagCache"] for one in ((0.5, 2, 0), (0.01562, 3, 0.3), (0.00781, 1, 0.3), (0.02343, 5, 0.5))]


def decided(config: MagCacheConfig) -> Iterator[bool]:
    """Whether diffusers' hook lets a block compute, step by step."""
    states = StateManager(MagCacheState, (), {})
    states.set_context(CacheContext("cond"))
    hook, state = MagCacheHeadHook(states, config), states.get_state()
    hook._metadata = SimpleNamespace(
        hidden_states_argument_name="hidden_states",
        return_encoder_hidden_states_index=None,
        _get_parameter_from_args_kwargs=lambda _name, args, _kwargs: args[0],
    )
    calls: list[Any] = []
    hook.fn_ref = SimpleNamespace(original_forward=calls.append)
    for step in range(config.num_inference_steps):
        state.step_index = step
        hook.new_forward(None, torch.zeros(1))
        yield bool(calls)
        state.previous_residual = torch.zeros(1)
        calls.clear()


def test_magcaches_ratios_are_those_of_diffusers() -> None:
    assert torch.equal(torch.tensor(_RATIOS), FLUX_MAG_RATIOS)


def test_fused_projections_are_counted_too(flux: Any) -> None:
    with restored(flux):
        flux.transformer.fuse_qkv_projections()
        for method, params in ACTING.items():
            with accelerate(flux, params, steps=STEPS, **SIZE) as generate:
                generate(PROMPTS[:1], SEEDS[:1])
            saved = BLOCKS * SAVED[method] if method in SAVED else STEPS - 1
            assert generate.fired[COUNTERS[method]] == saved


def _nothing(self: Any, predict: Any) -> Any:
    return [torch.zeros_like(one) for one in predict(self)]


def _the_first(self: Any, predict: Any) -> Any:
    """What was kept is never renewed."""
    vars(self).setdefault("first", predict(self))
    return vars(self)["first"]


def _the_last(self: Any, predict: Any) -> Any:
    """No term but the first."""
    kept = self.taylor_factors
    self.taylor_factors = {place: {0: terms[0]} for place, terms in kept.items()}
    found = predict(self)
    self.taylor_factors = kept
    return found


def _at(self: Any, predict: Any, steps: int) -> Any:
    now = self.current_step
    self.current_step = self.last_update_step + steps
    found = predict(self)
    self.current_step = now
    return found


BROKEN_SERIES: dict[str, Any] = {
    "nothing": _nothing,
    "the first": _the_first,
    "the last": _the_last,
    "backwards": partial(_at, steps=-1),
    "too far": partial(_at, steps=4),
}
MILD = {"TaylorSeer": taylorseer(2, 6), "MagCache": magcache(0.06, 1, 0.3)}


def test_a_mild_taylorseer_stays_near_the_baseline(calm_flux: Any) -> None:
    assert 0 < mild_distance(calm_flux, "TaylorSeer") < NEAR["TaylorSeer"]


@pytest.mark.parametrize("broken", BROKEN_SERIES)
def test_a_broken_taylorseer_would_be_seen(calm_flux: Any, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    """Its counters are those of a whole one."""
    break_series(monkeypatch, broken)
    assert mild_distance(calm_flux, "TaylorSeer") > NEAR["TaylorSeer"]


def break_series(monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    predict = TaylorSeerState.predict
    monkeypatch.setattr(TaylorSeerState, "predict", lambda self: BROKEN_SERIES[broken](self, predict))


def mild_distance(pipeline: Any, method: str) -> float:
    steps = 18
    baseline = generated(pipeline, {}, steps)
    with accelerate(pipeline, MILD[method], steps=steps, **SIZE) as generate:
        images = generate(PROMPTS, SEEDS)
    saved = sum("computed" not in kind for kind in generate.kinds)
    assert generate.fired[COUNTERS[method]] == BLOCKS * saved > 0
    return distance(images, baseline)


BROKEN_RESIDUALS: dict[str, Any] = {
    "nothing": lambda _self, residual: 0 * residual,
    "twice": lambda _self, residual: 2 * residual,
    "taken away": lambda _self, residual: -residual,
    "the first": lambda self, residual: vars(self).setdefault("first", residual),
}


def test_a_mild_magcache_stays_near_the_baseline(calm_flux: Any) -> None:
    assert 0 < mild_distance(calm_flux, "MagCache") < NEAR["MagCache"]


@pytest.mark.parametrize("broken", BROKEN_RESIDUALS)
def test_a_broken_magcache_would_be_seen(calm_flux: Any, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    """Its counters are those of a whole one."""
    break_residuals(monkeypatch, broken)
    assert mild_distance(calm_flux, "MagCache") > NEAR["MagCache"]


def break_residuals(monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    whole = MagCacheHeadHook.new_forward

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        state = self.state_manager.get_state()
        residual = state.previous_residual
        if residual is not None:
            state.previous_residual = BROKEN_RESIDUALS[broken](self, residual)
        found = whole(self, *args, **kwargs)
        state.previous_residual = residual
        return found

    monkeypatch.setattr(MagCacheHeadHook, "new_forward", forward)


# --- where it applies ----------------------------------------------------------------------------------------------


def of_class(name: str, transformer: Any) -> Any:
    """A pipeline of a class of diffusers that has a transformer and nothing else."""
    kind = getattr(diffusers, name)
    pipeline = object.__new__(kind)
    vars(pipeline)["transformer"] = transformer
    return pipeline


def tiny_qwen() -> Any:
    return diffusers.QwenImageTransformer2DModel(
        in_channels=16, num_layers=2, attention_head_dim=16, num_attention_heads=2, joint_attention_dim=16,
        out_channels=4, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip


def tiny_cogview() -> Any:
    return diffusers.CogView4Transformer2DModel(
        in_channels=4, out_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=2, text_embed_dim=16,
        time_embed_dim=8, condition_dim=4, pos_embed_max_size=8, sample_size=8, rope_axes_dim=(8, 8),
    )  # fmt: skip


def tiny_pixart() -> Any:
    return diffusers.PixArtTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, num_layers=1, cross_attention_dim=16, caption_channels=8,
        sample_size=8, norm_num_groups=4,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "transformer", "reason"),
    [
        ("FluxPipeline", lambda: tiny_flux().transformer, ""),
        ("QwenImagePipeline", tiny_qwen, ""),
        ("CogView4Pipeline", tiny_cogview, "diffusers finds no attention in a CogView4Transformer2DModel that"),
        ("PixArtSigmaPipeline", tiny_pixart, "diffusers puts no cache on a PixArtTransformer2DModel"),
        *(
            (name, lambda: tiny_flux().transformer, f"a {name} never enters `cache_context`, which tells")
            for name in ("StableDiffusion3Pipeline", "ZImagePipeline", "Flux2Pipeline", "ChromaPipeline")
        ),
    ],
)
def test_methods_say_where_they_can_do_nothing(
    known_as: Callable[[str], None], name: str, transformer: Callable[[], Any], reason: str
) -> None:
    known_as(name)
    pipeline = of_class(name, transformer())
    said = TaylorSeer().applies_to(pipeline)
    assert said.startswith(reason)
    assert bool(said) == bool(reason)
    assert MagCache().applies_to(pipeline) == ("" if name == "CogView4Pipeline" else said)


@each_method
def test_a_unet_is_refused(pipeline_of: Callable[..., Any], method: str) -> None:
    words = f"{method}: diffusers puts no cache on a UNet2DConditionModel; leave it out"
    pipeline = pipeline_of("SD1.5", "DDIM")
    with untouched(pipeline), pytest.raises(InvalidParams, match=words):
        generated(pipeline, ACTING[method])


def test_a_subclass_that_hands_on_its_call_is_taken(flux: Any) -> None:
    class Own(diffusers.FluxPipeline):
        def __call__(self, *args: Any, **options: Any) -> Any:
            return super().__call__(*args, **options)

    own = Own(**flux.components)
    own.set_progress_bar_config(disable=True)
    assert same(generated(own, ACTING["TaylorSeer"]), generated(flux, ACTING["TaylorSeer"]))


@each_method
def test_a_second_cache_is_refused(flux: Any, method: str) -> None:
    """diffusers would raise in the middle of it; the user's own is left alone."""
    words = f"{method}: the denoiser has a FirstBlockCacheConfig already; call its `disable_cache\\(\\)`"
    with restored(flux):
        flux.transformer.enable_cache(diffusers.FirstBlockCacheConfig(threshold=0.1))
        with untouched(flux), pytest.raises(InvalidParams, match=words):
            generated(flux, ACTING[method])


@each_method
def test_a_second_call_a_step_that_nobody_knows_of_is_refused(flux: Any, method: str) -> None:
    """A pipeline that guides in a way of its own."""

    class Guided(diffusers.FluxPipeline):
        def __call__(self, prompt: Any, **options: Any) -> Any:
            return super().__call__(prompt, negative_prompt=[""] * len(prompt), true_cfg_scale=2.0, **options)

    guided = Guided(**flux.components)
    guided.set_progress_bar_config(disable=True)
    words = f"{2 * STEPS} denoiser calls for {STEPS} steps"
    with untouched(guided), pytest.raises(StepCountError, match=words):
        generated(guided, ACTING[method])


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (taylorseer(0, 3), "TaylorSeer: cache_interval=0 must be a whole number from 1"),
        (taylorseer(2, 0), "TaylorSeer: disable_cache_before_step=0 must be a whole number from 1"),
        (taylorseer(2, 3, -1), "TaylorSeer: max_order=-1 must be a whole number from 0"),
        ({"TaylorSeer": {"cache_interval": 2}}, "TaylorSeer: missing disable_cache_before_step, max_order"),
        (magcache(-0.1, 3, 0.2), "MagCache: threshold=-0.1 must be a number from 0 to 100"),
        (magcache(float("nan"), 3, 0.2), "MagCache: threshold=nan must be a number from 0"),
        (magcache(float("inf"), 3, 0.2), "MagCache: threshold=inf must be a number from 0"),
        (magcache(True, 3, 0.2), "MagCache: threshold=True must be a number from 0"),
        (magcache(0.1, -1, 0.2), "MagCache: max_skip_steps=-1 must be a whole number from 0"),
        (first_block(-0.1), "FirstBlockCache: threshold=-0.1 must be a number from 0 to 100"),
        (first_block(float("nan")), "FirstBlockCache: threshold=nan must be a number from 0"),
        (first_block(True), "FirstBlockCache: threshold=True must be a number from 0"),
        (magcache(0.1, 1, 1.1), "MagCache: retention_ratio=1.1 must be a number from 0 to 1"),
        ({"DeepCache": {"cache_interval": 2, "cache_branch_id": 0}}, "DeepCache: FluxTransformer2DModel has no down"),
    ],
)
def test_bad_parameters_are_refused_with_value_and_range(flux: Any, params: Params, message: str) -> None:
    with untouched(flux), pytest.raises(InvalidParams, match=message), accelerate(flux, params, steps=4, **SIZE):
        pass


# --- grids and the registry ------------------------------------------------------------------------------------------


def test_accelerators_are_those_of_the_pipes_kind_of_denoiser() -> None:
    registry = default_registry()
    unets = ["DeepCache", "T-Gate", "ToMe", "DeepCache and ToMe", "DeepCache and T-Gate", "DeepCache, T-Gate, and ToMe"]
    for pipe in PIPES:
        cell = Cell(pipe, "DDIM", 20)
        assert [accelerator.name for accelerator in registry.suiting(pipe)] == unets
        assert [group.accelerator for group in groups([cell], list(registry))] == unets
        assert {one.accelerator for one in candidates([cell], list(registry))} == set(unets)
    assert [group.accelerator for group in groups([CELL], list(registry))] == [*COUNTERS]
    assert {one.accelerator for one in candidates([CELL], list(registry))} == set(COUNTERS)


def test_methods_of_different_denoisers_are_not_combined() -> None:
    with pytest.raises(ValueError, match="cannot combine TaylorSeer with ToMe: they are for a transformer and a unet"):
        default_registry().combine("TaylorSeer", "ToMe")


def test_methods_are_watched_only_on_their_kind_of_denoiser(flux: Any, pipeline_of: Callable[..., Any]) -> None:
    """What is counted on a UNet stays what it was before there were methods for transformers."""
    of_unets = ["cached_steps", "gated_calls", "reused_attention", "merged_tokens"]
    for pipeline, names in ((pipeline_of("SD1.5", "DDIM"), of_unets), (flux, [*COUNTERS.values()])):
        with accelerate(pipeline, {}, steps=1, **SIZE) as generate:
            generate(PROMPTS[:1], SEEDS[:1])
        assert list(generate.fired) == ["denoiser_calls", *names]


@pytest.mark.parametrize("steps", [4, 20, 28, 50])
@pytest.mark.parametrize("coarse", [False, True], ids=["full", "coarse"])
@pytest.mark.parametrize("method", [*SAVED])
def test_grids_are_sorted_valid_and_without_repetitions(method: str, coarse: bool, steps: int) -> None:
    (accelerator,) = default_registry().select([method])
    cell = Cell("FLUX.1", CELL.scheduler, steps)
    grid = accelerator.grid(cell, coarse=coarse)
    space = accelerator.methods[0].space(cell)
    rows = [tuple(params[method].values()) for params in grid]
    assert rows == sorted(rows)
    kinds = [accelerator.kinds(params, steps) for params in grid]
    assert len(set(kinds)) == len(kinds) > 0
    for params in [*grid, *({method: point} for point in space)]:
        accelerator.check(params, steps)
        assert accelerator.counters(params, steps)
        assert all(0 <= one <= 1 for one in accelerator.methods[0].coordinates(params[method], cell))
    if not coarse:
        assert set(kinds) <= {accelerator.kinds({method: point}, steps) for point in space}
    for kind in {one for row in kinds for one in row}:
        (features,) = default_registry().features(kind).values()
        assert features


def test_sizes_of_grids() -> None:
    def sizes(name: str) -> tuple[int, ...]:
        (accelerator,) = default_registry().select([name])
        grids = [len(accelerator.grid(CELL, coarse=coarse)) for coarse in (False, True)]
        return *grids, len(accelerator.methods[0].space(CELL))

    assert [sizes(name) for name in ACTING] == [(48, 6, 324), (27, 6, 324), (7, 3, 47)]


@pytest.mark.parametrize("method", [TaylorSeer(), MagCache()], ids=lambda method: method.name)
def test_a_pair_of_methods_has_a_product_of_smaller_grids(method: Method) -> None:
    """The shares of a combination that somebody makes of a method of their own."""
    sizes = [len(method.grid(CELL, size)) for size in ("full", "pair", "triple", "coarse pair", "coarse triple")]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] > 1


# --- scripts ---------------------------------------------------------------------------------------------------------


def script_of(method: str) -> str:
    """The script of a made-up record, from a sentence."""
    sentence = f"FLUX.1, FlowMatchEulerDiscreteScheduler, {CELL.steps} steps, {method}, 1.5x"
    environment = replace(ENVIRONMENT, pipe="FLUX.1", guidance_scale=3.5)
    entry = replace(MET, params=ACTING[method], environment=environment.id)
    golden = Golden(Path("golden.json"), {GoldenKey(CELL, method, 1.5): entry}, {environment.id: environment})
    return generate_script(sentence, golden)


@each_method
def test_ruff_finds_nothing_in_a_script(tmp_path: Path, method: str) -> None:
    (tmp_path / "script.py").write_text(script_of(method), encoding="utf-8")
    for command in (["check"], ["format", "--check", "--diff"]):
        for options in (["--isolated"], ["--config", str(ROOT / "pyproject.toml")]):
            assert not findings("ruff", [*command, "--no-cache", *options, str(tmp_path)])


@each_method
def test_a_script_does_what_accelerate_does(tmp_path: Path, method: str) -> None:
    """Repeatedly, and without leaving a cache on the pipeline."""
    path = tmp_path / "script.py"
    path.write_text(script_of(method), encoding="utf-8")
    script = runpy.run_path(str(path))
    pipeline = script["build_pipeline"](str(save_tiny_flux(tmp_path / "flux")), "cpu", torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.default_sample_size = SIDE // pipeline.vae_scale_factor
    pipeline.tokenizer_2.model_max_length = 512  # as FLUX.1's, which is what its call reads where it is told nothing
    before = plain(pipeline)
    drawn = [script["generate"](pipeline, list(PROMPTS), list(SEEDS)) for _ in range(2)]
    assert same(*drawn)
    assert not pipeline.transformer.is_cache_enabled
    assert same(plain(pipeline), before)
    with accelerate(pipeline, ACTING[method], steps=CELL.steps, guidance_scale=3.5) as generate:
        assert same(generate(PROMPTS, SEEDS), drawn[0])
