"""Policies, and the distributions of what they do.

Shapes: B rows of a batch, O observation, A action dimensions, P positions to choose from. A policy maps [B, O] to the
parameters of its distribution. The distribution samples ``raw`` [B, A], which is what buffers keep and what is scored:
the action before the tanh, a point of the unit interval, or the number of a position. ``action`` makes an action in
[-1, 1] of it. A stored action could not always be turned back into what was sampled (a saturated tanh cannot).
"""

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trade_agent.agents.base import Action
from trade_agent.errors import ConfigError

LOG_TWO = math.log(2.0)
HALF_LOG_TWO_PI = 0.5 * math.log(2.0 * math.pi)
LOG_STD_MIN, LOG_STD_MAX = -20.0, 2.0  # of the code of the SAC authors
OPEN_UNIT_INTERVAL = (1e-6, 1.0 - 1e-6)  # where both logarithms of a Beta density are finite in float32

Parameters = tuple[Tensor, ...]


# ------------------------------------------------------------------------------------------------ densities


def normal_log_prob(raw: Tensor, loc: Tensor, log_std: Tensor) -> Tensor:
    """Log density of ``raw`` [B, A] under independent normals, summed over A -> [B]."""
    z = (raw - loc) * (-log_std).exp()
    return (-0.5 * z.square() - log_std - HALF_LOG_TWO_PI).sum(-1)


def tanh_log_det(raw: Tensor) -> Tensor:
    """log |d tanh(u) / du| = 2 (log 2 - u - softplus(-2u)), summed over A: [B, A] -> [B].

    Equal to log(1 - tanh(u)^2) (Haarnoja et al., ICML 2018, appendix C), but exact where tanh saturates.
    """
    return (2.0 * (LOG_TWO - raw - F.softplus(-2.0 * raw))).sum(-1)


def squashed_log_prob(raw: Tensor, loc: Tensor, log_std: Tensor) -> Tensor:
    """Log density of tanh(raw) where raw ~ N(loc, exp(log_std)^2): [B, A] -> [B].

    It takes ``raw`` and not the action: a saturated tanh cannot be inverted, and would be scored wrongly.
    """
    return normal_log_prob(raw, loc, log_std) - tanh_log_det(raw)


def raw_action(loc: Tensor, log_std: Tensor, noise: Tensor) -> Tensor:
    """A reparametrised pre-squash action from standard normal noise, all [B, A]."""
    return loc + log_std.exp() * noise


def log_beta_function(alpha: Tensor, beta: Tensor) -> Tensor:
    """log B(alpha, beta), element by element."""
    return alpha.lgamma() + beta.lgamma() - (alpha + beta).lgamma()


# ------------------------------------------------------------------------------------------------ distributions


class Distribution(Protocol):
    """All methods work on rows: parameters as the policy gives them, ``raw`` [B, A], results [B] or [B, A].

    Densities are those of the action (in nats, summed over A). ``centre`` is what a policy does without chance.
    Samples come from the default generator of the device. ``noise`` is what an estimate of the entropy needs for rows
    like ``raw``: drawn apart from it, because parts of a minibatch must find that of the whole.
    """

    def sample(self, parameters: Parameters) -> Tensor: ...

    def centre(self, parameters: Parameters) -> Tensor: ...

    def action(self, raw: Tensor) -> Tensor: ...

    def log_prob(self, raw: Tensor, parameters: Parameters) -> Tensor: ...

    def noise(self, raw: Tensor) -> Tensor: ...

    def entropy(self, parameters: Parameters, noise: Tensor) -> Tensor: ...


class SquashedNormal:
    """The tanh of a normal variable with parameters (loc, log_std), [B, A] each. Its centre is the median, tanh(loc).

    The entropy has no closed form: ``entropy`` is an estimate from one reparametrised sample.
    """

    def sample(self, parameters: Parameters) -> Tensor:
        loc, log_std = parameters
        return raw_action(loc, log_std, torch.randn_like(loc))

    def centre(self, parameters: Parameters) -> Tensor:
        return parameters[0]

    def action(self, raw: Tensor) -> Tensor:
        return raw.tanh()

    def log_prob(self, raw: Tensor, parameters: Parameters) -> Tensor:
        return squashed_log_prob(raw, *parameters)

    def noise(self, raw: Tensor) -> Tensor:
        return torch.randn_like(raw)

    def entropy(self, parameters: Parameters, noise: Tensor) -> Tensor:
        loc, log_std = parameters
        return -squashed_log_prob(raw_action(loc, log_std, noise), loc, log_std)


class StretchedBeta:
    """2 u - 1 where u ~ Beta(alpha, beta); parameters (alpha, beta), [B, A] each. Its centre is the mean.

    Unlike a clipped normal it has no mass outside of [-1, 1] and so no bias at the bounds: Chou, Maturana and Scherer
    (ICML 2017), "Improving Stochastic Policy Gradients in Continuous Control with Deep Reinforcement Learning using
    the Beta Distribution".
    """

    def sample(self, parameters: Parameters) -> Tensor:
        # What torch.distributions.Beta draws; its own function cannot be vmapped.
        unit: Tensor = torch._sample_dirichlet(torch.stack(parameters, -1)).select(-1, 0)
        return unit.clamp(*OPEN_UNIT_INTERVAL)

    def centre(self, parameters: Parameters) -> Tensor:
        alpha, beta = parameters
        return alpha / (alpha + beta)

    def action(self, raw: Tensor) -> Tensor:
        return 2.0 * raw - 1.0

    def log_prob(self, raw: Tensor, parameters: Parameters) -> Tensor:
        alpha, beta = parameters
        density = (alpha - 1.0) * raw.log() + (beta - 1.0) * (-raw).log1p() - log_beta_function(alpha, beta)
        return (density - LOG_TWO).sum(-1)  # the interval is twice as wide as the unit one

    def noise(self, raw: Tensor) -> Tensor:
        return torch.zeros_like(raw)  # there is a closed form

    def entropy(self, parameters: Parameters, noise: Tensor) -> Tensor:
        alpha, beta = parameters
        total = alpha + beta
        slopes = (alpha - 1.0) * alpha.digamma() + (beta - 1.0) * beta.digamma() - (total - 2.0) * total.digamma()
        return (log_beta_function(alpha, beta) - slopes + LOG_TWO).sum(-1)


