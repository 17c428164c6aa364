"""Exact Gaussian-process regression, small enough to read: what is known of some points says of others."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve

Array: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True)
class Regression:
    """A Gaussian process with zero mean, conditioned on noisy values (Rasmussen and Williams 2006, section 2.2).

    Attributes:
        prior: covariance of the known points, (n, n).
        values: what was seen at them, (n,).
        noise: variance of each value, (n,), above 0; or, where their errors go together, their covariance, (n, n).
    """

    prior: Array
    values: Array
    noise: Array

    @cached_property
    def _factor(self) -> Any:
        """Cholesky's factor of the values' covariance, as scipy solves with it (algorithm 2.1)."""
        noise = np.diag(self.noise) if self.noise.ndim == 1 else self.noise
        return cho_factor(self.prior + noise)

    @cached_property
    def _weights(self) -> Array:
        weights: Array = cho_solve(self._factor, self.values)
        return weights

    def predict(self, between: Array, own: Array) -> tuple[Array, Array]:
        """Mean (m,) and covariance (m, m) at other points.

        Args:
            between: prior covariance of the other points with the known ones, (m, n).
            own: prior covariance of the other points, (m, m).
        """
        return between @ self._weights, own - between @ cho_solve(self._factor, between.T)

    def predict_each(self, between: Array, own: Array) -> tuple[Array, Array]:
        """Mean (m,) and variance (m,) at other points; ``own`` are their prior variances, (m,)."""
        spread = own - np.einsum("ij,ji->i", between, cho_solve(self._factor, between.T))
        return between @ self._weights, np.maximum(spread, 0.0)

    @cached_property
    def surprises(self) -> Array:
        """How far each value lies from what all the others say of it, in standard deviations (section 5.4.2)."""
        precision = cho_solve(self._factor, np.eye(len(self.values)))
        surprises: Array = self._weights / np.sqrt(np.diag(precision))
        return surprises


def bells(one: Array, other: Array, length: float) -> Array:
    """Squared-exponential covariance of points (m, d) and (n, d), of unit variance; (m, n)."""
    squared = ((one[:, None, :] - other[None, :, :]) ** 2).sum(axis=-1)
    covariance: Array = np.exp(-squared / (2 * length**2))
    return covariance
