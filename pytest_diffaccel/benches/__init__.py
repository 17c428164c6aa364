"""The search's and the gate's test functions: ``pytest --pyargs pytest_diffaccel.benches``, or ``diffaccel search``."""
