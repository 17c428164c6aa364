"""pytest hooks and nothing else; importing this imports neither torch nor diffusers."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from pytest_diffaccel.plugin import hookspecs, ini_keys, judge_options
from pytest_diffaccel.plugin.case_items import CANDIDATE, GATE_CASE, GROUP, gate_case_of, is_out_of_place, sort_cases
from pytest_diffaccel.plugin.case_results import attach_result
from pytest_diffaccel.plugin.controller import Reporting
from pytest_diffaccel.plugin.fixtures import (
    diffaccel,
    diffaccel_gate,
    diffaccel_gate_run,
    diffaccel_run,
    diffaccel_search,
    gate_run,
    is_searching,
    keep_groups_together,
    search_run,
    use_ray,
)
from pytest_diffaccel.plugin.judge_cases import (
    TASK,
    JudgeReporting,
    diffaccel_bench,
    diffaccel_judge,
    judge_settings,
)
from pytest_diffaccel.plugin.refusals import cases_of, raise_refusal
from pytest_diffaccel.plugin.turns import Turns
from pytest_diffaccel.plugin.workers import (
    give_up_broken_cuda,
    has_line,
    has_workers,
    interrupt_on_sigterm,
    one_worker_a_gpu,
    share_gpus,
    tell_place,
    tell_session,
    worker_number,
)
from pytest_diffaccel.settings import options
from pytest_diffaccel.settings.option_types import near_options

# What torch says of a method's code that it cannot compile: graph breaks are counted, and told with the winners.
_GRAPH_BREAKS = "ignore:Dynamo does not know how to trace:UserWarning"

__all__ = [
    "diffaccel",
    "diffaccel_bench",
    "diffaccel_gate",
    "diffaccel_gate_run",
    "diffaccel_judge",
    "diffaccel_run",
    "diffaccel_search",
]


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    """Offer the hooks with which conftest files and other plugins add methods, pipes and metrics."""
    pluginmanager.add_hookspecs(hookspecs)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the options."""
    options.add_options(parser)
    judge_options.add_options(parser)
    ini_keys.add_keys(parser)


@pytest.hookimpl(wrapper=True)
def pytest_load_initial_conftests(
    early_config: pytest.Config, parser: pytest.Parser, args: list[str]
) -> Generator[None, object, object]:
    """Options that are set in the project's configuration are read before the command line, which wins.

    An option that nobody declares, conftest files neither, and that is nearly one of ours, is refused with that.
    """
    ini_keys.read_keys(early_config)
    loaded = yield
    known = [name for option in ini_keys.OPTIONS for name in option.names]
    near = {arg: said for arg in args if (said := near_options(arg.partition("=")[0], known))}
    for arg in parser.parse_known_and_unknown_args(args)[1] if near else ():
        if arg in near:
            raise pytest.UsageError(f"unrecognized argument: {arg}{near[arg]}")
    return loaded


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """A search under ``-n`` keeps each group on one worker, unless the user says otherwise."""
    if options.asks_for_search(config.option, config.args):
        keep_groups_together(config)
    if config.option.ray is not None and worker_number(config) is None:
        use_ray(config)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A search's groups stay together and survive the death of their worker."""
    if options.is_given(config.option):  # whether there are cases, the workers alone know
        with suppress(pytest.UsageError):
            search_run(config)
    if not is_searching(config) or config.option.dist != "loadgroup":
        return None
    from pytest_diffaccel.plugin.scheduling import Groups, GroupScheduling

    gate = gate_run(config)
    groups = Groups.of_gate(gate) if gate else Groups.of_search(search_run(config))
    reporting: Any = config.pluginmanager.get_plugin("diffaccel-reporting")
    return GroupScheduling(config, log, groups, on_wait=reporting.workers_wait)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """``-n auto --gpus``: one worker per GPU."""
    return one_worker_a_gpu(config)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes(config: pytest.Config, specs: Sequence[Any]) -> None:
    """Each worker has its GPU, and knows which session it is of, before it starts."""
    share_gpus(config, specs)
    tell_session(config, specs)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """A worker of a Ray cluster knows whether it has a place there."""
    if node.config.option.ray is not None:
        from pytest_diffaccel.plugin.ray_cluster import has_place

        tell_place(node, has_place=has_place(node.config))


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """A worker of a Ray cluster that has ended leaves its place to others."""
    if node.config.option.ray is not None:
        from pytest_diffaccel.plugin.ray_cluster import leave_place

        leave_place(node)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """After an error that CUDA does not recover from, the rest goes to a fresh process."""
    ran = yield
    if is_searching(item.config):
        give_up_broken_cuda(item.session)
    return ran


