"""Batched environments on one device, as the training loops see them.

Shapes: N environments, K private state, A action dimensions. What an agent sees is a function of a bar index ``t`` [N]
and of a private state [N, K]: buffers hold these two and never the observation. In a market the private state is the
account; a task without a market has t = 0 throughout and its whole observation as private state.
"""

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from trade_agent.envs.market import (
    MarketState,
    StepResult,
    account_fields,
    account_observation,
    auto_reset,
    reset,
    step,
)
from trade_agent.envs.rules import MarketRules
from trade_agent.envs.series import MarketSeries


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

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class TrainingMarket:
    """N accounts on random episodes of a split's rows, restarted as soon as they end.

    An episode starts at a random row and lasts `episode_bars` steps (or to the last row). Rewards are multiplied by
    `reward_scale`. With `compiled` a step is one fused kernel: it is built at the first step, which takes a minute or
    less and needs a C++ compiler on a CPU, and its numbers are those of the plain step up to rounding.
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
        compiled: bool = False,
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
        # Shapes never change here; a kernel for any shape would be slower.
        self._advance = torch.compile(advance, fullgraph=True, dynamic=False) if compiled else advance

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
        t, private = self.state.t, self.private
        start, end = self._draw()
        self.state, self.private, result, next_private = self._advance(
            self.series, self.rules, self.state, action, start, end
        )
        reward = result.reward * self.reward_scale
        return Experience(t, private, reward, result.terminated, result.truncated, next_private)

    def state_dict(self) -> dict[str, Any]:
        """All accounts, for resuming a run; the generator of the starts belongs to the caller."""
        return self.state._asdict() | {"private": self.private}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        tensors = {name: value.to(self.device) for name, value in state.items()}
        self.private = tensors.pop("private")
        self.state = MarketState(**tensors)


def advance(
    series: MarketSeries, rules: MarketRules, state: MarketState, action: Tensor, start: Tensor, end: Tensor
) -> tuple[MarketState, Tensor, StepResult, Tensor]:
    """A step, and accounts that are done starting anew at `start` [N] until `end`: the state after both, its private
    part [N, K], what the step gave, and the private part [N, K] before the reset."""
    after, result = step(series, rules, state, action)
    fresh = auto_reset(series, rules, after, result.terminated | result.truncated, start, end)
    private, next_private = (account_observation(series, rules, seen) for seen in (fresh, after))
    return fresh, private, result, next_private
