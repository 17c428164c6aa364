"""The stages of making one pipeline: the shared VAE, cached latents, the UNet with its text encoders, the folder; those
of making the CLIP, from rendered pictures and those of the finished pipelines, and FLUX.1's stand-in.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import nn

from training.architectures import CLIP_PIXELS, PIPES, PipeSpec, build_vae
from training.captions import held_out_scenes, training_scenes
from training.cards import clip_card, model_card
from training.clip import ClipTask, ScenePool
from training.flux import FluxTask
from training.flux_architecture import FLUX, FluxSpec
from training.flux_parts import embedded_vae, new_flux_parts, save_flux, take_weights
from training.flux_report import Made, flux_card
from training.generated import chunks
from training.loop import Run, train
from training.parts import Parts, load_pipeline, new_clip, new_parts, save_clip, save_folder, swap
from training.render import Batch, render, resized
from training.schedule import Budget
from training.source import EMBEDDED, fetch_sprites
from training.state import Counters
from training.unet import LatentPool, UnetTask
from training.vae import DecoderTask, VaeTask, encode, psnr_db, unit_gain, whiten

SIDES = tuple(sorted({spec.pixels for spec in PIPES.values()}))  # picture sizes in pixels
WHITENING_PICTURES = 2048
CLIP_NAME = "clip_standin"
UNSEEN_PICTURES = 64  # one of each held-out scene, to measure the VAE's PSNR on


@dataclass(frozen=True)
class Settings:
    """What the command line settles; checkpoints, latents and VAE lie under ``work``, finished folders in ``out``.

    ``pictures`` of each size are rendered; ``generated`` ones are drawn by the finished pipelines, for the CLIP.
    ``compiled``: whether the blocks of FLUX.1's stand-in are.
    """

    device: torch.device
    work: Path
    out: Path
    seed: int
    pictures: int
    generated: int
    workers: int
    batch: int
    peak_rate: float
    save_every_s: float
    compiled: bool = False

    def run(self, name: str, budget: Budget) -> Run:
        """The run of one stage."""
        folder = self.work / name
        return Run(name, self.peak_rate, self.batch, budget, self.device, folder, self.save_every_s)

    @property
    def vae_folder(self) -> Path:
        """Where the finished, whitened VAE lies."""
        return self.work / "vae-finished"

    @property
    def sharpened_folder(self) -> Path:
        """Where the same VAE lies after its decoder was trained further."""
        return self.work / "vae-sharpened"


def move(model: nn.Module, device: torch.device) -> None:
    """Move a model to a device in place."""
    model.to(device)


def picture_pools(settings: Settings) -> list[torch.Tensor]:
    """The training pictures of every size, ``[n, side, side, 3]`` each, on the device."""
    sprites, scenes = fetch_sprites(), training_scenes()
    batches = [render(settings.pictures, sprites, scenes, side, settings.seed, settings.workers) for side in SIDES]
    return [torch.from_numpy(batch.pictures).to(settings.device) for batch in batches]


def finish_vae(settings: Settings, vae: AutoencoderKL, folder: Path) -> None:
    """Report the VAE's PSNR on pictures it never saw, and save it in a folder."""
    for side in SIDES:
        unseen = render(UNSEEN_PICTURES, fetch_sprites(), held_out_scenes(), side, settings.seed + 1, 1)
        Console(stderr=True).print(f"vae: {psnr_db(vae, unseen.pictures):.1f} dB PSNR at {side} px on unseen pictures")
    temporary = settings.work / "vae-new"
    vae.cpu().save_pretrained(temporary, safe_serialization=True)
    swap(temporary, folder)


def make_vae(settings: Settings, budget: Budget) -> None:
    """Train the VAE on all picture sizes and whiten its latents."""
    pools = picture_pools(settings)
    torch.manual_seed(settings.seed)
    vae = build_vae(SIDES[0])
    unit_gain(vae)
    move(vae, settings.device)
    train(VaeTask(vae, pools, settings.batch, settings.seed), settings.run("vae", budget))
    vae.eval()
    whiten(vae, encode(vae, pools[0][:WHITENING_PICTURES].cpu().numpy()))
    finish_vae(settings, vae, settings.vae_folder)


def sharpen_decoder(settings: Settings, budget: Budget) -> None:
    """Train the finished VAE's decoder further, with its encoder frozen."""
    pools = picture_pools(settings)
    vae = load_vae(settings.vae_folder, PIPES["sd15"])
    move(vae, settings.device)
    train(DecoderTask(vae, pools, settings.batch, settings.seed + 1), settings.run("decoder", budget))
    vae.eval()
    finish_vae(settings, vae, settings.sharpened_folder)


def load_vae(folder: Path, spec: PipeSpec) -> AutoencoderKL:
    """The VAE of a folder, with the pipeline's image size in its configuration."""
    if not folder.exists():
        raise FileNotFoundError(f"no VAE in {folder}: run with --stage vae first, or --stage all")
    trained = AutoencoderKL.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
    vae = build_vae(spec.pixels)
    vae.load_state_dict(trained.state_dict())
    vae.eval()
    return vae


