"""How far images moved: LPIPS decides, PSNR and SSIM are recorded beside it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from functools import cached_property, lru_cache
from importlib import resources
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pytest_diffaccel.measure.measurement import Quality
from pytest_diffaccel.measure.statistics import loss_interval

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

# Identical images have infinite PSNR, which JSON cannot say.
_PSNR_CAP_DB = 100.0
# Largest batch given to the LPIPS network at once: bounds its memory at 1024 px.
_LPIPS_BATCH = 8
# Of the references' side of LPIPS, how much is kept at most: the features of 15 pictures of 512 px.
_KEPT_BYTES = 2**29
#: Smallest side of a picture that LPIPS can compare, pixels: nothing is left of a smaller one after four halvings.
SMALLEST_SIDE = 17
# Side of the window in which SSIM compares, pixels, and its constants (Wang et al., IEEE TIP 2004, section III-B).
_SSIM_WINDOW, _SSIM_K1, _SSIM_K2 = 7, 0.01, 0.03


@lru_cache(maxsize=3)
def lpips_model(device: str, *, spatial: bool = False) -> Any:
    """LPIPS with the SqueezeNet 1.1 backbone that the package carries (Zhang et al., CVPR 2018), on ``device``.

    Args:
        device: torch device.
        spatial: whether it gives a value per pixel instead of their mean.
    """
    import lpips
    from safetensors.torch import load_file

    with warnings.catch_warnings():
        # It asks torchvision for an untrained backbone in a way that torchvision deprecates.
        warnings.filterwarnings("ignore", category=UserWarning, module="torchvision")
        model = lpips.LPIPS(net="squeeze", pnet_rand=True, verbose=False, spatial=spatial)
    backbone = resources.files("pytest_diffaccel.measure") / "data" / "squeezenet1_1_backbone.safetensors"
    with resources.as_file(backbone) as path:
        model.net.load_state_dict(load_file(path))
    return model.eval().requires_grad_(False).to(device)


def lpips_distances(images: Sequence[Image], references: Sequence[Image], device: str = "cpu") -> list[float]:
    """LPIPS of each image to the reference at its place.

    Args:
        images: PIL images of equal size.
        references: as many, of the same size.
        device: where the network runs.

    Raises:
        ValueError: when the numbers or sizes differ, or they are too small (:func:`check_size`).
    """
    _check_pairs(images, references)
    return References(references, device, keep=0).distances(images)


def lpips_maps(images: Sequence[Image], references: Sequence[Image]) -> list[NDArray[np.float32]]:
    """LPIPS at every place of each image, (height, width): the metric before it is averaged.

    Args:
        images: PIL images of equal size.
        references: as many, of the same size.

    Raises:
        ValueError: when the numbers or sizes differ, or they are too small (:func:`check_size`).
    """
    import torch

    _check_pairs(images, references)
    maps: list[NDArray[np.float32]] = []
    with torch.inference_mode():
        for pair in zip(images, references, strict=True):
            left, right = (_as_tensor([image]) for image in pair)
            maps.append(lpips_model("cpu", spatial=True)(left, right)[0, 0].numpy())
    return maps


class References:
    """Baseline images that many candidates are compared with; their side of LPIPS is computed once.

    The network gives other last bits in batches of another size. So a side is kept for exactly the images that were
    compared in one batch, and every figure is what it would be without keeping anything.

    Kept on a CPU are the network's features: 34 MiB per picture of 512 pixels per side, 0.45 MiB per one of 64. In a
    GPU's memory they would count as that of the candidates measured next, and computing them takes it no longer than
    fetching them from the computer's: kept for a GPU are the network's inputs, there (3 MiB per picture of 512 pixels).

    Attributes:
        kept_bytes: size of what is kept.
    """

    def __init__(self, images: Sequence[Image], device: str = "cpu", *, keep: int = _KEPT_BYTES) -> None:
        """Compare with ``images``, PIL images of equal size, on ``device``, keeping at most ``keep`` bytes."""
        self._images = images
        self._device = device
        self._on_gpu = device.startswith("cuda")
        self._most_bytes = keep
        self._kept: dict[tuple[int, int], list[Tensor]] = {}
        self.kept_bytes = 0

    def distances(self, images: Sequence[Image], start: int = 0) -> list[float]:
        """LPIPS of each image to the reference at its place.

        Args:
            images: PIL images, of the references' size.
            start: place among the references of the first image's.

        Raises:
            ValueError: when there are no images, fewer references from ``start`` on, or sizes differ.
        """
        import torch

        self._check(images, start)
        distances: list[float] = []
        with torch.inference_mode():
            for first in range(0, len(images), _LPIPS_BATCH):
                batch = images[first : first + _LPIPS_BATCH]
                features = _features(_as_tensor(batch), self._device)
                distances += _distances(features, self._features(start + first, len(batch)), self._device)
        return distances

    def score(self, images: Sequence[Image], start: int = 0) -> Quality:
        """Quality of a candidate's images; takes and raises what :meth:`distances` does."""
        distances = self.distances(images, start)
        pairs = list(zip(map(np.array, images), self._pixels[start:], strict=False))
        return Quality(
            lpips=loss_interval(distances),
            psnr_db=float(np.mean([_psnr(*pair) for pair in pairs])),
            ssim=float(np.mean([structural_similarity(*pair, self._device) for pair in pairs])),
            lpips_per_sample=tuple(distances),
        )

    def _check(self, images: Sequence[Image], start: int) -> None:
        if start < 0:
            raise ValueError(f"start={start} must be at least 0")
        _check_pairs(images, self._images[start : start + len(images)])

    @cached_property
    def _pixels(self) -> list[NDArray[np.uint8]]:
        return [np.array(image) for image in self._images]

    def _features(self, start: int, count: int) -> list[Tensor]:
        """The network's features of ``count`` references from ``start`` on, computed in one batch."""
        side = self._kept.get((start, count))
        if side is None:
            inputs = _as_tensor(self._images[start : start + count])
            side = [inputs] if self._on_gpu else _features(inputs, self._device)
            self._keep((start, count), side)
        return _features(side[0], self._device) if self._on_gpu else side

    def _keep(self, span: tuple[int, int], side: list[Tensor]) -> None:
        size = sum(tensor.nbytes for tensor in side)
        if self.kept_bytes + size <= self._most_bytes:
            self._kept[span] = side
            self.kept_bytes += size


