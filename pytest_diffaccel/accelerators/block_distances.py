"""What an unaccelerated generation tells of DBCache's decisions: how far the first blocks' residuals lie apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pytest_diffaccel.accelerators.cache_dit_patches import adapter_of, purpose_of
from pytest_diffaccel.accelerators.dbcache_steps import may_reuse
from pytest_diffaccel.accelerators.decisions import foreseen
from pytest_diffaccel.matrix import Number, Point
from pytest_diffaccel.pipes import denoiser_of

if TYPE_CHECKING:
    from torch import Tensor

#: The numbers of first blocks whose residuals are kept, as grids and space have them.
FIRST_BLOCKS = (1, 4, 8)


class BlockDistances:
    """How far the first blocks' residual of each call lies from those before it, by what the call is for.

    Kept for each of several numbers of first blocks; another number is taken for the nearest of them.
    """

    def __init__(self) -> None:
        # What each call was for, and by number of blocks its distance to each earlier one of the same purpose.
        self._calls: list[tuple[str, dict[int, list[float]]]] = []
        # Of a search's thousands of points many are asked for again and again; the order decides nothing.
        self._decided: dict[frozenset[tuple[str, Number]], Sequence[Sequence[bool]]] = {}

    @contextmanager
    def watching(self, pipeline: Any) -> Iterator[None]:
        """Keep the residuals of a generation, and how far they lie apart. Compiled blocks run uncompiled in it."""
        import torch

        denoiser, adapter = denoiser_of(pipeline), adapter_of(pipeline)
        manager, place = denoiser._context_manager, adapter.forward_pattern.Out.index("hidden_states")
        states: dict[int, Tensor] = {}
        kept: dict[str, list[dict[int, tuple[Tensor, Tensor]]]] = {}

        def keep(number: int, output: Any) -> None:
            states[number] = output if isinstance(output, torch.Tensor) else output[place]

        def end(*_: Any) -> None:
            purpose, before = purpose_of(manager), states.pop(0)
            earlier = kept.setdefault(purpose, [])
            residuals = {number: state - before.to(state.device) for number, state in states.items()}
            # As cache-dit computes it, in the residuals' own type.
            apart = {
                number: [((one[number][0] - residual).abs().mean() / one[number][1]).item() for one in earlier]
                for number, residual in residuals.items()
            }
            self._calls.append((purpose, apart))
            earlier.append({number: (residual, residual.abs().mean()) for number, residual in residuals.items()})
            states.clear()

        adapter.blocks[0].register_forward_pre_hook(lambda _module, args: keep(0, args[0]))
        for number in FIRST_BLOCKS:
            if number < len(adapter.blocks):
                adapter.blocks[number - 1].register_forward_hook(
                    lambda _module, _args, output, number=number: keep(number, output)
                )
        denoiser.register_forward_hook(end)
        with torch.compiler.set_stance("force_eager"):
            yield

    def decisions(self, point: Point) -> Sequence[Sequence[bool]]:
        """What cache-dit would decide, were the residuals these."""
        key = frozenset(item for item in point.items() if item[0] != "taylorseer_order")
        if key not in self._decided:
            self._decided[key] = self._decisions(point)
        return self._decided[key]

    def _decisions(self, point: Point) -> Sequence[Sequence[bool]]:
        steps = max(Counter(purpose for purpose, _ in self._calls).values(), default=0)
        threshold = point["residual_diff_threshold"]

        def reuses(apart: Mapping[int, Sequence[float]], last: int) -> bool:
            distances = apart[min(apart, key=lambda number: abs(number - point["Fn_compute_blocks"]))]
            step = len(distances)
            may = may_reuse(point, step, steps, reused=step - last - 1)
            return may and (threshold >= 1 or distances[last] < threshold)

        return foreseen(self._calls, reuses)
