"""The gate for torch's zip format: what a file describes, checked, without torch.

A checkpoint is a zip of ``data.pkl``, a program that describes tensors over numbered storages, and of one member for
each storage. Everything that ``torch.save`` makes of a dict of tensors, parameters and plain values passes.
"""

import io
import math
import re
import zipfile
from typing import Any, NamedTuple

from trade_agent.errors import UnsafeFileError
from trade_agent.safe_io.files import MAX_BYTES, RESTORE
from trade_agent.safe_io.pickles import PLAIN_OPCODES, Name, check_opcodes, is_shape, not_callable, unpickle
from trade_agent.safe_io.plain import check_plain

MAX_TENSOR_BYTES = MAX_BYTES
MAX_MEMBERS = 20_000
MAX_SHARING = 4  # tied weights describe some storages twice

_OPCODES = PLAIN_OPCODES | {"GLOBAL", "BINPERSID", "BINPUT", "LONG_BINPUT", "BUILD"}
# torch's names for storages: type and bytes of an element.
_STORAGES = {
    "DoubleStorage": ("float64", 8),
    "FloatStorage": ("float32", 4),
    "HalfStorage": ("float16", 2),
    "BFloat16Storage": ("bfloat16", 2),
    "LongStorage": ("int64", 8),
    "IntStorage": ("int32", 4),
    "ShortStorage": ("int16", 2),
    "CharStorage": ("int8", 1),
    "ByteStorage": ("uint8", 1),
    "BoolStorage": ("bool", 1),
}
DTYPES = frozenset(dtype for dtype, _ in _STORAGES.values())
_MEMBER = re.compile(
    r"[^/\0]{1,200}/"
    r"(data\.pkl|version|byteorder|\.format_version|\.storage_alignment|\.data/serialization_id|data/\d{1,6})"
)
_TORCH_SAVE = "load it where you trust it and write its state again: torch.save(model.state_dict(), path)"


class Storage(NamedTuple):
    """The elements that tensors look into."""

    key: str
    dtype: str
    itemsize: int
    numel: int


class TensorInfo(NamedTuple):
    """A tensor in C order that lies within its storage; ``offset`` counts elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]


class Checkpoint(NamedTuple):
    """``state`` holds plain values and TensorInfo, ``storages`` the bytes by key."""

    state: dict[Any, Any]
    storages: dict[str, bytes]


class _OrderedDict(dict[Any, Any]):
    """Stands for collections.OrderedDict. torch sets an attribute ``_metadata`` on a state dict: it is dropped."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        pass


