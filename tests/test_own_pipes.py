"""Pipes of one's own: a UNet of another layout than the built-in ones, from a models file or a hook, to its script."""

from __future__ import annotations

import json
import re
import runpy
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from searches import SmallSearch, embedded_folder
from timings import SteadyClock

from pytest_diffaccel import generate_script, load_pipeline
from pytest_diffaccel.cli.main import main
from pytest_diffaccel.codegen.parser import parse_task
from pytest_diffaccel.models.registry import ModelSource, know_pipes
from pytest_diffaccel.models.schedulers import TAKEN, taken_settings
from pytest_diffaccel.pipe_shapes import Topology
from pytest_diffaccel.pipes import PipeRegistry, PipeSpec, denoiser_of, known, make_known
from pytest_diffaccel.records.golden_file import read_golden

CELL = "my-sd-EulerDiscreteScheduler-6"
OPTIONS = ("benches", "--models", "models.toml", "--pipe", "my_sd", "--num-samples", "1", "--batch-size", "1")
EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "own_pipe"
SCRIPT = runpy.run_path(str(EXAMPLE / "make_weights.py"))
LAYOUT = SCRIPT["LAYOUT"]


@pytest.fixture(autouse=True)
def only_built_in_pipes() -> Iterator[None]:
    """What a session in this process knew is none of the next test's business."""
    yield
    make_known(PipeRegistry())


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example's: an embedded pipeline with another UNet, of random weights."""
    embedded_folder("SD1.5")
    folder = tmp_path_factory.mktemp("own") / "my-sd"
    SCRIPT["make_weights"](folder)
    return folder


def entry(weights: Path, more: str = "") -> str:
    return f"""
["my-sd"]
class = "StableDiffusionPipeline"
path = "{weights}"
steps = [6]
schedulers = ["EulerDiscreteScheduler"]
height = 32
width = 32
{more}
"""


@pytest.fixture
def own_search(small_search: SmallSearch, weights: Path) -> SmallSearch:
    """A folder in which searches find the pipe in their models file."""
    (small_search.path / "models.toml").write_text(entry(weights), encoding="utf-8")
    return small_search


def collected(search: SmallSearch, *arguments: str) -> list[str]:
    result = search.pytester.runpytest_inprocess("--collect-only", "-q", *arguments)
    assert result.ret == 0, result.outlines
    return [found[1] for line in result.outlines if (found := re.search(r"::test_\w+\[(.*)\]", line))]


# --- end to end ------------------------------------------------------------------------------------------------------


def test_cases_are_those_of_its_cells_and_its_unets_layout(own_search: SmallSearch) -> None:
    cases = collected(own_search, *OPTIONS)
    assert cases
    assert all(case.startswith(f"{CELL}-") for case in cases)
    assert {int(branch) for branch in re.findall(r"cache_branch_id=(\d+)", "".join(cases))} == {0, 1, 3, 4}
    assert set(re.findall(r"max_downsample=(\d+)", " ".join(cases))) == {"1", "2"}
    assert {f"{CELL}-{name}" for name in ("DeepCache", "T-Gate", "ToMe", "DeepCache+T-Gate+ToMe")} <= set(cases)


def test_other_schedulers_and_steps_can_be_named(own_search: SmallSearch) -> None:
    few = ("--search-targets", "ToMe", "--grid", "coarse", "--sched", "ddim,DEISMultistepScheduler", "--steps", "30,5")
    groups = {case.partition("-ToMe")[0] for case in collected(own_search, *OPTIONS, *few)}
    assert groups == {f"my-sd-{name}-{steps}" for name in ("DDIM", "DEISMultistepScheduler") for steps in (5, 30)}


