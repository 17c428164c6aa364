"""How often do 95% intervals of a metric's change hold the true one? On simulated values like those of CLIP scores.

Run ``python -m benchmarks.metric_changes``; no pipeline is needed. Prompts differ by 3 around 28; what a candidate
loses of a picture is small beside that: 0.5 on average, alike for all prompts, or more or less skewed: most pictures
lose little and a few lose much. ``difference`` is the interval that a user would make first, Student's of the paired
differences over the unaccelerated pictures' mean; ``unpaired`` is Welch's of the two means. Columns are the coverage by
number of pictures; ``half`` is the mean half-width of the intervals from 8 of them, in percent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from benchmarks.output import parser, show
from pytest_diffaccel.measure.statistics import relative_change

COUNTS = (4, 8, 16, 32)
RUNS = 4000
_MEAN, _PROMPTS_SD, _LOSS = 28.0, 3.0, 0.5
# Pictures for which the width of intervals is shown.
_SHOWN = 8
Array: TypeAlias = NDArray[np.float64]

#: What candidates lose of each picture, by how that is spread.
LOSSES: Mapping[str, Callable[[np.random.Generator, tuple[int, int]], Array]] = {
    "normal": lambda chance, shape: chance.normal(_LOSS, 0.6, shape),
    "heavy tails": lambda chance, shape: _LOSS + 0.5 * chance.standard_t(5, shape),
    "skewness 1": lambda chance, shape: chance.gamma(4, _LOSS / 4, shape),
    "skewness 1.4": lambda chance, shape: chance.gamma(2, _LOSS / 2, shape),
    "a few lose much": lambda chance, shape: (
        chance.normal(0.2, 0.4, shape) + (chance.random(shape) < 0.15) * chance.gamma(2, 1.0, shape)
    ),
}


def ours(values: Array, before: Array) -> Array:
    """The interval that searches use, (runs, pictures) to (2, runs)."""
    changes = [relative_change(*pair) for pair in zip(values.tolist(), before.tolist(), strict=True)]
    return np.array([(change.low, change.high) if change else (-np.inf, np.inf) for change in changes]).T


def difference(values: Array, before: Array) -> Array:
    """Student's of the paired differences, over the mean as if that were known."""
    differences, count = values - before, before.shape[1]
    half = stats.t.ppf(0.975, count - 1) * np.std(differences, axis=1, ddof=1) / np.sqrt(count)
    mean = np.mean(differences, axis=1)
    return np.array([mean - half, mean + half]) / np.mean(before, axis=1)


def unpaired(values: Array, before: Array) -> Array:
    """Welch's of two groups of pictures, as if the prompts were others."""
    found = stats.ttest_ind(values, before, axis=1, equal_var=False).confidence_interval(0.95)
    return np.array([found.low, found.high]) / np.mean(before, axis=1)


METHODS = {"searches": ours, "difference": difference, "unpaired": unpaired}


def covered(
    losses: Callable[[np.random.Generator, tuple[int, int]], Array], count: int
) -> dict[str, tuple[float, float]]:
    """Each method's coverage and mean half-width."""
    chance, shape, true = np.random.default_rng(count), (RUNS, count), -_LOSS / _MEAN
    before = chance.normal(_MEAN, _PROMPTS_SD, shape)
    values = before - losses(chance, shape)
    found = {name: estimate(values, before) for name, estimate in METHODS.items()}
    return {
        name: (float(np.mean((low <= true) & (true <= high))), float(np.mean(high - low)) / 2)
        for name, (low, high) in found.items()
    }


def main() -> None:
    """Print every method's coverage by the spread of what is lost and number of pictures."""
    arguments = parser(__doc__ or "").parse_args()
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for spread, losses in LOSSES.items():
        for count in COUNTS:
            for name, (share, half) in covered(losses, count).items():
                row = rows.setdefault((spread, name), {"losses": spread, "interval": name})
                row[f"n={count}"] = share
                if count == _SHOWN:
                    row["half"] = 100 * half
    shown = [row[f"n={count}"] for (_, name), row in rows.items() if name == "searches" for count in COUNTS[1:]]
    summary = {"least coverage from 8 pictures": min(shown), "largest coverage from 8 pictures": max(shown)}
    show("coverage of 95% intervals of a change", list(rows.values()), summary, as_json=arguments.json)


if __name__ == "__main__":
    main()
