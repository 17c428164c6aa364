"""``diffaccel export KEY --as diffusers``: a winner as lines for diffusers, which draw what ``accelerate`` draws."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from echo import Echo
from entries import ENVIRONMENT, MET
from test_accelerators import same
from test_generate import ROOT, findings
from test_own_method import POINT, WHOLE, registry_with, with_template
from test_transformer_caches import ACTING, PROMPTS, SEEDS, SIZE, STEPS, each_method, generated, plain, taylorseer
from tiny_flux import tiny_flux
from tiny_transformers import save_tiny

from pytest_diffaccel import accelerate, load_pipeline
from pytest_diffaccel.cli.main import main
from pytest_diffaccel.codegen.lookup import find
from pytest_diffaccel.codegen.script import render_cache
from pytest_diffaccel.codegen.script_parts import NoScriptPart
from pytest_diffaccel.codegen.tasks import Task
from pytest_diffaccel.matrix import Cell, Params
from pytest_diffaccel.pipes import PipeRegistry, make_known
from pytest_diffaccel.records.golden import GoldenEntry
from pytest_diffaccel.records.golden_file import Golden, write_golden
from pytest_diffaccel.records.golden_key import GoldenKey

FLOW = "FlowMatchEulerDiscreteScheduler"
CELL = Cell("FLUX.1", FLOW, STEPS)
SPELLED = "flux, flow match euler, 8 steps, {}, 1.5x"
UNETS: dict[str, Params] = {
    "DeepCache": {"DeepCache": {"cache_interval": 2, "cache_branch_id": 0}},
    "T-Gate": {"T-Gate": {"gate_step": 10, "sp_interval": 1, "fi_interval": 1, "warm_up": 2}},
    "ToMe": {"ToMe": {"ratio": 0.5, "max_downsample": 1}},
}


@pytest.fixture(autouse=True)
def only_built_in_pipes() -> Iterator[None]:
    yield
    make_known(PipeRegistry())


@pytest.fixture
def record(tmp_path: Path) -> Callable[..., Path]:
    """Writes a golden file of one record, for a target of 1.5x; gives its path."""

    def written(cell: Cell, accelerator: str, params: Params, **changes: Any) -> Path:
        environment = replace(ENVIRONMENT, pipe=cell.pipe, guidance_scale=3.5)
        entry: GoldenEntry = replace(MET, params=params, environment=environment.id, **changes)
        path = tmp_path / "golden.json"
        write_golden(path, {GoldenKey(cell, accelerator, 1.5): entry}, {environment.id: environment})
        return path

    return written


@pytest.fixture
def exported(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What the command prints for a key."""

    def printed(key: str, golden: Path, *more: str) -> str:
        status = main(["export", key, "--as", "diffusers", "--golden", str(golden), *more])
        said = capsys.readouterr()
        assert status == 0, said.err
        return said.out

    return printed


def run(lines: str, pipe: Any) -> dict[str, Any]:
    """Run the lines where ``pipe`` is a pipeline; gives all names of theirs."""
    space: dict[str, Any] = {"pipe": pipe}
    exec(compile(lines, "exported", "exec"), space)
    return space


@pytest.mark.parametrize("spelled", [SPELLED, f"('FLUX.1', '{FLOW}', 8, '{{}}', 1.5)"])
@each_method
def test_the_lines_draw_what_accelerate_draws(
    method: str, spelled: str, record: Callable[..., Path], exported: Callable[..., str]
) -> None:
    """In every call, until the cache is taken off again."""
    pipe, reference = tiny_flux(), tiny_flux()
    before = plain(pipe)
    assert run(exported(spelled.format(method), record(CELL, method, ACTING[method])), pipe)["STEPS"] == STEPS
    drawn = plain(pipe)
    assert not same(drawn, before)
    assert same(drawn, generated(reference, ACTING[method]))
    assert same(plain(pipe), drawn)
    pipe.transformer.disable_cache()
    assert same(plain(pipe), before)


def test_so_they_do_on_a_pipe_of_ones_own_that_is_called_twice_a_step(
    tmp_path: Path, record: Callable[..., Path], exported: Callable[..., str]
) -> None:
    folder, models = save_tiny("QwenImagePipeline", tmp_path / "qwen"), tmp_path / "models.toml"
    models.write_text(f'[mine]\nclass = "QwenImagePipeline"\npath = "{folder}"\nsteps = [6]\n', encoding="utf-8")
    golden = record(Cell("mine", FLOW, 6), "TaylorSeer", taylorseer(3, 2))
    lines = exported(f"('mine', '{FLOW}', 6, 'TaylorSeer', 1.5)", golden, "--models", str(models))
    said = " ".join(lines.replace("\n#", " ").split())
    assert "num_inference_steps=STEPS, true_cfg_scale=3.5, and a negative prompt" in said
    pipe = load_pipeline("mine", models=str(models), device="cpu")
    with accelerate(pipe, taylorseer(3, 2), steps=6, guidance_scale=3.5, **SIZE) as generate:
        expected = generate(PROMPTS, SEEDS)
    run(lines, pipe)
    noise = [torch.Generator("cpu").manual_seed(seed) for seed in SEEDS]
    options = {"true_cfg_scale": 3.5, "num_inference_steps": 6, "generator": noise, **SIZE}
    assert same(list(pipe(list(PROMPTS), [" ", " "], **options).images), expected)