def test_what_a_search_records_is_gated_shown_and_makes_a_script(own_search: SmallSearch, weights: Path) -> None:
    import torch

    wide = ("--grid", "coarse", "--exhaustive", "--blocks", "1", "--max-quality-loss", "10", "--search-targets")
    result = own_search.pytester.runpytest_inprocess(*OPTIONS, *wide, "DeepCache", "--search-targets", "Echo")
    assert result.parseoutcomes().get("failed", 0) == 0, result.outlines
    golden = read_golden(own_search.golden)
    assert {(key.cell.pipe, key.cell.scheduler, key.cell.steps) for key in golden} == {
        ("my-sd", "EulerDiscreteScheduler", 6)
    }
    assert {key.accelerator for key in golden} == {"DeepCache", "Echo"}
    gated = own_search.pytester.runpytest_inprocess(
        *OPTIONS, "-v", "--gate", "--gate-budget", "1s", "--search-targets", "Echo"
    )
    assert gated.ret == 0, gated.outlines
    gated.stdout.fnmatch_lines_random(
        [f"*test_gate[[]{CELL}-baseline] PASSED*", f"*test_gate[[]{CELL}-Echo-*] PASSED*"]
    )

    make_known(PipeRegistry())  # a report is made where nobody names the models file
    page = own_search.path / "report.html"
    own = ("--pipe", "my-sd", "--golden", str(own_search.golden), "-o", str(page))
    assert main(["report", "--store", str(own_search.store), *own]) == 0
    assert "my-sd × EulerDiscreteScheduler × 6 steps" in page.read_text(encoding="utf-8")

    key = next(key for key in golden if key.accelerator == "DeepCache" and golden[key].params)
    sentence = f"my_sd with eulerDiscreteScheduler, {key.cell.steps} steps, DeepCache, {key.target}x"
    script = own_search.path / "script.py"
    arguments = [sentence, "--golden", str(own_search.golden), "--models", "models.toml", "-o", str(script)]
    assert main(["generate", *arguments]) == 0
    assert f'MODEL = "{weights}"' in script.read_text(encoding="utf-8")
    made = runpy.run_path(str(script))
    pipeline = made["build_pipeline"](made["MODEL"], "cpu", torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    assert type(pipeline.scheduler).__name__ == "EulerDiscreteScheduler"
    assert len(made["generate"](pipeline, ["red apple"], [0])) == 1


def test_a_scheduler_that_cannot_be_followed_fails_each_case_in_one_line(own_search: SmallSearch) -> None:
    few = ("--sched", "HeunDiscreteScheduler", "--search-targets", "ToMe", "--grid", "coarse")
    result = own_search.pytester.runpytest_inprocess(*OPTIONS, *few)
    outcomes = result.parseoutcomes()
    assert outcomes["failed"] == len(collected(own_search, *OPTIONS, *few))
    result.stdout.fnmatch_lines(
        ["HeunDiscreteScheduler visits timestep * more than once in 6 steps, which *; take another*"]
    )
    result.stdout.no_fnmatch_line("*acceleration.py*")


def test_the_example_of_a_hook_is_searched_and_recorded(
    small_search: SmallSearch, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    SteadyClock(monkeypatch).step_s["ToMe"] = 0.01
    for name in ("conftest.py", "models.toml"):
        shutil.copy(EXAMPLE / name, small_search.path / name)
    (small_search.path / "tiny-sd").symlink_to(weights)
    tiny = ("benches", "--models", "models.toml", "--pipe", "tiny", "--search-targets", "ToMe", "--grid", "coarse")
    groups = {case.partition("-ToMe")[0] for case in collected(small_search, *tiny)}
    assert groups == {f"Tiny-{name}-{steps}" for name in ("DDIM", "EulerDiscreteScheduler") for steps in (4, 8)}
    one = ("--sched", "euler_discrete_scheduler", "--steps", "4", "--exhaustive", "--blocks", "1")
    result = small_search.pytester.runpytest_inprocess(*tiny, *one, "--num-samples", "1", "--batch-size", "1")
    assert result.ret == 0, result.outlines
    recorded = {(key.cell.pipe, key.cell.scheduler, key.cell.steps) for key in read_golden(small_search.golden)}
    assert recorded == {("Tiny", "EulerDiscreteScheduler", 4)}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "models 'models.toml' has no entry for *; search what it has: --pipe my-sd"),
        (("--pipe", "my-sdxl"), "--pipe: 'my-sdxl' is unknown*; choose from SD1.5; SD2.1; SDXL; all; FLUX.1; my-sd"),
    ],
)
def test_a_search_says_which_pipes_there_are(own_search: SmallSearch, arguments: tuple[str, ...], said: str) -> None:
    result = own_search.pytester.runpytest_inprocess("benches", "--models", "models.toml", *arguments)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: {said}"])


