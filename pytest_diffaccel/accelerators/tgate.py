"""T-GATE: cross-attention is computed up to a gate step and its output reused after it, without guidance.

Zhang et al., "Faster Diffusion via Temporal Attention Decomposition", TMLR 2025 (T-GATE v2; the ``tgate`` package,
1.0.0): semantics-planning phase before the gate (``warm_up``, ``sp_interval``), fidelity-improving phase after it
(``fi_interval``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_diffaccel.accelerators.base import GridSize, Method, PipelineCall, check_integer, points
from pytest_diffaccel.accelerators.counters import Tally, transformer_blocks
from pytest_diffaccel.matrix import Cell, Params, Point
from pytest_diffaccel.pipes import denoiser_of, families_of

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

# Gate as a share of the steps: what a gate means depends on how much of the denoising lies behind it.
_GATES: Mapping[GridSize, tuple[float, ...]] = {
    "full": (0.25, 0.4, 0.5, 0.6, 0.75),
    "pair": (0.25, 0.5, 0.75),
    "triple": (0.25, 0.5),
    "coarse": (0.25, 0.5, 0.75),
    "coarse pair": (0.25, 0.5),
    "coarse triple": (0.25, 0.5),
}
# (sp_interval, warm_up): a warm-up means something only where self-attention is reused before the gate.
_PLANNING: Mapping[GridSize, tuple[tuple[int, int], ...]] = {
    "full": ((1, 0), (3, 2), (5, 2)),
    "pair": ((1, 0), (3, 2)),
    "triple": ((1, 0), (3, 2)),
    "coarse": ((1, 0), (3, 2)),
    "coarse pair": ((1, 0),),
    "coarse triple": ((1, 0),),
}
_FIDELITY: Mapping[GridSize, tuple[int, ...]] = {
    "full": (1, 2, 5),
    "pair": (1, 3),
    "triple": (1, 3),
    "coarse": (1, 5),
    "coarse pair": (1, 3),
    "coarse triple": (1,),
}
# How much keeping attention outputs may cost, dropping the guidance and reusing self-attention may save, and both
# together differ from that.
_FEATURES: Mapping[str, Mapping[str, float]] = {
    "planning": {"keeping": 0.05},
    "planning-reuse": {"reuse": 0.3},
    "gated": {"gated": 0.5},
    "gated-reuse": {"gated": 0.5, "reuse": 0.3, "gated-reuse": 0.1},
}
# Planning and fidelity intervals of the whole space.
_INTERVALS = range(1, 6)


class TGate(Method):
    """T-GATE through the package's own pipeline functions."""

    name = "T-Gate"
    param_names = ("gate_step", "sp_interval", "fi_interval", "warm_up")
    denoiser = "unet"
    #: Denoiser calls on less than the full batch; attention calls whose projections did not run.
    counted = ("gated_calls", "reused_attention")
    template = Path(__file__).with_suffix(".py.j2")
    # The package restarts DeepCache around the gate, where the batch halves: only its own loader knows how.
    drives = ("DeepCache",)
    # At the gate it drops half of the batch, which without guidance is half of the prompts.
    needs_guidance = True

    def grid(self, cell: Cell, size: GridSize) -> Sequence[Point]:
        """Gates x planning x fidelity, less the points that make the same calls as an earlier one.

        Where the gate comes early, few steps are left to skip before it and planning intervals mean the same.
        """
        gates = sorted({max(2, round(share * cell.steps)) for share in _GATES[size]})
        rows = [
            (gate, sp_interval, fi_interval, warm_up)
            for gate in gates
            for sp_interval, warm_up in _PLANNING[size]
            for fi_interval in _FIDELITY[size]
        ]
        return self._distinct(rows, cell.steps)

    def space(self, cell: Cell) -> Sequence[Point]:
        """Every gate and warm-up before it, intervals from 1 to 5, less what makes the same calls, or all of them."""
        rows = [
            (gate, sp_interval, fi_interval, warm_up)
            for gate in range(1, cell.steps + 1)
            for sp_interval in _INTERVALS
            for fi_interval in (_INTERVALS if gate < cell.steps else (1,))
            for warm_up in (range(gate) if sp_interval > 1 else (0,))
        ]
        return [point for point in self._distinct(rows, cell.steps) if self.counters(point, cell.steps)]

    def _distinct(self, rows: Iterable[Sequence[int]], steps: int) -> list[Point]:
        """The points of ``rows``, less those that make the same calls as an earlier one."""
        distinct: dict[tuple[str, ...], Point] = {}
        for point in points(self.param_names, rows):
            distinct.setdefault(tuple(self.kinds(point, steps, frozenset())), point)
        return list(distinct.values())

    def check(self, point: Point, steps: int) -> None:
        """Gate from 1 to ``steps`` (= never), intervals at least 1, warm-up before the gate."""
        self.check_names(point)
        gate = check_integer(self.name, point, "gate_step", 1, steps)
        check_integer(self.name, point, "sp_interval", 1)
        check_integer(self.name, point, "fi_interval", 1)
        check_integer(self.name, point, "warm_up", 0, gate - 1)

    def applies_to(self, pipeline: Any) -> str:
        """The package has pipeline functions of its own, and reuses the output of cross-attention."""
        if not _built_like(pipeline):
            return f"tgate's functions are used for Stable Diffusion and SDXL, not for a {type(pipeline).__name__}"
        if all(getattr(block, "attn2", None) is None for block in transformer_blocks(denoiser_of(pipeline))):
            return "this denoiser has no cross-attention, whose output it reuses"
        return ""

    def watch(self, denoiser: Any, tally: Tally) -> Iterator[RemovableHandle]:
        """The batch of every call; every call of an attention, which its projections take back."""
        yield denoiser.register_forward_pre_hook(
            lambda _module, args: tally.add("gated_calls", args[0].shape[0] < tally.full_batch)
        )
        for block in transformer_blocks(denoiser):
            for attention in (block.attn1, getattr(block, "attn2", None)):
                if attention is not None:
                    yield attention.register_forward_pre_hook(lambda *_: tally.add("reused_attention"))
                    # What takes the place of to_q where self-attention's projections are fused.
                    for projection in (attention.to_q, getattr(attention, "to_qkv", None)):
                        if projection is not None:
                            yield projection.register_forward_pre_hook(lambda *_: tally.add("reused_attention", -1))

    def counters(self, point: Point, steps: int) -> frozenset[str]:
        """Gated calls where the gate lies before the end, reused attention where planning or fidelity skip some."""
        kinds = self.kinds(point, steps, frozenset())
        gated = {"gated_calls"} if point["gate_step"] < steps else set()
        reused = {"reused_attention"} if gated or "planning-reuse" in kinds else set()
        return frozenset(gated | reused)

    def kinds(self, point: Point, steps: int, restarts: frozenset[int]) -> list[str]:
        """``planning`` before the gate, ``gated`` after it, with ``-reuse`` where self-attention is not computed."""
        return [self._kind(point, step) for step in range(steps)]

    @staticmethod
    def _kind(point: Point, step: int) -> str:
        gate, warm_up = point["gate_step"], point["warm_up"]
        if step >= gate:
            return "gated" if step % point["fi_interval"] == 0 else "gated-reuse"
        computed = step <= warm_up or step == gate - 1 or step % point["sp_interval"] == 0
        return "planning" if computed else "planning-reuse"

    def features(self, kind: str) -> Mapping[str, float]:
        """A step after the gate, and one that reuses self-attention, save about the same share of any step."""
        return _FEATURES[kind]

    def coordinates(self, point: Point, cell: Cell) -> tuple[float, ...]:
        """Shares of the steps that are gated, gated and reused, planned and reused; how early reuse begins."""
        kinds = self.kinds(point, cell.steps, frozenset())
        reused = [step for step, kind in enumerate(kinds) if kind == "planning-reuse"]
        begins = reused[0] if reused else cell.steps
        return (
            1 - point["gate_step"] / cell.steps,
            kinds.count("gated-reuse") / cell.steps,
            len(reused) / cell.steps,
            1 - begins / cell.steps,
        )

    def restarts(self, point: Point, steps: int) -> frozenset[int]:
        """The package restarts DeepCache at the last step with guidance and at the first without."""
        gate = int(point["gate_step"])
        return frozenset({gate - 1, gate})

    def apply(self, pipeline: Any, call: PipelineCall, params: Params) -> PipelineCall:
        """Install the package's pipeline function for this kind of pipeline, Stable Diffusion or SDXL."""
        import tgate

        like = _built_like(pipeline)
        driven = next((params[name] for name in self.drives if name in params), None)
        if driven is None:
            getattr(tgate, f"Tgate{like}Loader")(pipeline)
        else:
            getattr(tgate, f"Tgate{like}DeepCacheLoader")(pipeline, **driven)
        return partial(pipeline.tgate, **params[self.name])


def _built_like(pipeline: Any) -> str:
    """What the package calls this kind of pipeline, ``"SD"`` or ``"SDXL"``; empty for one that it does not know."""
    return next((spec.built_like for spec in families_of(pipeline) if spec.built_like), "")
