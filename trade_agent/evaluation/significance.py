"""How sure a result is: block bootstrap, probabilistic and deflated Sharpe ratio, several seeds.

Returns are autocorrelated and so are overlapping forecasts, hence whole blocks are drawn, never single bars. Sharpe
ratios inside this module are per bar unless a name says annual.
"""

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from trade_agent.evaluation.metrics import is_riskless, sharpe_ratio

Floats = NDArray[np.float64]

NUM_RESAMPLES = 4000
# With fewer bars on which two strategies differ, a percentile interval is narrower than it claims: four lucky bars out
# of four would already exclude zero.
MIN_ACTIVE_BARS = 20


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with its two-sided interval at ``confidence``."""

    estimate: float
    low: float
    high: float
    confidence: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """Mean difference per bar between a series and a baseline, and whether it is beyond doubt.

    ``num_active`` counts the bars on which the two differ.
    """

    interval: Interval
    beats: bool
    num_active: int


def default_block_bars(num_bars: int) -> int:
    """Mean block length: it must grow as the cube root of the sample (Politis and White, 2004)."""
    return max(1, round(num_bars ** (1.0 / 3.0)))


def resampled_block_sums(columns: Floats, *, num_resamples: int, block_bars: int, rng: np.random.Generator) -> Floats:
    """Sums over stationary-bootstrap resamples (Politis and Romano, 1994).

    Blocks start anywhere with equal chance, have geometric lengths of mean ``block_bars`` and wrap around the end. A
    statistic that is a function of moments needs only sums over blocks, and those are differences of one cumulative
    sum: the cost is the number of blocks, not the number of bars.

    Args:
        columns: [S, K] series, for instance returns and squared returns.

    Returns:
        [num_resamples, K] sums over S drawn bars.
    """
    num_bars = len(columns)
    block = min(max(1, block_bars), num_bars)
    expected = num_bars / block
    num_blocks = math.ceil(expected + 6.0 * math.sqrt(expected) + 6.0)
    ends = np.cumsum(rng.geometric(1.0 / block, size=(num_resamples, num_blocks)), axis=1)
    ends[:, -1] = num_bars  # in the rare draw whose blocks do not reach S the last one is stretched
    ends = np.minimum(ends, num_bars)
    lengths = np.diff(ends, axis=1, prepend=0)
    starts = rng.integers(num_bars, size=lengths.shape)
    wrapped = np.concatenate([columns, columns])
    cumulative = np.concatenate([np.zeros((1, columns.shape[1])), np.cumsum(wrapped, axis=0)])
    return (cumulative[starts + lengths] - cumulative[starts]).sum(axis=1)


def _percentiles(samples: Floats, estimate: float, confidence: float) -> Interval:
    low, high = np.quantile(samples, [(1.0 - confidence) / 2.0, (1.0 + confidence) / 2.0])
    return Interval(estimate, float(low), float(high), confidence)


def mean_interval(
    values: Floats,
    *,
    rng: np.random.Generator,
    confidence: float = 0.95,
    num_resamples: int = NUM_RESAMPLES,
    block_bars: int | None = None,
) -> Interval:
    """Bootstrap interval of the mean of a series [S] of finite numbers; of width 0 for a constant series."""
    estimate = float(np.mean(values))
    if is_riskless(values):
        return Interval(estimate, estimate, estimate, confidence)
    block = block_bars or default_block_bars(len(values))
    sums = resampled_block_sums(values[:, None] - estimate, num_resamples=num_resamples, block_bars=block, rng=rng)
    return _percentiles(estimate + sums[:, 0] / len(values), estimate, confidence)


def sharpe_interval(
    returns: Floats,
    periods_per_year: float,
    *,
    rng: np.random.Generator,
    confidence: float = 0.95,
    num_resamples: int = NUM_RESAMPLES,
    block_bars: int | None = None,
) -> Interval:
    """Bootstrap interval of the annual Sharpe ratio of returns [S]; (0, 0, 0) for constant returns."""
    if is_riskless(returns):
        return Interval(0.0, 0.0, 0.0, confidence)
    mean, num_bars = float(np.mean(returns)), len(returns)
    centred = returns - mean
    block = block_bars or default_block_bars(num_bars)
    sums = resampled_block_sums(
        np.stack([centred, centred**2], axis=1), num_resamples=num_resamples, block_bars=block, rng=rng
    )
    shift = sums[:, 0] / num_bars
    variance = np.maximum(sums[:, 1] / num_bars - shift**2, 0.0) * num_bars / (num_bars - 1)
    # A resample of nothing but idle bars has no risk and, as everywhere, a Sharpe ratio of 0.
    risky = variance > 1e-12 * float(np.var(returns))
    sharpes = np.where(risky, (mean + shift) / np.sqrt(np.where(risky, variance, 1.0)), 0.0)
    return _percentiles(sharpes * math.sqrt(periods_per_year), sharpe_ratio(returns, periods_per_year), confidence)


def beats(
    returns: Floats,
    baseline_returns: Floats,
    *,
    rng: np.random.Generator,
    confidence: float = 0.95,
    num_resamples: int = NUM_RESAMPLES,
    block_bars: int | None = None,
) -> Comparison:
    """Compares two series [S] on the same bars by the mean of their paired difference.

    ``beats`` is true only when the whole interval lies above 0 and the two differ on at least ``MIN_ACTIVE_BARS`` bars;
    identical series never beat each other. A one-sided test of level (1 - confidence) / 2.

    Raises:
        ValueError: the series differ in length.
    """
    if returns.shape != baseline_returns.shape:
        raise ValueError(f"the series differ in shape: {returns.shape} and {baseline_returns.shape}")
    difference = returns - baseline_returns
    num_active = int(np.count_nonzero(np.abs(difference) > 1e-15))
    interval = mean_interval(
        difference, rng=rng, confidence=confidence, num_resamples=num_resamples, block_bars=block_bars
    )
    return Comparison(interval, interval.low > 0.0 and num_active >= MIN_ACTIVE_BARS, num_active)


def _skewness_and_kurtosis(returns: Floats) -> tuple[float, float]:
    centred = returns - returns.mean()
    variance = float(np.mean(centred**2))
    return float(np.mean(centred**3)) / variance**1.5, float(np.mean(centred**4)) / variance**2


def sharpe_probability(
    sharpe: float, benchmark: float, num_bars: int, skewness: float = 0.0, kurtosis: float = 3.0
) -> float:
    """Chance that the true Sharpe ratio is above ``benchmark``, all per bar.

    Bailey and Lopez de Prado (2012), "The Sharpe ratio efficient frontier", eq. 11:
    PSR = Phi[ (SR - SR*) sqrt(n - 1) / sqrt(1 - g3 SR + (g4 - 1) / 4 SR^2) ], g4 not in excess of the normal one.
    """
    spread = math.sqrt(max(1.0 - skewness * sharpe + (kurtosis - 1.0) / 4.0 * sharpe**2, 1e-12))
    return NormalDist().cdf((sharpe - benchmark) * math.sqrt(max(num_bars - 1, 0)) / spread)


def expected_max_sharpe(num_trials: int, trial_variance: float) -> float:
    """Sharpe ratio per bar that the best of ``num_trials`` worthless trials is expected to show.

    Bailey and Lopez de Prado (2014), "The deflated Sharpe ratio", eq. 1 with a mean of 0:
    SR0 = sqrt(V) ((1 - g) Phi^-1[1 - 1/N] + g Phi^-1[1 - 1/(N e)]), g Euler's constant. One trial selects nothing: 0.
    """
    if num_trials <= 1:
        return 0.0
    inverse = NormalDist().inv_cdf
    best = (1.0 - np.euler_gamma) * inverse(1.0 - 1.0 / num_trials)
    return math.sqrt(trial_variance) * (best + np.euler_gamma * inverse(1.0 - 1.0 / (num_trials * math.e)))


def probabilistic_sharpe_ratio(returns: Floats, benchmark: float = 0.0) -> float:
    """Probability that the Sharpe ratio of returns [S] is truly above ``benchmark`` (per bar)."""
    if is_riskless(returns):
        return sharpe_probability(0.0, benchmark, len(returns))
    return sharpe_probability(sharpe_ratio(returns, 1.0), benchmark, len(returns), *_skewness_and_kurtosis(returns))


def deflated_sharpe_ratio(returns: Floats, num_trials: int, trial_variance: float | None = None) -> float:
    """Probability that the Sharpe ratio is truly above 0 after the best of ``num_trials`` was kept (the same, eq. 2).

    ``trial_variance`` is the variance of the Sharpe ratios per bar over the trials. Without it the variance that
    worthless independent trials of this length have is taken: 1 / (S - 1).

    Raises:
        ValueError: ``num_trials`` below 1.
    """
    if num_trials < 1:
        raise ValueError(f"num_trials is {num_trials}; the run itself is one trial")
    variance = 1.0 / max(len(returns) - 1, 1) if trial_variance is None else trial_variance
    return probabilistic_sharpe_ratio(returns, expected_max_sharpe(num_trials, variance))


def interquartile_mean(scores: Floats) -> float:
    """Mean of the middle half of all scores: a quarter of them, rounded down, is cut at each end."""
    ordered = np.sort(scores, axis=None)
    cut = ordered.size // 4
    return float(ordered[cut : ordered.size - cut].mean())


def interquartile_mean_interval(
    scores: Floats, *, rng: np.random.Generator, confidence: float = 0.95, num_resamples: int = NUM_RESAMPLES
) -> Interval:
    """Interquartile mean over seeds with its stratified bootstrap interval (Agarwal et al., 2021).

    Args:
        scores: [num_seeds, num_tasks] finite numbers; seeds are drawn anew within each task.
    """
    num_seeds, num_tasks = scores.shape
    drawn = rng.integers(num_seeds, size=(num_resamples, num_seeds, num_tasks))
    samples = np.sort(scores[drawn, np.arange(num_tasks)].reshape(num_resamples, -1), axis=1)
    cut = samples.shape[1] // 4
    return _percentiles(samples[:, cut : samples.shape[1] - cut].mean(axis=1), interquartile_mean(scores), confidence)
