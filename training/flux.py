"""Trains FLUX.1's stand-in on cached latents: flow matching, with guidance as an input of one call.

*Flow matching*: a sample at noise level sigma is ``(1 - sigma) latents + sigma noise``, and the transformer predicts
its velocity, ``noise - latents``. Levels are drawn from a logit-normal distribution (Esser et al. 2024, "Scaling
Rectified Flow Transformers for High-Resolution Image Synthesis"), then shifted by the scheduler's own function, as
sampling does.

*Guidance* (Chen et al. 2025, "Visual Generation Without Guidance"): a sample is told a scale g as well, and what is
compared with the velocity is ``v(caption, g) / g + (1 - 1 / g) v(no caption, g)``, the latter without gradient. That is
the velocity of the caption where ``v(caption, g) = v(no caption) + g (v(caption) - v(no caption))``: what
classifier-free guidance computes in two calls. A teacher to distil from, as FLUX.1-dev had one, would have to be
trained first, in half of the time; this takes one forward call more per step, which is a third of a step's cost.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline
from torch import Tensor, nn

from training.conditioning import WORDING_WEIGHTS, caption_table, tokenize
from training.flux_architecture import FluxSpec, build_flux_scheduler, shift_of
from training.flux_parts import FluxParts
from training.stepper import Task
from training.unet import DROPPED_CAPTIONS, LatentPool

LARGEST_GUIDANCE = 6.0  # scales are drawn between 1 and this one; FluxPipeline's own is 3.5
# Of the levels before their shift. Three of 28 steps lie above 0.95 (after it), and one of 140 logit-normal draws.
UNIFORM_SHARE = 0.1


def pack(latents: Tensor) -> Tensor:
    """Latents ``[n, 4, side, side]`` as tokens ``[n, (side / 2) ** 2, 16]``, by the pipeline's own function."""
    packed: Tensor = FluxPipeline._pack_latents(latents, *latents.shape)
    return packed


def levels(places: Tensor, uniform: Tensor, spec: FluxSpec) -> Tensor:
    """Noise levels (sigma, 0..1) of ``places [n]`` in 0..1, which are where in the distribution they lie.

    Logit-normal, or uniform where ``uniform [n]`` is true; then shifted for the spec's picture size.
    """
    normal = torch.special.ndtri(places).sigmoid()
    shifted: Tensor = build_flux_scheduler().time_shift(shift_of(spec), 1.0, torch.where(uniform, places, normal))
    return shifted


def unguided(told: Tensor, untold: Tensor, guidance: Tensor, dropped: Tensor) -> Tensor:
    """The velocity that classifier-free guidance, away from ``untold`` by ``guidance [n]``, turns into ``told``.

    Velocities are ``[n, tokens, channels]``. Where ``dropped [n]`` is true there is no caption to guide to: ``told``.
    """
    share = torch.where(dropped, 1.0, 1 / guidance)[:, None, None]
    return share * told + (1 - share) * untold


