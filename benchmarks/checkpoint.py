"""What checkpoints cost, and what they are good for.

    python -m benchmarks.checkpoint              # seconds in boundaries and in writing during one run of SAC
    python -m benchmarks.checkpoint --kills 20   # a run of all stages that is killed 20 times

Prints one JSON line a figure. Exit code 1 where a kill was not survived.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.kills import figures, killed_and_left_alone
from benchmarks.machine import machine
from trade_agent.config.load import compose_config, load_config
from trade_agent.training.checkpoint import Session
from trade_agent.training.unified_manager import UnifiedTrainingManager


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.checkpoint")
    parser.add_argument("--kills", type=int, default=0, help="kill a run so often, and measure nothing else")
    parser.add_argument("--seed", type=int, default=1, help="of the moments of the kills")
    options = parser.parse_args()
    if not options.kills:
        measure_cost()
        return 0
    with tempfile.TemporaryDirectory() as name:
        outcome = killed_and_left_alone(Path(name), kills=options.kills, seed=options.seed)
    for figure, unit, value in figures(outcome):
        line(figure, unit, value)
    for stage, names in outcome.wrong.items():
        print(f"{stage} ended otherwise: {', '.join(names)}", file=sys.stderr)
    return 1 if outcome.wrong else 0


def measure_cost() -> None:
    """Seconds in `Session.boundary` and in the writing of checkpoints during one run of SAC."""
    spent: dict[str, list[float]] = {"boundary": [], "write": []}
    sizes: list[int] = []
    boundary, write = Session.boundary, Session.write
    first: list[float] = []

    def timed_boundary(session: Session, *, due: bool = False) -> None:
        started = time.perf_counter()
        boundary(session, due=due)
        if session.piece == "sac":
            first[:] = [first[0] if first else started, time.perf_counter()]
            spent["boundary"].append(time.perf_counter() - started)

    def timed_write(session: Session) -> None:
        started = time.perf_counter()
        write(session)
        if session.piece == "sac":
            spent["write"].append(time.perf_counter() - started)
            sizes.append(max(path.stat().st_size for path, _ in session._files()))

    Session.boundary, Session.write = timed_boundary, timed_write  # type: ignore[method-assign,assignment]
    with tempfile.TemporaryDirectory() as name:
        options = ["stage=rl", "model=sac", "trainer=quick", "device=cpu", f"paths.models={name}/models"]
        config = load_config(compose_config([*options, f"paths.outputs={name}/outputs"]))
        UnifiedTrainingManager(config, quiet=True).run()
    loop, steps, one = first[1] - first[0], len(spent["boundary"]) - 1, max(spent["write"])
    step = (loop - sum(spent["boundary"][1:])) / steps
    idle = (sum(spent["boundary"]) - sum(spent["write"])) / len(spent["boundary"])
    line("SAC, quick: step of the loop (environments and updates)", "ms", 1e3 * step)
    line("SAC, quick: boundary that writes nothing, of a step", "%", 100.0 * idle / step)
    line("SAC, quick: longest checkpoint", "ms", 1e3 * one)
    line("SAC, quick: longest checkpoint, of a step", "%", 100.0 * one / step)
    line("SAC, quick: largest checkpoint", "MiB", max(sizes) / 2**20)
    line("SAC, quick: one checkpoint a minute, of the time", "%", 100.0 * one / 60.0)
    line("SAC, quick: checkpoints of this run, of its loop", "%", 100.0 * sum(spent["write"]) / loop)


def line(figure: str, unit: str, value: float) -> None:
    print(json.dumps({"figure": figure, "unit": unit, "ours": round(value, 4), **machine()}), flush=True)


if __name__ == "__main__":
    sys.exit(main())
