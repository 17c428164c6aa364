"""The judge: what it makes of honest scripts, and how it catches every cheat of ``tests/cheats``."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image
from searches import embedded_folder
from small_clip import make_clip

from pytest_diffaccel.accelerators.base import InvalidParams
from pytest_diffaccel.accelerators.registry import default_registry
from pytest_diffaccel.codegen.lookup import Answer, find, update_command
from pytest_diffaccel.codegen.script import render
from pytest_diffaccel.codegen.tasks import Task, all_tasks
from pytest_diffaccel.judge import DIFFBENCH, OURS, live_speed, trial, work_clock
from pytest_diffaccel.judge.channel import Channel, ChannelClosed, ChannelError
from pytest_diffaccel.judge.claim import Arguments, Claim
from pytest_diffaccel.judge.confine.folder import FolderTooFull
from pytest_diffaccel.judge.confine.limits import Limits
from pytest_diffaccel.judge.judge import Judge, Rules
from pytest_diffaccel.judge.live_call import LiveCall, difference_levels
from pytest_diffaccel.judge.replay import SAME_LEVELS, Replay
from pytest_diffaccel.judge.scores import Scores
from pytest_diffaccel.judge.script_verdict import ScriptVerdict, StageResult
from pytest_diffaccel.judge.static import judge_source
from pytest_diffaccel.matrix import PIPES
from pytest_diffaccel.models.clip import ClipSource
from pytest_diffaccel.models.registry import ModelSource
from pytest_diffaccel.records.golden_file import Golden

ROOT = Path(__file__).resolve().parents[1]
CHEATS = Path(__file__).resolve().parent / "cheats"
#: SD1.5, DDIM, 20 steps, DeepCache, 1.5x: what every cheat pretends to be.
TASK_ID = "193"
#: What is said of those that are timed until the verdict is sure.
TIMED = "lies below"
# By file: the stage that fails and words of its complaint.
CAUGHT = {
    "fewer_steps": ("runs", "num_inference_steps: 10, not 20"),
    "hidden_steps": ("runs", "not those of its settings"),
    "smaller_image": ("runs", "image size: 32x32, not 64x64"),
    "smaller_batch": ("runs", "not those of its settings"),
    "another_scheduler": ("runs", "scheduler: EulerDiscreteScheduler, not DDIMScheduler"),
    "scheduler_settings": ("runs", "scheduler setting timestep_spacing: 'trailing'"),
    "stored_images": ("runs", "not those of its settings"),
    "replaced_judge": ("runs", "not those of its settings"),
    "forged_messages": ("runs", "not those of its settings"),
    "no_guidance": ("runs", "guidance_scale: 1.0 is not from 2 to 20"),
    "overflowing_guidance": ("runs", "guidance_scale: 1e+38 is not from 2 to 20"),
    "barely_guided": ("runs", "guidance_scale: 1.000001 is not from 2 to 20"),
    "same_negative": ("runs", "not those of its settings"),
    "own_embeddings": ("runs", "argument prompt_embeds, which the judge does not repeat"),
    "endless_prompt": ("runs", "prompt: string should have at most 2000 characters"),
    "half_guidance": ("runs", "not those of its settings"),
    "fake_ratio": ("runs", "accelerators: none, not DeepCache"),
    "exits_early": ("runs", "made no image"),
    "endless_loop": ("runs", "did not end within"),
    "fork_bomb": ("runs", "PermissionError"),
    "starts_programs": ("runs", "PermissionError"),
    "hoards_memory": ("runs", "MemoryError"),
    "writes_outside": ("runs", "PermissionError"),
    "uses_network": ("runs", "PermissionError"),
    "kills_the_judge": ("runs", "PermissionError"),
    "baseline_images": ("runs", "not those of its settings"),
    "patched_libraries": ("runs", "not those of its settings"),
    "fills_the_disk": ("runs", "256 MB are allowed"),
    "deletes_and_holds": ("runs", "256 MB are allowed"),
    "leaves_a_maze": ("runs", "hides files"),
    "memory_in_files": ("runs", "PermissionError"),
    "renices_the_judge": ("runs", "PermissionError"),
    "pins_the_judge": ("runs", "PermissionError"),
    "signals_by_thread": ("runs", "PermissionError"),
    "sets_the_clock": ("runs", "PermissionError"),
    "paints_the_terminal": ("runs", "[32mtest_script[193] PASSED"),
    "breaks_the_judge": ("runs", "cannot be repeated: "),
    "endless_claim": ("runs", "1024 images in one call"),
    "false_confession": ("runs", "sent what is no call"),
    "kept_images": ("speed", "gives other images when it is timed"),
    "idle_between": ("speed", "gives other images when it is timed"),
    "busy_neighbour": ("speed", TIMED),
    "more_threads": ("speed", TIMED),
    "queues_behind_itself": ("speed", TIMED),
    "patched_time": ("speed", TIMED),
    "slowed_baseline": ("speed", TIMED),
    "slow_script": ("speed", TIMED),
}


@pytest.fixture(scope="session")
def records() -> Golden:
    return Golden.read(ROOT / "golden" / "search_params.json")


@pytest.fixture(scope="session")
def judge_of(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Judge]]:
    """Gives the session's judge with other stages or limits: its fork server is started once."""
    for pipe in PIPES:
        embedded_folder(pipe)
    lock = tmp_path_factory.mktemp("judge") / "timing.lock"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIFFACCEL_SECRET", "swordfish")
        judge = Judge(Rules(lock=lock))

        def get(*stages: str, seconds: float = 60.0, rules: tuple[str, ...] = (OURS,), **more: Any) -> Judge:
            judge.rules = replace(judge.rules, stages=stages, limits=Limits(seconds=seconds), rules=rules, **more)
            return judge

        yield get
        judge.close()


