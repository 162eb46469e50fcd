"""The optima that the agents are measured against are right: each is found again in another way."""

import itertools
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest

from benchmarks.learning import tasks
from benchmarks.learning.setting import Floats, blocks, compose, stage_context
from benchmarks.learning.signal_markets import (
    GP_BARS,
    LEAK_ACCOUNTS,
    gp_model,
    gp_policy,
    gp_value,
    leak_growth,
    leak_policy,
    solved_leak,
)
from benchmarks.optima import bayes, garleanu_pedersen, leak
from benchmarks.optima.garleanu_pedersen import Model, Policy
from trade_agent.data import synthetic
from trade_agent.training.dataset import MarketDataset

NORMAL = NormalDist()
COST = 0.001

# ------------------------------------------------------------------------------------------------ leak


def growth_of_the_rest(weight: float, returns: tuple[float, ...], horizon: int) -> float:
    """Best expected log growth over ``horizon`` bars, each return equally likely and seen before its bar, by trying
    every target at every node of the tree."""
    if horizon == 0:
        return 0.0
    total = 0.0
    for r in returns:
        options = []
        for target in (-1.0, 0.0, 1.0):
            after = 1.0 + target * r - COST * abs(target - weight)
            carried = target * (1.0 + r) / after
            options.append(np.log(after) + growth_of_the_rest(carried, returns, horizon - 1))
        total += max(options) / len(returns)
    return total


@pytest.mark.parametrize("start", [-1.0, 0.0, 1.0])
def test_dynamic_programming_equals_brute_force_on_short_paths(start: float) -> None:
    simple = (-0.004, -0.0007, 0.0015, 0.003)
    grid = leak.position_grid(201, margin=0.02)
    value = np.zeros(len(grid))
    for _ in range(3):
        value = leak.best(grid, value, grid[:, None], np.log1p(simple)[None, :], COST)[0].mean(axis=1)
    assert np.interp(start, grid, value) == pytest.approx(growth_of_the_rest(start, simple, 3), rel=2e-4)


def test_growth_of_the_optimum_is_that_of_a_threshold_at_half_the_turn() -> None:
    """Without compounding the best policy turns when 2 |r| > 2 c: it earns 2 (pdf(k) - k cdf(-k)), k = c / sigma."""
    optimum = leak.solve(volatility=0.002, cost=COST)
    threshold = 2.0 * (NORMAL.pdf(0.5) - 0.5 * NORMAL.cdf(-0.5))
    assert optimum.growth == pytest.approx(0.002 * threshold, rel=2e-3)


def test_targets_hold_below_the_threshold_and_turn_above() -> None:
    optimum = leak.solve(volatility=0.002, cost=COST)
    held = np.array([1.0, 1.0, 1.0, -1.0])
    targets = optimum.targets(held, np.array([0.003, -0.0009, -0.0015, 0.0015]))
    np.testing.assert_array_equal(targets, [1.0, 1.0, -1.0, 1.0])


def test_following_the_sign_earns_three_quarters_of_the_optimum() -> None:
    returns = 0.002 * np.random.default_rng(0).standard_normal(400_000)
    sign = np.sign(returns)
    turned = np.abs(np.diff(sign, prepend=0.0))
    growth = np.log(1.0 + sign * np.expm1(returns) - COST * turned).mean()
    assert growth / leak.solve(volatility=0.002, cost=COST).growth == pytest.approx(0.75, abs=0.01)


# ------------------------------------------------------------------------------------------------ Garleanu-Pedersen

GP = Model(reversion=0.1, volatility=0.002, risk_aversion=450.0, cost=1500.0, discount=0.9)
DEVIATION = 0.0004


@pytest.mark.parametrize("discount", [0.6, 0.9, 0.99])
def test_the_closed_form_solves_the_bellman_equation(discount: float) -> None:
    model = Model(reversion=0.1, volatility=0.002, risk_aversion=450.0, cost=1500.0, discount=discount)
    paper, iterated = garleanu_pedersen.closed_form(model), garleanu_pedersen.riccati(model)
    assert iterated.rate == pytest.approx(paper.rate, rel=1e-9)
    assert iterated.aim_per_factor == pytest.approx(paper.aim_per_factor, rel=1e-9)


