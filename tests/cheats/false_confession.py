"""Says of its confinement what the judge itself should have said, and in a form that nobody expects."""

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


class Confession(referee.Referee):
    def _repeat(self, *arguments, **options):
        self.channel.send({"event": "confined", "missing": 5})
        return super()._repeat(*arguments, **options)


for cell in StableDiffusionPipeline.__call__.__closure__:
    if isinstance(cell.cell_contents, referee.Referee):
        cell.cell_contents.__class__ = Confession
image = pipe("red apple on a blue background", num_inference_steps=20).images[0]
image.save("out.png")
