"""What all cases of this repository share, whichever of benches, codegen and tests they lie in: methods of one's own.

Register yours below, and ``pytest benches`` searches them, alone and in the combinations that you name, and guards
their winners with ``--gate``::

    registry.register(MyMethod())
    registry.combine("DeepCache", "MyMethod")

``examples/own_method`` holds a complete one, through which ``docs/own_method.md`` goes; ``diffaccel generate`` writes
scripts with it, while ``pytest codegen`` judges those of the built-in methods only. What belongs to one folder's cases
alone stays in the conftest file of that folder, which can be copied without this one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pytest_diffaccel.accelerators.registry import Registry


# Optional: the plugin may be switched off (-p no:diffaccel).
@pytest.hookimpl(optionalhook=True)
def pytest_diffaccel_accelerators(registry: Registry) -> None:
    """Register methods of your own, and combinations of them with others; none so far."""
