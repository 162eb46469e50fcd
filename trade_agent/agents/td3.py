"""Twin delayed deep deterministic policy gradient (Fujimoto et al. 2018).

Written in plain tensors for speed, see agents/sac.py; tests/agents/test_parity.py holds losses and gradients equal to
TorchRL's TD3Loss. max_action is 1 throughout, so noise is in units of half the action's range. Shapes as in
agents/base.py.
"""

import copy
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
    bootstrap_discount,
    clip_gradients,
    constructor_values,
    make_adam,
    soft_update,
    td_target,
)
from trade_agent.agents.fused import fused_backward
from trade_agent.agents.normalisers import ObservationNormaliser, RewardNormaliser
from trade_agent.agents.processes import Alone, Processes
from trade_agent.networks.mlp import StackedMLP, build_mlp


class TD3(nn.Module):
    """Deterministic tanh policy, two critics (with ``layer_norm``: theirs alone), targets of all three.

    Defaults are those of conf/model/td3.yaml.

    Actor and targets are updated once in ``policy_delay`` updates; the count is part of ``optimizer_state``. ``update``
    takes a batch in the TorchRL layout (``transition_batch``). Losses are taken at the weights before the step.
    """

    name = "td3"
    on_policy = False
    copies = 1

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
        gamma: float = 0.99,
        tau: float = 0.005,
        policy_delay: int = 2,
        exploration_noise: float = 0.1,
        target_noise: float = 0.2,
        target_noise_clip: float = 0.5,
        max_grad_norm: float | None = 10.0,
        adam_eps: float = 1e-8,
        normalise_observation: bool = False,
        normalise_reward: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__()
        self._spec = constructor_values(self, self.name, locals())
        self.gamma, self.tau, self.max_grad_norm = gamma, tau, max_grad_norm
        self.policy_delay, self.exploration_noise = policy_delay, exploration_noise
        self.target_noise, self.target_noise_clip = target_noise, target_noise_clip
        self.gradient_hook: GradientHook | None = None
        self.processes: Processes = Alone()
        self.observation_normaliser = ObservationNormaliser(observation_dim, enabled=normalise_observation)
        self.reward_normaliser = RewardNormaliser(gamma, enabled=normalise_reward)
        self._set_updates(0)
        trunk = build_mlp(
            input_dim=observation_dim,
            hidden_dims=hidden_dims,
            output_dim=action_dim,
            activation=activation,
        )
        self.actor = nn.Sequential(*trunk, nn.Tanh())
        self.critic = StackedMLP(
            num_members=2,
            input_dim=observation_dim + action_dim,
            hidden_dims=hidden_dims,
            output_dim=1,
            activation=activation,
            layer_norm=layer_norm,
        )
        self.target_actor = copy.deepcopy(self.actor).requires_grad_(False)
        self.target_critic = copy.deepcopy(self.critic).requires_grad_(False)
        self.to(device)
        self._loss_actor = torch.zeros((), device=device)
        self._online = list(self.critic.parameters())
        self._trained = [*self.actor.parameters(), *self._online]
        self._target = [*self.target_actor.parameters(), *self.target_critic.parameters()]
        self.optimizer = make_adam(
            [
                {"params": list(self.actor.parameters()), "lr": actor_learning_rate},
                {"params": self._online, "lr": critic_learning_rate},
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

    @torch.no_grad()
    def act(self, observation: Tensor, *, deterministic: bool) -> Action:
        """[B, O] -> action, with Gaussian exploration noise unless deterministic; raw and log_prob are zeros."""
        action = self.actor(self.observation_normaliser(observation))
        if not deterministic:
            action = (action + self.exploration_noise * torch.randn_like(action)).clamp(-1.0, 1.0)
        return Action(action, torch.zeros_like(action), action.new_zeros(len(action)))

    def prepare(self, batch: TensorDict) -> TensorDict:
        """The batch with the noise of the target's action, standard normal."""
        batch["noise_target"] = torch.randn_like(batch["action"])
        return batch

    @torch.no_grad()
    def target(self, batch: TensorDict) -> Tensor:
        """y = r + gamma (1 - terminated) min_i Q'_i(s', clip(mu'(s') + e)), e clipped noise: algorithm 1. [B]

        Over k steps r is their discounted sum, and gamma is gamma^k.
        """
        following = batch["next"]
        observation = self.observation_normaliser(following["observation"])
        noise = self.target_noise * batch["noise_target"]
        noise = noise.clamp(-self.target_noise_clip, self.target_noise_clip)
        action = (self.target_actor(observation) + noise).clamp(-1.0, 1.0)
        q = self.target_critic(torch.cat((observation, action), dim=-1)).squeeze(-1)
        next_value = torch.minimum(q[0], q[1])
        reward = self.reward_normaliser(following["reward"].squeeze(1))
        discount = bootstrap_discount(batch, self.gamma)
        return td_target(reward, following["terminated"].squeeze(1), next_value, discount)

    def critic_loss(self, batch: TensorDict) -> tuple[Tensor, Tensor]:
        """Squared error, averaged over the batch and summed over the critics, and Q [2, B] detached."""
        target = self.target(batch)
        q = self.q_values(self.observation_normaliser(batch["observation"]), batch["action"])
        return (q - target).square().mean(1).sum(), q.detach()

    def actor_loss(self, batch: TensorDict) -> Tensor:
        """-mean Q_1(s, mu(s)): algorithm 1. The observation is detached for the reason given in agents/sac.py."""
        observation = self.observation_normaliser(batch["observation"].detach())
        return -self.critic(torch.cat((observation, self.actor(observation)), dim=-1), frozen=True, first=True).mean()

    def objective(self, batch: TensorDict) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum to minimise and the metrics of a minibatch that was prepared: the critics, and in each
        ``policy_delay``-th update also the actor."""
        total, q = self.critic_loss(batch)
        metrics = {"loss_critic": total.detach(), "q_mean": q.mean(), "q_spread": (q[0] - q[1]).abs().mean()}
        if self.turn:
            loss_actor = self.actor_loss(batch)
            metrics["loss_actor"] = loss_actor.detach()
            total = total + loss_actor
        return total, metrics

    def learning(self) -> list[nn.Parameter]:
        """What has a gradient in the update under way."""
        return self._trained if self.turn else self._online

    def fuse(self) -> None:
        """Compile losses and gradients: one graph for updates of the critics, one for those of the actor, too."""
        self.backward = fused_backward(self, self.learning)  # type: ignore[method-assign]

    def backward(self, batch: TensorDict, *, share: float = 1.0, extra_loss: Tensor | None = None) -> dict[str, Tensor]:
        """Gradients of what ``objective`` sums up."""
        total, metrics = self.objective(batch)
        return backward_share(total, metrics, share=share, extra_loss=extra_loss)

    def step(self, metrics: dict[str, Tensor]) -> dict[str, Tensor]:
        """One step of what has a gradient; the targets follow when the actor took one.

        Between these, ``loss_actor`` is that of the last step of the actor.
        """
        if self.gradient_hook is not None:
            self.gradient_hook(self._trained)
        grad_norm = clip_gradients(self._trained, self.max_grad_norm, copies=self.copies)
        adam_step(self.optimizer)
        if self.turn:
            self._loss_actor.copy_(metrics["loss_actor"])
            soft_update(self._target, self._trained, self.tau)
        return metrics | {"loss_actor": self._loss_actor.clone(), "grad_norm": grad_norm}

    def count(self) -> None:
        """One more update was made."""
        self._set_updates(self.updates + 1)

    def _set_updates(self, updates: int) -> None:
        """``turn``: whether the next update is one of the actor and the targets, too. A compiled graph depends on it,
        and not on the number."""
        self.updates, self.turn = updates, (updates + 1) % self.policy_delay == 0

    def update(self, batch: TensorDict) -> dict[str, Tensor]:
        """One step on one minibatch."""
        batch = self.prepare(batch)
        # Without a gradient (None, not zero) Adam leaves the actor and its moments alone.
        self.optimizer.zero_grad(set_to_none=True)
        metrics = self.step(self.backward(batch))
        self.count()
        return metrics

    def optimizer_state(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer.state_dict(), "updates": self.updates, "loss_actor": self._loss_actor}

    def load_optimizer_state(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        self._set_updates(int(state["updates"]))
        self._loss_actor.copy_(state["loss_actor"])
