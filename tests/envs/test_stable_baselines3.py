"""Stable-Baselines3 on the gymnasium face: its checker, its training, and what it has to learn there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3 import DQN, PPO, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

from trade_agent.envs.gymnasium_env import MarketGymEnv
from trade_agent.envs.rules import MarketRules
from trade_agent.envs.series import MarketSeries

SeriesFactory = Callable[..., MarketSeries]
NUM_BARS = 60


def small(**settings: Any) -> dict[str, Any]:
    return {"policy_kwargs": {"net_arch": [16]}, "device": "cpu", "seed": 0} | settings


@pytest.fixture
def make_env(random_series: SeriesFactory) -> Callable[..., MarketGymEnv]:
    def build(num_assets: int = 1, **changes: Any) -> MarketGymEnv:
        arguments: dict[str, Any] = {
            "series": random_series(NUM_BARS, num_assets, seed=4),
            "rules": MarketRules(),
            "features": torch.randn(NUM_BARS, num_assets, 3, generator=torch.Generator().manual_seed(0)),
            "rows": range(5, NUM_BARS),
            "episode_bars": 10,
        }
        return MarketGymEnv(**(arguments | changes))

    return build


@pytest.mark.parametrize("num_assets", [1, 3])
@pytest.mark.parametrize("positions", [None, (-1.0, 0.0, 1.0)])
@pytest.mark.filterwarnings("error")
def test_the_checker_has_nothing_to_say(
    num_assets: int, positions: tuple[float, ...] | None, make_env: Callable[..., MarketGymEnv]
) -> None:
    check_env(make_env(num_assets, positions=positions, window_bars=3), warn=True, skip_render_check=True)


@pytest.mark.parametrize(
    ("algorithm", "settings", "num_assets", "positions"),
    [
        (PPO, {"n_steps": 32, "batch_size": 32, "n_epochs": 2}, 2, None),
        (PPO, {"n_steps": 32, "batch_size": 32, "n_epochs": 2}, 2, (-1.0, 0.0, 1.0)),
        (SAC, {"learning_starts": 64, "batch_size": 32, "buffer_size": 500}, 2, None),
        (TD3, {"learning_starts": 64, "batch_size": 32, "buffer_size": 500}, 2, None),
        (DQN, {"learning_starts": 64, "batch_size": 32, "buffer_size": 500}, 1, (-1.0, 0.0, 1.0)),
    ],
)
def test_its_algorithms_train(
    algorithm: type[BaseAlgorithm],
    settings: dict[str, Any],
    num_assets: int,
    positions: tuple[float, ...] | None,
    make_env: Callable[..., MarketGymEnv],
) -> None:
    env = DummyVecEnv([lambda: Monitor(make_env(num_assets, positions=positions))] * 4)
    model = algorithm("MlpPolicy", env, **small(**settings))
    before = [weights.clone() for weights in model.policy.parameters()]
    model.learn(256)
    assert model.ep_info_buffer is not None
    assert [episode["l"] for episode in model.ep_info_buffer] == [10] * 24  # 64 steps of 4 accounts
    after = list(model.policy.parameters())
    assert any(not torch.equal(old, new) for old, new in zip(before, after, strict=True))
    assert all(bool(torch.isfinite(weights).all()) for weights in after)


def test_the_end_of_an_episode_reaches_it_as_a_time_limit(make_env: Callable[..., MarketGymEnv]) -> None:
    """What it bootstraps from is the last observation of the episode, not the first one of the next."""
    env = DummyVecEnv([make_env])
    alone = make_env()
    env.seed(0)
    observation, expected = env.reset(), alone.reset(seed=0)[0]
    for _ in range(10):
        np.testing.assert_array_equal(observation[0], expected)
        observation, _, done, info = env.step(np.array([[0.4]], dtype=np.float32))
        expected = alone.step(np.array([0.4], dtype=np.float32))[0]
    assert done.tolist() == [True]
    assert info[0]["TimeLimit.truncated"] is True
    np.testing.assert_array_equal(info[0]["terminal_observation"], expected)


@pytest.mark.slow
def test_ppo_learns_to_hold_what_rises(make_env: Callable[..., MarketGymEnv]) -> None:
    path = torch.tensor(100.0 * 1.01 ** np.arange(NUM_BARS)).unsqueeze(-1)
    series = MarketSeries(path, path, torch.ones(NUM_BARS, 1, dtype=torch.bool))
    env = make_env(series=series, features=torch.zeros(NUM_BARS, 1, 1))
    model = PPO("MlpPolicy", env, **small(n_steps=256, learning_rate=3e-3))
    model.learn(4096)
    observation, _ = env.reset(options={"start": 20})
    total, done = 0.0, False
    while not done:
        action, _ = model.predict(observation, deterministic=True)
        observation, reward, _, done, _ = env.step(action)
        total += reward
    # The fill is at the first of ten prices, so nine moves can be earned; flat earns nothing and short loses them.
    assert total > 0.9 * 9 * np.log(1.01)
