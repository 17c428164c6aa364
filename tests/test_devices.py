"""Which GPUs a caller may use, by CUDA's rules, with a stand-in for the driver's list."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from filelock import ReadWriteLock, Timeout
from standins import MIXED, SLICED, THREE, StandIns

from pytest_diffaccel.devices import Gpu, NoSuchGpu, choose_gpus, number_of_gpus, use_gpu, visible_gpus
from pytest_diffaccel.measure.threads import use_share_of_cores
from pytest_diffaccel.measure.timing_lock import TimingLock

A, B, C = ("GPU-aaaa0000-01", "GPU-aaaa1111-02", "GPU-bbbb2222-03")


@pytest.mark.parametrize(
    ("visible", "found"),
    [
        (None, [(A, A), (B, B), (C, C)]),
        ("", []),
        ("1", [("1", B)]),
        ("2, 0", [("2", C), ("0", A)]),
        (C, [(C, C)]),
        ("GPU-bbbb,GPU-aaaa1", [("GPU-bbbb", C), ("GPU-aaaa1", B)]),
        # What names nothing hides what follows.
        ("1,-1,0", [("1", B)]),
        ("-1", []),
        ("0,3,1", [("0", A)]),
        ("0,,1", [("0", A)]),
        ("0,first,1", [("0", A)]),
        ("0,GPU-cccc,1", [("0", A)]),
        ("GPU-aaaa,2", []),
        # A GPU named twice hides all.
        ("0,1,0", []),
        ("1,GPU-aaaa1", []),
    ],
)
def test_what_cuda_shows_is_visible(stand_ins: StandIns, visible: str | None, found: list[tuple[str, str]]) -> None:
    stand_ins.list_gpus(THREE)
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert [(gpu.name, gpu.uuid) for gpu in visible_gpus(environment)] == found
    assert all(gpu.physical == gpu.uuid for gpu in visible_gpus(environment))


def test_a_sliced_gpu_is_its_slices(stand_ins: StandIns) -> None:
    stand_ins.list_gpus(SLICED)
    one, two, whole = (Gpu("MIG-11", "MIG-11", A), Gpu("MIG-22", "MIG-22", A), Gpu(B, B, B))
    assert visible_gpus({}) == [one, two, whole]
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "MIG-2"}) == [Gpu("MIG-2", "MIG-22", A)]
    # CUDA gives its first slice to who asks for the GPU.
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "0"}) == [Gpu("0", "MIG-11", A)]
    assert choose_gpus(["MIG-22", "2"], {}) == [two, whole]
    assert number_of_gpus() == 2


def test_a_driver_that_takes_its_time_is_asked_once(stand_ins: StandIns, tmp_path: Path) -> None:
    stand_ins.list_gpus(THREE)
    program = next(tmp_path.rglob("nvidia-smi"))
    program.write_text(program.read_text() + f"echo >> {tmp_path / 'asked'}\n")
    assert len(visible_gpus({})) == number_of_gpus() == len(choose_gpus((), {})) == 3
    assert (tmp_path / "asked").read_text() == "\n"


def test_among_different_gpus_only_cuda_knows_which_is_the_first(stand_ins: StandIns) -> None:
    """It numbers the fastest first, the driver by place: whose number is whose is known once CUDA runs."""
    stand_ins.list_gpus(MIXED)
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "1"}) == [Gpu("1")]
    ordered = {"CUDA_VISIBLE_DEVICES": "1", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    assert visible_gpus(ordered) == [Gpu("1", B, B)]
    assert [gpu.name for gpu in visible_gpus({})] == [A, B]


def test_without_the_drivers_list_the_caller_is_taken_at_their_word(stand_ins: StandIns) -> None:
    assert visible_gpus({}) == []
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "1,GPU-x,-1,0"}) == [Gpu("1"), Gpu("GPU-x", "GPU-x", "GPU-x")]


@pytest.mark.parametrize(
    ("wanted", "visible", "chosen"),
    [
        ((), "2,0", ["2", "0"]),
        (("0",), "2,0", ["2"]),
        (("1", "0"), "2,0", ["0", "2"]),
        (("GPU-bbbb",), "2,0", ["2"]),
        (("0", "2"), None, [A, C]),
        ((B,), None, [B]),
    ],
)
def test_numbers_count_among_the_callers_own(
    stand_ins: StandIns, wanted: tuple[str, ...], visible: str | None, chosen: list[str]
) -> None:
    stand_ins.list_gpus(THREE)
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert [gpu.name for gpu in choose_gpus(wanted, environment)] == chosen


@pytest.mark.parametrize(
    ("wanted", "visible", "said"),
    [
        ((), "", r"no GPU can be used here \(CUDA_VISIBLE_DEVICES is ''\); leave --gpus out to run on the CPU"),
        ((), "-1,0", r"no GPU can be used here \(CUDA_VISIBLE_DEVICES is '-1,0'\)"),
        (("0", "2"), "2,0", rf"no GPU 2; .* are 0 \({C}\), 1 \({A}\); choose among them, or leave --gpus out"),
        (("GPU-aaaa1",), "2,0", "no GPU GPU-aaaa1"),
        (("GPU-aaaa",), None, "GPU-aaaa is 2 GPUs"),
        (("0", "0"), None, "GPU 0 is named twice"),
        (("0", A), None, f"GPU {A} is named twice"),
    ],
)
def test_what_is_not_there_is_refused(
    stand_ins: StandIns, wanted: tuple[str, ...], visible: str | None, said: str
) -> None:
    stand_ins.list_gpus(THREE)
    with pytest.raises(NoSuchGpu, match=f"^--gpus: {said}"):
        choose_gpus(wanted, {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible})


def test_without_any_gpu_the_refusal_says_how_to_go_on(stand_ins: StandIns) -> None:
    with pytest.raises(NoSuchGpu, match=r"\(nvidia-smi lists none\); leave --gpus out to run on the CPU$"):
        choose_gpus((), {})


def test_using_a_gpu_shows_this_process_no_other(stand_ins: StandIns) -> None:
    stand_ins.list_gpus(THREE)
    (chosen,) = choose_gpus(["1"])
    use_gpu(chosen)
    assert visible_gpus() == [chosen]


# --- one timing at a time --------------------------------------------------------------------------------------

HOLD = """
import sys
from pytest_diffaccel.measure.timing_lock import TimingLock
with getattr(TimingLock.of_gpu("GPU-a"), sys.argv[1])():
    print("held", flush=True)
    sys.stdin.read()
