"""Stacks: a pipeline is prepared and put back exactly, what compiles is set-up, and records say what they are over."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeAlias

import numpy as np
import pytest
import torch
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry
from echo import Echo
from entries import ENVIRONMENT, MET
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from searches import CLEAR_POINTS, SmallSearch, open_run

from pytest_diffaccel.accelerators import stack
from pytest_diffaccel.accelerators.acceleration import accelerate
from pytest_diffaccel.accelerators.registry import default_registry
from pytest_diffaccel.accelerators.stack import LIMITS, SetUp, prepared, stack_words
from pytest_diffaccel.cli.main import main
from pytest_diffaccel.codegen.lookup import Answer
from pytest_diffaccel.codegen.script import render
from pytest_diffaccel.codegen.tasks import Task
from pytest_diffaccel.gate.environments import Comparison, refusal
from pytest_diffaccel.matrix import Cell
from pytest_diffaccel.measure.clock import timed
from pytest_diffaccel.measure.measurement import Interval
from pytest_diffaccel.measure.set_up import NeverSetUp, settled
from pytest_diffaccel.pipes import denoiser_of
from pytest_diffaccel.records.environment import Environment
from pytest_diffaccel.records.found_out import OverEager, QualityScale
from pytest_diffaccel.records.golden_file import Golden, merge, read_environments
from pytest_diffaccel.records.golden_key import GoldenKey
from pytest_diffaccel.report.winners import over_eager_text, stack_notes, winners_table

GetPipeline: TypeAlias = Callable[..., Any]
PROMPTS, SEEDS = ["a red apple", "a blue cat"], [0, 1]
STEPS = 3
STACKED = replace(
    ENVIRONMENT,
    stack={"blocks": "compiled by inductor", "projections": "fused", "layout": "channels_last"},
    over_eager=OverEager("DDIM", 20, 1e9, Interval(1.25, 1.2, 1.3), Interval(1.2, 1.19, 1.21)),
    set_up={"": SetUp(4, 0, 21.4), "ToMe": SetUp(32, 15, 61.0)},
)


@pytest.fixture(scope="session", autouse=True)
def compiler_imported() -> None:
    """Compile something: pytester forgets modules that a run in this process brought in, and these load once."""
    torch.compile(lambda one: one + 1, backend="eager")(torch.ones(1))


@pytest.fixture(autouse=True)
def by_torch_alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Blocks are traced, and run as they are: no compiler is needed, and none is waited for."""
    monkeypatch.setattr(stack, "BACKEND", "eager")
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def pictures(pipeline: Any) -> list[Any]:
    with accelerate(pipeline, {}, steps=STEPS) as generate:
        return [np.asarray(image).astype(int) for image in generate.observed(PROMPTS, SEEDS, None)]


def apart(one: list[Any], other: list[Any]) -> int:
    return max(int(np.abs(left - right).max()) for left, right in zip(one, other, strict=True))


def state(pipeline: Any) -> list[Any]:
    """What a stack may change: modules, what they hold, how tensors lie, and choices of torch and diffusers."""
    modules = [*denoiser_of(pipeline).named_modules(), *pipeline.vae.named_modules()]
    return [
        [(name, type(module), list(vars(module)), module._compiled_call_impl) for name, module in modules],
        [(name, list(module._modules), id(getattr(module, "processor", None))) for name, module in modules],
        [
            (tensor.data.stride(), tensor.data_ptr(), tensor.dtype)
            for _, module in modules
            for tensor in module.parameters(recurse=False)
        ],
        [torch._dynamo.config.recompile_limit, torch._dynamo.config.fail_on_recompile_limit_hit],
        _AttentionBackendRegistry.get_active_backend(),
    ]


# The pipeline


@pytest.mark.parametrize("fails", [False, True], ids=["", "after an exception"])
@pytest.mark.parametrize("pipe", ["SD1.5", "SDXL", "FLUX.1"])
def test_a_pipeline_is_put_back_to_the_last_bit(pipeline_of: GetPipeline, pipe: str, fails: bool) -> None:
    pipeline = pipeline_of(pipe, *(["FlowMatchEulerDiscreteScheduler"] if pipe == "FLUX.1" else []))
    before, plain = state(pipeline), pictures(pipeline)
    try:
        with prepared(pipeline, "compiled") as ready:
            assert ready.parts["blocks"] == "compiled by eager"
            assert state(pipeline)[0] != before[0]
            assert torch._dynamo.config.recompile_limit == LIMITS["recompile_limit"]
            # Rounding alone: nothing else is computed.
            assert apart(pictures(pipeline), plain) <= 1
            if fails:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert state(pipeline) == before
    assert apart(pictures(pipeline), plain) == 0


