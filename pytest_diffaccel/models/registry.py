"""Model sources: which weights stand behind the names of pipes, and pipes that a models file describes.

Pure Python, so that options can be checked before anything heavy is imported.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from pytest_diffaccel.models import entries, own_pipes
from pytest_diffaccel.models.entries import Kind
from pytest_diffaccel.models.settings_files import read_json
from pytest_diffaccel.pipes import PipeRegistry, PipeSpec, known, make_known
from pytest_diffaccel.words import meant

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

#: The source that has shapes and no weights.
ARCHITECTURE = "architecture"
#: Why it cannot be asked for anything that looks at images.
NO_QUALITY = (
    "models 'architecture' has random weights: it tells speed and memory, and its images are noise, so nothing "
    "that scores them can use it"
)
_NO_FILES = ("embedded", "hub", ARCHITECTURE)

_WITH_TOKENIZERS = "SDXL"  # of CLIP, for pipes of random weights without a stand-in
_LINE = 'write a line per pipe into it, such as "SD1.5" = "path/to/folder"'


class UnknownPipe(ValueError):
    """A models file has an entry for a pipe that is not known; the message says which are."""


@dataclass(frozen=True)
class ModelSpec:
    """Where one pipe's weights are and how they are to be used.

    Attributes:
        pipe: the pipe's name.
        kind: ``"embedded"`` (in this package), ``"directory"``, ``"file"`` (a ``.safetensors``), ``"hub"`` or
            ``"architecture"`` (the pipe's shapes with random weights).
        location: the directory, the file, or the hub id; of an architecture, where its tokenizers are.
        description: the source in plain words, for reports: ``"embedded stand-in, not SD1.5"``.
        config: for a single file: directory or hub id of the tokenizer and scheduler settings it lacks.
        vae: directory, ``.safetensors`` file or hub id of a VAE in place of the pipeline's own; None: its own.
        dtype: a name of :data:`.DTYPES`; None: float16 on CUDA, float32 elsewhere.
        image_size: height and width in pixels; None: the pipeline's own default.
        guidance_scale: classifier-free guidance, at least 0; None: the pipeline's own default.
        own: what a models file says of a pipe of its own; None: the pipe is known without.
    """

    pipe: str
    kind: Kind
    location: str
    description: str
    config: str | None = None
    vae: str | None = None
    dtype: str | None = None
    image_size: tuple[int, int] | None = None
    guidance_scale: float | None = None
    own: PipeSpec | None = None

    @property
    def family(self) -> PipeSpec:
        """All that is known of the pipe."""
        return self.own or known()[self.pipe]

    @classmethod
    def from_embedded(cls, pipe: str) -> ModelSpec:
        """The trained stand-in that this package carries."""
        family = known()[pipe]
        folder = files("pytest_diffaccel.models") / "embedded" / family.embedded_folder
        side = read_json(Path(str(folder)) / "vae" / "config.json")["sample_size"] if family.sized_by_vae else None
        return cls(
            pipe,
            "embedded",
            str(folder),
            f"embedded stand-in, not {pipe}",
            image_size=side and (side, side),
            guidance_scale=family.embedded_guidance,
        )

    @classmethod
    def from_hub(cls, pipe: str) -> ModelSpec:
        """The public weights of ``pipe``."""
        family = known()[pipe]
        description = f"{pipe} public weights, {family.hub_id}"
        return cls(pipe, "hub", family.hub_id, description, guidance_scale=family.guidance_scale)

    @classmethod
    def from_architecture(cls, pipe: str) -> ModelSpec:
        """The full-size pipe with random weights, and an embedded stand-in's tokenizers: its own where it has one."""
        description = f"architecture only: {pipe}'s shapes, random weights; speed, no quality"
        tokenizers = cls.from_embedded(pipe if known()[pipe].embedded_folder else _WITH_TOKENIZERS)
        return cls(pipe, "architecture", tokenizers.location, description)

    @classmethod
    def from_toml(cls, pipe: str, entry: object, base: Path) -> ModelSpec:
        """A spec from one entry of a models file.

        Args:
            pipe: the entry's key.
            entry: a string (path or hub id) or a table with the keys ``path`` or ``id``, and optionally
                ``config``, ``vae``, ``dtype``, ``height``, ``width`` and ``guidance_scale``; of a pipe that is
                not known also ``class``, the name of its pipeline class, and optionally ``steps`` and ``schedulers``.
            base: the directory that relative paths start from, absolute.

        Raises:
            ValueError: naming the bad value and what to write instead.
        """
        table = entries.table_of(entry, base, is_known=_is_known(pipe))
        written = table.get("path", table.get("id"))
        if not isinstance(written, str) or not written:
            raise ValueError(f"{written!r} is neither a path nor a hub id")
        kind, location = entries.located(written, base) if "path" in table else ("hub", entries.hub_id(written))
        own = None
        if "class" in table:
            own = own_pipes.own_pipe(pipe, table, Path(location) if kind == "directory" else None)
        family = own or known()[pipe]
        if kind == "file" and "config" not in table and not family.hub_id:
            raise ValueError(f'{written!r} has no tokenizer and scheduler settings; set config = "a diffusers folder"')
        return cls(
            pipe=pipe,
            kind=kind,
            location=location,
            description=_description(pipe, kind, written, table.get("vae")),
            config=entries.place("config", table.get("config"), base),
            vae=entries.place("vae", table.get("vae"), base),
            dtype=entries.dtype(table.get("dtype")),
            image_size=entries.image_size(table.get("height"), table.get("width"), family.side_unit),
            guidance_scale=entries.guidance_scale(table.get("guidance_scale", family.guidance_scale)),
            own=own,
        )

    @property
    def call_options(self) -> dict[str, Any]:
        """``height``, ``width`` (pixels), ``guidance_scale`` for a pipeline's call; open ones are absent."""
        options: dict[str, Any] = {}
        if self.image_size is not None:
            options["height"], options["width"] = self.image_size
        if self.guidance_scale is not None:
            options["guidance_scale"] = self.guidance_scale
        return options


@dataclass(frozen=True)
class ModelSource:
    """What ``--models`` names: a spec for each pipe that it has.

    Attributes:
        name: ``"embedded"``, ``"hub"``, ``"architecture"``, or the models file's path as it was given.
        specs: one spec per pipe: the known ones in their order, then those that it describes.
    """

    name: str
    specs: tuple[ModelSpec, ...]

    @classmethod
    def from_option(cls, text: str) -> ModelSource:
        """Read ``--models``.

        Args:
            text: ``"embedded"``, ``"hub"``, ``"architecture"`` or the path of a TOML file that maps pipes to
                directories, single ``.safetensors`` files or hub ids.

        Raises:
            ValueError: for anything else, naming the bad value and the fix.
        """
        if text == "embedded":
            return cls(text, tuple(ModelSpec.from_embedded(pipe.name) for pipe in known() if pipe.embedded_folder))
        if text == "hub":
            return cls(text, tuple(ModelSpec.from_hub(pipe.name) for pipe in known() if pipe.hub_id))
        if text == ARCHITECTURE:
            shaped = [pipe.name for pipe in known() if pipe.architecture]
            return cls(text, tuple(ModelSpec.from_architecture(pipe) for pipe in shaped))
        return cls._from_file(text)

    @classmethod
    def _from_file(cls, text: str) -> ModelSource:
        path = Path(text).expanduser()
        if not path.is_file():
            near = meant(text, {name: name for name in ("embedded", "hub", ARCHITECTURE)})
            raise ValueError(
                f"models {text!r}: not 'embedded', 'hub', 'architecture' or a TOML file that exists{near}; {_LINE}"
            )
        try:
            written = tomllib.loads(path.read_text(encoding="utf-8-sig"))  # as editors on Windows write it
        except (ValueError, RecursionError) as error:  # broken TOML, nested too deeply, or bytes that are no UTF-8
            raise ValueError(f"models {text!r} is not a TOML file: {error}") from error
        if not written:
            raise ValueError(f"models {text!r} is empty: {_LINE}")
        return cls(text, _specs(text, written, path.parent.absolute()))

    def spec(self, pipe: str) -> ModelSpec:
        """The spec of one pipe.

        Raises:
            ValueError: if there is no such pipe, or the source has no weights for it.
        """
        for spec in self.specs:
            if spec.pipe == pipe:
                return spec
        if pipe not in known():
            valid = dict.fromkeys([*(family.name for family in known()), *(spec.pipe for spec in self.specs)])
            raise ValueError(f"no pipe {pipe!r}; valid: {', '.join(valid)}")
        raise ValueError(f"models {self.name!r} has no entry for {pipe}; {self._other_weights(pipe)}")

    def _other_weights(self, pipe: str) -> str:
        # What is searched where it is named, and only there.
        others = [spec.pipe for spec in self.specs if not spec.family.is_in_matrix]
        if self.name not in _NO_FILES:
            return f"search what it has: --pipe {others[0]}" if others else _LINE
        if known()[pipe].hub_id:
            return "its public weights are those of --models hub"
        return f'give a models file (--models) with a line "{pipe}" = "path/to/folder"'


def know_pipes(registry: PipeRegistry, models: str) -> None:
    """Let this process know the pipes of ``registry`` and those that a models file describes.

    Args:
        registry: of the session.
        models: as :meth:`ModelSource.from_option` takes it.

    Raises:
        ValueError: as that, and when a pipe of the file is spelled like another.
    """
    make_known(registry)
    for spec in ModelSource.from_option(models).specs:
        if spec.own:
            registry.register(spec.own)


def _is_known(pipe: str) -> bool:
    """Whether a pipe is known, and not by a models file."""
    return pipe in known() and not known()[pipe].models_file


def _specs(name: str, written: Mapping[str, object], base: Path) -> tuple[ModelSpec, ...]:
    own = [key for key, value in written.items() if isinstance(value, dict) and "class" in value]
    for key, value in written.items():
        if not _is_known(key) and key not in own:
            raise UnknownPipe(f"models {name!r}: no pipe {key!r}; {_fixed_key(key, value)}")
    specs = []
    in_order = [family.name for family in known() if _is_known(family.name)]
    for pipe in sorted(written, key=lambda key: in_order.index(key) if key in in_order else len(in_order)):
        try:
            spec = ModelSpec.from_toml(pipe, written[pipe], base)
            specs.append(replace(spec, own=replace(spec.own, models_file=name)) if spec.own else spec)
        except ValueError as error:
            raise ValueError(f"models {name!r}, {pipe}: {error}") from error
    return tuple(specs)


def _fixed_key(key: str, value: object) -> str:
    # TOML reads the bare key SD1.5 as key 5 of a table SD1.
    inner = value if isinstance(value, dict) else {}
    for rest, entry in inner.items():
        if f"{key}.{rest}" in known() or (isinstance(entry, dict) and "class" in entry):
            return f'put the key in quotes: "{key}.{rest}"'
    valid = ", ".join(family.name for family in known())
    return f'valid: {valid}; one of your own names its pipeline class, such as class = "StableDiffusionPipeline"'


def _description(pipe: str, kind: Kind, written: str, vae: object) -> str:
    """In the user's own words: a report must not show where somebody's home is."""
    return f"{pipe} from {'the hub, ' if kind == 'hub' else ''}{written}" + (f", VAE {vae}" if vae else "")
