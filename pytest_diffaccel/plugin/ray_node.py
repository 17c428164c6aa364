"""What a node of a cluster says of itself before anything is measured there.

``python -m pytest_diffaccel.plugin.ray_node REQUEST`` prints a :class:`NodeReport` as JSON; ``REQUEST`` is a
:class:`NodeRequest` as JSON. The controller runs it on each node, in the session's folder.
"""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class NodeRequest:
    """What a node is asked.

    Attributes:
        token: name of a file that the controller wrote into the session's folder, and which a shared folder shows.
        models: value of ``--models``.
        pipes: the pipes whose weights it must have; none where these lie in a folder that is the same for all.
        on_gpus: whether workers run on GPUs.
    """

    token: str
    models: str
    pipes: tuple[str, ...]
    on_gpus: bool


@dataclass(frozen=True)
class NodeReport:
    """What it answers.

    Attributes:
        shares_folder: whether it sees what the controller wrote.
        versions: of Python and of each library that decides a speed or a picture, and of this package.
        devices: names of its GPUs with the driver's version, or of its processor, each once.
        weights: SHA-256 of the weights of each pipe's components, by ``"pipe component"``.
        missing: what it lacks of the weights, in words; empty where it lacks nothing.
    """

    shares_folder: bool
    versions: Mapping[str, str]
    devices: tuple[str, ...]
    weights: Mapping[str, str]
    missing: str = ""


def report(request: NodeRequest) -> NodeReport:
    """What the machine of this process is, in the folder of this process."""
    from pytest_diffaccel.records.environment import cpu_name, installed_versions

    weights, missing = {}, ""
    try:
        weights = _weights(request)
    except (OSError, ValueError) as error:
        missing = str(error)
    return NodeReport(
        shares_folder=Path(request.token).is_file(),
        versions=installed_versions(("pytest-diffaccel", "pytest", "pytest-xdist", "execnet")),
        devices=_gpus() if request.on_gpus else (cpu_name(),),
        weights=weights,
        missing=missing,
    )


def _gpus() -> tuple[str, ...]:
    from pytest_diffaccel.devices import gpu_models
    from pytest_diffaccel.records.environment import driver_version

    return tuple(f"{name}, driver {driver_version()}" for name in dict.fromkeys(gpu_models()))


def _weights(request: NodeRequest) -> dict[str, str]:
    from pytest_diffaccel.models.registry import ModelSource
    from pytest_diffaccel.models.weights import weight_files
    from pytest_diffaccel.records.environment import weights_identity

    if not request.pipes:
        return {}
    source = ModelSource.from_option(request.models)
    return {
        f"{pipe} {component}": weights_identity(files)
        for pipe in request.pipes
        for component, files in weight_files(source.spec(pipe)).items()
    }


def main() -> None:
    """Answer the request that was given."""
    given = json.loads(sys.argv[1])
    asked = NodeRequest(given["token"], given["models"], tuple(given["pipes"]), given["on_gpus"])
    print(json.dumps({"host": platform.node(), **asdict(report(asked))}))


if __name__ == "__main__":
    main()
