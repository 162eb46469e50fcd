"""Batched environments on one device, as the training loops see them.

Shapes: N environments, K private state, A action dimensions. What an agent sees is a function of a bar index ``t`` [N]
and of a private state [N, K]: buffers hold these two and never the observation. In a market the private state is the
account; a task without a market has t = 0 throughout and its whole observation as private state.
"""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from trade_agent.envs.market import (
    MarketRules,
    MarketSeries,
    MarketState,
    account_fields,
    account_observation,
    auto_reset,
    reset,
    step,
)


class Experience(NamedTuple):
    """One step of N environments; `next_private` is taken before any reset."""

    t: Tensor  # [N] int64
    private: Tensor  # [N, K] float32
    reward: Tensor  # [N] float32
    terminated: Tensor  # [N] bool
    truncated: Tensor  # [N] bool
    next_private: Tensor  # [N, K] float32


class BatchedEnv(Protocol):
    """N environments that restart by themselves as soon as an episode ends.

    ``t`` and ``private`` are the present state, from which the caller makes its observation. ``step`` takes actions
    [N, A] in [-1, 1].
    """

    num_envs: int
    private_dim: int
    action_dim: int

    @property
    def device(self) -> torch.device: ...

    @property
    def t(self) -> Tensor: ...

    @property
    def private(self) -> Tensor: ...

    def step(self, action: Tensor) -> Experience: ...


class TrainingMarket:
    """N accounts on random episodes of a split's rows, restarted as soon as they end.

    An episode starts at a random row and lasts `episode_bars` steps (or to the last row). Rewards are multiplied by
    `reward_scale`.
    """

    def __init__(
        self,
        *,
        series: MarketSeries,
        rules: MarketRules,
        rows: range,
        num_envs: int,
        episode_bars: int,
        reward_scale: float,
        generator: torch.Generator,
    ) -> None:
        self.series, self.rules, self.rows, self.num_envs = series, rules, rows, num_envs
        self.episode_bars = min(episode_bars, len(rows) - 1)
        self.reward_scale, self.generator = reward_scale, generator
        self.action_dim = series.num_assets
        self.private_dim = len(account_fields(rules, series.num_assets))
        start, end = self._draw()
        # Staggered lengths: environments that all restart together would feed a rollout with one phase of an episode.
        spread = torch.linspace(1, self.episode_bars, num_envs, device=start.device).round().long()
        self.state: MarketState = reset(series, rules, start, torch.minimum(start + spread, end))
        self.private = account_observation(series, rules, self.state)

    @property
    def device(self) -> torch.device:
        return self.series.close.device

    @property
    def t(self) -> Tensor:
        return self.state.t

    def _draw(self) -> tuple[Tensor, Tensor]:
        last_start = self.rows.stop - 1 - self.episode_bars
        start = torch.randint(
            self.rows.start,
            last_start + 1,
            (self.num_envs,),
            generator=self.generator,
            device=self.series.close.device,
        )
        return start, start + self.episode_bars

    def step(self, action: Tensor) -> Experience:
        """One bar for every account; `action` [N, A] in [-1, 1]."""
        before, private = self.state, self.private
        after, result = step(self.series, self.rules, before, action)
        next_private = account_observation(self.series, self.rules, after)
        start, end = self._draw()
        done = result.terminated | result.truncated
        self.state = auto_reset(self.series, self.rules, after, done, start, end)
        self.private = account_observation(self.series, self.rules, self.state)
        reward = result.reward * self.reward_scale
        return Experience(before.t, private, reward, result.terminated, result.truncated, next_private)
