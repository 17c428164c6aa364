"""Which files hold a pipe's weights, and whether they are whole and of the right architecture.

Everything here reads file headers and JSON only: a wrong folder is refused before gigabytes are loaded.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pytest_diffaccel.models.copies import component_files
from pytest_diffaccel.models.hub import (
    cached_folder,
    cached_settings,
    fetch_command,
    is_offline,
    settings_command,
)
from pytest_diffaccel.models.registry import ModelSpec
from pytest_diffaccel.models.settings_files import needed_files, read_json, refuse_code
from pytest_diffaccel.models.tensors import check_component, tensor_shapes
from pytest_diffaccel.models.vae import vae_files
from pytest_diffaccel.pipes import PipeSpec, known


def weight_files(spec: ModelSpec) -> dict[str, list[Path]]:
    """The files that a pipe's weights are read from, for fingerprints; nothing is downloaded.

    Returns:
        Sorted paths by component (``"unet"``, ``"vae"``, ...); for a single file ``{"pipeline": [path]}``, or the
        denoiser's with those of the components beside it; ``"vae"`` where another takes its place.

    Raises:
        FileNotFoundError: if a component has no weights, naming what is missing and the fix.
        ValueError: for a source without weights.
    """
    if spec.kind == "architecture":
        raise ValueError(f"{spec.description}: it has no weight files")
    if spec.kind == "file" and spec.family.lone_denoiser_files:
        files = {**weight_files(beside_denoiser(spec)), spec.family.denoiser: [_existing_file(Path(spec.location))]}
    elif spec.kind == "file":
        files = {"pipeline": [_existing_file(Path(spec.location))]}
    else:
        files = folder_files(cached_folder(spec.location) if spec.kind == "hub" else Path(spec.location), spec.family)
    return files if spec.vae is None else {**files, "vae": vae_files(spec.vae)}


def beside_denoiser(spec: ModelSpec) -> ModelSpec:
    """The pipeline that the components come from which a single file of the denoiser alone lacks."""
    place = settings_place(spec)
    return replace(spec, kind="directory" if Path(place).is_absolute() else "hub", location=place, config=place)


def folder_files(folder: Path, pipe: PipeSpec) -> dict[str, list[Path]]:
    """As :func:`weight_files`, of a diffusers folder.

    Raises:
        FileNotFoundError: if the folder or a component's weights are missing.
    """
    check_index(folder, pipe)
    return {name: component_files(folder / name) for name in pipe.with_weights}


def check_index(folder: Path, pipe: PipeSpec) -> None:
    """Refuse what is no diffusers folder at all.

    Raises:
        FileNotFoundError: if there is no ``model_index.json``.
    """
    if not (folder / "model_index.json").is_file():
        raise FileNotFoundError(
            f"{folder} is no diffusers folder: it has no model_index.json. "
            f"Give the folder that save_pretrained() or 'hf download' wrote for {pipe.name}."
        )


def check_settings(folder: Path, pipe: PipeSpec, *, own: bool = True) -> None:
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
    for name in (*pipe.with_weights, *pipe.without_weights):
        if not isinstance(index.get(name), list) or None in index[name]:
            raise ValueError(
                f"{folder / 'model_index.json'} names no {name}, which {pipe.name} needs; fetch or save the "
                "pipeline again"
            )
        try:
            needed_files(folder / name)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{error}{_settings_fix(folder, pipe, name) if own else ''}") from error


def _settings_fix(folder: Path, pipe: PipeSpec, component: str) -> str:
    again = "save the pipeline again"
    if not pipe.hub_id:
        return f"; {again}"
    return f"; fetch that of the public {pipe.name}: {settings_command(pipe.hub_id, folder, component)}, or {again}"


def check_folder(folder: Path, pipe: PipeSpec, *, own: bool = True) -> None:
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
    found, expected = read_json(folder / "model_index.json").get("_class_name"), pipe.pipeline_class
    if found != expected:
        raise ValueError(
            f"{folder} holds a {found}, but {pipe.name} is a {expected}; give a folder of {pipe.name} weights"
        )
    check_settings(folder, pipe, own=own)
    _check_projection(folder, pipe)
    for name, paths in folder_files(folder, pipe).items():
        check_component(folder / name, paths)


def _check_projection(folder: Path, pipe: PipeSpec) -> None:
    """SD1.x and SD2.x share a pipeline class; this setting of the UNet tells them apart."""
    linear = bool(read_json(folder / pipe.denoiser / "config.json").get("use_linear_projection"))
    if pipe.linear_projection in (None, linear):
        return
    alike = [
        family
        for family in known()
        if family.pipeline_class == pipe.pipeline_class and family.linear_projection is not None
    ]
    each = ", ".join(f"{family.name}: {str(family.linear_projection).lower()}" for family in alike)
    raise ValueError(
        f"{folder} has a UNet with use_linear_projection = {str(linear).lower()}, which is not {pipe.name}'s "
        f"architecture ({each}); give a folder of {pipe.name} weights"
    )


def no_settings(file: Path, config: str, pipe: PipeSpec) -> str:
    """That a single file's settings, which it has none of, cannot be read from ``config``; and the fix."""
    return (
        f"{file} has no tokenizer and scheduler settings of its own, and those of {config} cannot be read. Set "
        f'config = "a diffusers folder of {pipe.name}" in the models file, or run: {fetch_command(config)}'
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
    if spec.kind == "file" and spec.family.lone_denoiser_files:
        _existing_file(Path(spec.location))
        check_presence(beside_denoiser(spec))
        return
    if spec.kind == "file":
        _existing_file(Path(spec.location))
        if settings.is_absolute():
            check_index(settings, spec.family)
            check_settings(settings, spec.family)
        elif is_offline():
            try:
                _check_cached(str(settings), spec.family, with_weights=False)
            except FileNotFoundError as error:
                raise FileNotFoundError(no_settings(Path(spec.location), str(settings), spec.family)) from error
    elif spec.kind == "directory":
        folder = Path(spec.location)
        folder_files(folder, spec.family)
        check_settings(folder, spec.family)
    elif spec.kind == "hub" and is_offline():
        _check_cached(spec.location, spec.family, with_weights=True)
    if spec.vae is not None and (Path(spec.vae).is_absolute() or is_offline()):
        vae_files(spec.vae)


def _check_cached(repository: str, pipe: PipeSpec, *, with_weights: bool) -> None:
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
    return spec.config or spec.family.hub_id


def check_single_file(path: Path, pipe: PipeSpec) -> list[str]:
    """Refuse a single ``.safetensors`` file that is not a whole checkpoint of ``pipe``.

    Returns:
        The names of its tensors.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is another architecture, a lone component, truncated or unreadable.
    """
    names = list(tensor_shapes(_existing_file(path)))
    if pipe.single_file_prefix and not any(name.startswith(pipe.single_file_prefix) for name in names):
        others = [family for family in known() if family.single_file_prefix]
        found = [family.name for family in others if any(name.startswith(family.single_file_prefix) for name in names)]
        content = f"a {found[0]} checkpoint" if found else "not a whole Stable Diffusion checkpoint"
        raise ValueError(f"{path} is {content}; give one of {pipe.name}, text encoder and VAE included")
    return names


def _existing_file(path: Path) -> Path:
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}; correct the path in the models file")
    return path
