"""Speed against the peers of each part, side by side on one thread.

    python -m benchmarks.speed [--only env rollout ...] [--repeats 5]

Prints one JSON line a figure: the median of both sides, which take turns. Peers live in environments of their own under
benchmarks/.venvs, built at the first call. Numbers of figures (G1, ...) are those of benchmarks/RESULTS.md.
"""

import argparse
import importlib

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
    parser.add_argument("--only", nargs="+", choices=GROUPS, default=GROUPS)
    parser.add_argument("--repeats", type=int, default=5, help="runs of each side; the median counts")
    options = parser.parse_args()
    DeviceManager(name="cpu", threads=1)  # as runs do it
    for group in options.only:
        importlib.import_module(f"benchmarks.speed.{group}").measure(options.repeats)


if __name__ == "__main__":
    main()