def cheat(name: str) -> bytes:
    return (CHEATS / f"{name}.py").read_bytes()


# The same at 4x: sleeping for nine times as long as a generation takes would reach it, and a busy machine does not.
FOUR_TIMES_ID = "198"


def task(prompt_id: str = TASK_ID) -> Task:
    return all_tasks()[prompt_id]


def result(verdict: ScriptVerdict, stage: str) -> StageResult:
    found = verdict.of(stage)
    assert found is not None
    return found


# Honest scripts


def test_an_honest_script_of_any_structure_passes(judge_of: Callable[..., Judge]) -> None:
    verdict = judge_of("static", "runs", "speed").judge(TASK_ID, task(), cheat("honest"), None)
    assert verdict.passed, verdict.failures
    runs = result(verdict, "runs").figures
    assert (runs["denoiser_calls"], runs["scheduler_steps"], runs["images"], runs["image_size"]) == (
        20,
        20,
        1,
        [64, 64],
    )
    assert runs["params"] == {"DeepCache": {"cache_interval": 2, "cache_branch_id": 0}}
    low, high = result(verdict, "speed").figures["speedup_ci95"]
    assert 1 < low < high


def test_a_script_is_judged_by_both_rules(judge_of: Callable[..., Judge], tmp_path: Path) -> None:
    """The second in two calls of one picture; what a CLIP of random numbers says of them is all the same."""
    asked = judge_of(
        *("runs", "speed", "quality"),
        rules=(OURS, DIFFBENCH),
        diffbench_prompts=2,
        clip=ClipSource.from_option(str(make_clip(tmp_path))),
    )
    verdict = asked.judge(TASK_ID, task(), cheat("honest"), None)
    assert [stage.stage for stage in verdict.stages] == ["runs", "speed", "quality", "diffbench"]
    assert result(verdict, "quality").outcome == "skipped"
    assert result(verdict, "speed").outcome == verdict.under(OURS) == verdict.outcome
    measured = result(verdict, DIFFBENCH)
    figures = measured.figures
    assert (figures["prompts"], figures["batch_size"], figures["target"]) == (2, 1, 1.5)
    assert figures["speedup"] > 1
    assert figures["unaccelerated_clip_score"] > 0
    is_lost = figures["clip_score"] < 0.95 * figures["unaccelerated_clip_score"]
    assert measured.outcome == ("failed" if figures["speedup"] < 1.5 or is_lost else "passed")
    assert verdict.under(DIFFBENCH) == measured.outcome


# Calls that the judge does not repeat: of two embeddings, and of far too many letters.
EMBEDDED = """
pair = pipe.encode_prompt(["red apple", "green tree"], "cpu", 1, True)
pipe(prompt_embeds=pair[0], negative_prompt_embeds=pair[1], num_inference_steps=2, height=32, width=48)
"""
ENDLESS = """
pipe("apple, " * 1500, num_inference_steps=2)
"""


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        (EMBEDDED, "", "argument prompt_embeds, which the judge does not repeat"),
        ("", ENDLESS, "at most 2000 character"),
    ],
    ids=["before", "after"],
)
def test_a_call_beside_the_judged_one_that_cannot_be_repeated_is_noted(
    judge_of: Callable[..., Judge], before: str, after: str, words: str
) -> None:
    head, judged = cheat("honest").decode().split("image = pipe(")
    script = f"{head}{before}image = pipe({judged}{after}"
    verdict = judge_of("runs").judge(TASK_ID, task(), script.encode(), None)
    assert verdict.passed, verdict.failures
    runs = result(verdict, "runs")
    assert runs.figures["images"] == 1
    assert runs.detail.startswith(
        "beside the call that is judged it called its pipeline in a way that cannot be judged: "
    )
    assert words in runs.detail


