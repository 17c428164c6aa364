"""``--ray``: a session's workers in a Ray cluster. What it joins, which nodes take part, and what they must have."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import pytest

from pytest_diffaccel.plugin import ray_carrier, ray_node
from pytest_diffaccel.plugin.ray_carrier import Place, RayCarrier
from pytest_diffaccel.plugin.ray_node import NodeReport, NodeRequest
from pytest_diffaccel.plugin.workers import worker_number
from pytest_diffaccel.settings.work_folder import WORK
from pytest_diffaccel.words import counted

if TYPE_CHECKING:
    from pytest_diffaccel.settings.search_settings import Settings

_CARRIER = pytest.StashKey[RayCarrier]()
_SAID = pytest.StashKey[str]()
_INSTALL = "pip install 'pytest-diffaccel[ray]'"
_POSTGRESQL = (
    "start a PostgreSQL that all reach (`docker run -d -p 5432:5432 -e POSTGRES_PASSWORD=secret postgres`, or the "
    "package postgresql), and give --store postgresql+psycopg://postgres:secret@HOST/postgres"
)
# A node may import this package from a slow disk, and read gigabytes of weights for their digests.
_REPORT_TIMEOUT_S = 900.0
# Any host answers sooner, or is not there.
_ANSWER_S = 10.0
# What stands for a new cluster of this machine in place of an address, as in Ray itself.
_LOCAL = "local"
# Of Ray's messages, which can be pages.
_MESSAGE_LENGTH = 400


@dataclass(frozen=True)
class _Node:
    """A node of the cluster that has room for workers.

    Attributes:
        id: Ray's.
        host: its name.
        room: how many workers it can take now.
    """

    id: str
    host: str
    room: int


def is_asked_for(config: pytest.Config) -> bool:
    """Whether this process is the controller of a session with ``--ray``."""
    return config.option.ray is not None and worker_number(config) is None


def check_options(config: pytest.Config) -> None:
    """Refuse what does not go with ``--ray``, before anything is started.

    Raises:
        pytest.UsageError: saying what to leave out.
    """
    if getattr(config.option, "numprocesses", None) is not None or getattr(config.option, "tx", None):
        raise pytest.UsageError("--ray and -n exclude each other: Ray says how many workers there are; leave -n out")
    if config.option.gpus not in (None, "all"):
        raise pytest.UsageError(
            f"--gpus={config.option.gpus} with --ray: Ray says which GPU a worker has; give --gpus without a list"
        )
    if not config.pluginmanager.has_plugin("xdist"):
        raise pytest.UsageError("--ray: its workers are pytest-xdist's; do not switch that off")


def use_cluster(config: pytest.Config, settings: Settings) -> None:
    """Join the cluster, see that its nodes can do the session's work, and let xdist have its workers there.

    Raises:
        pytest.UsageError: when there is no cluster or no room in it, or when a node lacks something, naming both.
    """
    _join(config)
    on_gpus = settings.gpus is not None
    nodes = _nodes_with_room(on_gpus=on_gpus)
    _check_store(settings, nodes)
    nodes = _chosen(config.option.ray_device, settings, nodes, _reports(settings, nodes))
    places = [Place(node.id, int(on_gpus), node.room) for node in nodes for _ in range(node.room)]
    carrier = RayCarrier(places)
    config.add_cleanup(carrier.close)
    config.stash[_CARRIER] = carrier
    config.option.tx = [f"{len(places)}*popen//python={carrier.relay}"]
    config.option.dist = "loadgroup"
    config.stash[_SAID] = _words(nodes, len(places), on_gpus=on_gpus)


def said_of(config: pytest.Config) -> str:
    """Which cluster the session has joined, in a line; empty without ``--ray``."""
    return config.stash.get(_SAID, "")


def has_place(config: pytest.Config) -> bool:
    """Whether the worker that was started last is where it should be: always, but for one whose node died."""
    carrier = config.stash.get(_CARRIER, None)
    return carrier is None or carrier.last_has_place


def leave_place(node: Any) -> None:
    """Let a worker that has ended, well or not, leave its place; xdist alone would keep it until the session ends.

    Args:
        node: the worker, as xdist's controller has it.
    """
    carrier = node.config.stash.get(_CARRIER, None)
    if carrier is not None:
        carrier.is_done()
        node.gateway.exit()


def _join(config: pytest.Config) -> None:
    """Join the cluster until the session ends, or start one of this machine."""
    try:
        import ray
    except ImportError as error:
        raise pytest.UsageError(f"--ray: Ray is not installed; {_INSTALL}") from error
    address = None if config.option.ray == "auto" else config.option.ray
    # No network of somebody else's, and no process that nobody asked for.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        _check_answer(address)
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **_of_local_cluster(address))
    except Exception as error:  # Ray's own are of many kinds, and some of none
        raise pytest.UsageError(
            f"--ray={config.option.ray}: no cluster answers there ({str(error)[:_MESSAGE_LENGTH]}); start one by "
            "`ray start --head`, or give --ray alone for one of this machine"
        ) from error
    # Ray's own handler would end this process without a word; a session acts on it as on Ctrl-C.
    signal.signal(signal.SIGTERM, on_sigterm)
    config.add_cleanup(ray.shutdown)
    # It goes to the nodes as it is: one may lack this package.
    ray.cloudpickle.register_pickle_by_value(ray_carrier)


def _check_answer(address: str | None) -> None:
    """Raise ``OSError`` where no Ray answers at ``HOST:PORT``: Ray itself would try for minutes."""
    host, _, port = (address or "").rpartition(":")
    if not host or "/" in host or not port.isdecimal():
        return
    with socket.create_connection((host.strip("[]"), int(port)), _ANSWER_S) as answering:
        if os.environ.get("RAY_USE_TLS") == "1":
            return
        # Ray's head speaks gRPC, so it begins with HTTP/2's frame of settings (RFC 9113, sections 3.4 and 6.5).
        answering.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5))
        if answering.recv(4)[3:] != b"\x04":
            raise OSError("what listens there is no Ray")


def _of_local_cluster(address: str | None) -> dict[str, Any]:
    is_new = address == _LOCAL or not (address or os.environ.get("RAY_ADDRESS"))
    return {"include_dashboard": False} if is_new else {}


def _address() -> str:
    """Of the cluster that was joined, or started."""
    import ray

    return str(ray.get_runtime_context().gcs_address)


def _nodes_with_room(*, on_gpus: bool) -> list[_Node]:
    """Nodes that can take workers now, by host.

    Raises:
        pytest.UsageError: when none can.
    """
    import ray
    from ray._private.state import available_resources_per_node

    what = "GPU" if on_gpus else "CPU"
    free = available_resources_per_node()
    nodes = [
        _Node(node["NodeID"], node["NodeManagerHostname"], int(free.get(node["NodeID"], {}).get(what, 0)))
        for node in ray.nodes()
        if node["Alive"]
    ]
    there = sum(int(node["Resources"].get(what, 0)) for node in ray.nodes() if node["Alive"])
    found = sorted((node for node in nodes if node.room), key=lambda node: (node.host, node.id))
    if not found:
        instead = f"; all {there} are in use: wait, or stop what uses them" if there else ""
        told = "; leave --gpus out for its CPUs" if on_gpus and not there else ""
        raise pytest.UsageError(
            f"--ray: no {what} is free in the cluster of {counted(len(nodes), 'node')}{instead}{told}"
        )
    return found


def _check_store(settings: Settings, nodes: Sequence[_Node]) -> None:
    """A file is no store for several hosts.

    Raises:
        pytest.UsageError: saying how to start one that is; or what is wrong with the address.
    """
    from pytest_diffaccel.records.database import is_file
    from pytest_diffaccel.records.tables import StoreError

    try:
        is_of_one_host = is_file(settings.store)
    except StoreError as error:
        raise pytest.UsageError(f"--store: {error}") from error
    if len(nodes) > 1 and is_of_one_host:
        raise pytest.UsageError(
            f"--ray: the store {settings.store} is a file of one host, and the cluster at {_address()} has "
            f"{len(nodes)} nodes; {_POSTGRESQL}; or give --ray={_LOCAL} for a new cluster of this machine alone"
        )


def _reports(settings: Settings, nodes: Sequence[_Node]) -> list[NodeReport]:
    """What the nodes say of themselves, asked all at once.

    Raises:
        pytest.UsageError: when one cannot answer.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    pipes = tuple(sorted({cell.pipe for cell in settings.cells})) if len(nodes) > 1 else ()
    WORK.path.mkdir(parents=True, exist_ok=True)
    token = WORK.path / f"cluster-{uuid.uuid4().hex}"
    token.touch()
    try:
        request = json.dumps(asdict(NodeRequest(str(token), settings.models, pipes, settings.gpus is not None)))
        ask = ray.remote(num_cpus=0, max_retries=0)(ray_carrier.ask_node)
        answers = [
            ask.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False)).remote(
                os.getcwd(), request, ray_carrier.passed_on()
            )
            for node in nodes
        ]
        return [_report(node, answer) for node, answer in zip(nodes, answers, strict=True)]
    finally:
        token.unlink(missing_ok=True)


