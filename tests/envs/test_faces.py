"""Every face of the market is the pure step: one tape of actions through all of them, with ruin and restarts.

Episodes start at one row, because every face draws its start rows from a generator of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from trade_agent.envs.batched import TrainingMarket
from trade_agent.envs.episodes import observe
from trade_agent.envs.gymnasium_env import MarketGymEnv, MarketVectorEnv
from trade_agent.envs.market import auto_reset, reset, step
from trade_agent.envs.rules import MarketRules, position_actions
from trade_agent.envs.series import MarketSeries
from trade_agent.envs.torchrl_env import MarketEnv

SeriesFactory = Callable[..., MarketSeries]
NUM_BARS, FIRST, LENGTH, NUM_ENVS, NUM_STEPS = 40, 5, 12, 16, 60
WINDOW_BARS = 3
POSITIONS = (-1.0, -0.3, 0.0, 1.0)


class Tape(NamedTuple):
    """What a face said at each step: S steps of N accounts. The last observation is the one before any restart."""

    observation: Tensor  # [S, N, D] float32, before the action
    reward: Tensor  # [S, N] float32
    terminated: Tensor  # [S, N] bool
    truncated: Tensor  # [S, N] bool
    last_observation: Tensor  # [S, N, D] float32, after the step


def tape(steps: list[tuple[Any, ...]]) -> Tape:
    columns = (torch.stack([torch.as_tensor(value) for value in column]) for column in zip(*steps, strict=True))
    observation, reward, terminated, truncated, last = columns
    return Tape(observation, reward.to(torch.float32), terminated, truncated, last)


class Case(NamedTuple):
    series: MarketSeries
    rules: MarketRules
    features: Tensor
    actions: Tensor  # [S, N, A], in [-1, 1] or indices of POSITIONS
    positions: tuple[float, ...] | None

    @property
    def arguments(self) -> dict[str, Any]:
        rows = range(FIRST, FIRST + LENGTH + 1)
        return {
            "series": self.series,
            "rules": self.rules,
            "features": self.features,
            "rows": rows,
            "episode_bars": LENGTH,
            "window_bars": WINDOW_BARS,
            "positions": self.positions,
        }

    @property
    def continuous(self) -> Tensor:
        return self.actions if self.positions is None else position_actions(self.rules, self.positions)[self.actions]


@pytest.fixture(
    params=[
        {"num_assets": 1, "positions": None},
        {"num_assets": 2, "positions": None, "latency_bars": 2, "reward": "differential_sharpe"},
        {"num_assets": 2, "positions": POSITIONS, "fill": "same_close"},
        {"num_assets": 1, "positions": POSITIONS, "fill": "next_close", "latency_bars": 1},
    ],
    ids=["one", "portfolio", "discrete-portfolio", "discrete-one"],
)
def case(request: pytest.FixtureRequest, random_series: SeriesFactory) -> Case:
    settings = dict(request.param)
    num_assets, positions = settings.pop("num_assets"), settings.pop("positions")
    # High leverage close to the maintenance level: a good part of the episodes end in ruin.
    rules = MarketRules(max_weight=8.0, max_leverage=8.0, maintenance=0.7, impact=1e-4, commission_min=1.0, **settings)
    generator = torch.Generator().manual_seed(1)
    shape = (NUM_STEPS, NUM_ENVS, num_assets)
    if positions is None:
        actions = torch.rand(shape, generator=generator).mul(2).sub(1)
    else:
        actions = torch.randint(len(positions), shape, generator=generator)
    features = torch.randn(NUM_BARS, num_assets, 3, generator=generator)
    return Case(random_series(NUM_BARS, num_assets, 3, 0.02, True), rules, features, actions, positions)


@pytest.fixture
def pure(case: Case) -> Tape:
    """The tape by the pure functions, with ruin and the end of episodes in it."""
    start = torch.full((NUM_ENVS,), FIRST)
    state, steps = reset(case.series, case.rules, start, start + LENGTH), []
    for action in case.continuous:
        before = observe(case.series, case.rules, case.features, state, WINDOW_BARS)
        after, result = step(case.series, case.rules, state, action)
        last = observe(case.series, case.rules, case.features, after, WINDOW_BARS)
        steps.append((before, result.reward, result.terminated, result.truncated, last))
        done = result.terminated | result.truncated
        state = auto_reset(case.series, case.rules, after, done, start, start + LENGTH)
    pure = tape(steps)
    assert int(pure.terminated.sum()) > 10
    assert int(pure.truncated.sum()) > 10
    return pure


def assert_same(face: Tape, pure: Tape) -> None:
    for name, mine, expected in zip(Tape._fields, face, pure, strict=True):
        assert mine.dtype == expected.dtype
        assert torch.equal(mine, expected), name


def test_torchrl(case: Case, pure: Tape) -> None:
    env = MarketEnv(**case.arguments, num_envs=NUM_ENVS)
    current, steps = env.reset(), []
    for action in case.actions:
        stepped, current = env.step_and_maybe_reset(current.set("action", action))
        after = stepped["next"]
        flags = (after[name].squeeze(-1).clone() for name in ("terminated", "truncated"))
        steps.append(
            (stepped["observation"].clone(), after["reward"].squeeze(-1).clone(), *flags, after["observation"].clone())
        )
    assert_same(tape(steps), pure)


def test_torchrl_rollout(case: Case, pure: Tape) -> None:
    env = MarketEnv(**case.arguments, num_envs=NUM_ENVS)
    actions = iter(case.actions)
    rollout = env.rollout(NUM_STEPS, lambda observation: next(actions), break_when_any_done=False).transpose(0, 1)
    after = rollout["next"]
    scalars = (after[name].squeeze(-1) for name in ("reward", "terminated", "truncated"))
    assert_same(Tape(rollout["observation"], *scalars, after["observation"]), pure)


def test_gymnasium_vector(case: Case, pure: Tape) -> None:
    env = MarketVectorEnv(**case.arguments, num_envs=NUM_ENVS)
    (observation, _), steps = env.reset(), []
    for action in case.actions.numpy():
        current, reward, terminated, truncated, info = env.step(action[:, 0] if discrete_scalar(case) else action)
        done = terminated | truncated
        last = np.where(done[:, None], info["final_obs"], current) if done.any() else current
        steps.append((observation, reward, terminated, truncated, last))
        observation = current
    assert_same(tape(steps), pure)


def test_gymnasium_single(case: Case, pure: Tape) -> None:
    for account in (0, 7):
        env = MarketGymEnv(**case.arguments)
        (observation, _), steps = env.reset(), []
        for action in case.actions[:, account].numpy():
            last, reward, terminated, truncated, _ = env.step(int(action[0]) if discrete_scalar(case) else action)
            steps.append((observation, reward, terminated, truncated, last))
            observation = env.reset()[0] if terminated or truncated else last
        alone = tape(steps)
        for name, mine, expected in zip(Tape._fields, alone, pure, strict=True):
            # A batch of one takes the scalar code of log1p, which may differ in the last digit of a float.
            torch.testing.assert_close(mine, expected[:, account], rtol=1e-6, atol=1e-7, msg=name)


def test_training_market(case: Case, pure: Tape) -> None:
    """Its first episodes are staggered, so each account plays the tape from its own second episode on."""
    market = TrainingMarket(
        series=case.series,
        rules=case.rules,
        rows=case.arguments["rows"],
        num_envs=NUM_ENVS,
        episode_bars=LENGTH,
        reward_scale=1.0,
        generator=torch.Generator().manual_seed(0),
    )
    late = market.state.end - market.state.t
    assert sorted(set(late.tolist())) == list(range(1, LENGTH + 1))
    idle = torch.full((NUM_ENVS, case.series.num_assets), 0.0)
    steps = []
    for s in range(NUM_STEPS + LENGTH):
        played = (s - late).clamp(0, NUM_STEPS - 1)
        action = case.continuous[played, torch.arange(NUM_ENVS)]
        steps.append(market.step(torch.where((s >= late).unsqueeze(-1), action, idle)))
    own = late + torch.arange(NUM_STEPS).unsqueeze(-1), torch.arange(NUM_ENVS)
    t, private, *scalars, next_private = (torch.stack(column)[own] for column in zip(*steps, strict=True))
    # It says which bar and which account; the others show the last bars of the table and the same account.
    market_width = WINDOW_BARS * case.features[0].numel()
    newest_bar = pure.observation[..., market_width - case.features[0].numel() : market_width]
    assert torch.equal(case.features[t].flatten(2), newest_bar)
    mine = Tape(private, *scalars, next_private)
    account = pure._replace(
        observation=pure.observation[..., market_width:], last_observation=pure.last_observation[..., market_width:]
    )
    assert_same(mine, account)


def discrete_scalar(case: Case) -> bool:
    """Whether an action is a plain index."""
    return case.positions is not None and case.series.num_assets == 1
