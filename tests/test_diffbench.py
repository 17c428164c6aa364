"""DiffBench's rule beside ours: what it measures, what it decides, and what is said of both."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image

from pytest_diffaccel.codegen.lookup import Answer, find
from pytest_diffaccel.codegen.tasks import all_tasks
from pytest_diffaccel.judge import DIFFBENCH, OURS, live_speed
from pytest_diffaccel.judge.claim import Arguments, Claim
from pytest_diffaccel.judge.diffbench import DiffBench, verdict
from pytest_diffaccel.judge.live_call import ScriptMisbehaved
from pytest_diffaccel.judge.quality_judge import QualityJudge
from pytest_diffaccel.judge.scores import Scores
from pytest_diffaccel.judge.script_verdict import ScriptVerdict, StageResult
from pytest_diffaccel.measure.metrics.base import Metric, MetricFault
from pytest_diffaccel.records.golden_file import Golden
from pytest_diffaccel.records.golden_parts import GoldenMetric

ROOT = Path(__file__).resolve().parents[1]
CHEATS = Path(__file__).resolve().parent / "cheats"
#: SD1.5, DDIM, 20 steps, DeepCache, 1.5x.
TASK = all_tasks()["193"]
PROMPTS = [f"prompt {number}" for number in range(10)]
#: Plain pictures' CLIP score; that of a script's by what it draws.
PLAIN = 20.0


def noise(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8))


class Brightness(Metric):
    """In CLIP score's place: of unaccelerated pictures :data:`PLAIN`, of a script's what ``of_scripts`` says."""

    name = "clip_score"
    higher_is_better = True
    needs_references = False
    needs_prompts = True

    def __init__(self, of_scripts: float) -> None:
        self.of_scripts = of_scripts
        self.seen: list[tuple[str, ...]] = []

    def score(
        self, images: Sequence[Image.Image], references: Sequence[Image.Image], prompts: Sequence[str], device: str
    ) -> list[float]:
        self.seen.append(tuple(prompts))
        return [PLAIN if image.info.get("plain") else self.of_scripts for image in images]


class Call:
    """A live call whose runs take a share of a second."""

    def __init__(self, speedups: Sequence[float], images: int, drawn: Callable[[int], Image.Image] = noise) -> None:
        arguments = Arguments(
            num_inference_steps=20, prompt=["an apple"] * images, height=8, width=8, guidance_scale=5.0
        )
        params = {"DeepCache": {"cache_interval": 2, "cache_branch_id": 0}}
        self.claim = Claim("SD1.5", "DDIMScheduler", {}, arguments, params, [])
        self.seconds = 0.0
        self.asked: list[list[str]] = []
        self._coming = iter([9.0, *speedups])  # warming up does not count
        self._seeds = count()
        self._drawn = drawn

    def for_prompts(self, prompts: list[str], *, negatives: bool) -> Call:
        assert not negatives
        self.asked.append(prompts)
        return self

    def run_again(self) -> tuple[list[Image.Image], list[int]]:
        self.seconds = 1 / next(self._coming)
        seeds = [next(self._seeds) for _ in self.asked[-1]]
        return [self._drawn(seed) for seed in seeds], seeds

    def replayed(self, _task: object, _arguments: object, params: object, seeds: Sequence[int]) -> list[Image.Image]:
        images = [self._drawn(seed) if params else noise(seed) for seed in seeds]
        for image in images:
            image.info["plain"] = not params
        return images


@pytest.fixture(autouse=True)
def of_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_speed, "_baseline_s", lambda *_: 1.0)


def judged(call: Call, metric: Metric, prompts: Sequence[str] = PROMPTS, answer: Answer | None = None) -> StageResult:
    rule = DiffBench(Mock(same_levels=0.02, images=call.replayed), metric, "cpu")
    assert rule.fault == ""
    return rule.judge(call, TASK, prompts, answer)  # type: ignore[arg-type]  # what it needs of a live call


# --- what is measured --------------------------------------------------------------------------------------------


def test_ten_prompts_are_drawn_one_by_one_and_their_means_decide() -> None:
    call, metric = Call([1.0, 3.0] * 5, 1), Brightness(19.0)
    found = judged(call, metric)
    assert call.asked == [[PROMPTS[0]], *([prompt] for prompt in PROMPTS)]
    assert metric.seen == [tuple(PROMPTS)] * 2
    # Ten seconds unaccelerated, and five of 1 and of 1/3 second: no mean of ratios, which would be 2.
    assert found == StageResult(
        DIFFBENCH,
        "passed",
        "1.50x in the mean; CLIP score 19.00, 5.0% lower than 20.00 unaccelerated",
        {
            "speedup": 1.5,
            "target": 1.5,
            "prompts": 10,
            "batch_size": 1,
            "metric": "clip_score",
            "clip_score": 19.0,
            "unaccelerated_clip_score": 20.0,
            "clip_loss": 0.05,
        },
    )


def test_calls_are_as_large_as_the_scripts_and_prompts_come_round_again_to_fill_the_last() -> None:
    call, metric = Call([2.0] * 3, 4), Brightness(20.0)
    found = judged(call, metric)
    assert call.asked[1:] == [PROMPTS[:4], PROMPTS[4:8], [*PROMPTS[8:], *PROMPTS[:2]]]
    assert metric.seen == [tuple(PROMPTS)] * 2
    assert (found.figures["batch_size"], found.figures["prompts"]) == (4, 10)


def test_calls_are_as_large_as_the_records_where_there_is_one() -> None:
    answer = find(TASK, Golden.read(ROOT / "golden" / "search_params.json"))
    call = Call([2.0] * 3, 1)
    assert judged(call, Brightness(20.0), answer=answer).figures["batch_size"] == answer.entry.batch_size == 4


def test_fewer_prompts_are_judged_alike() -> None:
    call, metric = Call([2.0] * 2, 1), Brightness(20.0)
    assert judged(call, metric, PROMPTS[:2]).figures["prompts"] == 2
    assert metric.seen == [tuple(PROMPTS[:2])] * 2


# --- what is decided ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("speedup", "clip_score", "outcome", "words"),
    [
        (1.5, 19.0, "passed", "1.50x in the mean; CLIP score 19.00, 5.0% lower than 20.00 unaccelerated"),
        (9.0, 25.0, "passed", "9.00x in the mean; CLIP score 25.00, 25.0% higher than 20.00 unaccelerated"),
        (1.4999, 20.0, "failed", "1.4999x in the mean is less than 1.5x"),
        (1.5, 18.9, "failed", "CLIP score 18.90, 5.5% lower than 20.00 unaccelerated: more than 5% is lost"),
        (1.2, 10.0, "failed", "1.2000x in the mean is less than 1.5x; CLIP score 10.00, 50.0% lower than"),
    ],
)
def test_speed_and_clip_score_must_both_hold(speedup: float, clip_score: float, outcome: str, words: str) -> None:
    figures = {"speedup": speedup, "target": 1.5, "clip_score": clip_score, "unaccelerated_clip_score": 20.0}
    found = verdict(figures, attainable=True)
    assert (found.outcome, found.detail[: len(words)]) == (outcome, words)
    expected = {"passed": "xpassed", "failed": "xfailed"}
    assert verdict(figures, attainable=False).outcome == expected[outcome]


def test_a_score_of_0_leaves_nothing_to_lose() -> None:
    figures = {"speedup": 2.0, "target": 1.5, "clip_score": 3.0, "unaccelerated_clip_score": 0.0}
    found = verdict(figures, attainable=True)
    assert (found.outcome, "not judged" in found.detail) == ("skipped", True)


@pytest.mark.parametrize(
    ("drawn", "words"),
    [
        (lambda seed: Image.new("RGB", (8, 8)), "draws nothing of 10 prompts: 10 of 10 pictures have one colour"),
        (lambda seed: Image.new("RGB", (8, 8)) if seed == 7 else noise(seed), "1 of 10 pictures have one colour"),
        (lambda seed: noise(0), "draws nothing of 10 prompts: all 10 pictures are the same"),
    ],
    ids=["black", "one black", "equal"],
)
def test_pictures_that_say_nothing_never_pass(drawn: Callable[[int], Image.Image], words: str) -> None:
    """However high they score, and however quickly they are drawn; by our rule however near to equal baselines."""
    with pytest.raises(ScriptMisbehaved, match=words):
        judged(Call([9.0] * 10, 1, drawn), Brightness(100.0))
    answer = find(TASK, Golden.read(ROOT / "golden" / "search_params.json"))
    images = Mock(images=lambda _task, _arguments, _params, seeds: [drawn(seed % 8).resize((64, 64)) for seed in seeds])
    found = QualityJudge(images, 0).judge(Call([], 1).claim, answer, PROMPTS)
    assert (found.outcome, found.detail.startswith("its settings draw nothing: ")) == ("failed", True)


def test_our_judge_says_where_another_metric_chose_what_it_judges_by_lpips() -> None:
    golden = Golden.read(ROOT / "golden" / "search_params.json")
    answer = find(TASK, golden)
    decided = replace(answer.entry, quality="psnr", metrics={"psnr": GoldenMetric(20.16)}, beats_fewer_steps=None)
    images = Mock(images=lambda _task, _arguments, _params, seeds: [noise(seed).resize((64, 64)) for seed in seeds])
    for entry, said in (
        (answer.entry, ")"),
        (replace(decided, fewer_steps=None), "; psnr decided the record, not LPIPS"),
    ):
        found = QualityJudge(images, 0).judge(Call([], 1).claim, replace(answer, entry=entry), PROMPTS)
        assert (found.outcome, found.detail.endswith(said)) == ("passed", True)


def test_what_cannot_be_scored_is_not_judged() -> None:
    class Faulty(Brightness):
        def score(self, *_: Any) -> list[float]:
            raise MetricFault("clip_score: no weights")

    found = judged(Call([2.0] * 10, 1), Faulty(0.0))
    assert (found.outcome, found.detail) == ("skipped", "not judged: clip_score: no weights")
    dark = Call([2.0] * 10, 1)
    dark.replayed = lambda _task, _arguments, params, seeds: [  # type: ignore[method-assign]
        noise(seed) if params else Image.new("RGB", (8, 8)) for seed in seeds
    ]
    found = judged(dark, Brightness(20.0))
    assert (found.outcome, "the unaccelerated pipeline draws nothing" in found.detail) == ("skipped", True)


# --- both rules --------------------------------------------------------------------------------------------------


def result(stage: str, outcome: Any) -> StageResult:
    return StageResult(stage, outcome, f"why {outcome}")


def test_each_rule_has_its_rate_and_the_first_decides() -> None:
    """By outcomes of ours and of DiffBench's: of attainable tasks 3 of 4 pass by ours, and 1 of 3 by the other."""
    cases = [
        ("passed", "passed", True),
        ("passed", "failed", True),
        ("failed", "skipped", True),
        ("passed", "failed", None),
        ("xfailed", "xfailed", False),
        ("xpassed", "xfailed", False),
    ]
    figures = {"prompts": 10, "metric": "clip_score (embedded stand-in, not CLIP)"}
    verdicts = [
        ScriptVerdict(
            str(number),
            (result("speed", ours), replace(result(DIFFBENCH, other), figures=figures)),
            (OURS, DIFFBENCH),
            attainable,
        )
        for number, (ours, other, attainable) in enumerate(cases, 200)
    ]
    assert [verdict.passed for verdict in verdicts] == [True, True, False, True, True, True]
    assert [verdict.outcome for verdict in verdicts] == [ours for ours, _, _ in cases]
    assert [replace(verdict, rules=(DIFFBENCH,)).outcome for verdict in verdicts] == [other for _, other, _ in cases]
    scores = Scores.of([ScriptVerdict.from_json(json.loads(json.dumps(verdict.to_json()))) for verdict in verdicts])
    content = json.loads(scores.to_json())
    assert content["rules"] == {
        OURS: {"attainable": 4, "passed": 3, "failed": 1, "not_judged": 0, "pass_rate": 0.75},
        DIFFBENCH: {"attainable": 4, "passed": 1, "failed": 2, "not_judged": 1, "pass_rate": 1 / 3},
    }
    assert [script["rules"][DIFFBENCH] for script in content["scripts"]] == [other for _, other, _ in cases]
    told = [line.split() for line in scores.lines()]
    assert ["ours", "4", "3", "1", "0", "75.0%"] in told
    assert ["diffbench", "4", "1", "2", "1", "33.3%"] in told
    assert scores.lines()[-2:] == [
        "diffbench: on 10 prompts, by clip_score (embedded stand-in, not CLIP)",
        "diffbench: 1 script why skipped",
    ]


