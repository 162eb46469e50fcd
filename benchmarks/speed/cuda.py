"""On a GPU: what `device.capture` gains in the training loops, and steps of the market by themselves (G4).

Both sides of a loop do the same updates, and an agent by itself must end with the same weights. Without a GPU there is
nothing to measure.
"""

import sys
from collections.abc import Callable
from functools import partial

import torch

from benchmarks.speed.env import random_walk
from benchmarks.speed.loops import ALGORITHMS, BATCH, NUM_ENVS, AgentLoop, agent_loop
from benchmarks.speed.measure import Figure, in_turn
from trade_agent.envs.batched import TrainingMarket
from trade_agent.envs.rules import MarketRules
from trade_agent.envs.series import MarketSeries
from trade_agent.training.compiling import seconds
from trade_agent.training.graphs import CudaGraphs, Graphs

UPDATES, ACCOUNTS, STEPS = 1_000, 2**20, 100


def measure(repeats: int) -> None:
    if not torch.cuda.is_available():
        print("cuda: needs a GPU", file=sys.stderr)
        return
    device = torch.device("cuda")
    for algorithm in ALGORITHMS:
        for joint in (False, True):
            captured_loop(algorithm, joint=joint, updates=UPDATES, device=device, graphs=CudaGraphs, repeats=repeats)
    market_steps(ACCOUNTS, device=device, repeats=repeats)


def captured_loop(
    algorithm: str,
    *,
    joint: bool,
    updates: int,
    device: torch.device,
    graphs: Callable[[torch.Generator], Graphs],
    repeats: int,
) -> None:
    """Whole loops, recording included, with their set-up left out."""
    loop = partial(agent_loop, algorithm, joint=joint, updates=updates, device=device)

    def run(graphs: Callable[[torch.Generator], Graphs] | None) -> tuple[float, AgentLoop]:
        made = loop(graphs=graphs)
        return seconds(made.run), made

    (_, replayed), (_, plain) = run(graphs), run(None)
    pairs = zip(replayed.learner.changed(), plain.learner.changed(), strict=True)
    same = all(torch.allclose(one, other, rtol=1e-3, atol=1e-5) for one, other in pairs)
    ours, other = in_turn(lambda: run(graphs)[0], lambda: run(None)[0], repeats)
    Figure(
        figure=f"{algorithm}{', jointly with its forecaster,' if joint else ''} captured, {NUM_ENVS} accounts, "
        f"batch {BATCH}",
        unit="updates/s",
        ours=updates / ours,
        peer=updates / other,
        peer_name="the same without capture",
        ratio=other / ours,
        agrees=None if joint else same,
        device=device.type,
        remark="gradients of the forecaster are added in any order: no two runs are alike" if joint else "",
    ).print()


def market_steps(accounts: int, *, device: torch.device, repeats: int) -> None:
    walk = random_walk(100_000)
    market = TrainingMarket(
        series=MarketSeries(*(values.to(device) for values in (walk.open, walk.close, walk.tradable))),
        rules=MarketRules(),
        rows=range(walk.num_bars),
        num_envs=accounts,
        episode_bars=256,
        reward_scale=1.0,
        generator=torch.Generator(device).manual_seed(0),
        compiled=device.type == "cuda",
    )
    action = torch.zeros(accounts, 1, device=device)

    def steps() -> None:
        for _ in range(STEPS):
            market.step(action)

    ours, _ = in_turn(lambda: seconds(steps), lambda: 0.0, repeats)
    Figure(
        figure=f"G4 market with new episodes, {accounts} accounts",
        unit="env steps/s",
        ours=STEPS * accounts / ours,
        target=1e9,
        device=device.type,
    ).print()
