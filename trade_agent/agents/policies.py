"""Gaussian policies squashed by tanh, and the densities that they need.

Shapes: B rows of a batch, O observation, A action dimensions. A policy maps [B, O] to mean and log standard deviation
of the pre-squash action, [B, A] each; the action is the tanh of a sample and lies in [-1, 1].
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trade_agent.agents.base import Action

LOG_TWO = math.log(2.0)
HALF_LOG_TWO_PI = 0.5 * math.log(2.0 * math.pi)
LOG_STD_MIN, LOG_STD_MAX = -20.0, 2.0  # of the code of the SAC authors


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


class FreeStdPolicy(nn.Module):
    """The mean comes from a network, the standard deviation is one free parameter for each action dimension."""

    def __init__(self, mean: nn.Module, *, action_dim: int, initial_log_std: float) -> None:
        super().__init__()
        self.mean = mean
        self.log_std = nn.Parameter(torch.full((action_dim,), initial_log_std))

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        loc = self.mean(observation)
        return loc, self.log_std.expand_as(loc)


class StateStdPolicy(nn.Module):
    """``network`` gives mean and log standard deviation side by side, [B, 2A]; the latter is kept in [-20, 2]."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        loc, log_std = self.network(observation).chunk(2, dim=-1)
        return loc, log_std.clamp(LOG_STD_MIN, LOG_STD_MAX)


def sample_raw(loc: Tensor, log_std: Tensor) -> Tensor:
    """A reparametrised pre-squash action, from the default generator of the device."""
    return loc + log_std.exp() * torch.randn_like(loc)


@torch.no_grad()
def squashed_action(policy: nn.Module, observation: Tensor, *, deterministic: bool) -> Action:
    """[B, O] -> action, the pre-squash action and its log density; deterministic takes the median, tanh(mean)."""
    loc, log_std = policy(observation)
    raw = loc if deterministic else sample_raw(loc, log_std)
    return Action(raw.tanh(), raw, squashed_log_prob(raw, loc, log_std))
