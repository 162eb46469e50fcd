"""G17: memory of the replay buffer, memory of a long series in training, and the cost of a step as the series grows.

    python -m benchmarks.speed.scaling --bars 10_000_000

measures `train.py` alone, on so many one-minute bars; as part of the speed benchmark it is a million. The target
is that of ten million.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from benchmarks.speed.env import random_walk
from benchmarks.speed.frozen import train_on
from benchmarks.speed.measure import Figure, in_turn, seconds
from benchmarks.speed.peer import ROOT
from trade_agent.agents.replay import ReplayBuffer
from trade_agent.envs.batched import TrainingMarket
from trade_agent.envs.rules import MarketRules
from trade_agent.envs.series import MarketSeries
from trade_agent.networks.tables import new_table

LONG, SHORT = 10_000_000, 10_000
# 16 inputs, and a forecaster with the 32 hidden units of conf/model/cnn_lstm.yaml. The budget is as small as can be:
# memory goes by the bars.
INPUTS = (
    "[{name: log_return}, {name: overnight_gap}, {name: intraday_return}, {name: bar_range}, "
    "{name: realised_volatility}, {name: volume_zscore}, {name: rsi}, {name: bollinger}, {name: atr}, "
    "{name: ema_distance}, {name: dollar_volume}, {name: log_volume_change}, {name: winsorize}, "
    "{name: standard_scaler}, {name: clip}]"
)
JOB = (
    *("stage=rl", "model=sac", "data=feather", f"preprocessing.steps={INPUTS}", "device=cpu", "trainer=smoke"),
    *("evaluation.train_fraction=0.9", "evaluation.validation_fraction=0.04", "evaluation.bootstrap_samples=100"),
    *("trainer.forecaster_epochs=1", "trainer.cross_fit_folds=0", "trainer.validation_checks=1"),
    *("upstream.cnn_lstm.model.window_bars=5", "upstream.cnn_lstm.model.batch_size=65536"),
)
FEATURES, WIDE = 48, 176  # columns of the table: 16 inputs and what a forecaster makes of them


def measure(repeats: int) -> None:
    replay = ReplayBuffer(capacity=1000, private_dim=6, action_dim=1)
    Figure(
        figure="G17 replay memory of one asset", unit="bytes/transition", ours=replay.bytes_per_transition, target=64
    ).print()
    for columns in (FEATURES, WIDE):
        used = memory_of(columns)
        Figure(
            figure=f"G17 memory of SAC's loop alone on {LONG:,} bars, a table of 16 inputs and {columns - 16} features",
            unit="GiB",
            ours=used["own"],
            target=4e9 / 2**30,
            remark=f"without the pages of the table's file that the system holds and can give up; {used['peak']:.2f} "
            "with them at the peak",
        ).print()
    measure_job(1_000_000)
    long, short = (market(bars) for bars in (1_000_000, SHORT))
    action = torch.zeros(1024, 1)
    side, other = in_turn(
        lambda: seconds(lambda: [long.step(action) for _ in range(100)]),
        lambda: seconds(lambda: [short.step(action) for _ in range(100)]),
        repeats,
    )
    Figure(
        figure="G17 step of 1024 accounts on 1,000,000 bars against 10,000 bars",
        unit="us",
        ours=1e4 * side,
        peer=1e4 * other,
        peer_name="ourselves on the short series",
        ratio=other / side,
    ).print()


def market(num_bars: int) -> TrainingMarket:
    return TrainingMarket(
        series=random_walk(num_bars),
        rules=MarketRules(),
        rows=range(num_bars),
        num_envs=1024,
        episode_bars=256,
        reward_scale=1.0,
        generator=torch.Generator().manual_seed(0),
    )


def memory_of(columns: int) -> dict[str, float]:
    """GiB of a process that trains on ten million bars."""
    command = [sys.executable, "-m", "benchmarks.speed.scaling", "--loop", str(columns)]
    child = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    used: dict[str, float] = json.loads(child.stdout)
    return used


def long_run(columns: int) -> None:
    """What the subprocess does: prices and features of ten million bars, and an agent that trains on them."""
    price = torch.ones(LONG, 1, dtype=torch.float64)
    series = MarketSeries(price, price.clone(), torch.ones(LONG, 1, dtype=torch.bool))
    table = new_table(LONG, 1, columns, like=torch.zeros(1))
    for block in table.split(2**16):
        block.fill_(0.5)
    train_on(series, table)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"peak": peak / 2**20, "own": own_memory("self")}))


def own_memory(process: int | str) -> float:
    """GiB that a process holds and the system cannot take back: without pages of files, unless these lie in memory."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return sum(int(line.split()[1]) / 2**20 for line in lines if line.startswith(("RssAnon:", "RssShmem:")))


def measure_job(num_bars: int) -> None:
    """The way of a user: `train.py` reads a file, fits features, trains a forecaster and an agent, and judges both."""
    with tempfile.TemporaryDirectory() as folder:
        write_minutes(Path(folder) / "bars.feather", num_bars)
        command = [sys.executable, str(ROOT / "train.py"), *JOB, "data.path=bars.feather", "hydra.run.dir=run"]
        own, before = 0.0, resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
        with open(f"{folder}/log", "wb") as log:
            job = subprocess.Popen(command, cwd=folder, stdout=log, stderr=subprocess.STDOUT)
            while job.poll() is None:
                own = max(own, own_memory(job.pid))
                time.sleep(0.1)
        if job.returncode:
            raise SystemExit(Path(f"{folder}/log").read_text()[-2000:])
    Figure(
        figure=f"G17 memory of train.py on {num_bars:,} bars: file, 16 inputs, forecaster, SAC, verdict",
        unit="GiB",
        ours=own,
        target=4e9 / 2**30 if num_bars >= LONG else None,
        remark="the highest of samples at every tenth of a second, without the pages of files that the system can give "
        f"up; {resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before:.0f} s of the processor, nearly without "
        "training; trainer.cross_fit_folds=0",
    ).print()


def write_minutes(path: Path, num_bars: int) -> None:
    """A random walk in one-minute bars of a market that never closes."""
    drawn = np.random.default_rng(0)
    close = 100.0 * np.exp(np.cumsum(2e-4 * drawn.standard_normal(num_bars)))
    open_ = np.concatenate(([100.0], close[:-1])) * np.exp(5e-5 * drawn.standard_normal(num_bars))
    reach = np.exp(1e-4 * np.abs(drawn.standard_normal(num_bars)))
    columns = {
        "time": pd.date_range("2005-01-01", periods=num_bars, freq="min"),
        "open": open_,
        "high": np.maximum(open_, close) * reach,
        "low": np.minimum(open_, close) / reach,
        "close": close,
        "volume": drawn.integers(1, 1000, num_bars).astype(np.float64),
    }
    pd.DataFrame(columns).to_feather(path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    one = parser.add_mutually_exclusive_group(required=True)
    one.add_argument("--bars", type=int, help="measure train.py on so many")
    one.add_argument("--loop", type=int, metavar="COLUMNS", help="what a measurement of the loop starts by itself")
    arguments = parser.parse_args()
    if arguments.bars:
        measure_job(arguments.bars)
    else:
        long_run(arguments.loop)
