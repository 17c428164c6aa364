"""Environment fingerprints: identity only, the same in every process, and differences in words."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from pytest_diffaccel.gate.environments import Comparison, refusal
from pytest_diffaccel.matrix import Cell
from pytest_diffaccel.records import environment as module
from pytest_diffaccel.records.environment import Environment, describe_environment, differences
from pytest_diffaccel.records.found_out import QualityScale

ENVIRONMENT = Environment(
    pipe="SD1.5",
    model_source="embedded stand-in, not SD1.5",
    weights={"unet": "a" * 64, "vae": "b" * 64},
    device="NVIDIA H200",
    driver="570.86.15",
    threads=2,
    versions={"python": "3.11.9", "torch": "2.13.0", "DeepCache": "0.1.1"},
    dtype="float16",
    image_size=(64, 96),
    batch_size=4,
    guidance_scale=7.5,
)


GOLDEN = Path(__file__).resolve().parents[1] / "golden"


def describe(folder: Path, **changes: Any) -> Environment:
    known: dict[str, Any] = {
        "pipe": "SD1.5",
        "model_source": "a test's own",
        "weights": {"unet": folder},
        "device": "cpu",
        "dtype": "float32",
        "image_size": (64, 64),
        "batch_size": 4,
        "guidance_scale": 5,
    }
    return describe_environment(**{**known, **changes})


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    folder = tmp_path / "unet"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights" * 300_000)  # more than a chunk
    return folder


def test_id_is_the_hash_of_canonical_json() -> None:
    canonical = json.dumps(ENVIRONMENT.to_json(), sort_keys=True, separators=(",", ":"))
    assert ENVIRONMENT.id == hashlib.sha256(canonical.encode()).hexdigest()[:12]


def test_id_ignores_the_order_of_names_and_the_type_of_a_whole_number() -> None:
    one = replace(ENVIRONMENT, guidance_scale=5)
    other = replace(ENVIRONMENT, guidance_scale=5.0, versions=dict(reversed(list(ENVIRONMENT.versions.items()))))
    assert one == other
    assert one.id == other.id
    assert hash(one) == hash(other)


@pytest.mark.parametrize("name", [field.name for field in fields(Environment) if field.compare])
def test_every_field_changes_the_id(name: str) -> None:
    value = getattr(ENVIRONMENT, name)
    other: Any = {**value, "new": "1"} if isinstance(value, dict) else (value * 2)
    assert replace(ENVIRONMENT, **{name: other}).id != ENVIRONMENT.id


def test_json_round_trip() -> None:
    defaults: dict[str, bool | int] = {"clip_sample": False, "steps_offset": 1}
    known = replace(ENVIRONMENT, settings={"vae": "c" * 64}, scheduler_defaults=defaults)
    for one in (ENVIRONMENT, known):
        assert Environment.from_json(json.dumps(one.to_json())) == one


def test_what_older_versions_recorded_keeps_its_id() -> None:
    recorded = json.loads((GOLDEN / "environments.json").read_text(encoding="utf-8"))
    assert recorded
    for name, fields_of_one in recorded.items():
        assert Environment.from_json(json.dumps(fields_of_one)).id == name
    assert not {"settings", "scheduler_defaults"} & set(ENVIRONMENT.to_json())


@pytest.mark.parametrize("change", [{"threads": "2"}, {"clock_mhz": 1400}, {"image_size": [64]}])
def test_from_json_refuses_what_is_no_environment(change: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Environment.from_json(json.dumps({**ENVIRONMENT.to_json(), **change}))


def test_differences_in_words() -> None:
    other = replace(
        ENVIRONMENT,
        versions={"python": "3.11.9", "torch": "2.14.1", "tgate": "1.0.0"},
        weights={"unet": "c" * 64, "vae": "b" * 64},
        image_size=(64, 64),
        driver="",
    )
    assert differences(ENVIRONMENT, ENVIRONMENT) == []
    assert differences(ENVIRONMENT, other) == [
        "unet weights aaaaaaaaaaaa -> cccccccccccc",
        "driver 570.86.15 -> none",
        "torch 2.13.0 -> 2.14.1",
        "DeepCache 0.1.1 -> absent",
        "tgate absent -> 1.0.0",
        "image size 64x96 -> 64x64",
    ]


def test_differences_name_the_component_that_is_set_otherwise() -> None:
    one = replace(ENVIRONMENT, settings={"scheduler": "a" * 64, "vae": "b" * 64})
    other = replace(one, settings={"scheduler": "c" * 64, "vae": "b" * 64}, scheduler_defaults={"clip_sample": False})
    assert differences(one, other) == [
        "scheduler settings aaaaaaaaaaaa -> cccccccccccc",
        "clip_sample (open in the model's scheduler) absent -> False",
    ]
    assert differences(ENVIRONMENT, one) == ["settings not recorded -> recorded"]


def test_the_gate_refuses_other_settings_where_both_are_known() -> None:
    one = replace(ENVIRONMENT, settings={"scheduler": "a" * 64})
    other = replace(one, settings={"scheduler": "c" * 64}, threads=7)
    compared = Comparison.between(one, other)
    assert compared.refused == ("scheduler settings aaaaaaaaaaaa -> cccccccccccc",)
    assert compared.causes == ("threads 2 -> 7",)
    older = Comparison.between(ENVIRONMENT, one)
    assert (older.refused, older.causes) == ((), ("settings not recorded -> recorded",))


def test_the_gate_advises_a_search_with_the_models_and_gpus_that_it_was_run_with() -> None:
    """Golden is another file then, whatever was named."""
    compared = Comparison.between(ENVIRONMENT, replace(ENVIRONMENT, device="another"))
    place = ("--gpus=0", "--golden", "golden/one.json", "--models", "my models.toml")
    said = refusal(compared, Path("golden/one.json"), Cell("SD1.5", "DDIM", 20), place)
    assert said.startswith("golden/one.json was recorded elsewhere: device ")
    assert said.endswith(
        "--pipe SD1.5 --sched DDIM --steps 20 --gpus=0 --models 'my models.toml' "
        "--golden golden/THIS_DEVICE.search_params.json"
    )
    assert "one.json" not in said.partition("elsewhere")[2]


def test_describes_this_process(weights: Path) -> None:
    import torch

    found = describe(weights, dtype=torch.bfloat16)
    assert found.dtype == "bfloat16"
    assert found.threads == torch.get_num_threads()
    assert found.driver == ""
    assert found.device.endswith(f"({len(os.sched_getaffinity(0))} cores)")
    assert found.versions["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found.versions["torch"].split("+")[0] == torch.__version__.split("+")[0]
    digest = hashlib.sha256((weights / "model.safetensors").read_bytes()).hexdigest()
    assert found.weights == {"unet": digest}


def test_describing_twice_is_equal_and_hashes_a_file_once(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = describe(weights)
    with monkeypatch.context() as patch:
        patch.setattr(hashlib, "sha256", lambda: pytest.fail("hashed again"))
        again = module.weights_identity(weights)
    assert again == first.weights["unet"]
    assert describe(weights).id == first.id


def test_changed_weights_are_another_environment(weights: Path) -> None:
    before = describe(weights)
    (weights / "model.safetensors").write_bytes(b"other weights")
    assert describe(weights).id != before.id


def test_weights_by_folder_files_and_revision(weights: Path) -> None:
    (weights / "more").mkdir()
    (weights / "more" / "shard.safetensors").write_bytes(b"shard")
    files = [weights / "more" / "shard.safetensors", weights / "model.safetensors"]
    found = describe(weights, weights={"folder": weights, "files": files, "hub": "owner/name@4f2a"}).weights
    assert found["hub"] == "owner/name@4f2a"
    assert found["folder"] == found["files"]
    assert len(found["folder"]) == 64


def test_missing_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no safetensors file"):
        describe(tmp_path)
    with pytest.raises(FileNotFoundError):
        describe(tmp_path, weights={"unet": tmp_path / "gone.safetensors"})


def test_driver_is_empty_without_nvidia_smi(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert module.driver_version.__wrapped__() == ""


def test_driver_is_asked_of_nvidia_smi(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake = tmp_path / "nvidia-smi"
    fake.write_text("#!/bin/sh\necho 570.86.15\necho 570.86.15\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert module.driver_version.__wrapped__() == "570.86.15"


def test_importing_needs_no_torch() -> None:
    code = "import sys, pytest_diffaccel.records.environment as _; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_scale_of_losses_is_no_difference() -> None:
    measured = replace(ENVIRONMENT, scale=QualityScale(repeat=0.0, batch=1e-7, one_ulp=1e-7, unrelated=0.2))
    assert differences(measured, ENVIRONMENT) == []
    assert differences(measured, replace(measured, driver="575.1")) == ["driver 570.86.15 -> 575.1"]
