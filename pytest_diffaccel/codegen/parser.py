"""From a person's sentence, English or Chinese, to a :class:`~.tasks.Task`: tolerant of spelling, strict about meaning.

Every word must be accounted for: it names a part of the task or stands in a list of words that change nothing. Any
other word is an error, so that "without ToMe" or "at most 2x" is never read as its opposite.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence

from pytest_diffaccel.codegen.tasks import Task
from pytest_diffaccel.matrix import SCHEDULERS, Cell, slug
from pytest_diffaccel.models.schedulers import named_scheduler
from pytest_diffaccel.pipes import known
from pytest_diffaccel.records.golden_key import ACCELERATORS
from pytest_diffaccel.words import meant

#: The longest sentence read; the longest task has 145 characters.
MAX_LENGTH = 1000

# Punctuation that people and word processors exchange for one another; before the rest of a wide script is narrowed, as
# a wide comma separates and never stands within a number.
_LOOKALIKES = str.maketrans({"×": "x", "≥": " least ", "‐": "-", "‑": "-", "–": "-", "—": "-"})
_WIDE = str.maketrans({"，": ", ", "、": ", ", "。": ". ", "；": "; ", "：": ": "})
# Chinese is written without spaces, also beside names and numbers.
_CHINESE = re.compile(r"([\u3400-\u9fff]+)")
# A name or number begins and ends here: not inside a word, not inside a decimal.
_BEGIN, _END = r"(?<![\w.])", r"(?!\w|\.\d)"
_SCHEDULER_SPELLINGS = {
    "DDIM": r"ddim(?:[ -]?scheduler)?",
    # Without the pluses it is an older method. The diffusers class of both runs DPM-Solver++ unless told otherwise.
    "DPM-Solver++": r"dpm[ -]?(?:solver[ -]?)?(?:\+\+|pp)|dpm[ -]?solver[ -]?multistep(?:[ -]?scheduler)?",
    "UniPCMultistepScheduler": r"uni[ -]?pc(?:[ -]?multistep)?(?:[ -]?scheduler)?",
    "FlowMatchEulerDiscreteScheduler": r"flow[ -]?match(?:ing)?[ -]?euler(?:[ -]?discrete)?(?:[ -]?scheduler)?",
}
# A diffusers scheduler's class name.
_SCHEDULER_CLASS = rf"{_BEGIN}[a-z][a-z0-9]{{2,60}}scheduler{_END}"
_METHOD_SPELLINGS = {
    "DeepCache": r"deep[ -]?cache",
    "T-Gate": r"t[ -]?gate",
    "ToMe": r"to-?me|token[ -]merging",
    "TaylorSeer": r"taylor[ -]?seer",
    "MagCache": r"mag[ -]?cache",
    "DBCache": r"db[ -]?cache|dual[ -]?block[ -]?cache",
    "FirstBlockCache": r"first[ -]?block[ -]?cache|fb[ -]?cache",
}
# No part of a longer number, a negative one, or one with a comma in it.
_NUMBER_BEGIN = r"(?<![\w.-])(?<!\d,)"
_COUNT = rf"{_NUMBER_BEGIN}(\d{{1,6}})"
_STEPS_SPELLINGS = (
    rf"{_COUNT}[ -]?(?:(?:denoising|inference|sampling|diffusion) )?steps?{_END}",
    rf"{_BEGIN}(?:num_inference_)?steps?(?: of)? ?[:=]? ?(\d{{1,6}}){_END}",
    rf"{_COUNT} ?个?(?:采样|去噪|推理|迭代)?步骤?",
    rf"步数(?:设为|为|是)? ?[:=]? ?(\d{{1,6}}){_END}",
)
_DECIMAL = r"(\d{1,4}(?:\.\d{1,6})?)"
_FACTOR = rf"{_NUMBER_BEGIN}{_DECIMAL}"
_SPEEDUP = r"speed[ -]?up"
_TARGET_SPELLINGS = (
    rf"{_FACTOR}[ -]?(?:x|times|fold){_END}",
    rf"{_BEGIN}x ?{_DECIMAL}{_END}",
    rf"{_BEGIN}(?:{_SPEEDUP}|factor)(?: (?:of|at|least))* ?[:=]? ?{_DECIMAL}{_END}",
    rf"{_FACTOR} {_SPEEDUP}{_END}",
    rf"{_FACTOR} ?倍速?",
    rf"加速比(?:至少|达到|为|是)* ?[:=]? ?{_DECIMAL}{_END}",
)
_WORD_FACTORS = {"twice": "2", "double": "2", "two": "2", "three": "3", "four": "4", "两": "2", "三": "3", "四": "4"}
_FACTORS_IN_WORDS = (
    rf"{_BEGIN}(twice|double)(?: as (?:fast|quick)| the speed){_END}",
    rf"{_BEGIN}(two|three|four)[ -]?(?:times|fold){_END}",
    r"([两三四])倍速?",
)
# A share by which something is faster; a speedup of 50% is not among it, as it may be half of the time.
_SHARES = (
    rf"{_FACTOR} ?(?:%|percent) (?:faster|quicker){_END}",
    rf"{_BEGIN}(?:faster|quicker) by (?:at least )?{_DECIMAL} ?(?:%|percent)",
    rf"(?:快|提速)(?:至少|了)? ?{_DECIMAL} ?%",
)
# Words that change nothing. None of them denies, limits or offers a choice: no "not", "most", "up", "or", "than".
_FILLERS = """
a accelerate accelerated accelerates accelerating acceleration accelerator accelerators achieve achieves achieving also
an and applied apply applying are as at be both build by can code combination combined combining could create denoising
diffusers diffusion example factor fast faster for from generate generates generating generation get gets getting give
gives giving has have having i image images in inference is it its least library like make me method methods minimum
model models my need number of on one our picture pictures pipe pipeline pipelines please plus produce program python
quicker reach reaches reaching run running runs sampler samplers sampling scheduler schedulers script should so speed
speedup step steps target technique techniques text that the this through to together use uses using via want we which
with would write you
"""
# The same in Chinese. No single sign of them denies or limits, so that one which does so is left over in any word.
_CHINESE_FILLERS = """
一个 一段 一份 一种 个 请 帮我 帮 给我 我们 我 想要 想 希望 需要 要 写 生成 创建 构建 编写 制作 实现 代码 脚本
程序 的 使用 采用 利用 通过 基于 用 以及 以 并且 并 和 与 及 加上 结合 组合 同时 在 为 是 把 将 让 使 对 进行
运行 可以 能够 能 达到 获得 得到 至少 不低于 不小于 不少于 大于等于 目标 采样器
采样方法 采样 调度器 调度 求解器 方法 技术 算法 加速器 加速到 加速比 加速 提速到 提速 速度 提升到 提升 提高到
提高 更快 快 管线 管道 流水线 模型 图像 图片 文生图 扩散 推理 去噪 步数 库
"""
_CHINESE_FILLER = re.compile("|".join(sorted(_CHINESE_FILLERS.split(), key=len, reverse=True)))
# Punctuation that changes nothing. Not among it: what may deny or limit ("!ToMe", "<2x", "~2x", "/").
_SEPARATORS = re.compile(r"(?:[\s,;:&+()\"'`“”‘’「」『』《》?=-]|\.(?!\d))+")


class SentenceError(ValueError):
    """A sentence that is no task. The message names what is missing, contradictory or unknown, and what is known."""


def parse_task(sentence: str, accelerators: Sequence[str] = ACCELERATORS) -> Task:
    """The task that a sentence asks for.

    A pipe with one scheduler needs none to be named.

    Args:
        sentence: words in any order, such as ``"SDXL with dpmpp, 25 steps, T-GATE + DeepCache, at least 2x faster"`` or
            ``"使用DDIM采样器20步，用DeepCache加速1.5倍的SD1.5管线"``.
        accelerators: names of those that there are; methods that are not built in are spelled by their names.

    Raises:
        SentenceError: when a part is missing, named twice differently, or out of range, or a word has no place.
    """
    if len(sentence) > MAX_LENGTH:
        raise SentenceError(f"a sentence of {len(sentence)} characters; a task needs at most {MAX_LENGTH}")
    text = unicodedata.normalize("NFKC", sentence.translate(_WIDE)).translate(_LOOKALIKES).lower()
    text = _CHINESE.sub(r" \1 ", text.replace(">=", " least "))
    text = _as_factors(re.sub(r"!+$", "", " ".join(text.split())))
    # The longest first: the name of one of a user's own may hold another's.
    by_length = sorted(known(), key=lambda pipe: len(pipe.name), reverse=True)
    pipes, text = _names({pipe.name: pipe.pattern for pipe in by_length}, text)
    schedulers, text = _schedulers(text)
    methods, text = _names(_spellings(accelerators), text)
    steps, text = _numbers(_STEPS_SPELLINGS, text)
    targets, text = _numbers(_TARGET_SPELLINGS, text)
    if not schedulers and len(pipes) == 1:
        own = known()[pipes[0]].schedulers
        schedulers = list(own) if len(own) == 1 else []
    alike = [name for name in accelerators if set(slug(name).split("+")) == set(methods)]
    problems = [
        *_one_of("pipe", pipes),
        *_one_of("scheduler", schedulers),
        *_one_of("number of steps", steps),
        *_one_of("speedup", targets),
    ]
    if not methods:
        problems.append("no accelerator")
    elif not alike:
        problems.append(f"no known accelerator is made of {' and '.join(methods)}")
    if strangers := _strangers(text, accelerators):
        problems.append(f"no place for {', '.join(strangers)}")
    if problems:
        raise SentenceError(_refusal(problems, accelerators))
    try:
        return Task(Cell(pipes[0], schedulers[0], int(steps[0])), alike[0], targets[0], tuple(accelerators))
    except ValueError as error:
        raise SentenceError(_refusal([str(error)], accelerators)) from error


def _spellings(accelerators: Sequence[str]) -> dict[str, str]:
    """How the methods of these accelerators are spelled; the user's own first, whose names may hold a built-in's."""
    methods = dict.fromkeys(method for name in accelerators for method in slug(name).split("+"))
    words = {name: re.split(r"[ -]", unicodedata.normalize("NFKC", name).lower()) for name in methods}
    own = {name: "[ -]?".join(map(re.escape, words[name])) for name in methods if name not in _METHOD_SPELLINGS}
    return own | {name: spelling for name, spelling in _METHOD_SPELLINGS.items() if name in methods}


def _as_factors(text: str) -> str:
    """The text with other ways to say a speedup written as ``2x``: twice as fast, 20% faster, 2.2x or more."""
    for spelling in _FACTORS_IN_WORDS:
        text = re.sub(spelling, lambda found: f" {_WORD_FACTORS[found[1]]}x ", text)
    for share in _SHARES:
        text = re.sub(share, lambda found: f" {1 + float(found[1]) / 100:.6f}x ", text, flags=re.ASCII)
    more = rf"(\d ?(?:x|times|fold)(?: faster| {_SPEEDUP}| as fast)?) or (?:more|better|higher|faster|above){_END}"
    text = re.sub(more, r"\1 ", " ".join(text.split()))
    return re.sub(r"(倍速?|\dx) ?(?:或?以上|或更高|或更多)", r"\1 ", text)


def _names(spellings: Mapping[str, str], text: str) -> tuple[list[str], str]:
    """The names that ``text`` spells, each once, and the text without them."""
    found = []
    for name, spelling in spellings.items():
        text, count = re.subn(rf"{_BEGIN}(?:{spelling}){_END}", " ", text)
        if count:
            found.append(name)
    return found, text


def _schedulers(text: str) -> tuple[list[str], str]:
    """The same of schedulers, diffusers' own class names among them."""
    found, text = _names(_SCHEDULER_SPELLINGS, text)
    for word in re.findall(_SCHEDULER_CLASS, text, re.ASCII):
        if name := named_scheduler(word):
            found, text = [*found, name], text.replace(word, " ")
    return list(dict.fromkeys(found)), text


