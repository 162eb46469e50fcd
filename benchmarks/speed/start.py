"""G18: from the command to its end."""

import statistics
import subprocess
import sys
import tempfile
import time
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
            times = [wall_seconds(command) for _ in range(repeats + 1)]
            Figure(figure=f"G18 {name}", unit="s", ours=statistics.median(times[1:]), target=target).print()


def wall_seconds(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
    return time.perf_counter() - started