def test_a_scheduler_that_an_entry_has_and_diffusers_has_not_is_named_with_its_file(
    own_search: SmallSearch, weights: Path
) -> None:
    (own_search.path / "models.toml").write_text(entry(weights).replace("EulerD", "OilerD"), encoding="utf-8")
    result = own_search.pytester.runpytest_inprocess(*OPTIONS)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        [
            "ERROR: my-sd of models.toml: 'OilerDiscreteScheduler' is no scheduler *; write DDIM, DPM-Solver++, "
            "UniPCMultistepScheduler or a class of diffusers such as EulerDiscreteScheduler"
        ]
    )


# --- entries of a models file ----------------------------------------------------------------------------------------


def read(folder: Path, text: str) -> ModelSource:
    (folder / "models.toml").write_text(text, encoding="utf-8")
    return ModelSource.from_option(str(folder / "models.toml"))


def test_an_entry_is_read_with_and_without_a_session(tmp_path: Path, weights: Path) -> None:
    source = read(tmp_path, f'SDXL = "a/b"\n{entry(weights)}')
    assert [spec.pipe for spec in source.specs] == ["SDXL", "my-sd"]
    pipeline: Any = load_pipeline("my-sd", models=source, scheduler="EulerDiscreteScheduler", device="cpu")
    assert len(pipeline.unet.down_blocks) == 2
    assert "my-sd" not in known()
    know_pipes(PipeRegistry(), source.name)
    assert known()["my-sd"] == source.spec("my-sd").own
    assert ModelSource.from_option(source.name) == source


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('["SD1.5"]\nclass = "StableDiffusionPipeline"\npath = "x"', "known already"),
        ('[mine]\nclass = "StableDiffusionPipeline"', "exactly one"),
        ('[mine]\nclass = 3\npath = "./x"', "class = 3; name a pipeline class of diffusers"),
        ('[mine]\nclass = "my.Pipeline"\npath = "./x"', "'my.Pipeline' is no name of a class"),
        ('[mine]\nclass = "A"\npath = "./x"\nsteps = 20', "steps = 20; write a list of whole numbers from 1 to 1000"),
        ('[mine]\nclass = "A"\npath = "./x"\nsteps = [0]', "steps = [0]; write a list"),
        ('[mine]\nclass = "A"\npath = "./x"\nschedulers = []', "schedulers = []; write a list of names"),
        ('[mine]\nclass = "A"\npath = "./x.safetensors"', 'set config = "a diffusers folder"'),
        ('[mine]\nclass = "A"\npath = "./x"\nunet = "y"', "unknown key 'unet'; known: class, steps, schedulers, path"),
        ('["my pipe"]\nclass = "A"\npath = "./x"', "'my pipe' is no name for a pipe"),
        ('[all]\nclass = "A"\npath = "./x"', "'all' is no name for a pipe"),
        ('[my.sd]\nclass = "A"\npath = "./x"', 'put the key in quotes: "my.sd"'),
        ('[mine]\npath = "./x"', 'one of your own names its pipeline class, such as class = "StableDiffusionPipeline"'),
    ],
)
def test_bad_entries_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        read(tmp_path, text)


