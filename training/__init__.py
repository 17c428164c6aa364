"""How the embedded pipelines of pytest-diffaccel were made, runnable again: ``python -m training --pipe sd15``."""

import os

# As pytest_diffaccel.measure.threads: spinning threads make a CPU run beside anything else many times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
