"""Dicts of tensors and plain values as ``.pth`` bytes."""

import io
from typing import TYPE_CHECKING, Any

from trade_agent.safe_io.checkpoints import DTYPES, TensorInfo, contiguous_strides, read_checkpoint
from trade_agent.safe_io.plain import copy_plain

if TYPE_CHECKING:
    import torch


def dump_tensors(state: dict[Any, Any]) -> bytes:
    """Serialise a dict of tensors and plain values as torch's zip format; equal states give equal bytes.

    Tensors are stored on the CPU, contiguous and without gradient. Anything else raises ValueError with its place.
    """
    import torch

    def leaf(obj: Any, where: str) -> Any:
        if isinstance(obj, torch.Size):
            return tuple(obj)
        if not isinstance(obj, torch.Tensor) or obj.layout is not torch.strided or obj.is_quantized:
            raise ValueError(f"{where} is a {type(obj).__name__}; convert it to a dense tensor or a plain value first")
        tensor = obj.detach().cpu().as_subclass(torch.Tensor).resolve_neg()
        if str(tensor.dtype).removeprefix("torch.") not in DTYPES:
            raise ValueError(f"{where} has the type {tensor.dtype}, which checkpoints do not hold")
        shape, nbytes = tuple(tensor.shape), tensor.untyped_storage().nbytes()
        whole = nbytes == tensor.numel() * tensor.itemsize and tensor.stride() == contiguous_strides(shape)
        # A view would drag its whole storage into the file.
        return tensor if whole else tensor.clone(memory_format=torch.contiguous_format)

    buffer = io.BytesIO()  # never a path: torch writes the file's name into the file
    torch.save(copy_plain(dict(state), "state", leaf, {}), buffer)
    data = buffer.getvalue()
    read_checkpoint(data, "the state to be saved")
    return data


def load_tensors(data: bytes, *, name: str) -> dict[Any, Any]:
    """Load a state that ``dump_tensors`` or ``torch.save`` wrote, on the CPU, without gradients, in plain dicts.

    ``name`` is the file that an UnsafeFileError names. The tensors are made here, from checked descriptions:
    ``torch.load`` takes no part, so that neither ``add_safe_globals`` (torchrl's imports call it) nor the environment
    variable that switches ``weights_only`` off changes anything.
    """
    checkpoint = read_checkpoint(data, name)
    storages: dict[str, torch.Tensor] = {}  # tensors that shared memory when they were saved share it again

    def leaf(obj: Any, where: str) -> Any:
        assert isinstance(obj, TensorInfo)
        key = obj.storage.key
        if key not in storages:
            storages[key] = _bytes_tensor(checkpoint.storages[key])
        return _view(storages[key], obj)

    state: dict[Any, Any] = copy_plain(checkpoint.state, "state", leaf, {})
    return state


def _bytes_tensor(record: bytes) -> "torch.Tensor":
    """uint8 [len(record)] in memory that torch allocated: its alignment decides about the last bit of some kernels."""
    import numpy as np
    import torch

    tensor = torch.empty(len(record), dtype=torch.uint8)
    tensor.numpy()[:] = np.frombuffer(record, np.uint8)
    return tensor


def _view(storage: "torch.Tensor", info: TensorInfo) -> "torch.Tensor":
    import torch

    flat = storage.view(getattr(torch, info.storage.dtype))
    return flat.as_strided(info.shape, contiguous_strides(info.shape), info.offset)
