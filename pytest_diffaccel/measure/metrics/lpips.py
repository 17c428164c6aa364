"""LPIPS: how far pictures are apart for a network that was fitted to people's judgement."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from pytest_diffaccel.measure.metrics.base import Metric, MetricFault, check_pairs, pixels_of
from pytest_diffaccel.models.tensors import file_digest

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image
    from torch import Tensor

#: The networks that LPIPS is defined for.
Net: TypeAlias = Literal["squeeze", "alex", "vgg"]
# Largest batch given to the LPIPS network at once: bounds its memory at 1024 px.
_LPIPS_BATCH = 8
#: Of the references' side of LPIPS, how much is kept at most: the features of 15 pictures of 512 px.
KEPT_BYTES = 2**29
#: Smallest side of a picture that LPIPS can compare, pixels: nothing is left of a smaller one after four halvings.
SMALLEST_SIDE = 17
# The same of each network, whose strides differ.
_SMALLEST_SIDES = {"squeeze": SMALLEST_SIDE, "alex": 31, "vgg": 16}
# Of the networks that the package does not carry: torchvision's function, and the name of its file of weights.
_BACKBONES = {"alex": ("alexnet", "alexnet-owt-7be5be79"), "vgg": ("vgg16", "vgg16-397923af")}


class Lpips(Metric):
    """LPIPS to the unaccelerated picture (Zhang et al., CVPR 2018); 0 for identical ones, about 1 for unrelated ones.

    Attributes:
        net: its network: ``"squeeze"`` is in the package and decides; the others need torchvision's weights.
    """

    higher_is_better = False
    needs_references = True
    lowest = 0.0

    def __init__(self, net: Net = "squeeze") -> None:
        """The metric ``"lpips"``, or of another network ``"lpips_alex"``, ``"lpips_vgg"``."""
        self.net = net
        self.name = "lpips" if net == "squeeze" else f"lpips_{net}"
        self.weights = (
            "SqueezeNet 1.1, in this package"
            if net == "squeeze"
            else f"torchvision's {_BACKBONES[net][0]}, as {_BACKBONES[net][1]}.safetensors in torch's hub cache"
        )

    @property
    def identity(self) -> str:
        """With the digest of its backbone's weights."""
        return f"{self.name} ({self.weights}, {file_digest(_backbone(self.net))[:12]})"

    def prepare(self, device: str) -> None:
        """Load the network."""
        lpips_model(device, self.net)

    def score(
        self, images: Sequence[Image], references: Sequence[Image], prompts: Sequence[str], device: str
    ) -> list[float]:
        """In batches of eight pictures."""
        return lpips_distances(images, references, device, self.net)


def lpips_model(device: str, net: Net = "squeeze", *, spatial: bool = False) -> Any:
    """LPIPS on ``device``, loaded once.

    Args:
        device: torch device.
        net: its backbone; SqueezeNet 1.1 is in the package.
        spatial: whether it gives a value per pixel instead of their mean.

    Raises:
        MetricFault: when the backbone's weights are not there, or are none; it says how to get them.
    """
    return _loaded(device, net, spatial)


@lru_cache(maxsize=6)
def _loaded(device: str, net: Net, spatial: bool) -> Any:
    import lpips
    from safetensors.torch import load_file

    with warnings.catch_warnings():
        # It asks torchvision for an untrained backbone in a way that torchvision deprecates.
        warnings.filterwarnings("ignore", category=UserWarning, module="torchvision")
        model = lpips.LPIPS(net=net, pnet_rand=True, verbose=False, spatial=spatial)
    if net == "squeeze":
        model.net.load_state_dict(load_file(_backbone(net)))
    else:
        _load_torchvision(model.net, net)
    return model.eval().requires_grad_(False).to(device)


def _load_torchvision(backbone: Any, net: Net) -> None:
    """Fill a backbone, which lpips cuts in slices: its ``slice1.0.weight`` is torchvision's ``features.0.weight``."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = _backbone(net)
    try:
        tensors = load_file(path)
        own = {name: tensors[f"features.{name.partition('.')[2]}"] for name in backbone.state_dict()}
        backbone.load_state_dict(own)
    except (SafetensorError, KeyError, RuntimeError) as error:
        name, stem = _BACKBONES[net]
        raise MetricFault(
            f"lpips_{net}: {path} does not hold torchvision's weights of {name} ({error}); write it again: "
            f"{_fetch_command(stem, path)}"
        ) from error


def _backbone(net: Net) -> Path:
    """The file with a backbone's weights.

    Raises:
        MetricFault: when it is not there, with the command that puts it there.
    """
    if net == "squeeze":
        # An installed package is a folder: the embedded pipelines are loaded from there, too.
        return Path(str(resources.files("pytest_diffaccel.measure") / "data" / "squeezenet1_1_backbone.safetensors"))
    import torch

    name, stem = _BACKBONES[net]
    path = Path(torch.hub.get_dir()) / "checkpoints" / f"{stem}.safetensors"
    if not path.is_file():
        raise MetricFault(
            f"lpips_{net}: there is no {path}; give torchvision's weights of {name} there as safetensors "
            f"(TORCH_HOME names another folder): {_fetch_command(stem, path)}"
        )
    return path


def _fetch_command(stem: str, path: Path) -> str:
    """A shell command that downloads torchvision's weights and writes them as safetensors."""
    code = (
        "import torch; from safetensors.torch import save_file; save_file(torch.hub.load_state_dict_from_url("
        f"'https://download.pytorch.org/models/{stem}.pth', check_hash=True), '{path}')"
    )
    return f'python -c "{code}"'


