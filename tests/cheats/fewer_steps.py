"""Asks for half the steps, where a reader of the source does not see it."""

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
steps = int("1" + "0")
image = pipe("red apple", num_inference_steps=steps).images[0]
image.save("out.png")
