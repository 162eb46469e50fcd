"""Nothing that happens after bar t changes what is seen or done up to bar t."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from trade_agent.envs.episodes import observe
from trade_agent.envs.market import MarketState, StepResult, reset, step
from trade_agent.envs.rules import MarketRules
from trade_agent.envs.series import MarketSeries

NUM_BARS = 30
SeriesFactory = Callable[..., MarketSeries]


def play(
    series: MarketSeries, rules: MarketRules, features: torch.Tensor
) -> tuple[list[MarketState], list[StepResult], list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(5)
    states = [reset(series, rules, torch.tensor([4, 2]), torch.tensor([NUM_BARS - 1] * 2))]
    results, observations = [], [observe(series, rules, features, states[0], 3)]
    for _ in range(20):
        state, result = step(series, rules, states[-1], torch.rand(2, 2, generator=generator).mul(2).sub(1))
        states.append(state)
        results.append(result)
        observations.append(observe(series, rules, features, state, 3))
    return states, results, observations


@pytest.mark.parametrize("fill", ["next_open", "next_close", "same_close"])
@pytest.mark.parametrize("latency_bars", [0, 2])
@pytest.mark.parametrize("reward", ["log_return", "differential_sharpe", "mean_variance", "drawdown_penalised"])
def test_later_bars_change_nothing_earlier(
    fill: str, latency_bars: int, reward: str, random_series: SeriesFactory
) -> None:
    rules = MarketRules(fill=fill, latency_bars=latency_bars, reward=reward, max_leverage=2.0)
    series = random_series(NUM_BARS, 2, seed=1, suspensions=True)
    other = random_series(NUM_BARS, 2, seed=2, suspensions=True)
    features = torch.randn(NUM_BARS, 2, 3, generator=torch.Generator().manual_seed(0))
    states, results, observations = play(series, rules, features)
    changed_any = False
    for cut in (8, 15):
        keep = torch.arange(NUM_BARS).unsqueeze(-1) <= cut
        altered = MarketSeries(
            torch.where(keep, series.open, other.open),
            torch.where(keep, series.close, other.close),
            torch.where(keep, series.tradable, other.tradable),
        )
        altered_features = torch.where(keep.unsqueeze(-1), features, torch.full_like(features, 9.0))
        new_states, new_results, new_observations = play(altered, rules, altered_features)
        for index, (old, new) in enumerate(zip(states, new_states, strict=True)):
            known = old.t <= cut
            for one, two in zip(old, new, strict=True):
                assert torch.equal(one[known], two[known])
            assert torch.equal(observations[index][known], new_observations[index][known])
            if index:
                for one, two in zip(results[index - 1], new_results[index - 1], strict=True):
                    assert torch.equal(one[known], two[known])
            changed_any |= not torch.equal(old.equity, new.equity)
    assert changed_any  # the perturbation was not a no-op


@pytest.mark.parametrize("latency_bars", [0, 1])
def test_a_fill_at_the_open_does_not_know_the_close_of_its_bar(latency_bars: int, random_series: SeriesFactory) -> None:
    rules = MarketRules(latency_bars=latency_bars)
    series = random_series(NUM_BARS, 2, seed=1)
    row = 6
    closes = series.close.clone()
    closes[row] *= 1.05
    altered = MarketSeries(series.open, closes, series.tradable)
    features = torch.zeros(NUM_BARS, 2, 1)
    states, _, _ = play(series, rules, features)
    changed, _, _ = play(altered, rules, features)
    for old, new in zip(states, changed, strict=True):
        at_row = old.t == row
        assert torch.equal(old.units[at_row], new.units[at_row])
        assert torch.equal(old.cash[at_row], new.cash[at_row])


def test_the_window_ends_at_the_bar_observed(random_series: SeriesFactory) -> None:
    rules, series = MarketRules(), random_series(NUM_BARS, 2)
    features = torch.arange(NUM_BARS, dtype=torch.float32).view(-1, 1, 1).expand(-1, 2, 1)
    state = reset(series, rules, torch.tensor([7]), torch.tensor([9]))
    assert observe(series, rules, features, state, 3)[0, :6].tolist() == [5.0, 5.0, 6.0, 6.0, 7.0, 7.0]
    assert observe(series, rules, features, state)[0, :2].tolist() == [7.0, 7.0]
