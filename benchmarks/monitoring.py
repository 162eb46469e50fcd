"""What watching a training costs: SAC with every sink and alarm that needs no server, and with none, by turns.

    python -m benchmarks.monitoring --repeats 5

Prints one JSON line a figure. Times are seconds of the processor in the loop of the training.
"""

import argparse
import contextlib
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.machine import machine
from benchmarks.speed.measure import in_turn
from trade_agent.config.load import compose_config, load_config
from trade_agent.training.monitoring.watch import Watch
from trade_agent.training.stages import rl
from trade_agent.training.unified_manager import UnifiedTrainingManager

RUN = ("stage=rl", "model=sac", "trainer=quick", "trainer.off_policy_env_steps=8000", "device=cpu", "device.threads=1")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.monitoring")
    parser.add_argument("--repeats", type=int, default=5, help="runs a side, after one that does not count")
    repeats = parser.parse_args().repeats
    watching: list[float] = []
    with tempfile.TemporaryDirectory() as name:

        def watched() -> float:
            with timed(Watch, "metrics") as metrics, timed(Watch, "validated") as checks:
                seconds = training_seconds(Path(name), f"monitoring.prometheus={name}/prometheus")
            watching.append((sum(metrics) + sum(checks)) / seconds)
            return seconds

        on, off = in_turn(watched, lambda: training_seconds(Path(name), "monitoring=off"), repeats)
    line("SAC: training with all sinks (TensorBoard, JSON lines, Prometheus) and alarms", "s", on)
    line("SAC: training with monitoring=off", "s", off)
    line("SAC: on to off", "ratio", on / off)
    line("SAC: inside of sinks and alarms, largest share of a run", "%", 100.0 * max(watching))


def training_seconds(folder: Path, *overrides: str) -> float:
    """Of one run, whose forecaster is trained by the first."""
    paths = (f"paths.models={folder}/models", f"paths.outputs={folder}/outputs")
    with timed(rl, "train_agent") as spent:
        UnifiedTrainingManager(load_config(compose_config([*RUN, *paths, *overrides])), quiet=True).run()
    return spent[0]


@contextlib.contextmanager
def timed(owner: Any, name: str) -> Iterator[list[float]]:
    """Seconds of the processor in each call of a function, replaced in its owner for the time."""
    real: Callable[..., Any] = getattr(owner, name)
    spent: list[float] = []

    def call(*arguments: Any, **named: Any) -> Any:
        started = time.process_time()
        try:
            return real(*arguments, **named)
        finally:
            spent.append(time.process_time() - started)

    setattr(owner, name, call)
    try:
        yield spent
    finally:
        setattr(owner, name, real)


def line(figure: str, unit: str, value: float) -> None:
    print(json.dumps({"figure": figure, "unit": unit, "ours": round(value, 4), **machine()}), flush=True)


if __name__ == "__main__":
    main()
