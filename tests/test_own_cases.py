"""Cases of the user's own: any parameters, diffusers scheduler and number of steps, from a test file of three lines."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from searches import SmallSearch

from pytest_diffaccel import accelerate
from pytest_diffaccel.models.schedulers import check_scheduler

#: Those that docs/models.md names, beside the three of the cells.
ONE_CALL_A_STEP = (
    "DDPMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "LMSDiscreteScheduler",
)
SEVERAL_CALLS_A_STEP = ("HeunDiscreteScheduler", "KDPM2DiscreteScheduler", "PNDMScheduler")
IDENTITIES = {
    "DeepCache": {"cache_interval": 1, "cache_branch_id": 0},
    "T-Gate": {"gate_step": 5, "sp_interval": 1, "fi_interval": 1, "warm_up": 0},
    "ToMe": {"ratio": 0, "max_downsample": 2},
}
OWN_TEST = """
def test_mine(diffaccel):
    result = diffaccel("SD1.5", {"DeepCache": {"cache_interval": 4, "cache_branch_id": 0}},
                       scheduler="EulerDiscreteScheduler", steps=12, blocks=1)
    assert result.fired["cached_steps"] == 9
    assert result.speedup.low > 100, "not that fast"
"""


def images(pipeline: Any, params: dict[str, Any]) -> list[Any]:
    with accelerate(pipeline, params, steps=5, height=32, width=32) as generate:
        return [np.asarray(image) for image in generate(["red apple", "smiling face"], [3, 4])]


@pytest.mark.parametrize("scheduler", ONE_CALL_A_STEP)
def test_identity_settings_give_the_baselines_images(pipeline_of: Any, scheduler: str) -> None:
    pipeline = pipeline_of("SD1.5", scheduler)
    assert type(pipeline.scheduler).__name__ == scheduler
    baseline = images(pipeline, {})
    for name, point in IDENTITIES.items():
        assert np.array_equal(images(pipeline, {name: point}), baseline), name
    cached = images(pipeline, {"DeepCache": {"cache_interval": 2, "cache_branch_id": 0}})
    assert not np.array_equal(cached, baseline)


@pytest.mark.parametrize("scheduler", SEVERAL_CALLS_A_STEP)
def test_schedulers_that_call_the_denoiser_oftener_are_refused(pipeline_of: Any, scheduler: str) -> None:
    with pytest.raises(ValueError, match=f"{scheduler} (visits timestep|calls the denoiser)"):
        images(pipeline_of("SD1.5", scheduler), {})


@pytest.mark.parametrize("name", ["Euler", "FlowMatchHeunDiscreteScheduler", "StableDiffusionPipeline"])
def test_what_is_no_scheduler_of_stable_diffusion_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=rf"no scheduler '{name}'; valid: DDIM, .*EulerDiscreteScheduler"):
        check_scheduler(name)


def test_a_test_file_of_ones_own_measures_and_reports(small_search: SmallSearch, one_pipeline: None) -> None:
    path = small_search.path
    (path / "test_own.py").write_text(OWN_TEST, encoding="utf-8")
    options = ("--models", "models.toml", "--pipe", "SD1.5", "--num-samples", "1", "--batch-size", "1")
    result = small_search.pytester.runpytest_inprocess("test_own.py", *options, "--junitxml", "junit.xml")
    result.assert_outcomes(failed=1)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*not that fast*"])
    report = (path / "junit.xml").read_text(encoding="utf-8")
    assert 'value="SD1.5-EulerDiscreteScheduler-12-DeepCache-cache_interval=4,cache_branch_id=0"' in report
    assert '<property name="fired_cached_steps" value="9"' in report
    assert not small_search.golden.parent.exists()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ('"SD3", {"ToMe": {"ratio": 0.5, "max_downsample": 1}}', "no pipe 'SD3'; valid: SD1.5, SD2.1, SDXL"),
        ('"SD1.5", {}', "params is empty; name a method"),
        ('"SD1.5", {"ToMe": {"ratio": 0.5, "max_downsample": 1}}, blocks=0', "blocks=0; time at least 1"),
        ('"SD1.5", {"ToMe": {"ratio": 0.5, "max_downsample": 1}}, scheduler="Heun"', "no scheduler 'Heun'; valid:"),
    ],
)
def test_bad_values_are_named_before_anything_is_measured(
    pytester: pytest.Pytester, everything_imported: None, call: str, message: str
) -> None:
    pytester.makepyfile(f"def test_mine(diffaccel):\n    diffaccel({call})\n")
    result = pytester.runpytest_inprocess()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([f"*{message.replace('[', '[[]')}*"])


def test_the_package_runs_as_a_module() -> None:
    for module in ("pytest_diffaccel", "pytest_diffaccel.cli"):
        run = subprocess.run([sys.executable, "-m", module, "--help"], capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stderr
        assert "generate" in run.stdout
