"""Searches in a real Ray cluster: three nodes on this machine, workers and nodes that die, what is refused before."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from searches import SMALL_OPTIONS, SearchFolder
from servers import Server, new_database
from standins import MIXED, THREE

from pytest_diffaccel.plugin import relay

pytest.importorskip("ray", reason="the extra `ray` is not installed")
pytestmark = pytest.mark.slow

# Cases note where they run; some wait, so that others can be told apart from them.
CASES = """
import json, os, time
from pathlib import Path

FOLDER = Path(__file__).parent

def note(case):
    parent = Path(f"/proc/{os.getppid()}/environ").read_bytes().split(bytes(1))
    node = next((entry for entry in parent if entry.startswith(b"RAY_NODE_ID=")), b"").decode()
    what = {"case": case, "worker": os.environ["PYTEST_XDIST_WORKER"], "process": os.getpid(), "node": node,
            "gpu": os.environ.get("CUDA_VISIBLE_DEVICES"), "here": os.environ["PYTEST_DIFFACCEL_WORKERS_HERE"]}
    with (FOLDER / "notes.jsonl").open("a") as notes:
        notes.write(json.dumps(what) + chr(10))

def test_search(diffaccel_candidate):
    note(diffaccel_candidate.key)
    time.sleep(0.05)

def test_winners(diffaccel_group):
    note(diffaccel_group[1])
"""
CELL = ("--pipe", "SD1.5", "--sched", "DDIM", "--steps", "20", "--grid", "coarse")
# Cases of that cell: its candidates and its groups' winners.
COUNT = 58

#: A node that is told these ports does not wait for agents that tell it theirs; for one it does all the same.
PORTS = ("metrics_agent_port", "metrics_export_port", "runtime_env_agent_port")
#: Seconds that Ray waits for a node that starts, 30 unless told.
os.environ.setdefault("RAY_raylet_start_wait_time_s", "60")
#: How often a node is started before the test is skipped: as of Ray 2.60 one gives up where its agent needs over 15 s,
#: as on a machine that is busy or slow.
STARTS = 3


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, each another one."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [int(opened.getsockname()[1]) for opened in sockets]


class Ray:
    """A cluster of nodes on this machine."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self.cluster: Any = Cluster()
        self.nodes: list[Any] = []

    def add(self, **more: Any) -> Any:
        """One more node, with a core unless ``more`` says otherwise."""
        known = {"num_cpus": 1, "object_store_memory": 80 << 20, "include_dashboard": False}
        known |= {"no_monitor": True, "include_log_monitor": False}  # each a process more that takes seconds
        for _ in range(STARTS):
            ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
            try:
                self.nodes.append(self.cluster.add_node(**{**known, **ports, **more}))
            except Exception as error:  # Ray's, which says that it timed out
                why = error
            else:
                return self.nodes[-1]
        pytest.skip(f"Ray starts no node on this machine: {why}")

    @property
    def option(self) -> str:
        """What names it on a command line."""
        return f"--ray={self.cluster.address}"


@pytest.fixture
def one_node() -> Iterator[Ray]:
    made = Ray()
    made.add()
    yield made
    made.cluster.shutdown()


@pytest.fixture
def three_nodes(one_node: Ray) -> Ray:
    one_node.add()
    one_node.add()
    one_node.cluster.wait_for_nodes()
    return one_node


class Folder:
    """A folder whose cases note where they run."""

    def __init__(self, pytester: pytest.Pytester) -> None:
        self.pytester = pytester
        pytester.makepyfile(test_cases=CASES)

    def run(self, *arguments: str) -> pytest.RunResult:
        return self.pytester.runpytest_subprocess(*CELL, *arguments)

    def notes(self) -> list[dict[str, Any]]:
        file = self.pytester.path / "notes.jsonl"
        text = file.read_text() if file.exists() else ""
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


@pytest.fixture
def folder(pytester: pytest.Pytester) -> Folder:
    return Folder(pytester)