@each_method
def test_a_comment_says_what_is_known_of_the_winner(
    method: str, record: Callable[..., Path], exported: Callable[..., str]
) -> None:
    lines = exported(
        f"flux, flow match euler, 8 steps, {method}, 1.5x", record(CELL, method, ACTING[method])
    ).splitlines()
    comment = " ".join(line.removeprefix("#").strip() for line in lines if line.startswith("#"))
    for words in (
        f"FLUX.1, {FLOW}, 8 steps, {method}, target: 1.5x",
        "Speedup (95% interval): 1.67x (1.65x to 1.69x)",
        "LPIPS (95% interval): 0.041 (0.036 to 0.047)",
        "Hardware: a CPU (4 cores), float32, 128x128 pixels, batches of 8",
        "Model: embedded stand-in, not SD1.5",
        f"Call `pipe`, a FluxPipeline with a {FLOW}, with num_inference_steps=STEPS, guidance_scale=3.5",
    ):
        assert words in comment
    assert lines[-1] == "pipe.transformer.enable_cache(config)"


@each_method
def test_ruff_finds_nothing_but_that_pipe_is_the_readers(
    method: str, tmp_path: Path, record: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    golden, path = str(record(CELL, method, ACTING[method])), tmp_path / "lines.py"
    assert main(["export", SPELLED.format(method), "--as", "diffusers", "--golden", golden, "-o", str(path)]) == 0
    printed = capsys.readouterr()
    assert "lines.py: the cache for diffusers, of: Generate a FLUX.1 pipeline" in " ".join(printed.out.split())
    assert "note: found on a small stand-in" in printed.err
    for command in (["check", "--ignore", "F821,INP001,D100"], ["format", "--check", "--diff"]):
        for options in (["--isolated"], ["--config", str(ROOT / "pyproject.toml")]):
            assert not findings("ruff", [*command, "--no-cache", *options, str(path)])


def test_what_is_not_the_records_own_is_said(
    record: Callable[..., Path], exported: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    """As ``diffaccel generate`` does: a neighbour's settings, and a target out of reach."""
    golden = record(CELL, "MagCache", ACTING["MagCache"])
    lines = exported("flux, flow match euler, 8 steps, MagCache, 1.6x", golden)
    assert "# Settings and figures are those recorded for 8 steps and a target of 1.5x.\n" in lines
    golden = record(CELL, "MagCache", ACTING["MagCache"], status="unattainable", reason="speed")
    lines = exported(SPELLED.format("MagCache"), golden)
    assert "# This target is unattainable: no setting is fast enough. Best reached: 1.67x.\n" in lines


@pytest.mark.parametrize("method", UNETS)
def test_a_method_that_diffusers_has_no_cache_for_is_refused_with_the_script_to_generate(
    method: str, record: Callable[..., Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    golden = str(record(Cell("SD1.5", "DDIM", 20), method, UNETS[method]))
    assert main(["export", f"SD1.5, DDIM, 20 steps, {method}, 1.5x", "--as", "diffusers", "--golden", golden]) == 2
    printed = capsys.readouterr()
    reason, command = printed.err.strip().split("; a script has all that it takes: ")
    assert (reason, printed.out) == (f"diffaccel: diffusers has no cache for {method}", "")
    assert main(shlex.split(command)[1:]) == 0
    assert capsys.readouterr().out.startswith(f'"""Text to image with SD1.5, made faster by {method}.')


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["SD1.5, DDIM"], "'SD1.5, DDIM' is one winner; say which tool is to take it: --as diffusers"),
        ([""], "'' is one winner; say which tool"),
        (["--as", "diffusers"], "--as diffusers is for one winner; name it, for example: 'FLUX.1, flow match euler"),
        (["KEY", "--as", "diffusers", "--store", "a", "--format", "csv"], "--store, --format: not with a KEY"),
        (["--golden", "a.json"], "--golden: only with a KEY: tables are of --store"),
        (["('FLUX.1', 8)", "--as", "diffusers"], "not a golden key: \"('FLUX.1', 8)\"; expected for example"),
        (["flux, 8 steps, MagCache", "--as", "diffusers"], "no speedup"),
    ],
)
def test_a_command_that_means_nothing_is_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    assert main(["export", *arguments]) == 2
    assert message in capsys.readouterr().err


# --- a method of one's own -------------------------------------------------------------------------------------------

OWN = f"""{WHOLE}
{{% set import_line = "from echoes import Echoing" %}}
{{% set cache_config %}}
config = Echoing(**ECHO)
{{% endset %}}
"""


def lines_of(method: Echo) -> str:
    """What is exported of its made-up record; empty for nothing."""
    registry, key = registry_with(method), GoldenKey(Cell("SD1.5", "DDIM", 20), method.name, 1.5)
    entry = replace(MET, params={method.name: POINT}, environment=ENVIRONMENT.id)
    records = Golden(Path("golden.json"), {key: entry}, {ENVIRONMENT.id: ENVIRONMENT})
    return render_cache(find(Task(key.cell, method.name, 1.5, tuple(registry.names)), records, registry))


def test_a_method_of_ones_own_brings_its_config_or_has_none(tmp_path: Path) -> None:
    lines = lines_of(with_template(tmp_path / "own.py.j2", OWN))
    assert "\n\nfrom echoes import Echoing\n\nSTEPS = 20\n" in lines
    assert lines.endswith("\n\nconfig = Echoing(**ECHO)\npipe.unet.enable_cache(config)\n")
    assert not lines_of(with_template(tmp_path / "without.py.j2", WHOLE))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (WHOLE + "{% set cache_config = 5 %}", "`cache_config` is 5, which is no text"),
        (OWN.replace("(**ECHO)", "(**ECHO"), "make no Python: '\\(' was never closed: "),
    ],
)
def test_a_config_that_cannot_be_used_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(NoScriptPart, match=message):
        lines_of(with_template(tmp_path / "own.py.j2", text))
