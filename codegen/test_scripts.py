"""The judge's cases; they lie in the package, so that ``diffaccel judge`` runs them in any folder."""

from pytest_diffaccel.codegen.test_scripts import test_script

__all__ = ["test_script"]
