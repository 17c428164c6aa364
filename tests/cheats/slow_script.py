"""Works, and dawdles beside its pipeline: its settings are fast, its calls are not."""

import time

import torch
from DeepCache import DeepCacheSDHelper
from diffusers import DDIMScheduler, StableDiffusionPipeline

MODEL = "stable-diffusion-v1-5/stable-diffusion-v1-5"
pipe = StableDiffusionPipeline.from_pretrained(MODEL, torch_dtype=torch.float16)
pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
pipe = pipe.to("cuda")
helper = DeepCacheSDHelper(pipe=pipe)
helper.set_params(cache_interval=3, cache_branch_id=0)
helper.enable()
scale_model_input = pipe.scheduler.scale_model_input


def dawdle(*args, **options):
    time.sleep(0.04)
    return scale_model_input(*args, **options)


pipe.scheduler.scale_model_input = dawdle
image = pipe("red apple on a blue background", num_inference_steps=20).images[0]
image.save("out.png")
