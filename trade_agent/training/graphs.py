"""Work that is recorded as a CUDA graph and replayed.

The networks are small: on a GPU an update or a step of the market is a hundred short kernels, whose launches take
longer than they do. A graph launches all of them at once. It repeats what was recorded on the same memory and without
Python: inputs are copied into those of the recording, everything else is changed in place, and random numbers are those
that come next in the generators.
"""

import logging
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple, Protocol, TypeVar

import torch
from tensordict import TensorDict
from torch import Tensor

T = TypeVar("T")
Tensors = dict[str, Tensor]
# Of what the work changes a tensor by: kernels that add in any order differ by rounding, which Adam's division
# magnifies where a gradient is small; a wrong graph is off by the change itself.
TOLERANCE = 1e-2
ROUNDING = 1e-6  # of a value
log = logging.getLogger(__name__)


class Graphs(Protocol):
    """Where work is recorded: `CudaGraphs`."""

    generators: tuple[torch.Generator, ...]  # that the work draws from, beside the default one of its device

    def warm_up(self, work: Callable[[], T]) -> T:
        """Do the work as it is, in a place like that of the recording."""
        ...

    def record(self, work: Callable[[], Tensors]) -> tuple[Callable[[], None], Tensors]:
        """What repeats the work, and the tensors that then hold its results. Raises RuntimeError where it cannot be."""
        ...


class CudaGraphs:
    """Graphs of the present GPU, recorded on a stream of their own as CUDA demands."""

    def __init__(self, *generators: torch.Generator) -> None:
        self.generators, self.stream = generators, torch.cuda.Stream()

    def warm_up(self, work: Callable[[], T]) -> T:
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            result = work()
        torch.cuda.current_stream().wait_stream(self.stream)
        return result

    def record(self, work: Callable[[], Tensors]) -> tuple[Callable[[], None], Tensors]:
        graph = torch.cuda.CUDAGraph()
        for generator in self.generators:
            graph.register_generator_state(generator)
        # A capture that fails leaves its stream current. thread_local: threads of monitoring may use CUDA meanwhile.
        with (
            torch.cuda.stream(torch.cuda.current_stream()),
            torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"),
        ):
            result = work()
        return graph.replay, result


class Recorded(NamedTuple):
    """Recorded work: `replay` repeats it on what lies in `inputs`, and leaves what it returned in `outputs`."""

    inputs: TensorDict
    replay: Callable[[], None]
    outputs: Tensors

    def __call__(self, inputs: TensorDict) -> Tensors:
        names = list(self.inputs.keys())
        if names:
            torch._foreach_copy_([self.inputs[name] for name in names], [inputs[name] for name in names])
        self.replay()
        return {name: value.clone() for name, value in self.outputs.items()}  # the next replay writes over them


class Replayed:
    """Does `work` on inputs of a kind by replaying a recording of that kind.

    work: from inputs to outputs. It may change the tensors that `changed` lists, in place, and draw from the generators
    of `graphs`. The first time with a kind it runs as it is. The second time it does, too, is undone, recorded and
    replayed: where the replay does not come to the same, or nothing can be recorded, all goes on as it is, with one
    line in the log. Only these two wait for the device.
    """

    def __init__(
        self,
        work: Callable[[TensorDict], Tensors],
        *,
        name: str,
        changed: Callable[[], list[Tensor]],
        graphs: Graphs,
    ) -> None:
        self.work, self.name, self.changed, self.graphs = work, name, changed, graphs
        self.recorded: dict[Hashable, Recorded] = {}
        self.begun: set[Hashable] = set()  # kinds that were met once
        self.reason = ""  # why nothing is replayed any more

    def __call__(self, kind: Hashable, inputs: TensorDict) -> Tensors:
        if self.reason:
            return self.work(inputs)
        if kind in self.recorded:
            return self.recorded[kind](inputs)
        if kind in self.begun:
            return self._record(kind, inputs)
        self.begun.add(kind)
        return self.graphs.warm_up(lambda: self.work(inputs))

    def _record(self, kind: Hashable, inputs: TensorDict) -> Tensors:
        own = inputs.clone()
        before = State(self.changed(), self.graphs.generators)
        expected = self.graphs.warm_up(lambda: self.work(own.copy()))  # what the work adds stays out of the inputs
        after = State(self.changed(), self.graphs.generators)
        try:
            recorded = Recorded(own, *self.graphs.record(lambda: self.work(own.copy())))
        except RuntimeError as error:
            self.reason = f"it cannot be recorded: {error}"
        else:
            before.put_back()
            outputs = recorded(inputs)
            if came_to_the_same(before, after, outputs, expected):
                self.recorded[kind] = recorded
                return outputs
            self.reason = "a replay does not come to what was recorded"
        log.warning("device.capture: %s is not replayed as a CUDA graph: %s", self.name, self.reason)
        self.recorded.clear()
        after.put_back()
        return expected


class State:
    """Tensors as they were when this was made, and the random numbers that came next."""

    def __init__(self, tensors: Sequence[Tensor], generators: Sequence[torch.Generator]) -> None:
        self.tensors, self.values = tensors, [tensor.clone() for tensor in tensors]
        self.device = tensors[0].device
        self.random = torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else torch.get_rng_state()
        self.own_random = [(generator, generator.get_state()) for generator in generators]

    @torch.no_grad()
    def put_back(self) -> None:
        for tensor, value in zip(self.tensors, self.values, strict=True):
            tensor.copy_(value)
        for generator, state in self.own_random:
            generator.set_state(state)
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(self.random, self.device)
        else:
            torch.set_rng_state(self.random)


@torch.no_grad()
def came_to_the_same(before: State, after: State, outputs: Tensors, expected: Tensors) -> bool:
    """Whether the tensors stand where the work `before` -> `after` left them, and its outputs are the same."""
    same = [
        (tensor - new).norm() <= TOLERANCE * (new - old).norm() + ROUNDING * new.norm()
        for tensor, new, old in zip(
            *([value.double() for value in values] for values in (after.tensors, after.values, before.values)),
            strict=True,
        )
    ]
    for name, value in expected.items():
        off = outputs[name].double() - value.double()
        same.append((off.abs() <= TOLERANCE * value.double().abs() + ROUNDING).all())
    return bool(torch.stack(same).all())