def contiguous_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides in elements of a tensor in C order."""
    strides, step = [], 1
    for n in reversed(shape):
        strides.append(step)
        step *= max(n, 1)
    return tuple(reversed(strides))


def _tensor(*arguments: Any) -> TensorInfo:
    """Stand-in for ``torch._utils._rebuild_tensor_v2``.

    A stride of 0 would turn a few bytes into gigabytes, and an offset could read beyond the storage.
    """
    storage, offset, shape, strides, _requires_grad, _hooks = arguments
    if not is_shape(shape) or type(offset) is not int:
        raise UnsafeFileError("describes a tensor whose sizes are no sizes")
    if any(s != w for n, s, w in zip(shape, strides, contiguous_strides(shape), strict=True) if n > 1):
        raise UnsafeFileError("describes a tensor that is not contiguous", "call .contiguous() before saving")
    if not 0 <= offset <= storage.numel - math.prod(shape):
        raise UnsafeFileError(f"describes a tensor of shape {shape} at {offset} of {storage.numel} elements")
    return TensorInfo(storage, offset, shape)


def _parameter(*arguments: Any) -> TensorInfo:
    """Stand-in for ``torch._utils._rebuild_parameter``."""
    tensor, _requires_grad, _hooks = arguments
    if type(tensor) is not TensorInfo:
        raise UnsafeFileError("describes a parameter in an unknown way")
    return tensor


def _size(*arguments: Any) -> tuple[int, ...]:
    """Stand-in for ``torch.Size``."""
    (shape,) = arguments
    if not is_shape(shape):
        raise UnsafeFileError("describes a size in an unknown way")
    plain: tuple[int, ...] = shape
    return plain


_NAMES = {("torch", kind): Name(kind, not_callable) for kind in _STORAGES} | {
    ("torch._utils", "_rebuild_tensor_v2"): Name("_rebuild_tensor_v2", _tensor),
    ("torch._utils", "_rebuild_parameter"): Name("_rebuild_parameter", _parameter),
    ("torch", "Size"): Name("Size", _size),
    ("collections", "OrderedDict"): Name("OrderedDict", lambda: _OrderedDict()),
}


def _read_members(data: bytes, name: str) -> dict[str, bytes]:
    """Unpack the zip: known names below one folder, each once, uncompressed, undamaged. The folder is left away."""
    if len(data) > MAX_TENSOR_BYTES:
        raise UnsafeFileError(f"{name} has {len(data)} bytes, more than the limit of {MAX_TENSOR_BYTES}")
    if data[:4] != b"PK\x03\x04":
        raise UnsafeFileError(f"{name} is not a zip checkpoint; older formats can run code", _TORCH_SAVE)
    if data.count(b"PK\x01\x02") > MAX_MEMBERS:  # counted before zipfile makes an object of each
        raise UnsafeFileError(f"{name} has more than {MAX_MEMBERS} members")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = archive.infolist()
            names = [member.filename for member in members]
            for member in members:
                if not _MEMBER.fullmatch(member.filename):
                    raise UnsafeFileError(f"{name} has the unknown member {member.filename!r}")
                if member.compress_type != zipfile.ZIP_STORED:
                    raise UnsafeFileError(f"{name} has the compressed member {member.filename!r}")
            if len(set(names)) != len(names):
                raise UnsafeFileError(f"{name} has two members of one name")
            if len({member.partition("/")[0] for member in names}) > 1:
                raise UnsafeFileError(f"{name} has members of two checkpoints")
            if sum(member.file_size for member in members) > len(data):
                raise UnsafeFileError(f"{name} has members that overlap")
            return {member.filename.partition("/")[2]: archive.read(member) for member in members}
    except UnsafeFileError:
        raise
    except Exception as error:  # zipfile answers damage with many types
        raise UnsafeFileError(f"{name} is a damaged zip: {type(error).__name__}: {error}", RESTORE) from error


def read_checkpoint(data: bytes, name: str) -> Checkpoint:
    """Take a checkpoint apart and check everything it describes; UnsafeFileError says what does not fit."""
    members = _read_members(data, name)
    if "data.pkl" not in members:
        raise UnsafeFileError(f"{name} has no data.pkl")
    if members.get("byteorder", b"little") != b"little":
        raise UnsafeFileError(f"{name} is not in little-endian order", _TORCH_SAVE)
    program = members["data.pkl"]
    check_opcodes(program, name, _OPCODES, protocol=2)
    storages = {member[len("data/") :]: record for member, record in members.items() if member.startswith("data/")}
    used: set[str] = set()

    def storage(pid: Any) -> Storage:
        word, kind, key, _location, numel = pid
        if word != "storage":
            raise UnsafeFileError(f"refers to a {word!r}")
        dtype, itemsize = _STORAGES[kind.name]
        if numel * itemsize != len(storages[key]):
            raise UnsafeFileError(f"claims {numel!r} elements for the storage {key!r} of {len(storages[key])} bytes")
        used.add(key)
        return Storage(key, dtype, itemsize, len(storages[key]) // itemsize)

    state = unpickle(program, name, _NAMES, storage)
    tensors = check_plain(state, name, leaf=TensorInfo, dicts=(dict, _OrderedDict))
    if sum(math.prod(t.shape) * t.storage.itemsize for t in tensors) > MAX_SHARING * len(data):
        raise UnsafeFileError(f"{name} describes its storages over and over again")
    if used != storages.keys():
        raise UnsafeFileError(f"{name} has data that no tensor uses")
    return Checkpoint(state, storages)
