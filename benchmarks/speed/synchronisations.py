"""G16: how often a training loop waits for its device: reads a value, or asks how many rows fulfil a condition.

Counted are the operators that would wait on a GPU, so the figure needs none: whether a value is read is decided by the
program and not by the device.
"""

import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.speed.loops import ALGORITHMS, agent_loop, forecaster_loop
from benchmarks.speed.measure import Figure

UPDATES = 104  # a whole number of rollouts, and more than two looks at the metrics
ROOT = Path(__file__).resolve().parents[2]
aten = torch.ops.aten
# Operators whose result, or its shape, is a value on the host. Names, so that every overload counts.
READS = {
    aten._local_scalar_dense,  # item(), and float(), int() and bool() of a tensor
    aten.is_nonzero,
    aten.equal,
    aten.nonzero,
    aten.masked_select,
    aten._unique,
    aten._unique2,
    aten.unique_dim,
    aten.unique_consecutive,
    aten.bincount,
    aten.repeat_interleave,
}
INDEXING = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}  # by a mask: as nonzero
COPIES = {aten._to_copy, aten.copy_}  # from the device to the host, or back
# Calls of Python that copy between host and device, and are no operator where both are the CPU.
CALLS = {Tensor.tolist, Tensor.numpy, Tensor.__array__, Tensor.cpu, torch.tensor, torch.as_tensor, torch.from_numpy}


class Synchronisations:
    """Counts, while it is entered, what would wait for the device: ``found`` by operator and place."""

    def __init__(self) -> None:
        self.found: Counter[str] = Counter()
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._stack.enter_context(_Calls(self.found))
        self._stack.enter_context(_Operators(self.found))
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()


class _Operators(TorchDispatchMode):
    def __init__(self, found: Counter[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        packet = func.overloadpacket
        if (
            packet in READS
            or (packet in INDEXING and any(index.dtype in (torch.bool, torch.uint8) for index in tensors(args[1])))
            or (packet in COPIES and len({tensor.device.type for tensor in tensors((args, result))}) > 1)
        ):
            self.found[f"{func} in {place()}"] += 1
        return result


class _Calls(TorchFunctionMode):
    def __init__(self, found: Counter[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in CALLS:
            self.found[f"{func.__name__} in {place()}"] += 1
        return func(*args, **(kwargs or {}))


def tensors(values: Any) -> Iterable[Tensor]:
    return (value for value in tree_leaves(values) if isinstance(value, Tensor))


def place() -> str:
    """The innermost line of the package that is being run; of who called, where it has no part in it."""
    frames = [frame for frame in traceback.extract_stack() if frame.filename != __file__]
    own = [frame for frame in frames if Path(frame.filename).is_relative_to(ROOT / "trade_agent")]
    frame = (own or frames)[-1]
    return f"{Path(frame.filename).name}:{frame.lineno} {frame.name}"


def waits(work: Callable[[], object]) -> Counter[str]:
    """What ``work`` waits for."""
    with Synchronisations() as counter:
        work()
    return counter.found


def in_the_loop(found: Counter[str]) -> Counter[str]:
    """Without the look at the metrics, which comes at its own interval."""
    return Counter({where: count for where, count in found.items() if not where.endswith(" hand_on")})


def on_a_gpu(found: Counter[str]) -> Counter[str]:
    """Without the search for distinct bars, each of which a CPU encodes once; a GPU encodes row by row."""
    return Counter({where: count for where, count in found.items() if not where.endswith(" _distinct")})


def measure(repeats: int, device: torch.device) -> None:
    """One run each: what is counted does not vary."""
    for algorithm in ALGORITHMS:
        for joint in (False, True):
            found = on_a_gpu(waits(agent_loop(algorithm, joint=joint, updates=UPDATES, device=device).run))
            own, looks = sum(in_the_loop(found).values()), sum(found.values())
            name = f"{algorithm}, jointly with its forecaster" if joint else algorithm
            _line(name, own, f"and {looks - own} to look at the metrics", device)
    once, twice = (sum(waits(forecaster_loop(updates=n, device=device)).values()) for n in (UPDATES, 2 * UPDATES))
    _line("forecaster", twice - once, f"and {2 * once - twice} an epoch", device)


def _line(name: str, count: int, remark: str, device: torch.device) -> None:
    Figure(
        figure=f"G16 synchronisations of training, {name}",
        unit=f"in {UPDATES} updates",
        ours=count,
        target=0.0,
        device=device.type,
        remark=remark,
    ).print()