def test_what_fails_before_it_is_measured_fails_by_both() -> None:
    stages = (result("runs", "failed"), result("speed", "failed"), result(DIFFBENCH, "skipped"))
    found = ScriptVerdict("200", stages, (OURS, DIFFBENCH))
    assert (found.under(OURS), found.under(DIFFBENCH)) == ("failed", "failed")


# --- pytest codegen ----------------------------------------------------------------------------------------------


@pytest.fixture
def run_codegen(pytester: pytest.Pytester, everything_imported: None) -> Callable[..., pytest.RunResult]:
    """Judges an honest script and one that is none by DiffBench's rule."""
    pytester.makepyfile(
        test_scripts="""
        def test_script(diffaccel_task_id, diffaccel_judge):
            assert diffaccel_judge(diffaccel_task_id).passed
        """
    )
    scripts = pytester.mkdir("gen_code")
    (scripts / "193.py").write_bytes((CHEATS / "honest.py").read_bytes())
    (scripts / "194.py").write_text("Here is your script:", encoding="utf-8")
    golden = str(ROOT / "golden" / "search_params.json")
    options = ("-p", "no:cacheprovider", "--golden", golden, "--code", "gen_code", "--scores", "scores.json")
    return partial(pytester.runpytest_inprocess, *options, "--rule", "diffbench")


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--stages", "static"], "--stages leaves out speed and quality"),
        (
            ["--stages", "static,speed,quality", "--clip-model", "gen_code"],
            "has no config.json; give a CLIP as transformers saves it, with its processor",
        ),
    ],
)
def test_what_is_not_judged_is_said_and_does_not_fail(
    pytester: pytest.Pytester, run_codegen: Callable[..., pytest.RunResult], options: list[str], why: str
) -> None:
    done = run_codegen("-rs", *options)
    done.assert_outcomes(skipped=1, failed=1)
    scores = json.loads((pytester.path / "scores.json").read_text(encoding="utf-8"))
    counts = {"attainable": 2, "passed": 0, "failed": 1, "not_judged": 1, "pass_rate": 0.0}
    assert scores["rules"] == {"diffbench": counts}
    assert ["diffbench", "2", "0", "1", "1", "0.0%"] in [line.split() for line in done.outlines]
    told = " ".join(done.stdout.str().split())
    assert "diffbench: 1 script not judged: " in told
    assert why in told
