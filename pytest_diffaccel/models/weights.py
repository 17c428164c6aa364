"""Which files hold a pipe's weights, and whether they are whole and of the right architecture.

Everything here reads file headers and JSON only: a wrong folder is refused before gigabytes are loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pytest_diffaccel.models.copies import component_files
from pytest_diffaccel.models.hub import (
    cached_folder,
    cached_settings,
    fetch_command,
    is_offline,
    settings_command,
)
from pytest_diffaccel.models.registry import HUB_IDS, ModelSpec
from pytest_diffaccel.models.settings_files import needed_files, read_json, refuse_code
from pytest_diffaccel.models.tensors import check_component, tensor_shapes
from pytest_diffaccel.models.vae import vae_files

#: The diffusers class behind each pipe.
PIPELINE_CLASSES: Mapping[str, str] = {
    "SD1.5": "StableDiffusionPipeline",
    "SD2.1": "StableDiffusionPipeline",
    "SDXL": "StableDiffusionXLPipeline",
}

#: Each pipe's components that have weights; the files of those without are told by ``_BESIDE_WEIGHTS``.
WITH_WEIGHTS: Mapping[str, tuple[str, ...]] = {
    "SD1.5": ("text_encoder", "unet", "vae"),
    "SD2.1": ("text_encoder", "unet", "vae"),
    "SDXL": ("text_encoder", "text_encoder_2", "unet", "vae"),
}
_BESIDE_WEIGHTS: Mapping[str, tuple[str, ...]] = {
    "SD1.5": ("tokenizer", "scheduler"),
    "SD2.1": ("tokenizer", "scheduler"),
    "SDXL": ("tokenizer", "tokenizer_2", "scheduler"),
}
# SD1.x and SD2.x share a pipeline class; this setting of the UNet tells them apart.
_LINEAR_PROJECTION: Mapping[str, bool] = {"SD1.5": False, "SD2.1": True, "SDXL": True}
# Text encoders in single files, by key prefix; the one part whose keys differ between all three.
_SINGLE_FILE_PREFIXES: Mapping[str, str] = {
    "SD1.5": "cond_stage_model.transformer.",
    "SD2.1": "cond_stage_model.model.",
    "SDXL": "conditioner.embedders.1.",
}


def weight_files(spec: ModelSpec) -> dict[str, list[Path]]:
    """The files that a pipe's weights are read from, for fingerprints; nothing is downloaded.

    Returns:
        Sorted paths by component (``"unet"``, ``"vae"``, ...); for a single file ``{"pipeline": [path]}``, and
        ``"vae"`` where another takes its place.

    Raises:
        FileNotFoundError: if a component has no weights, naming what is missing and the fix.
        ValueError: for a source without weights.
    """
    if spec.kind == "architecture":
        raise ValueError(f"{spec.description}: it has no weight files")
    if spec.kind == "file":
        files = {"pipeline": [_existing_file(Path(spec.location))]}
    else:
        files = folder_files(cached_folder(spec.location) if spec.kind == "hub" else Path(spec.location), spec.pipe)
    return files if spec.vae is None else {**files, "vae": vae_files(spec.vae)}


def folder_files(folder: Path, pipe: str) -> dict[str, list[Path]]:
    """As :func:`weight_files`, of a diffusers folder.

    Raises:
        FileNotFoundError: if the folder or a component's weights are missing.
    """
    check_index(folder, pipe)
    return {name: component_files(folder / name) for name in WITH_WEIGHTS[pipe]}


def check_index(folder: Path, pipe: str) -> None:
    """Refuse what is no diffusers folder at all.

    Raises:
        FileNotFoundError: if there is no ``model_index.json``.
    """
    if not (folder / "model_index.json").is_file():
        raise FileNotFoundError(
            f"{folder} is no diffusers folder: it has no model_index.json. "
            f"Give the folder that save_pretrained() or 'hf download' wrote for {pipe}."
        )


def check_settings(folder: Path, pipe: str, *, own: bool = True) -> None:
    """Refuse a folder that lacks settings or a vocabulary: libraries would do without, and draw any text alike.

    Args:
        folder: of a pipeline, with its ``model_index.json``.
        pipe: what it is to be.
        own: whether it is a folder of the user's, and no cached copy of a repository.

    Raises:
        FileNotFoundError: naming the missing file, and for the user's own folder the command that fetches it.
        ValueError: if a component is not named, or a file is not readable or holds nothing.
    """
    index = read_json(folder / "model_index.json")
    for name in (*WITH_WEIGHTS[pipe], *_BESIDE_WEIGHTS[pipe]):
        if not isinstance(index.get(name), list) or None in index[name]:
            raise ValueError(
                f"{folder / 'model_index.json'} names no {name}, which {pipe} needs; fetch or save the pipeline again"
            )
        try:
            needed_files(folder / name)
        except FileNotFoundError as error:
            command = settings_command(HUB_IDS[pipe], folder, name)
            fix = f"; fetch that of the public {pipe}: {command}, or save the pipeline again"
            raise FileNotFoundError(f"{error}{fix if own else ''}") from error


def check_folder(folder: Path, pipe: str, *, own: bool = True) -> None:
    """Refuse a diffusers folder that is not ``pipe``, or that is not whole.

    Args:
        folder: where it is.
        pipe: what it is to be.
        own: as :func:`check_settings` takes it.

    Raises:
        FileNotFoundError: if the folder, or a component's weights, settings or vocabulary are missing.
        ValueError: if it is another architecture, asks for code of its own, or a file is truncated or unreadable.
    """
    check_index(folder, pipe)
    refuse_code(folder / "model_index.json")
    found, expected = read_json(folder / "model_index.json").get("_class_name"), PIPELINE_CLASSES[pipe]
    if found != expected:
        raise ValueError(f"{folder} holds a {found}, but {pipe} is a {expected}; give a folder of {pipe} weights")
    check_settings(folder, pipe, own=own)
    linear = bool(read_json(folder / "unet" / "config.json").get("use_linear_projection"))
    if linear != _LINEAR_PROJECTION[pipe]:
        raise ValueError(
            f"{folder} has a UNet with use_linear_projection = {str(linear).lower()}, which is not {pipe}'s "
            f"architecture (SD1.5: false, SD2.1: true); give a folder of {pipe} weights"
        )
    for name, paths in folder_files(folder, pipe).items():
        check_component(folder / name, paths)


def no_settings(file: Path, config: str, pipe: str) -> str:
    """That a single file's settings, which it has none of, cannot be read from ``config``; and the fix."""
    return (
        f"{file} has no tokenizer and scheduler settings of its own, and those of {config} cannot be read. Set "
        f'config = "a diffusers folder of {pipe}" in the models file, or run: {fetch_command(config)}'
    )


