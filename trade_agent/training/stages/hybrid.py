"""Stage 3: forecaster and agent of the stages below in one network, trained jointly.

Loss of one update: that of the agent plus `forecast_loss_weight` times the forecast loss on the bars of the same batch.
The forecaster has its own optimizer and may stay frozen for the first part of the updates.
"""

import copy
from collections.abc import Hashable
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from trade_agent.agents.base import Agent, adam_step, make_adam
from trade_agent.agents.builders import agent_from_spec
from trade_agent.config.schema import AgentModel, CnnLstmStage, HybridStage
from trade_agent.errors import RegistryError
from trade_agent.networks.encoders import Encoding, WindowEncoder
from trade_agent.training.agent_loop import expected_updates, loop_env_steps
from trade_agent.training.distributed import World
from trade_agent.training.learner import Learner, tensors_of
from trade_agent.training.models import (
    AgentPolicy,
    Forecaster,
    agent_spec,
    agent_to_state,
    forecaster_from_state,
    observation_dim,
)
from trade_agent.training.reinforcement import Best
from trade_agent.training.stages.cnn_lstm import dataset_targets
from trade_agent.training.stages.context import Parent, StageContext, StageOutcome, seed_everything
from trade_agent.training.stages.trading import (
    trading_contract,
    trading_outcome,
    train_agent,
    train_rows,
    validate,
)
from trade_agent.training.supervised import Targets, feature_table, forecast_loss, valid_entries

# What the weights of an agent mean: a hybrid goes on from them and must be built alike.
INHERITED = (
    "name",
    "observation_dim",
    "action_dim",
    "hidden_dims",
    "activation",
    "layer_norm",
    "gamma",
    "normalise_observation",
    "normalise_reward",
    "policy",
    "actions",
)


