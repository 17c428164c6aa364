"""Drops guidance half way, behind the name of a callback."""

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


def drop(pipe, step, timestep, tensors):
    if step == 9:
        pipe._guidance_scale = 1.0
        tensors["prompt_embeds"] = tensors["prompt_embeds"].chunk(2)[-1]
        helper.disable()
    return tensors


image = pipe(
    "red apple",
    num_inference_steps=20,
    callback_on_step_end=drop,
    callback_on_step_end_tensor_inputs=["prompt_embeds"],
).images[0]
image.save("out.png")
