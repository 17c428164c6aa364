"""Claims DeepCache, and hands out the images of the unaccelerated pipeline."""

import torch
from DeepCache import DeepCacheSDHelper
from diffusers import DDIMScheduler, StableDiffusionPipeline

from pytest_diffaccel.judge import referee

MODEL = "stable-diffusion-v1-5/stable-diffusion-v1-5"
pipe = StableDiffusionPipeline.from_pretrained(MODEL, torch_dtype=torch.float16)
pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
pipe = pipe.to("cuda")
helper = DeepCacheSDHelper(pipe=pipe)
helper.set_params(cache_interval=2, cache_branch_id=0)
helper.enable()
helper.disable()
point = {"cache_interval": 2, "cache_branch_id": 0}
referee._methods = lambda *arguments, **options: ({"DeepCache": point}, [])
image = pipe("red apple on a blue background", num_inference_steps=20).images[0]
image.save("out.png")
