"""Pipelines that draw nothing: every candidate would look perfect beside them, so nothing is searched."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file
from searches import SmallSearch, embedded_folder

from pytest_diffaccel.measure.quality import degenerate

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
