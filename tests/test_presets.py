"""Reading presets: somebody's Python as data, configs in YAML and JSON, and what this project writes itself."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from entries import ENVIRONMENT, MET
from test_transformer_caches import magcache, taylorseer

from pytest_diffaccel.accelerators.dbcache import DBCache
from pytest_diffaccel.accelerators.registry import Registry, default_registry
from pytest_diffaccel.accelerators.taylorseer import TaylorSeer
from pytest_diffaccel.audit import config_file
from pytest_diffaccel.audit.given import PresetError
from pytest_diffaccel.audit.known_calls import KNOWN_CALLS, KnownCall
from pytest_diffaccel.audit.preset import Preset, check_preset, read_preset
from pytest_diffaccel.cli.main import main
from pytest_diffaccel.codegen.lookup import find
from pytest_diffaccel.codegen.parser import parse_task
from pytest_diffaccel.codegen.script import render
from pytest_diffaccel.matrix import Cell, Params
from pytest_diffaccel.records.golden_file import Golden, write_golden
from pytest_diffaccel.records.golden_key import ACCELERATORS, GoldenKey

ROOT = Path(__file__).resolve().parents[1]
FLOW = "FlowMatchEulerDiscreteScheduler"
FLUX, SD = Cell("FLUX.1", FLOW, 28), Cell("SD1.5", "DDIM", 20)
TAYLORSEER, MAGCACHE = taylorseer(4, 5, 2), magcache(0.12, 5, 0.1)
DEEPCACHE: Params = {"DeepCache": {"cache_interval": 3, "cache_branch_id": 0}}
TGATE: Params = {"T-Gate": {"gate_step": 10, "sp_interval": 5, "fi_interval": 1, "warm_up": 2}}
TOME: Params = {"ToMe": {"ratio": 0.5, "max_downsample": 1}}
BFLOAT = "taylor_factors_dtype=torch.bfloat16, which it is where none is given: measured with torch.float32"
RATIOS = "mag_ratios=None, which it is where none is given: measured with FLUX_MAG_RATIOS"


def preset(folder: Path, text: str, suffix: str = ".py", registry: Registry | None = None) -> Preset:
    path = folder / f"preset{suffix}"
    path.write_text(text, encoding="utf-8")
    return read_preset(path, registry or default_registry())


@pytest.mark.parametrize(
    ("text", "params", "steps", "remarks"),
    [
        (
            "pipe.transformer.enable_cache(diffusers.TaylorSeerCacheConfig(4, 5, max_order=2))",
            *(TAYLORSEER, None, [f"line 1: {BFLOAT}"]),
        ),
        (
            """
            from diffusers import TaylorSeerCacheConfig as Config, TaylorSeerCacheConfig
            config = TaylorSeerCacheConfig(
                cache_interval=4, disable_cache_before_step=5, disable_cache_after_step=25, max_order=2,
                taylor_factors_dtype=torch.float32, use_lite_mode=True, speed="high",
            )
            """,
            *(TAYLORSEER, None),
            [
                "line 3: disable_cache_after_step=25: measured with None",
                "line 3: use_lite_mode=True: measured with False",
                "line 3: speed='high': TaylorSeer has no such setting here; measured without",
            ],
        ),
        ("TaylorSeerCacheConfig(taylor_factors_dtype=float32)", taylorseer(5, 3, 1), None, []),
        (
            "N = 50\nMagCacheConfig(0.12, 5, 0.1, num_inference_steps=N, mag_ratios=FLUX_MAG_RATIOS)",
            *(MAGCACHE, 50, []),
        ),
        ("MagCacheConfig()", magcache(0.06, 3, 0.2), 28, [f"line 1: {RATIOS}"]),
        ("helper.set_params(cache_interval=3, cache_branch_id=0)", DEEPCACHE, None, []),
        ("helper.set_params(cache_interval=3, skip_mode='pow')", DEEPCACHE, None, ["skip_mode='pow': measured with"]),
        ("helper.set_params(3)", DEEPCACHE, None, []),
        (
            "TgateSDLoader(pipe, gate_step=10, num_inference_steps=25)\n"
            "pipe.tgate(prompt, gate_step=10, num_inference_steps=25, generator=torch.manual_seed(1))",
            *(TGATE, 25, []),
        ),
        ("pipe = TgateSDDeepCacheLoader(pipe)\npipe.tgate('apple')", {**DEEPCACHE, **TGATE}, None, []),
        ("tomesd.apply_patch(pipe, 0.5, sx=4)", TOME, None, ["line 1: sx=4: measured with 2"]),
        ("tomesd.apply_patch(pipe)\nhelper.set_params(3, 0)", {**DEEPCACHE, **TOME}, None, []),
        ("quantize(BitsAndBytesConfig(4))\nhelper.set_params(3)", DEEPCACHE, None, ["BitsAndBytesConfig is left out"]),
        ("helper.set_params(3)\nhelper.set_params(3)", DEEPCACHE, None, []),
    ],
)
def test_python_is_read_as_tools_take_it(
    text: str, params: Params, steps: int | None, remarks: list[str], tmp_path: Path
) -> None:
    read = preset(tmp_path, text)
    assert read.params == params
    assert list(read.params) == [method.name for method in default_registry().methods if method.name in params]
    assert read.steps == steps
    assert len(read.remarks) == len(remarks)
    for said, expected in zip(read.remarks, remarks, strict=True):
        assert expected in said


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1", "no settings of a method that is known here; known are set_params, TgateSDDeepCacheLoader"),
        (
            "\nTaylorSeerCacheConfig(cache_interval=args.n)",
            "line 2: cache_interval=args.n of TaylorSeerCacheConfig",
        ),
        ("n = 3\nn = 4\nhelper.set_params(n)", "line 3: cache_interval=n of set_params is no literal"),
        ("def make(n=3):\n    helper.set_params(n)", "line 2: cache_interval=n of set_params is no literal"),
        ("for n in (2, 3):\n    helper.set_params(n)", "line 2: cache_interval=n of set_params is no literal"),
        ("helper.set_params(1 / 3)", "line 1: cache_interval=1 / 3 of set_params is no literal"),
        ("helper.set_params(**read())", "line 1: **read() is no dictionary of literals"),
        (
            "helper.set_params(*known)",
            "line 1: set_params takes 3 arguments (cache_interval, cache_branch_id",
        ),
        ("tomesd.apply_patch(*a)", "takes 9 arguments (a pipeline, ratio, max_downsample, sx"),
        (
            "\n\nPyramidAttentionBroadcastConfig(2)",
            "line 3: PyramidAttentionBroadcastConfig is no config that is known",
        ),
        ("cache_dit.enable_cache(pipe, DBPruneConfig())", "line 1: DBPruneConfig is no config that is known here"),
        ("helper.set_params(3", "line 1: no Python: '(' was never closed: 'helper.set_params(3'"),
        (
            "helper.set_params(3)\nhelper.set_params(5)",
            "line 1 gives cache_interval=3, and line 2 cache_interval=5",
        ),
        (
            "TgateSDLoader(pipe, gate_step=10)\npipe.tgate(gate_step=15)",
            "line 1 gives gate_step=10, and line 2 gate_step=15; keep one of the two",
        ),
        (
            "TaylorSeerCacheConfig()\nMagCacheConfig()",
            "line 1: TaylorSeer and line 2: MagCache: a transformer takes one cache at a time",
        ),
        ("\0", "no Python"),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_line(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(PresetError) as refused:
        preset(tmp_path, text)
    assert message in str(refused.value)
    assert str(refused.value).startswith(str(tmp_path / "preset.py"))


def test_nothing_of_a_preset_is_run(tmp_path: Path) -> None:
    text = f"open({str(tmp_path / 'made')!r}, 'w')\n1 / 0\nhelper.set_params(3)\n"
    assert preset(tmp_path, text).params == DEEPCACHE
    assert not (tmp_path / "made").exists()


def test_an_expression_of_many_parts_is_no_literal_and_no_accident(tmp_path: Path) -> None:
    deep = "1" + "+1" * 900
    assert preset(tmp_path, f"x = {deep}\nhelper.set_params(3)\n").params == DEEPCACHE
    with pytest.raises(
        PresetError, match=r"line 1: cache_interval=an expression of too many parts of .* is no literal"
    ):
        preset(tmp_path, f"helper.set_params(cache_interval={deep})")


def test_what_never_ends_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "preset.py")
    with pytest.raises(PresetError, match="no regular file"):
        read_preset(tmp_path / "preset.py", default_registry())


def test_a_large_file_and_another_encoding_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PresetError, match="1000001 bytes are no preset"):
        preset(tmp_path, "#" * 1_000_001)
    (tmp_path / "preset.py").write_bytes(b"# \xff")
    with pytest.raises(PresetError, match=r"preset\.py: no text in UTF-8"):
        read_preset(tmp_path / "preset.py", default_registry())
    with pytest.raises(FileNotFoundError):
        read_preset(tmp_path / "none.py", default_registry())


def test_a_method_that_is_not_registered_is_refused_by_name(tmp_path: Path) -> None:
    registry = Registry()
    registry.register(TaylorSeer())
    with pytest.raises(PresetError, match=r"line 1: FirstBlockCache is no method that is known here; known are Taylor"):
        preset(tmp_path, "FirstBlockCacheConfig(threshold=0.1)", registry=registry)


# --- YAML and JSON --------------------------------------------------------------------------------------------------

CACHE_DIT = """
cache_config:
  max_warmup_steps: 8
  residual_diff_threshold: 0.12
  Fn_compute_blocks: 1
