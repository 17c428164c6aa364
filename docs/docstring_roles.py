"""Docstrings of this project refer by Sphinx's roles; the site, which is none of Sphinx's, shows the names."""

from __future__ import annotations

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:attr|class|data|exc|func|meth|mod):`~?\.?(?:[\w.]+\.)?(\w+)`")


class Names(griffe.Extension):
    """Puts ``PipeSpec`` for ``:class:`~pytest_diffaccel.pipes.PipeSpec```, before sections are looked for."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called for each object with its docstring as it is in the source."""
        if obj.docstring:
            obj.docstring.value = _ROLE.sub(r"`\1`", obj.docstring.value)
