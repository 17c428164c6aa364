"""The two rules that may decide, in a search and of a script: this project's, and DiffBench's published one.

DiffBench's is level 4 of Jiao and others, "DiffBench Meets DiffAgent", AAAI 2026, arXiv:2601.03178.
"""

from typing import Final

#: Intervals decide: what is not sure is not met.
OURS: Final = "ours"
#: Means decide: ten prompts, at least the speed-up that was asked for, and a CLIP score that is at most 5% lower.
DIFFBENCH: Final = "diffbench"
#: How many prompts DiffBench's rule asks for.
DIFFBENCH_PROMPTS = 10
#: The metric that it bounds, and by how much of the unaccelerated pictures' mean that may be lower.
DIFFBENCH_METRIC, DIFFBENCH_LOSS = "clip_score", 0.05