@pytest.mark.parametrize(
    ("models", "said"),
    [
        ("embedded", "models 'embedded' has no entry for Mine; its public weights are those of --models hub"),
        (
            "hub",
            "models 'hub' has no entry for Other; give a models file (--models) with a line \"Other\" =",
        ),
    ],
)
def test_a_registered_pipe_without_weights_is_told_where_they_may_be_named(models: str, said: str) -> None:
    """Nobody can write a line into what is no file."""
    registry = PipeRegistry()
    registry.register(PipeSpec("Mine", "StableDiffusionPipeline", hub_id="owner/mine"))
    registry.register(PipeSpec("Other", "StableDiffusionPipeline"))
    make_known(registry)
    with pytest.raises(ValueError, match=re.escape(said)):
        ModelSource.from_option(models).spec(said.split("for ")[1].split(";")[0])


def test_a_registered_pipes_single_file_needs_settings_too(tmp_path: Path) -> None:
    registry = PipeRegistry()
    registry.register(PipeSpec("Mine", "StableDiffusionPipeline"))
    make_known(registry)
    with pytest.raises(ValueError, match='has no tokenizer and scheduler settings; set config = "a diffusers folder"'):
        read(tmp_path, 'Mine = "./x.safetensors"')


def test_a_spelling_of_another_pipe_is_no_name(tmp_path: Path) -> None:
    source = read(tmp_path, '["sd-15"]\nclass = "A"\npath = "./x"')
    with pytest.raises(ValueError, match=r"sd-15: a pipe SD1\.5 is known already"):
        know_pipes(PipeRegistry(), source.name)


@pytest.mark.parametrize("name", ["UNet2DConditionModel", "NoSuchPipeline"])
def test_what_is_no_pipeline_class_of_diffusers_is_not_loaded(tmp_path: Path, weights: Path, name: str) -> None:
    shutil.copytree(weights, tmp_path / "copy")
    index = tmp_path / "copy" / "model_index.json"
    index.write_text(index.read_text(encoding="utf-8").replace("StableDiffusionPipeline", name), encoding="utf-8")
    source = read(tmp_path, f'[mine]\nclass = "{name}"\npath = "copy"')
    with pytest.raises(ValueError, match=f"mine: diffusers has no pipeline class '{name}'"):
        load_pipeline("mine", models=source, device="cpu")


def test_another_class_than_the_folders_is_refused(tmp_path: Path, weights: Path) -> None:
    source = read(tmp_path, f'[mine]\nclass = "StableDiffusionXLPipeline"\npath = "{weights}"')
    with pytest.raises(ValueError, match="mine is a StableDiffusionXLPipeline"):
        load_pipeline("mine", models=source, device="cpu")