parallelism_config:
  ulysses_size: auto
"""


@pytest.mark.parametrize("suffix", [".json", ".yaml", ".yml"])
def test_parameters_by_method_are_read_as_golden_has_them(suffix: str, tmp_path: Path) -> None:
    both: Params = {**TOME, **DEEPCACHE}
    assert preset(tmp_path, json.dumps(both, indent=1), suffix).params == both
    assert preset(tmp_path, json.dumps(TAYLORSEER), suffix).remarks == ()


def test_one_methods_parameters_need_no_name(tmp_path: Path) -> None:
    """Cache-dit's files are DBCache's where they name nothing else, and no UNet takes it."""
    (point,) = DEEPCACHE.values()
    assert preset(tmp_path, json.dumps(point), ".json").params == DEEPCACHE


def dbcache(first: int, warmup: int, limit: int, threshold: float, order: int, mask: int = 0) -> Params:
    return {"DBCache": dict(zip(DBCache.param_names, (first, warmup, limit, threshold, order, mask), strict=True))}


@pytest.mark.parametrize(
    ("text", "order", "remarks"),
    [
        (CACHE_DIT, 0, ["parallelism_config is left out"]),
        ("Fn_compute_blocks: 1\nresidual_diff_threshold: 0.12\n", 0, []),
        # Without being turned on, its order says nothing.
        ("Fn_compute_blocks: 1\nresidual_diff_threshold: 0.12\ntaylorseer_order: 1", 0, []),
        (
            "{Fn_compute_blocks: 1, residual_diff_threshold: 0.12, enable_taylorseer: true}",
            1,
            ["enable_encoder_taylorseer=False: measured with True"],
        ),
        (
            "{Fn_compute_blocks: 1, residual_diff_threshold: 0.12, enable_taylorseer: true, taylorseer_order: 1,"
            " enable_encoder_taylorseer: true, Bn_compute_blocks: 2, enable_dmd: false}",
            1,
            [
                "Bn_compute_blocks=2: measured with 0",
                "enable_dmd=False: DBCache has no such setting here; measured without",
            ],
        ),
    ],
)
def test_dbcache_is_read_as_cache_dit_reads_it(text: str, order: int, remarks: list[str], tmp_path: Path) -> None:
    read = preset(tmp_path, text, ".yaml")
    assert read.params == dbcache(1, 8, -1, 0.12, order)
    place = "in cache_config: " if "cache_config" in text else ""
    assert [remark.removeprefix(place) for remark in read.remarks] == remarks


@pytest.mark.parametrize(
    ("text", "params"),
    [
        ("cache_dit.enable_cache(pipe)\nDBCacheConfig()", dbcache(8, 8, -1, 0.08, 0)),
        (
            "config = cache_dit.DBCacheConfig(Fn_compute_blocks=4, num_inference_steps=28)\n"
            "enable_cache(pipe, config, TaylorSeerCalibratorConfig())",
            dbcache(4, 8, -1, 0.08, 1),
        ),
        (
            "series = TaylorSeerCalibratorConfig(taylorseer_order=1)\n"
            "enable_cache(pipe, DBCacheConfig(max_warmup_steps=4, max_continuous_cached_steps=2), series)",
            dbcache(8, 4, 2, 0.08, 1),
        ),
    ],
)
def test_dbcaches_two_configs_are_read_together(text: str, params: Params, tmp_path: Path) -> None:
    assert preset(tmp_path, text).params == params


SLOW = "[1, 1, 1, 1, 1, 0, 1, 1]"
STATIC = "steps_computation_policy='static'"
MASKED = "DBCacheConfig(Fn_compute_blocks=4, steps_computation_policy='static', steps_computation_mask="
MASKED_FILE = "cache_config: {Fn_compute_blocks: 4, steps_computation_policy: static, steps_computation_mask: "


@pytest.mark.parametrize(
    ("text", "suffix", "order", "mask", "steps"),
    [
        (f"{MASKED}{SLOW})", ".py", 0, 1, 8),
        (
            "N = 28\nmask = cache_dit.steps_mask(total_steps=N, mask_policy='fast')\n"
            f"{MASKED}mask, max_warmup_steps=4)\nTaylorSeerCalibratorConfig()",
            *(".py", 1, 3, 28),
        ),
        # What cache-dit takes where no mask is named.
        (f"{MASKED}steps_mask(total_steps=20), num_inference_steps=20)", ".py", 0, 2, 20),
        # Of four steps all four masks are one.
        (f"{MASKED}steps_mask(total_steps=4, mask_policy='ultra'))", ".py", 0, 1, 4),
        (f"{MASKED_FILE}{SLOW}, num_inference_steps: 8}}", ".yaml", 0, 1, 8),
        (f"{MASKED_FILE}ultra, num_inference_steps: 50}}", ".yaml", 0, 4, 50),
    ],
)
def test_a_mask_of_cache_dit_is_read(text: str, suffix: str, order: int, mask: int, steps: int, tmp_path: Path) -> None:
    """Beside it, warm-up, limit and threshold mean nothing, whatever they are."""
    read = preset(tmp_path, text, suffix)
    assert read.params == dbcache(4, 0, -1, 1, order, mask)
    assert (read.steps, read.remarks) == (steps, ())
    assert not check_preset(read, replace(FLUX, steps=steps), default_registry())


def test_without_a_mask_its_policy_says_nothing(tmp_path: Path) -> None:
    read = preset(tmp_path, f"DBCacheConfig(steps_computation_mask=None, {STATIC})")
    assert (read.params, read.remarks) == (dbcache(8, 8, -1, 0.08, 0), ())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            f"steps_computation_mask=[1, 0] * 4, {STATIC}",
            "steps_computation_mask=[1, 0] * 4 cannot be read without run",
        ),
        (
            f"steps_computation_mask=steps_mask([4], [4]), {STATIC}",
            "steps_mask([4], [4]) cannot be read without running",
        ),
        (
            f"steps_computation_mask=steps_mask(total_steps=5), {STATIC}",
            "steps_mask(total_steps=5) cannot be read with",
        ),
        (
            f"steps_computation_mask=steps_mask(total_steps=10**9), {STATIC}",
            "cannot be read without running it; write a",
        ),
        (
            f"steps_computation_mask={SLOW}",
            f"={SLOW}: steps_computation_policy is left at its default, so the pictures",
        ),
        (
            f"steps_computation_mask={SLOW}, steps_computation_policy='dynamic'",
            "steps_computation_policy is 'dynamic', so",
        ),
        (
            f"steps_computation_mask=[1, 0, 1, 0, 1, 0, 1, 0], {STATIC}",
            "is none of cache-dit's own masks of 8 steps (slow",
        ),
        (
            f"steps_computation_mask={SLOW}, num_inference_steps=9, {STATIC}",
            "is a mask of 8 steps, and num_inference_ste",
        ),
    ],
)
def test_another_mask_is_refused_in_words(given: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(PresetError) as refused:
        preset(tmp_path, f"\nDBCacheConfig({given})")
    assert message in str(refused.value)
    assert "preset.py: line 2: steps_computation_mask=" in str(refused.value)


def test_a_mask_of_other_steps_is_measured_as_that_of_the_cells(tmp_path: Path) -> None:
    read = preset(tmp_path, f"DBCacheConfig(steps_computation_mask={SLOW}, {STATIC})")
    said = check_preset(read, replace(FLUX, steps=20), default_registry())
    assert said == ["the preset is for 8 steps; measured with 20"]
    with pytest.raises(PresetError, match=r"line 1: DBCache: steps_mask=1 is none of 5 steps"):
        check_preset(read, replace(FLUX, steps=5), default_registry())


def test_a_line_of_the_table_lets_a_cache_of_cache_dit_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both as a config's class, and as a file names it."""
    line = KnownCall("MagCache", {"max_skip_steps": 8}, others={"warmup_interval": "1"})
    monkeypatch.setattr(config_file, "KNOWN_CALLS", {**KNOWN_CALLS, "OwnConfig": line})
    text = "cache_config: {cache_type: Own, max_skip_steps: 3, warmup_interval: 2, deep: [1]}\nattention_backend: x\n"
    read = preset(tmp_path, text, ".yaml")
    assert read.params == {"MagCache": {"max_skip_steps": 3}}
    assert read.places == {"MagCache": "in cache_config"}
    assert read.remarks == (
        "attention_backend is left out",
        "in cache_config: warmup_interval=2: measured with 1",
        "in cache_config: deep=[1]: MagCache has no such setting here; measured without",
    )


