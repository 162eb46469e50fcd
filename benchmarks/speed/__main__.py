"""Speed against the peers of each part, side by side on one thread.

    python -m benchmarks.speed [--only env,rollout,...] [--repeats 5]

Prints one JSON line a figure: the median of both sides, which take turns. Peers live in environments of their own under
benchmarks/.venvs, built at the first call; where one cannot be installed a line says so, and there is no ratio. Every
figure builds its kernels anew, and how long the first run with them takes is a line of its own. Numbers of figures (G1,
...) are those of benchmarks/RESULTS.md.
"""

import argparse
import importlib
import os
import tempfile

import torch.compiler

from benchmarks.arguments import Names
from trade_agent.training.device import DeviceManager

GROUPS = (
    "env",
    "rollout",
    "ppo",
    "leak",
    "sac",
    "td3",
    "replay",
    "forecaster",
    "frozen",
    "scaling",
    "start",
    "synchronisations",
    "cuda",
    "seeds",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", action=Names, known=GROUPS)
    parser.add_argument("--repeats", type=int, default=5, help="runs of each side; the median counts")
    options = parser.parse_args()
    DeviceManager(name="cpu", threads=1)  # as runs do it
    torch.compiler.config.force_disable_caches = True  # what an earlier figure has built, a later one builds again
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
        for group in options.only:
            importlib.import_module(f"benchmarks.speed.{group}").measure(options.repeats)


if __name__ == "__main__":
    main()
