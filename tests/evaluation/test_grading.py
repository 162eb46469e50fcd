import copy
import json
import math
import random
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from trade_agent.errors import ConfigError
from trade_agent.evaluation.grading import MODEL_KINDS, GradePolicy, PerformanceGrade, grade, policy_from_dict

DEFAULT = Path(__file__).resolve().parents[2] / "conf/grading/default.yaml"
ORDER = ["F", "D", "C", "B-", "B", "B+", "A-", "A", "A+", "S"]


def default_values() -> dict:
    values = yaml.safe_load(DEFAULT.read_text())
    return {key: value for key, value in values.items() if key != "defaults"}


POLICY = policy_from_dict(default_values())

PERFECT = {
    "sharpe": 9.0,
    "max_drawdown": 0.0,
    "costs_modelled": 1.0,
    "beats_flat": 1.0,
    "beats_buy_and_hold": 1.0,
    "deflated_sharpe_probability": 0.999,
    "num_bars": 1000.0,
    "num_trades": 500.0,
    "num_seeds": 5.0,
    "num_windows": 5.0,
}
PERFECT_FORECAST = {
    "direction_edge": 0.3,
    "skill_score": 0.5,
    "rank_ic": 0.6,
    "beats_base_rate": 1.0,
    "beats_last_value": 1.0,
    "num_bars": 1000.0,
    "num_seeds": 5.0,
    "num_windows": 5.0,
}


def graded(model_type: str = "ppo", policy: GradePolicy = POLICY, **changes) -> str:
    perfect = PERFECT_FORECAST if model_type == "cnn_lstm" else PERFECT
    return grade(model_type, {**perfect, **changes}, policy).grade.value


def test_order_is_total():
    assert [str(item) for item in PerformanceGrade] == ORDER
    shuffled = list(PerformanceGrade)
    random.Random(0).shuffle(shuffled)
    assert [item.value for item in sorted(shuffled)] == ORDER
    assert PerformanceGrade("B-") < PerformanceGrade("B") < PerformanceGrade("B+") < PerformanceGrade("A-")
    assert max(PerformanceGrade) is PerformanceGrade.S
    with pytest.raises(TypeError):
        assert PerformanceGrade.A < "S"


@pytest.mark.parametrize("model_type", MODEL_KINDS)
def test_perfect_is_s_and_every_model_type_has_a_policy(model_type):
    assert graded(model_type) == "S"


@pytest.mark.parametrize(
    ("sharpe", "expected"),
    [
        (-3.0, "D"),
        (-1e-9, "D"),
        (0.0, "C"),
        (0.3, "B-"),
        (0.59999, "B-"),
        (0.6, "B"),
        (0.9, "B+"),
        (1.2, "A-"),
        (1.6, "A"),
        (1.99999999, "A"),
        (2.0, "A+"),
        (2.5, "S"),
    ],
)
def test_boundaries_are_exact(sharpe, expected):
    assert graded(sharpe=sharpe) == expected


def test_every_threshold_of_the_default_policy_is_the_first_value_of_its_grade():
    for model_type, kind in (("cnn_lstm", POLICY.forecaster), ("td3", POLICY.trading)):
        for criterion in kind.criteria:
            for spelling, threshold in criterion.thresholds.items():
                below = math.nextafter(threshold, -math.inf)
                assert graded(model_type, **{criterion.metric: threshold}) == spelling
                assert graded(model_type, **{criterion.metric: below}) == ORDER[ORDER.index(spelling) - 1]


@pytest.mark.parametrize(
    ("change", "at_most"),
    [
        ({"beats_flat": 0.0}, "C"),
        ({"beats_buy_and_hold": 0.0}, "C"),
        ({"costs_modelled": 0.0}, "C"),
        ({"deflated_sharpe_probability": 0.9499}, "B+"),
        ({"num_bars": 249.0}, "B"),
        ({"num_trades": 29.0}, "B"),
        ({"num_seeds": 1.0}, "A+"),
        ({"num_windows": 1.0}, "A+"),
        ({"num_seeds": 1.0, "beats_flat": 0.0}, "C"),
    ],
)
def test_caps_dominate_points(change, at_most):
    decision = grade("sac", {**PERFECT, **change}, POLICY)
    assert decision.grade.value == at_most
    assert decision.score == 9.0  # points stay visible
    assert {cap.rule.split(" ")[0] for cap in decision.caps} == set(change)
    assert all(cap.reason for cap in decision.caps)


def test_forecaster_caps():
    assert graded("cnn_lstm", beats_base_rate=0.0) == "C"
    assert graded("cnn_lstm", beats_last_value=0.0) == "B"
    assert graded("cnn_lstm", num_seeds=1.0) == "A+"


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, None])
@pytest.mark.parametrize("name", [*PERFECT, "not_in_the_policy"])
def test_not_finite_is_f(name, bad):
    decision = grade("ppo", {**PERFECT, name: bad}, POLICY)
    assert decision.grade is PerformanceGrade.F
    assert name in decision.caps[0].reason
    assert decision.inputs[name] is None
    json.dumps(decision.as_dict(), allow_nan=False)


def test_a_run_that_looked_ahead_is_f_without_any_other_metric():
    name = "leaked"
    assert grade("ppo", {name: 1.0}, POLICY).grade is PerformanceGrade.F
    assert grade("ppo", {**PERFECT, name: 1.0}, POLICY).grade is PerformanceGrade.F
    assert grade("ppo", {**PERFECT, name: 0.0}, POLICY).grade is PerformanceGrade.S


