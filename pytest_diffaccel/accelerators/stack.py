"""Stacks: how a pipeline is prepared before any method, so that a speed-up has a baseline that its user would have.

*Eager* is the pipeline as it is loaded. *Compiled* is what diffusers' documentation advises ("Accelerate inference"):
the blocks that repeat are compiled, query, key and value are projected at once, convolutions see their tensors channels
last where torch's norms keep them so, and a transformer's attention is cuDNN's where the GPU has it. None of it changes
what is computed, but for rounding.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from pytest_diffaccel.accelerators.restoration import ModuleStates, undone
from pytest_diffaccel.pipes import denoiser_of

StackName: TypeAlias = Literal["eager", "compiled"]
EAGER: StackName = "eager"

#: What compiles: a backend of ``torch.compile``.
BACKEND = "inductor"
#: How a part says that blocks are compiled, before the backend's name.
COMPILED_BY = "compiled by "
# What torch calls all that goes to a graph, of what it keeps the time of.
_COMPILING = "entire_frame_compile"
# As diffusers calls it: the kernels that cuDNN has for Hopper.
_ATTENTION = "_native_cudnn"
#: From this compute capability on.
HOPPER = (9, 0)
#: Methods' parameters are compiled in, each of them anew. Past its own limits torch goes on uncompiled, and only a log
#: says so: then a candidate would not run on its stack.
LIMITS = {"recompile_limit": 1024, "accumulated_recompile_limit": 65536, "fail_on_recompile_limit_hit": True}


def stack_words(parts: Mapping[str, str]) -> str:
    """``blocks compiled by inductor, projections fused``, of a stack's parts; ``eager`` of none."""
    return ", ".join(f"{name} {how}" for name, how in sorted(parts.items())) or EAGER


@dataclass(frozen=True)
class SetUp:
    """What torch compiled, which is set-up and no part of any step's time.

    Attributes:
        graphs: how many graphs.
        graph_breaks: places at which it could not go on, and began another graph.
        seconds: what it took.
    """

    graphs: int = 0
    graph_breaks: int = 0
    seconds: float = 0.0

    def __post_init__(self) -> None:
        if min(self.graphs, self.graph_breaks, self.seconds) < 0:
            raise ValueError("nothing is compiled fewer times than never, or in less than no time")

    def __add__(self, other: SetUp) -> SetUp:
        """Both."""
        return SetUp(self.graphs + other.graphs, self.graph_breaks + other.graph_breaks, self.seconds + other.seconds)

    def __sub__(self, other: SetUp) -> SetUp:
        """What came after ``other``; nothing where torch's counters were set back meanwhile."""
        return SetUp(
            max(0, self.graphs - other.graphs),
            max(0, self.graph_breaks - other.graph_breaks),
            max(0.0, self.seconds - other.seconds),
        )

    @classmethod
    def so_far(cls) -> SetUp:
        """All that was compiled in this process; nothing, at no cost, where nothing was ever compiled."""
        module = sys.modules.get("torch._dynamo.utils")
        if module is None:
            return cls()
        counters, took_ns = module.counters, module.cumulative_time_spent_ns
        graphs, breaks = counters["stats"]["unique_graphs"], sum(counters["graph_break"].values())
        return cls(graphs, breaks, took_ns[_COMPILING] / 1e9)


class Prepared:
    """A pipeline on its stack.

    Attributes:
        parts: what was prepared, in words, by what it was done to; empty for the eager stack.
    """

    def __init__(self, parts: Mapping[str, str], states: tuple[_State, _State] | None = None) -> None:
        self.parts = parts
        self._states = states
        self._is_eager = False

    @contextmanager
    def eager(self) -> Iterator[None]:
        """The pipeline as it was before it was prepared, for the block; what is compiled is kept."""
        if self._states is None or self._is_eager:
            yield
            return
        before, after = self._states

        def back() -> None:
            after.restore()
            self._is_eager = False

        with undone(back):
            self._is_eager = True
            before.restore()
            yield


@contextmanager
def prepared(pipeline: Any, stack: StackName, parts: Collection[str] | None = None) -> Iterator[Prepared]:
    """Prepare a pipeline, and put it back exactly as it was: modules, their tensors' layout, the choice of attention.

    Args:
        pipeline: a diffusers pipeline of a pipe that is known.
        stack: its name.
        parts: what is prepared beside the compiled blocks, of :data:`PARTS`, as far as the pipeline has it; None: all
            that suits its device.

    Raises:
        ValueError: when the pipeline's denoiser names no blocks that could be compiled.
    """
    if stack == EAGER:
        yield Prepared({})
        return
    import torch

    denoiser = denoiser_of(pipeline)
    if not getattr(denoiser, "_repeated_blocks", None):
        raise ValueError(
            f"--stack compiled: {type(denoiser).__name__} names no repeated blocks, which diffusers would compile; "
            "take --stack eager"
        )
    before = _State(pipeline)
    config: Any = torch._dynamo.config
    with undone(before.restore), config.patch(**LIMITS):
        made = {"blocks": f"{COMPILED_BY}{BACKEND}"}
        for name in _suiting(denoiser) if parts is None else parts:
            made |= PARTS[name](pipeline)
        denoiser.compile_repeated_blocks(backend=BACKEND)
        yield Prepared(made, (before, _State(pipeline)))


