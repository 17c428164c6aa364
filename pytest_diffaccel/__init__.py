"""Find, record and guard the best acceleration settings of a diffusion pipeline, with pytest.

Importing this package is cheap: what needs torch is imported when it is first asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pytest_diffaccel.accelerators.acceleration import accelerate
    from pytest_diffaccel.codegen.script import generate_script
    from pytest_diffaccel.models.loading import load_pipeline

__version__ = "0.1.0"
__all__ = ["__version__", "accelerate", "generate_script", "load_pipeline"]

_HOMES = {
    "accelerate": "pytest_diffaccel.accelerators.acceleration",
    "generate_script": "pytest_diffaccel.codegen.script",
    "load_pipeline": "pytest_diffaccel.models.loading",
}


def __getattr__(name: str) -> Any:
    """Import a public name from its module on first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """The public names, whether imported already or not."""
    return sorted({*globals(), *_HOMES})
