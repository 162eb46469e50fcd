"""The settings of a model reach the loop that trains it."""

from typing import Any

import pytest
import torch
from torch import Tensor

from trade_agent.agents.builders import agent_from_spec
from trade_agent.config.load import compose_config, load_config
from trade_agent.config.schema import AgentModel
from trade_agent.envs.batched import TrainingMarket
from trade_agent.envs.rules import MarketRules
from trade_agent.envs.series import MarketSeries
from trade_agent.training import agent_loop
from trade_agent.training.checkpoint import no_checkpoints
from trade_agent.training.learner import Learner
from trade_agent.training.models import agent_spec
from trade_agent.training.monitoring.watch import Watch
from trade_agent.training.progress import ProgressReporter

COMMON = {"batch_size": 96, "learning_rate_schedule": "linear"}
ON_POLICY = {**COMMON, "rollout_steps": 24, "epochs": 3}
OFF_POLICY = {**COMMON, "n_step": 4, "env_steps_per_update": 7, "warmup_env_steps": 300}


@pytest.mark.parametrize(
    ("name", "loop", "settings"),
    [
        ("ppo", "train_on_policy", ON_POLICY),
        ("sac", "train_off_policy", OFF_POLICY),
        ("td3", "train_off_policy", OFF_POLICY),
    ],
)
def test_every_setting_of_the_loop_is_passed_on(
    name: str,
    loop: str,
    settings: dict[str, Any],
    series: MarketSeries,
    rules: MarketRules,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = passed(name, loop, settings, series, rules, monkeypatch, total_env_steps=2000)
    assert {key: given[key] for key in settings} == settings
    assert (given["total_env_steps"], given["validation_checks"]) == (2000, 5)
    if loop == "train_off_policy":
        assert given["random_warmup"] is False


@pytest.mark.parametrize(
    ("total", "capacity", "kept", "warmup"),
    [
        (2000, 500, 500, 300),
        (2000, 9000, 2006, 300),  # no more than the run can fill
        (400, 9000, 406, 100),  # no more than a quarter of the run
    ],
)
def test_a_small_budget_has_a_small_buffer_and_a_short_warmup(
    total: int,
    capacity: int,
    kept: int,
    warmup: int,
    series: MarketSeries,
    rules: MarketRules,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = OFF_POLICY | {"replay_capacity": capacity}
    given = passed("sac", "train_off_policy", settings, series, rules, monkeypatch, total_env_steps=total)
    assert (given["replay"].capacity, given["warmup_env_steps"]) == (kept, warmup)


def passed(
    name: str,
    loop: str,
    settings: dict[str, Any],
    series: MarketSeries,
    rules: MarketRules,
    monkeypatch: pytest.MonkeyPatch,
    *,
    total_env_steps: int,
) -> dict[str, Any]:
    """What `train_in` hands to the loop, for a model with these settings and six environments."""
    given: dict[str, Any] = {}

    def spy(agent: Any, **arguments: Any) -> int:
        given.update(arguments)
        return 0

    monkeypatch.setattr(agent_loop, loop, spy)
    overrides = [f"model.{key}={value}" for key, value in settings.items()]
    model = load_config(compose_config(["stage=rl", f"model={name}", "model.num_envs=6", *overrides])).model
    assert isinstance(model, AgentModel)
    generator = torch.Generator().manual_seed(0)
    env = TrainingMarket(
        series=series,
        rules=rules,
        rows=range(10, 60),
        num_envs=6,
        episode_bars=7,
        reward_scale=1.0,
        generator=generator,
    )
    agent = agent_from_spec(agent_spec(model, observation_dim=env.private_dim, action_dim=env.action_dim))

    def observe(t: Tensor, private: Tensor) -> Tensor:
        return private

    agent_loop.train_in(
        env,
        agent,
        model=model,
        observe=observe,
        learner=Learner(agent, observe),
        capture=False,
        check=lambda env_steps: None,
        total_env_steps=total_env_steps,
        validation_checks=5,
        validation_figures=(),
        random_warmup=False,
        generator=generator,
        progress=ProgressReporter(),
        watch=Watch(),
        label="test",
        session=no_checkpoints().session("test", generator),
    )
    return given
