"""Replays of the market: what a policy or a path of target weights would have earned, net of every cost.

Shapes: S decisions, N paths, A assets. Decision s is made at the close of bar ``start + s`` and its result is known at
the close of the next bar, so ``equity[s]`` belongs to the close of bar ``start + s`` and there are S + 1 of them.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trade_agent.envs.market import account_observation, reset, step
from trade_agent.envs.rules import MarketRules, target_weights
from trade_agent.envs.series import MarketSeries
from trade_agent.errors import ConfigError, TrainingDivergedError
from trade_agent.evaluation.metrics import equity_returns, trading_metrics

Floats = NDArray[np.float64]
Policy = Callable[[Tensor, Tensor], Tensor]

COST_BPS = (0.0, 5.0, 10.0, 20.0, 50.0)
BLOCK_STEPS = 10_000  # a tensor of its own for each step takes 80 times the memory of a number


@dataclass(frozen=True, slots=True)
class Backtest:
    """One account over S bars; all arrays float64.

    Attributes:
        equity: [S+1] money, marked at each close.
        weights: [S, A] fractions of equity held at the close that follows each decision; 0 once ruined.
        targets: [S, A] target weights as decided; NaN where no order was given.
        turnover: [S] notional traded as a fraction of equity.
        cost: [S] money paid in each bar: trading, borrowing and financing.
        start: bar index of ``equity[0]``.
        ruined: the account reached the maintenance level; it stands still from there on.
        periods_per_year: bars in a year, for annual figures.
    """

    equity: Floats
    weights: Floats
    targets: Floats
    turnover: Floats
    cost: Floats
    start: int
    ruined: bool
    periods_per_year: float

    @property
    def returns(self) -> Floats:
        """Simple returns [S], net of costs."""
        return equity_returns(self.equity)

    def metrics(self) -> dict[str, float]:
        """See ``trade_agent.evaluation.metrics.trading_metrics``."""
        return trading_metrics(self.equity, self.weights, self.turnover, self.cost, self.periods_per_year)


def simulate(series: MarketSeries, rules: MarketRules, weights: Floats, *, start: int) -> list[Backtest]:
    """Trades N given paths of target weights in one batch.

    Args:
        weights: [S, N, A] targets decided at the closes of bars start .. start+S-1; NaN is no order.

    Raises:
        ConfigError: a target is beyond the limits of ``rules``, which would silently trade something else.
        ValueError: the path does not fit into the series.
    """
    num_steps, num_paths, num_assets = weights.shape
    _check_fits(series, start, start + num_steps)
    if num_assets != series.num_assets:
        raise ValueError(f"weights are for {num_assets} assets, the series has {series.num_assets}")
    _check_limits(rules, weights)
    actions = torch.as_tensor(_actions(rules, weights), device=series.close.device)
    return _run(series, rules, lambda s, t, account: actions[s], start=start, num_steps=num_steps, num_paths=num_paths)


def run_policy(series: MarketSeries, rules: MarketRules, policy: Policy, *, start: int, end: int) -> Backtest:
    """Runs a policy once from the close of bar ``start``, flat, to the close of bar ``end``.

    Args:
        policy: maps the bar index [1] int64 and the account observation [1, K] float32 to an action [1, A] in [-1, 1].
            It should be deterministic and in evaluation mode.

    Raises:
        TrainingDivergedError: the policy gave NaN or infinity.
        ValueError: the bars are not inside the series.
    """
    _check_fits(series, start, end)
    actions = _Rows()

    def act(s: int, t: Tensor, account: Tensor | None) -> Tensor:
        assert account is not None
        action = policy(t, account)
        actions.append(action)
        return action

    with torch.no_grad():
        result = _run(series, rules, act, start=start, num_steps=end - start, num_paths=1, observe=True)[0]
    # One look at the end instead of one per step: the market takes NaN for "no order" and would hide it.
    (taken,) = actions.taken_out()
    broken = ~np.isfinite(taken).all(axis=(1, 2))
    if broken.any():
        bar = start + int(broken.argmax())
        raise TrainingDivergedError(
            f"the policy gave NaN or infinity at bar {bar}", "lower the learning rate and retrain"
        )
    return result


def cost_sensitivity(
    series: MarketSeries, rules: MarketRules, weights: Floats, *, start: int, bps: Sequence[float] = COST_BPS
) -> dict[float, Backtest]:
    """The same decisions [S, A] under other trading costs: ``bps`` of every traded notional, nothing else.

    Minimum commission, spread, slippage and impact are replaced by it; borrow and financing costs stay.
    """
    if not bps:
        return {}
    rates = torch.as_tensor(list(bps), dtype=torch.float64, device=series.close.device)
    # One batch in which each account has its own rate: the loop over bars is what takes the time.
    charged = replace(
        rules, commission_bps=rates, commission_min=0.0, half_spread_bps=0.0, slippage_bps=0.0, impact=0.0
    )
    runs = simulate(series, charged, np.repeat(weights[:, None, :], len(bps), axis=1), start=start)
    return dict(zip(bps, runs, strict=True))


def costs_modelled(rules: MarketRules) -> bool:
    """True when trading costs anything."""
    return bool(rules.linear_cost > 0.0) or rules.commission_min > 0.0 or rules.impact > 0.0


class _Rows:
    """Tensors [N, ...] of one step after another."""

    def __init__(self) -> None:
        self._steps: list[tuple[Tensor, ...]] = []
        self._blocks: list[tuple[NDArray[Any], ...]] = []

    def append(self, *tensors: Tensor) -> None:
        self._steps.append(tensors)
        if len(self._steps) == BLOCK_STEPS:
            self._close_block()

    def taken_out(self) -> Iterator[NDArray[Any]]:
        """[S, N, ...] of each of the tensors of a step, in turn. Reads once: what was handed out is no longer held."""
        if self._steps:
            self._close_block()
        fields = [list(blocks) for blocks in zip(*self._blocks, strict=True)]
        self._blocks = []
        while fields:
            yield np.concatenate(fields.pop(0))

    def _close_block(self) -> None:
        self._blocks.append(tuple(torch.stack(values).cpu().numpy() for values in zip(*self._steps, strict=True)))
        self._steps = []


def _run(
    series: MarketSeries,
    rules: MarketRules,
    act: Callable[[int, Tensor, Tensor | None], Tensor],
    *,
    start: int,
    num_steps: int,
    num_paths: int,
    observe: bool = False,
) -> list[Backtest]:
    device = series.close.device
    begin = torch.full((num_paths,), start, dtype=torch.int64, device=device)
    state = reset(series, rules, begin, begin + num_steps)
    begun, rows = state.equity.cpu().numpy(), _Rows()
    ruined = torch.zeros(num_paths, dtype=torch.bool, device=device)
    for s in range(num_steps):
        action = act(s, state.t, account_observation(series, rules, state) if observe else None)
        state, result = step(series, rules, state, action)
        cost = result.cost + result.financing
        rows.append(result.equity, result.weights, target_weights(rules, action), result.turnover, cost)
        ruined = ruined | result.terminated
    equity, weights, targets, turnover, costs = map(_by_path, rows.taken_out())
    return [
        Backtest(
            equity=np.concatenate((begun[n : n + 1], equity[n])),
            weights=weights[n],
            targets=targets[n],
            turnover=turnover[n],
            cost=costs[n],
            start=start,
            ruined=bool(ruined[n]),
            periods_per_year=rules.periods_per_year,
        )
        for n in range(num_paths)
    ]


def _by_path(values: NDArray[Any]) -> list[NDArray[Any]]:
    """[S, N, ...] -> N arrays [S, ...] of their own."""
    return [np.ascontiguousarray(values[:, path]) for path in range(values.shape[1])]


def _actions(rules: MarketRules, weights: Floats) -> Floats:
    """Inverse of ``target_weights`` for weights within the limits."""
    return weights / rules.max_weight if rules.allow_short else 2.0 * weights / rules.max_weight - 1.0


def _check_fits(series: MarketSeries, start: int, end: int) -> None:
    if not 0 <= start < end < series.num_bars:
        raise ValueError(f"bars {start} to {end} are not inside a series of {series.num_bars} bars")


def _check_limits(rules: MarketRules, weights: Floats) -> None:
    known = np.nan_to_num(weights, nan=0.0)
    largest, gross = float(np.abs(known).max()), float(np.abs(known).sum(axis=-1).max())
    if largest > rules.max_weight * (1 + 1e-9):
        raise ConfigError(f"a target weight of {largest:g} is above env.max_weight {rules.max_weight:g}", "lower it")
    if gross > rules.max_leverage * (1 + 1e-9):
        raise ConfigError(f"target weights add to {gross:g}, env.max_leverage is {rules.max_leverage:g}", "lower them")
    if known.min() < 0.0 and not rules.allow_short:
        raise ConfigError(f"a target weight is {known.min():g}", "set env.allow_short=true or use weights from 0")
