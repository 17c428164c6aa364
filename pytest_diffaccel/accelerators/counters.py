"""Proof that methods act: what really happened inside the denoiser in one generation, seen by hooks, not by belief."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from pytest_diffaccel.pipes import denoiser_of

if TYPE_CHECKING:
    from torch import nn
    from torch.utils.hooks import RemovableHandle

#: The counter that is no method's: how often the denoiser was called.
DENOISER_CALLS = "denoiser_calls"


class UnwatchableError(RuntimeError):
    """A method could not put its hooks on a denoiser that it did not refuse: whether it acts cannot be told."""


class Tally:
    """What one method's hooks count in one generation.

    Attributes:
        counts: by counter; each begins with 0.
        full_batch: batch of a denoiser call that computes all there is: with guidance twice the images, else as many.
    """

    def __init__(self, method: str, names: Iterable[str], full_batch: int) -> None:
        """Begin at 0 for the counters ``names`` of the method of that name."""
        self.counts = dict.fromkeys(names, 0)
        self.full_batch = full_batch
        self._method = method

    def add(self, name: str, number: int = 1) -> None:
        """Add ``number``, which may be negative, to a counter.

        Raises:
            ValueError: for a counter that the method does not name.
        """
        if name not in self.counts:
            known = ", ".join(self.counts)
            raise ValueError(f"{self._method} counts {name!r}, which `counted` does not name; it names {known}")
        self.counts[name] += int(number)  # what is counted on arrays and tensors is none, and no record takes it


class Counting(Protocol):
    """What counting needs of a :class:`~.base.Method`, which says what each of these means."""

    @property
    def name(self) -> str:
        """The method's name."""

    @property
    def counted(self) -> tuple[str, ...]:
        """Its counters."""

    def applies_to(self, pipeline: Any) -> str:
        """Why it does not; empty where it does."""

    def watch(self, denoiser: Any, tally: Tally) -> Iterable[RemovableHandle]:
        """Put hooks on the denoiser that add to the tally."""


class FiredCounters:
    """Counts denoiser calls, and what each of some methods counts, during one generation.

    The hooks cost little time, but some: counted generations are never timed.
    """

    def __init__(self, methods: Iterable[Counting], full_batch: int) -> None:
        """Count for generations whose denoiser batch is ``full_batch``: with guidance twice the images, else as many.

        Args:
            methods: all that there are, applied or not: what none of them moves is seen to be 0.
            full_batch: the batch.
        """
        self._tallies = [(method, Tally(method.name, method.counted, full_batch)) for method in methods]
        self._denoiser_calls = 0

    @contextmanager
    def attached(self, pipeline: Any) -> Iterator[None]:
        """Put hooks on the pipeline's denoiser, and take them away at the end.

        Modules that ``torch.compile`` compiled run uncompiled in the block: the hooks differ from module to module, so
        each would be compiled apart, until torch gives up and runs them uncompiled ever after.

        Raises:
            UnwatchableError: when a method's hooks cannot be put there.
        """
        import torch

        with ExitStack() as stack:
            for hook in self._attach(pipeline):
                stack.callback(hook.remove)
            with torch.compiler.set_stance("force_eager"):
                yield

    def _attach(self, pipeline: Any) -> Iterator[RemovableHandle]:
        denoiser: nn.Module = denoiser_of(pipeline)
        yield denoiser.register_forward_pre_hook(self._on_denoiser)
        for method, tally in self._tallies:
            # It may not be applied at all: without its name, the error would seem that of another method.
            try:
                # What a method counts in is what it needs.
                if method.counted and not method.applies_to(pipeline):
                    yield from method.watch(denoiser, tally)
            except Exception as error:
                raise UnwatchableError(
                    f"{method.name} cannot watch a {type(denoiser).__name__} ({type(error).__name__}: {error}); mend "
                    "its `watch`, or let `applies_to` say why not"
                ) from error

    def _on_denoiser(self, _module: nn.Module, _args: Any) -> None:
        self._denoiser_calls += 1

    @property
    def counts(self) -> dict[str, int]:
        """All counters by name; one that methods share, as a subclass does with its base, once."""
        shared = {name: count for _, tally in self._tallies for name, count in tally.counts.items()}
        return {DENOISER_CALLS: self._denoiser_calls, **shared}


def transformer_blocks(denoiser: nn.Module) -> Iterator[Any]:
    """The blocks with self-attention (``attn1``) and, where it is not None, cross-attention (``attn2``)."""
    for module in denoiser.modules():
        # By attribute, not by class: ToMe swaps the classes of transformer blocks.
        if hasattr(module, "attn1") and hasattr(module, "norm1"):
            yield module