def lpips_distances(
    images: Sequence[Image], references: Sequence[Image], device: str = "cpu", net: Net = "squeeze"
) -> list[float]:
    """LPIPS of each image to the reference at its place.

    Args:
        images: PIL images of equal size.
        references: as many, of the same size.
        device: where the network runs.
        net: the network's backbone.

    Raises:
        ValueError: when the numbers or sizes differ, or they are too small (:func:`check_size`).
    """
    check_pairs(images, references)
    check_size(*images[0].size, net)
    return KeptSide(pixels_of(references), device, keep=0, net=net).distances(pixels_of(images))


def lpips_maps(images: Sequence[Image], references: Sequence[Image]) -> list[NDArray[np.float32]]:
    """LPIPS at every place of each image, (height, width): the metric before it is averaged.

    Args:
        images: PIL images of equal size.
        references: as many, of the same size.

    Raises:
        ValueError: when the numbers or sizes differ, or they are too small (:func:`check_size`).
    """
    import torch

    check_pairs(images, references)
    check_size(*images[0].size)
    maps: list[NDArray[np.float32]] = []
    with torch.inference_mode():
        for pair in zip(images, references, strict=True):
            left, right = (_inputs(pixels_of([image])) for image in pair)
            maps.append(lpips_model("cpu", spatial=True)(left, right)[0, 0].numpy())
    return maps


class KeptSide:
    """The references' side of LPIPS, which is computed once for all that is compared with them.

    The network gives other last bits in batches of another size. So a side is kept for exactly the images that were
    compared in one batch, and every figure is what it would be without keeping anything.

    Kept on a CPU are the network's features: 34 MiB per picture of 512 pixels per side, 0.45 MiB per one of 64. On a
    GPU none are: in its memory they would count as that of the candidates measured next, and computing them takes it no
    longer than fetching them from the computer's.

    Attributes:
        kept_bytes: size of what is kept.
    """

    def __init__(self, pixels: Tensor, device: str = "cpu", *, keep: int = KEPT_BYTES, net: Net = "squeeze") -> None:
        """Of references, as :func:`.pixels_of` gives them, by ``net`` on ``device``, keeping at most ``keep`` bytes."""
        self._pixels = pixels
        self._net = net
        self._device = device
        self._most_bytes = 0 if device.startswith("cuda") else keep
        self._kept: dict[tuple[int, int], list[Tensor]] = {}
        self.kept_bytes = 0

    def distances(self, pixels: Tensor, start: int = 0) -> list[float]:
        """LPIPS of each image to the reference at its place.

        Args:
            pixels: images, as :func:`.pixels_of` gives them, of the references' size, which LPIPS can compare
                (:func:`check_size`).
            start: place among the references of the first image's; there are as many from it on.
        """
        import torch

        distances: list[float] = []
        with torch.inference_mode():
            for first in range(0, len(pixels), _LPIPS_BATCH):
                batch = pixels[first : first + _LPIPS_BATCH]
                features = _features(batch, self._device, self._net)
                distances += _distances(features, self._features(start + first, len(batch)), self._device, self._net)
        return distances

    def _features(self, start: int, count: int) -> list[Tensor]:
        """The network's features of ``count`` references from ``start`` on, computed in one batch."""
        side = self._kept.get((start, count))
        if side is None:
            side = _features(self._pixels[start : start + count], self._device, self._net)
            self._keep((start, count), side)
        return side

    def _keep(self, span: tuple[int, int], side: list[Tensor]) -> None:
        size = sum(tensor.nbytes for tensor in side)
        if self.kept_bytes + size <= self._most_bytes:
            self._kept[span] = side
            self.kept_bytes += size


def _features(pixels: Tensor, device: str, net: Net) -> list[Tensor]:
    """One side of LPIPS: normalised features by layer, (images, channels, height, width) each.

    Args:
        pixels: as :func:`.pixels_of` gives them.
        device: where the network runs.
        net: its backbone.
    """
    import lpips

    model = lpips_model(device, net)
    return [lpips.normalize_tensor(layer) for layer in model.net(model.scaling_layer(_inputs(pixels.to(device))))]


def _distances(features: Sequence[Tensor], references: Sequence[Tensor], device: str, net: Net) -> list[float]:
    """LPIPS of each image from both sides' features: what ``lpips.LPIPS.forward`` does with them."""
    from lpips.lpips import spatial_average

    layers = zip(lpips_model(device, net).lins, features, references, strict=True)
    distances: Tensor = sum(spatial_average(lin((own - theirs) ** 2), keepdim=True) for lin, own, theirs in layers)
    return distances.flatten().tolist()


def check_size(width: int, height: int, net: Net = "squeeze") -> None:
    """Refuse pictures that cannot be compared.

    Args:
        width: pixels.
        height: pixels.
        net: the network that compares them.

    Raises:
        ValueError: when they are too small for LPIPS.
    """
    smallest = _SMALLEST_SIDES[net]
    if min(width, height) < smallest:
        raise ValueError(
            f"pictures of {width} x {height} pixels cannot be compared: LPIPS needs at least {smallest} per side; "
            "give a larger height and width in the --models file"
        )


def _inputs(pixels: Tensor) -> Tensor:
    """Pixels as (count, 3, height, width) float32 in [-1, 1], what LPIPS expects."""
    import torch

    # By a number a GPU would multiply with its reciprocal, which loses a bit; by a tensor it divides.
    half = torch.tensor(127.5, device=pixels.device)
    return pixels.permute(0, 3, 1, 2).float() / half - 1