class Positions(nn.Module):
    """Each action dimension is one of P given actions, independently; parameters (log probabilities [B, A, P],).

    ``raw`` is the number of the position, as a float. Its centre is the most probable one.
    """

    actions: Tensor

    def __init__(self, actions: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("actions", torch.tensor(actions, dtype=torch.float32), persistent=False)

    def sample(self, parameters: Parameters) -> Tensor:
        # Of independent exponential clocks with rates p_i the first to ring is i with probability p_i.
        clocks = torch.empty_like(parameters[0]).exponential_()
        return (parameters[0] - clocks.log()).argmax(-1).float()

    def centre(self, parameters: Parameters) -> Tensor:
        return parameters[0].argmax(-1).float()

    def action(self, raw: Tensor) -> Tensor:
        return self.actions[raw.long()]

    def log_prob(self, raw: Tensor, parameters: Parameters) -> Tensor:
        return parameters[0].gather(-1, raw.long().unsqueeze(-1)).squeeze(-1).sum(-1)

    def noise(self, raw: Tensor) -> Tensor:
        return torch.zeros_like(raw)  # there is a closed form

    def entropy(self, parameters: Parameters, noise: Tensor) -> Tensor:
        return -(parameters[0].exp() * parameters[0]).sum((-2, -1))


# ------------------------------------------------------------------------------------------------ policies


class FreeStdPolicy(nn.Module):
    """The mean comes from a network, the standard deviation is one free parameter for each action dimension."""

    def __init__(self, mean: nn.Module, *, action_dim: int, initial_log_std: float) -> None:
        super().__init__()
        self.mean = mean
        self.log_std = nn.Parameter(torch.full((action_dim,), initial_log_std))
        self.distribution = SquashedNormal()

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        loc = self.mean(observation)
        return loc, self.log_std.expand_as(loc)


class StateStdPolicy(nn.Module):
    """``network`` gives mean and log standard deviation side by side, [B, 2A]; the latter is kept in [-20, 2]."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.distribution = SquashedNormal()

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        loc, log_std = self.network(observation).chunk(2, dim=-1)
        return loc, log_std.clamp(LOG_STD_MIN, LOG_STD_MAX)


class BetaPolicy(nn.Module):
    """``network`` gives two numbers for each action dimension, [B, 2A]; alpha and beta are 1 + softplus of them.

    Both are above 1, so that the density has one peak (Chou et al. 2017, section 3.2).
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.distribution = StretchedBeta()

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        alpha, beta = (1.0 + F.softplus(self.network(observation))).chunk(2, dim=-1)
        return alpha, beta


class CategoricalPolicy(nn.Module):
    """``network`` gives a logit for each action dimension and position, [B, A * P]."""

    def __init__(self, network: nn.Module, *, actions: Sequence[float]) -> None:
        super().__init__()
        self.network = network
        self.distribution = Positions(actions)

    def forward(self, observation: Tensor) -> tuple[Tensor]:
        logits = self.network(observation).unflatten(-1, (-1, len(self.distribution.actions)))
        return (logits.log_softmax(-1),)


Policy = FreeStdPolicy | StateStdPolicy | BetaPolicy | CategoricalPolicy
POLICIES = ("gaussian", "beta", "categorical")


def policy_outputs(kind: str, *, action_dim: int, actions: Sequence[float] | None) -> int:
    """Outputs that the network of a policy called ``kind`` needs.

    Raises ConfigError for a name that is not in POLICIES, and for a categorical policy without ``actions``.
    """
    if kind not in POLICIES:
        raise ConfigError(f"policy {kind!r} is unknown", f"choose one of {', '.join(POLICIES)}")
    if kind == "categorical" and not actions:
        raise ConfigError("a categorical policy has nothing to choose from", "give the actions of its positions")
    return action_dim * {"gaussian": 1, "beta": 2, "categorical": len(actions or ())}[kind]


def build_policy(
    kind: str, network: nn.Module, *, action_dim: int, actions: Sequence[float] | None, initial_log_std: float
) -> FreeStdPolicy | BetaPolicy | CategoricalPolicy:
    """The policy called ``kind`` on a network with ``policy_outputs`` outputs."""
    if kind == "categorical":
        return CategoricalPolicy(network, actions=actions or ())
    if kind == "beta":
        return BetaPolicy(network)
    return FreeStdPolicy(network, action_dim=action_dim, initial_log_std=initial_log_std)


@torch.no_grad()
def policy_action(policy: Policy, observation: Tensor, *, deterministic: bool) -> Action:
    """[B, O] -> action, what was sampled for it (deterministic: the centre) and the log density."""
    distribution: Distribution = policy.distribution
    parameters = policy(observation)
    raw = distribution.centre(parameters) if deterministic else distribution.sample(parameters)
    return Action(distribution.action(raw), raw, distribution.log_prob(raw, parameters))
