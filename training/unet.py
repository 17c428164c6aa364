"""Trains a UNet and its text encoders together on cached latents."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from training.architectures import build_scheduler
from training.conditioning import WORDING_WEIGHTS, Conditioning, TextEncoders, caption_table, tokenize
from training.parts import Parts
from training.stepper import Task

DROPPED_CAPTIONS = 0.1  # of all samples; classifier-free guidance needs them
MIN_SNR_GAMMA = 5.0  # Hang et al. 2023, "Efficient Diffusion Training via Min-SNR Weighting Strategy"


@dataclass(frozen=True)
class LatentPool:
    """Cached latents ``[n, 4, side, side]`` with each one's object, colour ``[n]`` and SDXL numbers ``[n, 6]``."""

    latents: Tensor
    things: Tensor
    colours: Tensor
    time_ids: Tensor

    def to(self, device: torch.device) -> LatentPool:
        """The pool on a device."""
        return LatentPool(*(value.to(device) for value in (self.latents, self.things, self.colours, self.time_ids)))


class Denoiser(nn.Module):
    """A UNet with its text encoders: all that this stage trains."""

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        self.unet = parts.unet
        self.texts = TextEncoders(parts.texts)


class UnetTask(Task):
    """Predict the noise (or velocity) of noised latents: min-SNR weights, stratified timesteps, dropped captions."""

    def __init__(self, parts: Parts, pool: LatentPool, batch: int, seed: int) -> None:
        super().__init__(Denoiser(parts))
        self.parts, self.pool, self.batch, self.seed = parts, pool, batch, seed
        device = pool.latents.device
        self.generator = torch.Generator(device)
        self.alphas = build_scheduler(parts.spec).alphas_cumprod.to(device)
        self.captions = caption_table(parts.tokenizer).to(device)
        self.empty = tokenize(parts.tokenizer, [""])[0].to(device)
        self.wordings = torch.tensor(WORDING_WEIGHTS, device=device)

    def draw(self, step: int) -> tuple[Tensor, ...]:
        """Latents, token ids, whether the caption is dropped, SDXL numbers, timesteps and noise of a step."""
        pool, batch, generator = self.pool, self.batch, self.generator
        device = pool.latents.device
        generator.manual_seed(self.seed * 1_000_003 + step)
        chosen = torch.randint(len(pool.latents), (batch,), device=device, generator=generator)
        wording = torch.multinomial(self.wordings, batch, replacement=True, generator=generator)
        ids = self.captions[pool.things[chosen], pool.colours[chosen], wording]
        chances = torch.rand(2, batch, device=device, generator=generator)
        strata = (torch.arange(batch, device=device) + chances[0]) / batch
        timesteps = (strata * len(self.alphas)).long().clamp(max=len(self.alphas) - 1)
        latents = pool.latents[chosen].float()
        noise = torch.randn(latents.shape, device=device, generator=generator)
        return latents, ids, chances[1] < DROPPED_CAPTIONS, pool.time_ids[chosen].float(), timesteps, noise

    def forward(self, *inputs: Tensor) -> Tensor:
        """The scalar training loss of what ``draw`` gave."""
        latents, ids, dropped, time_ids, timesteps, noise = inputs
        model = cast(Denoiser, self.model)
        alpha = self.alphas[timesteps][:, None, None, None]
        noised = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
        told: Conditioning = model.texts(ids, dropped, self.empty)
        added = None if told.pooled is None else {"text_embeds": told.pooled, "time_ids": time_ids}
        predicted: Tensor = model.unet(
            noised.bfloat16(), timesteps, told.states, added_cond_kwargs=added
        ).sample.float()
        ratio = self.alphas[timesteps] / (1 - self.alphas[timesteps])  # signal to noise
        capped = ratio.clamp(max=MIN_SNR_GAMMA)
        if self.parts.spec.prediction == "epsilon":
            target, weight = noise, capped / ratio
        else:
            target, weight = alpha.sqrt() * noise - (1 - alpha).sqrt() * latents, capped / (ratio + 1)
        loss: Tensor = (weight * ((predicted - target) ** 2).mean(dim=(1, 2, 3))).mean()
        return loss
