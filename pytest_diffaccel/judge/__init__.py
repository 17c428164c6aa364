"""Judges any script against its task, without trusting the script.

The script runs in a confined process of its own; what that process says is a claim. A claim holds only if this side,
which never runs the script's code, makes the same images from it: same call, same settings, start noise that was drawn
here. Calls are counted, times taken and images compared on this side. Importing this package imports no torch.
"""

from collections.abc import Collection

from pytest_diffaccel.rules import DIFFBENCH, DIFFBENCH_PROMPTS, OURS

__all__ = ["DIFFBENCH", "DIFFBENCH_PROMPTS", "OURS", "STAGES", "STAGES_OF_RULE", "judged_stages"]

# Here, as declaring the options of ``pytest codegen`` needs nothing else.
#: In the order in which they are judged.
STAGES = ("static", "runs", "speed", "quality")
#: The stages that must hold under each rule; DiffBench's measurement is a stage of its name.
STAGES_OF_RULE = {OURS: STAGES, DIFFBENCH: ("static", "runs", DIFFBENCH)}


def judged_stages(stages: Collection[str], rules: Collection[str]) -> tuple[str, ...]:
    """The stages that verdicts hold, in the order judged.

    Args:
        stages: those of :data:`STAGES` that were asked for.
        rules: those that were asked for.
    """
    of_rules = {stage for rule in rules for stage in STAGES_OF_RULE[rule]}
    return tuple(stage for stage in (*STAGES, DIFFBENCH) if stage in of_rules and stage in (*stages, DIFFBENCH))