@pytest.hookimpl(tryfirst=True)
def pytest_keyboard_interrupt(excinfo: pytest.ExceptionInfo[BaseException]) -> None:
    """Ctrl-C may come in an instruction of no line, as ``with`` has some; pytest 9.2 fails to show it."""
    excinfo.traceback = excinfo.traceback.filter(has_line)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A case's reports carry what it found."""
    report = yield
    attach_result(item, report)
    return report


def pytest_configure(config: pytest.Config) -> None:
    """Refuse bad options before anything is collected; ``--update-golden`` alone searches the benches."""
    given = config.known_args_namespace
    if options.asks_for_search(config.option, config.args):
        # What only the project's configuration says is read once there is a case: most runs are of other tests.
        if options.asks_for_search(given, config.args):
            search_run(config)
        config.addinivalue_line("filterwarnings", _GRAPH_BREAKS)
        interrupt_on_sigterm(config)
    if judge_options.is_given(given):
        judge_settings(config)
    if not has_workers(config):
        config.pluginmanager.register(Turns(config), "diffaccel-turns")
    if worker_number(config) is None:
        config.pluginmanager.register(Reporting(config), "diffaccel-reporting")
        config.pluginmanager.register(JudgeReporting(config), "diffaccel-judge-reporting")
    # In a worker, too: xdist gives it the command line as it was.
    if config.option.update_golden and config.args_source is not pytest.Config.ArgsSource.ARGS:
        is_here = Path(options.BENCHES).is_dir()
        config.option.pyargs = config.option.pyargs or not is_here
        config.args[:] = [options.BENCHES if is_here else options.INSTALLED_BENCHES]


@pytest.hookimpl(tryfirst=True)
def pytest_pycollect_makeitem(collector: pytest.Collector, obj: object) -> list[pytest.Item] | None:
    """With ``--gate`` the gate's cases, without it the search's."""
    return [] if is_out_of_place(obj, gate_run(collector.config)) else None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One case per candidate, one per group, one per task; with ``--gate``, one per golden winner or baseline."""
    gate = gate_run(metafunc.config)
    if gate is not None:
        if GATE_CASE in metafunc.fixturenames:
            metafunc.parametrize(GATE_CASE, gate.cases, ids=[case.key for case in gate.cases])
        return
    if CANDIDATE in metafunc.fixturenames:
        candidates = cases_of(metafunc.config, lambda: search_run(metafunc.config).candidates)
        metafunc.parametrize(CANDIDATE, candidates, ids=[candidate.key for candidate in candidates])
    if GROUP in metafunc.fixturenames:
        groups = cases_of(metafunc.config, lambda: search_run(metafunc.config).groups)
        metafunc.parametrize(GROUP, groups, ids=[group.name for group in groups])
    if TASK in metafunc.fixturenames:
        metafunc.parametrize(TASK, cases_of(metafunc.config, lambda: list(judge_settings(metafunc.config).tasks)))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_finish(session: pytest.Session) -> None:
    """Cases in their own order, whatever order other plugins gave to the tests before (shuffling, ``--ff``, ...)."""
    raise_refusal(session.config)
    gate = gate_run(session.config)
    sort_cases(session.items, lambda: search_run(session.config), gate)
    if gate is not None:
        gate.keep({case.key for item in session.items if (case := gate_case_of(item))})
