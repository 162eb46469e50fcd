"""The one door through which bytes on disk become objects, and back.

Nothing here can run code from a file. A checkpoint is taken apart and checked completely before torch sees it, and a
file that does not fit is refused with a reason, never opened in a laxer way. What is written passes the same checks
first, so that every file the project writes can be read back.

A *plain* value is a dict with str or int keys, a list, a tuple, str, int, float, bool or None. Dict subclasses and
numpy scalars become plain ones on writing. torch is imported inside the functions that need it: listing models must
stay quick.
"""

import contextlib
import hashlib
import io
import json
import math
import os
import pickle
import pickletools
import re
import stat
import sys
import uuid
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from trade_agent.errors import RegistryError, UnsafeFileError

if TYPE_CHECKING:
    import torch

MAX_TENSOR_BYTES = 2 * 1024**3
MAX_ARRAY_BYTES = 256 * 1024**2
MAX_JSON_BYTES = 64 * 1024**2
MAX_DEPTH = 32
MAX_OPCODES = 500_000  # scanning them takes about a second; a checkpoint of 5,000 tensors has 200,000
MAX_MEMBERS = 20_000


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_REWRITE = "restore the file from a backup, or train and register the model again"


# ---------------------------------------------------------------- bytes and JSON


def read_bytes(path: Path | str, *, max_bytes: int = MAX_TENSOR_BYTES) -> bytes:
    """Return the content of a regular file, read once.

    Links, devices and files over ``max_bytes`` raise UnsafeFileError, a missing or unreadable file RegistryError.
    """
    try:
        # O_NONBLOCK: opening a named pipe must not wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if os.path.islink(path):
            raise UnsafeFileError(f"{path} is a symbolic link", "put the file itself there") from error
        raise RegistryError(f"cannot read {path}: {error.strerror}") from error
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise UnsafeFileError(f"{path} is not a regular file")
    with os.fdopen(descriptor, "rb") as file:
        if status.st_size > max_bytes:
            raise UnsafeFileError(f"{path} has {status.st_size} bytes, more than the limit of {max_bytes}")
        try:
            return file.read(max_bytes)
        except OSError as error:
            raise RegistryError(f"cannot read {path}: {error.strerror}") from error


def sync_directory(path: Path | str) -> None:
    """Make the names in a directory durable (POSIX: fsync of a file says nothing about its name)."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes(path: Path | str, data: bytes, *, durable: bool = True) -> None:
    """Replace ``path`` atomically: a reader, also one after a crash, sees the old content or the new one.

    ``durable`` waits for the disk (fsync of the file and its directory).
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    if durable:
        sync_directory(path.parent)


def _check_json_keys(obj: Any) -> None:
    if isinstance(obj, dict):
        for key, value in obj.items():
            if not isinstance(key, str):  # json would turn 1 into "1", and two keys into the same one
                raise ValueError(f"JSON keys are text, this is {type(key).__name__} {key!r}")
            _check_json_keys(value)
    elif isinstance(obj, list | tuple):
        for value in obj:
            _check_json_keys(value)


def canonical_json(obj: Any, *, indent: int | None = 2) -> bytes:
    """Encode as UTF-8 JSON with sorted keys and one newline at the end: equal values give equal bytes.

    NaN, infinities, keys that are not text and objects JSON does not know raise ValueError.
    """
    _check_json_keys(obj)
    try:
        text = json.dumps(obj, sort_keys=True, allow_nan=False, ensure_ascii=False, indent=indent)
        return text.encode() + b"\n"
    except TypeError as error:
        raise ValueError(str(error)) from error


def write_json(path: Path | str, obj: Any, *, durable: bool = True) -> None:
    """Write ``canonical_json(obj)`` atomically."""
    write_bytes(path, canonical_json(obj), durable=durable)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key occurs twice")
    return result


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} is not JSON")


