import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from trade_agent.errors import DataError
from trade_agent.evaluation.forecast import ForecastEvaluation, evaluate_forecast
from trade_agent.evaluation.grading import grade, policy_from_dict

NUM_BARS = 3000
TRAIN, ROWS = range(1500), range(1600, NUM_BARS)
DEFAULT = yaml.safe_load((Path(__file__).resolve().parents[2] / "conf/grading/default.yaml").read_text())
POLICY = policy_from_dict({key: value for key, value in DEFAULT.items() if key != "defaults"})


def returns(rho: float, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, 0.01, NUM_BARS)
    result = np.zeros(NUM_BARS)
    for i in range(1, NUM_BARS):
        result[i] = rho * result[i - 1] + noise[i]
    return result


def evaluate(past: np.ndarray, expected: np.ndarray, seed: int = 0) -> ForecastEvaluation:
    return evaluate_forecast(
        1 / (1 + np.exp(-200 * expected)),
        expected,
        past_return=past,
        target=np.append(past[1:], np.nan),
        train=TRAIN,
        rows=ROWS,
        horizon_bars=1,
        seed=seed,
        num_resamples=800,
    )


def test_skill_is_found():
    past = returns(0.6)
    result = evaluate(past, 0.6 * past[ROWS.start :])
    assert result.num_bars == len(ROWS) - 1  # the last row has no target
    assert result.comparisons["base_rate"].beats
    assert result.comparisons["last_value"].beats
    assert result.comparisons["historical_mean"].beats
    assert not result.comparisons["ar1"].beats  # the right model does not beat its own estimate by much
    assert grade("cnn_lstm", result.grade_inputs(), POLICY).grade.value == "A+"
    json.dumps(result.as_dict(), allow_nan=False)


def test_noise_is_not_skill():
    wins = 0
    for seed in range(20):
        past = returns(0.0, seed)
        guess = np.random.default_rng(seed + 500).normal(0, 0.001, len(ROWS))
        result = evaluate(past, guess, seed)
        wins += result.comparisons["base_rate"].beats or result.comparisons["last_value"].beats
        assert grade("cnn_lstm", result.grade_inputs(), POLICY).grade.value in ("D", "C")
    assert wins <= 2


def test_same_seed_same_numbers():
    past = returns(0.2)
    first, again = (evaluate(past, 0.2 * past[ROWS.start :], seed=7).as_dict() for _ in range(2))
    assert first == again


def test_the_naive_forecast_does_not_beat_itself():
    past = returns(0.2)
    result = evaluate(past, np.zeros(len(ROWS)))
    assert not result.comparisons["last_value"].beats
    assert result.comparisons["last_value"].interval.high == 0.0


def test_broken_forecasts_are_refused():
    past = returns(0.2)
    with pytest.raises(DataError, match="probability_up holds NaN"):
        evaluate(past, np.full(len(ROWS), np.nan))