def _fuse(pipeline: Any) -> dict[str, str]:
    """Project query, key and value at once, where the denoiser can."""
    denoiser = denoiser_of(pipeline)
    if not hasattr(denoiser, "fuse_qkv_projections"):
        return {}
    denoiser.fuse_qkv_projections()
    return {"projections": "fused"}


def _suiting(denoiser: Any) -> list[str]:
    """All parts, but for a layout that the device's norms undo."""
    return [name for name in PARTS if name != "layout" or (_convolves(denoiser) and _group_norm_keeps_layout(denoiser))]


def _convolves(denoiser: Any) -> bool:
    import torch

    return any(isinstance(module, torch.nn.Conv2d) for module in denoiser.modules())


def _group_norm_keeps_layout(denoiser: Any) -> bool:
    """Whether tensors that are channels last still are after the norm before each of a UNet's convolutions.

    On CUDA torch's group norm makes them contiguous (pytorch/pytorch#111824; #191945 changes that), so that each is
    copied back and forth. With this layout and fused projections an H200 gained nothing (1.01x for SD1.5 in batches
    of 8; compiled blocks alone gave 1.12x).
    """
    import torch

    tensor = torch.zeros((1, 2, 2, 2), device=denoiser.device, dtype=denoiser.dtype)
    normed = torch.nn.functional.group_norm(tensor.to(memory_format=torch.channels_last), 1)
    return normed.is_contiguous(memory_format=torch.channels_last)


def _channels_last(pipeline: Any) -> dict[str, str]:
    """Lay convolutions out channels last, where the denoiser has any; the VAE's with them."""
    import torch

    denoiser = denoiser_of(pipeline)
    if not _convolves(denoiser):
        return {}
    for module in (denoiser, pipeline.vae):
        module.to(memory_format=torch.channels_last)
    return {"layout": "channels_last"}


def _attention(pipeline: Any) -> dict[str, str]:
    """Take cuDNN's attention, where diffusers offers it and the GPU is one that has it."""
    import torch
    from diffusers.models.attention_dispatch import _AttentionBackendRegistry as Backends

    denoiser = denoiser_of(pipeline)
    if denoiser.device.type != "cuda" or torch.cuda.get_device_capability(denoiser.device) < HOPPER:
        return {}
    if not any(hasattr(processor, "_attention_backend") for processor in _processors(denoiser)):
        return {}
    active, _ = Backends.get_active_backend()
    denoiser.set_attention_backend(_ATTENTION)
    # Beside its processors' it sets the choice of every other pipeline.
    Backends.set_active_backend(active)
    return {"attention": _ATTENTION}


#: What may be prepared beside compiled blocks: each says what it did, in words, by what it did that to.
PARTS: Mapping[str, Callable[[Any], dict[str, str]]] = {
    "projections": _fuse,
    "layout": _channels_last,
    "attention": _attention,
}


def _processors(denoiser: Any) -> list[Any]:
    return [module.processor for module in denoiser.modules() if getattr(module, "processor", None) is not None]


class _State:
    """A pipeline's denoiser and VAE: modules, their tensors that may lie otherwise, and the attention of the denoiser.

    The tensors themselves are kept: others of the same layout made a CPU's steps 5% slower, by where they lay.
    """

    def __init__(self, pipeline: Any) -> None:
        self._denoiser = denoiser_of(pipeline)
        modules = [*self._denoiser.modules(), *pipeline.vae.modules()]
        self._modules = ModuleStates(modules)
        parameters = (parameter for module in modules for parameter in module.parameters(recurse=False))
        self._tensors = [(parameter, parameter.data) for parameter in parameters if parameter.dim() > 2]
        self._backends = [
            (processor, processor._attention_backend)
            for processor in _processors(self._denoiser)
            if hasattr(processor, "_attention_backend")
        ]

    def restore(self) -> None:
        self._modules.restore()
        for processor, backend in self._backends:
            processor._attention_backend = backend
        for parameter, data in self._tensors:
            parameter.data = data
