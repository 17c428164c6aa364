"""From sentence to task: every spelling that a person may try, and no sentence that is misread."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_diffaccel.accelerators.registry import default_registry
from pytest_diffaccel.codegen.parser import _FILLERS, MAX_LENGTH, SentenceError, parse_task
from pytest_diffaccel.codegen.tasks import Task, all_tasks
from pytest_diffaccel.matrix import PIPES, SCHEDULERS, Cell
from pytest_diffaccel.records.golden_key import ACCELERATORS

PIPE_SPELLINGS = {
    "SD1.5": ["SD1.5", "sd 1.5", "SD-v1.5", "SD v1-5", "Stable Diffusion 1.5", "stable-diffusion-v1-5", "sd15"],
    "SD2.1": ["SD2.1", "sd 2.1", "StableDiffusion v2.1", "stable-diffusion-2-1", "SD21"],
    "SDXL": ["SDXL", "sdxl", "SD XL", "Stable Diffusion XL", "SDXL base 1.0", "stable-diffusion-xl-base-1.0"],
}
SCHEDULER_SPELLINGS = {
    "DDIM": ["DDIM", "ddim", "DDIMScheduler", "DDIM scheduler", "DDIM sampler"],
    "DPM-Solver++": ["DPM-Solver++", "DPM Solver++", "dpmpp", "DPM++", "dpmsolver++", "DPMSolverMultistepScheduler"],
    "UniPCMultistepScheduler": ["UniPC", "unipc", "Uni-PC", "UniPCMultistepScheduler", "UniPC multistep scheduler"],
}
STEPS_SPELLINGS = ["{} steps", "{} Steps", "{} inference steps", "{}-step", "steps={}", "steps: {}", "{} step"]
STEPS_SPELLINGS += ["num_inference_steps={}"]
TARGET_SPELLINGS = ["{}x speedup", "{} x", "{}X", "{}×", "at least {}x faster", "{} times faster", "≥ {}x"]
TARGET_SPELLINGS += [
    "a speedup of {}",
    "speed-up: {}",
    "a {} speedup",
    "speedup of at least {}x",
    "speed up {}x",
    "x{}",
]
METHOD_SPELLINGS = {
    "DeepCache": ["DeepCache", "deepcache", "Deep Cache", "deep-cache"],
    "T-Gate": ["T-Gate", "t-gate", "TGATE", "T-GATE", "tgate"],
    "ToMe": ["ToMe", "tome", "TOME", "token merging"],
}
GOOD = "Generate a SDXL pipeline using the DDIM sampler with 20 steps, accelerated by DeepCache with 1.5x speedup"
GOOD_TASK = Task(Cell("SDXL", "DDIM", 20), "DeepCache", 1.5)


def test_every_tasks_sentence_comes_back() -> None:
    for task in all_tasks().values():
        assert parse_task(task.sentence) == task


@pytest.mark.parametrize(
    "sentence",
    [
        GOOD.lower(),
        GOOD.upper(),
        f"  {GOOD}.  ",
        GOOD.replace(" ", "   "),
        GOOD.replace(" ", "\n"),
        GOOD.replace("a SDXL", "an SDXL"),
        "Please generate an SDXL pipeline with DeepCache that is at least 1.5x faster, DDIM, 20 steps!",
        "SDXL + DDIM + 20 steps + DeepCache + 1.5x",
        "sdxl,ddim,20 steps,deepcache,1.5x",
        "Can you write me a script? DeepCache; 1.5 x; SDXL; DDIM scheduler; 20 denoising steps.",
        "I want to speed up SDXL (DDIM, num_inference_steps=20) by a factor of 1.5 using `DeepCache`",
        "DeepCache and DeepCache on SDXL, DDIM, 20 steps, 1.50x",
        "ＳＤＸＬ DDIM ２０ steps DeepCache １.５x",  # full-width, from an East Asian keyboard
        "Make SDXL (DDIM, 20 steps) 50% faster with DeepCache",
        "SDXL, DDIM, 20 steps: faster by at least 50 percent with DeepCache",
        "SDXL, DDIM, 20 steps, DeepCache, 1.5x or more",
        "SDXL, DDIM, 20 steps, DeepCache, 1.5 times faster or better",
        "使用DDIM采样器20步，用DeepCache加速1.5倍的SDXL管线",
        "请帮我写一个“SDXL”脚本：DDIM，20个采样步，通过DeepCache加速到1.5倍以上。",
        "SDXL, DDIM, 20 steps, DeepCache, 50% faster or more",
        "SDXL、DDIM、步数为20、DeepCache、加速比至少1.5",
        "用DeepCache让SDXL快50%，DDIM调度器，采样步数：20",
        "ＳＤＸＬ，ＤＤＩＭ，２０步，ＤｅｅｐＣａｃｈｅ，不低于１．５倍",
    ],
)
def test_a_persons_spelling_is_read(sentence: str) -> None:
    assert parse_task(sentence) == GOOD_TASK


@pytest.mark.parametrize(
    ("words", "target"),
    [
        ("twice as fast", 2),
        ("at twice the speed", 2),
        ("three times as fast", 3),
        ("four-fold", 4),
        ("20% faster", 1.2),
        ("at least 12.5% quicker", 1.125),
        ("2.2x or more", 2.2),
        ("加速两倍", 2),
        ("提速20%", 1.2),
        ("至少三倍速", 3),
    ],
)
def test_a_speedup_is_read_in_words(words: str, target: float) -> None:
    assert parse_task(GOOD.replace("with 1.5x speedup", words)) == Task(GOOD_TASK.cell, "DeepCache", target)


@given(st.data())
def test_every_mix_of_spellings_and_orders_is_read(data: st.DataObject) -> None:
    draw = data.draw
    pipe, scheduler = draw(st.sampled_from(PIPES)), draw(st.sampled_from(SCHEDULERS))
    accelerator = draw(st.sampled_from(ACCELERATORS))
    steps = draw(st.integers(1, 1000))
    target = draw(st.sampled_from([1.2, 1.5, 1.8, 2, 2.5, 3.0, 4.0, 1.65, 3.999, 100]))
    methods = draw(st.permutations([name for name in METHOD_SPELLINGS if name in accelerator]))
    spelled = [draw(st.sampled_from(METHOD_SPELLINGS[name])) for name in methods]
    parts = [
        draw(st.sampled_from(PIPE_SPELLINGS[pipe])),
        draw(st.sampled_from(SCHEDULER_SPELLINGS[scheduler])),
        draw(st.sampled_from(STEPS_SPELLINGS)).format(steps),
        draw(st.sampled_from(TARGET_SPELLINGS)).format(target),
        draw(st.sampled_from([" and ", " & ", "+", " + ", ", ", ",", ", and "])).join(spelled),
    ]
    separator = draw(st.sampled_from([", ", " with ", "; ", ", using the "]))
    sentence = separator.join(draw(st.permutations(parts)))
    cased = draw(st.sampled_from([str, str.lower, str.upper]))(sentence)
    assert parse_task(cased) == Task(Cell(pipe, scheduler, steps), accelerator, target)


def test_a_pipes_only_scheduler_need_not_be_named() -> None:
    task = parse_task("FLUX.1, 28 steps, FirstBlockCache, 3x", default_registry().names)
    assert task.cell == Cell("FLUX.1", "FlowMatchEulerDiscreteScheduler", 28)
    with pytest.raises(SentenceError, match="no place for 'eulr'"):
        parse_task("FLUX.1, Eulr, 28 steps, FirstBlockCache, 3x", default_registry().names)


@pytest.mark.parametrize(("word", "name"), [("deepcashe", "DeepCache"), ("sdxxl", "SDXL"), ("tgatte", "T-Gate")])
def test_a_misspelt_name_is_asked_for(word: str, name: str) -> None:
    with pytest.raises(SentenceError, match=rf"'{word}' \(did you mean {name}"):
        parse_task(f"SD1.5 DDIM 20 steps ToMe 1.5x {word}")


@pytest.mark.parametrize(
    ("sentence", "message"),
    [
        ("", "no pipe; no scheduler; no number of steps; no speedup; no accelerator"),
        ("DDIM, 20 steps, DeepCache, 1.5x", "no pipe"),
        ("SDXL, 20 steps, DeepCache, 1.5x", "no scheduler"),
        ("SDXL, DDIM, DeepCache, 1.5x", "no number of steps"),
        ("SDXL, DDIM, 20 steps, DeepCache", "no speedup"),
        ("SDXL, DDIM, 20 steps, 1.5x", "no accelerator"),
        (f"{GOOD} on SD1.5", "more than one pipe: SD1.5, SDXL"),
        (f"{GOOD} with UniPC", "more than one scheduler: DDIM, UniPCMultistepScheduler"),
        (f"{GOOD} in 25 steps", "more than one number of steps: 20, 25"),
        (f"{GOOD}, 2x faster", "more than one speedup: 1.5, 2"),
        ("SDXL, DDIM, 20 steps, T-GATE + ToMe, 2x", "no known accelerator is made of T-Gate and ToMe"),
        (f"{GOOD} without ToMe", "no place for 'without'"),
        (f"{GOOD}, not ToMe", "no place for 'not'"),
        (f"{GOOD} -ToMe or T-Gate", "no place for 'or'"),
        (f"{GOOD} and !tome", "no place for '!'"),
        (GOOD.replace("with 1.5x", "with at most 1.5x"), "no place for 'most'"),
        (GOOD.replace("with 1.5x", "up to 1.5x"), "no place for 'up'"),
        (GOOD.replace("1.5x speedup", "1.5x slowdown"), "no place for 'slowdown'"),
        (GOOD.replace("1.5x", "<1.5x"), "no place for '<'"),
        (GOOD.replace("1.5x", "~1.5x"), "no place for '~'"),
        (GOOD.replace("1.5x", "-1.5x"), "no speedup; no place for '1.5x'"),
        (GOOD.replace("1.5x", "1,5x"), "no place for '1', '5x'"),
        (GOOD.replace("1.5x", "1.2-1.5x"), "no place for '1.2', '1.5x'"),
        (GOOD.replace("1.5x", "50%"), "no speedup; no place for '50%'"),
        (GOOD.replace("1.5x", "1.0x"), "1.0x must be above 1"),
        (GOOD.replace("1.5x", "0.5x"), "0.5x must be above 1"),
        (GOOD.replace("1.5x", "1000x"), "must be above 1 and at most 100"),
        (GOOD.replace("20 steps", "-20 steps"), "no place for '20'"),
        (GOOD.replace("20 steps", "20.5 steps"), "no number of steps"),
        (GOOD.replace("20 steps", "20 to 25 steps"), "no place for '20'"),
        (GOOD.replace("20 steps", "1,000 steps"), "no place for '1', '000'"),
        (GOOD.replace("20 steps", "0 steps"), "steps=0 must be"),
        (GOOD.replace("20 steps", "5000 steps"), "steps=5000 must be"),
        (GOOD.replace("20 steps", "٢٠ steps"), "no number of steps"),
        (GOOD.replace("DDIM", "DPM-Solver"), "no scheduler; no place for 'dpm', 'solver'"),
        (GOOD.replace("DDIM", "DPM++ 2M Karras"), "no place for '2m', 'karras'"),
        (GOOD.replace("DDIM", "Euler"), "no scheduler; no place for 'euler'"),
        (GOOD.replace("SDXL", "SDXL Turbo"), "no place for 'turbo'"),
        (GOOD.replace("SDXL", "SD 1.4"), "no pipe; no place for 'sd'"),
        (GOOD.replace("with 1.5x speedup", "twice as slow"), "no speedup; no place for 'twice', 'slow'"),
        (GOOD.replace("1.5x speedup", "20-30% faster"), "no speedup; no place for '20', '30%'"),
        (GOOD.replace("1.5x speedup", "20% less time"), "no speedup; no place for '20%', 'less', 'time'"),
        (GOOD.replace("1.5x speedup", "1.5x or less"), "no place for 'or', 'less'"),
        (GOOD.replace("20 steps", "20 steps or more"), "no place for 'or', 'more'"),
        ("SDXL，DDIM，20步，DeepCache，不用ToMe，2倍", "made of DeepCache and ToMe|no place for '不'"),
        ("SDXL，DDIM，20步，DeepCache，最多2倍", "no place for '最多'"),
        ("SDXL，DDIM，20步，DeepCache，2倍以下", "no place for '下'"),
        ("SDXL，DDIM，20步，DeepCache，不超过2倍", "no place for '不超过'"),
        ("SDXL，DDIM，20到25步，DeepCache，2倍", "no place for '20', '到'"),
        ("SDXL，DDIM，20步，DeepCache，禁用，慢2倍", "no place for '禁', '慢'"),
        ("SDXL，欧拉采样器，20步，DeepCache，2倍", "no scheduler; no place for '欧拉'"),
        ("SDXL，DDIM，1，000步，DeepCache，2倍", "no place for '1'"),
        (f"{GOOD} für Bücher", "no place for 'für', 'bücher'"),
        (f"{GOOD} at 512x512", "no place for '512x512'"),
        (f"{GOOD} for a red apple", "no place for 'red', 'apple'"),
        (f"{GOOD}\x1b[31m", r"no place for '\\x1b\[31m'"),
        ("x" * (MAX_LENGTH + 1), "1001 characters"),
    ],
)
def test_what_is_not_understood_is_refused(sentence: str, message: str) -> None:
    with pytest.raises(SentenceError, match=message) as caught:
        parse_task(sentence)
    known = (*PIPES, *SCHEDULERS, "EulerDiscreteScheduler", *ACCELERATORS)
    assert len(sentence) > MAX_LENGTH or all(name in str(caught.value) for name in known)


@given(st.text(max_size=60))
def test_any_text_is_a_task_or_refused(text: str) -> None:
    """Nothing else is raised, refusals are safe to print, and what is read means the same when said again."""
    for sentence in (text, f"{GOOD} {text}", f"{text} {GOOD}"):
        try:
            task = parse_task(sentence)
        except SentenceError as caught:
            refusal = str(caught)
        else:
            refusal = ""
            assert parse_task(task.sentence) == task
        assert not refusal or refusal.replace("\n", "").isprintable()


@given(st.from_regex(r"[a-z<>{}$#%@]{2,12}", fullmatch=True), st.integers(0, 16))
def test_no_strange_word_is_passed_over(word: str, place: int) -> None:
    words = GOOD.split()
    sentence = " ".join([*words[:place], word, *words[place:]])
    known = set(_FILLERS.split()) | {"sdxl", "ddim", "deepcache", "unipc", "dpmpp", "tome", "tgate"}
    if word in known or re.fullmatch(r"x+", word):
        return
    with pytest.raises(SentenceError):
        parse_task(sentence)
