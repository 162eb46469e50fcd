"""From bars to actions, nothing that comes after bar t reaches what is decided at its close."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from trade_agent.data.bars import Bars
from trade_agent.envs.market import MarketSeries
from trade_agent.evaluation.backtest import run_policy
from trade_agent.training.models import policy_from_state


def other_future(bars: Bars, last: int) -> Bars:
    """The same bars up to `last`, and quite different ones after it."""
    random = np.random.default_rng(0)
    later = (np.arange(bars.num_bars) > last)[:, None]
    factor = np.where(later, np.exp(random.normal(0.3, 0.3, (bars.num_bars, 1))), 1.0)
    prices = {name: getattr(bars, name) * factor for name in ("open", "high", "low", "close")}
    return replace(bars, **prices, volume=np.where(later, bars.volume * 7.0, bars.volume))


def decisions(trained: Any, state: dict[str, Any], bars: Bars) -> tuple[np.ndarray, np.ndarray]:
    """Observations of the market and actions at every test row, with everything that was fitted left as it is."""
    dataset = trained.dataset
    values = np.array(dataset.pipeline.transform(bars).values)
    values[: dataset.first_row] = np.nan
    policy = policy_from_state(state, torch.as_tensor(values))
    seen: list[torch.Tensor] = []
    actions: list[torch.Tensor] = []

    def act(t: torch.Tensor, account: torch.Tensor) -> torch.Tensor:
        first = policy.members[0] if hasattr(policy, "members") else policy
        seen.append(first.observe(t, account))
        actions.append(policy(t, account))
        return actions[-1]

    rows = dataset.split.test
    run_policy(MarketSeries.from_bars(bars), dataset.rules, act, start=rows.start, end=rows.stop - 1)
    return torch.cat(seen).numpy(), torch.cat(actions).numpy()


@pytest.mark.parametrize("model", ["ppo@latest", "hybrid@latest", "ensemble@latest"])
@pytest.mark.parametrize("offset", [0, 13])
def test_the_future_changes_no_observation_and_no_action(trained: Any, model: str, offset: int) -> None:
    state = trained.manager.registry.load(model).state
    bars, start = trained.dataset.bars, trained.dataset.split.test.start
    observed, acted = decisions(trained, state, bars)
    observed_other, acted_other = decisions(trained, state, other_future(bars, start + offset))
    known = offset + 1
    np.testing.assert_allclose(observed_other[:known], observed[:known], rtol=0, atol=1e-6)
    np.testing.assert_allclose(acted_other[:known], acted[:known], rtol=0, atol=1e-6)
    # The test would notice: the very next row is a different one.
    assert np.abs(observed_other[known] - observed[known]).max() > 1e-3
    assert np.abs(acted_other[known:] - acted[known:]).max() > 1e-6
