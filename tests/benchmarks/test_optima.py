"""The optima that the agents are measured against are right: each is found again in another way."""

import itertools
from statistics import NormalDist

import numpy as np
import pytest

from benchmarks.optima import bayes, garleanu_pedersen, leak
from benchmarks.optima.garleanu_pedersen import Model, Policy
from trade_agent.data import synthetic

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
