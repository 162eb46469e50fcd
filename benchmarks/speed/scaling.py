"""G17: memory of the replay buffer, memory of a long series in training, and the cost of a step as the series grows."""

import json
import resource
import subprocess
import sys

import torch

from benchmarks.speed.env import random_walk
from benchmarks.speed.frozen import train_on
from benchmarks.speed.measure import Figure, in_turn, seconds
from benchmarks.speed.peer import ROOT
from trade_agent.agents.replay import ReplayBuffer
from trade_agent.envs.batched import TrainingMarket
from trade_agent.envs.rules import MarketRules
from trade_agent.envs.series import MarketSeries

LONG, SHORT, FEATURES = 10_000_000, 10_000, 48


def measure(repeats: int) -> None:
    replay = ReplayBuffer(capacity=1000, private_dim=6, action_dim=1)
    Figure(
        figure="G17 replay memory of one asset", unit="bytes/transition", ours=replay.bytes_per_transition, target=64
    ).print()
    child = subprocess.run(
        [sys.executable, "-m", "benchmarks.speed.scaling"], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True
    )
    Figure(
        figure=f"G17 peak memory of SAC on {LONG:,} bars with 16 inputs and 32 features",
        unit="GiB",
        ours=json.loads(child.stdout)["peak_gib"],
        target=4e9 / 2**30,
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


def long_run() -> None:
    """What the subprocess does: prices, inputs and features of ten million bars, and an agent that trains on them."""
    price = torch.ones(LONG, 1, dtype=torch.float64)
    series = MarketSeries(price, price.clone(), torch.ones(LONG, 1, dtype=torch.bool))
    train_on(series, torch.zeros(LONG, 1, FEATURES))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 2**30
    print(json.dumps({"peak_gib": peak}))


if __name__ == "__main__":
    long_run()
