"""Throughput of training in one process and in two, and how soon both are at work again when one was killed.

    python -m benchmarks.processes [--repeats 3] [--only forecaster PPO SAC restart]

One and two processes run by turns on the same work, each process on one thread. Prints one JSON line a figure.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.machine import machine
from trade_agent.config.load import compose_config, load_config
from trade_agent.config.schema import CnnLstmModel, PpoModel
from trade_agent.training.checkpoint import Session
from trade_agent.training.unified_manager import UnifiedTrainingManager

COMMON = ("device=cpu", "trainer=smoke", "trainer.cross_fit_folds=0", "monitoring=off")
FORECASTER = ("stage=cnn_lstm", "trainer.forecaster_epochs=12", "trainer.forecaster_patience=12")
PPO = ("stage=rl", "model=ppo", "trainer.on_policy_env_steps=65536")
SAC = ("stage=rl", "model=sac", "trainer.off_policy_env_steps=8000")
WORKS = {
    "forecaster": FORECASTER,
    "forecaster, batch 1024, LSTM of 128": (
        *FORECASTER, "model.batch_size=1024", "model.conv_channels=[64,64]", "model.lstm_hidden=128"
    ),
    "PPO": PPO,
    "PPO, 64 environments, batch 2048, [512, 512]": (
        *PPO, "model.num_envs=64", "model.batch_size=2048", "model.hidden_sizes=[512,512]"
    ),
    "SAC": SAC,
    "SAC, batch 1024, [512, 512]": (
        *SAC, "trainer.off_policy_env_steps=2000", "model.batch_size=1024", "model.hidden_sizes=[512,512]"
    ),
}  # fmt: skip
KILLED_AT = 100  # boundary of SAC


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", nargs="+", default=["forecaster", "PPO", "SAC", "restart"], help="what to measure")
    parser.add_argument("--worker", nargs=3, metavar=("WORK", "FOLDER", "KILL"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work, folder, kill = arguments.worker
        train(work, Path(folder), kill=kill == "kill")
        return
    for work in [work for work in WORKS if work.split(",")[0] in arguments.only]:
        pairs = [(throughput(work, 1), throughput(work, 2)) for _ in range(arguments.repeats)]
        one, two = (statistics.median(side) for side in zip(*pairs, strict=True))
        unit = "windows/s" if work.startswith("forecaster") else "env steps/s"
        line(f"{work}: one process, two", unit, one=round(one, 1), two=round(two, 1), speed_up=round(two / one, 3))
    if "restart" in arguments.only:
        seconds = [restart_seconds() for _ in range(arguments.repeats)]
        line("SAC: a worker is killed, the next step of both", "s", ours=round(statistics.median(seconds), 2))


def throughput(work: str, processes: int) -> float:
    """What one run of `work` does in a second, over the second half of its steps."""
    with tempfile.TemporaryDirectory() as folder:
        start(work, folder, processes)
        return float((Path(folder) / "throughput").read_text())


def restart_seconds() -> float:
    """From the SIGKILL of the second of two workers to the first step that both have made after it."""
    with tempfile.TemporaryDirectory() as folder:
        start("SAC", folder, 2, kill=True)
        killed, resumed = (float((Path(folder) / name).read_text()) for name in ("killed", "resumed"))
        return resumed - killed


def start(work: str, folder: str, processes: int, *, kill: bool = False) -> None:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "1"]
    command = [sys.executable, *(launcher if processes > 1 else []), "-m", "benchmarks.processes"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    subprocess.run(
        [*command, "--worker", work, folder, "kill" if kill else "whole"],
        env=environment,
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=None if not kill else subprocess.DEVNULL,
    )


def train(work: str, folder: Path, *, kill: bool) -> None:
    """One process of a run. The first one writes down what was done in a second."""
    checkpoints = "trainer.checkpoint_seconds=1" if kill else "trainer.checkpoint_seconds=86400"
    options = [*COMMON, *WORKS[work], checkpoints, f"paths.models={folder}/models", f"paths.outputs={folder}/outputs"]
    config = load_config(compose_config(options))
    piece = "forecaster" if isinstance(config.model, CnnLstmModel) else config.model.name
    times: list[float] = []
    observe_boundaries(piece, times, killer(folder) if kill else lambda count: None)
    UnifiedTrainingManager(config, run_dir=folder / "run", quiet=True).run()
    if os.environ.get("RANK", "0") == "0" and not kill:
        half = times[len(times) // 2 : -1]  # the last step has the validation check in it
        (folder / "throughput").write_text(str(per_boundary(config.model) * (len(half) - 1) / (half[-1] - half[0])))


def per_boundary(model: object) -> int:
    """Windows or environment steps between two boundaries."""
    if isinstance(model, CnnLstmModel):
        return model.batch_size
    return model.num_envs * (model.rollout_steps if isinstance(model, PpoModel) else 1)  # type: ignore[attr-defined]


def observe_boundaries(piece: str, times: list[float], each: Callable[[int], None]) -> None:
    boundary = Session.boundary

    def observed(session: Session, *, due: bool = False) -> None:
        boundary(session, due=due)
        if session.piece == piece:
            times.append(time.perf_counter())
            each(len(times))

    Session.boundary = observed  # type: ignore[method-assign,assignment]


def killer(folder: Path) -> Callable[[int], None]:
    """Kills the second worker of the first attempt, and writes down when, and when the next attempt is at work."""

    def each(count: int) -> None:
        first_attempt = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
        if first_attempt and os.environ["RANK"] == "1" and count == KILLED_AT:
            (folder / "killed").write_text(str(time.time()))
            os.kill(os.getpid(), signal.SIGKILL)
        if not first_attempt and os.environ["RANK"] == "0" and count == 1:
            (folder / "resumed").write_text(str(time.time()))

    return each


def line(figure: str, unit: str, **values: float) -> None:
    load = round(os.getloadavg()[0], 1)
    print(json.dumps({"figure": figure, "unit": unit, **values, "load": load, **machine()}), flush=True)


if __name__ == "__main__":
    main()
