"""Proof that a method acts: what really happened inside the UNet in one generation, seen by hooks, not by belief."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.utils.hooks import RemovableHandle


class FiredCounters:
    """Counts, during one generation, what the methods are there to save.

    The hooks sit on modules inside those that methods replace, so that they see real work only. They cost
    little time, but some: counted generations are never timed.

    Attributes:
        denoiser_calls: UNet calls.
        gated_calls: UNet calls on less than the full batch.
        merged_tokens: tokens of self-attention inputs that were merged away, summed over blocks and calls.
    """

    def __init__(self, full_batch: int) -> None:
        """Count for generations whose UNet batch is ``full_batch``: with guidance twice the images, else as many."""
        self._full_batch = full_batch
        self._deepest_calls = 0
        self._attention_calls = 0
        self._projections = 0
        self._tokens: dict[int, int] = {}
        self.denoiser_calls = 0
        self.gated_calls = 0
        self.merged_tokens = 0

    @contextmanager
    def attached(self, unet: nn.Module) -> Iterator[None]:
        """Put hooks on ``unet``, and take them away at the end.

        Modules that ``torch.compile`` compiled run uncompiled in the block: the hooks differ from module to module, so
        each would be compiled apart, until torch gives up and runs them uncompiled ever after.
        """
        import torch

        with ExitStack() as stack:
            for hook in self._attach(unet):
                stack.callback(hook.remove)
            with torch.compiler.set_stance("force_eager"):
                yield

    def _attach(self, unet: nn.Module) -> Iterator[RemovableHandle]:
        yield unet.register_forward_pre_hook(self._on_unet)
        # The deepest block: small distilled UNets have no mid block.
        deepest: Any = unet.mid_block if unet.mid_block is not None else unet.up_blocks[0]
        yield deepest.resnets[0].register_forward_pre_hook(self._on_deepest)
        for module in unet.modules():
            # By attribute, not by class: ToMe swaps the classes of transformer blocks.
            if hasattr(module, "attn1") and hasattr(module, "norm1"):
                yield from self._attach_to_block(module)

    def _attach_to_block(self, block: Any) -> Iterator[RemovableHandle]:
        yield block.register_forward_pre_hook(self._on_block)
        yield block.attn1.register_forward_pre_hook(lambda _module, args: self._on_self_attention(id(block), args[0]))
        for attention in (block.attn1, block.attn2):
            if attention is not None:
                yield attention.register_forward_pre_hook(self._on_attention)
                yield attention.to_q.register_forward_pre_hook(self._on_projection)
                # What takes its place where self-attention's projections are fused.
                if getattr(attention, "to_qkv", None) is not None:
                    yield attention.to_qkv.register_forward_pre_hook(self._on_projection)

    def _on_unet(self, _module: nn.Module, args: tuple[Tensor, ...]) -> None:
        self.denoiser_calls += 1
        self.gated_calls += args[0].shape[0] < self._full_batch

    def _on_deepest(self, _module: nn.Module, _args: tuple[Tensor, ...]) -> None:
        self._deepest_calls += 1

    def _on_block(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        self._tokens[id(module)] = args[0].shape[1]

    def _on_self_attention(self, block: int, hidden_states: Tensor) -> None:
        self.merged_tokens += max(0, self._tokens[block] - hidden_states.shape[1])

    def _on_attention(self, _module: nn.Module, _args: tuple[Tensor, ...]) -> None:
        self._attention_calls += 1

    def _on_projection(self, _module: nn.Module, _args: tuple[Tensor, ...]) -> None:
        self._projections += 1

    @property
    def counts(self) -> dict[str, int]:
        """All counters by name.

        Also ``cached_steps``, UNet calls in which the deepest block did not run, and ``reused_attention``, attention
        calls whose projections did not run.
        """
        return {
            "denoiser_calls": self.denoiser_calls,
            "cached_steps": self.denoiser_calls - self._deepest_calls,
            "gated_calls": self.gated_calls,
            "reused_attention": self._attention_calls - self._projections,
            "merged_tokens": self.merged_tokens,
        }
