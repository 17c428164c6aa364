"""Judges any script against its task, without trusting the script.

The script runs in a confined process of its own; what that process says is a claim. A claim holds only if this side,
which never runs the script's code, makes the same images from it: same call, same settings, start noise that was drawn
here. Calls are counted, times taken and images compared on this side. Importing this package imports no torch.
"""

#: In the order in which they are judged; here, as declaring the options of ``pytest codegen`` needs nothing else.
STAGES = ("static", "runs", "speed", "quality")
