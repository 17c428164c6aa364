"""What only a CUDA device shows: device time, memory measured and run out of. Run with ``pytest -m gpu tests``."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from searches import SmallSearch
from small_clip import make_clip

from pytest_diffaccel import accelerate, load_pipeline
from pytest_diffaccel.measure.busy_clock import busy
from pytest_diffaccel.measure.clock import timed
from pytest_diffaccel.measure.gpu_watch import GpuWatch
from pytest_diffaccel.measure.metrics.base import scores_of
from pytest_diffaccel.measure.metrics.registry import MetricRegistry
from pytest_diffaccel.measure.quality import References
from pytest_diffaccel.models.clip import ClipSource

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.fixture
def little_memory() -> Iterator[None]:
    """Leaves this process 64 MiB of the device."""
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(64 * 2**20 / total)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)


def test_device_time_of_each_step() -> None:
    pipeline = load_pipeline("SD1.5", device="cuda")
    params = {"DeepCache": {"cache_interval": 2, "cache_branch_id": 0}}
    with accelerate(pipeline, params, steps=6, guidance_scale=5.0) as generate:
        generate(["red apple"] * 8, range(8))
        _, device = busy(generate, ["red apple"] * 8, range(8))
        _, wall = timed(generate, ["red apple"] * 8, range(8))
    full, shallow = device.step_s[::2], device.step_s[1::2]
    assert 0 < max(shallow) < min(full)
    assert sum(device.step_s) < device.total_s < wall.total_s


def test_the_gpu_is_watched() -> None:
    watch = GpuWatch.of(torch.device("cuda", 0))
    assert watch is not None
    end = watch.begin()
    torch.ones(4096, 4096, device="cuda").matmul(torch.ones(4096, 4096, device="cuda")).sum().item()
    assert end() == ""  # our own work
    assert watch.clock.highest_mhz > 100


def test_ssim_of_pictures_on_the_device_is_that_of_the_processor() -> None:
    generator = np.random.default_rng(1)
    one, other = (Image.fromarray(generator.integers(0, 256, (512, 512, 3), dtype=np.uint8)) for _ in range(2))
    there, here = (References([other], device).score([one]).ssim for device in ("cuda", "cpu"))
    assert there == pytest.approx(here, abs=1e-12)


def test_metrics_are_the_same_on_the_device_and_leave_its_memory_alone(tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    one, other = (Image.fromarray(generator.integers(0, 256, (64, 64, 3), dtype=np.uint8)) for _ in range(2))
    metrics = MetricRegistry(ClipSource.from_option(str(make_clip(tmp_path))))
    for name, within in (("psnr", 0), ("ssim", 1e-12), ("clip_score", 1e-3), ("lpips", 1e-3)):
        before = torch.cuda.memory_allocated()
        there, here = (
            scores_of(metrics[name], [one], [other], ["red apple"], device=device) for device in ("cuda", "cpu")
        )
        assert there == pytest.approx(here, abs=within), name
        assert name == "lpips" or torch.cuda.memory_allocated() == before, name


def test_the_gate_says_how_busy_the_gpu_was(small_search: SmallSearch) -> None:
    small_search.run("--gpus").assert_outcomes(passed=4)
    small_search.run("--gpus", "--gate", "--update-golden", "--junitxml", "gate.xml")
    figures = (small_search.path / "gate.xml").read_text()
    share = re.search(r'name="gpu_busy_share" value="([0-9.]+)"', figures)
    assert share, figures
    assert 0 < float(share[1]) < 1


def test_a_search_measures_memory_on_the_device(small_search: SmallSearch) -> None:
    small_search.run("--gpus").assert_outcomes(passed=4)
    rows = small_search.query("SELECT * FROM diffaccel_measurements LIMIT 1")
    assert rows
    assert small_search.golden.is_file()
    environments = json.loads((small_search.golden.parent / "environments.json").read_text())
    assert {one["device"] for one in environments.values()} == {torch.cuda.get_device_name(0)}


def test_running_out_of_memory_names_a_batch_that_may_fit(small_search: SmallSearch, little_memory: None) -> None:
    result = small_search.run("--gpus", "--num-samples", "64", "--batch-size", "64")
    result.stdout.fnmatch_lines(["*out of memory at batch size 64: try --batch-size 32*"])


def test_the_judge_runs_and_repeats_scripts_on_the_device() -> None:
    """A confined process may use CUDA, and draws what the judge draws there."""
    folder = Path(__file__).resolve().parent.parent
    options = ["--ids", "192", "--stages", "static,runs", "-p", "no:cacheprovider"]
    result = subprocess.run([sys.executable, "-m", "pytest", "codegen", *options], cwd=folder, capture_output=True)
    assert result.returncode == 0, result.stdout.decode()
