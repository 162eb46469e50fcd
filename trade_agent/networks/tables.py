"""Tables of features that are larger than memory should hold."""

import math
import os
import tempfile

import torch
from torch import Tensor

from trade_agent.errors import DataError

MAPPED_FROM_BYTES = 2**30  # a smaller table is faster where it lies in memory


def new_table(*shape: int, like: Tensor) -> Tensor:
    """Zeros with the device and type of ``like``. A large table of the CPU is mapped from a file: the system keeps in
    memory what is being read, and gives it up where memory is short.

    The file lies in the folder for temporary files (TMPDIR), and is gone with the table however the process ends. That
    folder must be on a disk: files of a tmpfs are memory, which nobody gives up.
    Raises DataError where there is no room for it.
    """
    size = math.prod(shape)
    if like.device.type != "cpu" or size * like.element_size() < MAPPED_FROM_BYTES:
        return like.new_zeros(shape)
    with tempfile.NamedTemporaryFile() as file:
        try:
            if hasattr(os, "posix_fallocate"):  # else writing to the map ends the process where the disk is full
                os.posix_fallocate(file.fileno(), 0, size * like.element_size())
        except OSError as error:
            raise DataError(
                f"a table of {size * like.element_size() / 2**30:.1f} GiB does not fit {tempfile.gettempdir()}: "
                f"{error.strerror}",
                "set TMPDIR to a folder on a larger disk",
            ) from error
        return torch.from_file(file.name, shared=True, size=size, dtype=like.dtype).view(shape)
