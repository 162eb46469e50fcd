import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from trade_agent.envs.rules import MarketRules
from trade_agent.envs.series import MarketSeries
from trade_agent.evaluation.backtest import Backtest, simulate
from trade_agent.evaluation.baselines import BASELINES
from trade_agent.evaluation.grading import grade, policy_from_dict
from trade_agent.evaluation.trading import TradingEvaluation, evaluate_trading

NUM_BARS, START = 420, 100
TIMES = np.datetime64("2020-01-01", "ns") + np.arange(NUM_BARS) * np.timedelta64(1, "D")
RULES = MarketRules()
DEFAULT = yaml.safe_load((Path(__file__).resolve().parents[2] / "conf/grading/default.yaml").read_text())
POLICY = policy_from_dict({key: value for key, value in DEFAULT.items() if key != "defaults"})


def market(seed: int = 0) -> MarketSeries:
    close = 100 * np.exp(np.cumsum(np.random.default_rng(seed).normal(0, 0.01, (NUM_BARS, 1)), axis=0))
    open_ = np.vstack([close[:1], close[:-1]])
    return MarketSeries(
        open=torch.tensor(open_), close=torch.tensor(close), tradable=torch.ones(NUM_BARS, 1, dtype=torch.bool)
    )


def evaluate(
    weights: np.ndarray,
    series: MarketSeries,
    rules: MarketRules = RULES,
    seed: int = 0,
    num_trials: int = 1,
    cost_bps: tuple[float, ...] = (),
) -> tuple[Backtest, TradingEvaluation]:
    backtest = simulate(series, rules, weights[:, None, None], start=START)[0]
    result = evaluate_trading(
        backtest,
        series=series,
        rules=rules,
        timestamps=TIMES,
        seed=seed,
        num_trials=num_trials,
        num_resamples=500,
        cost_bps=cost_bps,
    )
    return backtest, result


def noise_weights(seed: int = 1) -> np.ndarray:
    return np.repeat(np.random.default_rng(seed).uniform(-1, 1, 30), 10)[: NUM_BARS - START - 1]


def test_everything_is_reported_and_plain():
    _, result = evaluate(noise_weights(), market(), cost_bps=(0, 5, 10, 20, 50))
    assert list(result.baselines) == list(result.comparisons) == list(result.curves) == list(BASELINES)
    assert result.num_bars == 300
    assert (result.first_time, result.last_time) == ("2020-04-10T00:00:00", "2021-02-04T00:00:00")
    text = json.dumps(result.as_dict(), allow_nan=False)
    assert "curves" not in text
    assert list(result.cost_sensitivity) == ["0", "5", "10", "20", "50"]
    assert result.sharpe.low < result.sharpe.estimate < result.sharpe.high
    assert result.sharpe.estimate == pytest.approx(result.metrics["sharpe"])


def test_same_seed_same_numbers():
    first, again, other = (evaluate(noise_weights(), market(), seed=seed)[1].as_dict() for seed in (3, 3, 4))
    assert first == again
    assert first != other


def test_random_trades_about_as_much_as_the_model():
    _, result = evaluate(noise_weights(), market())
    assert result.baselines["random"]["turnover"] == pytest.approx(result.metrics["turnover"], rel=0.3)
    assert result.baselines["flat"]["num_trades"] == 0
    assert result.baselines["buy_and_hold"]["num_trades"] == 1


def test_a_baseline_does_not_beat_itself():
    weights = np.full(NUM_BARS - START - 1, np.nan)
    weights[0] = 1.0
    backtest, result = evaluate(weights, market())
    assert np.array_equal(backtest.equity, result.curves["buy_and_hold"])
    assert not result.comparisons["buy_and_hold"].beats
    assert result.comparisons["buy_and_hold"].interval.high == 0.0


def test_staying_flat_is_a_c_and_not_an_f():
    _, result = evaluate(np.zeros(NUM_BARS - START - 1), market())
    assert result.metrics["sharpe"] == 0.0
    assert grade("ppo", result.grade_inputs(), POLICY).grade.value == "C"


def test_foresight_is_graded_by_its_evidence():
    series = market()
    close = series.close.numpy()[:, 0]
    # filled at the open of t+1, which is the close of t, and held to the close of t+1
    ahead = np.sign(close[START + 1 :] - close[START:-1])[: NUM_BARS - START - 1]
    _, result = evaluate(ahead, series)
    assert result.comparisons["flat"].beats
    assert result.comparisons["buy_and_hold"].beats
    decision = grade("ppo", result.grade_inputs(), POLICY)
    assert decision.grade.value == "A+"  # one seed, one window: never S
    _, free = evaluate(ahead, series, rules=replace(RULES, commission_bps=0, half_spread_bps=0, slippage_bps=0))
    assert grade("ppo", free.grade_inputs(), POLICY).grade.value == "C"


def test_trials_count():
    one, many = (evaluate(noise_weights(), market(), num_trials=n)[1] for n in (1, 100))
    assert one.deflated_sharpe == one.probabilistic_sharpe
    assert many.deflated_sharpe < one.deflated_sharpe


@pytest.mark.slow
def test_noise_is_graded_above_c_in_at_most_seven_of_a_hundred_runs():
    above = 0
    for seed in range(100):
        _, result = evaluate(noise_weights(seed + 1000), market(seed))
        decision = grade("ppo", result.grade_inputs(), POLICY)
        above += result.comparisons["flat"].beats or decision.grade.value not in ("F", "D", "C")
    assert above <= 7
