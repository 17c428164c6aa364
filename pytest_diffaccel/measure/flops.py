"""How much arithmetic each kind of step needs, by torch's own counter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pytest_diffaccel.accelerators.acceleration import Generate


class FlopClock:
    """Observer that reads torch's counter of floating-point operations at either end of every step."""

    def __init__(self, counter: Any) -> None:
        """Read ``counter``, a ``torch.utils.flop_counter.FlopCounterMode`` in whose context the generation runs."""
        self._counter = counter
        self._called: list[int] = []
        self._stepped: list[int] = []

    def started(self) -> None:
        """Nothing to note."""

    def denoiser_called(self) -> None:
        """Note the count before a step."""
        self._called.append(self._counter.get_total_flops())

    def step_ended(self) -> None:
        """Note the count after a step."""
        self._stepped.append(self._counter.get_total_flops())

    def ended(self) -> None:
        """Nothing to note."""

    @property
    def steps(self) -> list[int]:
        """Floating-point operations of each step, in order."""
        return [after - before for before, after in zip(self._called, self._stepped, strict=True)]


def flops_by_kind(generate: Generate, prompt: str, seed: int) -> Mapping[str, int]:
    """Floating-point operations of a step of each kind, for one image; a multiplication and an addition are two.

    Counted from shapes, in a generation of its own, of which a count is many times slower than a plain one. What has no
    formula (norms, activations, sorting and gathering of tokens) counts nothing: next to convolutions, matrix products
    and attention it is little arithmetic, though it may take long.

    Args:
        generate: on any device.
        prompt: what to draw.
        seed: of its start noise.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

    def attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
        return int(sdpa_flop_count(query, key, value))

    # The counter has no formula for what attention becomes on a CPU.
    on_cpu = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    with FlopCounterMode(display=False, custom_mapping={on_cpu: attention}) as counter:
        clock = FlopClock(counter)
        generate.observed([prompt], [seed], clock)
    # Steps of a kind are alike, but for the first, which may set something up.
    return dict(zip(generate.kinds, clock.steps, strict=True))