# An accelerator each, with pipes and schedulers in turns; 20 steps.
@pytest.mark.parametrize("prompt_id", ["192", "703", "1214", "339", "850", "983"])
def test_rendered_scripts_of_every_accelerator_run(
    judge_of: Callable[..., Judge], records: Golden, prompt_id: str
) -> None:
    answer = find(task(prompt_id), records)
    verdict = judge_of("static", "runs").judge(prompt_id, answer.task, render(answer).encode(), answer)
    assert verdict.passed, verdict.failures
    assert result(verdict, "runs").figures["params"] == answer.entry.params


def test_quality_repeats_the_record(judge_of: Callable[..., Judge], records: Golden) -> None:
    answer = find(task(), records)
    verdict = judge_of("quality").judge(TASK_ID, answer.task, render(answer).encode(), answer)
    quality = result(verdict, "quality")
    assert quality.outcome == "passed"
    assert quality.figures["samples"] == answer.entry.num_samples
    # Other builds of torch give other pictures; the interval is the record's own.
    low, high = answer.entry.lpips_ci95 or (0, 0)
    assert low <= quality.figures["lpips"] <= high


def test_settings_that_lose_too_much_fail_in_quality(judge_of: Callable[..., Judge], records: Golden) -> None:
    worse = cheat("honest").replace(b"cache_interval=2", b"cache_interval=10")
    verdict = judge_of("quality").judge(TASK_ID, task(), worse, find(task(), records))
    assert result(verdict, "quality").outcome == "failed"
    assert "above the record's" in result(verdict, "quality").detail


def test_quality_is_that_of_the_records_guidance(judge_of: Callable[..., Judge], records: Golden) -> None:
    """Where guidance pulls less, what a method saves on it is missed less."""
    answer, lpips = find(task(), records), []
    for more in (b"", b", guidance_scale=2.0, negative_prompt='grey'"):
        script = cheat("honest").replace(b"num_inference_steps=20", b"num_inference_steps=20" + more)
        quality = result(judge_of("quality").judge(TASK_ID, task(), script, answer), "quality")
        lpips.append(quality.figures["lpips"])
    assert lpips[0] == lpips[1] > 0


def test_a_source_of_little_guidance_may_have_it(judge_of: Callable[..., Judge]) -> None:
    own, other = (Claim.from_header(claimed(guidance_scale=scale)).arguments for scale in (1.5, 1.4))
    assert own.oddities(1.5) == []
    assert other.oddities(1.5) == ["guidance_scale: 1.4 is not from 2 to 20, as people give it"]
    assert Claim.from_header(claimed(guidance_scale=1.0)).arguments.oddities(1.0)


@pytest.mark.slow
def test_a_script_goes_on_with_as_many_images_as_it_asked_for(judge_of: Callable[..., Judge], records: Golden) -> None:
    """However many the judge times at once."""
    found = find(task(), records)
    answer = replace(found, entry=replace(found.entry, batch_size=2))
    many = answer.entry.batch_size + 1
    text = cheat("honest").decode()
    single = 'pipe("red apple on a blue background", num_inference_steps=20).images[0]'
    assert single in text
    more = f'pipe(["red apple on a blue background"] * {many}, num_inference_steps=20).images[{many - 1}]'
    verdict = judge_of("runs", "speed").judge(TASK_ID, task(), text.replace(single, more).encode(), answer)
    assert result(verdict, "runs").outcome == "passed", verdict.failures


def unattainable(answer: Answer) -> Answer:
    entry = replace(answer.entry, status="unattainable", reason="speed", batch_size=1)
    return replace(answer, entry=entry, attained=False)


def test_a_miss_of_an_unattainable_target_is_expected(judge_of: Callable[..., Judge], records: Golden) -> None:
    verdict = judge_of("speed").judge("198", task("198"), cheat("honest"), unattainable(find(task(), records)))
    speed = result(verdict, "speed")
    assert (speed.outcome, verdict.passed) == ("xfailed", True)
    assert "4.0x is recorded as unattainable (speed)" in speed.detail


