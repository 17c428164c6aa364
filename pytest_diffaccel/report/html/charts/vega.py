"""Charts as Vega-Lite specifications, and the pictures or tables of them that are shown without JavaScript."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any, TypeAlias

Spec: TypeAlias = Mapping[str, Any]

#: What to say of a page without charts.
NOT_DRAWN = "without charts, which need vl-convert-python: pip install 'pytest-diffaccel[report]'"

#: Colours that people with any kind of colour blindness tell apart (Okabe and Ito 2008): the page's style has them, in
#: shades for light and for dark.
COLOURS = tuple(f"var(--series-{place})" for place in range(1, 9))
#: Shapes that go with them, so that no chart depends on colour alone.
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right", "triangle-left")
# Pixels of a chart that has no width of its own, without JavaScript.
_WIDTH = 720
#: What all charts have in common. Texts and lines take the page's own colour, so that one picture fits light and dark.
CONFIG: Spec = {
    "background": None,
    # Labels may be a little longer in the reader's font than in the one that the pictures are laid out with.
    "padding": {"left": 14, "right": 8, "top": 5, "bottom": 5},
    "aria": False,
    "font": "system-ui, sans-serif",
    "view": {"stroke": None},
    "axis": {
        "labelColor": "currentColor",
        "titleColor": "currentColor",
        "domainColor": "currentColor",
        "tickColor": "currentColor",
        "gridColor": "currentColor",
        "gridOpacity": 0.12,
        "titleFontWeight": "normal",
        "labelFontSize": 12,
        "titleFontSize": 13,
        "titlePadding": 10,
    },
    "legend": {
        "labelColor": "currentColor",
        "titleColor": "currentColor",
        "labelFontSize": 12,
        "labelLimit": 260,
        "columnPadding": 28,
    },
    "header": {"labelColor": "currentColor", "titleColor": "currentColor", "labelFontSize": 12, "labelLimit": 400},
    "text": {"color": "currentColor"},
    "rule": {"color": "currentColor"},
}
_TAG = re.compile(r"<[^>]+>")
_LONG_NUMBER = re.compile(r"(\d+\.\d)\d+")
# What Vega writes for programs that read a drawing, or for no one: the page names each chart, and sets its font.
_NEEDLESS = re.compile(
    r' (?:class|aria-hidden|aria-roledescription|role|pointer-events|font-family)="[^"]*"| opacity="1"'
    r'|<path (?=[^>]*\bd="")[^>]*/>|<path [^>]*display="none"/>'
)
_EMPTY_GROUP = re.compile(r"<g[^>]*></g>")
_DRAWN = re.compile(r'<(path|line) transform="([^"]*)"([^>]*)/>')
_ID = re.compile(r'\bid="([^"]+)"')
_REFERENCE = re.compile(r'(url\(|href=")#([^)"]+)')


@dataclass(frozen=True)
class Chart:
    """One chart.

    Attributes:
        name: unique on the page, letters, digits and dashes.
        label: what it shows, for those who do not see it.
        spec: its Vega-Lite specification, without :data:`CONFIG`; ``"width": "container"`` makes a
            part as wide as its page.
        rows: the dataset ``"rows"``, which the page holds already and the specification leaves out.
    """

    name: str
    label: str
    spec: Spec
    rows: Sequence[Mapping[str, Any]] = ()

    @property
    def svg(self) -> str:
        """The chart as a picture, to stand in a page with others; needs vl-convert-python (:func:`can_draw`)."""
        from vl_convert import vegalite_to_svg

        spec = {**self.spec, "config": CONFIG}
        if spec.get("width") == "container":
            spec["width"] = _WIDTH
        if self.rows:
            spec["datasets"] = {**spec.get("datasets", {}), "rows": list(self.rows)}
        return _for_page(vegalite_to_svg(spec), self.name)

    @property
    def table(self) -> list[dict[str, Any]]:
        """Its own values by heading, as the pointer shows them; none where they are the page's rows.

        Columns in which nothing is known are left out.
        """
        values = self.spec.get("data", {}).get("values", ())
        fields = next(_tooltips(self.spec), ())
        known = [field for field in fields if any(row.get(field["field"]) not in (None, "") for row in values)]
        return [{field.get("title", field["field"]): row.get(field["field"]) for field in known} for row in values]


def can_draw() -> bool:
    """Whether charts can be drawn, by whoever makes the page and by its script: both come with vl-convert-python."""
    try:
        import_module("vl_convert")
    except ImportError:
        return False
    return True


def accelerator_scales(names: Sequence[str]) -> tuple[Spec, Spec]:
    """Scales of colour and shape: an accelerator has the same in all charts of a page."""
    count = len(names)
    colours = [COLOURS[place % len(COLOURS)] for place in range(count)]
    shapes = [SHAPES[place % len(SHAPES)] for place in range(count)]
    return {"domain": list(names), "range": colours}, {"domain": list(names), "range": shapes}


def _tooltips(spec: Any) -> Iterator[Sequence[Mapping[str, str]]]:
    """What the pointer shows, of every layer that says so."""
    if isinstance(spec, Mapping):
        if "tooltip" in spec:
            yield spec["tooltip"]
        spec = list(spec.values())
    if isinstance(spec, list):
        for part in spec:
            yield from _tooltips(part)


def _for_page(svg: str, name: str) -> str:
    """Shorter, and with ids that no other picture of the page has."""
    svg = _EMPTY_GROUP.sub("", _NEEDLESS.sub("", svg))
    # Coordinates, but no text that is to be read.
    svg = _TAG.sub(lambda found: _LONG_NUMBER.sub(r"\1", found[0]), svg)
    svg = _share_drawings(svg)
    svg = _ID.sub(lambda found: f'id="{name}-{found[1]}"', svg)
    return _REFERENCE.sub(lambda found: f"{found[1]}#{name}-{found[2]}", svg)


def _share_drawings(svg: str) -> str:
    """Draw what differs in its place only once, and refer to it."""
    counts = Counter((found[1], found[3]) for found in _DRAWN.finditer(svg))
    shared = {drawing: f"d{place}" for place, (drawing, count) in enumerate(counts.items()) if count > 2}

    def refer(found: re.Match[str]) -> str:
        name = shared.get((found[1], found[3]))
        return f'<use href="#{name}" transform="{found[2]}"/>' if name else found[0]

    drawn = "".join(f'<{tag} id="{name}"{rest}/>' for (tag, rest), name in shared.items())
    svg = _DRAWN.sub(refer, svg)
    return svg.replace("><", f"><defs>{drawn}</defs><", 1) if drawn else svg


@cache
def library() -> str:
    """Vega, Vega-Lite and Vega-Embed in one script, under 1 MB, that loads nothing; safe inside a script element."""
    from vl_convert import javascript_bundle

    script: str = javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return script.replace("</script", "<\\/script").replace("<!--", "\\x3C!--")
