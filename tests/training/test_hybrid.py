"""Joining forecaster and agent, and training them as one."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor

from trade_agent.agents.base import Agent
from trade_agent.agents.ppo import PPO
from trade_agent.agents.replay import Transitions
from trade_agent.config import schema
from trade_agent.envs.market import account_fields
from trade_agent.errors import RegistryError
from trade_agent.training.distributed import World
from trade_agent.training.learner import minibatch
from trade_agent.training.models import Forecaster, policy_from_state
from trade_agent.training.stages import hybrid
from trade_agent.training.stages.cnn_lstm import dataset_targets
from trade_agent.training.stages.context import Parent
from trade_agent.training.stages.hybrid import JointLearner, hybrid_policy, join
from trade_agent.training.stages.trading import validation_sharpe

ALGORITHMS = ("ppo", "sac", "td3")


def parts(trained: Any, algorithm: str, *overrides: str) -> dict[str, Any]:
    """The arguments of `join` beside the context."""
    config = trained.settings("stage=hybrid", f"model={algorithm}", *overrides)
    return {
        "stage": config.stage,
        "model": config.model,
        "forecaster": trained.parent("forecaster", "cnn_lstm"),
        "agent": trained.parent("agent", algorithm),
    }


@pytest.fixture(params=ALGORITHMS)
def joined(request: Any, trained: Any, tmp_path: Path) -> tuple[Forecaster, Agent, Parent]:
    arguments = parts(trained, request.param)
    forecaster, agent = join(trained.context(tmp_path), **arguments)
    return forecaster, agent, arguments["agent"]


def make_learner(trained: Any, forecaster: Forecaster, agent: Agent, **changes: Any) -> JointLearner:
    settings: dict[str, Any] = {
        "label_stop": trained.dataset.split.train.stop,
        "forecast_loss_weight": 0.5,
        "direction_loss_weight": 0.5,
        "learning_rate": 1e-3,
        "frozen_updates": 0,
        "world": World(),
    }
    targets = dataset_targets(trained.dataset, list(forecaster.horizons))
    return JointLearner(agent, forecaster, features=trained.dataset.features, targets=targets, **(settings | changes))


def accounts(trained: Any, count: int) -> Tensor:
    width = len(account_fields(trained.dataset.rules, trained.dataset.num_assets))
    return torch.rand(count, width, generator=torch.Generator().manual_seed(1))


def make_batch(trained: Any, learner: JointLearner, seed: int = 0, t: Tensor | None = None) -> TensorDict:
    random = torch.Generator().manual_seed(seed)
    train = trained.dataset.split.train
    if t is None:
        t = torch.randint(train.start + 10, train.stop - 1, (16,), generator=random)
    account = accounts(trained, 16)
    if isinstance(learner.agent, PPO):
        with torch.no_grad():
            action = learner.agent.act(learner.observe(t, account), deterministic=False)
        fields = {"t": t, "private": account, "raw": action.raw, "log_prob": action.log_prob}
        fields |= {name: torch.randn(16, generator=random) for name in ("advantage", "value_target")}
        return TensorDict(fields, batch_size=[16])
    return minibatch(
        Transitions(
            t=t,
            private=account,
            action=torch.rand(16, 1, generator=random) * 2.0 - 1.0,
            reward=torch.randn(16, generator=random),
            terminated=torch.zeros(16, dtype=torch.bool),
            next_private=account,
            steps=torch.ones(16, dtype=torch.int32),
        )
    )


def weights_of(network: torch.nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def moved(before: dict[str, Tensor], network: torch.nn.Module) -> bool:
    return any(not torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_before_training_it_acts_as_its_parent_on_every_row(
    joined: tuple[Forecaster, Agent, Parent], trained: Any
) -> None:
    forecaster, agent, parent = joined
    dataset = trained.dataset
    original = policy_from_state(parent.state, dataset.features)
    learner = make_learner(trained, forecaster, agent)
    for rows in (dataset.split.train, dataset.split.validation, dataset.split.test):
        t, account = torch.arange(rows.start, rows.stop), accounts(trained, len(rows))
        wanted = original(t, account)
        assert float(wanted.std()) > 0.0
        through_table = hybrid_policy(agent, forecaster, dataset.features)(t, account)
        through_windows = agent.act(learner.observe(t, account), deterministic=True).action
        torch.testing.assert_close(through_table, wanted, atol=1e-6, rtol=0.0)
        torch.testing.assert_close(through_windows, wanted, atol=1e-6, rtol=0.0)


def test_critics_targets_and_temperature_come_along(joined: tuple[Forecaster, Agent, Parent]) -> None:
    forecaster, agent, parent = joined
    state, theirs = agent.state_dict(), parent.state["agent"]["state"]
    assert state.keys() == theirs.keys()
    assert all(torch.equal(state[name], theirs[name]) for name in state)
    expected = {"ppo": {"critic"}, "sac": {"critic", "target_critic", "log_alpha"}}
    named = expected.get(agent.name, {"critic", "target_critic", "target_actor"})
    assert named <= {name.split(".")[0] for name in state}
    network = forecaster.network.state_dict()
    assert all(torch.equal(network[name], value) for name, value in parent.state["forecaster"]["state"].items())


def test_its_learning_rates_are_those_of_the_stage(trained: Any, tmp_path: Path) -> None:
    arguments = parts(trained, "sac", "stage.agent_learning_rate_scale=0.5", "model.learning_rate=1e-2")
    _, agent = join(trained.context(tmp_path), **arguments)
    assert agent.optimizer.param_groups[0]["lr"] == pytest.approx(5e-3)


def test_the_forecaster_moves_once_it_is_no_longer_frozen(
    joined: tuple[Forecaster, Agent, Parent], trained: Any
) -> None:
    forecaster, agent, _ = joined
    learner = make_learner(trained, forecaster, agent, frozen_updates=2)
    network, before = forecaster.network, weights_of(forecaster.network)
    agent_before = weights_of(agent)  # type: ignore[arg-type]
    for seed in range(2):
        assert "loss_forecast" not in learner(make_batch(trained, learner, seed))
    assert not moved(before, network)
    assert moved(agent_before, agent)  # type: ignore[arg-type]
    metrics = learner(make_batch(trained, learner, 2))
    assert float(metrics["loss_forecast"]) > 0.0
    assert float(metrics["grad_norm_forecaster"]) > 0.0
    assert moved(before, network)


def test_the_loss_of_the_agent_reaches_the_forecaster(joined: tuple[Forecaster, Agent, Parent], trained: Any) -> None:
    forecaster, agent, _ = joined
    learner = make_learner(trained, forecaster, agent, forecast_loss_weight=0.0)
    learner(make_batch(trained, learner))
    for name, parameter in forecaster.network.named_parameters():
        assert parameter.grad is not None, name
        assert float(parameter.grad.abs().max()) > 0.0, name


def test_labels_that_end_behind_the_train_rows_teach_nothing(
    joined: tuple[Forecaster, Agent, Parent], trained: Any
) -> None:
    forecaster, agent, _ = joined
    stop = trained.dataset.split.train.stop - max(forecaster.horizons)
    learner = make_learner(trained, forecaster, agent, label_stop=stop)
    behind, inside = torch.arange(stop, stop + 2).repeat(8), torch.arange(stop - 2, stop).repeat(8)
    assert learner(make_batch(trained, learner, t=behind))["loss_forecast"] == 0.0
    assert learner(make_batch(trained, learner, t=inside))["loss_forecast"] > 0.0


def test_the_stage_stops_labels_inside_the_train_rows(
    trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    class Stop(Exception):
        pass

    def spy(*arguments: Any, label_stop: int, **named: Any) -> None:
        seen.append(label_stop)
        raise Stop

    monkeypatch.setattr(hybrid, "JointLearner", spy)
    with pytest.raises(Stop):
        hybrid.run(trained.context(tmp_path), forecaster_stage=schema.CnnLstmStage(), **parts(trained, "sac"))
    assert seen == [trained.dataset.split.train.stop - 2]  # the longest horizon of the fixture is 2


def test_an_agent_of_another_forecaster_is_refused(trained: Any, tmp_path: Path) -> None:
    arguments = parts(trained, "td3")
    other = copy.deepcopy(arguments["forecaster"].state)
    other["forecaster"]["state"]["return_head.bias"] += 1e-3
    arguments["forecaster"] = replace(arguments["forecaster"], state=other, model_id="another")
    with pytest.raises(RegistryError, match="td3_.* was not trained on the features of another; give only"):
        join(trained.context(tmp_path), **arguments)


def test_other_hidden_sizes_are_refused(trained: Any, tmp_path: Path) -> None:
    sizes = ("model.hidden_sizes=[32]", "upstream.rl.model.hidden_sizes=[32]")
    with pytest.raises(RegistryError, match=r"has hidden_dims=\[64, 64\], this run has \[32\]"):
        join(trained.context(tmp_path), **parts(trained, "ppo", *sizes))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_on_validation_rows_it_is_never_worse_than_its_parent(trained: Any, algorithm: str) -> None:
    child, parent = trained.parent("member", "hybrid", algorithm), trained.parent("agent", algorithm)
    assert trained.score(child) >= trained.score(parent)
    # What was registered is what was measured.
    policy = policy_from_state(child.state, trained.dataset.features)
    assert validation_sharpe(trained.dataset, policy) == pytest.approx(trained.score(child), rel=1e-9)


def test_training_that_does_harm_is_thrown_away(trained: Any, tmp_path: Path) -> None:
    """A ruinous step size: the state that counts is that before the first update, for agent and forecaster alike."""
    arguments = parts(
        trained, "ppo", "model.learning_rate=1.0", "stage.agent_learning_rate_scale=10",
        "stage.forecaster_learning_rate=0.5", "stage.freeze_forecaster_fraction=0",
    )  # fmt: skip
    parent = arguments["agent"]
    outcome = hybrid.run(
        trained.context(tmp_path), forecaster_stage=trained.config.upstream.cnn_lstm.stage, **arguments
    )
    assert outcome.objective["value"] >= trained.score(parent)
    assert outcome.notes["forecaster_updates"] > 0
    kept = outcome.notes["kept_after_env_steps"]
    same = all(
        torch.equal(value, parent.state["forecaster"]["state"][name])
        for name, value in outcome.state["forecaster"]["state"].items()
    )
    assert same is (kept == 0)
