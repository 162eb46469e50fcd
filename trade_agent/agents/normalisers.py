"""Running normalisation of observations and rewards, part of an agent and saved with it.

The training loops call ``update`` with what they see; nothing else moves the statistics, so they are frozen in
evaluation. Without ``enabled`` a normaliser passes everything through and keeps no state.
"""

import torch
from torch import Tensor, nn

from trade_agent.agents.processes import Alone, Processes

CLIP = 10.0  # normalised observations lie within +-10 (Engstrom et al. 2020, section 3)
EPSILON = 1e-8


class RunningMoments(nn.Module):
    """Mean and variance of all rows seen so far, [*shape] float64; 0 and 1 before the first row.

    In a stack of S agents (agents/copies.py) all have S in front, and rows take turns.
    """

    mean: Tensor
    variance: Tensor
    count: Tensor

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(shape, dtype=torch.float64))
        self.register_buffer("variance", torch.ones(shape, dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.processes: Processes = Alone()

    @torch.no_grad()
    def update(self, rows: Tensor) -> None:
        """Takes in ``rows``, [B, *shape] in each process: the pairwise formula of Chan, Golub and LeVeque (1979)."""
        rows = rows.double().unflatten(0, (-1, *self.count.shape))
        added = len(rows) * self.processes.size
        mean = self.processes.mean(rows.mean(0))
        variance = self.processes.mean((rows - mean).square().mean(0))
        share = (added / (self.count + added)).reshape(self.count.shape + (1,) * (self.mean.ndim - self.count.ndim))
        delta = mean - self.mean
        self.variance.lerp_(variance, share).add_(share * (1.0 - share) * delta.square())
        self.mean.add_(share * delta)
        self.count.add_(added)


class ObservationNormaliser(nn.Module):
    """(x - mean) / standard deviation for each of ``observation_dim`` entries, clipped to +-10."""

    def __init__(self, observation_dim: int, *, enabled: bool) -> None:
        super().__init__()
        self.enabled = enabled
        self.moments = RunningMoments(observation_dim) if enabled else None

    def update(self, observation: Tensor) -> None:
        """Takes in observations [B, O] of the training environments."""
        if self.moments is not None:
            self.moments.update(observation)

    def forward(self, observation: Tensor) -> Tensor:
        if self.moments is None:
            return observation
        scale = (self.moments.variance + EPSILON).rsqrt().float()
        return ((observation - self.moments.mean.float()) * scale).clamp(-CLIP, CLIP)


class RewardNormaliser(nn.Module):
    """Rewards divided by the running standard deviation of the discounted return; their mean is left alone, as it
    decides how long an agent wants to live (Engstrom et al. 2020, section 3, "reward scaling").
    """

    def __init__(self, gamma: float, *, enabled: bool) -> None:
        super().__init__()
        self.gamma = gamma
        self.moments = RunningMoments() if enabled else None
        self.running_returns: Tensor | float = 0.0  # of the episodes under way [N]; a new run starts new ones

    @torch.no_grad()
    def update(self, reward: Tensor, done: Tensor) -> None:
        """Takes in one step of all environments, reward and done [N]; done ends the sum, terminated or truncated."""
        if self.moments is not None:
            returns = reward + self.gamma * self.running_returns
            self.moments.update(returns)
            self.running_returns = torch.where(done, 0.0, returns)

    def forward(self, reward: Tensor) -> Tensor:
        """[..., N] -> the same shape."""
        if self.moments is None:
            return reward
        scale = (self.moments.variance + EPSILON).rsqrt().float()
        return (reward.unflatten(-1, (-1, *scale.shape)) * scale).view_as(reward)
