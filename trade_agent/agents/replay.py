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
    steps: Tensor | int = 1  # [B] int32 bars to the next observation, or one number for all rows, up to 32,767


def own_rows(index: Tensor, copies: int) -> Tensor:
    """Rows of a table in which those of ``copies`` take turns, from ``index`` [B * copies], which does so too and
    counts among the rows of its copy."""
    return index if copies == 1 else index * copies + torch.arange(len(index), device=index.device) % copies


class ReplayBuffer:
    """A ring in four columns of C rows: t, steps, terminated, and one table of the numbers, reward | private | action |
    next private, so that one gather serves them all.

    That is 4 + 2 + 1 + 4 (1 + 2K + A) bytes a transition: 63 with K = 6 and A = 1.

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
        self._columns = {
            "t": torch.zeros(capacity, dtype=torch.int32, device=device),
            "steps": torch.zeros(capacity, dtype=torch.int16, device=device),
            "terminated": torch.zeros(capacity, dtype=torch.bool, device=device),
            "numbers": torch.zeros(capacity, 1 + sum(self._widths), device=device),
        }

    def __len__(self) -> int:
        return self.size

    @property
    def bytes_per_transition(self) -> int:
        return sum(column[0].nbytes for column in self._columns.values())

    def extend(self, transitions: Transitions) -> None:
        """Adds N transitions in order, over the oldest ones when full, their numbers as float32.

        Raises ConfigError if N exceeds the capacity, ValueError for values of another shape; neither changes a row.
        That ``steps`` in a tensor do not exceed 32,767 is not checked: it would wait for the device.
        """
        rows = len(transitions.t)
        if rows > self.capacity:
            raise ConfigError(
                f"{rows} transitions do not fit a replay buffer of capacity {self.capacity}",
                "raise the buffer's capacity or lower the number of environments",
            )
        private, action = ((rows, width) for width in self._widths[:2])
        wanted = [(rows,), private, action, (rows,), (rows,), private, (rows,)]
        given = [value.shape for value in transitions if not isinstance(value, int)]  # steps may be a number
        if given != wanted[: len(given)]:
            shapes = ", ".join(str(list(shape)) for shape in given)
            raise ValueError(
                f"transitions of the shapes {shapes} do not fit {rows} rows of a replay buffer "
                f"with {self._widths} columns"
            )
        end = self.position + rows
        if end <= self.capacity:
            self._write(slice(self.position, end), transitions)
        else:
            head = self.capacity - self.position
            self._write(slice(self.position, self.capacity), _part(transitions, slice(head)))
            self._write(slice(rows - head), _part(transitions, slice(head, rows)))
        self.position = end % self.capacity
        self.size = min(self.size + rows, self.capacity)

    def _write(self, place: slice, transitions: Transitions) -> None:
        t, private, action, reward, terminated, next_private, steps = transitions
        columns = self._columns
        columns["steps"][place], columns["t"][place], columns["terminated"][place] = steps, t, terminated
        torch.cat((reward.unsqueeze(1), private, action, next_private), dim=1, out=columns["numbers"][place])

    def sample(self, batch_size: int, generator: torch.Generator) -> Transitions:
        """``batch_size`` transitions for each copy, uniform with replacement among its own. ``generator`` is of the
        buffer's device."""
        rows = self.size // self.copies
        index = torch.randint(rows, (batch_size * self.copies,), generator=generator, device=generator.device)
        return self._taken(own_rows(index, self.copies))

    def _taken(self, index: Tensor) -> Transitions:
        t, steps, terminated, numbers = [column.index_select(0, index) for column in self._columns.values()]
        reward, private, action, next_private = numbers.split_with_sizes((1, *self._widths), dim=1)
        return Transitions(t, private, action, reward.select(1, 0), terminated, next_private, steps.int())

    def state_dict(self) -> dict[str, Any]:
        """Plain values and the filled rows, for resuming a run."""
        rows = {name: column[: self.size].clone() for name, column in self._columns.items()}
        return {"rows": rows, "position": self.position, "capacity": self.capacity}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises CheckpointError when the stored buffer has another capacity, row width or layout."""
        if "rows" not in state:
            raise CheckpointError(
                "the stored replay buffer is of an earlier version", "start again in another run folder"
            )
        rows, width = state["rows"], self._columns["numbers"].shape[1]
        if state["capacity"] != self.capacity or rows["numbers"].shape[1] != width:
            raise CheckpointError(
                f"the stored replay buffer has capacity {state['capacity']} and {rows['numbers'].shape[1]} numbers a "
                f"row, this one {self.capacity} and {width}",
                "resume with the settings of the run that wrote it",
            )
        self.position, self.size = int(state["position"]), len(rows["t"])
        for name, column in self._columns.items():
            column[: self.size] = rows[name].to(column.device)


def _part(transitions: Transitions, rows: slice) -> Transitions:
    steps = transitions.steps
    rest = Transitions(*(column[rows] for column in transitions[:-1]))
    return rest._replace(steps=steps if isinstance(steps, int) else steps[rows])
