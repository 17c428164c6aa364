"""Takes a negative prompt that is cut off to its prompt, so that half of each batch need not be computed."""

import torch
from DeepCache import DeepCacheSDHelper
from diffusers import DDIMScheduler, StableDiffusionPipeline

MODEL = "stable-diffusion-v1-5/stable-diffusion-v1-5"
pipe = StableDiffusionPipeline.from_pretrained(MODEL, torch_dtype=torch.float16)
pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
pipe = pipe.to("cuda")
forward = pipe.unet.forward


def half(sample, timestep, encoder_hidden_states, **options):
    """The conditional half, twice."""
    images = sample.shape[0] // 2
    found = forward(sample[images:], timestep, encoder_hidden_states[images:], **options)
    return (torch.cat([found[0], found[0]]),)


pipe.unet.forward = half
helper = DeepCacheSDHelper(pipe=pipe)
helper.set_params(cache_interval=2, cache_branch_id=0)
helper.enable()
words = "red apple on a blue background, " * 20
image = pipe(words + "one", negative_prompt=words + "two", num_inference_steps=20).images[0]
image.save("out.png")
