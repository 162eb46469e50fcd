from __future__ import annotations

from typing import Any

import pytest
import torch

from trade_agent.envs.rules import MarketRules, position_actions, target_weights
from trade_agent.errors import ConfigError


def test_action_ends_map_to_the_limits() -> None:
    action = torch.tensor([[-1.0], [0.0], [0.5], [1.0]])
    short = MarketRules(max_weight=2.0, max_leverage=2.0)
    assert target_weights(short, action).squeeze(-1).tolist() == [-2.0, 0.0, 1.0, 2.0]
    long_only = MarketRules(max_weight=0.8, allow_short=False)
    assert target_weights(long_only, action).squeeze(-1).tolist() == pytest.approx([0.0, 0.4, 0.6, 0.8])
    assert target_weights(short, action).dtype == torch.float64


def test_gross_limit_scales_all_weights_by_one_factor() -> None:
    rules = MarketRules(max_weight=1.0, max_leverage=1.5)
    # gross 2.5 -> factor 0.6; gross 0.7 is left alone.
    weights = target_weights(rules, torch.tensor([[1.0, -1.0, 0.5], [0.1, -0.1, 0.5]], dtype=torch.float64))
    assert weights[0].tolist() == pytest.approx([0.6, -0.6, 0.3])
    assert weights[1].tolist() == pytest.approx([0.1, -0.1, 0.5])


def test_actions_beyond_the_range_are_clipped() -> None:
    assert target_weights(MarketRules(), torch.tensor([[7.0], [-7.0]])).squeeze(-1).tolist() == [1.0, -1.0]


@pytest.mark.parametrize(("allow_short", "positions"), [(True, (-1.0, 0.0, 0.25, 1.0)), (False, (0.0, 0.25, 1.0))])
def test_discrete_positions_are_fractions_of_max_weight(allow_short: bool, positions: tuple[float, ...]) -> None:
    rules = MarketRules(max_weight=2.0, max_leverage=2.0, allow_short=allow_short)
    weights = target_weights(rules, position_actions(rules, positions).unsqueeze(-1))
    assert weights.squeeze(-1).tolist() == [2.0 * position for position in positions]


@pytest.mark.parametrize(
    ("allow_short", "positions", "message"),
    [
        (True, (0.0,), "at least two"),
        (True, (0.0, 0.0), "different"),
        (True, (0.0, 1.5), "hold 1.5"),
        (False, (-1.0, 1.0), "hold -1.0.*allow_short"),
    ],
)
def test_bad_positions_are_refused(allow_short: bool, positions: tuple[float, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        position_actions(MarketRules(allow_short=allow_short), positions)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("fill", "close"),
        ("reward", "sharpe"),
        ("commission_bps", -1.0),
        ("impact", float("nan")),
        ("max_leverage", 0.0),
        ("max_weight", float("inf")),
        ("periods_per_year", 0.0),
        ("latency_bars", -1),
        ("latency_bars", 1.5),
        ("maintenance", 1.0),
        ("reward_floor", 0.0),
        ("sharpe_decay", 0.0),
        ("initial_equity", -5.0),
        ("no_trade_band", -0.1),
    ],
)
def test_a_bad_setting_is_named(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"env.{field} is .*; use"):
        MarketRules(**{field: value})


def test_a_rate_for_each_account_has_no_minimum() -> None:
    with pytest.raises(ConfigError, match=r"a rate for each account; use it without env.commission_min"):
        MarketRules(commission_bps=torch.tensor([1.0, 2.0]), commission_min=3.0)
