"""The main job as a user starts it: wall time and memory of each profile, from an empty registry.

    python -m benchmarks.stages [--profiles smoke quick] [--picture benchmarks/main_job.png]

Prints one JSON line a figure. Each run is a fresh process in a temporary folder.
"""

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.machine import machine

ROOT = Path(__file__).resolve().parents[1]
TARGET_SECONDS = {"smoke": 60.0, "quick": 300.0}
TARGET_MEMORY_MIB = 2048.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profiles", nargs="+", default=["smoke", "quick"], choices=list(TARGET_SECONDS))
    parser.add_argument("--picture", type=Path, help="where to keep the equity picture of the last profile")
    options = parser.parse_args()
    for profile in options.profiles:
        measure(profile, options.picture)


def measure(profile: str, picture: Path | None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        started = time.monotonic()
        folders = [f"paths.models={folder}/models", f"paths.outputs={folder}/outputs"]
        command = [sys.executable, str(ROOT / "train.py"), "stage=hybrid", "model=sac", f"trainer={profile}", *folders]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        seconds = time.monotonic() - started
        run = next(Path(folder, "outputs", "hybrid").iterdir())
        for result in sorted(run.rglob("result.json")):
            stage = json.loads(result.read_text())
            line(f"{profile}: stage {stage['stage']}", "s", stage["duration_seconds"], None)
        if picture is not None:
            shutil.copy(run / "equity.png", picture)
    line(f"{profile}: train.py stage=hybrid model=sac from an empty registry", "s", seconds, TARGET_SECONDS[profile])
    # The largest child so far: profiles grow, so it is that of this profile.
    memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    line(f"{profile}: peak memory", "MiB", memory, TARGET_MEMORY_MIB)


def line(figure: str, unit: str, value: float, target: float | None) -> None:
    print(
        json.dumps({"figure": figure, "unit": unit, "ours": round(value, 1), "target": target, **machine()}), flush=True
    )


if __name__ == "__main__":
    main()
