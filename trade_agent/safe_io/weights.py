"""Digests of tensors: the same for equal weights, in whatever file, order or memory layout they are."""

import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from trade_agent.safe_io.files import sha256_bytes
from trade_agent.safe_io.json_files import canonical_json

if TYPE_CHECKING:
    import torch


def _tensors(obj: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], "torch.Tensor"]]:
    import torch

    if isinstance(obj, torch.Tensor):
        yield path, obj
    elif isinstance(obj, dict):
        for key, value in obj.items():
            yield from _tensors(value, (*path, str(key)))
    elif isinstance(obj, list | tuple):
        for i, value in enumerate(obj):
            yield from _tensors(value, (*path, str(i)))


def _row(path: tuple[str, ...], tensor: "torch.Tensor") -> list[Any]:
    return [list(path), str(tensor.dtype).removeprefix("torch."), list(tensor.shape)]


def weights_sha256(state: dict[Any, Any]) -> str:
    """Hash of all tensors in ``state``, sorted by name: equal weights give equal hashes in whatever file or order.

    The hash covers name, dtype, shape and bytes (little-endian, C order); plain values do not enter.
    """
    import torch

    digest = hashlib.sha256()
    for path, tensor in sorted(_tensors(state), key=lambda item: item[0]):
        digest.update(canonical_json(_row(path, tensor), indent=None))
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data if flat.numel() else b"")
    return digest.hexdigest()


def layout_sha256(state: dict[Any, Any]) -> str:
    """Hash of names, dtypes and shapes of all tensors in ``state``: what code must fit to load it."""
    rows = sorted(_row(path, tensor) for path, tensor in _tensors(state))
    return sha256_bytes(canonical_json(rows, indent=None))
