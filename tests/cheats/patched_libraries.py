"""Replaces what it thinks the judge works with: noise, pixels, distances, modules."""

import sys
import types

import torch
from DeepCache import DeepCacheSDHelper
from diffusers import DDIMScheduler, StableDiffusionPipeline
from PIL import Image

MODEL = "stable-diffusion-v1-5/stable-diffusion-v1-5"
pipe = StableDiffusionPipeline.from_pretrained(MODEL, torch_dtype=torch.float16)
pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
pipe = pipe.to("cuda")
helper = DeepCacheSDHelper(pipe=pipe)
helper.set_params(cache_interval=1, cache_branch_id=0)
helper.enable()
red = Image.new("RGB", (64, 64), "red").tobytes()
Image.Image.tobytes = lambda *arguments, **options: red
torch.manual_seed = torch.Generator.manual_seed = lambda *arguments: None
for name in ("channel", "trial", "replay", "speed", "quality"):
    sys.modules[f"pytest_diffaccel.judge.{name}"] = types.ModuleType(name)
sys.modules["lpips"] = types.ModuleType("lpips")
image = pipe("red apple on a blue background", num_inference_steps=20).images[0]
image.save("out.png")
