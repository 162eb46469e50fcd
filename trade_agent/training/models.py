"""What a registered model holds, and the way from there to networks and policies.

A state is a dict of tensors and plain values:

    forecaster  {"spec": {...}, "state": {...}, "horizons": [...], "target_scale": [H]}
    cnn_lstm    {"kind", "forecaster", "symbols", "folds": [{"first", "last", "state", "latent_weight", "latent_bias"}]}
    agent       {"kind", "forecaster", "agent": {"spec", "state"}, "reward_scale"}     (ppo, sac, td3 and hybrid)
    ensemble    {"kind", "combiner", "weights": [M], "flat_action", "gate": {...} or None, "members": [agent states]}
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trade_agent.agents.base import Agent
from trade_agent.agents.builders import agent_from_spec
from trade_agent.config.schema import AgentModel, CnnLstmModel, PpoModel, SacModel, Td3Model
from trade_agent.envs.market import account_fields
from trade_agent.envs.rules import MarketRules, position_actions
from trade_agent.networks.cnn_lstm import CNNLSTM
from trade_agent.networks.combiners import GateCombiner, mean_action, vote_action, weighted_action
from trade_agent.training.supervised import Fold, feature_table

State = dict[str, Any]

# ------------------------------------------------------------------------------------------------ forecaster


@dataclass(frozen=True, slots=True)
class Forecaster:
    """A network with what its outputs mean: horizons in bars, and the log return that 1.0 of its output stands for."""

    network: CNNLSTM
    spec: dict[str, Any]
    horizons: tuple[int, ...]
    target_scale: Tensor  # [H]

    def to_state(self) -> State:
        return {
            "spec": dict(self.spec),
            "state": self.network.state_dict(),
            "horizons": list(self.horizons),
            "target_scale": self.target_scale,
        }


def forecaster_spec(model: CnnLstmModel, num_features: int) -> dict[str, Any]:
    return {
        "num_features": num_features,
        "window_bars": model.window_bars,
        "conv_channels": list(model.conv_channels),
        "kernel_size": model.kernel_size,
        "lstm_hidden": model.lstm_hidden,
        "lstm_layers": model.lstm_layers,
        "dropout": model.dropout,
        "num_horizons": len(model.horizons),
    }


def forecaster_from_state(state: State, device: torch.device) -> Forecaster:
    """A forecaster in evaluation mode."""
    network = CNNLSTM(**state["spec"]).to(device)
    network.load_state_dict(state["state"])
    network.eval()
    return Forecaster(network, state["spec"], tuple(state["horizons"]), state["target_scale"].to(device))


def folds_to_state(folds: Sequence[Fold], timestamps: np.ndarray) -> list[State]:
    """Folds with the times of their first and last bar (ns since 1970, UTC): rows mean nothing to another series."""
    times = timestamps.astype("datetime64[ns]").astype(np.int64)
    return [
        {"first": int(times[fold.start]), "last": int(times[fold.stop - 1])}
        | {"state": fold.state, "latent_weight": fold.latent_weight, "latent_bias": fold.latent_bias}
        for fold in folds
    ]


def folds_from_state(state: State, symbols: Sequence[str], timestamps: np.ndarray, first_row: int) -> list[Fold]:
    """The folds of a forecaster on the rows of this run's bars; none where it was trained on other symbols.

    Blocks that lie outside of the bars, or before `first_row`, are left out.
    """
    if list(symbols) != list(state["symbols"]):
        return []
    times = timestamps.astype("datetime64[ns]").astype(np.int64)
    folds = []
    for fold in state["folds"]:
        start = max(int(np.searchsorted(times, fold["first"])), first_row)
        stop = int(np.searchsorted(times, fold["last"], side="right"))
        if start < stop:
            folds.append(Fold(start, stop, fold["state"], fold["latent_weight"], fold["latent_bias"]))
    return folds


# ------------------------------------------------------------------------------------------------ agents


def observation_dim(forecaster: CNNLSTM, num_assets: int, rules: MarketRules) -> int:
    """Width of an observation: features of every asset, then the account."""
    per_asset = forecaster.feature_dim + forecaster.num_features
    return num_assets * per_asset + len(account_fields(rules, num_assets))


def agent_spec(
    model: AgentModel,
    *,
    observation_dim: int,
    action_dim: int,
    rules: MarketRules | None = None,
    learning_rate_scale: float = 1.0,
) -> dict[str, Any]:
    """Constructor values of the agent that a config describes.

    The positions of a categorical policy are target weights under `rules`, actions where there is no market.
    """
    common = {
        "name": model.name,
        "observation_dim": observation_dim,
        "action_dim": action_dim,
        "hidden_dims": list(model.hidden_sizes),
        "activation": model.activation,
        "layer_norm": model.layer_norm,
        "gamma": model.gamma,
        "normalise_observation": model.normalise_observation,
        "normalise_reward": model.normalise_reward,
    }
    if isinstance(model, PpoModel):
        actions = None
        if model.policy == "categorical":
            positions = list(model.positions)
            actions = positions if rules is None else position_actions(rules, positions).tolist()
        return common | {
            "policy": model.policy,
            "actions": actions,
            "initial_log_std": model.initial_log_std,
            "learning_rate": model.learning_rate * learning_rate_scale,
            "gae_lambda": model.gae_lambda,
            "clip": model.clip_epsilon,
            "value_coefficient": model.value_coefficient,
            "entropy_coefficient": model.entropy_coefficient,
            "max_grad_norm": model.max_grad_norm,
        }
    assert isinstance(model, SacModel | Td3Model)
    off_policy = common | {
        "actor_learning_rate": model.learning_rate * learning_rate_scale,
        "critic_learning_rate": model.critic_learning_rate * learning_rate_scale,
        "tau": model.tau,
        "max_grad_norm": model.max_grad_norm,
    }
    if isinstance(model, SacModel):
        return off_policy | {
            "alpha_learning_rate": model.alpha_learning_rate * learning_rate_scale,
            "initial_alpha": model.initial_alpha,
            "target_entropy": model.target_entropy,
        }
    return off_policy | {
        "policy_delay": model.policy_delay,
        "exploration_noise": model.exploration_noise,
        "target_noise": model.target_noise,
        "target_noise_clip": model.target_noise_clip,
    }


def agent_to_state(agent: Agent) -> State:
    return {"spec": agent.spec(), "state": agent.state_dict()}


def agent_from_state(state: State, device: torch.device) -> Agent:
    agent = agent_from_spec(state["spec"], device=device)
    agent.load_state_dict(state["state"])
    return agent


# ------------------------------------------------------------------------------------------------ policies


class AgentPolicy:
    """An agent that reads a feature table [T, A, D]: (t [B], account [B, K]) -> deterministic action [B, A]."""

    def __init__(self, agent: Agent, table: Tensor) -> None:
        self.agent, self.table = agent, table.flatten(1)

    def observe(self, t: Tensor, account: Tensor) -> Tensor:
        return torch.cat((self.table.index_select(0, t), account), dim=-1)

    def __call__(self, t: Tensor, account: Tensor) -> Tensor:
        return self.agent.act(self.observe(t, account), deterministic=True).action


class EnsemblePolicy:
    """Members that all see the ensemble's own account, and what makes one action of theirs.

    features: [T, A, F], read by the gate. weights: [M], read by the combiner `weighted`. flat_action: the action that
    means no position (0, or -1 without short selling), from which `vote` takes its sides.
    """

    def __init__(
        self,
        members: Sequence[AgentPolicy],
        *,
        combiner: str,
        weights: Tensor,
        gate: nn.Module | None,
        features: Tensor,
        flat_action: float,
    ) -> None:
        self.members, self.combiner, self.weights, self.gate = members, combiner, weights, gate
        self.flat_action = flat_action
        self.features = features.flatten(1)

    def __call__(self, t: Tensor, account: Tensor) -> Tensor:
        actions = torch.stack([member(t, account) for member in self.members])
        if self.combiner == "mean":
            return mean_action(actions)
        if self.combiner == "weighted":
            return weighted_action(actions, self.weights)
        if self.combiner == "vote":
            return vote_action(actions - self.flat_action) + self.flat_action
        assert self.gate is not None
        return self.gate(actions, self.features.index_select(0, t))


def policy_from_state(state: State, features: Tensor) -> AgentPolicy | EnsemblePolicy:
    """The policy of a registered agent, hybrid or ensemble on the scaled features [T, A, F] of some series."""
    device = features.device
    if state["kind"] != "ensemble":
        forecaster = forecaster_from_state(state["forecaster"], device)
        return AgentPolicy(agent_from_state(state["agent"], device), feature_table(forecaster.network, features))
    gate = None
    if state["gate"] is not None:
        gate = GateCombiner(**state["gate"]["spec"]).to(device)
        gate.load_state_dict(state["gate"]["state"])
    members = [policy_from_state(member, features) for member in state["members"]]
    return EnsemblePolicy(
        [member for member in members if isinstance(member, AgentPolicy)],
        combiner=state["combiner"],
        weights=state["weights"].to(device),
        gate=gate,
        features=features,
        flat_action=state["flat_action"],
    )