def test_reaching_an_unattainable_target_says_that_golden_is_out_of_date(
    judge_of: Callable[..., Judge], records: Golden
) -> None:
    fast = cheat("honest").replace(b"cache_interval=2", b"cache_interval=5")
    verdict = judge_of("speed").judge("192", task("192"), fast, unattainable(find(task("192"), records)))
    speed = result(verdict, "speed")
    assert (speed.outcome, verdict.passed) == ("xpassed", True)
    assert "golden is out of date" in speed.detail


def test_the_command_that_updates_golden_picks_one_group() -> None:
    command = update_command(task())
    assert command == "pytest --update-golden -k 'SD1.5-DDIM-20-DeepCache- or SD1.5-DDIM-20-DeepCache]'"


# Cheats


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (words == TIMED)) for name, (_, words) in CAUGHT.items()]
)
def test_a_cheat_is_caught(judge_of: Callable[..., Judge], name: str) -> None:
    stage, words = CAUGHT[name]
    seconds = 2.0 if name == "endless_loop" else 60.0
    stages = ("runs", "speed") if stage == "speed" else ("runs",)
    prompt_id = FOUR_TIMES_ID if name == "slowed_baseline" else TASK_ID
    verdict = judge_of(*stages, seconds=seconds).judge(prompt_id, task(prompt_id), cheat(name), None)
    assert [result.stage for result in verdict.failures] == [stage], verdict
    assert words in verdict.failures[0].detail


def test_every_cheat_has_its_test() -> None:
    assert {path.stem for path in CHEATS.glob("*.py")} == {*CAUGHT, "honest", "reads_secrets"}
    assert all(words for _, words in CAUGHT.values())


def test_nothing_remains_of_a_script(
    judge_of: Callable[..., Judge], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for name in ("leaves_a_maze", "honest"):
        judge_of("runs").judge(TASK_ID, task(), cheat(name), None)
    assert list(tmp_path.iterdir()) == []
    assert Path("/etc/passwd").is_file()


def test_a_script_stands_still_while_the_judge_works(judge_of: Callable[..., Judge]) -> None:
    states = []

    class Watching(LiveCall):
        def run(self) -> tuple[list[Any], list[int]]:
            found = super().run()
            time.sleep(0.1)  # a signal may take a moment
            # After the name in brackets: T is stopped.
            status = Path(f"/proc/{self._process.process}/stat").read_text(encoding="utf-8")
            states.append(status.rpartition(")")[2].split()[0])
            return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trial, "LiveCall", Watching)
        verdict = judge_of("runs").judge(TASK_ID, task(), cheat("honest"), None)
    assert verdict.passed, verdict.failures
    assert states == ["T"]


@pytest.mark.parametrize(
    ("threads", "device", "processor_s", "queued_s", "seconds"),
    [
        (1, "cpu", 2.0, 1.0, 2.0),  # others had the core for a second
        (1, "cpu", 1.5, 0.0, 3.0),  # it slept, or nothing counts what it waits
        (1, "cpu", 3.5, 2.5, 3.5),  # it waited for threads of its own
        (2, "cpu", 2.0, 1.0, 3.0),  # one thread waited, another may have worked
        (2, "cpu", 8.0, 0.0, 4.0),  # four threads, where the judge has two
        (1, "cuda", 0.5, 1.0, 3.0),  # the GPU did not wait
    ],
)
def test_what_counts_as_work(
    monkeypatch: pytest.MonkeyPatch, threads: int, device: str, processor_s: float, queued_s: float, seconds: float
) -> None:
    """Three seconds by the wall clock."""
    readings = [work_clock.Reading(10.0, 5.0, 7.0), work_clock.Reading(13.0, 5.0 + processor_s, 7.0 + queued_s)]
    monkeypatch.setattr(work_clock.WorkClock, "read", Mock(side_effect=readings))
    clock = work_clock.WorkClock(0, threads, device)
    assert clock.since(clock.read()) == seconds


@pytest.mark.skipif(not Path("/proc/self/schedstat").is_file(), reason="nothing counts what a process waits for a core")
def test_waiting_for_a_core_is_no_work() -> None:
    """Two processes on one core, of which each has half."""
    spin = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\nwhile True: pass"
    with (
        subprocess.Popen([sys.executable, "-c", spin]) as one,
        subprocess.Popen([sys.executable, "-c", spin]) as other,
    ):
        try:
            time.sleep(0.5)  # until both spin
            clock = work_clock.WorkClock(one.pid, 1, "cpu")
            began = clock.read()
            time.sleep(2)
            assert 0 < clock.since(began) < 1.5
        finally:
            one.kill()
            other.kill()


