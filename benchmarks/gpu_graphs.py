"""Denoiser calls of the full-size pipes replayed from CUDA graphs: a second opinion on their device time.

Run ``python -m benchmarks.gpu_graphs`` on a GPU; a minute. A replay launches all kernels of a call at once, so that the
host cannot hold them up; its time holds the short gaps between kernels, which the busy time of
``pytest_diffaccel.measure.busy_clock`` leaves out. DeepCache's calls are captured below its own wrapper, whose look-up
of the timestep waits for the GPU and cannot be captured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

from benchmarks.output import parser, show
from benchmarks.record_gpu import BATCHES
from pytest_diffaccel.accelerators.restoration import restored
from pytest_diffaccel.matrix import PIPES
from pytest_diffaccel.models.loading import load_pipeline

_REPLAYS = 10


def replay_ms(call: Callable[[], Any]) -> float:
    """Median time of a replay of ``call``, in milliseconds; it runs on fixed tensors, without synchronisation."""
    import torch

    stream: Any = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return _median_ms(graph.replay)


def eager_ms(call: Callable[[], Any]) -> float:
    """Median time of ``call`` launched kernel by kernel, in milliseconds."""
    for _ in range(2):
        call()
    return _median_ms(call)


def _median_ms(call: Callable[[], Any]) -> float:
    import torch

    times = []
    for _ in range(_REPLAYS):
        make: Any = torch.cuda.Event
        begin, end = make(enable_timing=True), make(enable_timing=True)
        begin.record()
        call()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return median(times)


def inputs(pipeline: Any, batch: int) -> tuple[tuple[Any, Any], dict[str, Any]]:
    """Random arguments of a denoiser call on ``batch`` latents."""
    import torch

    unet, shape = pipeline.unet, {"device": pipeline.device, "dtype": pipeline.unet.dtype}
    side = unet.config.sample_size
    keywords: dict[str, Any] = {
        "encoder_hidden_states": torch.randn(batch, 77, unet.config.cross_attention_dim, **shape)
    }
    if unet.config.addition_embed_type == "text_time":
        text, times = torch.randn(batch, 1280, **shape), torch.full((batch, 6), 1024.0, **shape)
        keywords["added_cond_kwargs"] = {"text_embeds": text, "time_ids": times}
    return (torch.randn(batch, 4, side, side, **shape), torch.tensor(500, device=pipeline.device)), keywords


@contextmanager
def shallow(pipeline: Any, branch: int, arguments: Any, keywords: Any) -> Iterator[Callable[[], Any]]:
    """A DeepCache call that reuses features from ``branch`` on."""
    from DeepCache import DeepCacheSDHelper

    with restored(pipeline):
        helper = DeepCacheSDHelper(pipe=pipeline)
        helper.set_params(cache_interval=2, cache_branch_id=branch)
        helper.enable()
        forward = helper.function_dict["unet_forward"]
        helper.start_timestep = helper.cur_timestep = 0
        forward(*arguments, **keywords)
        helper.cur_timestep = 1
        yield lambda: forward(*arguments, **keywords)


def rows_of(pipe: str) -> Iterator[dict[str, Any]]:
    """A row per kind of call."""
    import torch

    pipeline: Any = load_pipeline(pipe, models="architecture")
    batch = BATCHES[pipe]
    with torch.inference_mode():
        for name, count in (("full", 2 * batch), ("without guidance", batch)):
            arguments, keywords = inputs(pipeline, count)
            call = _bound(pipeline.unet, arguments, keywords)
            yield _row(pipe, name, count, call)
        arguments, keywords = inputs(pipeline, 2 * batch)
        for branch in (0, 3, 6):
            with shallow(pipeline, branch, arguments, keywords) as call:
                yield _row(pipe, f"DeepCache shallow, branch {branch}", 2 * batch, call)


def _bound(unet: Any, arguments: Any, keywords: Any) -> Callable[[], Any]:
    return lambda: unet(*arguments, **keywords)


def _row(pipe: str, name: str, batch: int, call: Callable[[], Any]) -> dict[str, Any]:
    return {"pipe": pipe, "call": name, "latents": batch, "graph_ms": replay_ms(call), "eager_ms": eager_ms(call)}


def main() -> None:
    """Print the times."""
    arguments = parser(__doc__ or "").parse_args()
    rows = [row for pipe in PIPES for row in rows_of(pipe)]
    show("denoiser calls from CUDA graphs and eager", rows, {}, as_json=arguments.json)


if __name__ == "__main__":
    main()
