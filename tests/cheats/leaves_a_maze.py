"""Leaves folders in folders beyond any path's length, without rights, and links to what is not its own."""

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
image = pipe("red apple on a blue background", num_inference_steps=20).images[0]
image.save("out.png")
Path("passwd").symlink_to("/etc/passwd")
Path("parent").symlink_to("..", target_is_directory=True)
Path("locked").mkdir()
Path("locked", "file").touch()
Path("locked").chmod(0)
for _ in range(1500):
    os.mkdir("deeper")
    os.chdir("deeper")
