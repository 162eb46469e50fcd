from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torchrl.envs import check_env_specs
from torchrl.envs.utils import step_mdp

from trade_agent.envs.episodes import observe
from trade_agent.envs.market import reset, step
from trade_agent.envs.rules import MarketRules
from trade_agent.envs.series import MarketSeries
from trade_agent.envs.torchrl_env import MarketEnv
from trade_agent.errors import ConfigError, DataError

SeriesFactory = Callable[..., MarketSeries]
NUM_BARS = 60


@pytest.fixture
def make_env(random_series: SeriesFactory) -> Callable[..., MarketEnv]:
    def build(*, num_assets: int = 2, rules: MarketRules | None = None, **changes: Any) -> MarketEnv:
        features = torch.randn(NUM_BARS, num_assets, 3, generator=torch.Generator().manual_seed(0))
        arguments: dict[str, Any] = {"rows": range(5, NUM_BARS), "num_envs": 4, "episode_bars": 10}
        return MarketEnv(
            series=random_series(NUM_BARS, num_assets, seed=4),
            rules=rules or MarketRules(),
            features=features,
            **(arguments | changes),
        )

    return build


@pytest.mark.parametrize("num_assets", [1, 3])
@pytest.mark.parametrize("positions", [None, (-1.0, 0.0, 1.0)])
@pytest.mark.parametrize("latency_bars", [0, 2])
def test_torchrl_accepts_the_specs(
    num_assets: int, positions: tuple[float, ...] | None, latency_bars: int, make_env: Callable[..., MarketEnv]
) -> None:
    env = make_env(
        num_assets=num_assets,
        positions=positions,
        rules=MarketRules(latency_bars=latency_bars),
        window_bars=4,
        episode_bars=2,
    )
    check_env_specs(env, seed=0, break_when_any_done="both")


def test_every_step_equals_the_pure_step(make_env: Callable[..., MarketEnv]) -> None:
    env = make_env(random_starts=False, window_bars=3)
    starts = torch.full((4,), 5)
    state = reset(env.series, env.rules, starts, starts + 10)
    current = env.reset()
    for index in range(10):
        action = env.action_spec.rand()
        state, result = step(env.series, env.rules, state, action)
        stepped = env.step(current.set("action", action))
        following = stepped["next"]
        assert torch.equal(following["observation"], observe(env.series, env.rules, env.features, state, 3))
        assert torch.equal(following["reward"].squeeze(-1), result.reward)
        assert torch.equal(following["terminated"].squeeze(-1), result.terminated)
        assert torch.equal(following["truncated"].squeeze(-1), result.truncated)
        assert bool(following["truncated"].all()) == (index == 9)
        assert torch.equal(following["done"], following["terminated"] | following["truncated"])
        current = step_mdp(stepped)


def test_partial_reset_restarts_only_what_is_done(make_env: Callable[..., MarketEnv]) -> None:
    # Levered accounts are ruined at different times.
    env = make_env(
        num_envs=64,
        episode_bars=40,
        rules=MarketRules(max_weight=8.0, max_leverage=8.0, maintenance=0.8),
        num_assets=1,
    )
    env.set_seed(0)
    current, ruined, ended = env.reset(), 0, 0
    for _ in range(60):
        before = env.state
        assert before is not None
        current = env.rand_action(current)
        stepped, current = env.step_and_maybe_reset(current)
        done = stepped["next", "done"].squeeze(-1)
        after, result = step(env.series, env.rules, before, stepped["action"])
        true_last = observe(env.series, env.rules, env.features, after)
        assert torch.equal(stepped["next", "observation"], true_last)  # also where done, and never NaN
        assert env.state is not None
        assert torch.equal(env.state.t[~done], after.t[~done])
        assert torch.equal(env.state.equity[~done], after.equity[~done])
        assert bool((env.state.equity[done] == env.rules.initial_equity).all())
        assert not bool(current["done"].any())
        assert torch.equal(current["observation"], observe(env.series, env.rules, env.features, env.state))
        ruined += int(result.terminated.sum())
        ended += int(result.truncated.sum())
    assert ruined > 0
    assert ended > 0


