"""Accelerates nothing: one thread computes, others take every core, and the first only queues for one."""

import ctypes
import threading

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
give_way = ctypes.CDLL(None).sched_yield
matrix = torch.rand(256, 256)


def compute_elsewhere(block):
    forward = block.forward

    def elsewhere(*arguments, **options):
        done = threading.Event()
        found = []

        def compute():
            with torch.no_grad():
                found.append(forward(*arguments, **options))
            done.set()

        def heat():
            while not done.is_set():
                torch.mm(matrix, matrix)

        for work in (compute, heat, heat):
            threading.Thread(target=work).start()
        while not done.is_set():
            give_way()
        return found[0]

    block.forward = elsewhere


for block in (*pipe.unet.down_blocks, pipe.unet.mid_block, *pipe.unet.up_blocks):
    compute_elsewhere(block)
image = pipe("red apple on a blue background", num_inference_steps=20).images[0]
image.save("out.png")