def test_never_trading_is_not_an_f():
    idle = {**PERFECT, "sharpe": 0.0, "beats_flat": 0.0, "beats_buy_and_hold": 0.0, "num_trades": 0.0}
    idle["deflated_sharpe_probability"] = 0.5
    assert grade("ppo", idle, POLICY).grade is PerformanceGrade.C


METRIC_VALUES = {
    "sharpe": st.floats(-3, 4),
    "max_drawdown": st.floats(-1, 0),
    "costs_modelled": st.sampled_from([0.0, 1.0]),
    "beats_flat": st.sampled_from([0.0, 1.0]),
    "beats_buy_and_hold": st.sampled_from([0.0, 1.0]),
    "deflated_sharpe_probability": st.floats(0, 1),
    "num_bars": st.integers(1, 1000).map(float),
    "num_trades": st.integers(0, 100).map(float),
    "num_seeds": st.integers(1, 5).map(float),
    "num_windows": st.integers(1, 5).map(float),
}


FORECAST_VALUES = {
    "direction_edge": st.floats(-0.5, 0.5),
    "skill_score": st.floats(-1, 1),
    "rank_ic": st.floats(-1, 1),
    "beats_base_rate": st.sampled_from([0.0, 1.0]),
    "beats_last_value": st.sampled_from([0.0, 1.0]),
    **{name: METRIC_VALUES[name] for name in ("num_bars", "num_seeds", "num_windows")},
}


def two_runs(model_type, values):
    return st.tuples(st.just(model_type), st.fixed_dictionaries(values), st.fixed_dictionaries(values))


@settings(max_examples=300, deadline=None)
@given(two_runs("ppo", METRIC_VALUES) | two_runs("cnn_lstm", FORECAST_VALUES), st.data())
def test_monotone_in_each_metric_total_and_deterministic(runs, data):
    model_type, first, second = runs
    low = grade(model_type, first, POLICY)
    assert low == grade(model_type, dict(reversed(first.items())), POLICY)
    assert PerformanceGrade.D <= low.grade <= PerformanceGrade.S
    one = data.draw(st.sampled_from(sorted(first)))
    for names in ({one}, set(first)):
        better = {name: max(first[name], second[name]) if name in names else first[name] for name in first}
        high = grade(model_type, better, POLICY)
        assert low.grade <= high.grade
        assert low.score <= high.score


@settings(max_examples=100, deadline=None)
@given(st.fixed_dictionaries(METRIC_VALUES))
def test_regrading_the_stored_inputs_gives_the_same_decision(metrics):
    first = grade("ppo", metrics, POLICY)
    stored = json.loads(json.dumps(first.as_dict()))
    again = grade("ppo", stored["inputs"], POLICY)
    assert again == first
    assert again.as_dict() == stored


def test_hash_changes_with_every_threshold_and_not_with_the_order_of_keys():
    values = default_values()
    hashes = {policy_from_dict(values).sha256}
    assert policy_from_dict(dict(reversed(values.items()))).sha256 in hashes
    for kind in ("forecaster", "trading"):
        for i, criterion in enumerate(values[kind]["criteria"]):
            for spelling in criterion["thresholds"]:
                changed = copy.deepcopy(values)
                changed[kind]["criteria"][i]["thresholds"][spelling] += 1e-6
                hashes.add(policy_from_dict(changed).sha256)
        for i in range(len(values[kind]["caps"])):
            changed = copy.deepcopy(values)
            changed[kind]["caps"][i]["at_least"] += 1
            hashes.add(policy_from_dict(changed).sha256)
    assert len(hashes) == 1 + 5 * 8 + 5 + 8


def _set(path: str, value: object):
    def change(values: dict) -> None:
        *way, last = path.split(".")
        for step in way:
            values = values[int(step)] if step.isdigit() else values[step]
        if value is None:
            del values[last]
        else:
            values[last] = value

    return change


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("id", "", "grading.id is ''"),
        ("trading", None, "grading.trading is missing"),
        ("extra", 1, "grading.extra is unknown"),
        ("trading.criteria", [], "grading.trading.criteria is empty"),
        ("trading.caps", "none", "grading.trading.caps is not a list"),
        ("trading.criteria.0.thresholds.A", None, r"grading.trading.criteria\[0\].thresholds.A is missing"),
        ("trading.criteria.0.thresholds.A", "high", r"criteria\[0\].thresholds.A is 'high'"),
        ("trading.criteria.0.thresholds.A", math.nan, r"thresholds.A is nan"),
        ("trading.criteria.0.thresholds.A", 1.2, r"thresholds.A is 1.2, not above A- at 1.2"),
        ("trading.criteria.0.thresholds.Z", 1.0, r"thresholds.Z is unknown"),
        ("forecaster.caps.0.grade", "E", r"grading.forecaster.caps\[0\].grade is 'E'"),
        ("forecaster.caps.0.at_least", True, r"caps\[0\].at_least is True"),
        ("forecaster.caps.0.metric", 3, r"caps\[0\].metric is 3"),
    ],
)
def test_broken_policies_are_refused_by_field(path, value, message):
    values = default_values()
    _set(path, value)(values)
    with pytest.raises(ConfigError, match=message):
        policy_from_dict(values)


def test_missing_metric_and_unknown_model_type_are_named():
    with pytest.raises(ConfigError, match="needs the metric 'sharpe' for ppo"):
        grade("ppo", {"max_drawdown": 0.0}, POLICY)
    with pytest.raises(ConfigError, match="model type 'dqn' has no grading"):
        grade("dqn", PERFECT, POLICY)


def test_module_does_not_import_torch():
    code = "import sys, trade_agent.evaluation.grading; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