def test_without_costs_the_aim_is_markowitz_at_once() -> None:
    model = Model(reversion=0.1, volatility=0.002, risk_aversion=450.0, cost=1e-9, discount=0.9)
    policy = garleanu_pedersen.closed_form(model)
    assert policy.rate == pytest.approx(1.0, abs=1e-6)
    assert policy.aim_per_factor == pytest.approx(1.0 / (450.0 * 0.002**2), rel=1e-6)


def test_the_closed_form_beats_perturbed_policies() -> None:
    best = garleanu_pedersen.closed_form(GP)
    top = garleanu_pedersen.value(GP, best, DEVIATION)
    for rate, aim in itertools.product((0.95, 1.0, 1.05), repeat=2):
        if (rate, aim) != (1.0, 1.0):
            other = Policy(rate * best.rate, aim * best.aim_per_factor)
            assert garleanu_pedersen.value(GP, other, DEVIATION) < top


def test_the_value_equals_a_simulation() -> None:
    rng, paths, bars = np.random.default_rng(0), 100_000, 120
    policy = garleanu_pedersen.closed_form(GP)
    factor, position, total = DEVIATION * rng.standard_normal(paths), np.zeros(paths), np.zeros(paths)
    for t in range(bars):
        target = policy.position(position, factor)
        trade, position = target - position, target
        risk = 0.5 * GP.volatility**2 * (GP.risk_aversion * position**2 + GP.cost * trade**2)
        total += GP.discount**t * (position * factor - risk)
        factor = 0.9 * factor + DEVIATION * np.sqrt(1.0 - 0.9**2) * rng.standard_normal(paths)
    error = total.std() / np.sqrt(paths)
    assert abs(total.mean() - garleanu_pedersen.value(GP, policy, DEVIATION)) < 3.0 * error
    assert error < 0.01 * total.mean()


# ------------------------------------------------------------------------------------------------ in the market


def market(name: str, signal: str, num_bars: int, folder: Path) -> MarketDataset:
    """Bars and rules of a benchmark as the command line makes them, nearly all of the bars for the test."""
    groups = ("stage=rl", "model=ppo", f"data={name}", f"env={name}")
    config = compose((*groups, tasks.signals(signal), *tasks.test_rows(num_bars, 0.1, 0.04)), seed=1)
    return stage_context(config, window_bars=1, horizons=[1], folder=folder).dataset


@pytest.mark.slow
def test_the_optimum_of_the_leak_is_what_its_policy_earns_in_the_market(tmp_path: Path) -> None:
    dataset = market("leak", "leak", 25_000, tmp_path)
    optimum, signal = solved_leak(dataset), dataset.bars.signals["leak"][:, 0]
    starts, num_bars = blocks(dataset.split.test, LEAK_ACCOUNTS)
    weight, total = np.zeros(LEAK_ACCOUNTS), np.zeros(LEAK_ACCOUNTS)
    for bar in range(num_bars):  # the recursion of the module's first lines, on the bars of the market
        r = signal[np.array(starts) + bar]
        target = optimum.targets(weight, r)
        after = 1.0 + target * np.expm1(r) - COST * np.abs(target - weight)
        total, weight = total + np.log(after), target * np.exp(r) / after
    earned = leak_growth(dataset)(leak_policy(optimum, signal))
    assert optimum.cost == pytest.approx(COST)
    assert earned == pytest.approx(total.mean() / num_bars * 1e4, rel=1e-6)
    assert earned == pytest.approx(optimum.growth * 1e4, rel=0.03)  # the standard error of 20,000 bars is 1 %


@pytest.fixture(scope="module")
def gp_dataset(tmp_path_factory: pytest.TempPathFactory) -> MarketDataset:
    return market("garleanu_pedersen", "factor", 60_000, tmp_path_factory.mktemp("market"))


def test_rules_of_the_config_are_the_model_of_the_paper(gp_dataset: MarketDataset) -> None:
    """What conf/env/garleanu_pedersen.yaml says of its own numbers."""
    model = gp_model(gp_dataset.rules, 0.9)
    policy = garleanu_pedersen.closed_form(model)
    assert (model.risk_aversion, model.cost) == (450.0, pytest.approx(1500.0))
    assert policy.rate == pytest.approx(0.396, abs=0.001)
    assert 5.0 * policy.aim_per_factor * DEVIATION == pytest.approx(0.993, abs=0.001)
    assert gp_dataset.rules.max_weight == 1.0


