"""Hub repositories as local folders: from the cache where it has them, else by download."""

from __future__ import annotations

from pathlib import Path
from typing import Any

# What a pipeline is loaded from; repositories also hold pickled and single-file copies of the same weights.
_WANTED = ("*.json", "*/*.txt", "*/model.safetensors", "*/diffusion_pytorch_model.safetensors")
_UNWANTED = "safety_checker/*"
# Components that are never loaded, so need not be downloaded either.
_LEFT_OUT: dict[str, Any] = {"safety_checker": None, "feature_extractor": None, "image_encoder": None}


def fetch_command(repository: str) -> str:
    """The shell command that puts ``repository`` into the local cache."""
    included = " ".join(f'--include "{pattern}"' for pattern in _WANTED)
    return f'hf download {repository} {included} --exclude "{_UNWANTED}"'


def cached_folder(repository: str) -> Path:
    """The folder of a repository in the local cache; nothing is downloaded.

    Raises:
        FileNotFoundError: if it is not there, naming the command that fetches it.
    """
    try:
        return _folder(repository, local_files_only=True)
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"{repository} is not in the local cache; fetch it: {fetch_command(repository)}"
        ) from error


def fetched_folder(repository: str) -> Path:
    """The folder of a repository, downloading what the cache lacks.

    Raises:
        FileNotFoundError: if it can neither be found nor downloaded, naming the command that fetches it.
    """
    try:
        return _folder(repository, local_files_only=False)
    except Exception as error:  # which class a dead network raises differs between versions of the hub client
        reason = str(error).partition("\n")[0]
        raise FileNotFoundError(
            f"{repository} is not complete in the local cache and cannot be downloaded ({reason}). "
            f"Where there is a network, run: {fetch_command(repository)}"
        ) from error


def _folder(repository: str, *, local_files_only: bool) -> Path:
    from diffusers import DiffusionPipeline

    options = {"use_safetensors": True, "local_files_only": local_files_only, **_LEFT_OUT}
    return Path(DiffusionPipeline.download(repository, **options))
