"""Hub repositories as local folders: from the cache where it has them, else by download."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from textwrap import shorten
from typing import TypeAlias

from pytest_diffaccel.models.settings_files import LEFT_OUT, refuse_code
from pytest_diffaccel.pipes import BUILT_IN

# What a pipeline is loaded from; repositories also hold pickled and single-file copies of the same weights.
_SETTINGS = ("*.json", "*/*.txt")
_WANTED = (*_SETTINGS, "*/model.safetensors", "*/diffusion_pytorch_model.safetensors")
_IN_WHOLE_FILES = [spec.hub_id for spec in BUILT_IN if spec.is_in_matrix]
# Of any other repository: shards, and copies of less precision where there may be nothing else.
_WANTED_OF_OTHERS = (*_SETTINGS, "*/model*.safetensors", "*/diffusion_pytorch_model*.safetensors")
_FULL = re.compile(r"(model|diffusion_pytorch_model)(-\d+-of-\d+)?\.safetensors")
_UNWANTED = "safety_checker/*"
_WANTED_OF_VAE = ("config.json", "diffusion_pytorch_model.safetensors")
_WANTED_OF_CLIP = ("*.json", "*.txt", "model.safetensors", "model-*.safetensors")
# Of the hub client's messages, which go on with advice.
_REASON_LENGTH = 200

#: Takes a repository and whether only the cache may be asked.
_Source: TypeAlias = Callable[[str, bool], Path]


def fetch_command(repository: str) -> str:
    """The shell command that puts a pipeline's ``repository`` into the local cache."""
    wanted = _WANTED if repository in _IN_WHOLE_FILES else _WANTED_OF_OTHERS
    return f'hf download {repository} {_included(wanted)} --exclude "{_UNWANTED}"'


def settings_command(repository: str, folder: Path, component: str) -> str:
    """The shell command that puts the settings, or vocabulary, of one component of ``repository`` into ``folder``."""
    wanted = _included((f"{component}/*.json", f"{component}/*.txt"))
    return f"hf download {repository} {wanted} --local-dir {shlex.quote(str(folder))}"


def vae_command(repository: str) -> str:
    """The shell command that puts a VAE's ``repository`` into the local cache."""
    return f"hf download {repository} {_included(_WANTED_OF_VAE)}"


def clip_command(repository: str, revision: str) -> str:
    """The shell command that puts a CLIP's ``repository`` into the local cache, at a revision if one is named."""
    at = f" --revision {revision}" if revision else ""
    return f"hf download {repository}{at} {_included(_WANTED_OF_CLIP)}"


def cached_folder(repository: str) -> Path:
    """The folder of a pipeline's repository in the local cache; nothing is downloaded.

    Raises:
        FileNotFoundError: if it is not there, naming the command that fetches it.
    """
    return _cached(repository, _cached_pipeline, fetch_command(repository))


def fetched_folder(repository: str) -> Path:
    """The folder of a pipeline's repository, downloading what the cache lacks.

    Raises:
        FileNotFoundError: if it can neither be found nor downloaded, naming the command that fetches it.
        ValueError: if it asks for code of its own; its weights are not downloaded then.
    """
    command = fetch_command(repository)
    refuse_code(_fetched(repository, _index, command))
    return _fetched(repository, _fetched_pipeline, command)


def is_offline() -> bool:
    """Whether the hub's client may not use the network: ``HF_HUB_OFFLINE`` or ``TRANSFORMERS_OFFLINE`` is set."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def cached_settings(repository: str) -> Path:
    """As :func:`cached_folder`, without a look at what else than its index is there: no torch is imported for this."""
    return _cached(repository, lambda name, cache_only: _index(name, cache_only).parent, fetch_command(repository))


def cached_vae(repository: str) -> Path:
    """As :func:`cached_folder`, of a VAE's repository."""
    return _cached(repository, _vae, vae_command(repository))


