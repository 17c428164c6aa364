"""How sentences are written: counts with their nouns, lines that fit a terminal, what may be meant; pure Python."""

from __future__ import annotations

import re
from collections.abc import Mapping
from textwrap import wrap

# What no line may end within: a figure's interval, a number and its unit, a word and what it became, an option and its
# value, a command. Compiled when it is first used, since every pytest run imports this.
_WHOLE = (
    r"\[-?[\d.+%-]+x?, -?[\d.+%-]+x?\]"
    r"|\d (?:s|min|h|dB|MiB|px|steps?)\b"
    r"|(?<!\S)-?[\w.]{1,40} -> -?[\w.]+"
    r"|(?:\b(?:pytest|diffaccel) [\w./-]+)?(?: ?--[a-z][\w-]*(?:[ =][\w./%][\w./%+-]*)?| -[a-z] \d+)+"
)
_BOUND = "\N{NO-BREAK SPACE}"


def counted(number: int, noun: str, more: str = "") -> str:
    """``"1 case"``, ``"2 cases"``.

    Args:
        number: how many.
        noun: of one.
        more: of several; empty where that is ``noun`` with an s.
    """
    return f"{number} {noun if number == 1 else more or f'{noun}s'}"


def lines(text: str, width: int, indent: str = "    ") -> list[str]:
    """A line of text as lines of at most ``width`` characters; a word that is longer stays whole, on a line of its own.

    Args:
        text: the line, which may be indented.
        width: characters per line.
        indent: what further lines begin with, beside what the first one does.
    """
    if len(text) <= width:
        return [text]
    own = text[: len(text) - len(text.lstrip())]
    bound = re.sub(_WHOLE, lambda found: found[0][0] + found[0][1:].replace(" ", _BOUND), text)
    wrapped = wrap(bound, width, subsequent_indent=own + indent, break_long_words=False, break_on_hyphens=False)
    return [line.replace(_BOUND, " ") for line in wrapped]


def meant(text: str, spellings: Mapping[str, str]) -> str:
    """`` (did you mean SD1.5?)`` for what is nearly a known spelling; empty for what is near none, as no number is.

    Args:
        text: what was given.
        spellings: names by spelling.
    """
    from difflib import get_close_matches

    if re.fullmatch(r"[\d.]+", text):
        return ""
    near = get_close_matches(text, spellings, 1)
    return f" (did you mean {spellings[near[0]]}?)" if near else ""
