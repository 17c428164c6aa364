"""Claims what the judge cannot repeat, for its case to break off rather than fail."""

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
claim = referee._claim


def absurd(*arguments, **options):
    made = claim(*arguments, **options)
    made["arguments"]["clip_skip"] = 12
    return made


referee._claim = absurd
image = pipe("red apple on a blue background", num_inference_steps=20).images[0]
image.save("out.png")