def test_the_closed_form_is_what_its_policy_earns_in_the_market(gp_dataset: MarketDataset) -> None:
    rows, factor = gp_dataset.split.test, gp_dataset.bars.signals["factor"][:, 0]
    growth = (gp_dataset.bars.close / gp_dataset.bars.open)[:, 0]
    policy = garleanu_pedersen.closed_form(GP)
    starts = np.arange(rows.start, rows.stop - GP_BARS - 1, 25)
    held: Floats = np.zeros(len(starts))
    expected = realised = 0.0
    for bar in range(GP_BARS):
        position = policy.position(held, factor[starts + bar])
        cost = 0.5 * GP.cost * GP.volatility**2 * (position - held) ** 2
        risk = 0.5 * GP.risk_aversion * GP.volatility**2 * position**2
        profit = position * (growth[starts + bar + 1] - 1.0) - cost
        expected += GP.discount**bar * (position * factor[starts + bar] - risk - cost).mean()
        realised += GP.discount**bar * (profit - 0.5 * GP.risk_aversion * profit**2).mean()
        held = position * growth[starts + bar + 1]  # shares are held, not notional
    in_market = gp_value(gp_dataset, GP.discount)(gp_policy(policy, factor, gp_dataset.rules.max_weight))
    assert in_market == pytest.approx((expected * 1e4, realised * 1e4), rel=1e-6)
    assert in_market[0] == pytest.approx(garleanu_pedersen.value(GP, policy, DEVIATION) * 1e4, rel=0.03)


# ------------------------------------------------------------------------------------------------ Bayes filters


def returns_of(market: str, num_bars: int = 60_000) -> np.ndarray:
    return synthetic.MARKETS[market](num_bars, np.random.default_rng(0)).bar_return


@pytest.mark.parametrize(
    ("market", "exact"),
    [
        ("ar", bayes.ar_accuracy(synthetic.AR_COEFFICIENT)),
        ("seasonal", bayes.seasonal_accuracy(synthetic.SEASONAL_AMPLITUDE)),
    ],
)
def test_accuracy_by_monte_carlo_equals_the_closed_form(market: str, exact: float) -> None:
    returns = returns_of(market)
    assert exact > 0.6
    assert bayes.accuracy(bayes.FILTERS[market](returns), returns) == pytest.approx(exact, abs=0.006)


def test_the_arctan_formula_by_hand() -> None:
    """a = 1/2: arctan(1 / sqrt 3) = pi / 6."""
    assert bayes.ar_accuracy(0.5) == pytest.approx(2.0 / 3.0)


@pytest.mark.parametrize("market", list(bayes.FILTERS))
def test_probabilities_are_calibrated_and_worth_at_least_60_percent(market: str) -> None:
    returns = returns_of(market)
    probability = bayes.FILTERS[market](returns)
    assert bayes.accuracy(probability, returns) > 0.6
    order = np.argsort(probability[:-1])
    for tenth in np.array_split(order, 10):
        assert (returns[1:][tenth] > 0.0).mean() == pytest.approx(probability[tenth].mean(), abs=0.03)


def test_the_regime_filter_equals_the_sum_over_all_hidden_paths() -> None:
    returns = returns_of("regimes", 8)
    likelihood = {1.0: 0.0, -1.0: 0.0}
    for path in itertools.product((1.0, -1.0), repeat=9):  # eight regimes seen and the next one
        weight = 0.5
        for now, following in itertools.pairwise(path):
            weight *= synthetic.REGIME_STAY if now == following else 1.0 - synthetic.REGIME_STAY
        for regime, r in zip(path, returns / synthetic.FORECAST_VOLATILITY, strict=False):
            weight *= NORMAL.pdf(r - regime * synthetic.REGIME_DRIFT)
        likelihood[path[-1]] += weight
    up = likelihood[1.0] / sum(likelihood.values())
    expected = up * NORMAL.cdf(synthetic.REGIME_DRIFT) + (1.0 - up) * NORMAL.cdf(-synthetic.REGIME_DRIFT)
    assert bayes.regimes(returns)[-1] == pytest.approx(expected)