def _report(node: _Node, answer: Any) -> NodeReport:
    import ray

    try:
        status, out, err = ray.get(answer, timeout=_REPORT_TIMEOUT_S)
    except Exception as error:
        raise pytest.UsageError(f"--ray: node {node.host} does not answer: {str(error)[:_MESSAGE_LENGTH]}") from error
    if status:
        lines = err.strip().splitlines() or ["no reason"]
        raise pytest.UsageError(f"--ray: node {node.host} cannot take part: {lines[-1]}")
    said = json.loads(out)
    said.pop("host")
    return NodeReport(**{**said, "devices": tuple(said["devices"])})


def _chosen(
    wanted: str | None, settings: Settings, nodes: Sequence[_Node], reports: Sequence[NodeReport]
) -> list[_Node]:
    """The nodes that take part, all alike.

    Raises:
        pytest.UsageError: naming each that lacks something, or their devices where these differ.
    """
    pairs = [
        (node, report)
        for node, report in zip(nodes, reports, strict=True)
        if wanted is None or any(wanted.lower() in device.lower() for device in report.devices)
    ]
    devices = {device for _, report in pairs for device in report.devices}
    if not pairs:
        known = "; ".join(sorted({device for report in reports for device in report.devices}))
        raise pytest.UsageError(f"--ray-device {wanted!r}: no node has it; there are {known}")
    if len(devices) > 1:
        each = "; ".join(f"--ray-device {device.partition(',')[0]!r}" for device in sorted(devices))
        raise pytest.UsageError(
            "--ray: figures of different devices are never mixed, and the cluster has "
            f"{', '.join(sorted(devices))}; search each by itself: {each}"
        )
    own = ray_node.report(NodeRequest(".", settings.models, (), on_gpus=False))
    lacking = [f"node {node.host}: {what}" for node, report in pairs for what in _lacking(report, own, pairs[0])]
    if lacking:
        raise pytest.UsageError("--ray: " + "; ".join(lacking))
    return [node for node, _ in pairs]


def _lacking(report: NodeReport, own: NodeReport, first: tuple[_Node, NodeReport]) -> Iterator[str]:
    """What a node lacks or has otherwise, in words."""
    if not report.shares_folder:
        yield f"its {os.getcwd()} is not the one that this session was started in; start it in a folder that all share"
    if report.missing:
        yield report.missing
    if not report.devices:
        yield "nvidia-smi lists no GPU"
    for name in sorted({*own.versions, *report.versions}):
        if own.versions.get(name) != report.versions.get(name):
            has, here = report.versions.get(name, "none"), own.versions.get(name, "none")
            yield f"{name} is {has}, and {here} where the session was started; install the same"
    for name, digest in report.weights.items():
        if first[1].weights.get(name, digest) != digest:
            yield f"the weights of {name} are other ones than on node {first[0].host}"


def _words(nodes: Sequence[_Node], workers: int, *, on_gpus: bool) -> str:
    hosts = ", ".join(dict.fromkeys(node.host for node in nodes))
    own = "a GPU" if on_gpus else "a core"
    where = f"on {counted(len(nodes), 'node')} ({hosts})"
    return f"Ray cluster at {_address()}: {counted(workers, 'worker')} with {own} each {where}"
