"""A mask of a DBCache preset, as cache-dit 1.5.3 is told one, as the number that it has here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pytest_diffaccel.accelerators.dbcache_steps import BESIDE_A_MASK, MASK_POLICIES, has_masks, mask_number, steps_mask
from pytest_diffaccel.audit.given import Given, PresetError

#: cache-dit's name of the setting, and of the function that makes one.
MASK, MAKES_MASK = "steps_computation_mask", "steps_mask"
_POLICY, _STEPS = "steps_computation_policy", "num_inference_steps"
# Nobody makes pictures in as many; a preset is somebody else's.
_MOST_STEPS = 1000


def with_mask_as_here(settings: Mapping[str, Given]) -> Mapping[str, Given]:
    """DBCache's settings with the number of its mask, beside which what that makes meaningless has its one value.

    Raises:
        PresetError: for a mask that is none of cache-dit's own, or beside which the pictures decide, too.
    """
    taken = dict(settings)
    mask, policy = taken.pop(MASK, None), taken.pop(_POLICY, None)
    if mask is None or (mask.is_literal and mask.value is None):
        return taken
    said = f"{MASK}={mask.text}"
    if not isinstance(mask.value, list | tuple):
        raise PresetError(
            f"{said} cannot be read without running it; write a list of 0 and 1, or {MAKES_MASK}(total_steps=28, "
            'mask_policy="fast")'
        )
    if policy is None or policy.value != "static":
        told = policy.text if policy else "left at its default"
        raise PresetError(
            f"{said}: {_POLICY} is {told}, so the pictures decide beside the mask, which is not measured here; a mask "
            "that is static alone is"
        )
    number, steps = mask_number(mask.value), len(mask.value)
    if not number:
        raise PresetError(
            f"{said} is none of cache-dit's own masks of {steps} steps ({', '.join(MASK_POLICIES)}), and no other can "
            "be measured"
        )
    if taken.get(_STEPS, Given("", steps)).value not in (None, steps):
        raise PresetError(f"{said} is a mask of {steps} steps, and {_STEPS}={taken[_STEPS].text}; let them be as many")
    own = {_STEPS: steps, **BESIDE_A_MASK, MAKES_MASK: number}
    return taken | {name: Given(repr(value), value, is_literal=True) for name, value in own.items()}


def made_mask(total_steps: Any, mask_policy: Any) -> list[int] | None:
    """What ``cache_dit.steps_mask`` makes of a number of steps and a mask's name; None where it makes nothing."""
    is_number = isinstance(total_steps, int) and total_steps <= _MOST_STEPS and has_masks(total_steps)
    if not is_number or mask_policy not in MASK_POLICIES:
        return None
    return list(steps_mask(MASK_POLICIES.index(mask_policy) + 1, total_steps))
