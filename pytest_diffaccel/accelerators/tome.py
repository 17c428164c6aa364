"""ToMe: similar tokens are merged before self-attention and unmerged after it.

Bolya and Hoffman, "Token Merging for Fast Stable Diffusion", CVPR Workshops 2023, through the authors' ``tomesd``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_diffaccel.accelerators.base import GridSize, InvalidParams, Method, PipelineCall, points
from pytest_diffaccel.accelerators.counters import Tally, transformer_blocks
from pytest_diffaccel.matrix import Cell, Params, Point
from pytest_diffaccel.pipes import denoiser_of, described

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

# Tokens are merged in windows of 2 x 2.
_STRIDE = 2
# So one token in four is a destination: more than this cannot be merged and is capped silently.
MAX_RATIO = 0.75
DOWNSAMPLES = (1, 2, 4, 8)
# How much of a step finding and merging tokens may cost, whatever their share, and how much doing without them saves.
_MERGING, _SAVING = 0.3, 0.5
# How much merging at the next lower resolution, too, may add to what it costs and saves: there are a quarter of the
# tokens, and as many launches.
_NEXT_SHARE, _FALLS_BY = 0.15, 0.5
_FINE_RATIOS = tuple(round(0.05 * step, 2) for step in range(1, 16))

_RATIOS: Mapping[GridSize, tuple[float, ...]] = {
    "full": (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75),
    "pair": (0.25, 0.5, 0.75),
    "triple": (0.25, 0.5),
    "coarse": (0.3, 0.6),
    "coarse pair": (0.3, 0.6),
    "coarse triple": (0.3, 0.6),
}
# Which of the pipe's resolutions: the shallowest, and how many more of them.
_DEPTHS: Mapping[GridSize, tuple[int, ...]] = {
    "full": (0, 1, 2, 3),
    "pair": (0, 1),
    "triple": (0,),
    "coarse": (0, -1),
    "coarse pair": (0,),
    "coarse triple": (0,),
}


class ToMe(Method):
    """Token merging of self-attention, with ``tomesd``'s other settings at their defaults."""

    name = "ToMe"
    param_names = ("ratio", "max_downsample")
    denoiser = "unet"
    #: Tokens of self-attention inputs that were merged away, summed over blocks and calls.
    counted = ("merged_tokens",)
    template = Path(__file__).with_suffix(".py.j2")

    def grid(self, cell: Cell, size: GridSize) -> Sequence[Point]:
        """Ratios x the resolutions at which the pipe has attention."""
        available = downsamples_of_pipe(cell.pipe)
        depths = [available[depth] for depth in _DEPTHS[size] if depth < len(available)]
        return points(self.param_names, product(_RATIOS[size], depths))

    def space(self, cell: Cell) -> Sequence[Point]:
        """Ratios from 0.05 to 0.75 x every resolution at which the pipe has attention."""
        return points(self.param_names, product(_FINE_RATIOS, downsamples_of_pipe(cell.pipe)))

    def check(self, point: Point, steps: int) -> None:
        """Ratio from 0 to 0.75, ``max_downsample`` one of 1, 2, 4, 8."""
        self.check_names(point)
        ratio = point["ratio"]
        if isinstance(ratio, bool) or not isinstance(ratio, (int, float)) or not 0 <= ratio <= MAX_RATIO:
            raise InvalidParams(f"{self.name}: ratio={ratio!r} must be a number from 0 to {MAX_RATIO}")
        if point["max_downsample"] not in DOWNSAMPLES or isinstance(point["max_downsample"], bool):
            known = ", ".join(map(str, DOWNSAMPLES))
            raise InvalidParams(f"{self.name}: max_downsample={point['max_downsample']!r} must be one of {known}")

    def applies_to(self, pipeline: Any) -> str:
        """``tomesd`` merges in the transformer blocks that it finds, and says nothing where it finds none."""
        if set(_levels(denoiser_of(pipeline))) & set(DOWNSAMPLES):
            return ""
        denoiser = denoiser_of(pipeline)
        what = "this UNet" if hasattr(denoiser, "down_blocks") else f"a {type(denoiser).__name__}"
        return f"tomesd finds no transformer block in {what} to merge tokens in"

    def misfit(self, point: Point, pipeline: Any, height: int, width: int) -> str:
        """At ``max_downsample`` the UNet must have tokens to merge, of which it makes some for images of this size."""
        if not point["ratio"]:
            return ""
        levels = _levels(denoiser_of(pipeline))
        return self._misplaced(point, levels) or self._missized(point, levels, pipeline.vae_scale_factor, height, width)

    def _misplaced(self, point: Point, levels: Sequence[int]) -> str:
        valid = [level for level in levels if level in DOWNSAMPLES]
        if point["max_downsample"] in valid:
            return ""
        return (
            f"max_downsample={point['max_downsample']} must be one of {', '.join(map(str, valid))}, "
            "where this UNet has tokens to merge; another merges none, or what a smaller one does"
        )

    def _missized(self, point: Point, levels: Sequence[int], scale: int, height: int, width: int) -> str:
        """``tomesd`` guesses a level's shape from its number of tokens, and fails where it guesses another.

        On small images, a small ratio is less than one token.
        """
        rows, columns = height // scale, width // scale
        most = merged = 0
        for downsample in levels:
            level = (math.ceil(rows / downsample), math.ceil(columns / downsample))
            tokens = level[0] * level[1]
            guess = math.ceil(math.sqrt(rows * columns // tokens))
            if guess > point["max_downsample"]:
                continue
            guessed = (math.ceil(rows / guess), math.ceil(columns / guess))
            merges = int(tokens * point["ratio"])
            most, merged = max(most, tokens), merged + merges
            if merges and (math.prod(guessed) != tokens or min(guessed) < _STRIDE):
                return (
                    f"max_downsample={point['max_downsample']} fails on images of {width}x{height} pixels: tomesd "
                    f"cannot tell the shape of {level[0]}x{level[1]} tokens; take a smaller max_downsample, or sides "
                    f"that are multiples of {_STRIDE * scale * max(DOWNSAMPLES)}"
                )
        if not merged:
            return (
                f"ratio={point['ratio']} is less than one token on images of {width}x{height} pixels, of which this "
                f"UNet makes {most} at most where tokens are merged; take a larger ratio, or larger images"
            )
        return ""

    def watch(self, denoiser: Any, tally: Tally) -> Iterator[RemovableHandle]:
        """What a block is given and its self-attention is not."""
        for block in transformer_blocks(denoiser):
            yield from _watch_block(block, tally)

    def counters(self, point: Point, steps: int) -> frozenset[str]:
        """A ratio of 0 merges nothing."""
        return frozenset({"merged_tokens"} if point["ratio"] > 0 else ())

    def kinds(self, point: Point, steps: int, restarts: frozenset[int]) -> list[str]:
        """Every step merges alike."""
        return [f"{point['ratio']}@{point['max_downsample']}"] * steps

    def features(self, kind: str) -> Mapping[str, float]:
        """A parabola of the ratio: merging costs something, and saves ever more; each resolution down to the lowest of
        the kind adds its own.
        """
        text, _, lowest = kind.partition("@")
        share = float(text) / MAX_RATIO
        features = {"merging": _MERGING, "share": _SAVING * share, "squared share": _SAVING * share**2}
        for place, downsample in enumerate(level for level in DOWNSAMPLES[1:] if level <= float(lowest)):
            size = _NEXT_SHARE * _FALLS_BY**place
            features |= {f"merging@{downsample}": size, f"share@{downsample}": size * share}
        return features

    def coordinates(self, point: Point, cell: Cell) -> tuple[float, ...]:
        """The ratio and how many resolutions merge, both of which the loss follows slowly."""
        return 0.6 * point["ratio"] / MAX_RATIO, 0.2 * DOWNSAMPLES.index(int(point["max_downsample"]))

    def apply(self, pipeline: Any, call: PipelineCall, params: Params) -> PipelineCall:
        """Patch the UNet's transformer blocks. Its generator is forked from torch's global one at the first forward."""
        import tomesd

        tomesd.apply_patch(pipeline, **params[self.name])
        return call


def downsamples_of_pipe(pipe: str) -> list[int]:
    """The ``max_downsample`` that a pipe's UNet has something to merge at, ascending, before it is loaded."""
    return [level for level in described(pipe).topology.attention if level in DOWNSAMPLES]


def _watch_block(block: Any, tally: Tally) -> Iterator[RemovableHandle]:
    tokens = 0

    def on_block(_module: Any, args: Any) -> None:
        nonlocal tokens
        tokens = args[0].shape[1]

    yield block.register_forward_pre_hook(on_block)
    yield block.attn1.register_forward_pre_hook(
        lambda _module, args: tally.add("merged_tokens", max(0, tokens - args[0].shape[1]))
    )


def _levels(unet: Any) -> list[int]:
    """The downsamplings at which a UNet has transformer blocks, for ToMe to merge in; 1 is full resolution."""
    if not hasattr(unet, "down_blocks"):
        return []  # no UNet at all
    found, depth = set(), 0
    for block in unet.down_blocks:
        found |= {depth} if _has_transformers(block) else set()
        depth += bool(getattr(block, "downsamplers", None))
    found |= {depth} if unet.mid_block is not None and _has_transformers(unet.mid_block) else set()
    for block in unet.up_blocks:
        found |= {depth} if _has_transformers(block) else set()
        depth -= bool(getattr(block, "upsamplers", None))
    return sorted(2**level for level in found)


def _has_transformers(block: Any) -> bool:
    # By the name that tomesd goes by, also among the bases of a class that it has put in place already.
    return any(base.__name__ == "BasicTransformerBlock" for part in block.modules() for base in type(part).__mro__)
