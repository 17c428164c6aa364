"""By which calls tools are told a method's parameters: a line per call, all that reading presets knows of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pytest_diffaccel.audit.given import Given
from pytest_diffaccel.audit.masks import with_mask_as_here

#: Configs that are none of those below, and yet say how a pipeline is made faster.
CACHE_CONFIG = re.compile(r"\w*(?:Cache|Broadcast|Prune|LayerSkip|Calibrator)Config")


@dataclass(frozen=True)
class KnownCall:
    """A call that sets a method's parameters.

    Attributes:
        method: as it is registered here.
        params: its parameters, which tools name as they are named here, with what the tool takes where none is given.
        order: the call's arguments by position; empty for what is no setting, such as the pipeline.
        others: further settings, with what the tool takes where none is given, as Python writes it.
        here: those of the others that are always something else here.
        steps: the setting that is the number of steps; empty where there is none.
        default_steps: how many the tool takes where none are given; None where it asks nobody.
        learnt: those of the others that are what the method learns of a pipe (:meth:`.Method.learns`), where it must.
        is_generating: whether the call makes pictures: its further arguments are no settings of the method.
        as_here: what makes of its settings those that are named here, where that is more than names; it may refuse
            them.
    """

    method: str
    params: Mapping[str, Any]
    order: tuple[str, ...] = ()
    others: Mapping[str, str] = field(default_factory=dict)
    here: Mapping[str, str] = field(default_factory=dict)
    steps: str = ""
    default_steps: int | None = None
    learnt: tuple[str, ...] = ()
    is_generating: bool = False
    as_here: Callable[[Mapping[str, Given]], Mapping[str, Given]] = dict


_TAYLORSEER_OTHERS = {
    "disable_cache_after_step": "None",
    "taylor_factors_dtype": "torch.bfloat16",
    "skip_predict_identifiers": "None",
    "cache_identifiers": "None",
    "use_lite_mode": "False",
}
_TOME_OTHERS = {
    "sx": "2",
    "sy": "2",
    "use_rand": "True",
    "merge_attn": "True",
    "merge_crossattn": "False",
    "merge_mlp": "False",
}
_DEEPCACHE = ("cache_interval", "cache_branch_id")
# T-GATE 1.0.0 takes them where pictures are made; its README gives them to the loader, too.
_TGATE = {"gate_step": 10, "sp_interval": 5, "fi_interval": 1, "warm_up": 2}
_TGATE_LOADER = KnownCall("T-Gate", _TGATE, ("",), steps="num_inference_steps")
_DEEPCACHE_LOADER = KnownCall("DeepCache", {"cache_interval": 3, "cache_branch_id": 0}, ("", *_DEEPCACHE))

# What cache-dit takes where nothing is given. A file of it has the terms of a series beside the rest of the config.
_DBCACHE = {
    "Fn_compute_blocks": 8,
    "max_warmup_steps": 8,
    "max_continuous_cached_steps": -1,
    "residual_diff_threshold": 0.08,
    "taylorseer_order": 0,
    "steps_mask": 0,
}
_DBCACHE_OTHERS = {
    "Bn_compute_blocks": "0",
    "max_accumulated_residual_diff_threshold": "None",
    "warmup_interval": "1",
    "max_cached_steps": "-1",
    "cfg_compute_first": "False",
    "cfg_diff_compute_separate": "True",
    "force_refresh_step_hint": "None",
    "enable_encoder_taylorseer": "True",
}
_SERIES_OTHERS = {
    "enable_calibrator": "True",
    "enable_encoder_calibrator": "True",
    "calibrator_cache_type": "'residual'",
}

#: By the last part of its name: diffusers 0.42, DeepCache 0.1.1, tgate 1.0.0, tomesd 0.1.3, cache-dit 1.5.3. What
#: cache-dit's files name is looked up as the config's class: ``cache_type: DBCache`` as ``DBCacheConfig``. Of a method
#: with several calls, what the one with the most parameters takes where nothing is given is taken first.
KNOWN_CALLS: Mapping[str, KnownCall] = {
    "set_params": KnownCall(
        "DeepCache", {"cache_interval": 1, "cache_branch_id": 0}, (*_DEEPCACHE, "skip_mode"), {"skip_mode": "'uniform'"}
    ),
    "TgateSDDeepCacheLoader": _DEEPCACHE_LOADER,
    "TgateSDXLDeepCacheLoader": _DEEPCACHE_LOADER,
    "TgateSDLoader": _TGATE_LOADER,
    "TgateSDXLLoader": _TGATE_LOADER,
    "tgate": KnownCall("T-Gate", _TGATE, steps="num_inference_steps", is_generating=True),
    "apply_patch": KnownCall(
        "ToMe", {"ratio": 0.5, "max_downsample": 1}, ("", "ratio", "max_downsample", *_TOME_OTHERS), _TOME_OTHERS
    ),
    "TaylorSeerCacheConfig": KnownCall(
        "TaylorSeer",
        {"cache_interval": 5, "disable_cache_before_step": 3, "max_order": 1},
        (
            *("cache_interval", "disable_cache_before_step", "disable_cache_after_step", "max_order"),
            *("taylor_factors_dtype", "skip_predict_identifiers", "cache_identifiers", "use_lite_mode"),
        ),
        _TAYLORSEER_OTHERS,
        {"taylor_factors_dtype": "torch.float32"},
    ),
    "MagCacheConfig": KnownCall(
        "MagCache",
        {"threshold": 0.06, "max_skip_steps": 3, "retention_ratio": 0.2},
        ("threshold", "max_skip_steps", "retention_ratio", "num_inference_steps", "mag_ratios", "calibrate"),
        {"mag_ratios": "None", "calibrate": "False"},
        {"mag_ratios": "FLUX_MAG_RATIOS"},
        steps="num_inference_steps",
        default_steps=28,
        learnt=("mag_ratios",),
    ),
    "FirstBlockCacheConfig": KnownCall("FirstBlockCache", {"threshold": 0.05}, ("threshold",)),
    "DBCacheConfig": KnownCall(
        "DBCache", _DBCACHE, others=_DBCACHE_OTHERS, steps="num_inference_steps", as_here=with_mask_as_here
    ),
    "TaylorSeerCalibratorConfig": KnownCall("DBCache", {"taylorseer_order": 1}, others=_SERIES_OTHERS),
}


@dataclass(frozen=True)
class FoundCall:
    """A call that a preset holds.

    Attributes:
        name: of the call.
        call: what is known of it.
        place: where it stands, for people: ``"line 4"``.
        settings: what it is given, by name.
    """

    name: str
    call: KnownCall
    place: str
    settings: Mapping[str, Given]
