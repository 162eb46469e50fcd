"""What a stage says it is going to measure is what it then does measure."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.training.test_checkpoint import agent_stage, forecaster_stage, gate_stage, hybrid_stage
from trade_agent.training.monitoring.alerts import Alerts
from trade_agent.training.monitoring.watch import Watch


class Counted(Alerts):
    """Keeps what was announced, and how many values of each series came."""

    def __init__(self) -> None:
        self.announced: dict[str, int] = {}
        self.came: Counter[str] = Counter()

    def expect(self, counts: Mapping[str, int]) -> None:
        self.announced = dict(counts)

    def consider(self, step: int, values: Mapping[str, float], now: float) -> None:
        self.came.update(values.keys())


OFF_POLICY = ("trainer.off_policy_env_steps=1000", "trainer.validation_checks=3", "model.hidden_sizes=[8]")
STAGES = {
    "forecaster": lambda trained: forecaster_stage(trained, "trainer.forecaster_epochs=2"),
    "ppo": lambda trained: agent_stage(trained, "ppo", "trainer.on_policy_env_steps=900", "model.rollout_steps=8"),
    "sac": lambda trained: agent_stage(trained, "sac", *OFF_POLICY),
    "td3": lambda trained: agent_stage(trained, "td3", *OFF_POLICY),
    "hybrid sac": lambda trained: hybrid_stage(trained, "sac", "trainer.joint_off_policy_env_steps=400"),
    "gate": gate_stage,
}


@pytest.mark.parametrize("name", STAGES)
def test_as_many_values_come_as_are_announced(trained: Any, tmp_path: Path, name: str) -> None:
    run, config = STAGES[name](trained)
    counted, ticks = Counted(), iter(range(10**9))
    watch = Watch(alerts=counted, clock=lambda: float(next(ticks)))
    run(replace(trained.context(tmp_path, config), watch=watch))
    extra = name.startswith("hybrid")  # what it begins with is a check too
    for series, count in counted.announced.items():
        rest = series == "steps_per_second"  # the last updates may belong to the step of those before
        came = counted.came[series] - (extra and series.startswith("validation/"))
        assert count - rest <= came <= count, series
    watched_for = {"grad_norm", "entropy", "validation/sharpe", "validation/turnover", "steps_per_second"}
    assert watched_for & counted.came.keys() == watched_for & counted.announced.keys()
