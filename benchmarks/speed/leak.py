"""G7: PPO until it has 90 % of what the leak market allows, against Stable-Baselines3 on its gymnasium face.

Ours has the settings of benchmarks.learning, but four epochs; the peer has its own defaults and the same rewards.
Both are judged on the same unseen bars, ours each 4,096 steps, the peer each 10,240 (five of its rollouts); that time
does not count. A peer that has not arrived after PATIENCE times our time is stopped there, and the ratio is a bound.
"""

import statistics
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.learning.setting import Policy
from benchmarks.learning.signal_markets import SignalAgent, leak_growth, leak_policy, prepare, solved_leak
from benchmarks.learning.tasks import TASKS
from benchmarks.speed.measure import Figure, seconds
from benchmarks.speed.peer import Peer, reported_if_missing
from trade_agent.training.stages.context import StageContext

SHARE = 0.9
FIGURE = f"G7 PPO to {SHARE:.0%} of the optimum of the leak market"
ROUND, PEER_ROUND = 4_096, 10_240  # env steps between two looks
PATIENCE = 25.0
SEEDS = 5  # at most: a run may take the peer minutes


class ArrivedError(Exception):
    """Ends a training that is good enough."""


def measure(repeats: int) -> None:
    with reported_if_missing(FIGURE, "Stable-Baselines3"):
        races_of(repeats)


def races_of(repeats: int) -> None:
    races = [race(seed) for seed in range(1, min(repeats, SEEDS) + 1)]
    stopped = sum(not each.arrived for each in races)
    Figure(
        figure=FIGURE,
        unit="s",
        ours=statistics.median(each.ours for each in races),
        peer=statistics.median(each.peer for each in races),
        peer_name="Stable-Baselines3, its defaults",
        ratio=statistics.median(each.peer / each.ours for each in races),
        target=20.0,
        agrees=None,
        versions=races[0].versions,
        remark=f"{len(races)} seeds"
        + (f"; in {stopped} the peer was stopped before it arrived: the ratio is a lower bound" if stopped else ""),
    ).print()


@dataclass(frozen=True, slots=True, kw_only=True)
class Race:
    """Seconds of both sides; arrived: whether the peer did."""

    ours: float
    peer: float
    arrived: bool
    versions: dict[str, str]


def race(seed: int) -> Race:
    with tempfile.TemporaryDirectory() as folder, Peer("stable_baselines3") as peer:
        task = TASKS["leak"]
        overrides = (
            *task.overrides,
            *task.variants["ppo"],
            "model.epochs=4",
            f"trainer.validation_checks={task.env_steps // ROUND}",
        )
        context, learner, generator = prepare(overrides, seed, Path(folder))
        growth = leak_growth(context.dataset)
        optimum = leak_policy(solved_leak(context.dataset), context.dataset.bars.signals["leak"][:, 0])
        wanted = SHARE * growth(optimum)

        def good(policy: Policy) -> bool:
            return growth(policy) >= wanted

        ours = our_seconds(context, learner, generator, task.env_steps, good)
        versions = start_peer(peer, Path(folder), context, learner, seed)
        theirs, arrived = peer_seconds(peer, Path(folder), learner, good, PATIENCE * ours)
    return Race(ours=ours, peer=theirs, arrived=arrived, versions=versions)


def our_seconds(
    context: StageContext,
    learner: SignalAgent,
    generator: torch.Generator,
    env_steps: int,
    good: Callable[[Policy], bool],
) -> float:
    """Seconds of training until it is good. Raises RuntimeError when it does not within `env_steps`."""
    looking = 0.0

    def check(_: int) -> None:
        nonlocal looking
        found: list[bool] = []
        looking += seconds(lambda: found.append(good(learner.act)))
        if found[0]:
            raise ArrivedError

    def train() -> None:
        try:
            learner.train(context, generator, env_steps, "leak ppo", check)
        except ArrivedError:
            return
        raise RuntimeError(f"our PPO has not arrived within {env_steps} steps")

    return seconds(train) - looking


def start_peer(peer: Peer, folder: Path, context: StageContext, learner: SignalAgent, seed: int) -> dict[str, str]:
    dataset = context.dataset
    path = str(folder / "market.npz")
    series, rows = dataset.series, dataset.split.train
    np.savez(path, open=series.open.numpy(), close=series.close.numpy(), features=dataset.features.numpy())
    versions: dict[str, str] = peer.ask(
        "leak",
        path=path,
        rules=asdict(dataset.rules),
        rows=[max(rows.start, dataset.first_row), rows.stop],
        episode_bars=context.episode_bars,
        reward_scale=learner.model.reward_scale,
        seed=seed,
    )
    return versions


def peer_seconds(
    peer: Peer, folder: Path, learner: SignalAgent, good: Callable[[Policy], bool], limit: float
) -> tuple[float, bool]:
    """Seconds of the peer's training, and whether it arrived."""
    taken, weights = 0.0, str(folder / "weights.npz")
    while taken < limit:
        taken += peer.ask("leak_steps", count=PEER_ROUND, path=weights)
        if good(peer_policy(learner, dict(np.load(weights)))):
            return taken, True
    return taken, False


def peer_policy(learner: SignalAgent, weights: dict[str, np.ndarray]) -> Policy:
    """The peer's deterministic policy: the mean of its Gaussian, clipped to the actions."""
    layers: list[nn.Module] = []
    for name in ("mlp_extractor.policy_net.0", "mlp_extractor.policy_net.2", "action_net"):
        weight = torch.as_tensor(weights[f"{name}.weight"])
        layer = nn.Linear(weight.shape[1], weight.shape[0])
        layer.load_state_dict({"weight": weight, "bias": torch.as_tensor(weights[f"{name}.bias"])})
        layers += [layer, nn.Tanh()]
    network = nn.Sequential(*layers[:-1])

    def act(t: Tensor, account: Tensor) -> Tensor:
        action: Tensor = network(learner.observe(t, account)).clamp(-1.0, 1.0)
        return action

    return act