def cached_latents(
    settings: Settings, vae: AutoencoderKL, pixels: int, framed: bool = False, prefix: str = ""
) -> LatentPool:
    """The latents of the rendered training pictures in half precision, from the work folder after the first time.

    ``prefix`` of the file's name tells latents of another VAE.
    """
    file = settings.work / f"{prefix}latents-{pixels}{'-framed' if framed else ''}-{settings.pictures}.safetensors"
    if file.exists():
        return LatentPool(**load_file(file))
    batch = render(
        settings.pictures, fetch_sprites(), training_scenes(), pixels, settings.seed, settings.workers, framed
    )
    move(vae, settings.device)
    tensors = {
        "latents": encode(vae, batch.pictures).half().contiguous(),
        "things": torch.from_numpy(batch.things),
        "colours": torch.from_numpy(batch.colours),
        "time_ids": torch.from_numpy(batch.time_ids),
    }
    vae.cpu()
    temporary = file.with_suffix(".new")
    save_file(tensors, temporary)
    temporary.rename(file)
    return LatentPool(**tensors)


def initial_parts(settings: Settings, spec: PipeSpec, start: Path | None) -> Parts:
    """New parts, or those of the finished folder ``start / name`` to train further."""
    parts = new_parts(spec, settings.seed, settings.work / f"{spec.name}-tokenizer")
    sharpened = settings.sharpened_folder
    parts.vae = load_vae(sharpened if sharpened.exists() else settings.vae_folder, spec)
    if start is not None:
        trained = load_pipeline(start / spec.name)
        parts.unet.load_state_dict(trained.unet.state_dict())
        sources = [trained.text_encoder] + ([trained.text_encoder_2] if spec.is_xl else [])
        for text, source in zip(parts.texts, sources, strict=True):
            text.load_state_dict(source.state_dict())
    return parts


def make_unet(settings: Settings, spec: PipeSpec, budget: Budget, start: Path | None) -> None:
    """Train the UNet and the text encoders of one pipeline; at every checkpoint its folder is written too."""
    settings.work.mkdir(parents=True, exist_ok=True)
    parts = initial_parts(settings, spec, start)
    pool = cached_latents(settings, parts.vae, spec.pixels, spec.is_xl).to(settings.device)
    task = UnetTask(parts, pool, settings.batch, settings.seed)
    task.model.to(settings.device)

    def save(counters: Counters) -> None:
        save_folder(parts, settings.out / spec.name, model_card(spec, settings.seed, settings.device.type, counters))

    train(task, settings.run(spec.name, budget), save)


def rendered_for_clip(settings: Settings) -> dict[str, torch.Tensor]:
    """Rendered training pictures of every size, at the CLIP's, from the work folder after the first time."""
    file = settings.work / f"clip-{CLIP_PIXELS}-{settings.pictures}.safetensors"
    if file.exists():
        return load_file(file)
    batches: list[Batch] = []
    for number, side in enumerate(SIDES):
        seed = settings.seed + number  # other pictures, not the same ones enlarged
        batches.append(render(settings.pictures, fetch_sprites(), training_scenes(), side, seed, settings.workers))
    pictures = [resized(picture, CLIP_PIXELS) for batch in batches for picture in batch.pictures]
    tensors = {
        "pictures": torch.from_numpy(np.stack(pictures)),
        "things": torch.from_numpy(np.concatenate([batch.things for batch in batches])),
        "colours": torch.from_numpy(np.concatenate([batch.colours for batch in batches])),
    }
    temporary = file.with_suffix(".new")
    save_file(tensors, temporary)
    temporary.rename(file)
    return tensors


def clip_pool(settings: Settings) -> ScenePool:
    """The CLIP's training pictures: rendered ones, and some that the finished pipelines in ``out`` draw."""
    rendered = rendered_for_clip(settings)
    drawn = list(chunks(settings.generated, settings.out, settings.work, CLIP_PIXELS, settings.device))
    parts = [rendered, *drawn]
    generated = [torch.full((len(part["things"]),), part is not rendered) for part in parts]
    joined = {name: torch.cat([part[name] for part in parts]) for name in rendered}
    return ScenePool.of(**joined, generated=torch.cat(generated))


def make_clip(settings: Settings, budget: Budget) -> None:
    """Train the CLIP that scores the finished pipelines' pictures; at every checkpoint its folder is written too."""
    settings.work.mkdir(parents=True, exist_ok=True)
    model, tokenizer = new_clip(settings.seed, settings.work / "clip-tokenizer")
    pool = clip_pool(settings).to(settings.device)
    task = ClipTask(model, tokenizer, pool, settings.batch, settings.seed)
    move(model, settings.device)

    def save(counters: Counters) -> None:
        card = clip_card(CLIP_NAME, model.config, settings.seed, settings.device.type, counters)
        save_clip(model, settings.out / CLIP_NAME, card)

    train(task, settings.run("clip", budget), save)


def make_flux(settings: Settings, budget: Budget, start: Path | None, spec: FluxSpec = FLUX) -> None:
    """Train FLUX.1's stand-in on the latents of the embedded VAE; at every checkpoint its folder is written too."""
    settings.work.mkdir(parents=True, exist_ok=True)
    vae = embedded_vae(EMBEDDED / "sd15" / "vae", spec.pixels)
    parts = new_flux_parts(spec, settings.seed, settings.work / f"{spec.name}-tokenizers", vae)
    if start is not None:
        take_weights(parts, start / spec.name)
    pool = cached_latents(settings, vae, spec.pixels, prefix=f"{spec.name}-").to(settings.device)
    task = FluxTask(parts, pool, settings.batch, settings.seed)
    move(task.model, settings.device)
    if settings.compiled:
        parts.transformer.compile_repeated_blocks(fullgraph=True)
    trained = sum(parameter.numel() for parameter in task.model.parameters())

    def save(counters: Counters) -> None:
        made = Made.now(counters, settings.batch, settings.pictures, settings.seed, settings.device, trained)
        save_flux(parts, settings.out / spec.name, flux_card(spec, made), made)

    train(task, settings.run(spec.name, budget), save)
