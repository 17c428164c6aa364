"""Which candidates of a group are worth evaluating.

Everything here is arithmetic on what is known: predicted speed-ups, predicted losses, and the losses of the samples
made so far. What makes the samples (a pipeline, or a table that is replayed) asks, evaluates, and asks again.

A candidate is worth a first evaluation when it is expected to lower some target's least loss noticeably: the expected
improvement (Jones, Schonlau and Welch 1998) over what the model of losses makes of those evaluated (few samples flatter
the luckiest of them), times the probability that it is fast enough (Gardner et al. 2014). One evaluation serves all
targets. Those evaluated then race (:mod:`.contenders`).
"""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import compress
from statistics import fmean

import numpy as np
from scipy.special import ndtr

from pytest_diffaccel.accelerators.composition import Accelerator
from pytest_diffaccel.accelerators.registry import Registry
from pytest_diffaccel.matrix import TARGETS, Candidate, Cell, Params, spaced_params
from pytest_diffaccel.measure.deciding import BY_LPIPS, Deciding
from pytest_diffaccel.measure.measurement import Interval
from pytest_diffaccel.search.decide.select import Option, leader
from pytest_diffaccel.search.predict.cost_model import CostModel
from pytest_diffaccel.search.predict.loss_model import NO_LOSS, LossModel, log_loss, loss_of
from pytest_diffaccel.search.predict.reach import SPEED_TOLERANCE, may_reach, probabilities
from pytest_diffaccel.search.predict.regression import Array

# Evaluate while a target's least loss is expected to fall by this share of it.
_NOTICEABLE_GAIN = 0.008
# A candidate whose turn comes is left for later while another promises so many times as much for its time.
_MUCH_MORE = 2.0
# Where nothing is evaluated, anything comes nearer to a target than this.
_NOTHING_REACHED = 0.5
_NORMAL_95 = 1.96
#: Of a candidate that is to decide by the pictures what it reuses.
REUSES_NOTHING = "reuses nothing in the first pictures"
_REACHES_NONE = f"reaches no target (the lowest is {TARGETS[0]:g}x)"


def _expected_below(level: Array, mean: Array, sd: Array) -> Array:
    """By how much normal values fall below levels, in expectation, (values, levels)."""
    ahead = level - mean[:, None]
    far = ahead / sd[:, None]
    expected: Array = ahead * ndtr(far) + sd[:, None] * np.exp(-0.5 * far**2) / math.sqrt(2 * math.pi)
    return expected


@dataclass(frozen=True)
class Advice:
    """Whether to evaluate a candidate, and what says so.

    Attributes:
        evaluate: whether it is worth it.
        evidence: in words, for a case's skip reason or a log.
    """

    evaluate: bool
    evidence: str


