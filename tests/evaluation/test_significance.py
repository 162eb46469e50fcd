import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from trade_agent.evaluation.significance import (
    beats,
    deflated_sharpe_ratio,
    expected_max_sharpe,
    interquartile_mean,
    interquartile_mean_interval,
    mean_interval,
    probabilistic_sharpe_ratio,
    resampled_block_sums,
    sharpe_interval,
    sharpe_probability,
)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_numbers_of_the_deflated_sharpe_paper():
    """Bailey and Lopez de Prado (2014), numerical example: five years of 250 days, SR 2.5 a year, V 1/2 a year."""
    variance, sharpe = 0.5 / 250, 2.5 / math.sqrt(250)
    assert expected_max_sharpe(100, variance) == pytest.approx(0.1132, abs=5e-5)
    deflated = sharpe_probability(sharpe, expected_max_sharpe(100, variance), 1250, skewness=-3.0, kurtosis=10.0)
    assert deflated == pytest.approx(0.9004, abs=5e-5)
    deflated = sharpe_probability(sharpe, expected_max_sharpe(46, variance), 1250, skewness=-3.0, kurtosis=10.0)
    assert deflated == pytest.approx(0.9505, abs=5e-5)


def test_probabilistic_sharpe_uses_the_moments_of_the_returns():
    returns = stats.skewnorm.rvs(-5, size=800, random_state=0) * 0.01 + 0.001
    sharpe = returns.mean() / returns.std(ddof=1)
    benchmark = sharpe - 0.03  # about one standard error away, where the probability still moves
    expected = sharpe_probability(sharpe, benchmark, 800, stats.skew(returns), stats.kurtosis(returns, fisher=False))
    assert 0.6 < expected < 0.95
    assert probabilistic_sharpe_ratio(returns, benchmark) == pytest.approx(expected, abs=1e-12)


def test_more_trials_deflate_more():
    returns = rng().normal(0.0008, 0.01, 1000)
    values = [deflated_sharpe_ratio(returns, trials) for trials in (1, 2, 10, 100, 1000)]
    assert values[0] == probabilistic_sharpe_ratio(returns)
    assert values == sorted(values, reverse=True)
    assert values[-1] < values[0] - 0.1
    with pytest.raises(ValueError, match="num_trials is 0"):
        deflated_sharpe_ratio(returns, 0)


def test_constant_returns_are_no_evidence():
    flat = np.zeros(300)
    assert probabilistic_sharpe_ratio(flat) == 0.5
    assert deflated_sharpe_ratio(flat, 10) < 0.5
    interval = sharpe_interval(flat, 252.0, rng=rng())
    assert (interval.estimate, interval.low, interval.high) == (0.0, 0.0, 0.0)


def test_block_sums_draw_exactly_as_many_bars_as_there_are():
    ones = np.ones((137, 1))
    for block in (1, 5, 40, 137, 1000):
        assert np.array_equal(
            resampled_block_sums(ones, num_resamples=300, block_bars=block, rng=rng()), np.full((300, 1), 137.0)
        )


def test_block_sums_have_the_moments_of_the_stationary_bootstrap():
    """For blocks of mean length 1 the sum has the variance of independent draws; longer ones keep autocorrelation."""
    independent = rng(1).normal(0, 1, 2000)
    sums = resampled_block_sums(independent[:, None], num_resamples=1500, block_bars=1, rng=rng())
    assert sums.std() == pytest.approx(math.sqrt(2000) * independent.std(), rel=0.08)
    assert sums.mean() == pytest.approx(independent.sum(), abs=4 * math.sqrt(2000 / 1500))

    persistent = np.zeros(4000)
    noise = rng(2).normal(0, 1, 4000)
    for i in range(1, 4000):
        persistent[i] = 0.8 * persistent[i - 1] + noise[i]
    true_deviation = math.sqrt(4000) / (1 - 0.8)  # long-run deviation of an AR(1)
    short, long = (
        resampled_block_sums(persistent[:, None], num_resamples=800, block_bars=b, rng=rng()).std() for b in (1, 60)
    )
    assert short < 0.5 * true_deviation
    assert long == pytest.approx(true_deviation, rel=0.2)


