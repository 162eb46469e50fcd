"""Rewards of one step, from equity alone: they are net of every cost and see nothing that comes later.

E is equity before the step, E' after it, R = (E' - E) / base; the base is E, or the initial equity throughout where the
rules size by a fixed notional. All tensors are [N] float64.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from trade_agent.envs.accounting import TINY
from trade_agent.envs.rules import MarketRules


def simple_return(equity: Tensor, next_equity: Tensor, base: Tensor) -> Tensor:
    """R, the gain over ``base``; 0 for an account that is ruined and no longer moves, also at zero equity."""
    return (next_equity - equity) / base.clamp(min=TINY)


def log_return(returns: Tensor, floor: float) -> Tensor:
    """log(1 + R), at least ``floor``: equity at or below zero has no logarithm."""
    return torch.log1p(returns.clamp(min=math.expm1(floor)))


def mean_variance(returns: Tensor, risk_aversion: float) -> Tensor:
    """R - risk_aversion / 2 * R**2 (Ritter, 2017, with the mean of a bar's return taken as zero)."""
    return returns - 0.5 * risk_aversion * returns.square()


def drawdown_penalised(log_returns: Tensor, drawdown: Tensor, next_drawdown: Tensor, penalty: float) -> Tensor:
    """log(1 + R) - penalty * max(0, DD' - DD), DD = 1 - E / peak: a drawdown costs as it deepens, not as it lasts."""
    return log_returns - penalty * (next_drawdown - drawdown).clamp(min=0.0)


def differential_sharpe(
    returns: Tensor, memory: Tensor, *, decay: float, volatility_floor: float
) -> tuple[Tensor, Tensor]:
    """D = (B dA - A dB / 2) / (B - A**2)**1.5 with dA = R - A, dB = R**2 - B (Moody & Saffell, 2001, eq. 8).

    memory [N, 2] holds A and B, the exponential means of R and R**2 before the step; A + decay dA and B + decay dB are
    returned with D. B and the variance are kept at or above volatility_floor**2, so an account that was flat for long
    is paid R / volatility_floor for its first return instead of dividing by zero.
    """
    smallest = volatility_floor**2
    mean, square = memory.unbind(-1)
    mean_change, square_change = returns - mean, returns.square() - square
    variance = (square - mean.square()).clamp(min=smallest)
    reward = (square * mean_change - 0.5 * mean * square_change) / (variance * variance.sqrt())
    next_square = (square + decay * square_change).clamp(min=smallest)
    return reward, torch.stack((mean + decay * mean_change, next_square), dim=-1)


def initial_memory(rules: MarketRules, like: Tensor) -> Tensor:
    """Memory [N, M] of fresh accounts, N as in ``like`` [N]."""
    if rules.reward == "differential_sharpe":
        square = torch.full_like(like, rules.sharpe_volatility_floor**2)
        return torch.stack((torch.zeros_like(like), square), dim=-1)
    return like.new_zeros((like.shape[0], 0))


def step_reward(
    rules: MarketRules, equity: Tensor, next_equity: Tensor, peak: Tensor, next_peak: Tensor, memory: Tensor
) -> tuple[Tensor, Tensor]:
    """Reward [N] float64, at least ``rules.reward_floor``, and the next memory."""
    returns = simple_return(equity, next_equity, rules.base(equity))
    if rules.reward == "log_return":
        return log_return(returns, rules.reward_floor), memory
    if rules.reward == "differential_sharpe":
        reward, memory = differential_sharpe(
            returns, memory, decay=rules.sharpe_decay, volatility_floor=rules.sharpe_volatility_floor
        )
    elif rules.reward == "mean_variance":
        reward = mean_variance(returns, rules.risk_aversion)
    else:
        reward = drawdown_penalised(
            log_return(returns, rules.reward_floor),
            1.0 - equity / peak,
            1.0 - next_equity / next_peak,
            rules.drawdown_penalty,
        )
    return reward.clamp(min=rules.reward_floor), memory