@pytest.mark.parametrize(
    ("text", "suffix", "message"),
    [
        ("a: [", ".yaml", "no YAML: while parsing"),
        ("{", ".json", "no JSON: Expecting property name"),
        ("[1]", ".json", "no settings by name; write a config as cache-dit loads it"),
        ("", ".yaml", "no settings by name"),
        ("!!python/object/apply:os.getcwd []", ".yaml", "no YAML: could not determine a constructor"),
        ("DeepCache: 3", ".yaml", "DeepCache: 3 are no parameters by name"),
        ("parallelism_config: {tp_size: 2}", ".yaml", "there is no cache_config: nothing to measure"),
        ("cache_config: {cache_type: DBPrune}", ".yaml", "DBPrune () is no method that is known here"),
        ("cache_config: {1: 2}", ".yaml", "not all settings in cache_config have names"),
        ("DBCache: {1: 2, Fn_compute_blocks: 1}", ".yaml", "DBCache: {1: 2, 'Fn_compute_blocks': 1} are no parameters"),
        ("a: &a [1]\ncache_config: {residual_diff_threshold: *a}", ".yaml", "line 2: aliases (*a) are not read"),
        ("DBCache: {Fn_compute_blocks: !!int ''}", ".yaml", "no YAML: "),
        ("DBCache: {Fn_compute_blocks: !!bool abc}", ".yaml", "no YAML: "),
        ("DBCache: {Fn_compute_blocks: !!timestamp abc}", ".yaml", "no YAML: "),
        ("[" * 5000, ".yaml", "no YAML: "),
        ("[" * 5000, ".json", "no JSON: "),
    ],
)
def test_a_config_that_is_none_is_refused(text: str, suffix: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(PresetError) as refused:
        preset(tmp_path, text, suffix)
    assert message in str(refused.value)


# --- where it is to be measured -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "cell", "message"),
    [
        (
            "pipe.tgate(gate_step=30)\n\ntomesd.apply_patch(pipe, 0.9)",
            SD,
            "with 20 steps: line 1: T-Gate: gate_step=30 must be a whole number from 1 to 20; line 3: ToMe: ratio=0.9",
        ),
        (
            "helper.set_params(cache_interval=0)",
            SD,
            "line 1: DeepCache: cache_interval=0 must be a whole number",
        ),
        (
            "helper.set_params(3)",
            FLUX,
            "DeepCache is not for FLUX.1, whose denoiser is a transformer; those that",
        ),
        ("TaylorSeerCacheConfig()", SD, "TaylorSeer is not for SD1.5, whose denoiser is a unet; those that are: DeepC"),
    ],
)
def test_what_could_not_be_measured_is_named(text: str, cell: Cell, message: str, tmp_path: Path) -> None:
    with pytest.raises(PresetError) as refused:
        check_preset(preset(tmp_path, text), cell, default_registry())
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("text", "cell", "remarks"),
    [
        ("helper.set_params(3)", SD, []),
        ("pipe.tgate(gate_step=20, sp_interval=1, num_inference_steps=25)", SD,
         ["line 1: T-Gate acts in no step of 20 with these settings", "the preset is for 25 steps; measured with 20"]),
        ("TaylorSeerCacheConfig(disable_cache_before_step=28)", FLUX, ["line 1: TaylorSeer acts in no step of 28"]),
        ("MagCacheConfig()", replace(FLUX, steps=50), ["the preset is for 28 steps; measured with 50"]),
    ],
)  # fmt: skip
def test_what_does_nothing_there_is_said(text: str, cell: Cell, remarks: list[str], tmp_path: Path) -> None:
    said = check_preset(preset(tmp_path, text), cell, default_registry())
    assert len(said) == len(remarks)
    for one, expected in zip(said, remarks, strict=True):
        assert one.startswith(expected)