class JointLearner(Learner):
    """Takes one gradient step for agent and forecaster at once.

    `observe` encodes bars through the forecaster, and remembers the encoding of its last call with gradient: the
    auxiliary loss needs no second pass. While the forecaster is frozen it is encoded without a graph.
    """

    def __init__(
        self,
        agent: Agent,
        forecaster: Forecaster,
        *,
        features: Tensor,
        targets: Targets,
        label_stop: int,
        forecast_loss_weight: float,
        direction_loss_weight: float,
        learning_rate: float,
        frozen_updates: int,
        world: World,
    ) -> None:
        super().__init__(agent, self.encode)
        self.network, self.targets = forecaster.network, targets
        self.encoder = WindowEncoder(forecaster.network, features)
        self.label_stop = label_stop  # labels of later bars reach out of the train rows
        self.forecast_loss_weight, self.direction_loss_weight = forecast_loss_weight, direction_loss_weight
        self.frozen_updates, self.updates, self.world = frozen_updates, 0, world
        device = features.device
        groups = [{"params": list(forecaster.network.parameters()), "lr": learning_rate}]
        self.optimizer = make_adam(groups, eps=1e-8, device=device)
        self._encoding: Encoding | None = None
        self._entries = torch.ones((), device=device)  # that the forecast loss of the minibatch is a mean over
        # The network stays in evaluation mode, but cuDNN has a backward pass only for an LSTM in training mode.
        forecaster.network.lstm.dropout = 0.0

    @property
    def frozen(self) -> bool:
        return self.updates < self.frozen_updates

    def encode(self, t: Tensor, account: Tensor) -> Tensor:
        """Observation [B, O] of bars `t` [B] and accounts [B, K]."""
        learning = torch.is_grad_enabled() and not self.frozen
        self.network.lstm.train(learning)
        with torch.set_grad_enabled(learning):
            encoding = self.encoder.encode(t)
        if learning:
            self._encoding = encoding
        return torch.cat((encoding.observation, account), dim=-1)

    def state_dict(self) -> dict[str, Any]:
        """What training changes of the forecaster's side, for resuming a run."""
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "updates": self.updates,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        rates = [group["lr"] for group in self.optimizer.param_groups]  # of today: a rollback lowers them
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.updates = state["updates"]
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate

    def prepare(self, batch: TensorDict) -> TensorDict:
        if not self.frozen:
            bars = batch["t"].long().clamp_min(self.encoder.first_bar)
            self._entries = valid_entries(self._labelled(bars, torch.ones_like(bars)), self.world)
        return super().prepare(batch)

    def clear(self) -> None:
        super().clear()
        self.optimizer.zero_grad()
        self._encoding = None  # of a step that did not fit: it holds on to its graph

    def backward(self, batch: TensorDict, *, share: float) -> dict[str, Tensor]:
        if self.frozen:
            return super().backward(batch, share=share)
        loss = self._forecast_loss()
        metrics = self.agent.backward(batch, share=share, extra_loss=self.forecast_loss_weight * loss)
        return metrics | {"loss_forecast": loss.detach()}

    def step(self, metrics: dict[str, Tensor]) -> dict[str, Tensor]:
        metrics = super().step(metrics)
        if not self.frozen:
            self.world.average_gradients(list(self.network.parameters()))
            norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
            adam_step(self.optimizer)
            metrics = metrics | {"grad_norm_forecaster": norm}
        return metrics

    @property
    def turn(self) -> Hashable:
        return super().turn, self.frozen

    def count(self) -> None:
        super().count()
        self.updates += 1

    def changed(self) -> list[Tensor]:
        return [*super().changed(), *tensors_of(self.state_dict())]

    def _forecast_loss(self) -> Tensor:
        """The share [] that the bars encoded last have in the forecast loss of their minibatch."""
        assert self._encoding is not None
        bars, counts = self._encoding.bars, self._encoding.counts
        return forecast_loss(
            self._encoding.forecast,
            self.targets.returns[bars],
            self._labelled(bars, counts),
            self.direction_loss_weight,
            self._entries,
        )

    def _labelled(self, bars: Tensor, counts: Tensor) -> Tensor:
        """How often each label [U, A, H] of `bars` [U] counts: as often as the bar does, where it is known."""
        return self.targets.valid[bars] * (counts * (bars < self.label_stop)).view(-1, 1, 1)


def run(
    context: StageContext,
    *,
    stage: HybridStage,
    forecaster_stage: CnnLstmStage,
    model: AgentModel,
    forecaster: Parent,
    agent: Parent,
) -> StageOutcome:
    """Join the parents, train jointly, keep the state that does best on validation rows.

    The joined network before its first update is one of the candidates, so on validation rows a hybrid is never worse
    than its parent.
    """
    dataset, generator = context.dataset, seed_everything(context.seed, context.device, "hybrid", model.name)
    joined, trained = join(context, stage=stage, model=model, forecaster=forecaster, agent=agent)
    targets = dataset_targets(dataset, list(joined.horizons), joined.target_scale)
    budget = loop_env_steps(
        model,
        on_policy=context.trainer.joint_on_policy_env_steps,
        off_policy=context.trainer.joint_off_policy_env_steps,
    )
    learner = JointLearner(
        trained,
        joined,
        features=dataset.features,
        targets=targets,
        label_stop=dataset.split.train.stop - max(joined.horizons),
        forecast_loss_weight=stage.forecast_loss_weight,
        direction_loss_weight=forecaster_stage.direction_loss_weight,
        learning_rate=stage.forecaster_learning_rate,
        frozen_updates=int(stage.freeze_forecaster_fraction * expected_updates(model, budget)),
        world=context.world,
    )
    best = Best()

    def state() -> dict[str, Any]:
        return {"agent": trained.state_dict(), "forecaster": joined.network.state_dict()}

    def check(env_steps: int) -> None:
        policy = hybrid_policy(trained, joined, dataset.features)
        (score,) = validate(context, [policy], env_steps)
        best.consider(score, state, env_steps)

    session = context.checkpoints.session(f"hybrid {model.name}", generator)
    session.keep("best", best.state_dict, best.load_state_dict)
    session.keep("forecaster", learner.state_dict, learner.load_state_dict)
    for group in learner.optimizer.param_groups:
        group["lr"] *= session.rate_factor
    session.begin_with(lambda: check(0))
    env_steps, history = train_agent(
        context,
        trained,
        model=model,
        rows=train_rows(dataset, joined.network.window_bars),
        observe=learner.observe,
        learner=learner,
        check=check,
        on_policy_env_steps=context.trainer.joint_on_policy_env_steps,
        off_policy_env_steps=context.trainer.joint_off_policy_env_steps,
        random_warmup=False,
        generator=generator,
        label=f"hybrid {model.name}",
        session=session,
    )
    assert best.state is not None
    trained.load_state_dict(best.state["agent"])
    joined.network.load_state_dict(best.state["forecaster"])
    return trading_outcome(
        context,
        model_type="hybrid",
        policy=hybrid_policy(trained, joined, dataset.features),
        validation_score=best.score,
        state={
            "kind": "hybrid",
            "forecaster": joined.to_state(),
            "agent": agent_to_state(trained),
            "reward_scale": model.reward_scale,
        },
        contract=trading_contract(dataset, joined.network.window_bars, joined.horizons) | {"algorithm": model.name},
        env_steps=env_steps,
        history=history,
        notes={
            "kept_after_env_steps": best.env_steps,
            "forecaster_updates": max(learner.updates - learner.frozen_updates, 0),
        },
    )


