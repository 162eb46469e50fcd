"""Every rule fires on what it is for, and is silent before, beside and without it. Series are written by hand."""

import math

import pytest

from trade_agent.training.monitoring import rules

USUAL = [1.0, 1.2, 0.9, 1.1, 1.0, 0.8, 1.0, 1.1, 0.9, 1.0]  # as many as BEFORE, median 1.0


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_not_finite_names_what_is_wrong(value: float) -> None:
    assert rules.not_finite({"loss": 1.0, "q_mean": -1e30}) is None
    found = rules.not_finite({"loss": 1.0, "q_mean": value})
    assert found == f"q_mean is {value}"


def test_plateau_counts_checks_since_the_best() -> None:
    assert rules.plateau([1.0, 0.5, 0.7], checks=3) is None  # too few to judge
    assert rules.plateau([1.0, 0.5, 0.7, 0.9], checks=3) == "no validation score above 1 in the last 3 checks"
    assert rules.plateau([1.0, 0.5, 0.7, 1.0], checks=3) is not None  # equal is not better
    assert rules.plateau([1.0, 0.5, 0.7, 1.1], checks=3) is None
    assert rules.plateau([1.0, 1.1, 0.7, 0.9], checks=3) is None  # the better one lies within the last 3


def test_exploding_gradient_compares_with_the_median_before() -> None:
    assert rules.exploding_gradient([*USUAL, 100.0], factor=100.0) is None  # at the limit
    assert rules.exploding_gradient([*USUAL, 101.0], factor=100.0) == "gradient norm 101, usually 1"
    assert rules.exploding_gradient([*USUAL[:-1], 1e9], factor=100.0) is None  # too few before it
    assert rules.exploding_gradient([*USUAL, 1e9, 1.0], factor=100.0) is None  # over again


def test_throughput_fall_needs_several_slow_values() -> None:
    usual = [1000.0] * 10
    assert rules.throughput_fall([*usual, 100.0, 100.0, 1000.0, 1000.0, 1000.0], fraction=0.2) is None
    assert rules.throughput_fall([*usual, *[200.0] * 5], fraction=0.2) is None  # at the limit
    found = rules.throughput_fall([*usual, *[199.0] * 5], fraction=0.2)
    assert found == "199 steps per second, usually 1,000"
    assert rules.throughput_fall([1000.0] * 9 + [1.0] * 5, fraction=0.2) is None  # too few


def test_memory_growth_is_seen_while_it_lasts() -> None:
    mebi = 2.0**20
    settled = [100 * mebi] * 10
    assert rules.memory_growth([*settled, *[200 * mebi] * 5], factor=2.0) is None  # at the limit
    found = rules.memory_growth([*settled, *[201 * mebi] * 5], factor=2.0)
    assert found == "memory grew from 100 to 201 MiB"
    start = [mebi] * 5 + [100 * mebi] * 5  # buffers that are made at the start are no growth
    assert rules.memory_growth([*start, *[150 * mebi] * 5], factor=2.0) is None
    falling = [*settled, 900 * mebi, *[300 * mebi] * 5]
    assert rules.memory_growth(falling, factor=2.0) is None  # it was higher before
    assert rules.memory_growth([*settled, *[900 * mebi] * 4, mebi], factor=2.0) is None  # a peak
    assert rules.memory_growth([mebi] * 9 + [900 * mebi] * 5, factor=2.0) is None  # too few


def test_collapsed_policy_stays_below_the_floor() -> None:
    assert rules.collapsed_policy([1.0, *[-11.0] * 5], floor=-10.0) == "entropy of the policy -11, below -10"
    assert rules.collapsed_policy([-11.0] * 4, floor=-10.0) is None
    assert rules.collapsed_policy([-11.0, -11.0, -9.0, -11.0, -11.0], floor=-10.0) is None
    assert rules.collapsed_policy([-10.0] * 5, floor=-10.0) is None


def test_idle_policy_is_one_that_traded_before() -> None:
    assert rules.idle_policy([3.0, 0.0]) == "the policy does not trade at all on validation rows"
    assert rules.idle_policy([0.0, 0.0]) is None  # it never did: a policy may begin flat
    assert rules.idle_policy([3.0, 0.0, 1.0]) is None
    assert rules.idle_policy([0.0]) is None
