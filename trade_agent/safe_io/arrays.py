"""Dicts of numpy arrays and plain values as ``.pkl`` bytes: a pickle of numbers, without objects."""

import io
import math
import pickle
import sys
from typing import TYPE_CHECKING, Any

from trade_agent.errors import UnsafeFileError
from trade_agent.safe_io.pickles import PLAIN_OPCODES, Name, check_opcodes, unpickle, words
from trade_agent.safe_io.plain import check_plain, copy_plain

if TYPE_CHECKING:
    import numpy as np

MAX_ARRAY_BYTES = 256 * 1024**2
_OPCODES = PLAIN_OPCODES | {"FRAME", "MEMOIZE", "STACK_GLOBAL", "SHORT_BINUNICODE", "BYTEARRAY8"}
_DTYPES = words("<f2 <f4 <f8 <i2 <i4 <i8 <u2 <u4 <u8 |b1 |i1 |u1")


class _ArrayPickler(pickle.Pickler):
    """Writes an array as ``numpy.ndarray(shape, dtype, buffer)``, which any pickle reader understands."""

    def reducer_override(self, obj: Any) -> Any:
        import numpy as np

        if type(obj) is np.ndarray:
            return np.ndarray, (obj.shape, sys.intern(obj.dtype.str), bytearray(obj.tobytes()))
        return NotImplemented


def dump_arrays(state: dict[Any, Any]) -> bytes:
    """Serialise a dict of plain values and numpy arrays (bool, integer, float) as pickle protocol 5 without objects.

    Equal states give equal bytes. Other values raise ValueError with their place: write times as ISO text or integers.
    """

    import numpy as np

    def leaf(obj: Any, where: str) -> Any:
        if type(obj) is not np.ndarray:
            raise ValueError(f"{where} is a {type(obj).__name__}; convert it to an array or a plain value first")
        array = obj.astype(obj.dtype.newbyteorder("<"))  # also a copy: pickle would store a shared array as a reference
        if array.dtype.str not in _DTYPES:
            raise ValueError(f"{where} is an array of {obj.dtype}; only bool, integers and floats can be stored")
        return array

    buffer = io.BytesIO()
    _ArrayPickler(buffer, protocol=5).dump(copy_plain(dict(state), "state", leaf, {}))
    data = buffer.getvalue()
    load_arrays(data, name="the state to be saved")
    return data


def load_arrays(data: bytes, *, name: str) -> dict[Any, Any]:
    """Load what ``dump_arrays`` wrote; arrays are writable. ``name`` is the file that an UnsafeFileError names."""
    import numpy as np

    if len(data) > MAX_ARRAY_BYTES:
        raise UnsafeFileError(f"{name} has {len(data)} bytes, more than the limit of {MAX_ARRAY_BYTES}")
    check_opcodes(data, name, _OPCODES, protocol=5)

    def array(*arguments: Any) -> "np.ndarray":
        shape, dtype, buffer = arguments
        if dtype not in _DTYPES or type(buffer) is not bytearray:
            raise UnsafeFileError("describes an array in an unknown way")
        if math.prod(shape) * np.dtype(dtype).itemsize != len(buffer):
            raise UnsafeFileError(f"describes an array of shape {shape} over {len(buffer)} bytes")
        return np.ndarray(shape, dtype, buffer)

    state: dict[Any, Any] = unpickle(data, name, {("numpy", "ndarray"): Name("numpy.ndarray", array)})
    arrays = check_plain(state, name, leaf=np.ndarray)
    if len({id(array.base) for array in arrays}) != len(arrays):
        raise UnsafeFileError(f"{name} describes two arrays over one buffer")
    return state
