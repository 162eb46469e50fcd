"""Choice of device and threads, and lines of progress."""

import io
import mmap
import os
import platform
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch

from trade_agent.errors import ConfigError
from trade_agent.training.device import DeviceManager, available_cores
from trade_agent.training.progress import ProgressReporter, Task

NO_GPU = not (torch.cuda.is_available() or torch.backends.mps.is_available())


@pytest.fixture(autouse=True)
def restore_settings() -> Iterator[None]:
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    cudnn = torch.backends.cudnn.allow_tf32
    yield
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(precision)
    torch.backends.cudnn.allow_tf32 = cudnn


@pytest.mark.parametrize(
    ("cuda", "mps", "chosen", "reason"),
    [
        (True, True, "cuda", "the best device present"),
        (False, True, "cpu", "mps has no float64, in which money is kept"),
        (False, False, "cpu", "no GPU present"),
    ],
)
def test_auto_takes_the_best_device(
    monkeypatch: pytest.MonkeyPatch, cuda: bool, mps: bool, chosen: str, reason: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    manager = DeviceManager(name="auto", threads=1)
    assert (manager.device.type, manager.reason) == (chosen, reason)


def test_a_device_that_is_not_there_falls_back_with_a_warning_or_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    manager = DeviceManager(name="cuda", threads=1)
    assert manager.device.type == "cpu"
    assert manager.report().reason == "fallback: no cuda here"
    captured = capsys.readouterr()
    assert captured.err == "warning: device.name=cuda but there is none here; using the CPU\n"
    assert captured.out == ""
    with pytest.raises(ConfigError, match="device.name=cuda but there is none here; use device=auto or device.strict"):
        DeviceManager(name="cuda", strict=True, threads=1)


def test_mps_says_why_it_cannot_be_used(capsys: pytest.CaptureFixture[str]) -> None:
    assert DeviceManager(name="mps", threads=1).device.type == "cpu"
    why = "device.name=mps but mps has no float64, in which money is kept"
    assert capsys.readouterr().err == f"warning: {why}; using the CPU\n"
    with pytest.raises(ConfigError, match=why):
        DeviceManager(name="mps", strict=True, threads=1)


@pytest.mark.parametrize(
    ("wanted", "capability", "chosen"),
    [
        ("auto", (8, 0), "tf32"),
        ("auto", (7, 5), "float32"),
        ("tf32", (9, 0), "tf32"),
        ("tf32", (7, 5), "float32"),
        ("float32", (9, 0), "float32"),
    ],
)
def test_precision_of_a_gpu(
    monkeypatch: pytest.MonkeyPatch, wanted: str, capability: tuple[int, int], chosen: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert DeviceManager(name="cuda", precision=wanted, threads=1).precision == chosen
    assert torch.get_float32_matmul_precision() == {"tf32": "high", "float32": "highest"}[chosen]
    assert torch.backends.cudnn.allow_tf32 is (chosen == "tf32")


def test_the_cpu_has_no_tf32(capsys: pytest.CaptureFixture[str]) -> None:
    assert DeviceManager(name="cpu", threads=1).precision == "float32"
    assert capsys.readouterr().err == ""
    assert DeviceManager(name="cpu", precision="tf32", threads=1).report().precision == "float32"
    assert "device.precision=tf32 but cpu here has none; using float32" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="device.precision=tf32 but cpu here has none"):
        DeviceManager(name="cpu", precision="tf32", strict=True, threads=1)


def test_the_cpu_as_configured() -> None:
    report = DeviceManager(name="cpu", strict=True, threads=2).report()
    assert (report.device, report.name, report.reason, report.threads) == ("cpu", "cpu", "as configured", 2)
    assert torch.get_num_threads() == 2
    assert report.memory_bytes > 2**27
    assert DeviceManager(name="cpu").threads == available_cores() >= 1
    assert DeviceManager(name="cpu", threads=1).memory_used_bytes() > 2**25


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_names_itself() -> None:
    report = DeviceManager(name="cuda", strict=True).report()
    assert report.name == torch.cuda.get_device_properties(0).name
    assert report.memory_bytes > 2**30


def test_without_a_terminal_a_task_prints_four_lines(capsys: pytest.CaptureFixture[str]) -> None:
    task = Task("work", 1000, None)
    for _ in range(1200):
        task.advance(1)
    captured = capsys.readouterr()
    assert [line.split("(")[0].strip() for line in captured.err.splitlines()] == [
        "work: 250/1,000", "work: 500/1,000", "work: 750/1,000", "work: 1,000/1,000",
    ]  # fmt: skip
    assert captured.out == ""


def test_what_a_checkpoint_holds_takes_no_part_in_the_rate(capsys: pytest.CaptureFixture[str]) -> None:
    task = Task("work", 1000, None)
    task.started -= 100.0
    task.skip(500)
    task.advance(250)
    assert capsys.readouterr().err.strip() == "work: 750/1,000 (2/s, 100 s left)"


def test_quiet_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    progress = ProgressReporter(quiet=True)
    progress.say("hello")
    with progress.task("work", 4) as task:
        task.advance(4)
    assert capsys.readouterr() == ("", "")


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stderr", screen)
    progress = ProgressReporter()
    with progress.task("forecaster", 3) as task:
        task.advance(3, "loss 0.5")
    assert "forecaster" in screen.getvalue()
    assert "3/3" in screen.getvalue()
    assert "loss 0.5" in screen.getvalue()


FREED = """
import ctypes, resource, sys
from trade_agent.training.device import DeviceManager

if sys.argv[1] == "kept":
    DeviceManager(name="cpu", threads=1)
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.memset.argtypes, libc.free.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t], [ctypes.c_void_p]


def work(size=1 << 19):
    parts = [libc.malloc(size) for _ in range(16)]
    for part in parts:
        libc.memset(part, 1, size)
    for part in reversed(parts):
        libc.free(part)


work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators have other rules")
def test_what_an_update_frees_is_there_for_the_next_one() -> None:
    # Where its own thresholds stand depends on what a process has freed so far.
    greedy = os.environ | {"GLIBC_TUNABLES": f"glibc.malloc.trim_threshold={1 << 20}"}

    def faults(way: str) -> int:
        command = [sys.executable, "-c", FREED, way]
        return int(subprocess.run(command, env=greedy, capture_output=True, check=True, text=True).stdout)

    pages = 20 * 8 * 2**20 // mmap.PAGESIZE
    if faults("given back") < pages // 2:
        pytest.skip("pages are larger here than they say")
    assert faults("kept") < pages // 100
