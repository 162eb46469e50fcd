"""What an agent has to know of the processes that train it together, each on its part of every batch."""

from typing import Protocol

from torch import Tensor


class Processes(Protocol):
    """How many there are, and their mean."""

    @property
    def size(self) -> int: ...

    def mean(self, value: Tensor) -> Tensor:
        """Mean over the processes of tensors of one shape."""
        ...


class Alone:
    """One process."""

    size = 1

    def mean(self, value: Tensor) -> Tensor:
        return value
