"""Writes what no folder shows: files that it deletes and keeps open."""

import os

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
held = []
for number in range(8):
    held.append(os.open(f"{number}.bin", os.O_WRONLY | os.O_CREAT))
    os.write(held[-1], bytes(60 * 2**20))
    os.unlink(f"{number}.bin")
image = pipe("red apple on a blue background", num_inference_steps=20).images[0]
image.save("out.png")
