"""`device.capture`: updates are captured in CUDA graphs and replayed.

The networks are small: on a GPU an update is a hundred short kernels, whose launches take longer than they do. A graph
launches all of them at once. It repeats what was recorded with the same memory: the minibatch is copied into the one
of the recording, weights and moments are changed in place, random numbers and learning rates are read from the device.
"""

import logging
from collections.abc import Callable, Hashable
from typing import NamedTuple, Protocol, TypeVar

import torch
from tensordict import TensorDict
from torch import Tensor

from trade_agent.training.distributed import World
from trade_agent.training.learner import Learner
from trade_agent.training.reinforcement import Learn

T = TypeVar("T")
# Of what an update changes a tensor by: kernels that add in any order differ by rounding, which Adam's division
# magnifies where a gradient is small; a wrong graph is off by the change itself.
TOLERANCE = 1e-2
ROUNDING = 1e-6  # of a value
log = logging.getLogger(__name__)


def captured(learner: Learner, *, device: torch.device, world: World) -> Learn:
    """The learner with its updates captured; as it is, with one line in the log, where there are no CUDA graphs.

    Several processes wait for each other in the middle of an update, which no graph can hold.
    """
    if device.type == "cuda" and world.size == 1:
        return CapturedLearner(learner, CudaGraphs())
    log.warning("device.capture: only one process on a GPU captures its updates: here they run as they are")
    return learner


class Graphs(Protocol):
    """Where work is recorded: `CudaGraphs`."""

    def warm_up(self, work: Callable[[], T]) -> T:
        """Do the work as it is, in a place like that of the recording."""
        ...

    def record(self, work: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        """What repeats the work, and the tensor that then holds its result. Raises RuntimeError where it cannot be."""
        ...


class CudaGraphs:
    """Graphs of the present GPU, recorded on a stream of their own as CUDA demands."""

    def __init__(self) -> None:
        self.stream = torch.cuda.Stream()

    def warm_up(self, work: Callable[[], T]) -> T:
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            result = work()
        torch.cuda.current_stream().wait_stream(self.stream)
        return result

    def record(self, work: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        graph = torch.cuda.CUDAGraph()
        # thread_local: the threads of monitoring may use CUDA meanwhile.
        with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
            result = work()
        return graph.replay, result


class Recorded(NamedTuple):
    """A recorded update: `replay` repeats it on what lies in `inputs`, and leaves its metrics in `outputs` [M]."""

    inputs: TensorDict
    replay: Callable[[], None]
    outputs: Tensor
    names: tuple[str, ...]

    def __call__(self, batch: TensorDict) -> dict[str, Tensor]:
        self.inputs.update_(batch)
        self.replay()
        # A copy: the next replay writes over them.
        return dict(zip(self.names, self.outputs.clone().unbind(), strict=True))


class CapturedLearner:
    """Stands for a `Learner`: the same updates, replayed from a recording for each `turn` and size of minibatch.

    The first update of a kind runs as it is. The second one does, too, is undone, recorded, and replayed: where the
    replay does not come to the same, or nothing can be recorded, all go on as they are, with one line in the log. Only
    these two wait for the device.
    """

    def __init__(self, learner: Learner, graphs: Graphs) -> None:
        self.learner, self.graphs = learner, graphs
        self.recorded: dict[Hashable, Recorded] = {}
        self.begun: set[Hashable] = set()  # kinds that ran once
        self.reason = ""  # why nothing is replayed any more

    def __call__(self, batch: TensorDict) -> dict[str, Tensor]:
        kind = (self.learner.turn, len(batch))
        if self.reason:
            metrics = self.learner.update(batch)
        elif kind in self.recorded:
            metrics = self.recorded[kind](batch)
        elif kind in self.begun:
            metrics = self._record(kind, batch)
        else:
            self.begun.add(kind)
            metrics = self.graphs.warm_up(lambda: self.learner.update(batch))
        self.learner.count()
        return metrics

    def _record(self, kind: Hashable, batch: TensorDict) -> dict[str, Tensor]:
        inputs, names = batch.clone(), list[str]()

        def work() -> Tensor:
            metrics = self.learner.update(inputs.copy())  # what is prepared stays out of the inputs
            names[:] = metrics
            return torch.stack(list(metrics.values()))

        before = State(self.learner)
        metrics = self.graphs.warm_up(work)
        after = State(self.learner)
        expected = dict(zip(names, metrics.unbind(), strict=True))
        try:
            recorded = Recorded(inputs, *self.graphs.record(work), tuple(names))
        except RuntimeError as error:
            self.reason = f"nothing can be recorded: {error}"
        else:
            before.put_back()
            replayed = recorded(batch)
            if same_update(before, after, replayed, expected):
                self.recorded[kind] = recorded
                return replayed
            self.reason = "a replay does not come to what was recorded"
        log.warning("device.capture: updates are not replayed as CUDA graphs: %s", self.reason)
        self.recorded.clear()
        after.put_back()
        return expected


class State:
    """What an update changes, as it was when this was made: tensors, and the random numbers that come next."""

    def __init__(self, learner: Learner) -> None:
        self.tensors = learner.changed()
        self.values = [tensor.clone() for tensor in self.tensors]
        self.device = self.tensors[0].device
        self.random = torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else torch.get_rng_state()

    @torch.no_grad()
    def put_back(self) -> None:
        for tensor, value in zip(self.tensors, self.values, strict=True):
            tensor.copy_(value)
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(self.random, self.device)
        else:
            torch.set_rng_state(self.random)


@torch.no_grad()
def same_update(before: State, after: State, replayed: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    """Whether the tensors stand where the update `before` -> `after` left them, and its metrics are the same."""
    same = [
        (tensor - new).norm() <= TOLERANCE * (new - old).norm() + ROUNDING * new.norm()
        for tensor, new, old in zip(
            *([value.double() for value in values] for values in (after.tensors, after.values, before.values)),
            strict=True,
        )
    ]
    same += [(replayed[name] - value).abs() <= TOLERANCE * value.abs() + ROUNDING for name, value in expected.items()]
    return bool(torch.stack(same).all())
