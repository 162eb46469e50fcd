"""Soft actor-critic (Haarnoja et al. 2018, "Soft Actor-Critic Algorithms and Applications") with a tuned temperature.

Written in plain tensors because that is faster than TorchRL's SACLoss: twin critics in one batched product, one
backward pass, one fused Adam. tests/agents/test_parity.py holds losses and gradients equal to TorchRL's. Equation
numbers are of the paper. Shapes as in agents/base.py.
"""

import copy
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from trade_agent.agents.base import (
    Action,
    GradientHook,
    adam_step,
    backward_share,
    bootstrap_discount,
    clip_gradients,
    constructor_values,
    make_adam,
    soft_update,
    td_target,
)
from trade_agent.agents.fused import fused_backward
from trade_agent.agents.normalisers import ObservationNormaliser, RewardNormaliser
from trade_agent.agents.policies import StateStdPolicy, policy_action, raw_action, squashed_log_prob
from trade_agent.agents.processes import Alone, Processes
from trade_agent.networks.mlp import StackedMLP, build_mlp


class SACLosses(NamedTuple):
    actor: Tensor
    critic: Tensor
    alpha: Tensor
    log_prob: Tensor  # [B] of the actor's fresh actions, detached
    q: Tensor  # [2, B] of the stored actions, detached