@contextmanager
def exact_conditions(transformer: FluxTransformer2DModel, sigmas: Tensor, guidance: Tensor) -> Iterator[None]:
    """Let the transformer's embedding have its two numbers per sample, ``[n]`` each, in float32.

    Its forward rounds them to the type of its weights first. In bfloat16 that leaves one level in four thousandths, and
    sampling in float32 would ask for levels between those trained.
    """

    def replace(_: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (1000 * sigmas, 1000 * guidance, given[2])

    hook = transformer.time_text_embed.register_forward_pre_hook(replace)
    try:
        yield
    finally:
        hook.remove()


class FluxModel(nn.Module):
    """The transformer with its text encoders: all that this stage trains."""

    def __init__(self, parts: FluxParts) -> None:
        super().__init__()
        self.transformer, self.clip, self.t5 = parts.transformer, parts.text_encoder, parts.text_encoder_2

    def told(self, clip_ids: Tensor, t5_ids: Tensor) -> tuple[Tensor, Tensor]:
        """CLIP's pooled text and T5's states of token ids ``[n, 24]``, by the calls that FluxPipeline makes."""
        return self.clip(clip_ids).pooler_output, self.t5(t5_ids)[0]


class FluxTask(Task):
    """Predict the velocity between latents and noise, for a caption and a guidance scale."""

    def __init__(self, parts: FluxParts, pool: LatentPool, batch: int, seed: int) -> None:
        super().__init__(FluxModel(parts))
        self.spec, self.pool, self.batch, self.seed = parts.spec, pool, batch, seed
        device = pool.latents.device
        if device.type == "cpu":
            self.precision = torch.float32  # few CPUs compute in bfloat16 what they can in float32
        self.generator = torch.Generator(device)
        self.tables = [caption_table(each).to(device) for each in (parts.tokenizer, parts.tokenizer_2)]
        self.empty = [tokenize(each, [""]).to(device) for each in (parts.tokenizer, parts.tokenizer_2)]
        self.wordings = torch.tensor(WORDING_WEIGHTS, device=device)
        side = pool.latents.shape[-1] // 2
        self.image_ids = FluxPipeline._prepare_latent_image_ids(1, side, side, device, torch.float32)
        self.text_ids = torch.zeros(self.tables[1].shape[-1], 3, device=device)

    def draw(self, step: int) -> tuple[Tensor, ...]:
        """Packed latents and noise, both token ids, whether captions are dropped, noise levels and scales of a step."""
        pool, batch, generator = self.pool, self.batch, self.generator
        device = pool.latents.device
        generator.manual_seed(self.seed * 1_000_003 + step)
        chosen = torch.randint(len(pool.latents), (batch,), device=device, generator=generator)
        wording = torch.multinomial(self.wordings, batch, replacement=True, generator=generator)
        clip_ids, t5_ids = (table[pool.things[chosen], pool.colours[chosen], wording] for table in self.tables)
        chances = torch.rand(4, batch, device=device, generator=generator)
        strata = (torch.arange(batch, device=device) + chances[0]) / batch
        sigmas = levels(strata, chances[1] < UNIFORM_SHARE, self.spec)
        guidance = 1 + (LARGEST_GUIDANCE - 1) * chances[2]
        latents = pack(pool.latents[chosen].float())
        noise = torch.randn(latents.shape, device=device, generator=generator)
        return latents, noise, clip_ids, t5_ids, chances[3] < DROPPED_CAPTIONS, sigmas, guidance

    def velocity(self, noised: Tensor, told: tuple[Tensor, Tensor], sigmas: Tensor, guidance: Tensor) -> Tensor:
        """The predicted velocity ``[n, tokens, 16]`` in float32."""
        transformer = cast(FluxModel, self.model).transformer
        with exact_conditions(transformer, sigmas, guidance):
            predicted: Tensor = transformer(
                hidden_states=noised,
                encoder_hidden_states=told[1],
                pooled_projections=told[0],
                timestep=sigmas,
                guidance=guidance,
                img_ids=self.image_ids,
                txt_ids=self.text_ids,
            ).sample
        return predicted.float()

    def forward(self, *inputs: Tensor) -> Tensor:
        """The scalar training loss of what ``draw`` gave."""
        latents, noise, clip_ids, t5_ids, dropped, sigmas, guidance = inputs
        model = cast(FluxModel, self.model)
        level = sigmas[:, None, None]
        noised = ((1 - level) * latents + level * noise).to(self.precision)
        with torch.no_grad():  # without a caption, every sample is told the same
            pooled, states = model.told(*self.empty)
            nothing = pooled.expand(len(latents), -1), states.expand(len(latents), -1, -1)
            untold = self.velocity(noised, nothing, sigmas, guidance)
        ids = [
            torch.where(dropped[:, None], empty, given)
            for empty, given in zip(self.empty, (clip_ids, t5_ids), strict=True)
        ]
        told = self.velocity(noised, model.told(*ids), sigmas, guidance)
        loss: Tensor = ((unguided(told, untold, guidance, dropped) - (noise - latents)) ** 2).mean()
        return loss
