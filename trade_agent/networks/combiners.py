"""Ensemble combiners: actions of M members [M, B, A] in [-1, 1] -> one action [B, A] in [-1, 1].

All are differentiable almost everywhere and treat the assets apart. NaN from any member gives NaN.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from trade_agent.networks.mlp import build_mlp


def mean_action(actions: Tensor) -> Tensor:
    """The average member: [M, B, A] -> [B, A]."""
    return actions.mean(0)


def weighted_action(actions: Tensor, weights: Tensor) -> Tensor:
    """Convex combination with ``weights`` [M] >= 0, which are scaled to sum to 1: [M, B, A] -> [B, A]."""
    return torch.einsum("m,mba->ba", weights / weights.sum(), actions)


def vote_action(actions: Tensor) -> Tensor:
    """The sign that most members take, at the mean size of those members' actions: [M, B, A] -> [B, A].

    An action of exactly 0 (flat) is a third camp; where two camps are equally large, the result is 0, because the
    members do not agree on a position.
    """
    sign = actions.sign()
    long, short, flat = ((sign == side).sum(0) for side in (1.0, -1.0, 0.0))
    winner = torch.where((long > short) & (long > flat), 1.0, torch.where((short > long) & (short > flat), -1.0, 0.0))
    in_camp = sign == winner
    size = (actions.abs() * in_camp).sum(0) / in_camp.sum(0).clamp_min(1)
    return winner * size + 0.0 * actions.sum(0)  # the last term only carries NaN on


class GateCombiner(nn.Module):
    """A learned gate (mixture of experts, Jacobs et al. 1991): softmax over members from features [B, O].

    The last layer starts at zero, so that the untrained gate is the mean of the members.
    """

    def __init__(
        self, *, feature_dim: int, num_members: int, hidden_dims: Sequence[int] = (64,), activation: str = "tanh"
    ) -> None:
        super().__init__()
        trunk = build_mlp(input_dim=feature_dim, hidden_dims=hidden_dims, activation=activation)
        output = nn.Linear(hidden_dims[-1] if hidden_dims else feature_dim, num_members)
        nn.init.zeros_(output.weight)
        nn.init.zeros_(output.bias)
        self.gate = nn.Sequential(trunk, output)

    def weights(self, features: Tensor) -> Tensor:
        """[B, O] -> [B, M], each row sums to 1."""
        return self.gate(features).softmax(-1)

    def forward(self, actions: Tensor, features: Tensor) -> Tensor:
        """``actions`` [M, B, A], ``features`` [B, O] -> [B, A]."""
        return torch.einsum("bm,mba->ba", self.weights(features), actions)
