"""Replay buffer for off-policy agents: a ring of transitions that hold the bar index and not the observation.

Shapes: N environments, B rows of a batch, K private (account) state, A assets. The market part of an observation is
encoded from t when a batch is used; that of the next one from t + steps, also where an episode was truncated.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from trade_agent.errors import CheckpointError, ConfigError


class Transitions(NamedTuple):
    t: Tensor  # [B] int32 bar index of the observation
    private: Tensor  # [B, K] float32
    action: Tensor  # [B, A] float32
    reward: Tensor  # [B] float32, discounted sum over the steps
    terminated: Tensor  # [B] bool
    next_private: Tensor  # [B, K] float32, at bar t + steps, before any reset
    steps: Tensor | int = 1  # [B] int32 bars to the next observation, or one number for all rows; see agents/n_step.py


def own_rows(index: Tensor, copies: int) -> Tensor:
    """Rows of a table in which those of ``copies`` take turns, from ``index`` [B * copies], which does so too and
    counts among the rows of its copy."""
    return index if copies == 1 else index * copies + torch.arange(len(index), device=index.device) % copies


class ReplayBuffer:
    """A transition is one row of 4-byte words: t | steps | reward | private | action | next private.

    That is 4 (3 + 2K + A) bytes: 64 with K = 6 and A = 1. The word of steps is negative where the last of them was
    terminated. One gather serves a whole batch. Integers and floats are views of the same words and only ever copied,
    so that no arithmetic can touch an index.

    copies: agents whose rows take turns, see agents/copies.py; there is room for ``capacity`` rows of each.
    """

    def __init__(
        self,
        *,
        capacity: int,
        private_dim: int,
        action_dim: int,
        copies: int = 1,
        device: torch.device | str = "cpu",
    ) -> None:
        self.copies, self._widths = copies, (private_dim, action_dim, private_dim)
        self.capacity = capacity = capacity * copies
        self.position, self.size = 0, 0
        self._words = torch.zeros(capacity, 3 + sum(self._widths), dtype=torch.int32, device=device)
        self._floats = self._words.view(torch.float32)

    def __len__(self) -> int:
        return self.size

    @property
    def bytes_per_transition(self) -> int:
        return 4 * self._words.shape[1]

    def extend(self, transitions: Transitions) -> None:
        """Adds N transitions in order, over the oldest ones when full, their numbers as float32.

        Raises ConfigError if N exceeds the capacity, ValueError for rows of another width; neither changes a row.
        """
        rows = len(transitions.t)
        if rows > self.capacity:
            raise ConfigError(
                f"{rows} transitions do not fit a replay buffer of capacity {self.capacity}",
                "raise the buffer's capacity or lower the number of environments",
            )
        t, private, action, reward, terminated, next_private, steps = transitions
        if (private.shape[1], action.shape[1], next_private.shape[1]) != self._widths:
            given = f"{private.shape[1]}, {action.shape[1]} and {next_private.shape[1]}"
            raise ValueError(f"transitions with {given} columns do not fit a replay buffer with {self._widths}")
        signed = torch.where(terminated, -steps, steps).int()
        # One kernel writes whole rows. In it integers are the floats of the same bits: a conversion would change them.
        columns = (
            t.int().view(torch.float32).unsqueeze(1),
            signed.view(torch.float32).unsqueeze(1),
            reward.float().unsqueeze(1),
            private.float(),
            action.float(),
            next_private.float(),
        )
        end = self.position + rows
        if end <= self.capacity:
            torch.cat(columns, dim=1, out=self._floats[self.position : end])
        else:
            packed, head = torch.cat(columns, dim=1), self.capacity - self.position
            self._floats[self.position :], self._floats[: rows - head] = packed[:head], packed[head:]
        self.position = (self.position + rows) % self.capacity
        self.size = min(self.size + rows, self.capacity)

    def sample(self, batch_size: int, generator: torch.Generator) -> Transitions:
        """``batch_size`` transitions for each copy, uniform with replacement among its own. ``generator`` is of the
        buffer's device."""
        copies = self.copies
        index = torch.randint(
            self.size // copies, (batch_size * copies,), generator=generator, device=self._words.device
        )
        index = own_rows(index, copies)
        t, private, action, reward, packed, next_private = self._split(self._words.index_select(0, index))
        # signbit is faster than packed < 0.
        return Transitions(t, private, action, reward, packed.signbit(), next_private, packed.abs())

    def _split(self, words: Tensor) -> tuple[Tensor, ...]:
        """Columns as views, in the order of the fields; steps and termination still in one word."""
        head, private, action, next_private = words.view(torch.float32).split((3, *self._widths), dim=1)
        return words.select(1, 0), private, action, head.select(1, 2), words.select(1, 1), next_private

    def state_dict(self) -> dict[str, Any]:
        """Plain values and one tensor of the filled rows, for resuming a run."""
        return {"words": self._words[: self.size].clone(), "position": self.position, "capacity": self.capacity}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises CheckpointError when the stored buffer has another capacity or row width."""
        words = state["words"]
        if state["capacity"] != self.capacity or words.shape[1] != self._words.shape[1]:
            raise CheckpointError(
                f"the stored replay buffer has capacity {state['capacity']} and {words.shape[1]} words a row, "
                f"this one {self.capacity} and {self._words.shape[1]}",
                "resume with the settings of the run that wrote it",
            )
        self._words[: len(words)] = words.to(self._words.device)
        self.position, self.size = int(state["position"]), len(words)
