"""Rules of the market: what an order may be, when it fills and what it costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trade_agent.errors import ConfigError

FILLS = ("next_open", "next_close", "same_close")
SIZINGS = ("equity", "fixed_notional")
REWARDS = ("log_return", "differential_sharpe", "mean_variance", "drawdown_penalised")
ARITHMETIC_REWARDS = ("differential_sharpe", "mean_variance")

_NON_NEGATIVE = (
    "commission_bps",
    "commission_min",
    "half_spread_bps",
    "slippage_bps",
    "impact",
    "borrow_rate",
    "financing_rate",
    "no_trade_band",
    "risk_aversion",
    "drawdown_penalty",
)
_POSITIVE = ("max_leverage", "max_weight", "periods_per_year", "initial_equity", "sharpe_volatility_floor")


@dataclass(frozen=True, slots=True, kw_only=True)
class MarketRules:
    """Settings of the market. Weights are fractions of equity (see sizing), rates are annual unless named otherwise.

    fill: price at which an order decided at the close of bar t fills: ``next_open`` open of t+1, ``next_close`` close
        of t+1, ``same_close`` close of t (optimistic: that close is in the observation).
    sizing: what weights, turnover and rewards are fractions of: ``equity`` as it stands at the fill, or
        ``fixed_notional``, the initial equity throughout, so that profits add up instead of compounding.
    latency_bars: further bars until the fill; orders on their way are part of the observation.
    max_leverage: bound on the sum of absolute weights at a fill, what does not trade there included: orders share what
        is left. max_weight: bound on each target. Between fills weights drift with prices, and a suspended asset keeps
        its weight.
    allow_short: whether target weights may be negative.
    commission_bps, commission_min: commission per order, the larger of basis points of the traded value and an amount
        of money. Without a minimum the basis points may be a tensor [N], a rate for each account.
    half_spread_bps, slippage_bps: basis points of the traded value.
    impact: quadratic cost; trading the fraction x of equity costs impact * x**2 * equity, per asset.
    borrow_rate: on the value of short positions. financing_rate: on negative cash (short proceeds count as cash).
        Both accrue once a bar, rate / periods_per_year, on what is held over the close of bar t.
    no_trade_band: an asset is traded only when its target differs from its weight by more than this.
    reward: one of REWARDS, see ``trade_agent.envs.rewards``. sharpe_decay and sharpe_volatility_floor (standard
        deviation of a bar's return) belong to differential_sharpe, risk_aversion to mean_variance, drawdown_penalty to
        drawdown_penalised. reward_floor: no reward is below it.
    maintenance: fraction of initial_equity at or below which the account is ruined and the episode terminated.

    The defaults are those of conf/env/market.yaml. Raises ConfigError naming the field.
    """

    fill: str = "next_open"
    sizing: str = "equity"
    latency_bars: int = 0
    max_leverage: float = 1.0
    max_weight: float = 1.0
    allow_short: bool = True
    commission_bps: float | Tensor = 1.0
    commission_min: float = 0.0
    half_spread_bps: float = 1.0
    slippage_bps: float = 1.0
    impact: float = 0.0
    borrow_rate: float = 0.01
    financing_rate: float = 0.03
    periods_per_year: float = 252.0
    no_trade_band: float = 0.0
    reward: str = "log_return"
    sharpe_decay: float = 0.01
    sharpe_volatility_floor: float = 1e-3
    risk_aversion: float = 1.0
    drawdown_penalty: float = 1.0
    reward_floor: float = -5.0
    maintenance: float = 0.2
    initial_equity: float = 1e5

    def __post_init__(self) -> None:
        if self.fill not in FILLS:
            raise ConfigError(f"env.fill is {self.fill!r}", f"use one of {', '.join(FILLS)}")
        if self.sizing not in SIZINGS:
            raise ConfigError(f"env.sizing is {self.sizing!r}", f"use one of {', '.join(SIZINGS)}")
        if self.reward not in REWARDS:
            raise ConfigError(f"env.reward is {self.reward!r}", f"use one of {', '.join(REWARDS)}")
        if self.sizing == "fixed_notional" and self.reward not in ARITHMETIC_REWARDS:
            raise ConfigError(
                f"env.reward={self.reward} compounds and env.sizing=fixed_notional does not",
                f"use one of {', '.join(ARITHMETIC_REWARDS)}",
            )
        for name in _NON_NEGATIVE:
            setting = getattr(self, name)
            for value in setting.tolist() if isinstance(setting, Tensor) else [setting]:
                if not (math.isfinite(value) and value >= 0.0):
                    raise ConfigError(f"env.{name} is {value}", "use a finite number, zero or larger")
        for name in _POSITIVE:
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0.0):
                raise ConfigError(f"env.{name} is {value}", "use a finite number above zero")
        if self.latency_bars < 0 or self.latency_bars != int(self.latency_bars):
            raise ConfigError(f"env.latency_bars is {self.latency_bars}", "use zero or more whole bars")
        if isinstance(self.commission_bps, Tensor) and self.commission_min > 0.0:
            raise ConfigError("env.commission_bps is a rate for each account", "use it without env.commission_min")
        if not 0.0 < self.sharpe_decay <= 1.0:
            raise ConfigError(f"env.sharpe_decay is {self.sharpe_decay}", "use a number above 0 and at most 1")
        if not 0.0 <= self.maintenance < 1.0:
            raise ConfigError(f"env.maintenance is {self.maintenance}", "use a fraction of equity in [0, 1)")
        if not (math.isfinite(self.reward_floor) and self.reward_floor < 0.0):
            raise ConfigError(f"env.reward_floor is {self.reward_floor}", "use a finite number below zero")

    @property
    def ruin_equity(self) -> float:
        """Equity, in money, at or below which the account is ruined."""
        return self.maintenance * self.initial_equity

    def base(self, equity: Tensor) -> Tensor:
        """Money [N] that a weight of 1 stands for, at this equity [N]."""
        return equity if self.sizing == "equity" else torch.full_like(equity, self.initial_equity)

    @property
    def linear_cost(self) -> float | Tensor:
        """Cost as a fraction of the traded value, commission included; [N] where the commission is a tensor."""
        return 1e-4 * (self.commission_bps + self.half_spread_bps + self.slippage_bps)


def target_weights(rules: MarketRules, action: Tensor) -> Tensor:
    """Target weights [N, A] float64 of an action [N, A] in [-1, 1], clipped to it.

    -1 maps to the lowest allowed weight (-max_weight, or 0 without short selling), 1 to max_weight; then all weights of
    an account shrink by one factor where their gross sum exceeds max_leverage. NaN, no order for that asset, stays NaN
    and does not count.
    """
    clipped = action.to(torch.float64).clamp(-1.0, 1.0)
    weights = clipped * rules.max_weight if rules.allow_short else (clipped + 1.0) * (0.5 * rules.max_weight)
    if weights.shape[-1] * rules.max_weight <= rules.max_leverage:
        return weights  # the gross limit cannot bind
    gross = weights.abs().nansum(-1, keepdim=True)
    return weights * (rules.max_leverage / gross.clamp(min=rules.max_leverage))


def position_actions(rules: MarketRules, positions: Sequence[float]) -> Tensor:
    """Actions [P] float32 whose target weights are the given fractions of max_weight.

    Raises ConfigError for no positions, repeated ones, or one outside [-1, 1] ([0, 1] without short selling).
    """
    low = -1.0 if rules.allow_short else 0.0
    if len(positions) < 2 or len(set(positions)) != len(positions):
        raise ConfigError(f"positions are {tuple(positions)}", "give at least two different ones")
    for position in positions:
        if not low <= position <= 1.0:
            raise ConfigError(
                f"positions hold {position}", f"use fractions of max_weight in [{low:g}, 1] (env.allow_short)"
            )
    values = torch.tensor(positions, dtype=torch.float32)
    return values if rules.allow_short else 2.0 * values - 1.0
