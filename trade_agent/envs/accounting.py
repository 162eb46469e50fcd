"""Money: what a fill does to an account, and what holding a position costs.

Shapes: N accounts, A assets. Everything is float64 and in the currency of the account.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from trade_agent.envs.rules import MarketRules

# A smaller change of weight is rounding, not an order: without this a held position would pay commission_min for it.
SMALLEST_TRADE = 1e-9
TINY = torch.finfo(torch.float64).tiny


class Account(NamedTuple):
    """units [N, A] held, basis [N, A] what they were bought for (negative when short), cash [N]."""

    units: Tensor
    basis: Tensor
    cash: Tensor


class Fill(NamedTuple):
    """account after the fill; cost [N] money paid; turnover [N] value bought plus sold over the base of the sizing."""

    account: Account
    cost: Tensor
    turnover: Tensor


def total(values: Tensor) -> Tensor:
    """Sum over assets, [N, A] -> [N]; a view when there is one asset."""
    return values.squeeze(-1) if values.shape[-1] == 1 else values.sum(-1)


def equity_at(account: Account, price: Tensor) -> Tensor:
    """Net asset value [N] with every position marked at price [N, A]."""
    return account.cash + total(account.units * price)


def fill(rules: MarketRules, account: Account, target: Tensor, price: Tensor, base: Tensor, allowed: Tensor) -> Fill:
    """Trade towards target weights [N, A] at price [N, A].

    target: NaN is no order for that asset; the others are traded all the same.
    base: [N] money that a weight of 1 stands for, as a rule the net asset value at ``price`` before the trade, so that
        limits hold at the fill.
    allowed: [N, A] bool, where an order is executed at all.
    A flip closes the old position and opens the new one: the whole distance is traded and paid for. The no-trade band
    looks at the order as it was given; an order that the gross limit leaves nothing to trade for costs nothing.
    """
    value = base.unsqueeze(-1)
    desired = target * value / price
    change = (desired - account.units) * price
    trade = (change.abs() > max(rules.no_trade_band, SMALLEST_TRADE) * value) & allowed
    if target.shape[-1] > 1:  # one asset that trades keeps nothing beside it, and its order is within the limit
        desired = desired * _share_of_order(rules, account, desired, price, base, trade).unsqueeze(-1)
        change = (desired - account.units) * price
        trade = trade & (change.abs() > SMALLEST_TRADE * value)
    units = torch.where(trade, desired, account.units)
    spent = torch.where(trade, change, 0.0)
    notional = spent.abs()
    traded = total(notional)
    cost = _trading_cost(rules, trade, notional, traded, base)
    # The part of the old position that is still there lies between zero and what was held, on the same side.
    kept = torch.clamp(units, min=account.units.clamp(max=0.0), max=account.units.clamp(min=0.0))
    kept_fraction = kept / torch.where(account.units == 0.0, 1.0, account.units)
    basis = account.basis * kept_fraction + (units - kept) * price
    return Fill(Account(units, basis, account.cash - total(spent) - cost), cost, traded / base.clamp(min=TINY))


def _share_of_order(
    rules: MarketRules, account: Account, desired: Tensor, price: Tensor, base: Tensor, trade: Tensor
) -> Tensor:
    """[N] in [0, 1]: what the gross limit leaves of the orders, when what does not trade is counted first."""
    kept = total(torch.where(trade, 0.0, account.units * price).abs())
    ordered = total(torch.where(trade, desired * price, 0.0).abs())
    room = (rules.max_leverage * base - kept).clamp(min=0.0)
    return (room / ordered.clamp(min=TINY)).clamp(max=1.0)


def _trading_cost(rules: MarketRules, trade: Tensor, notional: Tensor, traded: Tensor, base: Tensor) -> Tensor:
    if rules.commission_min > 0.0:
        commission = torch.where(trade, (1e-4 * rules.commission_bps * notional).clamp(min=rules.commission_min), 0.0)
        cost = total(commission) + 1e-4 * (rules.half_spread_bps + rules.slippage_bps) * traded
    else:
        cost = rules.linear_cost * traded
    if rules.impact > 0.0:
        cost = cost + rules.impact * total(notional.square()) / base.clamp(min=TINY)
    return cost


def carry_cost(rules: MarketRules, value: Tensor, cash: Tensor) -> Tensor:
    """Borrow cost of shorts and interest on a loan over one bar, [N].

    value: [N, A] of each position at the start of the bar. cash: [N]; where it is negative that is the loan. A closed
    account with debt left borrows nothing more: with equity above zero a loan is never larger than the net value.
    """
    charge = torch.zeros_like(cash)
    if rules.borrow_rate > 0.0:
        charge = charge + rules.borrow_rate * total((-value).clamp(min=0.0))
    if rules.financing_rate > 0.0:
        charge = charge + rules.financing_rate * torch.minimum(-cash, total(value)).clamp(min=0.0)
    return charge / rules.periods_per_year
