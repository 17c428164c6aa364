"""Pipelines that draw nothing: every candidate would look perfect beside them, so nothing is searched."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from echo import NOTHING, OVERFLOW, Echo
from PIL import Image
from safetensors.numpy import load_file, save_file
from searches import SearchFolder, SmallSearch, embedded_folder, open_run

from pytest_diffaccel.matrix import Cell
from pytest_diffaccel.measure.degenerate import degenerate
from pytest_diffaccel.records.golden_file import read_golden
from pytest_diffaccel.search.pipelines import NoPipeline

VAE = "vae/diffusion_pytorch_model.safetensors"
UNET = "unet/diffusion_pytorch_model.safetensors"
TEXT_ENCODER = "text_encoder/model.safetensors"


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8))


def test_what_says_nothing_is_told_in_words() -> None:
    plain = Image.new("RGB", (8, 8), (3, 0, 200))
    assert degenerate([picture(0), picture(1)]) is None
    assert degenerate([picture(0)]) is None
    told = degenerate([picture(0), plain, plain])
    assert told is not None
    assert told.startswith("2 of 3 pictures have one colour")
    told = degenerate([picture(0), picture(0)])
    assert told is not None
    assert told.startswith("all 2 pictures are the same")


def test_what_rounding_leaves_is_nothing() -> None:
    """A level up or down in every pixel."""
    noise = np.random.default_rng(0).integers(-1, 2, (8, 8, 3))
    grey = Image.fromarray((128 + noise).astype(np.uint8))
    moved = Image.fromarray((np.asarray(picture(0)).clip(1, 254) + noise).astype(np.uint8))
    assert degenerate([grey, picture(0)]) is not None
    assert degenerate([picture(0), moved]) is not None
    assert degenerate([picture(0), moved, picture(1)]) is None
    assert degenerate([Image.fromarray((128 + 4 * noise).astype(np.uint8))]) is None


@pytest.mark.parametrize("options", ["height = 16, width = 32", ""], ids=["as asked for", "the pipeline's own"])
def test_pictures_too_small_to_compare_are_refused_where_a_pipeline_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: str
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = SearchFolder(tmp_path)
    text = (folder.path / "models.toml").read_text(encoding="utf-8")
    text = text.replace("height = 32, width = 32, ", f"{options}, " if options else "")
    (folder.path / "models.toml").write_text(text, encoding="utf-8")
    small = SimpleNamespace(unet=SimpleNamespace(config=SimpleNamespace(sample_size=2)), vae_scale_factor=8)
    monkeypatch.setattr("pytest_diffaccel.search.pipelines.load_pipeline", lambda *_, **__: small)
    run = open_run(methods=[Echo([(10, 0)])])
    with pytest.raises(NoPipeline, match=r"pictures of \d\d x 16 pixels cannot be compared: LPIPS needs"):
        run.bench.pipelines.of(Cell("SD1.5", "DDIM", 20))
    run.close()


def blacken(folder: Path) -> None:
    change(folder / VAE, lambda weight: weight * 0, "decoder.conv_out.weight")


def pale(folder: Path) -> None:
    change(folder / VAE, lambda weight: weight * 1e-3, "decoder.conv_out.weight")


def spoil(folder: Path) -> None:
    change(folder / VAE, lambda weight: weight * np.nan, "decoder.conv_out.weight")


def overflow(folder: Path) -> None:
    change(folder / UNET, lambda weight: weight * np.inf, "conv_out.weight")


def deafen(folder: Path) -> None:
    """All words mean the same."""
    name = "text_model.embeddings.token_embedding.weight"
    change(folder / TEXT_ENCODER, lambda weight: weight * 0, name)


def change(path: Path, changed: Callable[[Any], Any], name: str) -> None:
    tensors = load_file(path)
    tensors[name] = changed(tensors[name])
    save_file(tensors, path)


@pytest.mark.parametrize(
    ("broken", "exhaustive", "shown"),
    [
        (blacken, False, "one colour"),
        (blacken, True, "one colour"),
        (spoil, True, "one colour"),
        (overflow, False, "one colour"),
        (pale, True, "nearly one"),
        (deafen, False, "the same picture for '*' as for '*' from the same noise"),
    ],
)
def test_a_baseline_that_says_nothing_is_refused_before_any_candidate(
    small_search: SmallSearch, broken: Callable[[Path], None], exhaustive: bool, shown: str
) -> None:
    folder = small_search.path / "broken"
    shutil.copytree(embedded_folder("SD1.5"), folder)
    broken(folder)
    models = f'"SD1.5" = {{ path = "{folder}", height = 32, width = 32 }}\n'
    (small_search.path / "models.toml").write_text(models, encoding="utf-8")
    result = small_search.run() if exhaustive else small_search.race()
    said = f"*SD1.5-DDIM-20: the unaccelerated pipeline draws nothing*{shown}*a VAE that*scheduler_config*a tokenizer*"
    result.stdout.fnmatch_lines([said])
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.no_fnmatch_line("*Error*")
    assert not small_search.golden.exists()
    assert small_search.stored() == []
    assert small_search.failures() == []


OWN_TEST = """
def test_mine(diffaccel):
    diffaccel("SD1.5", {"Echo": {"echo_interval": 10, "mishap": 8}}, blocks=1)
"""


def test_a_candidate_that_draws_nothing_fails_in_words_and_wins_nothing(
    small_search: SmallSearch, one_pipeline: None
) -> None:
    """However many losses are allowed; so does a test of the user's own."""
    small_search.register((10, NOTHING), (20, OVERFLOW))
    (small_search.path / "test_own.py").write_text(OWN_TEST, encoding="utf-8")
    result = small_search.run("test_own.py")
    said = "these parameters draw nothing: 1 of 1 pictures have one colour or nearly one*"
    result.assert_outcomes(passed=2, failed=2)
    result.stdout.fnmatch_lines([f"*diffaccel: SD1.5-DDIM-20 Echo: {said}", said, said])
    assert "another exception" not in result.stdout.str()
    ((key, kind, message),) = small_search.failures()
    assert (key, kind) == ("SD1.5-DDIM-20-Echo-echo_interval=20,mishap=8", "error")
    assert message.startswith("these parameters draw nothing")
    found = read_golden(small_search.golden).values()
    assert {entry.params["Echo"]["echo_interval"] for entry in found} == {10}
