"""Everything that is said about a trading model on its test bars, from one backtest."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trade_agent.envs.rules import MarketRules
from trade_agent.envs.series import MarketSeries
from trade_agent.evaluation.backtest import COST_BPS, Backtest, cost_sensitivity, costs_modelled, simulate
from trade_agent.evaluation.baselines import BASELINES, BaselineInputs
from trade_agent.evaluation.significance import (
    NUM_RESAMPLES,
    Comparison,
    Interval,
    beats,
    deflated_sharpe_ratio,
    mean_interval,
    probabilistic_sharpe_ratio,
    sharpe_interval,
)

# One random path is luck: of this many the one with the median final equity is shown.
NUM_RANDOM_PATHS = 31


@dataclass(frozen=True, slots=True)
class TradingEvaluation:
    """The test results of one trading model; ``as_dict`` gives plain values.

    Attributes:
        metrics: of the model, see ``trading_metrics``.
        baselines: the same per baseline, on the same bars with the same costs.
        comparisons: model against baseline, mean difference of returns per bar.
        sharpe: annual Sharpe ratio with its bootstrap interval.
        mean_return: mean return per bar with its bootstrap interval.
        probabilistic_sharpe: probability that the true Sharpe ratio is above 0.
        deflated_sharpe: the same after the best of ``num_trials`` was kept.
        cost_sensitivity: metrics of the same decisions at other costs, by basis points of traded notional.
        first_time, last_time: ISO 8601, the bar of the first decision and the last bar.
        curves: equity [S+1] of each baseline, for plots; not part of ``as_dict``.
    """

    metrics: dict[str, float]
    baselines: dict[str, dict[str, float]]
    comparisons: dict[str, Comparison]
    sharpe: Interval
    mean_return: Interval
    probabilistic_sharpe: float
    deflated_sharpe: float
    cost_sensitivity: dict[str, dict[str, float]]
    num_bars: int
    num_trials: int
    num_seeds: int
    num_windows: int
    costs_modelled: bool
    ruined: bool
    first_time: str
    last_time: str
    curves: dict[str, NDArray[np.float64]]

    def as_dict(self) -> dict[str, Any]:
        """Plain containers, numbers and text, without the curves."""
        values = asdict(self)
        del values["curves"]
        return values

    def grade_inputs(self) -> dict[str, float]:
        """The flat metrics that a grading policy may name."""
        return {
            **self.metrics,
            **{f"beats_{name}": float(comparison.beats) for name, comparison in self.comparisons.items()},
            "sharpe_low": self.sharpe.low,
            "probabilistic_sharpe_probability": self.probabilistic_sharpe,
            "deflated_sharpe_probability": self.deflated_sharpe,
            "costs_modelled": float(self.costs_modelled),
            "ruined": float(self.ruined),
            "num_bars": float(self.num_bars),
            "num_trials": float(self.num_trials),
            "num_seeds": float(self.num_seeds),
            "num_windows": float(self.num_windows),
        }


def evaluate_trading(
    backtest: Backtest,
    *,
    series: MarketSeries,
    rules: MarketRules,
    timestamps: NDArray[np.datetime64],
    seed: int,
    num_trials: int,
    trial_sharpe_variance: float | None = None,
    num_seeds: int = 1,
    num_windows: int = 1,
    confidence: float = 0.95,
    num_resamples: int = NUM_RESAMPLES,
    cost_bps: Sequence[float] = COST_BPS,
) -> TradingEvaluation:
    """Scores a model's backtest against every baseline on the same bars and says how sure the result is.

    Args:
        backtest: of the model under ``rules`` on ``series``.
        timestamps: [T] of the bars.
        seed: of the bootstrap and of the random baseline; the same seed gives the same numbers.
        num_trials: runs among which this one was chosen, itself included.
        trial_sharpe_variance: variance of their Sharpe ratios per bar, see ``deflated_sharpe_ratio``.
        num_seeds, num_windows: training seeds and walk-forward windows behind the result.

    Raises:
        DataError: the equity holds NaN or infinity.
    """
    num_bars = len(backtest.turnover)
    metrics, returns = backtest.metrics(), backtest.returns
    runs = baseline_backtests(series, rules, start=backtest.start, num_steps=num_bars, like=backtest, seed=seed)
    rng = np.random.default_rng([seed, 1])
    comparisons = {
        name: beats(returns, run.returns, rng=rng, confidence=confidence, num_resamples=num_resamples)
        for name, run in runs.items()
    }
    costs = cost_sensitivity(series, rules, backtest.targets, start=backtest.start, bps=cost_bps)
    return TradingEvaluation(
        metrics=metrics,
        baselines={name: run.metrics() for name, run in runs.items()},
        comparisons=comparisons,
        sharpe=sharpe_interval(
            returns, rules.periods_per_year, rng=rng, confidence=confidence, num_resamples=num_resamples
        ),
        mean_return=mean_interval(returns, rng=rng, confidence=confidence, num_resamples=num_resamples),
        probabilistic_sharpe=probabilistic_sharpe_ratio(returns),
        deflated_sharpe=deflated_sharpe_ratio(returns, num_trials, trial_sharpe_variance),
        cost_sensitivity={f"{bps:g}": run.metrics() for bps, run in costs.items()},
        num_bars=num_bars,
        num_trials=num_trials,
        num_seeds=num_seeds,
        num_windows=num_windows,
        costs_modelled=costs_modelled(rules),
        ruined=backtest.ruined,
        first_time=str(np.datetime_as_string(timestamps[backtest.start], unit="s")),
        last_time=str(np.datetime_as_string(timestamps[backtest.start + num_bars], unit="s")),
        curves={name: run.equity for name, run in runs.items()},
    )


def baseline_backtests(
    series: MarketSeries, rules: MarketRules, *, start: int, num_steps: int, like: Backtest, seed: int
) -> dict[str, Backtest]:
    """Every baseline over the same bars; ``random`` trades as much per bar as ``like`` does."""
    close, tradable = series.close.cpu().numpy(), series.tradable.cpu().numpy()
    draws = [(name, draw) for name in BASELINES for draw in range(NUM_RANDOM_PATHS if name == "random" else 1)]
    weights = np.empty((num_steps, len(draws), series.num_assets))
    for path, (name, draw) in enumerate(draws):
        inputs = BaselineInputs(
            close=close,
            tradable=tradable,
            rows=range(start, start + num_steps),
            max_weight=rules.max_weight,
            max_leverage=rules.max_leverage,
            allow_short=rules.allow_short,
            turnover=float(np.mean(like.turnover)),
            rng=np.random.default_rng([seed, 2, draw]),
            fill_delay_bars=rules.latency_bars + (0 if rules.fill == "same_close" else 1),
        )
        weights[:, path] = BASELINES[name](inputs)
    runs = simulate(series, rules, weights, start=start)
    by_name = {name: run for (name, _), run in zip(draws, runs, strict=True) if name != "random"}
    chance = sorted(
        (run for (name, _), run in zip(draws, runs, strict=True) if name == "random"),
        key=lambda run: float(run.equity[-1]),
    )
    return {**by_name, "random": chance[len(chance) // 2]}
