"""Out of memory: a gradient step is taken in parts of its batch, whose gradients add up to the same; a pass without
gradients in smaller blocks."""

import gc
import logging
from collections.abc import Callable
from typing import TypeVar

import torch
from tensordict import TensorDict
from torch import Tensor

Rows = TypeVar("Rows", Tensor, TensorDict)
T = TypeVar("T")
log = logging.getLogger(__name__)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out; on the CPU torch says it with a plain RuntimeError."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def accumulate(
    rows: Rows, backward: Callable[[Rows], T], *, size: int | None, clear: Callable[[], None], together: int = 1
) -> tuple[list[T], int | None]:
    """``backward(part)`` for parts of `rows` [B, ...] of at most `size` rows, and the size that fitted.

    ``backward`` adds the gradient of its part's share to those that are there, ``clear`` removes all of them. Where
    memory runs out the parts are halved and the step begins anew. size: None for the whole batch at once. together:
    rows that are not parted. Raises what the allocator raised when so many do not fit.
    """
    while True:
        try:
            parts = [rows] if size is None else rows.split(size)
            return [backward(part) for part in parts], size
        except (RuntimeError, MemoryError) as error:
            size = _half(min(size or len(rows), len(rows)), error, together)
        # Outside of the except block: the traceback holds on to the tensors of the failed step.
        clear()
        _free()


def in_parts(work: Callable[[int], T], *, size: int, together: int = 1) -> T:
    """``work(size)``, which takes as many rows at once and needs no gradient; anew with half of them where memory runs
    out. together: rows that are not parted. Raises what the allocator raised when so many do not fit.
    """
    while True:
        try:
            return work(size)
        except (RuntimeError, MemoryError) as error:
            size = _half(size, error, together)
        _free()


def _half(size: int, error: RuntimeError | MemoryError, together: int) -> int:
    """Half as many rows as did not fit, a multiple of `together`; raises `error` where that is no help."""
    if size <= together or not is_out_of_memory(error):
        raise error
    half = (size // together + 1) // 2 * together
    log.warning("out of memory with %d rows at once: going on with %d, which come to the same", size, half)
    return half


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
