"""Which CLIP scores pictures, and loading it: from safetensors only, without remote code.

Pure Python until something is loaded, so that options can be checked before anything heavy is imported.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, cast

from pytest_diffaccel.models.hub import cached_clip, clip_command, fetched_clip
from pytest_diffaccel.models.loading import no_progress_bars
from pytest_diffaccel.models.settings_files import read_json, refuse_auto_map
from pytest_diffaccel.models.tensors import file_digest, tensor_shapes
from pytest_diffaccel.words import meant

#: The option's value that names the stand-in in this package.
EMBEDDED = "embedded"
#: What scores pictures of real models unless another is named.
DEFAULT_HUB_ID = "openai/clip-vit-base-patch32"
# Where a repository's main revision has pickled weights only: the one in which the hub's own bot added safetensors.
_REVISIONS = {DEFAULT_HUB_ID: "refs/pr/15"}
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w./-]+)?")
_WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors")
_VOCABULARIES = (("tokenizer.json",), ("vocab.json", "merges.txt"))


@dataclass(frozen=True)
class ClipSource:
    """Where the weights of a CLIP are.

    Attributes:
        kind: ``"embedded"`` (in this package), ``"directory"`` or ``"hub"``.
        location: the folder, or the hub id.
        revision: of a hub id; empty for its main one.
        description: the source in plain words, for reports and records.
    """

    kind: Literal["embedded", "directory", "hub"]
    location: str
    revision: str
    description: str

    @classmethod
    def from_option(cls, text: str) -> ClipSource:
        """Read ``--clip-model``.

        Args:
            text: ``"embedded"``, a folder as transformers lays it out, or a hub id, with ``@revision`` if need be.

        Raises:
            ValueError: for anything else, naming the bad value and the fix.
        """
        if text == EMBEDDED:
            folder = files("pytest_diffaccel.models") / "embedded" / "clip_standin"
            return cls("embedded", str(folder), "", "embedded stand-in, not CLIP")
        folder = Path(text).expanduser()
        if folder.is_dir():
            return cls("directory", str(folder.absolute()), "", text)
        if text.startswith((".", "/", "~")) or not _HUB_ID.fullmatch(text):
            near = meant(text, {name: name for name in (EMBEDDED, DEFAULT_HUB_ID)})
            raise ValueError(
                f"{text!r} is not 'embedded', a folder that exists or a hub id such as {DEFAULT_HUB_ID!r}{near}"
            )
        hub_id, _, revision = text.partition("@")
        return cls("hub", hub_id, revision or _REVISIONS.get(hub_id, ""), text)

    def folder(self) -> Path:
        """The folder with all that is needed, downloaded if need be.

        Raises:
            FileNotFoundError: when something is missing, naming it and the fix.
            ValueError: when something is broken, or asks for code of its own.
        """
        if self.kind != "hub":
            folder = Path(self.location)
            check_clip_folder(folder)
            return folder
        # The cached copy first: a search must not change its weights half way because the repository did.
        try:
            return self._whole(cached_clip(self.location, self.revision))
        except FileNotFoundError:
            return self._whole(fetched_clip(self.location, self.revision))

    def _whole(self, folder: Path) -> Path:
        """A repository's folder, if it is whole."""
        command = clip_command(self.location, self.revision)
        try:
            check_clip_folder(folder)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{error}. Fetch all of {self.location}: {command}. If only another revision has it, write "
                f"{self.location}@REVISION"
            ) from error
        except ValueError as error:
            raise ValueError(f"{error}. Fetch all of {self.location} again: {command} --force-download") from error
        return folder

    def digest(self) -> str:
        """SHA-256 of its weights, 64 hex digits; raises what :meth:`folder` does."""
        digests = [file_digest(path) for path in _weights(self.folder())]
        return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()


@dataclass(frozen=True)
class Clip:
    """A loaded CLIP, in float32 on the CPU, with what makes its inputs.

    Attributes:
        model: a ``transformers.CLIPModel`` in evaluation mode.
        tokenizer: of its texts, a ``CLIPTokenizer``.
        processor: of its pictures, a ``CLIPImageProcessor``.
    """

    model: Any
    tokenizer: Any
    processor: Any

    @property
    def most_tokens(self) -> int:
        """How many tokens of a text it reads, its first and last ones included."""
        return int(self.model.config.text_config.max_position_embeddings)


def load_clip(source: ClipSource) -> Clip:
    """Load a CLIP.

    Raises:
        FileNotFoundError: for missing files; the message names the fix.
        ValueError: for broken weights, or those of another model, and for what asks for code of its own.
    """
    import torch
    from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

    folder = source.folder()
    with no_progress_bars():
        try:
            model, found = cast("Any", CLIPModel).from_pretrained(
                folder, dtype=torch.float32, use_safetensors=True, local_files_only=True, output_loading_info=True
            )
        except RuntimeError as error:  # tensors of other shapes
            raise ValueError(f"{folder} holds weights of another model than its config.json: {error}") from error
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        processor = CLIPImageProcessor.from_pretrained(folder, local_files_only=True)
    if missing := sorted(found["missing_keys"]):
        raise ValueError(f"{folder} lacks {len(missing)} of CLIP's tensors, such as {missing[0]}; save it again whole")
    return Clip(model.eval().requires_grad_(False), tokenizer, processor)


def check_clip_folder(folder: Path) -> None:
    """Refuse a folder that holds no whole CLIP, by names, settings and headers alone.

    Raises:
        FileNotFoundError: naming what is missing.
        ValueError: for another model, weights that are cut off, and what asks for code of its own.
    """
    for name in ("config.json", "preprocessor_config.json"):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} has no {name}; give a CLIP as transformers saves it, with its processor")
    kind = read_json(folder / "config.json").get("model_type")
    if kind != "clip":
        raise ValueError(f"{folder} holds a model of type {kind!r}; give a CLIP, whose config.json says 'clip'")
    if not any(all((folder / name).is_file() for name in names) for names in _VOCABULARIES):
        raise FileNotFoundError(
            f"{folder} has no tokenizer.json, nor vocab.json and merges.txt; save its tokenizer too"
        )
    for path in sorted(folder.glob("*config.json")):
        refuse_auto_map(path)
    weights = _weights(folder)
    if not weights:
        raise FileNotFoundError(f"{folder} has no model.safetensors, and pickled weights are not read")
    for path in weights:
        tensor_shapes(path)


def _weights(folder: Path) -> list[Path]:
    """The file, or the files of one that was cut; copies of less precision are not read."""
    return sorted(path for path in folder.glob("model*.safetensors") if _WEIGHTS.fullmatch(path.name))