def test_of_a_unet_convolutions_are_laid_out_anew_and_of_a_transformer_none(pipeline_of: GetPipeline) -> None:
    unet, flux = pipeline_of("SD1.5"), pipeline_of("FLUX.1", "FlowMatchEulerDiscreteScheduler")
    with prepared(unet, "compiled") as of_unet, prepared(flux, "compiled") as of_flux:
        assert of_unet.parts == {"blocks": "compiled by eager", "projections": "fused", "layout": "channels_last"}
        assert of_flux.parts == {"blocks": "compiled by eager", "projections": "fused"}
        for module in (unet.unet.conv_in, unet.vae.decoder.conv_in):
            assert module.weight.is_contiguous(memory_format=torch.channels_last)
        assert not any(tensor.dim() == 4 for tensor in flux.transformer.parameters())


def test_no_layout_that_the_devices_group_norm_undoes_is_chosen(
    pipeline_of: GetPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On CUDA it does, and copying every tensor back and forth takes all that compiled blocks gain."""
    pipeline, group_norm = pipeline_of("SD1.5"), torch.nn.functional.group_norm

    def undoing(tensor: torch.Tensor, *rest: Any) -> torch.Tensor:
        return group_norm(tensor.contiguous(), *rest)

    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.functional, "group_norm", undoing)
        with prepared(pipeline, "compiled") as as_on_cuda:
            assert as_on_cuda.parts == {"blocks": "compiled by eager", "projections": "fused"}
            assert not pipeline.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
        with prepared(pipeline, "compiled", ["layout"]) as chosen:
            assert chosen.parts == {"blocks": "compiled by eager", "layout": "channels_last"}


def test_the_pipeline_can_be_eager_for_a_while_and_what_is_compiled_is_kept(pipeline_of: GetPipeline) -> None:
    pipeline = pipeline_of("SD1.5")
    plain = pictures(pipeline)
    with prepared(pipeline, "compiled") as ready:
        compiled = pictures(pipeline)
        once = SetUp.so_far()
        for _ in range(2):
            with ready.eager():
                assert apart(pictures(pipeline), plain) == 0
            assert apart(pictures(pipeline), compiled) == 0
        assert SetUp.so_far().graphs == once.graphs > 0


def test_the_eager_stack_changes_nothing(pipeline_of: GetPipeline) -> None:
    pipeline = pipeline_of("SD1.5")
    before = state(pipeline)
    with prepared(pipeline, "eager") as ready:
        assert (ready.parts, state(pipeline)) == ({}, before)
        with ready.eager():
            assert state(pipeline) == before


def test_a_denoiser_without_repeated_blocks_is_refused(
    pipeline_of: GetPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = pipeline_of("SD1.5")
    monkeypatch.setattr(type(pipeline.unet), "_repeated_blocks", [])
    with pytest.raises(ValueError, match=r"UNet2DConditionModel names no repeated blocks.*take --stack eager"):
        prepared(pipeline, "compiled").__enter__()


@pytest.mark.parametrize(("capability", "chosen"), [((9, 0), "_native_cudnn"), ((8, 0), None)])
def test_of_a_transformer_attention_is_cudnns_where_the_gpu_has_it_and_no_other_pipeline_notices(
    pipeline_of: GetPipeline, monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], chosen: str | None
) -> None:
    """A GPU, made up: the choice alone is looked at, and nothing computed."""
    pipeline = pipeline_of("FLUX.1", "FlowMatchEulerDiscreteScheduler")
    monkeypatch.setattr(type(pipeline.transformer), "device", property(lambda _: torch.device("cuda")))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    attention = pipeline.transformer.transformer_blocks[0].attn
    active = _AttentionBackendRegistry.get_active_backend()
    with prepared(pipeline, "compiled") as ready:
        assert ready.parts.get("attention") == chosen
        assert attention.processor._attention_backend == (AttentionBackendName(chosen) if chosen else None)
        assert _AttentionBackendRegistry.get_active_backend() == active
        with ready.eager():
            with ready.eager():
                pass
            assert attention.processor._attention_backend is None
        assert attention.processor._attention_backend == (AttentionBackendName(chosen) if chosen else None)
    assert attention.processor._attention_backend is None


def test_a_pipeline_is_put_back_though_its_gpu_computes_nothing_any_more(
    small_search: SmallSearch, one_pipeline: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = open_run("--stack", "compiled", methods=[Echo(CLEAR_POINTS)])
    cell = Cell("SD1.5", "DDIM", 20)
    pipeline = run.bench.pipelines.of(cell)

    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("CUDA error: device-side assert triggered")

    with monkeypatch.context() as patch:
        for name in ("empty_strided", "empty_like", "empty"):
            patch.setattr(torch, name, broken)
        patch.setattr(torch.Tensor, "copy_", broken)
        patch.setattr(torch.Tensor, "contiguous", broken)
        run.bench.pipelines.unload()
    assert torch._dynamo.config.recompile_limit < LIMITS["recompile_limit"]
    assert all(tensor.is_contiguous() for module in (pipeline.unet, pipeline.vae) for tensor in module.parameters())
    run.close()


# Set-up


@pytest.mark.filterwarnings("ignore:Dynamo does not know how to trace:UserWarning")
def test_steps_are_timed_once_nothing_is_compiled(pipeline_of: GetPipeline) -> None:
    pipeline = pipeline_of("SD1.5")
    with (
        prepared(pipeline, "compiled"),
        accelerate(pipeline, {"ToMe": {"ratio": 0.5, "max_downsample": 1}}, steps=STEPS) as generate,
    ):
        _, first = timed(generate, PROMPTS, SEEDS)
        set_up = generate.set_up
        _, second = timed(generate, PROMPTS, SEEDS)
    assert generate.set_up == set_up
    assert set_up.graphs > 0
    assert set_up.graph_breaks > 0  # ToMe merges outside the graph
    assert set_up.seconds > 0.2
    assert first.total_s < max(set_up.seconds, 3 * second.total_s)


def test_a_run_that_compiles_but_no_graph_is_made_again() -> None:
    """As those of MagCache, whose hooks diffusers keeps from being compiled: a frame is left as it is."""
    generate: Any = SimpleNamespace(set_up=SetUp())
    found = [SetUp(0, 3, 0.2), SetUp(0, 0, 0.01), SetUp()]

    def run() -> int:
        generate.set_up += found.pop(0)
        return len(found)

    assert settled(generate, run) == 0


def test_magcache_runs_no_compiled_block_and_says_so(pipeline_of: GetPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = pipeline_of("FLUX.1", "FlowMatchEulerDiscreteScheduler")
    calls: list[str] = []

    def backend(graph: Any, _inputs: Any) -> Any:
        def forward(*args: Any) -> Any:
            calls.append("compiled")
            return graph.forward(*args)

        return forward

    monkeypatch.setattr(stack, "BACKEND", backend)
    params = {"MagCache": {"threshold": 0.1, "max_skip_steps": 3, "retention_ratio": 0.2}}
    with prepared(pipeline, "compiled"), accelerate(pipeline, params, steps=5) as generate:
        timed(generate, PROMPTS, SEEDS)
    assert (calls, generate.set_up.graphs) == ([], 0)
    assert generate.set_up.graph_breaks > 0
    known = replace(STACKED, set_up={"MagCache": generate.set_up})
    assert "Compiled beforehand, in no speedup: MagCache no graph, " in stack_notes(known)[1]


def test_counters_that_are_set_back_count_nothing() -> None:
    assert SetUp(1, 0, 0.5) - SetUp(4, 2, 3.0) == SetUp()
    assert SetUp(4, 2, 3.0) - SetUp(1, 2, 1.0) == SetUp(3, 0, 2.0)


def test_what_never_stops_compiling_is_named() -> None:
    generate: Any = SimpleNamespace(set_up=SetUp())

    def run() -> None:
        generate.set_up += SetUp(3, 1, 0.5)

    with pytest.raises(NeverSetUp, match=r"each of 5 runs \(15 graphs, 5 graph breaks\).*--stack eager"):
        settled(generate, run)


def test_an_eager_pipeline_is_timed_at_once() -> None:
    generate: Any = SimpleNamespace(set_up=SetUp())
    runs = iter(range(9))
    assert settled(generate, lambda: next(runs)) == 0


# Records


def test_a_stack_is_another_environment_and_what_it_gains_is_none() -> None:
    assert len({ENVIRONMENT.id, STACKED.id, replace(STACKED, stack={"blocks": "compiled by eager"}).id}) == 3
    assert replace(STACKED, over_eager=None, set_up={}).id == STACKED.id
    again = Environment.from_json(json.dumps(STACKED.to_json()))
    assert again.to_json() == STACKED.to_json()
    assert again.over_eager == STACKED.over_eager
    assert "stack" not in ENVIRONMENT.to_json()
    scaled = replace(STACKED, scale=QualityScale(0.0, 0.0, 0.0, 0.1))
    assert not replace(scaled, over_eager=None).is_scaled(0)
    assert replace(ENVIRONMENT, scale=scaled.scale).is_scaled(2e9)


def test_a_gain_that_is_vague_is_measured_again_by_a_later_session_and_the_better_known_one_stays() -> None:
    scale = QualityScale(0.0, 0.0, 0.0, 0.1)

    def known(half: float, measured_at: float) -> Environment:
        return replace(
            STACKED, scale=scale, over_eager=OverEager("DDIM", 20, measured_at, Interval(1.2, 1.2 - half, 1.2 + half))
        )

    vague, better, worse = known(0.1, 100.0), known(0.01, 200.0), known(0.2, 300.0)
    assert (vague.is_scaled(began_at=50.0), vague.is_scaled(began_at=150.0)) == (True, False)
    assert better.is_scaled(began_at=250.0)
    for both in (vague.knowing_also(better), better.knowing_also(vague)):
        assert both.over_eager == better.over_eager
    # Tried and not known better: another attempt is a later session's.
    tried = vague.knowing_also(worse)
    assert tried.over_eager is not None
    assert vague.over_eager is not None
    assert (tried.over_eager.wall, tried.over_eager.measured_at) == (vague.over_eager.wall, 300.0)


def test_the_gate_says_how_to_run_on_goldens_stack() -> None:
    def said(golden: Environment, now: Environment) -> str:
        return refusal(Comparison.between(golden, now), Path("golden/one.json"), Cell("SD1.5", "DDIM", 20), ())

    assert said(STACKED, ENVIRONMENT).startswith(
        "golden/one.json was recorded on another stack: stack blocks compiled by inductor, layout channels_last"
    )
    assert "projections fused -> eager; run" in said(STACKED, ENVIRONMENT)
    assert said(STACKED, ENVIRONMENT).endswith("; run with --stack compiled, as it was recorded")
    assert said(ENVIRONMENT, STACKED).endswith("; leave out --stack compiled")
    other = replace(STACKED, stack={"blocks": "compiled by eager"})
    assert "was recorded elsewhere: stack blocks compiled by eager -> blocks compiled by inductor, " in said(
        other, STACKED
    )


made = st.builds(SetUp, st.integers(0, 99), st.integers(0, 9), st.floats(0, 99))


@given(st.dictionaries(st.sampled_from(["", "ToMe", "DeepCache"]), made), st.dictionaries(st.just("ToMe"), made))
def test_of_several_processes_the_one_counts_that_compiled_most(one: dict[str, SetUp], other: dict[str, SetUp]) -> None:
    both = replace(ENVIRONMENT, set_up=one).knowing_also(replace(ENVIRONMENT, set_up=other)).set_up
    assert both.keys() == one.keys() | other.keys()
    for name, found in both.items():
        assert found.graphs == max(known[name].graphs for known in (one, other) if name in known)


@given(st.floats(0.5, 8), st.floats(1.001, 1.5), st.floats(0.5, 4), st.floats(1.001, 1.5))
def test_over_eager_both_errors_count(over: float, over_error: float, gain: float, gain_error: float) -> None:
    def known(value: float, error: float) -> Interval:
        return Interval(value, value / error, value * error)

    speedup = OverEager("DDIM", 20, 1e9, known(gain, gain_error)).speedup(known(over, over_error))
    assert speedup.value == pytest.approx(over * gain)
    wider = max(over_error, gain_error)
    assert wider <= speedup.high / speedup.value <= over_error * gain_error * 1.0001
    assert speedup.value / speedup.low == pytest.approx(speedup.high / speedup.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("stack", {"blocks": "\x1b[31m"}),
        ("set_up", {"ToMe": {"graphs": -4, "graph_breaks": 0, "seconds": 0.0}}),
        ("over_eager", {"wall": {"value": 0.0, "low": 0.0, "high": 0.0}}),
        ("over_eager", {"wall": {"value": 1.1, "low": 1.5, "high": 0.9}}),
        ("over_eager", {"scheduler": "x\x1b[1m"}),
    ],
)
def test_hostile_records_are_refused_where_they_are_read(name: str, value: dict[str, Any]) -> None:
    known = STACKED.to_json()
    with pytest.raises(ValidationError):
        Environment.from_json(json.dumps({**known, name: {**known[name], **value}}))


def test_each_winner_is_over_its_own_stack() -> None:
    eager, compiled = (replace(MET, environment=one.id) for one in (ENVIRONMENT, STACKED))
    cell = Cell("SD1.5", "DDIM", 20)
    entries = {GoldenKey(cell, "DeepCache", 1.5): compiled, GoldenKey(cell, "ToMe", 1.5): eager}
    lines = winners_table(entries, {ENVIRONMENT.id: ENVIRONMENT, STACKED.id: STACKED}, 80)
    (place,) = [number for number, line in enumerate(lines) if line.endswith("over eager")]
    assert place < lines.index("ToMe")
    assert any(line.startswith("Speedups are over the compiled stack") for line in lines)


def test_over_eager_what_is_known_of_nothing_stays_so() -> None:
    gain = OverEager("DDIM", 20, 1e9, Interval(1.25, 1.2, 1.3))
    assert gain.speedup(Interval(0.5, 0.0, 2.0)) == Interval(0.625, 0.0, 2.6)
    assert gain.speedup(Interval(0.0, 0.0, 0.0)) == Interval(0.0, 0.0, 0.0)


def test_winners_say_what_they_are_over_and_what_was_compiled() -> None:
    entry = replace(MET, environment=STACKED.id)
    key = GoldenKey(Cell("SD1.5", "DDIM", 20), "DeepCache", 1.5)
    lines = winners_table({key: entry}, {STACKED.id: STACKED}, 80)
    assert max(map(len, lines)) <= 80
    text = " ".join(" ".join(lines).split())
    assert "1.67x [1.65, 1.69]" in text
    assert "2.09x [2.00, 2.17] over eager" in text
    assert (
        "Speedups are over the compiled stack (blocks compiled by inductor, layout channels_last, projections fused). "
        "Unaccelerated, that is 1.25x [1.20, 1.30] (GPU 1.20x) as fast as eager (DDIM, 20 steps)."
    ) in text
    assert (
        "Compiled beforehand, in no speedup: unaccelerated 4 graphs, no break, 21 s; ToMe 32 graphs, 15 graph breaks, "
        "61 s."
    ) in text
    assert (stack_notes(ENVIRONMENT), over_eager_text(entry, ENVIRONMENT)) == ([], "")
    assert (stack_words({}), stack_words(STACKED.stack)[:29]) == ("eager", "blocks compiled by inductor, ")


def test_a_script_puts_its_pipeline_on_the_stack() -> None:
    task = Task(Cell("SD1.5", "DDIM", 20), "DeepCache", 1.5)
    (accelerator,) = default_registry().select(["DeepCache"])

    def script(environment: Environment) -> str:
        return render(Answer(task, task.key, replace(MET, environment=environment.id), environment, accelerator, True))

    text = script(STACKED)
    lines = [line.strip() for line in text.splitlines()]
    place = lines.index("return prepared(pipeline.to(device))")
    for line in ("denoiser.fuse_qkv_projections()", "denoiser.compile_repeated_blocks()", "denoiser = pipeline.unet"):
        assert lines.index(line) > place
    assert "torch._dynamo.config.recompile_limit = 1024" in lines
    assert "unaccelerated, 1.25x (1.20x to 1.30x) as fast as eager" in " ".join(lines)
    hostile = replace(STACKED, stack={"blocks": 'compiled by x"); import os  #', "attention": '")'})
    with pytest.raises(ValueError, match="no place in a script"):
        script(hostile)
    assert "prepared" not in script(ENVIRONMENT)


# A search


def test_a_search_on_a_stack(small_search: SmallSearch, one_pipeline: None, pipeline_of: GetPipeline) -> None:
    before = state(pipeline_of("SD1.5"))
    assert small_search.run().ret == 0
    result = small_search.run("--stack", "compiled")
    assert result.ret == 0
    assert state(pipeline_of("SD1.5")) == before
    result.stdout.fnmatch_lines(
        [
            "*x [[]*[]] over eager",
            "Speedups are over the compiled stack (blocks compiled by eager, layout channels_last, projections fused)*",
            "Compiled beforehand, in no speedup: * graphs, no break, * s*",
            "golden: golden/compiled.search_params.json: * new",
        ]
    )
    golden = small_search.golden.with_name("compiled.search_params.json")
    eager, compiled = (Golden.read(path) for path in (small_search.golden, golden))
    (environment,) = {compiled.environments[entry.environment] for entry in compiled.entries.values()}
    assert environment.over_eager is not None
    assert (environment.over_eager.scheduler, environment.over_eager.steps) == ("DDIM", 20)
    assert sum(set_up.graphs for set_up in environment.set_up.values()) > 0
    assert {entry.environment for entry in eager.entries.values()}.isdisjoint(
        {entry.environment for entry in compiled.entries.values()}
    )
    # What is measured on one stack says nothing of another.
    assert len({key for key, *_ in small_search.query("SELECT DISTINCT environment FROM diffaccel_measurements")}) == 2


def test_a_search_of_short_runs_on_a_stack_goes_on_where_it_was_stopped(
    small_search: SmallSearch, one_pipeline: None
) -> None:
    options = ("--stack", "compiled")
    assert small_search.race(*options).ret == 0
    (environment,) = read_environments(small_search.golden).values()
    assert environment.over_eager is not None
    stored = small_search.stored()
    again = small_search.race(*options)
    assert again.ret == 0
    assert small_search.stored() == stored
    (later,) = read_environments(small_search.golden).values()
    assert later.over_eager == environment.over_eager


def test_a_golden_file_holds_winners_of_one_stack(small_search: SmallSearch, one_pipeline: None) -> None:
    of_eager = ("--golden", "golden/own.json")
    assert small_search.run(*of_eager).ret == 0
    result = small_search.run("--stack", "compiled", *of_eager)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        ["ERROR: --golden: * over the eager stack, *on the compiled one; give --stack eager, or another --golden"]
    )
    assert small_search.run("--stack", "compiled").ret == 0
    result = small_search.run("--golden", "golden/compiled.search_params.json")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: --golden: *compiled stack*give --stack compiled, or another --golden"])


def test_commands_that_are_advised_search_on_the_stack(
    small_search: SmallSearch, one_pipeline: None, capsys: pytest.CaptureFixture[str]
) -> None:
    golden = "golden/compiled.search_params.json"
    assert small_search.run("--stack", "compiled").ret == 0
    assert main(["generate", "SD1.5, DDIM, 20 steps, ToMe, 2x", "--golden", golden]) == 2
    assert f"--search-targets ToMe --stack compiled --golden {golden}" in " ".join(capsys.readouterr().err.split())
    assert main(["report", "-o", "report.html"]) == 0
    page = Path("report.html").read_text(encoding="utf-8")
    assert "<span>--stack</span> <span>compiled</span>" in page
    assert "Speedups are over the compiled stack (blocks compiled by eager" in page
    assert '<td class="over-eager">' in page
    assert main(["export", "-o", "rows.json"]) == 0
    for row in json.loads(Path("rows.json").read_text(encoding="utf-8")):
        assert row["stack"] == "blocks compiled by eager, layout channels_last, projections fused"
        assert row["speedup_over_eager"] == pytest.approx(row["speedup"], rel=0.05)


def test_the_judge_refuses_winners_of_another_stack(pytester: pytest.Pytester) -> None:
    entries = {
        GoldenKey(Cell("SD1.5", "DDIM", 20), name, 1.5): replace(MET, environment=one.id)
        for name, one in (("DeepCache", STACKED), ("ToMe", ENVIRONMENT))
    }
    known = {one.id: one for one in (STACKED, ENVIRONMENT)}
    merge(pytester.path / "golden.json", entries, update=True, environments=known)

    def judged(accelerator: str) -> pytest.RunResult:
        asked = ("--golden", "golden.json", "--task", f"SD1.5, DDIM, 20 steps, {accelerator}, 1.5x", "--collect-only")
        return pytester.runpytest_inprocess("--pyargs", "pytest_diffaccel.codegen", *asked)

    result = judged("DeepCache")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: --golden *compiled stack*--compare*"])
    assert judged("ToMe").ret == 0  # whose record is of the eager one
