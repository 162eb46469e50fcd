"""Agents as TorchRL modules: actors for its collectors and environments, loss modules as the oracle of our updates.

The loss modules hold copies of an agent's weights as they are at the call. Keys: observation, action (the parameters of
its distribution in between), action_log_prob, state_value, state_action_value. Observations and rewards are read as
they are: what an agent normalises must be normalised before.
"""

import copy
import math

import torch
from tensordict import TensorDict
from tensordict.nn import InteractionType, TensorDictModule
from torch import Tensor, nn
from torch.distributions import AffineTransform, Beta, Categorical, Independent, TransformedDistribution
from torchrl.modules import ProbabilisticActor, TanhNormal, ValueOperator
from torchrl.objectives import ClipPPOLoss, SACLoss, TD3Loss, ValueEstimators

from trade_agent.agents.policies import BetaPolicy, CategoricalPolicy, Policy
from trade_agent.agents.ppo import PPO
from trade_agent.agents.sac import SAC
from trade_agent.agents.td3 import TD3


class _LocScale(nn.Module):
    """A policy with the standard deviation in place of its logarithm."""

    def __init__(self, policy: nn.Module) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        loc, log_std = self.policy(observation)
        return loc, log_std.exp()


class _Parameters(nn.Module):
    """A policy as it is; the name keeps its place in the loss module's parameters."""

    def __init__(self, policy: nn.Module) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, observation: Tensor) -> tuple[Tensor, ...]:
        return self.policy(observation)  # type: ignore[no-any-return]


class StretchedBeta(TransformedDistribution):
    """Beta distributions on [-1, 1], one event for all action dimensions."""

    def __init__(self, alpha: Tensor, beta: Tensor) -> None:
        super().__init__(Independent(Beta(alpha, beta), 1), AffineTransform(-1.0, 2.0, event_dim=1))

    @property
    def deterministic_sample(self) -> Tensor:
        return 2.0 * self.base_dist.mean - 1.0

    def entropy(self) -> Tensor:
        return self.base_dist.entropy() + math.log(2.0) * self.event_shape[0]


class PositionNumbers(Independent):
    """A position's number for each action dimension, one event for all of them."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__(Categorical(logits=logits), 1)

    @property
    def deterministic_sample(self) -> Tensor:
        return self.base_dist.logits.argmax(-1)


class _Critic(nn.Module):
    """A plain critic network on observation and action."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        return self.network(torch.cat((observation, action), dim=-1))


def probabilistic_actor(policy: Policy) -> ProbabilisticActor:
    """``agent.policy`` of PPO or SAC; writes action and action_log_prob and shares the agent's weights.

    The action of a categorical policy is the number of a position, what environments with positions take.
    """
    module: nn.Module = _LocScale(policy)
    keys, distribution = ["loc", "scale"], TanhNormal
    if isinstance(policy, BetaPolicy):
        module, keys, distribution = _Parameters(policy), ["alpha", "beta"], StretchedBeta
    if isinstance(policy, CategoricalPolicy):
        module, keys, distribution = _Parameters(policy), ["logits"], PositionNumbers
    return ProbabilisticActor(
        TensorDictModule(module, in_keys=["observation"], out_keys=keys),
        in_keys=keys,
        distribution_class=distribution,
        default_interaction_type=InteractionType.RANDOM,
        return_log_prob=True,
        log_prob_key="action_log_prob",
    )


def deterministic_actor(actor: nn.Module) -> TensorDictModule:
    """``agent.actor`` of TD3; writes the action without exploration noise and shares the agent's weights."""
    return TensorDictModule(actor, in_keys=["observation"], out_keys=["action"])


def q_operator(network: nn.Module) -> ValueOperator:
    """One critic, for instance ``agent.critic.member(0)``; writes state_action_value."""
    return ValueOperator(_Critic(network), in_keys=["observation", "action"])


def ppo_loss(agent: PPO) -> ClipPPOLoss:
    """Wants action, action_log_prob, advantage and value_target; critic and entropy terms are weighted already."""
    loss = ClipPPOLoss(
        probabilistic_actor(copy.deepcopy(agent.policy)),
        ValueOperator(copy.deepcopy(agent.critic), in_keys=["observation"]),
        clip_epsilon=agent.clip,
        entropy_coeff=agent.entropy_coefficient,
        critic_coeff=agent.value_coefficient,
        loss_critic_type="l2",
        normalize_advantage=True,
    )
    loss.set_keys(sample_log_prob="action_log_prob")  # the default follows a global switch
    return loss


def sac_loss(agent: SAC) -> SACLoss:
    """SACLoss with squared errors and our targets, temperature, discount and target entropy."""
    loss = SACLoss(
        probabilistic_actor(copy.deepcopy(agent.policy)),
        [q_operator(agent.critic.member(index)) for index in range(2)],
        loss_function="l2",
        alpha_init=float(agent.log_alpha.detach().exp()),
        target_entropy=agent.target_entropy,
    )
    loss.make_value_estimator(ValueEstimators.TD0, gamma=agent.gamma)
    _copy_target_critics(loss, agent)
    return loss


def td3_loss(agent: TD3) -> TD3Loss:
    """TD3Loss with squared errors and our targets, noise and discount."""
    loss = TD3Loss(
        deterministic_actor(copy.deepcopy(agent.actor)),
        [q_operator(agent.critic.member(index)) for index in range(2)],
        bounds=(-1.0, 1.0),
        policy_noise=agent.target_noise,
        noise_clip=agent.target_noise_clip,
        loss_function="l2",
    )
    loss.make_value_estimator(ValueEstimators.TD0, gamma=agent.gamma)
    _copy_target_critics(loss, agent)
    loss.target_actor_network_params.data.copy_(TensorDict.from_module(deterministic_actor(agent.target_actor)).data)
    return loss


def _copy_target_critics(loss: SACLoss | TD3Loss, agent: SAC | TD3) -> None:
    members = [TensorDict.from_module(q_operator(agent.target_critic.member(index))).data for index in range(2)]
    loss.target_qvalue_network_params.data.copy_(torch.stack(members))