def fetched_vae(repository: str) -> Path:
    """As :func:`fetched_folder`, of a VAE's repository."""
    return _fetched(repository, _vae, vae_command(repository))


def cached_clip(repository: str, revision: str) -> Path:
    """As :func:`cached_folder`, of a CLIP's repository at a revision (empty: its main one); it may lack files."""
    return _cached(repository, partial(_clip, revision), clip_command(repository, revision))


def fetched_clip(repository: str, revision: str) -> Path:
    """As :func:`fetched_folder`, of a CLIP's repository at a revision (empty: its main one)."""
    return _fetched(repository, partial(_clip, revision), clip_command(repository, revision))


def _included(patterns: Sequence[str]) -> str:
    return " ".join(f'--include "{pattern}"' for pattern in patterns)


def _cached(repository: str, source: _Source, command: str) -> Path:
    try:
        return source(repository, True)
    except (OSError, ValueError) as error:
        raise FileNotFoundError(f"{repository} is not in the local cache; fetch it: {command}") from error


def _fetched(repository: str, source: _Source, command: str) -> Path:
    from huggingface_hub.errors import GatedRepoError

    try:
        return source(repository, False)
    except Exception as error:  # which class a dead network raises differs between versions of the hub client
        reason = shorten(str(error), _REASON_LENGTH, placeholder=" ...")
        gated = isinstance(error, GatedRepoError) or any(
            spec.is_gated for spec in BUILT_IN if spec.hub_id == repository
        )
        raise FileNotFoundError(
            f"{repository} is not complete in the local cache and cannot be downloaded ({reason}). "
            f"{_access(repository) if gated else ''}Where there is a network, run: {command}"
        ) from error


def _access(repository: str) -> str:
    """How one gets at a repository that gives its files only to who has accepted its licence."""
    return (
        f"It is gated: accept its licence at https://huggingface.co/{repository}, signed in, then run `hf auth login` "
        "(or set HF_TOKEN). "
    )


def _index(repository: str, cache_only: bool) -> Path:
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(repository, "model_index.json", local_files_only=cache_only))


def _pipeline(repository: str, cache_only: bool) -> Path:
    from diffusers import DiffusionPipeline

    left_out = dict.fromkeys(LEFT_OUT)
    return Path(DiffusionPipeline.download(repository, use_safetensors=True, local_files_only=cache_only, **left_out))


def _cached_pipeline(repository: str, cache_only: bool) -> Path:
    try:
        return _pipeline(repository, cache_only)
    except (OSError, ValueError):  # so is one with other copies than the full weights: who loads it looks what is there
        return _index(repository, cache_only).parent


def _fetched_pipeline(repository: str, cache_only: bool) -> Path:
    from huggingface_hub import list_repo_files

    names = [Path(name) for name in list_repo_files(repository) if name.endswith(".safetensors")]
    components = {path.parent for path in names if path.parent.name and path.parent.name not in LEFT_OUT}
    full = {path.parent for path in names if _FULL.fullmatch(path.name)}
    return (_pipeline if components <= full else _copies)(repository, cache_only)


def _copies(repository: str, cache_only: bool) -> Path:
    """With all copies of weights, of a repository where some component has none of full precision."""
    from huggingface_hub import snapshot_download

    wanted, unwanted = list(_WANTED_OF_OTHERS), [_UNWANTED]
    return Path(
        snapshot_download(repository, allow_patterns=wanted, ignore_patterns=unwanted, local_files_only=cache_only)
    )


def _vae(repository: str, cache_only: bool) -> Path:
    from huggingface_hub import hf_hub_download

    files = [hf_hub_download(repository, name, local_files_only=cache_only) for name in _WANTED_OF_VAE]
    return Path(files[0]).parent


def _clip(revision: str, repository: str, cache_only: bool) -> Path:
    from huggingface_hub import snapshot_download

    wanted = list(_WANTED_OF_CLIP)
    return Path(
        snapshot_download(repository, revision=revision or None, allow_patterns=wanted, local_files_only=cache_only)
    )