def test_a_process_that_is_gone_has_no_clocks() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    reading = work_clock.WorkClock(process.pid, 1, "cpu").read()
    assert (reading.processor_s, reading.queued_s) == (0, 0)


def test_secrets_of_the_environment_are_not_to_be_found(judge_of: Callable[..., Judge]) -> None:
    verdict = judge_of("runs").judge(TASK_ID, task(), cheat("reads_secrets"), None)
    assert verdict.passed, verdict.failures


def test_confinement_is_whole_here(judge_of: Callable[..., Judge]) -> None:
    judge = judge_of("runs")
    judge.judge(TASK_ID, task(), cheat("honest"), None)
    assert judge.missing == []


def test_one_step_less_shows_in_the_images() -> None:
    replay = Replay(ModelSource.from_option("embedded"), default_registry(), "cpu")
    call = Arguments(num_inference_steps=20, prompt="red apple", height=64, width=64, guidance_scale=5.0)
    images = replay.images(task(), call, {}, [0])
    fewer = replay.images(task(), replace(call, num_inference_steps=19), {}, [0])
    assert difference_levels(images, fewer) > 2 * max(SAME_LEVELS.values())
    assert difference_levels(images, replay.images(task(), call, {}, [0])) == 0


def test_what_the_pipeline_cannot_take_is_not_repeated() -> None:
    """Claims are checked where no pipeline is at hand: whether this UNet has such a branch is seen here."""
    replay = Replay(ModelSource.from_option("embedded"), default_registry(), "cpu")
    call = Arguments(num_inference_steps=20, prompt="red apple", height=64, width=64, guidance_scale=5.0)
    params = {"DeepCache": {"cache_interval": 2, "cache_branch_id": 12}}
    with pytest.raises(InvalidParams, match="DeepCache: cache_branch_id=12 must be a whole number from 0 to 11"):
        replay.counted(task(), call, params, [0])


# Parts


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("import torch", "import torch ("), "does not parse"),
        (("StableDiffusionPipeline", "StableDiffusionXLPipeline"), "pipeline: StableDiffusionXLPipeline"),
        (("DDIMScheduler", "PNDMScheduler"), "scheduler: PNDMScheduler, not DDIMScheduler"),
        (("num_inference_steps=20", "num_inference_steps=50"), "num_inference_steps: 50, not 20"),
        (("num_inference_steps=20", ""), "num_inference_steps: none, not 20"),
        (("from DeepCache import DeepCacheSDHelper", ""), "DeepCache not imported"),
        (("import torch", "import tomesd, torch"), "ToMe imported, which the task does not ask for"),
    ],
)
def test_static_names_what_differs(change: tuple[str, str], words: str) -> None:
    found = judge_source(cheat("honest").decode().replace(*change).encode(), task())
    assert found.outcome == "failed"
    assert words in found.detail


def test_static_reads_constants_and_tgates_own_loaders(records: Golden) -> None:
    for prompt_id in ("192", "199", "206", "213", "220", "227"):
        answer = find(task(prompt_id), records)
        assert judge_source(render(answer).encode(), answer.task) == StageResult("static", "passed")


CAFÉ = 'NAME = "café"\nassert len(NAME) == 4\n'


@pytest.mark.parametrize(
    "head",
    [("# -*- coding: latin-1 -*-\n" + CAFÉ).encode("latin-1"), CAFÉ.encode("utf-8-sig"), CAFÉ.encode()],
    ids=["cookie", "mark", "utf-8"],
)
def test_a_script_is_read_as_python_reads_it(judge_of: Callable[..., Judge], head: bytes) -> None:
    verdict = judge_of("static", "runs").judge(TASK_ID, task(), head + cheat("honest"), None)
    assert verdict.passed, verdict.failures


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (CAFÉ.encode("latin-1"), "does not parse: "),
        (b"# coding: klingon\n", "does not parse: unknown encoding: klingon"),
        (b"\0", "does not parse: "),
        (b"#" * 200_001, "does not parse: more than 200000 bytes"),
    ],
)
def test_what_python_cannot_read_fails_statically(source: bytes, words: str) -> None:
    found = judge_source(source + cheat("honest"), task())
    assert found.outcome == "failed"
    assert found.detail.startswith(words)


