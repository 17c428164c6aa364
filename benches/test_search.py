"""The search's cases; they lie in the package, so that ``diffaccel search`` runs them in any folder."""

from pytest_diffaccel.benches.test_search import test_search, test_winners

__all__ = ["test_search", "test_winners"]
