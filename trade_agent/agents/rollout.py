"""Rollout buffer for on-policy agents, and generalised advantage estimation.

Shapes: S steps, N environments, K private (account) state, A assets. Like the replay buffer it holds bar indices.
"""

from collections.abc import Iterator

import torch
from tensordict import TensorDict
from torch import Tensor

from trade_agent.agents.replay import own_rows


def gae(
    *,
    reward: Tensor,
    value: Tensor,
    next_value: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    gamma: float,
    gae_lambda: float,
) -> tuple[Tensor, Tensor]:
    """Advantages and value targets (Schulman et al. 2016, equations 11, 12, 16); all tensors [S, N].

    ``next_value`` is V of the observation after step s, before any reset: at a truncation that of the last
    observation of the episode. ``terminated`` cuts the bootstrap (V = 0 there), ``truncated`` does not; both end the
    sum over later steps. In reverse this is A_s = delta_s + c_s A_{s+1} with c_s = gamma lambda (1 - done_s): a linear
    recurrence, solved here by doubling in log2(S) batched rounds in place of S steps (Hillis and Steele, 1986).
    """
    advantage = reward + gamma * torch.where(terminated, 0.0, next_value) - value
    decay = gamma * gae_lambda * (~(terminated | truncated)).to(value.dtype)
    steps, reach = len(reward), 1
    while reach < steps:
        # advantage sums up to ``reach`` steps ahead; decay is the weight of what lies beyond them.
        advantage = torch.cat((advantage[:-reach] + decay[:-reach] * advantage[reach:], advantage[-reach:]))
        decay = torch.cat((decay[:-reach] * decay[reach:], torch.zeros_like(decay[-reach:])))
        reach *= 2
    return advantage, advantage + value


class RolloutBuffer:
    """``add`` S times, ``finish`` once, iterate over ``minibatches`` for each epoch, ``clear``.

    Values are not asked for at each step: after the rollout the caller computes V of all observations (``t``,
    ``private``) and of all following ones (``t + 1``, ``next_private``) in large batches and hands them to ``finish``.

    copies: agents whose environments take turns, see agents/copies.py; there is a multiple of it.
    """

    def __init__(
        self,
        *,
        num_steps: int,
        num_envs: int,
        private_dim: int,
        action_dim: int,
        copies: int = 1,
        device: torch.device | str = "cpu",
    ) -> None:
        self.num_steps, self.num_envs, self.copies, self.step = num_steps, num_envs, copies, 0
        assert num_envs % copies == 0
        shape = (num_steps, num_envs)
        self.t = torch.zeros(shape, dtype=torch.int32, device=device)
        self.private = torch.zeros(*shape, private_dim, device=device)
        self.next_private = torch.zeros(*shape, private_dim, device=device)
        self.raw = torch.zeros(*shape, action_dim, device=device)
        self.log_prob, self.reward, self.value, self.advantage, self.value_target = (
            torch.zeros(shape, device=device) for _ in range(5)
        )
        self.terminated, self.truncated = (torch.zeros(shape, dtype=torch.bool, device=device) for _ in range(2))

    @property
    def full(self) -> bool:
        return self.step == self.num_steps

    def clear(self) -> None:
        self.step = 0

    def add(
        self,
        *,
        t: Tensor,
        private: Tensor,
        raw: Tensor,
        log_prob: Tensor,
        reward: Tensor,
        terminated: Tensor,
        truncated: Tensor,
        next_private: Tensor,
    ) -> None:
        """One step of all environments, each argument [N, ...]; ``next_private`` [N, K] is taken before any reset."""
        step = self.step
        self.t[step] = t
        self.private[step], self.next_private[step] = private, next_private
        self.raw[step], self.log_prob[step] = raw, log_prob
        self.reward[step], self.terminated[step], self.truncated[step] = reward, terminated, truncated
        self.step += 1

    def finish(self, *, value: Tensor, next_value: Tensor, gamma: float, gae_lambda: float) -> None:
        """``value``, ``next_value`` [S, N] -> fills ``value``, ``advantage`` and ``value_target``; see ``gae``."""
        self.value.copy_(value)
        advantage, target = gae(
            reward=self.reward,
            value=value,
            next_value=next_value,
            terminated=self.terminated,
            truncated=self.truncated,
            gamma=gamma,
            gae_lambda=gae_lambda,
        )
        self.advantage.copy_(advantage)
        self.value_target.copy_(target)

    def minibatches(self, batch_size: int, generator: torch.Generator) -> Iterator[TensorDict]:
        """One pass over all S * N rows in random order, with ``batch_size`` rows of each copy; the last minibatch may
        be smaller, but never a single row (whose advantage has no spread): such a row joins the one before.

        Keys: t, private, raw, log_prob, advantage, value_target. ``generator`` is of the buffer's device.
        """
        rows = self.num_steps * self.num_envs
        flat = TensorDict(
            {
                key: getattr(self, key).flatten(0, 1)
                for key in ("t", "private", "raw", "log_prob", "advantage", "value_target")
            },
            batch_size=[rows],
        )
        rows //= self.copies
        orders = [torch.randperm(rows, generator=generator, device=self.t.device) for _ in range(self.copies)]
        order = torch.stack(orders, dim=1)
        start = 0
        while start < rows:
            stop = rows if rows - start - batch_size <= 1 else start + batch_size
            yield flat[own_rows(order[start:stop].flatten(), self.copies)]
            start = stop