# --- what this project writes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("params", [TAYLORSEER, MAGCACHE], ids=lambda params: next(iter(params)))
def test_what_is_exported_for_diffusers_is_read_back(params: Params, tmp_path: Path) -> None:
    (method,), path, golden = params, tmp_path / "lines.py", tmp_path / "golden.json"
    environment = replace(ENVIRONMENT, pipe="FLUX.1")
    entry = replace(MET, params=params, environment=environment.id)
    write_golden(golden, {GoldenKey(FLUX, method, 1.5): entry}, {environment.id: environment})
    asked = f"('FLUX.1', '{FLOW}', 28, '{method}', 1.5)"
    assert main(["export", asked, "--as", "diffusers", "--golden", str(golden), "-o", str(path)]) == 0
    read = read_preset(path, default_registry())
    assert (read.params, read.remarks) == (params, ())
    assert read.steps == (28 if method == "MagCache" else None)


@pytest.mark.parametrize("accelerator", ACCELERATORS)
def test_a_generated_script_is_read_back(accelerator: str, tmp_path: Path) -> None:
    golden = Golden.read(ROOT / "golden" / "search_params.json")
    answer = find(parse_task(f"SDXL, UniPC, 25 steps, {accelerator}, 1.2x"), golden)
    read = preset(tmp_path, render(answer))
    assert {name: dict(point) for name, point in read.params.items()} == {
        name: dict(point) for name, point in answer.entry.params.items()
    }
    assert read.remarks == ()