@pytest.mark.parametrize(
    "header",
    [
        {},
        {"event": "call", "pipe": 1},
        {"pipe": "SD1.5", "arguments": {"num_inference_steps": 10**9}},
    ],
)
def test_what_is_no_claim_is_refused(header: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"arguments: not given|num_inference_steps: input should be less"):
        Claim.from_header(header)


def claimed(**arguments: Any) -> dict[str, Any]:
    usual = {"num_inference_steps": 20, "prompt": "red apple", "height": 64, "width": 64, "guidance_scale": 5.0}
    given = {name: value for name, value in {**usual, **arguments}.items() if value is not None}
    return {
        "event": "call",
        "pipe": "SD1.5",
        "scheduler": "DDIMScheduler",
        "scheduler_config": {},
        "oddities": [],
        "arguments": given,
        "methods": {"DeepCache": {"cache_interval": 2, "cache_branch_id": 0}},
    }


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"guidance_scale": 2}, ""),
        ({"guidance_scale": 1.9999}, "guidance_scale: 1.9999 is not from 2 to 20, as people give it"),
        ({"guidance_scale": -7.5}, "guidance_scale: -7.5 is not from 2 to 20"),
        ({"guidance_scale": 1e38}, "guidance_scale: 1e+38 is not from 2 to 20"),
        ({"guidance_scale": float("nan")}, "guidance_scale: input should be a finite number"),
        ({"guidance_rescale": 0.7, "eta": 1.0, "clip_skip": 2}, ""),
        ({"guidance_rescale": 1e9}, "guidance_rescale: 1000000000.0 is not from 0 to 1"),
        ({"eta": 1e30}, "eta: 1e+30 is not from 0 to 1"),
        ({"eta": -1.0}, "eta: -1.0 is not from 0 to 1"),
        ({"clip_skip": 40}, "clip_skip: 40 is not from 0 to 12"),
        ({"negative_prompt": "grey"}, ""),
        ({"negative_prompt": " red apple"}, "prompt: empty, or its own negative prompt"),
        ({"prompt": ["red apple", ""]}, "prompt: empty, or its own negative prompt"),
        ({"prompt": None}, "prompt: not given"),
        ({"negative_prompt": "x" * 2001}, "negative_prompt: string should have at most 2000 characters"),
        ({"num_images_per_prompt": 33}, "num_images_per_prompt: input should be less than or equal to 32"),
        (
            {"prompt": ["red apple"] * 3, "num_images_per_prompt": 32},
            "arguments: 96 images in one call; at most 32 are repeated",
        ),
    ],
)
def test_arguments_that_make_work_pointless_are_named(arguments: dict[str, Any], words: str) -> None:
    try:
        found = "; ".join(Claim.from_header(claimed(**arguments)).arguments.oddities(7.5))
    except ValueError as error:
        found = str(error)
    assert found.startswith(words)
    assert bool(found) == bool(words)


def test_a_refused_claim_names_what_the_judge_does_not_repeat() -> None:
    claim = {**claimed(prompt=None), "oddities": ["argument prompt_embeds, which the judge does not repeat"]}
    with pytest.raises(
        ValueError, match=r"^argument prompt_embeds, which the judge does not repeat; prompt: not given$"
    ):
        Claim.from_header(claim)


