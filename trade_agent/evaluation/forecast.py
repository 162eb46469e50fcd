"""Everything that is said about a forecaster on its test bars."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trade_agent.evaluation.baselines import FORECAST_BASELINES, ForecastInputs
from trade_agent.evaluation.metrics import forecast_metrics
from trade_agent.evaluation.significance import NUM_RESAMPLES, Comparison, beats, default_block_bars

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ForecastEvaluation:
    """The test results of one forecaster for one asset and horizon; ``as_dict`` gives plain values.

    Attributes:
        metrics: of the model, see ``forecast_metrics``.
        baselines: the same per baseline on the same rows.
        comparisons: per baseline the mean reduction of the squared error; under ``base_rate`` the mean gain of hits
            over always naming the commoner direction of these rows.
    """

    metrics: dict[str, float]
    baselines: dict[str, dict[str, float]]
    comparisons: dict[str, Comparison]
    horizon_bars: int
    num_bars: int
    num_seeds: int
    num_windows: int

    def as_dict(self) -> dict[str, Any]:
        """Plain containers, numbers and text."""
        return asdict(self)

    def grade_inputs(self) -> dict[str, float]:
        """The flat metrics that a grading policy may name."""
        return {
            **self.metrics,
            **{f"beats_{name}": float(comparison.beats) for name, comparison in self.comparisons.items()},
            "num_bars": float(self.num_bars),
            "num_seeds": float(self.num_seeds),
            "num_windows": float(self.num_windows),
        }


def evaluate_forecast(
    probability_up: Floats,
    expected_return: Floats,
    *,
    past_return: Floats,
    target: Floats,
    train: range,
    rows: range,
    horizon_bars: int,
    seed: int,
    num_seeds: int = 1,
    num_windows: int = 1,
    confidence: float = 0.95,
    num_resamples: int = NUM_RESAMPLES,
) -> ForecastEvaluation:
    """Scores forecasts for ``rows`` against every forecasting baseline.

    Args:
        probability_up, expected_return: [S] the forecasts made at the close of each bar of ``rows``.
        past_return: [T] return of the bar that ended at t, of the kind that the target is (simple or logarithmic).
        target: [T] return from the close of t over the horizon; NaN where it leaves the data.
        train: rows the baselines are fitted on; their targets must end before ``rows`` start.
        rows: the S test rows; those without a target are left out.
        horizon_bars: overlapping targets make errors dependent, so blocks span at least two horizons.

    Raises:
        DataError: no test row has a target, or a forecast is NaN or infinite.
    """
    known = np.isfinite(target[rows.start : rows.stop])
    realised = target[rows.start : rows.stop][known]
    probability, expected = probability_up[known], expected_return[known]
    metrics = forecast_metrics(probability, expected, realised)
    inputs = ForecastInputs(past_return=past_return, target=target, train=train, rows=rows)
    forecasts = {name: baseline(inputs) for name, baseline in FORECAST_BASELINES.items()}
    block_bars = max(default_block_bars(len(realised)), 2 * horizon_bars)
    rng = np.random.default_rng([seed, 1])

    def compare(gain: Floats, baseline_gain: Floats) -> Comparison:
        return beats(
            gain, baseline_gain, rng=rng, confidence=confidence, num_resamples=num_resamples, block_bars=block_bars
        )

    up = realised > 0.0
    hits = ((probability > 0.5) == up).astype(np.float64)
    constant_hits = (up == (up.mean() >= 0.5)).astype(np.float64)
    comparisons = {"base_rate": compare(hits, constant_hits)}
    for name, forecast in forecasts.items():
        comparisons[name] = compare(-((expected - realised) ** 2), -((forecast.expected_return[known] - realised) ** 2))
    return ForecastEvaluation(
        metrics=metrics,
        baselines={
            name: forecast_metrics(forecast.probability_up[known], forecast.expected_return[known], realised)
            for name, forecast in forecasts.items()
        },
        comparisons=comparisons,
        horizon_bars=horizon_bars,
        num_bars=len(realised),
        num_seeds=num_seeds,
        num_windows=num_windows,
    )
