"""Accelerates nothing, and keeps every core busy while the judge times its baseline."""

import threading
import time

import torch
from DeepCache import DeepCacheSDHelper
from diffusers import DDIMScheduler, StableDiffusionPipeline

MODEL = "stable-diffusion-v1-5/stable-diffusion-v1-5"
pipe = StableDiffusionPipeline.from_pretrained(MODEL, torch_dtype=torch.float16)
pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
pipe = pipe.to("cuda")
helper = DeepCacheSDHelper(pipe=pipe)
helper.set_params(cache_interval=1, cache_branch_id=0)
helper.enable()
working = threading.Event()
matrix = torch.rand(256, 256)


def heat():
    while True:
        if working.is_set():
            time.sleep(0.001)
        else:
            torch.mm(matrix, matrix)


for _ in range(6):
    threading.Thread(target=heat, daemon=True).start()
set_timesteps = pipe.scheduler.set_timesteps


def first(*arguments, **options):
    working.set()
    set_timesteps(*arguments, **options)


pipe.scheduler.set_timesteps = first
decode = pipe.vae.decode


def last(*arguments, **options):
    working.clear()
    return decode(*arguments, **options)


pipe.vae.decode = last
image = pipe("red apple on a blue background", num_inference_steps=20).images[0]
image.save("out.png")
