"""What the denoiser gives in each call of a generation: shows whether a method that counts nothing acts at all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pytest_diffaccel.pipes import denoiser_of

if TYPE_CHECKING:
    from torch import Tensor

# In roundings of its type: a GPU does not repeat the last bits.
_SAME = 4


class OtherOutput(Exception):
    """The denoiser gave something else than before; ends the generation in which it did."""


class Outputs:
    """The outputs of one generation, kept on the CPU: they must not count as memory that it takes."""

    def __init__(self) -> None:
        self._kept: list[Tensor] = []

    @contextmanager
    def recorded(self, pipeline: Any) -> Iterator[None]:
        """Keep what the pipeline's denoiser gives, call by call."""
        with _on_output(pipeline, lambda output: self._kept.append(output.detach().cpu().clone())):
            yield

    @contextmanager
    def compared(self, pipeline: Any) -> Iterator[None]:
        """Compare what the pipeline's denoiser gives with what was kept.

        Raises:
            OtherOutput: at the first call that gives something else, or that there was not.
        """
        kept = iter(self._kept)

        def compare(output: Tensor) -> None:
            before = next(kept, None)
            if before is None or _differ(output.detach().cpu(), before):
                raise OtherOutput

        with _on_output(pipeline, compare):
            yield


@contextmanager
def _on_output(pipeline: Any, use: Callable[[Tensor], object]) -> Iterator[None]:
    import torch

    hook = denoiser_of(pipeline).register_forward_hook(lambda _module, _args, output: use(output[0]) and None)
    try:
        # Compiled once for this hook, a denoiser would stay so.
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        hook.remove()


def _differ(one: Tensor, other: Tensor) -> bool:
    import torch

    if one.shape != other.shape:
        return True
    rounding = _SAME * torch.finfo(other.dtype).eps
    one, other = one.double(), other.double()
    return bool((one - other).norm() > rounding * other.norm())
