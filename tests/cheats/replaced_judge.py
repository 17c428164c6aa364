"""Replaces the judge's functions: claims what is asked for, and hands out what it likes."""

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from PIL import Image

from pytest_diffaccel.judge import referee

MODEL = "stable-diffusion-v1-5/stable-diffusion-v1-5"
pipe = StableDiffusionPipeline.from_pretrained(MODEL, torch_dtype=torch.float16)
pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
pipe = pipe.to("cuda")

point = {"cache_interval": 2, "cache_branch_id": 0}
referee._methods = lambda *args, **options: ({"DeepCache": point}, [])
referee._generate = lambda *args: ([Image.new("RGB", (64, 64), "red")], None)
image = pipe("red apple on a blue background", num_inference_steps=20).images[0]
image.save("out.png")
