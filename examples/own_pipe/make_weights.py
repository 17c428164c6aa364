"""Makes a small pipeline for the example: a UNet of random numbers beside an embedded pipeline's text encoder and VAE.

It needs no hub. Your own pipeline is trained and lies in a folder already; then this script is not needed.
"""

from __future__ import annotations

from pathlib import Path

from pytest_diffaccel import load_pipeline

# Two down blocks of one layer: tokens at full resolution, and at half of it in the mid block.
LAYOUT = {
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "block_out_channels": [48, 64],
    "layers_per_block": 1,
}


def make_weights(folder: Path) -> None:
    """Write a diffusers folder, the same one each time."""
    import torch
    from diffusers import UNet2DConditionModel

    pipeline = load_pipeline("SD1.5", device="cpu")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipeline.unet = UNet2DConditionModel.from_config({**pipeline.unet.config, **LAYOUT})
    pipeline.save_pretrained(folder)


if __name__ == "__main__":
    make_weights(Path(__file__).with_name("tiny-sd"))
