"""Looks for a secret in its own environment and in its parent's, and says so when it finds one."""

import os
from pathlib import Path

import torch
from DeepCache import DeepCacheSDHelper
from diffusers import DDIMScheduler, StableDiffusionPipeline

MODEL = "stable-diffusion-v1-5/stable-diffusion-v1-5"
pipe = StableDiffusionPipeline.from_pretrained(MODEL, torch_dtype=torch.float16)
pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
pipe = pipe.to("cuda")
helper = DeepCacheSDHelper(pipe=pipe)
helper.set_params(cache_interval=2, cache_branch_id=0)
helper.enable()
if "DIFFACCEL_SECRET" in os.environ:
    raise SystemExit("found it")
for process in [*Path("/proc").glob("[0-9]*"), Path("/proc/self")]:
    try:
        if b"DIFFACCEL_SECRET" in (process / "environ").read_bytes():
            raise SystemExit("found it")
    except OSError:
        continue
image = pipe("red apple on a blue background", num_inference_steps=20).images[0]
image.save("out.png")