"""


def is_free(uuid: str, *, for_timing: bool) -> bool:
    lock = ReadWriteLock(TimingLock.of_gpu(uuid).path, timeout=0)
    try:
        with lock.write_lock() if for_timing else lock.read_lock():
            return True
    except Timeout:
        return False


@pytest.mark.parametrize("use", ["timing", "generating"])
def test_processes_in_different_folders_take_turns_at_a_gpu(use: str, tmp_path: Path, stand_ins: StandIns) -> None:
    (tmp_path / "elsewhere").mkdir()
    command = [sys.executable, "-c", HOLD, use]
    with TimingLock.of_gpu("GPU-b").timing():
        pass
    with subprocess.Popen(
        command, cwd=tmp_path / "elsewhere", stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        assert not is_free("GPU-a", for_timing=True)
        assert is_free("GPU-a", for_timing=False) == (use == "generating")
        assert is_free("GPU-b", for_timing=True)
        holder.kill()
    assert is_free("GPU-a", for_timing=True)


@pytest.mark.parametrize(
    ("gpus", "workers", "had", "share"),
    [(4, 1, 64, 16), (4, 4, 64, 16), (4, 8, 64, 8), (0, 1, 64, 64), (4, 4, 2, 2), (128, 4, 64, 1)],
)
def test_a_worker_has_a_gpus_share_of_the_cores(
    monkeypatch: pytest.MonkeyPatch, gpus: int, workers: int, had: int, share: int
) -> None:
    """The same for one worker and for as many as there are GPUs, and never more than the user allows."""
    threads = [had]
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(64), raising=False)
    monkeypatch.setattr("torch.get_num_threads", lambda: threads[-1])
    monkeypatch.setattr("torch.set_num_threads", threads.append)
    use_share_of_cores(gpus, workers)
    assert threads[-1] == share
