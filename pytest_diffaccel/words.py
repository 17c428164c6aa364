"""How sentences are written: counts with their nouns, and lines that fit a terminal; pure Python."""

from __future__ import annotations

import re
from textwrap import wrap

# What no line may end within: a figure's interval, a number and its unit, an option and its value, a command.
_WHOLE = re.compile(
    r"\[-?[\d.+%-]+x?, -?[\d.+%-]+x?\]"
    r"|\d (?:s|min|h|dB|MiB|px|steps?)\b"
    r"|(?:\b(?:pytest|diffaccel) [\w./-]+)?(?: ?--[a-z][\w-]*(?:[ =][\w./%]+)?)+"
)
_BOUND = "\N{NO-BREAK SPACE}"


def counted(number: int, noun: str, more: str = "") -> str:
    """``"1 case"``, ``"2 cases"``.

    Args:
        number: how many.
        noun: of one.
        more: of several; None where that is ``noun`` with an s.
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
    bound = _WHOLE.sub(lambda found: found[0][0] + found[0][1:].replace(" ", _BOUND), text)
    wrapped = wrap(bound, width, subsequent_indent=own + indent, break_long_words=False, break_on_hyphens=False)
    return [line.replace(_BOUND, " ") for line in wrapped]
