"""The GPUs that a benchmark can use."""

from __future__ import annotations

from pytest_diffaccel.devices import Gpu, NoSuchGpu, choose_gpus


def usable_gpus() -> list[Gpu]:
    """All that this process may use, at least one.

    Raises:
        SystemExit: when there is none; says why.
    """
    try:
        return choose_gpus(())
    except NoSuchGpu as error:
        # What follows advises on an option that benchmarks do not have.
        raise SystemExit(str(error).partition(";")[0].removeprefix("--gpus: ")) from None