def parse_json(data: bytes, *, name: str) -> Any:
    """Decode strict JSON (no NaN, no key twice); ``name`` is the file that a RegistryError names."""
    try:
        return json.loads(data.decode(), object_pairs_hook=_unique_keys, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise RegistryError(f"{name} is not valid JSON: {error}", _REWRITE) from error


def read_json(path: Path | str) -> Any:
    """Read a JSON file of at most 64 MiB; RegistryError names a file that is missing or damaged."""
    return parse_json(read_bytes(path, max_bytes=MAX_JSON_BYTES), name=str(path))


def sha256_bytes(data: bytes | bytearray | memoryview) -> str:
    """SHA-256 as 64 hexadecimal digits, the same as ``sha256sum`` prints."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path | str) -> str:
    """SHA-256 of a file's content; reads in pieces."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---------------------------------------------------------------- plain values


def _plain(obj: Any, where: str, leaf: Callable[[Any, str], Any], strings: dict[str, str], depth: int = 0) -> Any:
    """Copy ``obj`` into plain values, ``leaf`` deciding about everything else; ValueError names the place.

    Pickle stores an object that occurs twice as a reference, so equal strings are made one object and containers are
    always copied: equal states then give equal bytes, whatever the interpreter shared.
    """
    if depth > MAX_DEPTH:
        raise ValueError(f"{where} is nested more than {MAX_DEPTH} deep")
    if isinstance(obj, np.bool_ | np.integer | np.floating | np.str_):
        obj = obj.item()
    if obj is None or type(obj) in (bool, int, float):
        return obj
    if type(obj) is str:
        return strings.setdefault(obj, obj)
    if isinstance(obj, dict):
        result = {}
        for key, value in obj.items():
            if type(key) not in (str, int):
                raise ValueError(f"{where} has a key of type {type(key).__name__}; keys are text or whole numbers")
            plain_key = strings.setdefault(key, key) if type(key) is str else key
            result[plain_key] = _plain(value, f"{where}[{key!r}]", leaf, strings, depth + 1)
        return result
    if type(obj) is list:
        return [_plain(value, f"{where}[{i}]", leaf, strings, depth + 1) for i, value in enumerate(obj)]
    if type(obj) is tuple:
        return tuple(_plain(value, f"{where}[{i}]", leaf, strings, depth + 1) for i, value in enumerate(obj))
    return leaf(obj, where)


def _check_plain(obj: Any, name: str, leaf: type, seen: set[int] | None = None, depth: int = 0) -> None:
    """Refuse loaded structures that are too deep, cyclic, shared (they can unfold exponentially) or not plain."""
    seen = set() if seen is None else seen
    if obj is None or type(obj) in (bool, int, float, str, leaf):
        return
    if type(obj) not in (dict, list, tuple):
        raise UnsafeFileError(f"{name} holds a {type(obj).__name__}, neither a plain value nor a {leaf.__name__}")
    if depth > MAX_DEPTH:
        raise UnsafeFileError(f"{name} is nested more than {MAX_DEPTH} deep")
    if len(obj) and id(obj) in seen:
        raise UnsafeFileError(f"{name} refers to one container from several places")
    seen.add(id(obj))
    if type(obj) is dict:
        if any(type(key) not in (str, int) for key in obj):
            raise UnsafeFileError(f"{name} has a key that is neither text nor a whole number")
        obj = obj.values()
    for value in obj:
        _check_plain(value, name, leaf, seen, depth + 1)


# ---------------------------------------------------------------- the pickle gate

# Operations that can only make plain values, refer back to earlier ones and call what ``_GatedUnpickler`` hands out.
# Missing on purpose: BUILD, NEWOBJ, INST, OBJ, EXT*, DUP, LONG4, BUFFER, every text opcode.
_PLAIN_OPCODES = _words(
    "PROTO STOP MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE EMPTY_DICT EMPTY_LIST "
    "EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 APPEND APPENDS SETITEM SETITEMS BINGET LONG_BINGET REDUCE"
)
_TENSOR_OPCODES = _PLAIN_OPCODES | _words("GLOBAL BINPERSID BINPUT LONG_BINPUT")
_ARRAY_OPCODES = _PLAIN_OPCODES | _words("FRAME MEMOIZE STACK_GLOBAL SHORT_BINUNICODE BYTEARRAY8")


def _check_opcodes(data: bytes, name: str, allowed: frozenset[str], protocol: int) -> None:
    """Walk the pickle without executing it."""
    count, puts, end = 0, 0, 0
    try:
        for opcode, argument, position in pickletools.genops(data):
            count += 1
            if opcode.name not in allowed:
                raise UnsafeFileError(f"{name} contains the pickle operation {opcode.name}, which plain data lacks")
            if count > MAX_OPCODES:
                raise UnsafeFileError(f"{name} contains more than {MAX_OPCODES} pickle operations")
            if opcode.name == "PROTO" and (argument != protocol or position != 0):
                raise UnsafeFileError(f"{name} does not use pickle protocol {protocol}")
            if opcode.name in ("BINPUT", "LONG_BINPUT"):
                if argument != puts:  # an index of 2**31 would make the unpickler allocate gigabytes
                    raise UnsafeFileError(f"{name} numbers its memo out of order")
                puts += 1
            end = position or 0
    except (ValueError, EOFError) as error:
        raise UnsafeFileError(f"{name} is not a whole pickle: {error}", _REWRITE) from error
    if end + 1 != len(data):
        raise UnsafeFileError(f"{name} has {len(data) - end - 1} bytes after its end")


class _Name:
    """Stands for a global while a pickle is checked; calling it checks the arguments."""

    __slots__ = ("_call", "name")

    def __init__(self, name: str, call: Callable[..., Any] | None) -> None:
        self.name = name
        self._call = call

    def __call__(self, *arguments: Any) -> Any:
        if self._call is None:
            raise UnsafeFileError(f"calls {self.name}")
        return self._call(*arguments)


class _GatedUnpickler(pickle.Unpickler):
    """Resolves no name by import: only the given stand-ins exist."""

    def __init__(
        self, data: bytes, names: dict[tuple[str, str], _Name], storage: Callable[[Any], Any] | None = None
    ) -> None:
        super().__init__(io.BytesIO(data))
        self._names = names
        self._storage = storage

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._names:
            raise UnsafeFileError(f"asks for {module}.{name}")
        return self._names[module, name]

    def persistent_load(self, pid: Any) -> Any:
        if self._storage is None:
            raise UnsafeFileError("refers to an outside object")
        return self._storage(pid)


def _unpickle(unpickler: _GatedUnpickler, name: str) -> Any:
    try:
        return unpickler.load()
    except UnsafeFileError as error:
        raise UnsafeFileError(f"{name} {error.message}, which is not allowed in a data file") from error
    except Exception as error:  # whatever a malformed pickle provokes
        raise UnsafeFileError(f"{name} is malformed: {type(error).__name__}: {error}", _REWRITE) from error


def _is_shape(shape: Any) -> bool:
    return type(shape) is tuple and len(shape) <= 64 and all(type(n) is int and 0 <= n < 2**63 for n in shape)


# ---------------------------------------------------------------- tensors (.pth)

# Legacy names of torch's storages, with bytes per element.
_STORAGES = {
    "DoubleStorage": 8,
    "FloatStorage": 4,
    "HalfStorage": 2,
    "BFloat16Storage": 2,
    "LongStorage": 8,
    "IntStorage": 4,
    "ShortStorage": 2,
    "CharStorage": 1,
    "ByteStorage": 1,
    "BoolStorage": 1,
}
_TENSOR_DTYPES = _words("float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 bool")
_MEMBER = re.compile(
    r"archive/(data\.pkl|version|byteorder|\.format_version|\.storage_alignment|\.data/serialization_id|data/\d{1,6})"
)


class _Storage(NamedTuple):
    itemsize: int
    nbytes: int


class _Tensor:
    """A tensor that was described soundly."""

    __slots__ = ()


class _Hooks(dict[Any, Any]):
    """The empty OrderedDict that torch stores as a tensor's backward hooks."""


def _contiguous_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    strides, step = [], 1
    for n in reversed(shape):
        strides.append(step)
        step *= max(n, 1)
    return tuple(reversed(strides))


def _check_tensor(*arguments: Any) -> _Tensor:
    """Stand-in for ``torch._utils._rebuild_tensor_v2``: the tensor must be exactly its storage, in C order.

    Otherwise a stride of 0 turns a few bytes into gigabytes, and an offset reads beyond the storage.
    """
    if len(arguments) != 6:
        raise UnsafeFileError("describes a tensor in an unknown way")
    storage, offset, shape, strides, requires_grad, hooks = arguments
    plain = type(storage) is _Storage and offset == 0 and requires_grad is False and type(hooks) is _Hooks and not hooks
    if not (plain and _is_shape(shape) and strides == _contiguous_strides(shape)):
        raise UnsafeFileError("describes a tensor that is not contiguous")
    if math.prod(shape) * storage.itemsize != storage.nbytes:
        raise UnsafeFileError(f"describes a tensor of shape {shape} over {storage.nbytes} bytes")
    return _Tensor()


def _read_members(data: bytes, name: str) -> dict[str, bytes]:
    """Unpack a checkpoint's zip: known names, each once, uncompressed, undamaged."""
    if len(data) > MAX_TENSOR_BYTES:
        raise UnsafeFileError(f"{name} has {len(data)} bytes, more than the limit of {MAX_TENSOR_BYTES}")
    if data[:4] != b"PK\x03\x04":
        raise UnsafeFileError(f"{name} is not a zip checkpoint", "older torch formats can run code and are not read")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = archive.infolist()
            names = [member.filename for member in members]
            if len(members) > MAX_MEMBERS:
                raise UnsafeFileError(f"{name} has {len(members)} members, more than the limit of {MAX_MEMBERS}")
            for member in members:
                if not _MEMBER.fullmatch(member.filename):
                    raise UnsafeFileError(f"{name} has the unknown member {member.filename!r}")
                if member.compress_type != zipfile.ZIP_STORED or member.compress_size != member.file_size:
                    raise UnsafeFileError(f"{name} has the compressed member {member.filename!r}")
            if len(set(names)) != len(names):
                raise UnsafeFileError(f"{name} has two members of one name")
            if sum(member.file_size for member in members) > len(data):
                raise UnsafeFileError(f"{name} has members that overlap")
            if "archive/data.pkl" not in names:
                raise UnsafeFileError(f"{name} has no archive/data.pkl")
            return {member.filename: archive.read(member) for member in members}
    except UnsafeFileError:
        raise
    except Exception as error:  # zipfile answers damage with many types
        raise UnsafeFileError(f"{name} is a damaged zip: {type(error).__name__}: {error}", _REWRITE) from error


def _check_checkpoint(data: bytes, name: str) -> dict[str, bytes]:
    """Return the members of a checkpoint whose every tensor has been checked against its storage."""
    members = _read_members(data, name)
    if members.get("archive/byteorder", b"little") != b"little":
        raise UnsafeFileError(f"{name} is not in little-endian order")
    program = members["archive/data.pkl"]
    _check_opcodes(program, name, _TENSOR_OPCODES, protocol=2)
    used = set()

    def storage(pid: Any) -> _Storage:
        if type(pid) is not tuple or len(pid) != 5 or pid[0] != "storage" or type(pid[1]) is not _Name:
            raise UnsafeFileError("refers to something that is not a tensor storage")
        _, kind, key, location, numel = pid
        itemsize = _STORAGES.get(kind.name)
        record = members.get(f"archive/data/{key}") if type(key) is str else None
        if itemsize is None or record is None or location != "cpu" or type(numel) is not int:
            raise UnsafeFileError(f"refers to the unknown storage {key!r}")
        if numel * itemsize != len(record):
            raise UnsafeFileError(f"claims {numel} elements for the storage {key!r} of {len(record)} bytes")
        used.add(f"archive/data/{key}")
        return _Storage(itemsize, len(record))

    names = {("torch", kind): _Name(kind, None) for kind in _STORAGES}
    names["torch._utils", "_rebuild_tensor_v2"] = _Name("_rebuild_tensor_v2", _check_tensor)
    names["collections", "OrderedDict"] = _Name("OrderedDict", lambda: _Hooks())
    state = _unpickle(_GatedUnpickler(program, names, storage), name)
    if type(state) is not dict:
        raise UnsafeFileError(f"{name} holds a {type(state).__name__} instead of a dict")
    _check_plain(state, name, _Tensor)
    if used != {member for member in members if member.startswith("archive/data/")}:
        raise UnsafeFileError(f"{name} has data that no tensor uses")
    return members


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
        if str(tensor.dtype).removeprefix("torch.") not in _TENSOR_DTYPES:
            raise ValueError(f"{where} has the type {tensor.dtype}, which checkpoints do not hold")
        shape, nbytes = tuple(tensor.shape), tensor.untyped_storage().nbytes()
        whole = nbytes == tensor.numel() * tensor.itemsize and tensor.stride() == _contiguous_strides(shape)
        # A view would drag its whole storage into the file.
        return tensor if whole else tensor.clone(memory_format=torch.contiguous_format)

    buffer = io.BytesIO()  # never a path: torch writes the file's name into the file
    torch.save(_plain(dict(state), "state", leaf, {}), buffer)
    data = buffer.getvalue()
    _check_checkpoint(data, "the state to be saved")
    return data


def load_tensors(data: bytes, *, name: str) -> dict[Any, Any]:
    """Load what ``dump_tensors`` wrote, on the CPU. ``name`` is the file that an UnsafeFileError names.

    torch then reads a zip rebuilt from the checked members, so that no difference between two zip readers matters, and
    only names from our own list occur in it, so that neither ``add_safe_globals`` (torchrl's imports call it) nor the
    environment variable that switches ``weights_only`` off can widen what is loaded.
    """
    import torch

    members = _check_checkpoint(data, name)
    rebuilt = io.BytesIO()
    with zipfile.ZipFile(rebuilt, "w", zipfile.ZIP_STORED) as archive:
        for member, content in members.items():
            archive.writestr(member, content)
    rebuilt.seek(0)
    try:
        state: dict[Any, Any] = torch.load(rebuilt, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UnsafeFileError(f"torch cannot load {name}: {type(error).__name__}: {error}", _REWRITE) from error
    return state


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


def weights_sha256(state: dict[Any, Any]) -> str:
    """Hash of all tensors in ``state``, sorted by name: equal weights give equal hashes in whatever file or order.

    The hash covers name, dtype, shape and bytes (little-endian, C order); plain values do not enter.
    """
    import torch

    digest = hashlib.sha256()
    for path, tensor in sorted(_tensors(state), key=lambda item: item[0]):
        digest.update(
            canonical_json([list(path), str(tensor.dtype).removeprefix("torch."), list(tensor.shape)], indent=None)
        )
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data if flat.numel() else b"")
    return digest.hexdigest()


def layout_sha256(state: dict[Any, Any]) -> str:
    """Hash of names, dtypes and shapes of all tensors in ``state``: what code must fit to load it."""
    rows = [
        [list(path), str(tensor.dtype).removeprefix("torch."), list(tensor.shape)] for path, tensor in _tensors(state)
    ]
    return sha256_bytes(canonical_json(sorted(rows), indent=None))


# ---------------------------------------------------------------- arrays (.pkl)

_ARRAY_DTYPES = _words("<f2 <f4 <f8 <i2 <i4 <i8 <u2 <u4 <u8 |b1 |i1 |u1")


class _ArrayPickler(pickle.Pickler):
    """Writes an array as ``numpy.ndarray(shape, dtype, buffer)``, which any pickle reader understands."""

    def reducer_override(self, obj: Any) -> Any:
        if type(obj) is np.ndarray:
            return np.ndarray, (obj.shape, sys.intern(obj.dtype.str), bytearray(obj.tobytes()))
        return NotImplemented


def dump_arrays(state: dict[Any, Any]) -> bytes:
    """Serialise a dict of plain values and numpy arrays (bool, integer, float) as pickle protocol 5 without objects.

    Equal states give equal bytes. Other values raise ValueError with their place: write times as ISO text or integers.
    """

    def leaf(obj: Any, where: str) -> Any:
        if type(obj) is not np.ndarray:
            raise ValueError(f"{where} is a {type(obj).__name__}; convert it to an array or a plain value first")
        array = obj.astype(obj.dtype.newbyteorder("<"))  # also a copy: pickle would store a shared array as a reference
        if array.dtype.str not in _ARRAY_DTYPES:
            raise ValueError(f"{where} is an array of {obj.dtype}; only bool, integers and floats can be stored")
        return array

    buffer = io.BytesIO()
    _ArrayPickler(buffer, protocol=5).dump(_plain(dict(state), "state", leaf, {}))
    data = buffer.getvalue()
    load_arrays(data, name="the state to be saved")
    return data


def load_arrays(data: bytes, *, name: str) -> dict[Any, Any]:
    """Load what ``dump_arrays`` wrote; arrays are writable. ``name`` is the file that an UnsafeFileError names."""
    if len(data) > MAX_ARRAY_BYTES:
        raise UnsafeFileError(f"{name} has {len(data)} bytes, more than the limit of {MAX_ARRAY_BYTES}")
    _check_opcodes(data, name, _ARRAY_OPCODES, protocol=5)
    buffers = set()

    def array(*arguments: Any) -> np.ndarray:
        if len(arguments) != 3:
            raise UnsafeFileError("describes an array in an unknown way")
        shape, dtype, buffer = arguments
        known = type(dtype) is str and dtype in _ARRAY_DTYPES and type(buffer) is bytearray
        if not (known and _is_shape(shape)):
            raise UnsafeFileError("describes an array in an unknown way")
        if math.prod(shape) * np.dtype(dtype).itemsize != len(buffer) or id(buffer) in buffers:
            raise UnsafeFileError(f"describes an array of shape {shape} over {len(buffer)} bytes")
        buffers.add(id(buffer))
        return np.ndarray(shape, dtype, buffer)

    state = _unpickle(_GatedUnpickler(data, {("numpy", "ndarray"): _Name("numpy.ndarray", array)}), name)
    if type(state) is not dict:
        raise UnsafeFileError(f"{name} holds a {type(state).__name__} instead of a dict")
    _check_plain(state, name, np.ndarray)
    return state
