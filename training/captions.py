"""The captions of the training pictures, and which combinations of object and colour training never sees."""

from __future__ import annotations

from dataclasses import dataclass

from training.objects import COLOURS, OBJECTS, Thing

COLOUR_NAMES: tuple[str, ...] = tuple(COLOURS)

# The first wording is the plain one: prompts, references and half of the training captions use it.
WORDINGS: tuple[str, ...] = (
    "{name} on {colour} background",
    "{a_name} on {colour} background",
    "{a_name} in front of {colour} background",
    "picture of {a_name} on {colour} background",
)
# The shipped `sd15` takes one for the other, before any background; `sdxl` blurs the car.
DRAWN_BADLY = ("police car", "cat face")


@dataclass(frozen=True)
class Scene:
    """What a caption settles: indices into ``OBJECTS`` and ``COLOUR_NAMES``."""

    thing: int
    colour: int


def with_article(word: str) -> str:
    """``word`` behind its indefinite article."""
    return f"{'an' if word[0] in 'aeio' else 'a'} {word}"


def caption(scene: Scene, wording: int = 0) -> str:
    """The caption of a scene, for example ``"red apple on a blue background"``."""
    thing: Thing = OBJECTS[scene.thing]
    a_name = thing.name if thing.plural else with_article(thing.name)
    return WORDINGS[wording].format(name=thing.name, a_name=a_name, colour=with_article(COLOUR_NAMES[scene.colour]))


def held_out_colour(thing: int) -> int:
    """The one colour behind which training never shows this object; the colours take turns."""
    return (3 * thing + thing // len(COLOUR_NAMES)) % len(COLOUR_NAMES)


def held_out_scenes() -> list[Scene]:
    """One scene for each object that training never sees, so that only a model that composes can draw it."""
    return [Scene(thing, held_out_colour(thing)) for thing in range(len(OBJECTS))]


def training_scenes() -> list[Scene]:
    """All other scenes."""
    held_out = set(held_out_scenes())
    every = [Scene(thing, colour) for thing in range(len(OBJECTS)) for colour in range(len(COLOUR_NAMES))]
    return [scene for scene in every if scene not in held_out]


def sample_prompts() -> list[str]:
    """One trained prompt for each object that all pipelines draw well, in an order in which neighbours differ in object
    family and colour.
    """
    count = len(OBJECTS)
    order = [(thing * 23) % count for thing in range(count)]  # 23 and the number of objects share no factor
    scenes = [Scene(thing, (held_out_colour(thing) + 1 + place % 7) % 8) for place, thing in enumerate(order)]
    return [caption(scene) for scene in scenes if OBJECTS[scene.thing].name not in DRAWN_BADLY]


def all_captions() -> list[str]:
    """Every caption there is, held-out ones included: the tokenizer may know their words, the models never see them."""
    scenes = training_scenes() + held_out_scenes()
    return [caption(scene, wording) for scene in scenes for wording in range(len(WORDINGS))]
