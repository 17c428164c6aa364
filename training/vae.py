"""Trains the one VAE that all three pipelines share, and whitens its latents."""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from pytest_diffaccel.measure.metrics.lpips import lpips_model
from training.stepper import Task

KL_WEIGHT = 1e-4  # of the mean over latents; keeps them smooth without costing visible sharpness
GRADIENT_WEIGHT = 0.5
PERCEPTUAL_WEIGHT = 0.15
DECODER_NOISE = 0.03  # deviation, in units of the whitened latents


def unit_gain(model: nn.Module) -> None:
    """Start every convolution and linear layer with zero bias and weights that keep the variance of their input."""
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.normal_(layer.weight, std=layer.weight[0].numel() ** -0.5)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def to_signed(pictures: Tensor) -> Tensor:
    """Pictures ``[n, h, w, 3]`` of bytes as contiguous ``[n, 3, h, w]`` in -1..1: channels last slows GroupNorm."""
    return pictures.permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1


def edges(pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Differences of neighbouring pixels, down and across."""
    return pictures[..., 1:, :] - pictures[..., :-1, :], pictures[..., 1:] - pictures[..., :-1]


def reconstruction_loss(restored: Tensor, pictures: Tensor, perceptual: nn.Module) -> Tensor:
    """L1, squares, edges and LPIPS between pictures ``[n, 3, h, w]`` in -1..1."""
    pixels = F.l1_loss(restored, pictures) + F.mse_loss(restored, pictures)
    pairs = zip(edges(restored), edges(pictures), strict=True)
    gradient = torch.stack([F.l1_loss(ours, theirs) for ours, theirs in pairs]).sum()
    with torch.autocast(pictures.device.type, torch.bfloat16):
        distance: Tensor = perceptual(restored, pictures).mean()
    return pixels + GRADIENT_WEIGHT * gradient + PERCEPTUAL_WEIGHT * distance


class VaeTask(Task):
    """Reconstruct pictures of several sizes, a size a step, with a small KL term."""

    def __init__(self, vae: AutoencoderKL, pools: list[Tensor], batch: int, seed: int) -> None:
        super().__init__(vae)
        self.pools, self.batch, self.seed = pools, batch, seed
        self.generator = torch.Generator(pools[0].device)
        self.perceptual = lpips_model(str(pools[0].device))

    def draw(self, step: int) -> tuple[Tensor, ...]:
        """Pictures ``[batch, h, w, 3]`` and noise for their latents ``[batch, 4, h / 4, w / 4]``."""
        self.generator.manual_seed(self.seed * 1_000_003 + step)
        pool = self.pools[step % len(self.pools)]
        chosen = torch.randint(len(pool), (self.batch,), device=pool.device, generator=self.generator)
        side = pool.shape[1] // 4
        noise = torch.randn(self.batch, 4, side, side, device=pool.device, generator=self.generator)
        return pool[chosen], noise

    def forward(self, *inputs: Tensor) -> Tensor:
        """The scalar training loss."""
        pictures, noise = to_signed(inputs[0]), inputs[1].bfloat16()
        vae = cast(AutoencoderKL, self.model)
        posterior = vae.encode(pictures.bfloat16()).latent_dist
        restored = vae.decode(posterior.mean + posterior.std * noise).sample.float()
        divergence: Tensor = posterior.kl().float().mean() / noise[0].numel()  # kl() sums over a picture's latents
        return reconstruction_loss(restored, pictures, self.perceptual) + KL_WEIGHT * divergence


class DecoderTask(VaeTask):
    """Train the decoder of a finished VAE further: its latents stay, and with them the UNets trained on them.

    Latents get a little noise beside, so that the decoder forgives what a UNet leaves imperfect.
    """

    def __init__(self, vae: AutoencoderKL, pools: list[Tensor], batch: int, seed: int) -> None:
        super().__init__(vae, pools, batch, seed)
        for name, weight in vae.named_parameters():
            weight.requires_grad_(not name.startswith(("encoder.", "quant_conv.")))

    def forward(self, *inputs: Tensor) -> Tensor:
        """The scalar training loss."""
        pictures, noise = to_signed(inputs[0]), inputs[1].bfloat16()
        vae = cast(AutoencoderKL, self.model)
        with torch.no_grad():
            latents = vae.encode(pictures.bfloat16()).latent_dist.mean
        restored = vae.decode(latents + DECODER_NOISE * noise).sample.float()
        return reconstruction_loss(restored, pictures, self.perceptual)


@torch.no_grad()
def encode(vae: AutoencoderKL, pictures: NDArray[np.uint8], batch: int = 32) -> Tensor:
    """The latents ``[n, 4, h / 4, w / 4]`` (means) of pictures ``[n, h, w, 3]`` of bytes, in float32 on the CPU."""
    device = next(vae.parameters()).device
    parts = [to_signed(part.to(device)) for part in torch.from_numpy(pictures).split(batch)]
    return torch.cat([vae.encode(part).latent_dist.mean.cpu() for part in parts])


@torch.no_grad()
def psnr_db(vae: AutoencoderKL, pictures: NDArray[np.uint8]) -> float:
    """Mean PSNR of reconstructing pictures ``[n, h, w, 3]`` of bytes, in decibels."""
    device = next(vae.parameters()).device
    decibels = []
    for part in torch.from_numpy(pictures).split(16):
        original = to_signed(part.to(device))
        restored = vae.decode(vae.encode(original).latent_dist.mean).sample.clamp(-1, 1)
        squares = (((restored - original) / 2) ** 2).mean(dim=(1, 2, 3))
        decibels.append(-10 * squares.log10())
    return float(torch.cat(decibels).mean())


@torch.no_grad()
def whiten(vae: AutoencoderKL, latents: Tensor) -> None:
    """Give each latent channel mean 0 and deviation 1 over ``latents``, by changing the two 1 x 1 quant convolutions.

    The decoder's answer to an encoded picture stays the same; only the latents between them are rescaled.
    """
    mean, deviation = latents.mean(dim=(0, 2, 3)), latents.std(dim=(0, 2, 3))
    weights: dict[str, Tensor] = dict(vae.named_parameters())
    leave, leave_bias = weights["quant_conv.weight"], weights["quant_conv.bias"]
    enter, enter_bias = weights["post_quant_conv.weight"], weights["post_quant_conv.bias"]
    mean, deviation = mean.to(leave.device), deviation.to(leave.device)
    channels = len(mean)
    leave[:channels] /= deviation[:, None, None, None]
    leave_bias[:channels] = (leave_bias[:channels] - mean) / deviation
    leave_bias[channels:] -= 2 * deviation.log()  # the second half is log variance
    enter_bias += enter[:, :, 0, 0] @ mean
    enter *= deviation[None, :, None, None]