def test_the_seed_decides_the_starts(make_env: Callable[..., MarketEnv]) -> None:
    def starts(seed: int) -> list[int]:
        env = make_env(num_envs=50)
        env.set_seed(seed)
        env.reset()
        assert env.state is not None
        return env.state.t.tolist()

    torch.manual_seed(0)
    first = starts(1)
    torch.manual_seed(99)  # the environment draws from its own generator
    assert starts(1) == first
    assert starts(2) != first


def test_episodes_stay_inside_the_rows(make_env: Callable[..., MarketEnv]) -> None:
    env = make_env(num_envs=2000, rows=range(20, 35), episode_bars=10)
    env.reset()
    assert env.state is not None
    assert set(env.state.t.tolist()) == {20, 21, 22, 23, 24}
    assert set(env.state.end.tolist()) == {30, 31, 32, 33, 34}
    whole = make_env(rows=range(20, 35), episode_bars=None)
    whole.reset()
    assert whole.state is not None
    assert (whole.state.t.tolist(), whole.state.end.tolist()) == ([20] * 4, [34] * 4)


def test_discrete_positions_are_what_is_traded(make_env: Callable[..., MarketEnv]) -> None:
    free = MarketRules(commission_bps=0.0, half_spread_bps=0.0, slippage_bps=0.0, fill="next_close", allow_short=False)
    env = make_env(num_assets=1, positions=(0.0, 0.25, 1.0), rules=free, num_envs=3)
    env.step(env.reset().set("action", torch.tensor([[0], [1], [2]])))
    assert env.result is not None
    torch.testing.assert_close(env.result.weights.squeeze(-1), torch.tensor([0.0, 0.25, 1.0]).double())


def test_rollout_rewards_are_net_of_costs(make_env: Callable[..., MarketEnv]) -> None:
    def gain(rules: MarketRules) -> float:
        env = make_env(num_assets=1, random_starts=False, rules=rules)
        torch.manual_seed(0)
        return float(env.rollout(10)["next", "reward"].sum())

    free = MarketRules(commission_bps=0.0, half_spread_bps=0.0, slippage_bps=0.0, borrow_rate=0.0, financing_rate=0.0)
    assert gain(MarketRules(commission_bps=50.0)) < gain(free)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"episode_bars": 55}, ConfigError, "env.episode_bars is 55 and the rows hold 54 steps"),
        ({"episode_bars": 0}, ConfigError, "env.episode_bars is 0"),
        ({"rows": range(5, 61)}, ConfigError, "not bars of the series"),
        ({"window_bars": 7}, ConfigError, "window of 7 bars does not fit before row 5"),
        ({"positions": (0.0,)}, ConfigError, "at least two"),
    ],
)
def test_what_does_not_fit_is_refused(
    changes: dict[str, Any], error: type[Exception], message: str, make_env: Callable[..., MarketEnv]
) -> None:
    with pytest.raises(error, match=message):
        make_env(**changes)


def test_features_must_fit_the_series_and_be_finite(random_series: SeriesFactory) -> None:
    series = random_series(NUM_BARS, 1)
    with pytest.raises(DataError, match=r"features have shape \(59, 1, 2\)"):
        MarketEnv(series=series, rules=MarketRules(), features=torch.zeros(59, 1, 2), rows=range(59), num_envs=1)
    features = torch.zeros(NUM_BARS, 1, 2)
    features[:5] = float("nan")  # a warm-up
    MarketEnv(series=series, rules=MarketRules(), features=features, rows=range(5, NUM_BARS), num_envs=1)
    with pytest.raises(DataError, match=r"not finite within rows 4\.\.59"):
        MarketEnv(series=series, rules=MarketRules(), features=features, rows=range(4, NUM_BARS), num_envs=1)
    with pytest.raises(DataError, match=r"not finite within rows 4\.\.59"):  # the first window begins there
        MarketEnv(
            series=series, rules=MarketRules(), features=features, rows=range(5, NUM_BARS), num_envs=1, window_bars=2
        )