def test_looks_share_what_may_be_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scripts that are just as fast as they should be: at most 2.5% may be told to be slower, over all looks."""
    chance = np.random.default_rng(0)

    class Call:
        claim = Claim.from_header(claimed())
        seconds = 1.0

        def for_prompts(self, prompts: list[str], *, negatives: bool) -> Call:
            assert (prompts, negatives) == (["a prompt"], False)
            return self

        def run_again(self) -> tuple[list[Image.Image], list[int]]:
            self.seconds = float(np.exp(chance.normal(0, 0.04))) / task().target
            self.images = [Image.fromarray(chance.integers(0, 256, (2, 2, 3), dtype=np.uint8))]
            return self.images, [0]

    def failed() -> bool:
        call = Call()
        replay = Mock(
            same_levels=0.02, prompts=lambda _task, count: ["a prompt"] * count, images=lambda *_: call.images
        )
        found = live_speed.judge_speed(call, task(), replay, tolerance_ratio=0.0, answer=None)
        assert found.figures["pairs"] in (4, 8)
        return found.outcome == "failed"

    monkeypatch.setattr(live_speed, "_baseline_s", lambda *_: 1.0)
    assert sum(failed() for _ in range(400)) <= 16  # 10 are expected at most; more than 16 in one of 30 runs


def test_the_judges_own_prompts_take_the_place_of_a_scripts() -> None:
    call = Claim.from_header(
        claimed(prompt=["a", "b"], prompt_2="c", negative_prompt="d", negative_prompt_2=["e", "f"])
    )
    for negatives, kept in ((True, ["d"] * 3), (False, None)):
        assert call.arguments.for_prompts(["x", "y", "z"], negatives=negatives).wording == {
            "prompt": ["x", "y", "z"],
            "prompt_2": None,
            "num_images_per_prompt": 1,
            "negative_prompt": kept,
            "negative_prompt_2": None,
        }


def test_a_channel_refuses_what_is_no_message() -> None:
    import socket

    left, right = socket.socketpair()
    with left, right:
        channel = Channel(left)
        right.sendall(b"\xff" * 8)
        with pytest.raises(ChannelError, match="bytes"):
            channel.receive(1)
        right.sendall(b"\0\0\0\1\0\0\0\0x")
        with pytest.raises(ChannelError, match="not JSON"):
            channel.receive(1)
        right.sendall(b"\0")
        with pytest.raises(TimeoutError):
            channel.receive(0.05)
        with pytest.raises(FolderTooFull):
            channel.receive(5, Mock(side_effect=FolderTooFull))
        right.close()
        with pytest.raises(ChannelClosed):
            channel.receive(1)


def test_scores_count_each_stage_and_all() -> None:
    passed, failed = StageResult("runs", "passed"), StageResult("runs", "failed", "why")
    missed = StageResult("speed", "xfailed", "unattainable")
    scores = Scores.of(
        [
            ScriptVerdict("200", (passed, missed), attainable=False),
            ScriptVerdict("199", (failed,)),
            ScriptVerdict("201", (passed,), attainable=True),
        ]
    )
    assert scores.stages["runs"].to_json() == {
        "passed": 2, "failed": 1, "xfailed": 0, "skipped": 0, "pass_rate": 2 / 3
    }  # fmt: skip
    assert scores.stages["speed"].pass_rate is None
    assert scores.overall.to_json() == {
        "passed": 1, "failed": 1, "xfailed": 1, "skipped": 0, "pass_rate": 0.5
    }  # fmt: skip
    content = json.loads(scores.to_json())
    assert [script["prompt_id"] for script in content["scripts"]] == ["199", "200", "201"]
    assert content["rules"] == {
        "ours": {"attainable": 2, "passed": 1, "failed": 1, "not_judged": 0, "pass_rate": 0.5}
    }  # fmt: skip
    told = [line.split()[0] for line in scores.lines() if line]
    assert told == ["stage", "runs", "speed", "all", "rule", "ours"]


# pytest codegen


@pytest.fixture
def run_codegen(pytester: pytest.Pytester, everything_imported: None) -> Callable[..., pytest.RunResult]:
    """Runs the repository's cases with arguments, in the present folder."""
    source = (ROOT / "codegen" / "test_scripts.py").read_text(encoding="utf-8")
    pytester.mkdir("codegen").joinpath("test_scripts.py").write_text(source, encoding="utf-8")
    golden = str(ROOT / "golden" / "search_params.json")
    return partial(pytester.runpytest_inprocess, "codegen", "-p", "no:cacheprovider", "--golden", golden)


def test_codegen_judges_what_golden_renders_to(
    pytester: pytest.Pytester, run_codegen: Callable[..., pytest.RunResult]
) -> None:
    """Of a golden file that holds one cell only."""
    golden = pytester.path / "golden" / "search_params.json"
    shutil.copytree(ROOT / "golden", golden.parent, ignore=shutil.ignore_patterns("pictures", "nvidia*"))
    content = json.loads(golden.read_text(encoding="utf-8"))
    kept = {key: value for key, value in content.items() if key.startswith("('SD1.5', 'DDIM', 20,")}
    golden.write_text(json.dumps(kept), encoding="utf-8")
    chosen = ("--golden", str(golden), "--ids", "192,195,500")
    done = run_codegen(*chosen, "--stages", "static,runs", "-rs", "--scores", "scores.json")
    assert done.ret == 0
    done.assert_outcomes(passed=2, skipped=1)
    told = "1 task has no golden record; record it with: diffaccel search --pipe SD1.5"
    done.stdout.fnmatch_lines([f"*{told}*"])
    scores = json.loads((pytester.path / "scores.json").read_text(encoding="utf-8"))
    assert scores["all"]["pass_rate"] == 1
    assert set(scores["stages"]) == {"static", "runs"}


