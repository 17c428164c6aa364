"""Diffusers folders: which copy of weights is used, what may not be missing, and what settings say or leave open."""

from __future__ import annotations

import inspect
import json
import runpy
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from echo import Echo
from entries import ENVIRONMENT, MET
from safetensors.numpy import load_file, save_file
from searches import CLEAR_POINTS, SearchFolder, embedded_folder, open_run
from single_files import write_single_file

from pytest_diffaccel import load_pipeline
from pytest_diffaccel.accelerators.registry import default_registry
from pytest_diffaccel.codegen.lookup import Answer
from pytest_diffaccel.codegen.script import render
from pytest_diffaccel.codegen.tasks import Task
from pytest_diffaccel.judge.claim import plain_settings
from pytest_diffaccel.matrix import SCHEDULERS, Candidate, Cell
from pytest_diffaccel.measure.measurement import Interval, Measurement, Quality, Sampling
from pytest_diffaccel.models.component_settings import settings_digests
from pytest_diffaccel.models.copies import component_files
from pytest_diffaccel.models.registry import ModelSource, ModelSpec
from pytest_diffaccel.models.schedulers import (
    LATENT_SETTINGS,
    SCHEDULER_CLASSES,
    TAKEN,
    open_settings,
    original_settings,
    set_scheduler,
)
from pytest_diffaccel.models.weights import check_folder, check_settings, weight_files
from pytest_diffaccel.pipes import known
from pytest_diffaccel.records.environment import differences
from pytest_diffaccel.records.golden_key import GoldenKey