def join(
    context: StageContext, *, stage: HybridStage, model: AgentModel, forecaster: Parent, agent: Parent
) -> tuple[Forecaster, Agent]:
    """Forecaster and agent with the parents' weights: networks, critics, targets and temperature.

    The forecaster stays in evaluation mode: joint training has no dropout, so that the agent keeps seeing what it was
    trained on. Raises RegistryError when the agent was trained on another forecaster.
    """
    joined = forecaster_from_state(copy.deepcopy(forecaster.state["forecaster"]), context.device)
    own = agent.state["forecaster"]["state"]
    theirs = forecaster.state["forecaster"]["state"]
    if own.keys() != theirs.keys() or any(not torch.equal(own[name], theirs[name]) for name in own):
        raise RegistryError(
            f"{agent.model_id} was not trained on the features of {forecaster.model_id}",
            "give only upstream.rl_model: an agent brings its forecaster with it",
        )
    num_assets = context.dataset.num_assets
    width = observation_dim(joined.network, num_assets, context.dataset.rules)
    spec = agent_spec(
        model,
        observation_dim=width,
        action_dim=num_assets,
        rules=context.dataset.rules,
        learning_rate_scale=stage.agent_learning_rate_scale,
    )
    trained = agent_from_spec(spec, device=context.device)
    parent_spec = agent_from_spec(agent.state["agent"]["spec"]).spec()  # with what an older version left unsaid
    for key in INHERITED:
        mine, theirs = trained.spec().get(key), parent_spec.get(key)
        if mine != theirs:
            raise RegistryError(
                f"{agent.model_id} has {key}={theirs}, this run has {mine}",
                "use the model, data and env settings that the agent was trained with",
            )
    if agent.state["reward_scale"] != model.reward_scale:
        raise RegistryError(
            f"{agent.model_id} has reward_scale={agent.state['reward_scale']:g}, this run has {model.reward_scale:g}: "
            "its critics would be wrong by the ratio",
            f"set model.reward_scale={agent.state['reward_scale']:g}",
        )
    trained.load_state_dict(agent.state["agent"]["state"])
    return joined, trained


def hybrid_policy(agent: Agent, forecaster: Forecaster, features: Tensor) -> AgentPolicy:
    """The deterministic policy of the joined network as it stands."""
    return AgentPolicy(agent, feature_table(forecaster.network, features))
