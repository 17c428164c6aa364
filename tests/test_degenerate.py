"""Pipelines that draw nothing: every candidate would look perfect beside them, so nothing is searched."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from echo import Echo
from PIL import Image
from safetensors.numpy import load_file, save_file
from searches import SearchFolder, SmallSearch, embedded_folder, open_run

from pytest_diffaccel.matrix import Cell
from pytest_diffaccel.measure.degenerate import degenerate
from pytest_diffaccel.search.pipelines import NoPipeline

VAE = "vae/diffusion_pytorch_model.safetensors"


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


def blacken(tensors: dict[str, Any]) -> None:
    tensors["decoder.conv_out.weight"] *= 0


def spoil(tensors: dict[str, Any]) -> None:
    tensors["decoder.conv_out.weight"][...] = np.nan


@pytest.mark.parametrize("break_vae", [blacken, spoil])
@pytest.mark.parametrize("exhaustive", [False, True])
def test_a_baseline_of_one_colour_is_refused_before_any_candidate(
    small_search: SmallSearch, break_vae: Callable[[dict[str, Any]], None], exhaustive: bool
) -> None:
    folder = small_search.path / "broken"
    shutil.copytree(embedded_folder("SD1.5"), folder)
    tensors = load_file(folder / VAE)
    break_vae(tensors)
    save_file(tensors, folder / VAE)
    models = f'"SD1.5" = {{ path = "{folder}", height = 32, width = 32 }}\n'
    (small_search.path / "models.toml").write_text(models, encoding="utf-8")
    result = small_search.run() if exhaustive else small_search.race()
    result.stdout.fnmatch_lines(["*SD1.5-DDIM-20: the unaccelerated pipeline draws nothing*one colour*a VAE that*"])
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.no_fnmatch_line("*Error*")
    assert not small_search.golden.exists()
    assert small_search.stored() == []
    assert small_search.failures() == []
