"""Several processes that train one model: who they are, and the few things they tell each other.

Every process runs the same program on the same config. Environments, replay buffers and minibatches are divided among
them; gradients and statistics are averaged, so that all of them hold the same weights after every step; whatever
decides how training goes on is agreed upon first. Only the first one writes.
"""

import datetime
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from trade_agent.agents.base import Agent
from trade_agent.agents.normalisers import RunningMoments
from trade_agent.errors import ConfigError


@dataclass(frozen=True, slots=True)
class World:
    """This process and how many there are; one alone talks to nobody."""

    rank: int = 0
    size: int = 1

    @property
    def main(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def mean(self, value: Tensor) -> Tensor:
        """Mean over the processes of tensors of one shape; no gradient runs through it."""
        if self.size == 1:
            return value
        total = value.detach().clone()
        dist.all_reduce(total)
        return total / self.size

    def any(self, *flags: bool) -> list[bool]:
        """For each flag, whether it is set in some process."""
        if self.size == 1:
            return list(flags)
        raised = torch.tensor(flags, dtype=torch.uint8)
        dist.all_reduce(raised, op=dist.ReduceOp.MAX)
        return [bool(flag) for flag in raised]

    def agreed(self, value: Any) -> Any:
        """The plain value of the first process, in all of them."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def gathered(self, value: Any) -> list[Any]:
        """The plain values of all processes, by rank."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value)
        return found

    def share(self, total: int, name: str) -> int:
        """This process's part of a number that is divided among all. Raises ConfigError where it does not divide."""
        if total % self.size:
            raise ConfigError(f"{name}={total} cannot be divided among {self.size} processes", "use a multiple of them")
        return total // self.size

    def own_random_numbers(self, generator: torch.Generator | None = None) -> None:
        """After the weights were drawn alike: from here on each process draws for itself, the first as if alone."""
        if self.rank:
            torch.manual_seed(torch.initial_seed() + self.rank)
            if generator is not None:
                generator.manual_seed(generator.initial_seed() + self.rank)

    def average_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Mean of the gradients over all processes, in one message. Those without a gradient are the same in each."""
        if self.size == 1:
            return
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        flat /= self.size
        parts = flat.split([gradient.numel() for gradient in gradients])
        torch._foreach_copy_(gradients, [part.view_as(own) for part, own in zip(parts, gradients, strict=True)])

    def leave(self) -> None:
        """At the end of the work, when nobody waits for anybody any more."""
        if self.size > 1:
            dist.barrier()
            dist.destroy_process_group()

    def connect(self, agent: Agent) -> None:
        """Let an agent that was drawn alike in every process learn as one."""
        if self.size == 1:
            return
        for tensor in agent.state_dict().values():
            dist.broadcast(tensor, src=0)
        agent.gradient_hook = self.average_gradients
        agent.processes = self
        for module in agent.modules():  # type: ignore[attr-defined]
            if isinstance(module, RunningMoments):
                module.processes = self


def find_world(timeout_seconds: float) -> World:
    """The world that torchrun made this process part of, or one alone.

    timeout_seconds: how long a process waits for another before it ends with an error.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return World()
    if not dist.is_initialized():
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, timeout=datetime.timedelta(seconds=timeout_seconds))
    return World(dist.get_rank(), size)
