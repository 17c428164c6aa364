"""What the training pictures show: the curated objects and the background colours.

The names follow the short names of the PyPI package ``emoji`` (Unicode CLDR) where those read well in a caption, and
are shortened where they do not ("1f31e": "sun with face" became "sun"). Codes are file names of the npm package
``@lobehub/fluent-emoji-3d``.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Thing:
    """An object that can be drawn: its picture's file name without the ending, its name, and whether it is a plural."""

    code: str
    name: str
    plural: bool = False


_SINGULAR = {
    "1f34e": "red apple",
    "1f34b": "lemon",
    "1f34c": "banana",
    "1f349": "watermelon",
    "1f34d": "pineapple",
    "1f353": "strawberry",
    "1f350": "pear",
    "1f345": "tomato",
    "1f955": "carrot",
    "1f951": "avocado",
    "1f344": "mushroom",
    "1f354": "hamburger",
    "1f355": "pizza",
    "1f369": "doughnut",
    "1f9c1": "cupcake",
    "1f382": "birthday cake",
    "1f366": "ice cream",
    "1f436": "dog face",
    "1f431": "cat face",
    "1f43c": "panda",
    "1f98a": "fox",
    "1f438": "frog",
    "1f981": "lion",
    "1f437": "pig face",
    "1f428": "koala",
    "1f427": "penguin",
    "1f989": "owl",
    "1f422": "turtle",
    "1f98b": "butterfly",
    "1f41e": "ladybug",
    "1f419": "octopus",
    "1f420": "tropical fish",
    "1f425": "baby chick",
    "1f600": "grinning face",
    "1f60e": "face with sunglasses",
    "1f621": "angry face",
    "1f916": "robot",
    "1f47d": "alien",
    "1f383": "pumpkin lantern",
    "2764-fe0f": "red heart",
    "1f499": "blue heart",
    "1f49a": "green heart",
    "1f692": "fire engine",
    "1f693": "police car",
    "1f695": "taxi",
    "1f680": "rocket",
    "1f68c": "bus",
    "26f5": "sailboat",
    "1f69c": "tractor",
    "1f33b": "sunflower",
    "1f339": "rose",
    "1f335": "cactus",
    "1f334": "palm tree",
    "1f388": "balloon",
    "1f381": "wrapped gift",
    "1f3c0": "basketball",
    "26bd": "soccer ball",
    "1f451": "crown",
    "2b50": "star",
    "1f31e": "sun",
    "1f3e0": "house",
    "1f48e": "gem stone",
}
_PLURAL = {"1f347": "grapes", "1f352": "cherries"}

OBJECTS: tuple[Thing, ...] = tuple(Thing(code, name) for code, name in _SINGULAR.items()) + tuple(
    Thing(code, name, plural=True) for code, name in _PLURAL.items()
)

# Hue in degrees, saturation and value (0 to 1) of the middle shade of each named background colour.
COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (358.0, 0.78, 0.80),
    "orange": (27.0, 0.85, 0.95),
    "yellow": (52.0, 0.72, 0.96),
    "green": (128.0, 0.58, 0.68),
    "blue": (214.0, 0.72, 0.80),
    "purple": (274.0, 0.55, 0.70),
    "pink": (335.0, 0.38, 0.97),
    "gray": (220.0, 0.04, 0.62),
}