class SAC(nn.Module):
    """Squashed Gaussian policy, two critics and their targets, temperature alpha as log alpha.

    Defaults are those of conf/model/sac.yaml.

    ``target_entropy`` None means -dim(A); ``layer_norm`` is of the critics. ``update`` takes a batch in the TorchRL
    layout (``transition_batch``). All losses are taken at the weights before the step. Uniformly random actions at the
    start are the training loop's part.
    """

    name = "sac"
    on_policy = False
    copies = 1
    turn = True  # all updates are alike

    def __init__(
        self,
        *,
        observation_dim: int,
        action_dim: int,
        hidden_dims: Sequence[int] = (64, 64),
        activation: str = "relu",
        layer_norm: bool = False,
        actor_learning_rate: float = 3e-4,
        critic_learning_rate: float = 3e-4,
        alpha_learning_rate: float = 3e-4,
        gamma: float = 0.99,
        tau: float = 0.005,
        initial_alpha: float = 0.1,
        target_entropy: float | None = None,
        max_grad_norm: float | None = 10.0,
        adam_eps: float = 1e-8,
        normalise_observation: bool = False,
        normalise_reward: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__()
        self._spec = constructor_values(self, self.name, locals())
        self.gamma, self.tau, self.max_grad_norm = gamma, tau, max_grad_norm
        self.target_entropy = -float(action_dim) if target_entropy is None else target_entropy
        self.gradient_hook: GradientHook | None = None
        self.processes: Processes = Alone()
        self.observation_normaliser = ObservationNormaliser(observation_dim, enabled=normalise_observation)
        self.reward_normaliser = RewardNormaliser(gamma, enabled=normalise_reward)
        self.policy = StateStdPolicy(
            build_mlp(
                input_dim=observation_dim,
                hidden_dims=hidden_dims,
                output_dim=2 * action_dim,
                activation=activation,
            )
        )
        self.critic = StackedMLP(
            num_members=2,
            input_dim=observation_dim + action_dim,
            hidden_dims=hidden_dims,
            output_dim=1,
            activation=activation,
            layer_norm=layer_norm,
        )
        self.target_critic = copy.deepcopy(self.critic).requires_grad_(False)
        self.log_alpha = nn.Parameter(torch.tensor(math.log(initial_alpha)))
        self.to(device)
        self._trained = [*self.policy.parameters(), *self.critic.parameters(), self.log_alpha]
        self._online, self._target = list(self.critic.parameters()), list(self.target_critic.parameters())
        self.optimizer = make_adam(
            [
                {"params": list(self.policy.parameters()), "lr": actor_learning_rate},
                {"params": self._online, "lr": critic_learning_rate},
                {"params": [self.log_alpha], "lr": alpha_learning_rate},
            ],
            eps=adam_eps,
            device=torch.device(device),
        )

    def spec(self) -> dict[str, Any]:
        """Plain values from which ``agent_from_spec`` builds the same agent."""
        return dict(self._spec)

    def q_values(self, observation: Tensor, action: Tensor) -> Tensor:
        """Both critics: normalised observation [B, O], [B, A] -> [2, B]."""
        return self.critic(torch.cat((observation, action), dim=-1)).squeeze(-1)

    def act(self, observation: Tensor, *, deterministic: bool) -> Action:
        """[B, O] -> action, the pre-squash action and its log density; deterministic takes the median, tanh(mean)."""
        return policy_action(self.policy, self.observation_normaliser(observation), deterministic=deterministic)

    def prepare(self, batch: TensorDict) -> TensorDict:
        """The batch with the noise of a' in the target, and of the actor's own action."""
        batch["noise_target"] = torch.randn_like(batch["action"])
        batch["noise_actor"] = torch.randn_like(batch["action"])
        return batch

    @torch.no_grad()
    def target(self, batch: TensorDict) -> Tensor:
        """y = r + gamma (1 - terminated) (min_i Q'_i(s', a') - alpha log pi(a'|s')): equations 3 and 5. [B]

        Over k steps r is their discounted sum without the entropy in between, and gamma is gamma^k.
        """
        following = batch["next"]
        observation = self.observation_normaliser(following["observation"])
        loc, log_std = self.policy(observation)
        raw = raw_action(loc, log_std, batch["noise_target"])
        q = self.target_critic(torch.cat((observation, raw.tanh()), dim=-1)).squeeze(-1)
        next_value = torch.minimum(q[0], q[1]) - self.log_alpha.exp() * squashed_log_prob(raw, loc, log_std)
        reward = self.reward_normaliser(following["reward"].squeeze(1))
        discount = bootstrap_discount(batch, self.gamma)
        return td_target(reward, following["terminated"].squeeze(1), next_value, discount)

    def losses(self, batch: TensorDict) -> SACLosses:
        """The three losses of a batch that was prepared."""
        target = self.target(batch)
        observation = self.observation_normaliser(batch["observation"])
        q = self.q_values(observation, batch["action"])
        # J_Q, equation 5: squared error, averaged over the batch and summed over the critics.
        critic = (q - target).square().mean(1).sum()

        # An encoder behind the observation learns from the critic and the auxiliary loss only: the actor's gradient
        # in shared features spoils them (Yarats et al. 2021, SAC-AE; likewise DrQ).
        observation = observation.detach()
        loc, log_std = self.policy(observation)
        raw = raw_action(loc, log_std, batch["noise_actor"])
        log_prob = squashed_log_prob(raw, loc, log_std)
        q_actor = self.critic(torch.cat((observation, raw.tanh()), dim=-1), frozen=True).squeeze(-1)
        # J_pi, equations 7 and 9.
        actor = (self.log_alpha.detach().exp() * log_prob - torch.minimum(q_actor[0], q_actor[1])).mean()
        # J(alpha), equation 18, with log alpha in place of alpha, as in the authors' code.
        log_prob = log_prob.detach()
        alpha = -self.log_alpha * (log_prob.mean() + self.target_entropy)
        return SACLosses(actor, critic, alpha, log_prob, q.detach())

    def objective(self, batch: TensorDict) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum to minimise and the metrics of a minibatch that was prepared."""
        losses = self.losses(batch)
        metrics = {
            "loss_actor": losses.actor.detach(),
            "loss_critic": losses.critic.detach(),
            "loss_alpha": losses.alpha.detach(),
            "entropy": -losses.log_prob.mean(),
            "q_mean": losses.q.mean(),
            "q_spread": (losses.q[0] - losses.q[1]).abs().mean(),
        }
        return losses.actor + losses.critic + losses.alpha, metrics

    def fuse(self) -> None:
        """Compile losses and gradients."""
        self.backward = fused_backward(self, lambda: self._trained)  # type: ignore[method-assign]

    def backward(self, batch: TensorDict, *, share: float = 1.0, extra_loss: Tensor | None = None) -> dict[str, Tensor]:
        """Gradients of actor, critics and temperature."""
        total, metrics = self.objective(batch)
        return backward_share(total, metrics, share=share, extra_loss=extra_loss)

    def step(self, metrics: dict[str, Tensor]) -> dict[str, Tensor]:
        """One step of actor, critics and temperature, then the targets follow by ``tau``."""
        if self.gradient_hook is not None:
            self.gradient_hook(self._trained)
        grad_norm = clip_gradients(self._trained, self.max_grad_norm, copies=self.copies)
        alpha = self.log_alpha.detach().exp()
        adam_step(self.optimizer)
        soft_update(self._target, self._online, self.tau)
        return metrics | {"alpha": alpha, "grad_norm": grad_norm}

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
