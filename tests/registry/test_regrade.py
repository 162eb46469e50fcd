"""Grading again from what a model has stored: bit for bit the old decision by the old policy, files never renamed."""

import copy
import math
import random

import pytest
import yaml

from trade_agent.config.load import conf_dir
from trade_agent.errors import ConfigError, RegistryError
from trade_agent.evaluation.grading import grade, policy_from_dict
from trade_agent.registry.verify import is_clean
from trade_agent.training.model_registry import verify


def policy_values():
    values = yaml.safe_load((conf_dir() / "grading/default.yaml").read_text(encoding="utf-8"))
    return {key: value for key, value in values.items() if key != "defaults"}


def random_metrics(rng):
    metrics = {
        "sharpe": rng.uniform(-2, 3),
        "max_drawdown": -rng.uniform(0, 0.2),
        "deflated_sharpe_probability": rng.uniform(0.9, 1),
        "num_bars": float(rng.randint(200, 1000)),
        "num_trades": float(rng.randint(20, 200)),
        "num_seeds": float(rng.randint(1, 5)),
        "num_windows": float(rng.randint(1, 5)),
    }
    metrics |= {name: float(rng.random() < 0.97) for name in ("costs_modelled", "beats_flat", "beats_buy_and_hold")}
    if rng.random() < 0.1:
        metrics["sharpe"] = rng.choice([math.nan, math.inf])
    return metrics


def test_the_old_policy_gives_the_old_decision_and_a_stricter_one_is_told_apart(registry, make_draft):
    rng = random.Random(0)
    values = policy_values()
    policy = policy_from_dict(values)
    stricter = copy.deepcopy(values)
    for criterion in stricter["trading"]["criteria"]:
        criterion["thresholds"] = {name: value + 0.25 for name, value in criterion["thresholds"].items()}
    stricter = policy_from_dict(stricter | {"id": "stricter"})
    changed = 0
    for seed in range(25):
        decision = grade("sac", random_metrics(rng), policy)
        model = registry.register(
            **make_draft(seed=seed, grade=decision.grade, grade_decision=decision.as_dict())
        ).model_id
        assert registry.regrade(model, policy).as_dict() == registry.get(model).grade_decision == decision.as_dict()
        assert registry.history(model)[-1]["decision"] == decision.as_dict()
        again = registry.regrade(model, stricter)
        assert again.policy_sha256 != decision.policy_sha256
        assert again.grade <= decision.grade
        assert registry.view().records[model].grade == again.grade.value
        assert registry.get(model).grade == decision.grade.value  # at birth
        assert (registry.root / f"sac/{model}.pth").exists()
        changed += again.grade != decision.grade
    assert changed > 3
    registry.rebuild()
    assert {record.id: record.grade for record in registry.list()} == {
        key: record.grade for key, record in registry.view().records.items()
    }
    assert is_clean(verify(registry.root))


@pytest.mark.parametrize(
    ("decision", "error"),
    [({}, RegistryError), ({"inputs": {}}, RegistryError), ({"inputs": {"sharpe": 1.0}}, ConfigError)],
)
def test_a_model_without_the_metrics_keeps_its_grade(registry, make_draft, decision, error):
    model = registry.register(**make_draft(grade_decision=decision)).model_id
    with pytest.raises(error):
        registry.regrade(model, policy_from_dict(policy_values()))
    assert registry.history() == ()
    assert registry.view().records[model].grade == "B"


def test_any_stored_metric_can_be_graded_by(registry, make_draft):
    values = policy_values()
    decision = grade("sac", random_metrics(random.Random(1)), policy_from_dict(values))
    values["trading"]["criteria"].append(
        {"metric": "sortino", "thresholds": dict(values["trading"]["criteria"][0]["thresholds"])}
    )
    for seed, metrics in enumerate(({"sortino": 3.0}, {})):
        model = registry.register(**make_draft(seed=seed, metrics=metrics, grade_decision=decision.as_dict())).model_id
        if metrics:
            assert registry.regrade(model, policy_from_dict(values)).inputs["sortino"] == 3.0
        else:
            with pytest.raises(ConfigError, match="sortino"):
                registry.regrade(model, policy_from_dict(values))
