"""A VAE in place of the pipeline's own: a diffusers folder, a single file, or a hub id."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_diffaccel.models.copies import component_files, loadable_component
from pytest_diffaccel.models.hub import cached_vae, fetched_vae
from pytest_diffaccel.models.settings_files import read_json
from pytest_diffaccel.models.tensors import check_component, tensor_shapes

if TYPE_CHECKING:
    import torch

_CLASS = "AutoencoderKL"


def vae_files(location: str) -> list[Path]:
    """The weight files of a VAE, for fingerprints; nothing is downloaded.

    Args:
        location: absolute path of a directory or ``.safetensors`` file, or a hub id.

    Raises:
        FileNotFoundError: if it is not there, for hub ids naming the command that fetches it.
    """
    path = Path(location)
    return _files(path if path.is_absolute() else cached_vae(location))


def load_vae(location: str, settings: str, dtype: torch.dtype) -> Any:
    """Load a VAE, from safetensors only.

    Args:
        location: as :func:`vae_files` takes it.
        settings: for a single file: directory or hub id of a pipeline whose VAE has the same settings.
        dtype: of its weights.

    Returns:
        A ``diffusers.AutoencoderKL`` in evaluation mode.

    Raises:
        FileNotFoundError: if it is not there.
        ValueError: if it is truncated, or no VAE of Stable Diffusion.
    """
    from diffusers import AutoencoderKL

    path = Path(location) if Path(location).is_absolute() else _folder(location)
    files = _files(path)
    if path.is_dir():
        _check_class(path)
        check_component(path, files)
        with loadable_component(path) as folder:
            return AutoencoderKL.from_pretrained(str(folder), dtype=dtype, use_safetensors=True)
    tensor_shapes(path)
    try:
        return AutoencoderKL.from_single_file(str(path), config=settings, subfolder="vae", dtype=dtype)
    except Exception as error:  # of many classes, none of which names the file
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"{path} cannot be read as a VAE with the settings of {settings} ({reason}); "
            'set config = "a diffusers folder" whose VAE is of the same kind, or give a folder as vae'
        ) from error


def check_latents(pipeline: Any, denoiser: Any, location: str) -> None:
    """Refuse a VAE whose latents are not those of the denoiser.

    Args:
        pipeline: with the VAE; one that packs latents makes one token of 2 x 2.
        denoiser: of the pipeline.
        location: of the VAE, as the models file says it.

    Raises:
        ValueError: naming both numbers of channels.
    """
    packed = 4 if hasattr(pipeline, "_pack_latents") else 1
    channels, expected = pipeline.vae.config.latent_channels, denoiser.config.in_channels // packed
    if channels != expected:
        raise ValueError(
            f"vae {location} has {channels} latent channels and the denoiser {expected}; "
            "give a VAE of the same model family"
        )


def _folder(repository: str) -> Path:
    # The cached copy first, as for pipelines.
    try:
        return cached_vae(repository)
    except FileNotFoundError:
        return fetched_vae(repository)


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        return component_files(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file or folder {path}; correct vae in the models file")
    return [path]


def _check_class(folder: Path) -> None:
    name = read_json(folder / "config.json").get("_class_name")
    if name != _CLASS:
        raise ValueError(f"{folder / 'config.json'} describes a {name}, not an {_CLASS}; give the folder of a VAE")
