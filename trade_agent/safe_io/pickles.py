"""The gate for pickle programs: known operations, known names, and nothing is imported.

A pickle is a program for a small machine. Its operations are listed here, and every name it asks for is answered by a
stand-in of ours that looks at its arguments, so that the worst a program can do is to be refused.
"""

import io
import math
import pickle
import pickletools
from collections.abc import Callable
from typing import Any, NamedTuple

from trade_agent.errors import UnsafeFileError
from trade_agent.safe_io.files import RESTORE

MAX_OPCODES = 500_000  # scanning them takes about a second; a checkpoint of 5,000 tensors has 200,000


def words(text: str) -> frozenset[str]:
    """The words of a text."""
    return frozenset(text.split())


# Operations that can only make plain values, refer back to earlier ones and call what ``unpickle`` hands out.
# Missing on purpose: NEWOBJ, INST, OBJ, EXT*, DUP, POP, LONG4, BUFFER, every text opcode.
PLAIN_OPCODES = words(
    "PROTO STOP MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE EMPTY_DICT EMPTY_LIST "
    "EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 APPEND APPENDS SETITEM SETITEMS BINGET LONG_BINGET REDUCE"
)


def check_opcodes(data: bytes, name: str, allowed: frozenset[str], *, protocol: int) -> None:
    """Walk the program without executing it; UnsafeFileError names what is wrong."""
    count, puts, end = 0, 0, 0
    try:
        for opcode, argument, position in pickletools.genops(data):
            count += 1
            if opcode.name not in allowed:
                raise UnsafeFileError(f"{name} contains the pickle operation {opcode.name}, which plain data lacks")
            if count > MAX_OPCODES:
                raise UnsafeFileError(f"{name} contains more than {MAX_OPCODES} pickle operations")
            if opcode.name == "PROTO" and argument != protocol:
                raise UnsafeFileError(f"{name} does not use pickle protocol {protocol}")
            if opcode.name in ("BINPUT", "LONG_BINPUT"):
                if argument != puts:  # an index of 2**31 would make the unpickler allocate gigabytes
                    raise UnsafeFileError(f"{name} numbers its memo out of order")
                puts += 1
            end = position or 0
    except (ValueError, EOFError) as error:
        raise UnsafeFileError(f"{name} is not a whole pickle: {error}", RESTORE) from error
    if end + 1 != len(data):
        raise UnsafeFileError(f"{name} has {len(data) - end - 1} bytes after its end")


class Name(NamedTuple):
    """Stands for a global of a pickle; calling it checks the arguments. A tuple: no operation can change it."""

    name: str
    call: Callable[..., Any]

    def __call__(self, *arguments: Any) -> Any:
        return self.call(*arguments)


def not_callable(*arguments: Any) -> Any:
    """The call of a name that may only be mentioned."""
    raise UnsafeFileError("calls a name that is no function")


class _GatedUnpickler(pickle.Unpickler):
    def __init__(self, data: bytes, names: dict[tuple[str, str], Name], persistent: Callable[[Any], Any]) -> None:
        super().__init__(io.BytesIO(data))
        self._names = names
        self._persistent = persistent

    def find_class(self, module: str, name: str) -> Any:
        found = self._names.get((module, name))
        if found is None:
            raise UnsafeFileError(f"asks for {module}.{name}")
        return found

    def persistent_load(self, pid: Any) -> Any:
        return self._persistent(pid)


def _no_persistent(pid: Any) -> Any:
    raise UnsafeFileError("refers to an outside object")


def unpickle(
    data: bytes,
    name: str,
    names: dict[tuple[str, str], Name],
    persistent: Callable[[Any], Any] = _no_persistent,
) -> Any:
    """Execute a program whose operations were checked; only ``names`` exist for it."""
    try:
        return _GatedUnpickler(data, names, persistent).load()
    except UnsafeFileError as error:
        raise UnsafeFileError(f"{name} {error.message}, which is not allowed in a data file", error.remedy) from error
    except Exception as error:  # whatever a malformed pickle provokes
        raise UnsafeFileError(f"{name} is malformed: {type(error).__name__}: {error}", RESTORE) from error


def is_shape(shape: Any) -> bool:
    """Whether it is a tuple of at most 64 sizes whose strides fit 64 bits."""
    if type(shape) is not tuple or len(shape) > 64 or any(type(n) is not int or n < 0 for n in shape):
        return False
    return math.prod(max(n, 1) for n in shape) < 2**63
