"""Which copy of a component's weights is used where several lie in its folder: loaded and fingerprinted alike."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from pytest_diffaccel.models.settings_files import read_json

# Behind the stem of a weight file's name. Shards of a variant had it at their end until diffusers 0.31, and its index
# in the middle.
_SHARD = re.compile(r"(\.(?P<before>[\w-]+?))?-\d+-of-\d+(\.(?P<after>[\w-]+))?\.safetensors")
_SINGLE = re.compile(r"(\.(?P<variant>[\w-]+))?\.safetensors")
_INDEX = re.compile(r"\.safetensors(\.(?P<before>[\w-]+))?\.index(\.(?P<after>[\w-]+))?\.json")
# The full weights first, then copies by how much they keep; others by name.
_PREFERRED = ("", "fp16", "bf16")
_FIX = "fetch the folder again, or save the pipeline again with safe_serialization=True"


@dataclass(frozen=True)
class WeightCopy:
    """One copy of a component's weights: a file, or shards with the index that lists them.

    Attributes:
        stem: what names begin with, ``"model"`` or ``"diffusion_pytorch_model"``.
        index: the shards' index; None for a single file.
        files: the weight files, sorted.
        alone: whether the libraries find just these files when they are not told which.
    """

    stem: str
    index: Path | None
    files: tuple[Path, ...]
    alone: bool

    @property
    def plain_names(self) -> Mapping[str, Path]:
        """The files by names under which the libraries find them when they are not told which."""
        if self.index is None:
            return {f"{self.stem}.safetensors": self.files[0]}
        return {f"{self.stem}.safetensors.index.json": self.index, **{path.name: path for path in self.files}}


def weight_copy(folder: Path) -> WeightCopy:
    """The copy that is used of a component's weights: full ones, else fp16, else bf16, else what there is.

    Args:
        folder: of a component.

    Raises:
        FileNotFoundError: if there is none, or a shard or its index is missing; the message says what is there.
        ValueError: if an index cannot be read.
    """
    stem = "model" if folder.name.startswith("text_encoder") else "diffusion_pytorch_model"
    singles, indexes, shards = {}, {}, {}
    for path in sorted(folder.glob(f"{stem}*")):
        rest = path.name.removeprefix(stem)
        if match := _SHARD.fullmatch(rest):
            shards[match["before"] or match["after"] or ""] = path
        elif match := _SINGLE.fullmatch(rest):
            singles[match["variant"] or ""] = path
        elif match := _INDEX.fullmatch(rest):
            indexes[match["before"] or match["after"] or ""] = path
    variants = {*singles, *indexes, *shards}
    if not variants:
        raise FileNotFoundError(_nothing(folder, stem))
    variant = min(variants, key=_rank)
    alone = not variant and not (singles.get("") and indexes.get(""))
    if variant in singles:
        return WeightCopy(stem, None, (singles[variant],), alone)
    if variant not in indexes:
        index = f"{stem}.safetensors.index{variant and f'.{variant}'}.json"
        raise FileNotFoundError(
            f"{folder} holds {shards[variant].name} without {index}, which says what is in it; {_FIX}"
        )
    return WeightCopy(stem, indexes[variant], _listed(indexes[variant]), alone)


def component_files(folder: Path) -> list[Path]:
    """The weight files that a component is loaded from, sorted; see :func:`weight_copy`."""
    return list(weight_copy(folder).files)


@contextmanager
def loadable(folder: Path, components: Sequence[str]) -> Iterator[Path]:
    """A folder from which diffusers loads what :func:`component_files` names, whatever lies beside it.

    Args:
        folder: of a pipeline.
        components: names of its folders with weights.

    Yields:
        ``folder`` itself where nothing else can be found in it, else one of links to its files, for as long as the
        block lasts.
    """
    copies = {name: weight_copy(folder / name) for name in components}
    if all(copy.alone for copy in copies.values()):
        yield folder
        return
    with TemporaryDirectory() as made:
        for path in folder.iterdir():
            if path.name not in copies:
                (Path(made) / path.name).symlink_to(path.resolve())
        for name, copy in copies.items():
            _link(folder / name, copy, Path(made) / name)
        yield Path(made)


@contextmanager
def loadable_component(folder: Path) -> Iterator[Path]:
    """As :func:`loadable`, of the folder of one component."""
    copy = weight_copy(folder)
    if copy.alone:
        yield folder
        return
    with TemporaryDirectory() as made:
        _link(folder, copy, Path(made) / folder.name)
        yield Path(made) / folder.name


def _link(folder: Path, copy: WeightCopy, target: Path) -> None:
    target.mkdir()
    for name, path in {"config.json": folder / "config.json", **copy.plain_names}.items():
        (target / name).symlink_to(path.resolve())


def _rank(variant: str) -> tuple[int, str]:
    return (_PREFERRED.index(variant) if variant in _PREFERRED else len(_PREFERRED)), variant


def _listed(index: Path) -> tuple[Path, ...]:
    """The files that an index lists, all of which are there."""
    listed = read_json(index).get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise ValueError(f"{index} lists no weights; {_FIX}")
    names = sorted({str(name) for name in listed.values()})
    for name in names:
        if Path(name).name != name:
            raise ValueError(f"{index} lists {name!r}, which is no file beside it; {_FIX}")
        if not (index.parent / name).is_file():
            raise FileNotFoundError(f"{index.parent} lacks {name}, which {index.name} lists; {_FIX}")
    return tuple(index.parent / name for name in names)


def _nothing(folder: Path, stem: str) -> str:
    if any(folder.glob("*.bin")):
        found = "only pickled weights (.bin), which can run code"
    elif others := ", ".join(sorted(path.name for path in folder.glob("*.safetensors"))):
        found = f"{others}, but no {stem}.safetensors or copy of it such as {stem}.fp16.safetensors"
    else:
        found = "no .safetensors weights"
    return f"{folder} holds {found}; {_FIX}"
