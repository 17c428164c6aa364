"""The gate's cases; they lie in the package, as the search's."""

from pytest_diffaccel.benches.test_gate import test_gate

__all__ = ["test_gate"]
