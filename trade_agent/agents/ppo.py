"""Proximal policy optimisation with the clipped objective (Schulman et al. 2017).

Details after Engstrom et al. (2020) and Huang et al. (2022), "The 37 Implementation Details of PPO". Shapes as in
agents/base.py.
"""

from collections.abc import Sequence
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from trade_agent.agents.base import (
    Action,
    GradientHook,
    adam_step,
    backward_share,
    clip_gradients,
    constructor_values,
    make_adam,
)
from trade_agent.agents.fused import fused_act, fused_backward
from trade_agent.agents.normalisers import ObservationNormaliser, RewardNormaliser
from trade_agent.agents.policies import Distribution, build_policy, policy_action, policy_outputs
from trade_agent.agents.processes import Alone, Processes
from trade_agent.networks.mlp import build_mlp, orthogonal_init


def clipped_surrogate(log_ratio: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """-min(r A, clip(r, 1 - c, 1 + c) A), averaged: Schulman et al. 2017, equation 7. [B], [B] -> []."""
    ratio = log_ratio.exp()
    return -torch.minimum(ratio * advantage, ratio.clamp(1.0 - clip, 1.0 + clip) * advantage).mean()


def standardise(values: Tensor, processes: Processes) -> Tensor:
    """Mean 0, standard deviation 1 over a minibatch, [B] in each process; one of equal values becomes zeros."""
    centred = values - processes.mean(values.mean())
    rows = len(values) * processes.size
    variance = processes.mean(centred.square().mean()) * (rows / (rows - 1))
    return centred / variance.sqrt().clamp_min(1e-6)


class PPO(nn.Module):
    """Separate policy and value networks; defaults are those of conf/model/ppo.yaml.

    ``policy`` is ``gaussian`` (squashed by tanh; its standard deviation, at first exp(``initial_log_std``), is a free
    parameter of each action dimension), ``beta`` or ``categorical`` over the given ``actions``: see agents/policies.py.
    It is scored on the ``raw`` that ``act`` returned. One minibatch for each ``update``: observation [B, O], raw
    [B, A], log_prob, advantage and value_target [B] (advantages are standardised here). ``layer_norm`` is of the
    critic. ``reward_normaliser`` is for the training loop to apply, before it estimates advantages.
    """

    name = "ppo"
    on_policy = True
    copies = 1
    turn = True  # all updates are alike

    def __init__(
        self,
        *,
        observation_dim: int,
        action_dim: int,
        hidden_dims: Sequence[int] = (64, 64),
        policy: str = "gaussian",
        actions: Sequence[float] | None = None,
        activation: str = "tanh",
        layer_norm: bool = False,
        learning_rate: float = 3e-4,
        gamma: float = 0.99,
        gae_lambda: float = 0.95,
        clip: float = 0.2,
        value_coefficient: float = 0.5,
        entropy_coefficient: float = 0.0,
        initial_log_std: float = 0.0,
        max_grad_norm: float | None = 0.5,
        adam_eps: float = 1e-5,
        normalise_observation: bool = False,
        normalise_reward: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__()
        self._spec = constructor_values(self, self.name, locals())
        self.gamma, self.gae_lambda, self.clip = gamma, gae_lambda, clip
        self.value_coefficient, self.entropy_coefficient = value_coefficient, entropy_coefficient
        self.max_grad_norm = max_grad_norm
        self.gradient_hook: GradientHook | None = None
        self.processes: Processes = Alone()
        self.observation_normaliser = ObservationNormaliser(observation_dim, enabled=normalise_observation)
        self.reward_normaliser = RewardNormaliser(gamma, enabled=normalise_reward)
        outputs = policy_outputs(policy, action_dim=action_dim, actions=actions)
        actor, self.critic = (
            build_mlp(
                input_dim=observation_dim,
                hidden_dims=hidden_dims,
                output_dim=output_dim,
                activation=activation,
                layer_norm=norm,
            )
            for output_dim, norm in ((outputs, False), (1, layer_norm))
        )
        orthogonal_init(actor, output_gain=0.01)
        orthogonal_init(self.critic, output_gain=1.0)
        self.policy = build_policy(
            policy, actor, action_dim=action_dim, actions=actions, initial_log_std=initial_log_std
        )
        self.to(device)
        self._trained = list(self.parameters())
        self.optimizer = make_adam(
            [{"params": self._trained, "lr": learning_rate}], eps=adam_eps, device=torch.device(device)
        )

    def spec(self) -> dict[str, Any]:
        """Plain values from which ``agent_from_spec`` builds the same agent."""
        return dict(self._spec)

    def act(self, observation: Tensor, *, deterministic: bool) -> Action:
        """[B, O] -> action, what was sampled for it and its log density; deterministic takes the policy's centre."""
        return policy_action(self.policy, self.observation_normaliser(observation), deterministic=deterministic)

    @torch.no_grad()
    def value(self, observation: Tensor) -> Tensor:
        """V(s): [..., O] -> [...]."""
        return self.critic(self.observation_normaliser(observation)).squeeze(-1)

    def prepare(self, batch: TensorDict) -> TensorDict:
        """The batch with standardised advantages, and the noise of an estimate of the entropy."""
        batch["standard_advantage"] = standardise(batch["advantage"], self.processes)
        batch["noise"] = self.policy.distribution.noise(batch["raw"])
        return batch

    def objective(self, batch: TensorDict) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum to minimise and the metrics of a minibatch that was prepared; both networks send gradients into
        the observation."""
        observation = self.observation_normaliser(batch["observation"])
        distribution: Distribution = self.policy.distribution
        parameters = self.policy(observation)
        log_ratio = distribution.log_prob(batch["raw"], parameters) - batch["log_prob"]
        loss_actor = clipped_surrogate(log_ratio, batch["standard_advantage"], self.clip)
        loss_critic = (self.critic(observation).squeeze(-1) - batch["value_target"]).square().mean()
        with torch.set_grad_enabled(self.entropy_coefficient != 0.0):  # by default it is only reported
            entropy = distribution.entropy(parameters, batch["noise"]).mean()
        total = loss_actor + self.value_coefficient * loss_critic - self.entropy_coefficient * entropy
        with torch.no_grad():
            ratio = log_ratio.exp()
            metrics = {
                "loss_actor": loss_actor.detach(),
                "loss_critic": loss_critic.detach(),
                "entropy": entropy.detach(),
                # An estimate that is unbiased and never negative: Schulman (2020), "Approximating KL Divergence", k3.
                "approx_kl": (ratio - 1.0 - log_ratio).mean(),
                "clip_fraction": ((ratio - 1.0).abs() > self.clip).float().mean(),
            }
        return total, metrics

    def fuse(self) -> None:
        """Compile rollouts, and losses with their gradients."""
        self.act = fused_act(self.act)  # type: ignore[method-assign]
        self.backward = fused_backward(self, lambda: self._trained)  # type: ignore[method-assign]

    def backward(self, batch: TensorDict, *, share: float = 1.0, extra_loss: Tensor | None = None) -> dict[str, Tensor]:
        """Gradients of both networks."""
        total, metrics = self.objective(batch)
        return backward_share(total, metrics, share=share, extra_loss=extra_loss)

    def step(self, metrics: dict[str, Tensor]) -> dict[str, Tensor]:
        """One step of both networks."""
        if self.gradient_hook is not None:
            self.gradient_hook(self._trained)
        grad_norm = clip_gradients(self._trained, self.max_grad_norm, copies=self.copies)
        adam_step(self.optimizer)
        return metrics | {"grad_norm": grad_norm}

    def count(self) -> None:
        """There is nothing to count."""

    def update(self, batch: TensorDict) -> dict[str, Tensor]:
        """One step on one minibatch."""
        batch = self.prepare(batch)
        self.optimizer.zero_grad()
        return self.step(self.backward(batch))

    def optimizer_state(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer.state_dict()}

    def load_optimizer_state(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
