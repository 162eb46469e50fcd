"""The one door through which bytes on disk become objects, and back.

Nothing here can run code from a file. Everything is taken apart and checked completely before an object is made of it,
and a file that does not fit is refused with a reason, never opened in a laxer way. What is written passes the same
checks first, so that every file the project writes can be read back.

    files         bytes, atomic replacement, digests of files
    json_files    strict and canonical JSON
    plain         what a plain value is
    pickles       the gate for pickle programs
    checkpoints   the gate for torch's zip format (.pth)
    tensors       dicts of tensors to .pth bytes and back
    arrays        dicts of numpy arrays to .pkl bytes and back
    weights       digests of tensors
    locks         who may write: one process at a time

Importing this package imports neither torch nor numpy: listing models must stay quick.
"""

from trade_agent.safe_io.arrays import MAX_ARRAY_BYTES, dump_arrays, load_arrays
from trade_agent.safe_io.checkpoints import MAX_MEMBERS, MAX_TENSOR_BYTES
from trade_agent.safe_io.files import (
    MAX_BYTES,
    read_bytes,
    sha256_bytes,
    sha256_file,
    sync,
    write_bytes,
)
from trade_agent.safe_io.json_files import (
    MAX_JSON_BYTES,
    canonical_json,
    checked_json,
    parse_checked_json,
    parse_json,
    read_checked_json,
    read_json,
    write_json,
)
from trade_agent.safe_io.pickles import MAX_OPCODES
from trade_agent.safe_io.plain import MAX_DEPTH
from trade_agent.safe_io.tensors import dump_tensors, load_tensors
from trade_agent.safe_io.weights import layout_sha256, weights_sha256

__all__ = [
    "MAX_ARRAY_BYTES",
    "MAX_BYTES",
    "MAX_DEPTH",
    "MAX_JSON_BYTES",
    "MAX_MEMBERS",
    "MAX_OPCODES",
    "MAX_TENSOR_BYTES",
    "canonical_json",
    "checked_json",
    "dump_arrays",
    "dump_tensors",
    "layout_sha256",
    "load_arrays",
    "load_tensors",
    "parse_checked_json",
    "parse_json",
    "read_bytes",
    "read_checked_json",
    "read_json",
    "sha256_bytes",
    "sha256_file",
    "sync",
    "weights_sha256",
    "write_bytes",
    "write_json",
]
