"""How much arithmetic each kind of step needs, by torch's own counter."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pytest_diffaccel.accelerators.acceleration import Generate


class FlopClock:
    """Observer that counts the floating-point operations of chosen steps, between the events at either end.

    torch's counter makes everything many times slower while it is on, so it is on in no other step.

    Attributes:
        counts: by step.
    """

    def __init__(self, counter: Any, chosen: Collection[int], counting: ExitStack) -> None:
        """Count with ``counter``, a ``torch.utils.flop_counter.FlopCounterMode``, in the steps at ``chosen``.

        ``counting`` is what turns it off when the generation breaks off in such a step.
        """
        self._counter = counter
        self._chosen = chosen
        self._counting = counting
        self._step = -1
        self.counts: dict[int, int] = {}

    def started(self) -> None:
        """Nothing to note."""

    def denoiser_called(self) -> None:
        """Begin to count, if this step is to be counted."""
        self._step += 1
        if self._step in self._chosen:
            self._counting.enter_context(self._counter)

    def step_ended(self) -> None:
        """Note the count of a step, if it was counted."""
        if self._step in self._chosen:
            self._counting.close()
            self.counts[self._step] = self._counter.get_total_flops()

    def ended(self) -> None:
        """Nothing to note."""


def flops_by_kind(generate: Generate, prompt: str, seed: int, known: Collection[str] = ()) -> dict[str, int]:
    """Floating-point operations of a step of each kind, for one image; a multiplication and an addition are two.

    Counted from shapes, once per kind, in a generation of its own that ends when all are counted; modules that
    ``torch.compile`` compiled run uncompiled in it. What has no formula (norms, activations, sorting and gathering of
    tokens) counts nothing: next to convolutions, matrix products and attention it is little arithmetic, though it may
    take long.

    Args:
        generate: on any device.
        prompt: what to draw.
        seed: of its start noise.
        known: kinds that need not be counted; without others, nothing is generated.
    """
    params = generate.params
    if method := generate.accelerator.deciding:
        # Whatever this picture decides: one that reuses as soon as it can shows both kinds.
        soonest = method.soonest(params[method.name])
        generate = replace(generate, params={method.name: soonest}, decided=())
    all_places = {kind: [at for at, own in enumerate(generate.kinds) if own == kind] for kind in generate.kinds}
    # Steps of a kind are alike, but for the first, which may set something up: the second of each is counted, or the
    # last where the picture decides, as it is the likeliest to be reused.
    places = {kind: own[-1] if method else own[:2][-1] for kind, own in all_places.items() if kind not in known}
    if not places:
        return {}
    import torch
    from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

    def attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
        return int(sdpa_flop_count(query, key, value))

    # The counter has no formula for what attention becomes on a CPU.
    on_cpu = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    counter = FlopCounterMode(display=False, custom_mapping={on_cpu: attention})
    with torch.compiler.set_stance("force_eager"), ExitStack() as counting:
        clock = FlopClock(counter, set(places.values()), counting)
        generate.begun([prompt], [seed], clock, max(places.values()) + 1)
    counts = {kind: clock.counts[place] for kind, place in places.items()}
    return counts | generate.accelerator.between(params, counts)
