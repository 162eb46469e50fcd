"""On a GPU: what `device.capture` gains in the training loops, how busy these keep it (G16), steps of the market (G4).

Both sides of a loop do the same updates, and an agent by itself must end with the same weights. Without a GPU there is
nothing to measure.
"""

import sys
from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.speed.env import random_walk
from benchmarks.speed.loops import ALGORITHMS, BATCH, NUM_ENVS, AgentLoop, agent_loop
from benchmarks.speed.measure import Figure, in_turn
from trade_agent.envs.batched import TrainingMarket
from trade_agent.envs.rules import MarketRules
from trade_agent.envs.series import MarketSeries
from trade_agent.training.compiling import seconds
from trade_agent.training.graphs import CudaGraphs, Graphs

UPDATES, ACCOUNTS, STEPS = 1_000, 2**20, 100


def measure(repeats: int, device: torch.device) -> None:
    if device.type == "cpu":
        print("cuda: needs --device cuda", file=sys.stderr)
        return
    for algorithm in ALGORITHMS:
        for joint in (False, True):
            captured_loop(algorithm, joint=joint, updates=UPDATES, device=device, graphs=CudaGraphs, repeats=repeats)
        busy_loop(algorithm, updates=UPDATES, device=device)
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


def busy_loop(algorithm: str, *, updates: int, device: torch.device) -> None:
    """How busy the captured loop keeps the GPU; what its profiler adds on the host counts against it."""
    made = agent_loop(algorithm, joint=False, updates=updates, device=device, graphs=CudaGraphs)
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        seconds(made.run)
    on_gpu = [event.time_range for event in seen.events() if event.device_type == DeviceType.CUDA]
    busy = busy_share([(span.start, span.end) for span in on_gpu])
    Figure(
        figure=f"G16 GPU busy, {algorithm} captured, {NUM_ENVS} accounts, batch {BATCH}",
        unit="of the second half of the time",
        ours=busy,
        target=0.9,
        device=device.type,
        remark="the profiler saw no kernel" if busy is None else "",
    ).print()


def busy_share(spans: Iterable[tuple[float, float]]) -> float | None:
    """Share of the second half of the time, from the first start to the last end, that lies within any of the spans.

    None where there are no spans.
    """
    ordered = sorted(spans)
    if not ordered:
        return None
    first, last = ordered[0][0], max(end for _, end in ordered)
    done = middle = (first + last) / 2  # in the first half work is recorded
    busy = 0.0
    for start, end in ordered:
        busy += max(end - max(start, done), 0.0)
        done = max(done, end)
    return busy / (last - middle)


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