STEM = "diffusion_pytorch_model"
SD15 = known()["SD1.5"].hub_id
# As diffusers writes it for a scheduler that was made from the noise schedule alone.
EULER = {
    "_class_name": "EulerDiscreteScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "timestep_spacing": "linspace",
    "steps_offset": 0,
}


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A copy of the embedded SD1.5 that a test may spoil."""
    return Path(shutil.copytree(embedded_folder("SD1.5"), tmp_path / "copy"))


def spec(folder: Path, **more: Any) -> ModelSpec:
    return ModelSpec("SD1.5", "directory", str(folder), "a test", **more)


def load(folder: Path, scheduler: str = "DDIM", **more: Any) -> Any:
    models = ModelSource("test", (spec(folder, **more),))
    return load_pipeline("SD1.5", models=models, scheduler=scheduler, device="cpu")


def edit_json(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **values}), encoding="utf-8")


# --- copies of weights -----------------------------------------------------------------------------------------


def split(path: Path, name: str, index: str) -> None:
    """Replace a weight file by two shards named ``name`` (with a place for a number) and their index."""
    tensors = load_file(path)
    path.unlink()
    halves = [list(tensors)[::2], list(tensors)[1::2]]
    files = [name.format(f"0000{number}-of-00002") for number in (1, 2)]
    for file, half in zip(files, halves, strict=True):
        save_file({one: tensors[one] for one in half}, path.with_name(file))
    listed = {one: file for file, half in zip(files, halves, strict=True) for one in half}
    path.with_name(index).write_text(json.dumps({"metadata": {}, "weight_map": listed}), encoding="utf-8")


def decoy(path: Path) -> None:
    """Another copy of the weights beside ``path``, of zeros."""
    real = load_file(next(path.parent.glob("*.safetensors")))
    save_file({name: np.zeros_like(tensor) for name, tensor in real.items()}, path)


def fp16_of_one_part(folder: Path) -> None:
    (folder / "text_encoder" / "model.safetensors").rename(folder / "text_encoder" / "model.fp16.safetensors")
    decoy(folder / "unet" / f"{STEM}.fp16.safetensors")


def bf16_alone(folder: Path) -> None:
    for path in folder.glob("*/*.safetensors"):
        path.rename(path.with_name(f"{path.stem}.bf16.safetensors"))


def fp16_shards_of_older_names(folder: Path) -> None:
    decoy(folder / "unet" / f"{STEM}.bf16.safetensors")
    split(folder / "unet" / f"{STEM}.safetensors", STEM + "-{}.fp16.safetensors", f"{STEM}.safetensors.index.fp16.json")


def fp16_shards_and_index_of_older_names(folder: Path) -> None:
    split(folder / "unet" / f"{STEM}.safetensors", STEM + "-{}.fp16.safetensors", f"{STEM}.safetensors.fp16.index.json")


def fp16_shards(folder: Path) -> None:
    split(folder / "unet" / f"{STEM}.safetensors", STEM + ".fp16-{}.safetensors", f"{STEM}.safetensors.index.fp16.json")
    split(folder / "text_encoder" / "model.safetensors", "model-{}.safetensors", "model.safetensors.index.json")


def a_file_beside_shards(folder: Path) -> None:
    """diffusers would take the shards and transformers the file."""
    for path in (folder / "unet" / f"{STEM}.safetensors", folder / "text_encoder" / "model.safetensors"):
        whole = path.read_bytes()
        split(path, path.stem + "-{}.safetensors", f"{path.stem}.safetensors.index.json")
        for shard in path.parent.glob("*-of-*"):
            save_file({name: np.zeros_like(tensor) for name, tensor in load_file(shard).items()}, shard)
        path.write_bytes(whole)


@pytest.mark.parametrize(
    "mix",
    [
        fp16_of_one_part,
        bf16_alone,
        fp16_shards,
        fp16_shards_of_older_names,
        fp16_shards_and_index_of_older_names,
        a_file_beside_shards,
    ],
)
def test_what_is_fingerprinted_is_what_is_loaded(mix: Callable[[Path], None], copied: Path) -> None:
    mix(copied)
    pipeline = load(copied)
    for name, paths in weight_files(spec(copied)).items():
        loaded = getattr(pipeline, name).state_dict()
        files = {one: tensor for path in paths for one, tensor in load_file(path).items()}
        for one, tensor in files.items():
            found = loaded[one] if one in loaded else loaded[one.removeprefix("text_model.")]
            assert np.array_equal(found.numpy(), tensor.astype(np.float32)), one
        assert any(tensor.any() for tensor in files.values()), "the copy of zeros was taken"


def test_a_vae_of_its_own_may_be_a_copy_too(copied: Path, tmp_path: Path) -> None:
    vae = Path(shutil.copytree(copied / "vae", tmp_path / "mine"))
    (vae / f"{STEM}.safetensors").rename(vae / f"{STEM}.bf16.safetensors")
    pipeline = load(copied, vae=str(vae))
    assert pipeline.vae.config.latent_channels == 4
    assert weight_files(spec(copied, vae=str(vae)))["vae"] == [vae / f"{STEM}.bf16.safetensors"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([f"{STEM}-00001-of-00002.safetensors"], rf"00001-of-00002.* without {STEM}\.safetensors\.index\.json"),
        ([f"{STEM}-00001-of-00002.fp16.safetensors"], r"without .*\.index\.fp16\.json"),
        (["model.safetensors", "mine.safetensors"], rf"mine.*, model\.safetensors, but no {STEM}\.safetensors"),
        ([f"{STEM}.bin"], "only pickled weights"),
        ([], r"no \.safetensors weights"),
    ],
)
def test_what_cannot_be_loaded_says_what_is_there(names: list[str], message: str, tmp_path: Path) -> None:
    folder = tmp_path / "unet"
    folder.mkdir()
    for name in names:
        (folder / name).touch()
    with pytest.raises(FileNotFoundError, match=rf"unet holds .*{message}.*fetch the folder again"):
        component_files(folder)


@pytest.mark.parametrize(
    ("listed", "message"),
    [({"a": "one.safetensors"}, "lacks one"), ({"a": "../one"}, "no file beside it"), ({}, "lists no weights")],
)
def test_an_index_lists_files_that_are_there(listed: dict[str, str], message: str, tmp_path: Path) -> None:
    index = tmp_path / f"{STEM}.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": listed}), encoding="utf-8")
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        component_files(tmp_path)


# --- what may not be missing -----------------------------------------------------------------------------------

EACH_FILE = [
    "tokenizer/vocab.json",
    "tokenizer/merges.txt",
    "tokenizer/tokenizer_config.json",
    "scheduler/scheduler_config.json",
    "unet/config.json",
    "text_encoder/config.json",
]


@pytest.mark.parametrize("file", EACH_FILE)
def test_a_missing_file_is_named_with_the_command_that_fetches_it(file: str, copied: Path) -> None:
    (copied / file).unlink()
    folder = file.partition("/")[0]
    command = rf'hf download {SD15} --include "{folder}/\*\.json" .* --local-dir {copied}'
    with pytest.raises(FileNotFoundError, match=rf"{copied} has no {file}.*: {command}"):
        load(copied)


@pytest.mark.parametrize("folder", ["tokenizer", "tokenizer_2", "scheduler"])
def test_a_missing_component_is_named(folder: str, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(embedded_folder("SDXL"), tmp_path / "copy"))
    shutil.rmtree(copied / folder)
    with pytest.raises(FileNotFoundError, match=rf"{copied} has no {folder}/.*hf download {known()['SDXL'].hub_id}"):
        check_folder(copied, known()["SDXL"])
    shutil.copytree(embedded_folder("SDXL") / folder, copied / folder)
    edit_json(copied / "model_index.json", **{folder: [None, None]})
    with pytest.raises(ValueError, match=rf"model_index\.json names no {folder}, which SDXL needs"):
        check_folder(copied, known()["SDXL"])


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("vocab.json", "{}", r"vocab\.json holds no vocabulary"),
        ("vocab.json", "version https://git-lfs", r"vocab\.json is not readable JSON"),
        ("merges.txt", "", r"merges\.txt holds no vocabulary"),
        ("tokenizer.json", '{"model": {"vocab": {}}}', r"tokenizer\.json holds no vocabulary"),
        ("tokenizer_config.json", "{}", r"tokenizer_config\.json has no model_max_length"),
        ("tokenizer_config.json", f'{{"model_max_length": {int(1e30)}}}', "has no model_max_length"),
    ],
)
def test_an_empty_vocabulary_is_refused(file: str, text: str, message: str, copied: Path) -> None:
    (copied / "tokenizer" / file).write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        check_folder(copied, known()["SD1.5"])


# 814 tokens, 24 places.
@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("tokenizer/vocab.json", {"more": 814}, "tokenizer gives tokens up to 814, but .* has vocab_size 814: "),
        ("tokenizer/added_tokens.json", {"<new>": 815}, "tokens up to 815, but .* vocab_size 814"),
        ("tokenizer/tokenizer_config.json", {"added_tokens_decoder": {"816": {"content": "<new>"}}}, "up to 816, but"),
        (
            "tokenizer/tokenizer_config.json",
            {"model_max_length": 25},
            "has model_max_length 25, but .*_embeddings 24: ",
        ),
        ("text_encoder/config.json", {"vocab_size": 813}, "up to 813, but .* has vocab_size 813: .* not of one model"),
        ("text_encoder/config.json", {"max_position_embeddings": 23}, "_length 24, but .* max_position_embeddings 23"),
        ("tokenizer/added_tokens.json", {"<new>": None}, "has a token without a number"),
    ],
)
@pytest.mark.parametrize("is_whole", [False, True], ids=["two files", "one file"])
def test_a_tokenizer_that_does_not_fit_its_text_encoder_is_refused(
    copied: Path, pipeline_of: Any, file: str, values: dict[str, object], message: str, is_whole: bool
) -> None:
    """It would draw something else, or die of an index."""
    if is_whole:
        pipeline_of("SD1.5").tokenizer.save_pretrained(str(copied / "tokenizer"))
    check_settings(copied, known()["SD1.5"])
    if is_whole and file == "tokenizer/vocab.json":
        content = json.loads((copied / "tokenizer" / "tokenizer.json").read_text(encoding="utf-8"))
        values, file = (
            {"added_tokens": [*content["added_tokens"], {"id": 814, "content": "more"}]},
            "tokenizer/tokenizer.json",
        )
    if not (copied / file).exists():
        (copied / file).write_text("{}", encoding="utf-8")
    edit_json(copied / file, **values)
    with pytest.raises(ValueError, match=message):
        check_settings(copied, known()["SD1.5"])


def test_the_second_tokenizer_is_compared_with_the_second_text_encoder(tmp_path: Path) -> None:
    copied = Path(shutil.copytree(embedded_folder("SDXL"), tmp_path / "copy"))
    edit_json(copied / "text_encoder_2" / "config.json", vocab_size=900)  # filled up to a round number
    check_settings(copied, known()["SDXL"])
    edit_json(copied / "text_encoder_2" / "config.json", vocab_size=800)
    with pytest.raises(ValueError, match=r"tokenizer_2 gives tokens up to 813, but .*text_encoder_2"):
        check_settings(copied, known()["SDXL"])


def test_a_vocabulary_in_one_file_is_enough(copied: Path, pipeline_of: Any) -> None:
    pipeline_of("SD1.5").tokenizer.save_pretrained(str(copied / "tokenizer"))
    (copied / "tokenizer" / "vocab.json").unlink()
    (copied / "tokenizer" / "merges.txt").unlink()
    expected = pipeline_of("SD1.5").tokenizer("red apple").input_ids
    assert load(copied).tokenizer("red apple").input_ids == expected


def test_the_settings_of_a_single_file_may_not_be_missing(copied: Path, tmp_path: Path) -> None:
    write_single_file(copied, "SD1.5", tmp_path / "one.safetensors")
    (copied / "tokenizer" / "merges.txt").unlink()
    one = ModelSpec("SD1.5", "file", str(tmp_path / "one.safetensors"), "a test", config=str(copied))
    with pytest.raises(FileNotFoundError, match=r"no tokenizer/merges\.txt \(nor tokenizer\.json\)"):
        load_pipeline("SD1.5", models=ModelSource("test", (one,)), device="cpu")


def test_what_the_hubs_cache_lacks_is_named(copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repository = tmp_path / "hub" / f"models--{SD15.replace('/', '--')}"
    (copied / "tokenizer" / "vocab.json").unlink()
    shutil.copytree(copied, repository / "snapshots" / ("0" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40, encoding="utf-8")
    with pytest.raises(FileNotFoundError, match=rf"no tokenizer/vocab\.json.*hf download {SD15} --include"):
        load_pipeline("SD1.5", models="hub", device="cpu")


# --- settings that a scheduler leaves open ---------------------------------------------------------------------


def with_scheduler(settings: Mapping[str, Any]) -> Any:
    """Something with the scheduler that a folder with these settings gives."""
    import diffusers

    return SimpleNamespace(scheduler=getattr(diffusers, settings["_class_name"]).from_config(dict(settings)))


@pytest.mark.parametrize("name", [*SCHEDULERS, "DDPMScheduler", "PNDMScheduler", "EulerDiscreteScheduler"])
def test_what_latents_need_is_set_where_the_folder_leaves_it_open(name: str) -> None:
    import diffusers

    pipeline = with_scheduler({key: value for key, value in EULER.items() if key != "steps_offset"})
    set_scheduler(pipeline, name)
    scheduler_class = getattr(diffusers, SCHEDULER_CLASSES.get(name, (name,))[0])
    taken = set(inspect.signature(scheduler_class).parameters) & set(LATENT_SETTINGS)
    assert {key: pipeline.scheduler.config[key] for key in taken} == {key: LATENT_SETTINGS[key] for key in taken}
    assert pipeline.scheduler.config.beta_schedule == "scaled_linear"
    if name in TAKEN:
        assert taken == set(TAKEN[name])


def test_what_the_folder_says_stays() -> None:
    said = {"clip_sample": True, "set_alpha_to_one": True, "steps_offset": 0}
    pipeline = with_scheduler({**EULER, **said})
    set_scheduler(pipeline, "DDIM")
    assert {key: pipeline.scheduler.config[key] for key in said} == said
    assert open_settings(original_settings(pipeline)) == {}


@pytest.mark.parametrize("pipe", ["SD1.5", "SD2.1", "SDXL"])
def test_the_embedded_settings_leave_nothing_open(pipe: str, pipeline_of: Any) -> None:
    assert open_settings(original_settings(pipeline_of(pipe))) == {}


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_scripts_set_what_the_search_sets(scheduler: str, copied: Path, tmp_path: Path) -> None:
    import torch

    (copied / "scheduler" / "scheduler_config.json").write_text(json.dumps(EULER), encoding="utf-8")
    edit_json(copied / "model_index.json", scheduler=["diffusers", "EulerDiscreteScheduler"])
    searched = load(copied, scheduler)
    left = open_settings(original_settings(searched))
    assert set(left) >= {"clip_sample", "set_alpha_to_one"}
    task = Task(Cell("SD1.5", scheduler, 20), "DeepCache", 1.5)
    key = GoldenKey(Cell("SD1.5", scheduler, 20), "DeepCache", 1.5)
    answer = Answer(task, key, MET, ENVIRONMENT, default_registry().for_params(MET.params), attained=True)
    ordinary = render(answer)
    text = render(replace(answer, environment=replace(ENVIRONMENT, scheduler_defaults=left)))
    assert ("clip_sample=False" in text) is (scheduler == "DDIM")
    assert "clip_sample" not in ordinary
    (tmp_path / "script.py").write_text(text, encoding="utf-8")
    script = runpy.run_path(str(tmp_path / "script.py"))
    made = script["build_pipeline"](str(copied), "cpu", torch.float32)
    assert plain_settings(made.scheduler.config) == plain_settings(searched.scheduler.config)


# --- single files that say how they were trained ---------------------------------------------------------------


@pytest.mark.parametrize("markers", [("v_pred",), ("v_pred", "ztsnr")])
def test_a_single_files_markers_are_read(markers: tuple[str, ...], tmp_path: Path) -> None:
    folder, path = embedded_folder("SD1.5"), tmp_path / "one.safetensors"
    write_single_file(folder, "SD1.5", path)
    save_file({**load_file(path), **{name: np.zeros(0, np.float32) for name in markers}}, path)
    one = ModelSpec("SD1.5", "file", str(path), "a test", config=str(folder))
    pipeline: Any = load_pipeline("SD1.5", models=ModelSource("test", (one,)), device="cpu")
    for name in SCHEDULERS:
        set_scheduler(pipeline, name)
        config = pipeline.scheduler.config
        assert config.prediction_type == "v_prediction"
        assert config.rescale_betas_zero_snr is ("ztsnr" in markers)
        assert config.timestep_spacing == ("trailing" if "ztsnr" in markers else "leading")


@pytest.mark.parametrize(("marker", "message"), [("ztsnr", "without v_pred"), ("edm_mean", "EDM's noise levels")])
def test_markers_that_mean_nothing_here_are_refused(marker: str, message: str, tmp_path: Path) -> None:
    folder, path = embedded_folder("SD1.5"), tmp_path / "one.safetensors"
    write_single_file(folder, "SD1.5", path)
    save_file({**load_file(path), marker: np.zeros(1, np.float32)}, path)
    one = ModelSpec("SD1.5", "file", str(path), "a test", config=str(folder))
    with pytest.raises(ValueError, match=rf"one\.safetensors carries the tensor {marker}.*{message}"):
        load_pipeline("SD1.5", models=ModelSource("test", (one,)), device="cpu")


# --- settings are part of an environment -----------------------------------------------------------------------


def test_settings_have_the_same_digest_wherever_they_are_and_whatever_was_drawn(copied: Path) -> None:
    edit_json(copied / "unet" / "config.json", dropout=0.0, _name_or_path=str(copied))
    edit_json(copied / "text_encoder" / "config.json", transformers_version="4.0.0", _name_or_path=str(copied))
    pipeline = load(copied)
    digests = settings_digests(pipeline)
    assert set(digests) == {"pipeline", "scheduler", "text_encoder", "tokenizer", "unet", "vae"}
    pipeline("red apple", num_inference_steps=1, output_type="latent")
    set_scheduler(pipeline, "DPM-Solver++")
    assert settings_digests(pipeline) == digests == settings_digests(load(embedded_folder("SD1.5")))


@pytest.mark.parametrize("pipe", ["SD2.1", "SDXL"])
def test_every_component_has_settings(pipe: str, pipeline_of: Any) -> None:
    pipeline = pipeline_of(pipe)
    loaded = {name for name, part in pipeline.components.items() if part is not None}
    digests = settings_digests(pipeline)
    assert set(digests) == {*loaded, "pipeline"}
    assert len(set(digests.values())) >= len(digests) - 1  # SDXL's two tokenizers may be the same


def drop_a_merge(folder: Path) -> None:
    path = folder / "tokenizer" / "merges.txt"
    path.write_text("\n".join(path.read_text(encoding="utf-8").splitlines()[:-1]) + "\n", encoding="utf-8")


@pytest.mark.parametrize(
    ("component", "change"),
    [
        ("scheduler", lambda folder: edit_json(folder / "scheduler/scheduler_config.json", beta_schedule="linear")),
        ("scheduler", lambda folder: edit_json(folder / "scheduler/scheduler_config.json", set_alpha_to_one=True)),
        ("vae", lambda folder: edit_json(folder / "vae/config.json", scaling_factor=0.5)),
        ("text_encoder", lambda folder: edit_json(folder / "text_encoder/config.json", hidden_act="gelu")),
        ("tokenizer", lambda folder: edit_json(folder / "tokenizer/tokenizer_config.json", model_max_length=20)),
        ("tokenizer", drop_a_merge),
    ],
)
def test_other_settings_are_another_environment(
    component: str, change: Callable[[Path], None], copied: Path, pipeline_of: Any
) -> None:
    before = replace(ENVIRONMENT, settings=settings_digests(pipeline_of("SD1.5")))
    change(copied)
    after = replace(ENVIRONMENT, settings=settings_digests(load(copied)))
    assert before.id != after.id
    assert [line.partition(" settings ")[0] for line in differences(before, after)] == [component]


def test_the_store_does_not_answer_for_other_settings(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = SearchFolder(tmp_path / "search")
    text = f'"SD1.5" = {{ path = "{copied}", height = 32, width = 32, guidance_scale = 5.0 }}\n'
    (search.path / "models.toml").write_text(text, encoding="utf-8")
    monkeypatch.chdir(search.path)
    found = []
    for spacing in ("leading", "trailing", "leading"):
        edit_json(copied / "scheduler" / "scheduler_config.json", timestep_spacing=spacing)
        run = open_run(methods=[Echo(CLEAR_POINTS)])
        candidate = run.candidates[0]
        environment, sampling = run.bench.environment(candidate.cell), run.bench.sampling(candidate.cell, "search")
        found.append((environment, run.bench.store.find(candidate.key, environment.id, sampling)))
        run.bench.store.save(measurement(candidate, environment.id, sampling))
        run.close()
    (one, first), (other, second), (again, third) = found
    assert one.weights == other.weights
    assert [line.split()[0] for line in differences(one, other)] == ["scheduler"]
    assert (again, first, second) == (one, None, None)
    assert third is not None


def measurement(candidate: Candidate, environment: str, sampling: Sampling) -> Measurement:
    one = Interval(1.0, 1.0, 1.0)
    quality = Quality(one, psnr_db=30.0, ssim=0.9, lpips_per_sample=(1.0,))
    return Measurement(candidate, environment, sampling, one, one, estimates_agree=True, quality=quality, blocks=())
