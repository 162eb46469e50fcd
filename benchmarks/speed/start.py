"""G18: from the command to its end, in seconds of the processor."""

import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.speed.measure import Figure
from benchmarks.speed.peer import ROOT


def measure(repeats: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        listing = [sys.executable, "-m", "trade_agent.cli", "list", "--models", str(Path(folder, "models"))]
        for name, command, target in (
            ("python train.py --help", [sys.executable, str(ROOT / "train.py"), "--help"], 1.5),
            ("trade-agent list", listing, 0.5),
        ):
            times = [processor_seconds(command) for _ in range(repeats + 1)]
            Figure(figure=f"G18 {name}", unit="s", ours=statistics.median(times[1:]), target=target).print()


def processor_seconds(command: list[str]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
