"""The market as one pure, batched, branchless function of state and action.

Shapes: N accounts, A assets, T bars, L bars of latency. Money is float64, observations and rewards float32.

Time: a state at bar t knows everything up to the close of bar t. ``step`` takes the decision made there and moves to
the close of bar t+1. With ``next_open`` it fills at the open of t+1, with ``next_close`` at the close of t+1, with
``same_close`` at the close of t; latency delays each by L bars. No tensor of a state is changed in place, nothing asks
the host for a value, and a branch at Python level depends on the rules and on shapes alone, so a step can be compiled
or captured in a CUDA graph.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from trade_agent.envs.accounting import TINY, Account, Fill, carry_cost, equity_at, fill, total
from trade_agent.envs.rewards import initial_memory, step_reward
from trade_agent.envs.rules import MarketRules, target_weights
from trade_agent.envs.series import MarketSeries

# log(1 + bars) of a million bars is 13.8: this keeps the field near [0, 1].
_LOG_BARS_SCALE = 0.1


class MarketState(NamedTuple):
    """Everything that later steps depend on, besides the series and the rules."""

    t: Tensor  # [N] int64, bar whose close is the last thing known
    end: Tensor  # [N] int64, last bar of the episode
    units: Tensor  # [N, A] held
    basis: Tensor  # [N, A] money the units were bought for, negative when short
    weights: Tensor  # [N, A] value at the close of t as a fraction of equity, or of the fixed notional
    cash: Tensor  # [N]
    equity: Tensor  # [N] marked at the close of t
    peak: Tensor  # [N] largest equity so far
    bars_since_trade: Tensor  # [N] int64
    pending: Tensor  # [N, L, A] target weights on their way, the next to fill first
    reward_memory: Tensor  # [N, M], see rewards


class StepResult(NamedTuple):
    """What happened between the close of t and the close of t+1."""

    reward: Tensor  # [N] float32
    terminated: Tensor  # [N] bool, ruined
    truncated: Tensor  # [N] bool, end of the episode or of the data while not ruined: bootstrap from the next state
    cost: Tensor  # [N] money: commission, spread, slippage and impact
    financing: Tensor  # [N] money: borrow cost and interest
    turnover: Tensor  # [N] value bought plus value sold as a fraction of equity at the fill
    equity: Tensor  # [N] marked at the close of t+1
    weights: Tensor  # [N, A] after the fill, marked at the close of t+1; 0 once ruined


def reset(series: MarketSeries, rules: MarketRules, start: Tensor, end: Tensor) -> MarketState:
    """Flat accounts that observe bar ``start`` [N] int64 and are truncated at bar ``end`` [N].

    The caller sees to 0 <= start < end < T: looking would stop the device.
    """
    num_envs, num_assets = start.shape[0], series.num_assets
    nothing = torch.zeros((num_envs, num_assets), dtype=torch.float64, device=start.device)
    equity = torch.full((num_envs,), rules.initial_equity, dtype=torch.float64, device=start.device)
    return MarketState(
        t=start,
        end=end,
        units=nothing,
        basis=nothing,
        weights=nothing,
        cash=equity,
        equity=equity,
        peak=equity,
        bars_since_trade=torch.zeros_like(start),
        pending=nothing.new_zeros((num_envs, rules.latency_bars, num_assets)),
        reward_memory=initial_memory(rules, equity),
    )


def auto_reset(
    series: MarketSeries, rules: MarketRules, state: MarketState, done: Tensor, start: Tensor, end: Tensor
) -> MarketState:
    """``state`` with the accounts where ``done`` [N] bool starting anew at ``start`` [N]; both are computed for all."""
    fresh = reset(series, rules, start, end)
    return MarketState(
        *(torch.where(done.view(-1, *(1,) * (old.ndim - 1)), new, old) for new, old in zip(fresh, state, strict=True))
    )


def step(
    series: MarketSeries, rules: MarketRules, state: MarketState, action: Tensor
) -> tuple[MarketState, StepResult]:
    """Move every account one bar on; ``action`` is [N, A] in [-1, 1], see ``target_weights``.

    The account is checked against ``rules.ruin_equity`` at the open of t+1 and again at its close. At or below it the
    account is ruined: everything is booked out at that very price, however far beyond the level it gapped, an order
    that was to fill later in the bar does not, and the account stays as it is if stepped again. A truncated account
    must be reset before the next step. NaN in an action is no order for that asset.
    """
    next_t = torch.minimum(state.t + 1, state.end)
    open_price, close_price = series.open.index_select(0, next_t), series.close.index_select(0, next_t)
    target, pending = _due_order(rules, state, target_weights(rules, action))
    may_fill = _tradable(series, rules, state.t, next_t)
    before = Account(state.units, state.basis, state.cash)

    if rules.fill == "same_close":
        price = series.close.index_select(0, state.t)
        alive = (state.equity > rules.ruin_equity).unsqueeze(-1)
        base = rules.base(state.equity)
        filled = fill(rules, before, target, price, base, alive if may_fill is None else alive & may_fill)
        financing = carry_cost(rules, filled.account.units * price, filled.account.cash)
        account = filled.account._replace(cash=filled.account.cash - financing)
        gapped = equity_at(account, open_price) <= rules.ruin_equity
    else:
        financing = carry_cost(rules, state.weights * rules.base(state.equity).unsqueeze(-1), state.cash)
        before = before._replace(cash=before.cash - financing)
        open_equity = equity_at(before, open_price)
        gapped = open_equity <= rules.ruin_equity
        if rules.fill == "next_open":
            price, equity, alive = open_price, open_equity, ~gapped
        else:
            price, equity = close_price, equity_at(before, close_price)
            alive = ~gapped & (equity > rules.ruin_equity)
        alive = alive.unsqueeze(-1)
        filled = fill(rules, before, target, price, rules.base(equity), alive if may_fill is None else alive & may_fill)
        account = filled.account

    mark = torch.where(gapped.unsqueeze(-1), open_price, close_price)
    return _close_step(rules, state, next_t, pending, account, filled, mark, financing)


def _due_order(rules: MarketRules, state: MarketState, target: Tensor) -> tuple[Tensor, Tensor]:
    """Order that fills in this step and the queue behind it."""
    if rules.latency_bars == 0:
        return target, state.pending
    return state.pending[:, 0], torch.cat((state.pending[:, 1:], target.unsqueeze(1)), dim=1)


def _tradable(series: MarketSeries, rules: MarketRules, t: Tensor, next_t: Tensor) -> Tensor | None:
    """[N, A] bool: the asset was tradable both when the order was decided and when it fills; None when all are."""
    if series.always_tradable:
        return None
    decided = series.tradable.index_select(0, (t - rules.latency_bars).clamp(min=0))
    return decided & series.tradable.index_select(0, t if rules.fill == "same_close" else next_t)


def _close_step(
    rules: MarketRules,
    state: MarketState,
    next_t: Tensor,
    pending: Tensor,
    account: Account,
    filled: Fill,
    mark: Tensor,
    financing: Tensor,
) -> tuple[MarketState, StepResult]:
    """Mark the account, close it when ruined, and say what the step was worth."""
    value = account.units * mark
    equity = account.cash + total(value)
    ruined = equity <= rules.ruin_equity
    alive = ~ruined.unsqueeze(-1)
    weights = torch.where(alive, value / rules.base(equity).unsqueeze(-1), 0.0)
    peak = torch.maximum(state.peak, equity)
    reward, memory = step_reward(rules, state.equity, equity, state.peak, peak, state.reward_memory)
    next_state = MarketState(
        t=next_t,
        end=state.end,
        units=account.units * alive,
        basis=account.basis * alive,
        weights=weights,
        cash=torch.where(ruined, equity, account.cash),
        equity=equity,
        peak=peak,
        bars_since_trade=torch.where(filled.turnover > 0.0, 0, state.bars_since_trade + 1),
        pending=pending,
        reward_memory=memory,
    )
    result = StepResult(
        reward=reward.to(torch.float32),
        terminated=ruined,
        truncated=(next_t >= state.end) & ~ruined,
        cost=filled.cost,
        financing=financing,
        turnover=filled.turnover,
        equity=equity,
        weights=weights,
    )
    return next_state, result


def account_fields(rules: MarketRules, num_assets: int) -> tuple[str, ...]:
    """Names of the K columns of ``account_observation``; pending_<l>_<a> fills l bars after the next order."""
    assets = range(num_assets)
    return (
        *(f"weight_{a}" for a in assets),
        *(f"unrealised_{a}" for a in assets),
        *(f"tradable_{a}" for a in assets),
        *(f"pending_{bar}_{a}" for bar in range(rules.latency_bars) for a in assets),
        "cash",
        "drawdown",
        "log_bars_since_trade",
    )


def account_observation(series: MarketSeries, rules: MarketRules, state: MarketState) -> Tensor:
    """The account as [N, K] float32, free of scale: K as in ``account_fields``.

    weight, unrealised profit and cash are fractions of what the rules size by; tradable is 0 or 1; a place in the queue
    without an order shows the weight held; drawdown is in [0, 1]; log_bars_since_trade is log(1 + bars) / 10.
    """
    base = rules.base(state.equity).clamp(min=TINY)
    unrealised = state.weights - state.basis / base.unsqueeze(-1)
    tradable = series.tradable.index_select(0, state.t).to(torch.float64)
    cash = 1.0 - total(state.weights) if rules.sizing == "equity" else state.cash / base
    drawdown = (1.0 - state.equity / state.peak).clamp(max=1.0)
    quiet = _LOG_BARS_SCALE * torch.log1p(state.bars_since_trade.to(torch.float64))
    held = state.weights.unsqueeze(1)
    pending = torch.where(state.pending.isnan(), held, state.pending) if rules.latency_bars else state.pending
    columns = (state.weights, unrealised, tradable, pending.flatten(1), torch.stack((cash, drawdown, quiet), -1))
    return torch.cat(columns, dim=-1).to(torch.float32)