@dataclass(frozen=True)
class Plan:
    """A group as far as it is known.

    Attributes:
        registry: the methods known.
        accelerator: the group's accelerator.
        cell: the group's cell.
        costs: what is known of speed.
        evaluated: the loss of each sample made, in prompt order, by candidate: all of the cell's, of any accelerator,
            since what a method loses alone tells what it loses with others.
        max_loss: largest mean loss a winner may have.
        first: samples of a first evaluation, on which losses are modelled; at least 1.
        barred: keys of evaluated candidates that cannot win within a bound on another metric: their losses tell of
            others, and they are out of the race.
        quality: whose losses they are.
        by_mean: whether speed-ups themselves must reach a target, whatever their intervals say.
    """

    registry: Registry
    accelerator: Accelerator
    cell: Cell
    costs: CostModel
    evaluated: Mapping[Candidate, tuple[float, ...]]
    max_loss: float
    first: int
    barred: Container[str] = frozenset()
    quality: Deciding = BY_LPIPS
    by_mean: bool = False

    def advice(self, candidate: Candidate, others: Sequence[Candidate] = ()) -> Advice:
        """Whether ``candidate`` is worth a first evaluation, given all that is known now.

        Args:
            candidate: of the group, not evaluated yet.
            others: that may be evaluated in its place; where one of them promises much more, it is not its turn.
        """
        (speedup,) = self.costs.speedups([candidate])
        said = f"predicted {speedup.value:.2f}x [{speedup.low:.2f}, {speedup.high:.2f}]"
        if reason := self.needless(candidate):
            return Advice(False, f"{said}: {reason}")
        if not self._fast_enough(speedup):
            if self._teaches(candidate):
                return Advice(True, f"{said}; shows what the method loses where it does little")
            return Advice(False, f"{said}: {_REACHES_NONE}")
        mean, sd = self._losses([candidate])
        gains = self._expected_gains([candidate])
        name, value = self.quality.rule.shown, self.quality.value_text
        loss, *ends = (value(loss_of(mean[0] + sign * _NORMAL_95 * sd[0])) for sign in self._signs)
        said += f" at {name} {loss} [{', '.join(ends)}]"
        if gains.max() < _NOTICEABLE_GAIN:
            return Advice(False, f"{said}; {self._why_not(speedup)}")
        place = int(gains[0].argmax())
        could = f"win {TARGETS[place]:g}x" if place < len(TARGETS) else "come nearest to a target that none reaches"
        (worth,) = self._worth([candidate], gains)
        better = self._best([other for other in others if other not in self.evaluated], _MUCH_MORE * worth)
        if better is not None:
            return Advice(False, f"{said}; {spaced_params(better.params)} promises more, and goes first")
        return Advice(True, f"{said}: could {could}")

    @property
    def _signs(self) -> tuple[int, int, int]:
        """Of a loss and the ends of its interval, as values of the metric ascend."""
        return (0, 1, -1) if self.quality.metric.higher_is_better else (0, -1, 1)

    def _teaches(self, candidate: Candidate) -> bool:
        """Whether it is one of the first points of a method alone: combinations lean on what those say.

        Slow points too: what does too little alone is often what a combination needs.
        """
        alone = [known for known in self.evaluated if known.accelerator == self.accelerator.name]
        if len(self.accelerator.methods) > 1:
            return False
        return not alone or (len(alone) < 4 and candidate in self._landmarks)

    @property
    def _landmarks(self) -> list[Candidate]:
        rows = self.accelerator.grid(self.cell, coarse=False)
        grid = self.distinct([Candidate(self.cell, self.accelerator.name, params) for params in rows])
        return [grid[place] for place in (0, len(grid) // 2, -1)] if grid else []

    def needless(self, candidate: Candidate) -> str:
        """Why a candidate needs no pictures, by what these would decide, as a clause; empty where it may need some."""
        counts = self.costs.counts
        own = counts.decisions(candidate)
        if not own:
            return ""
        if not counts.acts(candidate):
            return REUSES_NOTHING
        others = [known for known in self.evaluated if known != candidate]
        # A run may decide a step otherwise than was foreseen; of two that are foreseen alike the other would, too.
        alike = [known for known in others if own in (counts.decisions(known), counts.foreseen(known))]
        return f"decides in the first pictures as {spaced_params(alike[0].params)} does" if alike else ""

    def distinct(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Those that may need pictures; of several whose pictures would decide alike, the first."""
        seen: set[tuple[tuple[str, ...], ...]] = set()
        left = []
        for candidate in candidates:
            decisions = self.costs.counts.decisions(candidate)
            if decisions not in seen and not self.needless(candidate):
                left.append(candidate)
                seen |= {decisions} - {()}
        return left

    def best(self, candidates: Sequence[Candidate]) -> Candidate | None:
        """The one most worth evaluating next; None when none is.

        Args:
            candidates: of the group, none of them evaluated.
        """
        return self._best(candidates, 0.0)

    def _best(self, candidates: Sequence[Candidate], least: float) -> Candidate | None:
        """The one that is worth most, if that is more than ``least``."""
        worth = self._worth(candidates, self._expected_gains(candidates))
        order = np.argsort(-worth, kind="stable")
        return next((candidates[place] for place in order[worth[order] > least]), None)

    def _worth(self, candidates: Sequence[Candidate], gains: Array) -> Array:
        """What is gained for the time that an evaluation takes, (n,); 0 where nothing noticeable is.

        Args:
            candidates: of the group.
            gains: their :meth:`_expected_gains`.
        """
        noticeable = np.where(gains < _NOTICEABLE_GAIN, 0.0, gains)
        worth: Array = noticeable.sum(axis=1) * np.array([speedup.value for speedup in self.costs.speedups(candidates)])
        return worth

    def promising(self, candidates: Sequence[Candidate], most: int) -> list[Candidate]:
        """Those of ``candidates`` that are expected to gain anything, the ``most`` of them that gain most, best
        first.
        """
        gains = self._expected_gains(candidates).max(axis=1)
        return [candidates[place] for place in np.argsort(-gains, kind="stable")[:most] if gains[place] > 0]

    def targets_open_to(self, candidates: Sequence[Candidate]) -> set[float]:
        """Targets that some of ``candidates`` that are not evaluated may reach with a loss that is allowed."""
        new = [candidate for candidate in candidates if candidate not in self.evaluated]
        if not new:
            return set()
        mean, sd = self._losses(new)
        may_be_good = mean - _NORMAL_95 * sd <= log_loss(self.max_loss)
        good = [speedup for speedup, may_be in zip(self.costs.speedups(new), may_be_good, strict=True) if may_be]
        return {target for target in TARGETS if any(may_reach(speedup, target) for speedup in good)}

    def targets_left(self, candidates: Sequence[Candidate]) -> set[float]:
        """Targets that nothing evaluated reaches with a loss that is allowed, and some of ``candidates`` promise to."""
        new = [candidate for candidate in self.distinct(candidates) if candidate not in self.evaluated]
        if not new:
            return set()
        promised = self._expected_gains(new)[:, :-1].max(axis=0) >= _NOTICEABLE_GAIN
        unmet = [not any(option.reaches(target) for option in self._allowed) for target in TARGETS]
        return set(compress(TARGETS, promised & unmet))

    def gentlest(self, candidates: Sequence[Candidate]) -> Candidate | None:
        """Of a method alone, the one that does least, unless it is known: far too slow, and it tells of combinations.

        Combinations are right where each method does a little, of which those that are fast alone say nothing.
        """
        if len(self.accelerator.methods) > 1 or not candidates:
            return None
        (method,) = self.accelerator.methods

        def done(candidate: Candidate) -> tuple[float, str]:
            return sum(method.coordinates(candidate.params[method.name], self.cell)), candidate.key

        least = min(candidates, key=done)
        return None if least in self.evaluated else least

    def improves_on(self, before: Plan) -> bool:
        """Whether some target's least loss, or the best speed-up reached, is noticeably better than ``before``."""
        if math.log(self._nearest / before._nearest) > _NOTICEABLE_GAIN:
            return True
        return bool((self._least < before._least - _NOTICEABLE_GAIN).any())

    def losses_of(self, accelerator: Accelerator, rows: Sequence[Params]) -> Array:
        """Expected log loss of points of any accelerator of the cell, (n,)."""
        return self._model.predict(accelerator, rows)[0]

    @cached_property
    def _model(self) -> LossModel:
        first = {candidate: self._first_loss(candidate) for candidate in self.evaluated}
        return LossModel(self.registry, self.cell, first, self.first, self.costs.counts)

    def _losses(self, candidates: Sequence[Candidate]) -> tuple[Array, Array]:
        return self._model.predict(self.accelerator, [candidate.params for candidate in candidates])

    def _expected_gains(self, candidates: Sequence[Candidate]) -> Array:
        """Expected improvement of the log of each target's least loss and, last, of the speed-up that comes nearest to
        a target that none reaches, (candidates, targets + 1); 0 where a candidate is not fast enough for either.
        """
        new = [candidate for candidate in candidates if candidate not in self._known_gains]
        self._known_gains.update(zip(new, self._gains_of(new), strict=True))
        gains = [self._known_gains[candidate] for candidate in candidates]
        return np.array(gains).reshape(len(candidates), len(TARGETS) + 1)

    @cached_property
    def _known_gains(self) -> dict[Candidate, Array]:
        """Each case asks for those of all others of its group."""
        return {}

    def _gains_of(self, candidates: Sequence[Candidate]) -> Array:
        expected = np.zeros((len(candidates), len(TARGETS) + 1))
        speedups = self.costs.speedups(candidates)
        fast = [place for place, speedup in enumerate(speedups) if self._fast_enough(speedup)]
        if fast:
            losses = self._losses([candidates[place] for place in fast])
            expected[fast] = self._gains_of_fast([speedups[place] for place in fast], *losses)
        return expected

    def _gains_of_fast(self, speedups: Sequence[Interval], mean: Array, sd: Array) -> Array:
        """Gains of candidates that are fast enough, from their speed-ups and log losses."""
        gains = np.zeros((len(speedups), len(TARGETS) + 1))
        # Where it reaches a target, so does what promises to be faster: their kinds of steps are the same.
        least = np.minimum(self._least, self._least_of_faster([speedup.value for speedup in speedups])[:, None])
        # By how much it falls below the least loss, less by how much of that nobody could see.
        improvement = _expected_below(least, mean, sd) - _expected_below(np.array(self._unseen), mean, sd)
        gains[:, :-1] = improvement * probabilities(speedups, TARGETS, by_mean=self.by_mean)
        if not self._reaches_all:
            nearer = np.log([speedup.value / self._nearest for speedup in speedups]) - SPEED_TOLERANCE
            gains[:, -1] = np.maximum(0.0, nearer) * ndtr((log_loss(self.max_loss) - mean) / sd)
        return gains

    @cached_property
    def _least(self) -> Array:
        """Least expected log loss among the evaluated that reach each target, (targets,); the largest allowed where
        none does. What is less than anybody could see is none.
        """
        most = log_loss(self.max_loss)
        least = [
            min([most, *(self._modelled[candidate] for candidate in self._reaching(target))]) for target in TARGETS
        ]
        return np.maximum(least, self._unseen)

    def _least_of_faster(self, speedups: Sequence[float]) -> Array:
        """Least expected log loss among the evaluated that promise so much speed or more, (speed-ups,); infinite where
        none does.
        """
        values, least = self._least_from
        found: Array = least[np.searchsorted(values, speedups)]
        return found

    @cached_property
    def _least_from(self) -> tuple[Array, Array]:
        """Speed-ups of the evaluated of an allowed loss, ascending (n,); the least log loss from each on, (n + 1,)."""
        allowed = sorted(self._allowed, key=lambda option: option.speedup.value)
        losses = [max(self._modelled[option.candidate], self._unseen) for option in allowed]
        least = np.minimum.accumulate([math.inf, *reversed(losses)])[::-1]
        return np.array([option.speedup.value for option in allowed]), least

    @cached_property
    def _unseen(self) -> float:
        """Log loss of what is as good as the unaccelerated pipeline's pictures: at most half of what is allowed."""
        return log_loss(min(NO_LOSS, self.max_loss / 2))

    @cached_property
    def _modelled(self) -> dict[Candidate, float]:
        """Expected log loss of the group's evaluated candidates."""
        own = [option.candidate for option in self.options]
        return dict(zip(own, self._losses(own)[0].tolist(), strict=True)) if own else {}

    def _reaching(self, target: float) -> list[Candidate]:
        return [option.candidate for option in self.options if option.reaches(target)]

    def _first_loss(self, candidate: Candidate) -> float:
        return fmean(self.evaluated[candidate][: self.first])

    def _fast_enough(self, speedup: Interval) -> bool:
        """Whether it may reach a target, or come nearer to the lowest than anything evaluated."""
        return may_reach(speedup, TARGETS[0]) or (not self._reaches_all and speedup.value > self._nearest)

    @cached_property
    def _allowed(self) -> list[Option]:
        return [option for option in self.options if option.loss <= self.max_loss]

    @cached_property
    def _reaches_all(self) -> bool:
        return any(option.reaches(TARGETS[-1]) for option in self._allowed)

    @cached_property
    def _nearest(self) -> float:
        """The best speed-up reached so far with a loss that is allowed."""
        return max((option.speedup.value for option in self._allowed), default=_NOTHING_REACHED)

    @cached_property
    def options(self) -> list[Option]:
        """Those of the group's evaluated candidates that may win, by key."""
        return [option for option in self.evaluated_options if option.candidate.key not in self.barred]

    @cached_property
    def evaluated_options(self) -> list[Option]:
        """The group's evaluated candidates, by key."""
        own = sorted(
            (candidate for candidate in self.evaluated if candidate.accelerator == self.accelerator.name),
            key=lambda candidate: candidate.key,
        )
        speedups = self.costs.speedups(own)
        return [
            Option(candidate, speedup, self.evaluated[candidate], self.by_mean)
            for candidate, speedup in zip(own, speedups, strict=True)
        ]

    def _why_not(self, speedup: Interval) -> str:
        target = max((target for target in TARGETS if may_reach(speedup, target)), default=None)
        if target is None:
            return f"{_REACHES_NONE}, and comes hardly nearer to it than others"
        reaching = [option for option in self.options if option.reaches(target)]
        if reaching:
            params, loss, _ = self._shown(reaching)
            return f"{target:g}x is reached at {loss} by {params}"
        faster = [option for option in self._allowed if option.speedup.value >= speedup.value]
        if faster:
            params, loss, value = self._shown(faster)
            return f"{params} promises {value:.2f}x at {loss}"
        worst = self.quality.metric.value_at(self.max_loss)
        side = "above" if self.quality.metric.higher_is_better else "below"
        return f"no target {side} {self.quality.rule.shown} {worst:g} is expected of it"

    def _shown(self, options: Sequence[Option]) -> tuple[str, str, float]:
        """Of the one that loses least: its parameters and first loss, in words, and its speed-up."""
        best = leader(options)
        params, loss = spaced_params(best.candidate.params), self._first_loss(best.candidate)
        return params, self.quality.value_text(loss), best.speedup.value
