"""From a person's sentence to a :class:`~.tasks.Task`: tolerant of spelling, strict about meaning.

Every word must be accounted for: it names a part of the task or stands in a list of words that change nothing. Any
other word is an error, so that "without ToMe" or "at most 2x" is never read as its opposite.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence

from pytest_diffaccel.codegen.tasks import Task
from pytest_diffaccel.matrix import PIPES, SCHEDULERS, Cell, slug
from pytest_diffaccel.records.golden_key import ACCELERATORS

#: The longest sentence read; the longest task has 145 characters.
MAX_LENGTH = 1000

# Punctuation that people and word processors exchange for one another.
_LOOKALIKES = str.maketrans({"×": "x", "≥": " least ", "‐": "-", "‑": "-", "–": "-", "—": "-"})
# A name or number begins and ends here: not inside a word, not inside a decimal.
_BEGIN, _END = r"(?<![\w.])", r"(?!\w|\.\d)"
_SD = r"(?:sd|stable[ -]?diffusion)"
_PIPE_SPELLINGS = {
    "SD1.5": rf"{_SD}[ -]?v?1[.-]?5",
    "SD2.1": rf"{_SD}[ -]?v?2[.-]?1",
    "SDXL": rf"{_SD}[ -]?xl(?:[ -]base)?(?:[ -]v?1\.0)?",
}
_SCHEDULER_SPELLINGS = {
    "DDIM": r"ddim(?:[ -]?scheduler)?",
    # Without the pluses it is an older method. The diffusers class of both runs DPM-Solver++ unless told otherwise.
    "DPM-Solver++": r"dpm[ -]?(?:solver[ -]?)?(?:\+\+|pp)|dpm[ -]?solver[ -]?multistep(?:[ -]?scheduler)?",
    "UniPCMultistepScheduler": r"uni[ -]?pc(?:[ -]?multistep)?(?:[ -]?scheduler)?",
}
_METHOD_SPELLINGS = {
    "DeepCache": r"deep[ -]?cache",
    "T-Gate": r"t[ -]?gate",
    "ToMe": r"to-?me|token[ -]merging",
}
# No part of a longer number, a negative one, or one with a comma in it.
_NUMBER_BEGIN = r"(?<![\w.-])(?<!\d,)"
_COUNT = rf"{_NUMBER_BEGIN}(\d{{1,6}})"
_STEPS_SPELLINGS = (
    rf"{_COUNT}[ -]?(?:(?:denoising|inference|sampling|diffusion) )?steps?{_END}",
    rf"{_BEGIN}(?:num_inference_)?steps?(?: of)? ?[:=]? ?(\d{{1,6}}){_END}",
)
_FACTOR = rf"{_NUMBER_BEGIN}(\d{{1,4}}(?:\.\d{{1,6}})?)"
_SPEEDUP = r"speed[ -]?up"
_TARGET_SPELLINGS = (
    rf"{_FACTOR}[ -]?(?:x|times|fold){_END}",
    rf"{_BEGIN}x ?(\d{{1,4}}(?:\.\d{{1,6}})?){_END}",
    rf"{_BEGIN}(?:{_SPEEDUP}|factor)(?: (?:of|at|least))* ?[:=]? ?(\d{{1,4}}(?:\.\d{{1,6}})?){_END}",
    rf"{_FACTOR} {_SPEEDUP}{_END}",
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
# Punctuation that changes nothing. Not among it: what may deny or limit ("!ToMe", "<2x", "~2x", "/").
_SEPARATORS = re.compile(r"(?:[\s,;:&+()\"'`?=-]|\.(?!\d))+")


class SentenceError(ValueError):
    """A sentence that is no task. The message names what is missing, contradictory or unknown, and what is known."""


def parse_task(sentence: str) -> Task:
    """The task that a sentence asks for.

    Args:
        sentence: words in any order, such as ``"SDXL with dpmpp, 25 steps, T-GATE + DeepCache, at least 2x faster"``.

    Raises:
        SentenceError: when a part is missing, named twice differently, or out of range, or a word has no place.
    """
    if len(sentence) > MAX_LENGTH:
        raise SentenceError(f"a sentence of {len(sentence)} characters; a task needs at most {MAX_LENGTH}")
    text = unicodedata.normalize("NFKC", sentence).translate(_LOOKALIKES).lower()
    text = re.sub(r"!+$", "", " ".join(text.replace(">=", " least ").split()))
    pipes, text = _names(_PIPE_SPELLINGS, text)
    schedulers, text = _names(_SCHEDULER_SPELLINGS, text)
    methods, text = _names(_METHOD_SPELLINGS, text)
    steps, text = _numbers(_STEPS_SPELLINGS, text)
    targets, text = _numbers(_TARGET_SPELLINGS, text)
    accelerators = [name for name in ACCELERATORS if set(slug(name).split("+")) == set(methods)]
    problems = [
        *_one_of("pipe", pipes),
        *_one_of("scheduler", schedulers),
        *_one_of("number of steps", steps),
        *_one_of("speedup", targets),
    ]
    if not methods:
        problems.append("no accelerator")
    elif not accelerators:
        problems.append(f"no known accelerator is made of {' and '.join(methods)}")
    if strangers := _strangers(text):
        problems.append(f"no place for {', '.join(strangers)}")
    if problems:
        raise SentenceError(_refusal(problems))
    try:
        return Task(Cell(pipes[0], schedulers[0], int(steps[0])), accelerators[0], targets[0])
    except ValueError as error:
        raise SentenceError(_refusal([str(error)])) from error


def _names(spellings: Mapping[str, str], text: str) -> tuple[list[str], str]:
    """The names that ``text`` spells, each once, and the text without them."""
    found = []
    for name, spelling in spellings.items():
        text, count = re.subn(rf"{_BEGIN}(?:{spelling}){_END}", " ", text)
        if count:
            found.append(name)
    return found, text


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


def _strangers(rest: str) -> list[str]:
    """What of the sentence is left and is no filler, quoted with everything unprintable escaped."""
    rest = re.sub(rf"{_BEGIN}(?:speed(?:s|ing)?|sped)[ -]?up{_END}", " ", rest)
    fillers = _FILLERS.split()
    words = [word for word in _SEPARATORS.split(rest) if word and word not in fillers]
    return [ascii(word) for word in dict.fromkeys(words)]


def _refusal(problems: Sequence[str]) -> str:
    example = Task(Cell("SD1.5", "DDIM", 20), "DeepCache", 1.5).sentence
    return (
        f"this sentence is no task: {'; '.join(problems)}.\n"
        f"Known pipes: {', '.join(PIPES)}. Schedulers: {', '.join(SCHEDULERS)}. "
        f"Accelerators: {'; '.join(ACCELERATORS)}. Steps are written as in '20 steps', "
        f"a speedup as in '1.5x speedup'.\nFor example: {example}"
    )
