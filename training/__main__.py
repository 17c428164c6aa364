"""``python -m training --pipe sd15``: make an embedded pipeline from nothing; with ``--stage clip`` the CLIP, with
``--stage flux`` FLUX.1's stand-in.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from training.schedule import Budget
from training.source import CACHE, EMBEDDED

PIPES = ("sd15", "sd21", "sdxl")
STAGES = (
    "vae, decoder (trains a finished VAE's decoder further), unet, or all of these (skips a finished VAE); "
    "clip (scores pictures of the finished pipelines); flux (FLUX.1's stand-in, on the shipped VAE)"
)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__)
    parser.add_argument("--pipe", choices=[*PIPES, "all"], default="all")
    parser.add_argument(
        "--stage", choices=["vae", "decoder", "unet", "clip", "flux", "all"], default="all", help=STAGES
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], help="default: a GPU where there is one")
    parser.add_argument(
        "--minutes",
        type=float,
        help="training time of a UNet (default: 120 on a CPU, 6 on a GPU) or of FLUX.1's stand-in (600 and 6)",
    )
    parser.add_argument("--steps", type=int, help="optimiser steps of each stage, instead of or beside its minutes")
    parser.add_argument(
        "--vae-minutes",
        type=float,
        help="of the VAE, and of its decoder (default: 60 and 30 on a CPU, 3 and 2 on a GPU)",
    )
    parser.add_argument("--clip-minutes", type=float, help="of the CLIP (default: 30 on a CPU, 5 on a GPU)")
    parser.add_argument("--batch", type=int, help="pictures per step (default: 48 on a CPU, 256 on a GPU)")
    parser.add_argument("--pictures", type=int, help="rendered, a size (default: 16000 on a CPU, 64000 on a GPU)")
    parser.add_argument("--generated", type=int, default=1344, help="the pipelines' own pictures, for the CLIP")
    parser.add_argument("--peak-rate", type=float, default=8e-4, help="peak learning rate")
    parser.add_argument("--compile", action="store_true", help="torch.compile the blocks of FLUX.1's stand-in first")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes that render")
    parser.add_argument("--save-every", type=float, default=120.0, help="seconds between checkpoints")
    parser.add_argument("--work", type=Path, default=CACHE / "work", help="checkpoints and cached latents")
    parser.add_argument("--out", type=Path, default=EMBEDDED, help="where the finished folders go")
    parser.add_argument("--start", type=Path, help="train finished folders further instead of new weights")
    return parser.parse_args(arguments)


def stage_budget(minutes: float | None, steps: int | None, default_minutes: float) -> Budget:
    """The end of a stage; without any wish, its default time."""
    if minutes is None and steps is None:
        minutes = default_minutes
    return Budget(steps=steps, minutes=minutes)


def main(arguments: list[str] | None = None) -> None:
    """Run the stages that the command line asks for."""
    options = parse(arguments)
    # Imported here because the processes that render import this module again, and need nothing of these.
    import torch

    from training.architectures import PIPES as SPECS
    from training.stages import Settings, make_clip, make_flux, make_unet, make_vae, sharpen_decoder

    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    on_gpu = device.type == "cuda"
    settings = Settings(
        device=device,
        work=options.work,
        out=options.out,
        seed=options.seed,
        pictures=options.pictures or (64_000 if on_gpu else 16_000),
        generated=options.generated,
        workers=options.workers,
        batch=options.batch or (256 if on_gpu else 48),
        peak_rate=options.peak_rate,
        save_every_s=options.save_every,
        compiled=options.compile,
    )
    if options.stage == "vae" or (options.stage == "all" and not settings.vae_folder.exists()):
        make_vae(settings, stage_budget(options.vae_minutes, options.steps, 3 if on_gpu else 60))
    if options.stage == "decoder" or (options.stage == "all" and not settings.sharpened_folder.exists()):
        sharpen_decoder(settings, stage_budget(options.vae_minutes, options.steps, 2 if on_gpu else 30))
    if options.stage in ("unet", "all"):
        for name in PIPES if options.pipe == "all" else [options.pipe]:
            budget = stage_budget(options.minutes, options.steps, 6 if on_gpu else 120)
            make_unet(settings, SPECS[name], budget, options.start)
    if options.stage == "clip":
        make_clip(settings, stage_budget(options.clip_minutes, options.steps, 5 if on_gpu else 30))
    if options.stage == "flux":
        make_flux(settings, stage_budget(options.minutes, options.steps, 6 if on_gpu else 600), options.start)


if __name__ == "__main__":
    main()
