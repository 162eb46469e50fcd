"""Several processes that train one model: who they are, and the few things they tell each other.

Every process runs the same program on the same config. Environments, replay buffers and minibatches are divided among
them; gradients and statistics are averaged, so that all of them hold the same weights after every step; whatever
decides how training goes on is agreed upon first. Only the first one writes.
"""

import contextlib
import datetime
import functools
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from trade_agent import safe_io
from trade_agent.agents.base import Agent
from trade_agent.agents.normalisers import RunningMoments
from trade_agent.errors import ConfigError, PeerLostError, TradeAgentError

T = TypeVar("T")
ANNOUNCED, HERE = "run", "here"  # keys of the store by which the processes meet
# How long processes wait until all have met, whatever the config says: imports from a shared disk may be slow, and only
# the first one has a config before it tells the others.
MEETING_SECONDS = 600.0


@contextlib.contextmanager
def with_the_others() -> Iterator[None]:
    """Around a message to the other processes. Raises PeerLostError where one of them does not answer."""
    try:
        yield
    except RuntimeError as error:  # gloo's own; that of nccl is derived from it
        # Without the place in gloo's source, and its advice.
        reason = re.sub(r"^\[[^]]*\] ", "", str(error)).partition("\n")[0].partition(". ")[0]
        raise PeerLostError(
            f"another process of this run died or cannot be reached ({reason})",
            "see its log; torchrun --max-restarts and device.max_restarts start all of them again",
        ) from error


@dataclass(frozen=True, slots=True)
class World:
    """This process and how many there are; one alone talks to nobody.

    Everything that waits for the others raises PeerLostError where one of them died or cannot be reached.
    """

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
        with with_the_others():
            dist.all_reduce(total)
        return total / self.size

    def any(self, *flags: bool) -> list[bool]:
        """For each flag, whether it is set in some process."""
        return [bool(flag) for flag in self.most(*flags)]

    def most(self, *numbers: int) -> list[int]:
        """Of each number, below 256, the largest in any process."""
        if self.size == 1:
            return list(numbers)
        largest = torch.tensor(numbers, dtype=torch.uint8)
        with with_the_others():
            dist.all_reduce(largest, op=dist.ReduceOp.MAX)
        return [int(number) for number in largest]

    def agreed(self, value: Any) -> Any:
        """The plain value of the first process, in all of them."""
        if self.size == 1:
            return value
        box = [value]
        with with_the_others():
            dist.broadcast_object_list(box, src=0)
        return box[0]

    def gathered(self, value: Any) -> list[Any]:
        """The plain values of all processes, by rank."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        with with_the_others():
            dist.all_gather_object(found, value)
        return found

    def together(self, work: Callable[[], T]) -> T:
        """What `work` returns in this process. What went wrong in one of them ends all: none waits for it in vain.

        The first process raises the error, also that of another one, and the others end without a word.
        """
        if self.size == 1:
            return work()
        error: TradeAgentError | None = None
        try:
            result = work()
        except TradeAgentError as raised:
            error = raised
        errors = [each for each in self.gathered(error) if each is not None]
        if errors and self.main:
            raise errors[0]
        if errors:
            raise SystemExit(errors[0].exit_code)
        return result

    def share(self, total: int, name: str) -> int:
        """This process's part of a number that is divided among all. Raises ConfigError where it does not divide."""
        return share(total, name, self.size)

    def own_random_numbers(self, generator: torch.Generator | None = None) -> None:
        """After the weights were drawn alike: from here on each process draws for itself, the first as if alone."""
        if self.rank:
            torch.manual_seed(torch.initial_seed() + self.rank)
            if generator is not None:
                generator.manual_seed(generator.initial_seed() + self.rank)

    def average_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Mean of the gradients over all processes, in one message. Those without a gradient are the same in each.

        Also for the forecaster: DistributedDataParallel would average in the midst of a backward pass, and a process
        that takes its minibatch in parts, for want of memory, has several of these for one of another's.
        """
        if self.size == 1:
            return
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        with with_the_others():
            dist.all_reduce(flat)
        flat /= self.size
        parts = flat.split([gradient.numel() for gradient in gradients])
        torch._foreach_copy_(gradients, [part.view_as(own) for part, own in zip(parts, gradients, strict=True)])

    def leave(self) -> None:
        """At the end of the work, when nobody waits for anybody any more."""
        if self.size > 1:
            with with_the_others():
                dist.barrier()
            dist.destroy_process_group()

    def connect(self, agent: Agent) -> None:
        """Let an agent that was drawn alike in every process learn as one."""
        if self.size == 1:
            return
        with with_the_others():
            for tensor in agent.state_dict().values():
                dist.broadcast(tensor, src=0)
        agent.gradient_hook = self.average_gradients
        agent.processes = self
        for module in agent.modules():  # type: ignore[attr-defined]
            if isinstance(module, RunningMoments):
                module.processes = self


def share(total: int, name: str, processes: int) -> int:
    """One process's part of a number. Raises ConfigError where it does not divide."""
    if total % processes:
        raise ConfigError(f"{name}={total} cannot be divided among {processes} processes", "use a multiple of them")
    return total // processes


def is_worker() -> bool:
    """Whether torchrun, `device.processes` or SLURM started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


@functools.cache
def meeting_place() -> dist.Store:
    """The store that all processes find by what they were started with."""
    from torch.distributed.rendezvous import rendezvous

    with with_the_others():
        store, _, _ = next(rendezvous("env://", timeout=datetime.timedelta(seconds=MEETING_SECONDS)))
    return store


def announce(run: dict[str, Any]) -> None:
    """The first process tells the others what they train; nothing where nothing is left to do."""
    with with_the_others():
        meeting_place().set(ANNOUNCED, safe_io.canonical_json(run).decode())


def is_announced() -> bool:
    with with_the_others():
        return bool(meeting_place().check([ANNOUNCED]))


def announced() -> dict[str, Any]:
    """What the first process announces, once it has."""
    with with_the_others():
        text = meeting_place().get(ANNOUNCED)
    return safe_io.parse_json(text, name="the announced run")


def find_world(timeout_seconds: float = MEETING_SECONDS) -> World:
    """The world that torchrun or SLURM made this process part of, or one alone.

    timeout_seconds: how long a process waits for another, once they have met, before it ends with an error.
    """
    if not is_worker():
        return World()
    if not dist.is_initialized():
        rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        with with_the_others():
            store = meeting_place()
            store.set(f"{HERE}{rank}", "")
            store.wait([f"{HERE}{each}" for each in range(size)])
            timeout = datetime.timedelta(seconds=timeout_seconds)
            dist.init_process_group(choose_backend(), store=store, rank=rank, world_size=size, timeout=timeout)
    return World(dist.get_rank(), dist.get_world_size())


def choose_backend() -> str:
    """gloo, and nccl between GPUs where every process of this host has one of its own, which is chosen here."""
    own, processes = int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    gpus = torch.cuda.device_count()
    if gpus == 0:
        return "gloo"
    torch.cuda.set_device(own % gpus)
    return "cpu:gloo,cuda:nccl" if processes <= gpus else "gloo"