def test_same_seed_same_interval():
    returns = rng(3).normal(0, 0.01, 400)
    assert sharpe_interval(returns, 252.0, rng=rng(5)) == sharpe_interval(returns, 252.0, rng=rng(5))
    assert sharpe_interval(returns, 252.0, rng=rng(5)) != sharpe_interval(returns, 252.0, rng=rng(6))


def test_sharpe_interval_has_the_known_width():
    """Two years of daily bars leave a standard error of about 0.7 on an annual Sharpe ratio (Lo, 2002)."""
    interval = sharpe_interval(rng(4).normal(0.0004, 0.01, 504), 252.0, rng=rng())
    assert interval.low < interval.estimate < interval.high
    assert (interval.high - interval.low) / (2 * 1.96) == pytest.approx(math.sqrt(252 / 504), rel=0.15)


def test_interval_covers_the_true_mean_about_as_often_as_it_says():
    covered = 0
    for seed in range(300):
        interval = mean_interval(rng(seed).normal(1.0, 2.0, 300), rng=rng(seed + 1000), num_resamples=800)
        covered += interval.low <= 1.0 <= interval.high
    assert 0.90 <= covered / 300 <= 0.98


def test_identical_series_do_not_beat_each_other():
    returns = rng().normal(0, 0.01, 500)
    comparison = beats(returns, returns.copy(), rng=rng())
    assert not comparison.beats
    assert comparison.interval.estimate == comparison.interval.low == comparison.interval.high == 0.0


def test_beats_only_beyond_doubt():
    noise = rng().normal(0, 0.01, 1000)
    better = noise + 0.002 + rng(1).normal(0, 0.005, 1000)
    assert beats(better, noise, rng=rng()).beats
    assert not beats(noise, better, rng=rng()).beats
    assert not beats(rng(7).normal(0, 0.01, 1000), noise, rng=rng()).beats


def test_a_handful_of_lucky_bars_is_no_proof():
    returns = np.zeros(500)
    returns[::50] = 0.01
    comparison = beats(returns, np.zeros(500), rng=rng())
    assert comparison.interval.low > 0.0  # the percentile interval alone would be fooled
    assert comparison.num_active == 10
    assert not comparison.beats
    constant_gain = beats(np.full(10, 0.01), np.zeros(10), rng=rng())
    assert not constant_gain.beats


def test_noise_is_called_better_at_the_stated_rate():
    wins = 0
    for seed in range(200):
        generator = rng(seed)
        position = np.sign(np.repeat(generator.normal(size=50), 10))  # held for ten bars each
        wins += beats(
            position * generator.standard_t(4, 500) * 0.01, np.zeros(500), rng=generator, num_resamples=600
        ).beats
    assert wins <= 0.05 * 200  # nominal 2.5 %, block bootstraps are a little liberal


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=60))
@settings(max_examples=60, deadline=None)
def test_interquartile_mean_agrees_with_scipy(scores):
    assert interquartile_mean(np.array(scores)) == pytest.approx(stats.trim_mean(scores, 0.25), abs=1e-12)


def test_interquartile_mean_interval_draws_within_tasks():
    scores = rng().normal(0, 1e-6, (5, 3)) + np.array([0.0, 100.0, 1000.0])
    interval = interquartile_mean_interval(scores, rng=rng())
    # Each draw keeps five scores of every task, so the spread between tasks does not enter.
    assert interval.high - interval.low < 1e-4
    assert interval.low <= interval.estimate <= interval.high


def test_different_lengths_are_refused():
    with pytest.raises(ValueError, match="differ in shape"):
        beats(np.zeros(3), np.zeros(4), rng=rng())
