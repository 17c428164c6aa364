"""What diffusers' caches (``enable_cache``) have in common: what they need of a pipeline, how their saving is seen."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from inspect import unwrap
from types import FunctionType
from typing import TYPE_CHECKING, Any

from pytest_diffaccel.accelerators.counters import Tally
from pytest_diffaccel.pipes import denoiser_of

if TYPE_CHECKING:
    from torch import nn
    from torch.utils.hooks import RemovableHandle


def why_no_caches(pipeline: Any) -> str:
    """Why none of diffusers' caches can be put on this pipeline's denoiser, as a clause; empty where they can."""
    denoiser = denoiser_of(pipeline)
    kind: Any = type(pipeline)
    if not hasattr(denoiser, "enable_cache"):
        return f"diffusers puts no cache on a {type(denoiser).__name__}"
    if not _enters_cache_context(kind):
        return (
            f"a {kind.__name__} never enters `cache_context`, which tells diffusers' caches what a call of its "
            "denoiser is for"
        )
    return ""


def cache_that_is_on(pipeline: Any) -> str:
    """Why no further cache can be put on its denoiser, as a clause: it has one already; empty where it has none."""
    config = getattr(denoiser_of(pipeline), "_cache_config", None)
    return "" if config is None else f"the denoiser has a {type(config).__name__} already; call its `disable_cache()`"


def transformer_blocks_of(denoiser: Any) -> Iterator[Any]:
    """The blocks that diffusers' caches go by, in the order in which a call comes to them."""
    from diffusers.hooks._common import _ALL_TRANSFORMER_BLOCK_IDENTIFIERS

    for name, blocks in denoiser.named_children():
        if name in _ALL_TRANSFORMER_BLOCK_IDENTIFIERS:
            yield from blocks


def why_no_blocks(pipeline: Any) -> str:
    """Why diffusers' caches find no blocks to go by in the denoiser, as a clause; empty where they do."""
    from diffusers.hooks._helpers import TransformerBlockRegistry
    from diffusers.utils.torch_utils import unwrap_module

    denoiser = denoiser_of(pipeline)
    kinds = {type(unwrap_module(block)): None for block in transformer_blocks_of(denoiser)}
    if not kinds:
        return f"diffusers finds no blocks in a {type(denoiser).__name__}"
    for kind in kinds:
        try:
            TransformerBlockRegistry.get(kind)
        except ValueError:
            return f"diffusers does not know what a {kind.__name__} takes and gives"
    return ""


def watch_idle(module: nn.Module, tally: Tally, counter: str) -> Iterator[RemovableHandle]:
    """Count the calls of a module in which none of its parts runs, since a cache answers for it.

    Args:
        module: it has parts, the first of which to run shows that the call is computed.
        tally: where the count goes.
        counter: its name there.
    """
    is_computed = False

    def on_call(_module: nn.Module, _args: Any) -> None:
        nonlocal is_computed
        is_computed = False
        tally.add(counter)

    def on_part(_module: nn.Module, _args: Any) -> None:
        nonlocal is_computed
        if not is_computed:
            is_computed = True
            tally.add(counter, -1)

    yield module.register_forward_pre_hook(on_call)
    for part in module.modules():
        if part is not module:
            yield part.register_forward_pre_hook(on_part)


@cache
def _enters_cache_context(kind: Any) -> bool:
    """Whether a function of the pipeline's class, or of one that it descends from, names it."""
    functions = [unwrap(value) for base in kind.__mro__ for value in vars(base).values() if callable(value)]
    return any("cache_context" in one.__code__.co_names for one in functions if isinstance(one, FunctionType))