def test_codegen_judges_other_peoples_scripts(
    pytester: pytest.Pytester, run_codegen: Callable[..., pytest.RunResult]
) -> None:
    scripts = pytester.mkdir("gen_code")
    (scripts / "193.py").write_bytes(cheat("honest"))
    (scripts / "194.py").write_bytes(cheat("fake_ratio"))
    done = run_codegen("--code", "gen_code", "--stages", "static,runs", "-v")
    assert done.ret == 1
    said = done.stdout.str()
    assert "test_script[193] PASSED" in said
    assert "runs: accelerators: none, not DeepCache" in said
    assert "1132 of the 1134 tasks have no script in gen_code" in said
    assert "50.0%" in said


def test_all_that_was_asked_for_counts(
    pytester: pytest.Pytester, run_codegen: Callable[..., pytest.RunResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One script passes; one is a folder, one missing, one in no encoding; and on one the judge itself breaks off."""

    def breaks_off(source: bytes, asked: Task) -> StageResult:
        if asked.target == 3.0:
            raise ZeroDivisionError
        return judge_source(source, asked)

    scripts = pytester.mkdir("gen_code")
    scripts.joinpath("194.py").mkdir()
    for name, source in (("193", cheat("honest")), ("196", b'"\xff"\n'), ("197", cheat("honest"))):
        (scripts / f"{name}.py").write_bytes(source)
    monkeypatch.setattr("pytest_diffaccel.judge.judge.judge_source", breaks_off)
    chosen = ("--code", "gen_code", "--ids", "193-197", "--stages", "static", "--scores", "scores.json")
    done = run_codegen(*chosen)
    assert done.ret == 1
    scores = json.loads((pytester.path / "scores.json").read_text(encoding="utf-8"))
    assert scores["all"] == {"passed": 1, "failed": 4, "xfailed": 0, "skipped": 0, "pass_rate": 0.2}
    said = {script["prompt_id"]: script["stages"][0]["detail"] for script in scores["scripts"]}
    assert said["194"] == f"{Path('gen_code', '194.py')} cannot be read: it is no file"
    assert said["195"] == f"{Path('gen_code', '195.py')} cannot be read: No such file or directory"
    assert "0xff" in said["196"]
    assert said["197"] == "the judge broke off; the case's error says where"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--stages", "static,fast"], "--stages: 'fast' is unknown; choose from static, runs, speed, quality, all"),
        (["--ids", "1"], "ids '1': write ids from 192 to 1325"),
        (["--code", "nowhere"], "--code: 'nowhere' is no folder"),
        (["--ratio-tolerance", "2"], "must be a share from 0 to below 1"),
        (
            ["--rule", "diffbanch"],
            "'diffbanch' is unknown (did you mean diffbench?); choose from ours, diffbench",
        ),
        (["--diffbench-prompts", "11"], "'11' is more than the rule's 10 prompts"),
        (["--rule", "both", "--clip-model", "./nowhere"], "--clip-model: './nowhere' is not 'embedded', a folder that"),
        (["--sample", "0"], "must be a whole number of at least 1"),
        ([], "search_params.json:1: not JSON"),
        (["test_scripts.py", "--seed", "1"], "search_params.json:1: not JSON"),
    ],
)
def test_bad_options_are_refused(
    pytester: pytest.Pytester, everything_imported: None, arguments: list[str], words: str
) -> None:
    """The last two have no bad option, but a golden file that is none."""
    pytester.makepyfile(test_scripts="def test_script(diffaccel_task_id, diffaccel_judge): pass")
    if words.startswith("search_params"):
        pytester.mkdir("golden").joinpath("search_params.json").write_text("none", encoding="utf-8")
    done = pytester.runpytest_inprocess(*arguments)
    assert done.ret == pytest.ExitCode.USAGE_ERROR
    assert words in done.stderr.str()
    assert "Traceback" not in done.stdout.str() + done.stderr.str()
    done.stdout.no_fnmatch_line("*ERROR*collecting*")


def test_a_sample_is_the_same_for_the_same_seed_and_has_scripts(
    pytester: pytest.Pytester, everything_imported: None
) -> None:
    pytester.makepyfile(test_scripts="def test_script(diffaccel_task_id, diffaccel_judge): pass")
    golden = str(ROOT / "golden" / "search_params.json")
    runs = [
        pytester.runpytest_inprocess("--collect-only", "-q", "--sample", "5", "--seed", seed, "--golden", golden)
        for seed in ("0", "0", "1")
    ]
    chosen = [[line for line in run.outlines if "test_script[" in line] for run in runs]
    assert len(chosen[0]) == 5
    assert chosen[0] == chosen[1] != chosen[2]