def test_the_folder_says_which_components_a_class_has_that_is_not_known(tmp_path: Path) -> None:
    """One that the class would have, and the folder has not, is none."""
    parts = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "transformer", "vae")
    lacking = ("text_encoder_3", "tokenizer_3", "unet")
    index = {name: ["a", "B"] for name in parts} | {name: [None, None] for name in lacking}
    (tmp_path / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    pipe = read(tmp_path, '[mine]\nclass = "StableDiffusion3Pipeline"\npath = "."').spec("mine").family
    assert pipe.with_weights == ("text_encoder", "text_encoder_2", "transformer", "vae")
    assert pipe.without_weights == ("tokenizer", "tokenizer_2", "scheduler")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "SD1.5"}, "a pipe SD1.5 is known already"),
        ({"spelling": "mine("}, "spelling='mine(' is no regular expression"),
        ({"spelling": "(?i)mine"}, "spelling='(?i)mine' is no regular expression"),
        ({"spelling": "mine|"}, "spelling='mine|' fits an empty text, which names no pipe"),
        ({"steps": 20}, "mine: steps=20 is no tuple; write (20,)"),
        ({"steps": [20, 30]}, "mine: steps=[20, 30] is no tuple; write (20, 30)"),
        ({"schedulers": "DDIM"}, "mine: schedulers='DDIM' is no tuple; write ('DDIM',)"),
        ({"schedulers": (3,)}, "mine: schedulers=(3,); name at least one"),
        ({"text_encoders": "text_encoder"}, "mine: text_encoders='text_encoder' is no tuple; write ('text_encoder',)"),
        ({"text_encoders": ("../unet",)}, "mine: '../unet' is no name of a class or component"),
        ({"pipeline_class": ""}, "mine: '' is no name of a class or component; write one of diffusers' own, such as"),
        ({"built_like": "sd"}, 'mine: built_like=\'sd\'; write "SD", "SDXL" or None'),
        ({"side_unit": 0}, "mine: side_unit=0; give a whole number of pixels, at least 1"),
        ({"guidance_scale": -1.0}, "mine: guidance_scale=-1.0; give a number of at least 0"),
        ({"steps": ()}, "steps=(); give whole numbers from 1 to 1000"),
        ({"schedulers": ("",)}, "schedulers=('',); name at least one"),
        ({"denoiser": "unet.modules"}, "'unet.modules' is no name of a class or component"),
    ],
)
def test_bad_pipes_are_not_registered(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        PipeRegistry().register(PipeSpec(**{"name": "mine", "pipeline_class": "FluxPipeline", **values}))


def test_scripts_set_what_any_schedulers_class_takes() -> None:
    assert {name: taken_settings(name) for name in TAKEN} == TAKEN
    assert taken_settings("EulerDiscreteScheduler") == ("steps_offset",)
    assert taken_settings("DDPMScheduler") == ("clip_sample", "steps_offset")


# --- what is known of a pipe -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "layers", "attention"),
    [
        ({}, (2, 2, 2, 2), (1, 2, 4, 8)),
        (LAYOUT, (1, 1), (1, 2)),
        (LAYOUT | {"mid_block_type": None}, (1, 1), (1,)),
        ({"down_block_types": ["DownBlock2D"] * 3, "layers_per_block": [3, 1, 2]}, (3, 1, 2), (4,)),
        ({"down_block_types": ["CrossAttnDownBlock2D"] * 5}, (2,) * 5, (1, 2, 4, 8, 16)),
        ({"down_block_types": ["DownBlock2D"], "layers_per_block": [1, 2]}, (2, 2, 2, 2), (1, 2, 4, 8)),
        ({"down_block_types": 3, "layers_per_block": "x"}, (2, 2, 2, 2), (1, 2, 4, 8)),
    ],
)
def test_topology_is_read_from_a_unets_settings(
    config: dict[str, Any], layers: tuple[int, ...], attention: tuple[int, ...]
) -> None:
    assert Topology.from_config(config) == Topology(layers, attention)


def test_the_denoiser_is_what_the_pipe_says() -> None:
    class Drawing:
        unet, transformer = "the unet", "the transformer"

    class Similar(Drawing):
        pass

    assert denoiser_of(Similar()) == "the unet"
    registry = PipeRegistry()
    registry.register(PipeSpec("mine", "Drawing", denoiser="transformer"))
    make_known(registry)
    assert denoiser_of(Similar()) == "the transformer"
    assert denoiser_of(SimpleNamespace(unet=1)) == 1


@pytest.mark.parametrize("name", ["my-sd15", "SDXL-tiny", "v2-1.5", "Anything_V5"])
def test_sentences_name_pipes_of_ones_own(name: str) -> None:
    registry = PipeRegistry()
    registry.register(PipeSpec(name, "StableDiffusionPipeline"))
    make_known(registry)
    for spelling in (name, name.lower(), name.replace("-", " ").replace("_", " ")):
        task = parse_task(f"{spelling}, DEISMultistepScheduler, 30 steps, ToMe, 1.5x")
        assert (task.cell.pipe, task.cell.scheduler, task.cell.steps) == (name, "DEISMultistepScheduler", 30)
        assert parse_task(task.sentence) == task


def test_a_task_without_a_record_names_the_models_file(tmp_path: Path) -> None:
    know_pipes(PipeRegistry(), read(tmp_path, '["my-sd"]\nclass = "A"\nid = "a/b"').name)
    with pytest.raises(
        ValueError, match=r"--models \S+models.toml --pipe my-sd --sched DDIM --steps 7 --search-targets"
    ):
        generate_script("my-sd, DDIM, 7 steps, ToMe, 1.5x", tmp_path / "none.json")