def _numbers(spellings: Sequence[str], text: str) -> tuple[list[float], str]:
    """The numbers that ``text`` spells, each once, and the text without them."""
    found: list[float] = []
    for spelling in spellings:
        found += [float(number) for number in re.findall(spelling, text, re.ASCII)]
        text = re.sub(spelling, " ", text, flags=re.ASCII)
    return list(dict.fromkeys(found)), text


def _one_of(noun: str, found: Sequence[object]) -> list[str]:
    if not found:
        return [f"no {noun}"]
    if len(found) > 1:
        words = [f"{value:g}" if isinstance(value, float) else str(value) for value in found]
        return [f"more than one {noun}: {', '.join(words)}"]
    return []


def _strangers(rest: str, accelerators: Sequence[str]) -> list[str]:
    """What of the sentence is left and is no filler, quoted with everything unprintable escaped; and what is meant."""
    rest = re.sub(rf"{_BEGIN}(?:speed(?:s|ing)?|sped)[ -]?up{_END}", " ", rest)
    fillers = _FILLERS.split()
    words = [word for word in _SEPARATORS.split(_CHINESE_FILLER.sub(" ", rest)) if word and word not in fillers]
    names = [*(pipe.name for pipe in known()), *SCHEDULERS, *_spellings(accelerators)]
    spellings = {name.lower(): name for name in names}
    return [f"{word!r}{meant(word, spellings)}" for word in dict.fromkeys(words)]


def _refusal(problems: Sequence[str], accelerators: Sequence[str]) -> str:
    own = {pipe.name: pipe.schedulers for pipe in known() if not set(pipe.schedulers) <= set(SCHEDULERS)}
    others = "".join(f"; for {name}: {', '.join(schedulers)}" for name, schedulers in own.items())
    example = Task(Cell("SD1.5", "DDIM", 20), "DeepCache", 1.5).sentence
    return (
        f"this sentence is no task: {'; '.join(problems)}.\n"
        f"Known pipes: {', '.join(pipe.name for pipe in known())}. Schedulers: {', '.join(SCHEDULERS)}, "
        f"or a class of diffusers such as EulerDiscreteScheduler{others}. "
        f"Accelerators: {'; '.join(accelerators)}. Steps are written as in '20 steps' or '20步', "
        f"a speedup as in '1.5x speedup' or '1.5倍'.\nFor example: {example}"
    )