# --- what is refused before anything is measured ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--ray", "-n", "2"), "--ray and -n exclude each other"),
        (("--ray", "--gpus=0,1"), "--gpus=0,1 with --ray: Ray says which GPU a worker has"),
        (("--ray=127.0.0.1:1",), "--ray=127.0.0.1:1: no cluster answers there"),
        (("--ray-device", "NVIDIA H100"), "give --ray with it"),
        (("--ray", "--pipe", "SD9"), "--pipe: 'SD9' is unknown"),
    ],
)
def test_what_does_not_go_with_a_cluster_is_refused(folder: Folder, arguments: tuple[str, ...], said: str) -> None:
    result = folder.run(*arguments)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert said in result.stderr.str()
    assert not folder.notes()


@pytest.mark.parametrize("said", [b"", b"SFATAL"], ids=["silent", "another"])
def test_what_listens_and_is_no_ray_is_refused(folder: Folder, said: bytes) -> None:
    """A database's port, say: Ray itself would go on asking for minutes."""

    def answer() -> None:
        with suppress(OSError):  # it is closed
            while True:
                held.append(listening.accept()[0])
                held[-1].sendall(said)

    held: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as listening:
        Thread(target=answer, daemon=True).start()
        result = folder.run(f"--ray=127.0.0.1:{listening.getsockname()[1]}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "no cluster answers there" in result.stderr.str()
    for one in held:
        one.close()


def test_a_file_is_no_store_for_several_nodes(folder: Folder, three_nodes: Ray) -> None:
    result = folder.run(three_nodes.option)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    said = result.stderr.str()
    assert f"is a file of one host, and the cluster at {three_nodes.cluster.address} has 3 nodes" in said
    assert "start a PostgreSQL" in said
    assert "--ray=local" in said
    assert "--store postgresql+psycopg://" in said
    assert not folder.notes()


def test_a_cluster_without_gpus_is_no_place_for_a_search_on_some(folder: Folder, one_node: Ray) -> None:
    result = folder.run(one_node.option, "--gpus")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "no GPU is free in the cluster of 1 node; leave --gpus out for its CPUs" in result.stderr.str()


# --- workers and nodes -----------------------------------------------------------------------------------------


def test_cases_run_on_all_nodes_and_are_reported_as_if_run_here(
    folder: Folder, three_nodes: Ray, postgresql_server: Server
) -> None:
    """Groups stay together; reports, JUnit and the log come from the controller."""
    store = ("--store", new_database(postgresql_server.url))
    result = folder.run(three_nodes.option, *store, "--junitxml=junit.xml", "-rA")
    result.assert_outcomes(passed=COUNT)
    result.stdout.fnmatch_lines(["diffaccel: Ray cluster at *: 3 workers with a core each on 3 nodes (*)"])
    notes = folder.notes()
    assert len(notes) == len({note["case"] for note in notes}) == COUNT
    assert len({note["worker"] for note in notes}) == 3
    assert {note["here"] for note in notes} == {"1"}
    assert (folder.pytester.path / "junit.xml").read_text().count("<testcase") == COUNT


def test_a_worker_that_dies_costs_its_case_and_is_replaced(folder: Folder, one_node: Ray) -> None:
    """On the same node; a cluster of one node may have a file for its store."""
    victim = Thread(target=_kill_worker, args=(folder,))
    victim.start()
    result = folder.run(one_node.option)
    victim.join()
    outcomes = result.parseoutcomes()
    assert outcomes == {"passed": COUNT - 1, "failed": 1}
    result.stdout.fnmatch_lines(["*replacing crashed worker gw0*"])
    cases = [note["case"] for note in folder.notes()]
    assert len(cases) == len(set(cases))


def _kill_worker(folder: Folder) -> None:
    _wait_for(folder, 10)
    os.kill(folder.notes()[-1]["process"], signal.SIGKILL)


def _wait_for(folder: Folder, cases: int) -> None:
    deadline = time.monotonic() + 120
    while len(folder.notes()) < cases and time.monotonic() < deadline:
        time.sleep(0.02)


def test_a_node_that_dies_costs_the_case_that_ran_there(
    folder: Folder, three_nodes: Ray, postgresql_server: Server
) -> None:
    """The others do what it leaves; nothing waits for a place that is gone."""

    def kill() -> None:
        _wait_for(folder, 10)
        three_nodes.cluster.remove_node(three_nodes.nodes[-1], allow_graceful=False)

    killer = Thread(target=kill)
    killer.start()
    result = folder.run(three_nodes.option, "--store", new_database(postgresql_server.url))
    killer.join()
    outcomes = result.parseoutcomes()
    assert outcomes["passed"] >= COUNT - 1
    assert outcomes["passed"] + outcomes.get("failed", 0) == COUNT
    cases = [note["case"] for note in folder.notes()]
    assert len(cases) == len(set(cases))


def test_a_relay_leaves_ctrl_c_to_its_session(tmp_path: Path) -> None:
    """A terminal sends it to all in front; the session ends its workers itself."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "relays"))
        listening.listen()
        command = [sys.executable, "-S", "-E", relay.__file__, str(tmp_path / "relays"), "argument"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            carrier, _ = listening.accept()
            with carrier, carrier.makefile("rb") as heard:
                assert json.loads(heard.readline()) == ["argument"]
                process.send_signal(signal.SIGINT)
                carrier.sendall(b"said\n")
                assert process.stdout.readline() == b"said\n"
                process.stdin.close()
                assert heard.read() == b""
    assert process.returncode == 0


# --- devices ---------------------------------------------------------------------------------------------------


def nvidia_smi(folder: Path, line: str) -> dict[str, str]:
    """An environment in which ``nvidia-smi`` lists one GPU."""
    folder.mkdir()
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n[ \"$1\" = -L ] && echo '{line}' || echo 570.1\n", encoding="utf-8")
    program.chmod(0o755)
    return {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}


def test_devices_are_never_mixed(folder: Folder, one_node: Ray, tmp_path: Path, postgresql_server: Server) -> None:
    """Two GPU models: refused with what to type; each is searched by itself, and has a golden file of its own."""
    one_node.add(num_gpus=1, env_vars=nvidia_smi(tmp_path / "a", THREE[0]))
    one_node.add(num_gpus=1, env_vars=nvidia_smi(tmp_path / "b", MIXED[1].replace("GPU 1", "GPU 0")))
    one_node.cluster.wait_for_nodes()
    options = (one_node.option, "--gpus", "--store", new_database(postgresql_server.url))
    result = folder.run(*options)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "--ray-device 'NVIDIA Other 24GB'; --ray-device 'NVIDIA Stand-in 80GB'" in result.stderr.str()
    result = folder.run(*options, "--ray-device", "nvidia h999")
    assert "no node has it; there are NVIDIA Other 24GB, driver 570.1; NVIDIA Stand-in 80GB" in result.stderr.str()
    result = folder.run(*options, "--ray-device", "NVIDIA Other 24GB")
    result.assert_outcomes(passed=COUNT)
    assert {note["gpu"] for note in folder.notes()} == {"0"}
    assert len({note["worker"] for note in folder.notes()}) == 1


# --- a whole search --------------------------------------------------------------------------------------------


@pytest.mark.postgresql
def test_a_search_in_a_cluster_finds_what_one_process_finds(
    pytester: pytest.Pytester, three_nodes: Ray, postgresql_server: Server
) -> None:
    """Measured once each, and winners in golden are those of one process."""
    alone = SearchFolder(pytester.mkdir("alone"))
    together = SearchFolder(pytester.mkdir("together"))
    golden = {}
    for searched, options in (
        (alone, ()),
        (together, (three_nodes.option, "--store", new_database(postgresql_server.url))),
    ):
        os.chdir(searched.path)
        pytester.runpytest_subprocess("benches", *SMALL_OPTIONS, *options).assert_outcomes(passed=4)
        golden[searched] = json.loads(searched.golden.read_text())
    assert golden[alone].keys() == golden[together].keys()
