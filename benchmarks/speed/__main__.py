"""Speed against the peers of each part, side by side on one thread.

    python -m benchmarks.speed [--only env,rollout,...] [--repeats 5] [--device cuda]

Prints one JSON line a figure: the median of both sides, which take turns. Peers live in environments of their own under
benchmarks/.venvs, built at the first call; where one cannot be installed a line says so, and there is no ratio. Every
figure builds its kernels anew, and how long the first run with them takes is a line of its own. Numbers of figures (G1,
...) are those of benchmarks/RESULTS.md. On a GPU our side runs there, and so do peers in TorchRL; those with an
environment of their own stay on the CPU. Products are those of float32 on both devices.
"""

import argparse
import importlib
import os
import sys
import tempfile

import torch

from benchmarks.arguments import Names
from trade_agent.errors import ConfigError
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
CPU_ONLY = ("leak", "scaling", "start")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", action=Names, known=GROUPS)
    parser.add_argument("--repeats", type=int, default=5, help="runs of each side; the median counts")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options = parser.parse_args()
    try:
        device = DeviceManager(name=options.device, strict=True, precision="float32", threads=1).device  # as runs do it
    except ConfigError as error:
        parser.error(error.message)
    torch.compiler.config.force_disable_caches = True  # what an earlier figure has built, a later one builds again
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
        for group in options.only:
            measure = importlib.import_module(f"benchmarks.speed.{group}").measure
            if group not in CPU_ONLY:
                measure(options.repeats, device)
            elif device.type == "cpu":
                measure(options.repeats)
            else:
                print(f"{group}: on the CPU alone", file=sys.stderr)


if __name__ == "__main__":
    main()
