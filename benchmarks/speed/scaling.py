"""G17: memory of the replay buffer, memory of a long series in training, and the cost of a step as the series grows."""

import json
import resource
import subprocess
import sys
from pathlib import Path

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
FEATURES, WIDE = 48, 176  # columns of the table: 16 inputs and what a forecaster makes of them


def measure(repeats: int) -> None:
    replay = ReplayBuffer(capacity=1000, private_dim=6, action_dim=1)
    Figure(
        figure="G17 replay memory of one asset", unit="bytes/transition", ours=replay.bytes_per_transition, target=64
    ).print()
    for columns in (FEATURES, WIDE):
        used = memory_of(columns)
        Figure(
            figure=f"G17 memory of SAC on {LONG:,} bars, a table of 16 inputs and {columns - 16} features",
            unit="GiB",
            ours=used["own"],
            target=4e9 / 2**30,
            remark=f"without the pages of the table's file that the system holds and can give up; {used['peak']:.2f} "
            "with them at the peak",
        ).print()
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
    command = [sys.executable, "-m", "benchmarks.speed.scaling", str(columns)]
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
    own = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    print(json.dumps({"peak": peak / 2**20, "own": int(own.split()[1]) / 2**20}))


if __name__ == "__main__":
    long_run(int(sys.argv[1]))