def _features(inputs: Tensor, device: str) -> list[Tensor]:
    """One side of LPIPS: normalised features by layer, (images, channels, height, width) each.

    Args:
        inputs: as :func:`_as_tensor` gives them.
        device: where the network runs.
    """
    import lpips

    model = lpips_model(device)
    return [lpips.normalize_tensor(layer) for layer in model.net(model.scaling_layer(inputs.to(device)))]


def _distances(features: Sequence[Tensor], references: Sequence[Tensor], device: str) -> list[float]:
    """LPIPS of each image from both sides' features: what ``lpips.LPIPS.forward`` does with them."""
    from lpips.lpips import spatial_average

    layers = zip(lpips_model(device).lins, features, references, strict=True)
    distances: Tensor = sum(spatial_average(lin((own - theirs) ** 2), keepdim=True) for lin, own, theirs in layers)
    return distances.flatten().tolist()


def _psnr(pixels: NDArray[np.uint8], reference: NDArray[np.uint8]) -> float:
    """Peak signal-to-noise ratio of two images of 8 bits per channel, dB."""
    squared = float(np.mean((pixels.astype(float) - reference) ** 2))
    return min(_PSNR_CAP_DB, 10 * math.log10(255**2 / squared)) if squared else _PSNR_CAP_DB


def structural_similarity(pixels: NDArray[np.uint8], reference: NDArray[np.uint8], device: str = "cpu") -> float:
    """SSIM of two RGB images, the mean over places and channels; at most 1.

    Args:
        pixels: (height, width, 3), at least 7 pixels per side.
        reference: another image of this size.
        device: torch device that computes it. A GPU gives the CPU's value, but for the last digits.
    """
    import torch

    count = _SSIM_WINDOW**2

    def local_mean(values: Tensor) -> Tensor:
        # One side after the other, seven additions each: torch's pooling adds all 49. Sums of whole numbers are exact.
        columns = values.unfold(1, _SSIM_WINDOW, 1).sum(-1)
        return columns.unfold(2, _SSIM_WINDOW, 1).sum(-1) / count

    one, other = (torch.from_numpy(each).to(device).permute(2, 0, 1).double() for each in (pixels, reference))
    mean, other_mean = local_mean(one), local_mean(other)
    unbiased = count / (count - 1)
    variance = unbiased * (local_mean(one * one) - mean**2)
    other_variance = unbiased * (local_mean(other * other) - other_mean**2)
    covariance = unbiased * (local_mean(one * other) - mean * other_mean)
    c1, c2 = (_SSIM_K1 * 255) ** 2, (_SSIM_K2 * 255) ** 2
    luminance = (2 * mean * other_mean + c1) / (mean**2 + other_mean**2 + c1)
    contrast_and_structure = (2 * covariance + c2) / (variance + other_variance + c2)
    return float((luminance * contrast_and_structure).mean())


def pooled_quality(one: Quality, other: Quality) -> Quality:
    """Quality over the samples of both, ``one``'s first."""
    first, second = len(one.lpips_per_sample), len(other.lpips_per_sample)
    distances = one.lpips_per_sample + other.lpips_per_sample

    def mean(left: float, right: float) -> float:
        return (first * left + second * right) / (first + second)

    return Quality(
        lpips=loss_interval(distances),
        psnr_db=mean(one.psnr_db, other.psnr_db),
        ssim=mean(one.ssim, other.ssim),
        lpips_per_sample=distances,
    )


def check_size(width: int, height: int) -> None:
    """Refuse pictures that cannot be compared.

    Args:
        width: pixels.
        height: pixels.

    Raises:
        ValueError: when they are too small for LPIPS.
    """
    if min(width, height) < SMALLEST_SIDE:
        raise ValueError(
            f"pictures of {width} x {height} pixels cannot be compared: LPIPS needs at least {SMALLEST_SIDE} per side; "
            "give a larger height and width in the --models file"
        )


def _check_pairs(images: Sequence[Image], references: Sequence[Image]) -> None:
    if not images or len(images) != len(references):
        raise ValueError(f"{len(images)} images cannot be compared with {len(references)} references")
    sizes = {image.size for image in (*images, *references)}
    if len(sizes) > 1:
        raise ValueError(f"images of different sizes cannot be compared: {sorted(sizes)}")
    check_size(*images[0].size)


def _as_tensor(images: Sequence[Image]) -> Tensor:
    """Images as (count, 3, height, width) float32 in [-1, 1], what LPIPS expects."""
    import torch

    pixels = np.stack([np.asarray(image.convert("RGB")) for image in images])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