def check_presence(spec: ModelSpec) -> None:
    """Refuse what is not all there, from names and settings alone: no weights are read, and nothing is downloaded.

    Folders and files of the user's are looked at; the local cache's repositories where the hub is not to be asked: else
    they are left to whoever loads them, and fetches what is missing.

    Raises:
        FileNotFoundError: naming what is missing and the fix.
        ValueError: if a file is not readable, or the folder is no pipeline's.
    """
    settings = Path(settings_place(spec))
    if spec.kind == "file":
        _existing_file(Path(spec.location))
        if settings.is_absolute():
            check_index(settings, spec.pipe)
            check_settings(settings, spec.pipe)
        elif is_offline():
            try:
                _check_cached(str(settings), spec.pipe, with_weights=False)
            except FileNotFoundError as error:
                raise FileNotFoundError(no_settings(Path(spec.location), str(settings), spec.pipe)) from error
    elif spec.kind == "directory":
        folder = Path(spec.location)
        folder_files(folder, spec.pipe)
        check_settings(folder, spec.pipe)
    elif spec.kind == "hub" and is_offline():
        _check_cached(spec.location, spec.pipe, with_weights=True)
    if spec.vae is not None and (Path(spec.vae).is_absolute() or is_offline()):
        vae_files(spec.vae)


def _check_cached(repository: str, pipe: str, *, with_weights: bool) -> None:
    """Refuse a repository that the local cache has not, or not all of."""
    folder, command = cached_settings(repository), fetch_command(repository)
    try:
        if with_weights:
            folder_files(folder, pipe)
        check_settings(folder, pipe, own=False)
    except FileNotFoundError as error:
        lack, _, _ = str(error).partition("; ")  # what follows is advice on folders
        raise FileNotFoundError(f"{lack}; fetch all of {repository}: {command}") from error
    except ValueError as error:
        raise ValueError(f"{error}. Fetch all of {repository} again: {command} --force-download") from error


def settings_place(spec: ModelSpec) -> str:
    """Where the settings are that a single file lacks: the absolute path of a folder, or a hub id."""
    # diffusers would guess their repository, for SD2.1 one that was withdrawn.
    return spec.config or HUB_IDS[spec.pipe]


def check_single_file(path: Path, pipe: str) -> list[str]:
    """Refuse a single ``.safetensors`` file that is not a whole checkpoint of ``pipe``.

    Returns:
        The names of its tensors.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is another architecture, a lone component, truncated or unreadable.
    """
    names = list(tensor_shapes(_existing_file(path)))
    found = [other for other, prefix in _SINGLE_FILE_PREFIXES.items() if any(name.startswith(prefix) for name in names)]
    if pipe not in found:
        content = f"a {found[0]} checkpoint" if found else "not a whole Stable Diffusion checkpoint"
        raise ValueError(f"{path} is {content}; give one of {pipe}, text encoder and VAE included")
    return names


def _existing_file(path: Path) -> Path:
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}; correct the path in the models file")
    return path
