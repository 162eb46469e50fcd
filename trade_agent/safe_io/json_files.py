"""Strict JSON, with one spelling for each value."""

import json
import re
from pathlib import Path
from typing import Any

from trade_agent.errors import RegistryError, UnsafeFileError
from trade_agent.safe_io.files import RESTORE, read_bytes, sha256_bytes, write_bytes

_CHECKSUM_LINE = b'\n  "checksum": "%s"'
_CHECKSUM = re.compile(rb'\n  "checksum": "([0-9a-f]{64})",?\n')
MAX_JSON_BYTES = 64 * 1024**2
MAX_JSON_VALUES = 200_000  # of any file; beyond it, one value for every 16 bytes: "[]," takes 70 bytes of memory


def _check_keys(obj: Any) -> None:
    if isinstance(obj, dict):
        for key, value in obj.items():
            if not isinstance(key, str):  # json would turn 1 into "1", and two keys into the same one
                raise ValueError(f"JSON keys are text, this is {type(key).__name__} {key!r}")
            _check_keys(value)
    elif isinstance(obj, list | tuple):
        for value in obj:
            _check_keys(value)


def canonical_json(obj: Any, *, indent: int | None = 2) -> bytes:
    """Encode as UTF-8 JSON with sorted keys and one newline at the end: equal values give equal bytes.

    NaN, infinities, keys that are not text and objects JSON does not know raise ValueError.
    """
    _check_keys(obj)
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
    if data.count(b",") + data.count(b"[") + data.count(b"{") > MAX_JSON_VALUES + len(data) // 16:
        raise UnsafeFileError(f"{name} holds too many values for its {len(data)} bytes")
    try:
        return json.loads(data.decode(), object_pairs_hook=_unique_keys, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise RegistryError(f"{name} is not valid JSON: {error}", RESTORE) from error


def checked_json(fields: dict[str, Any]) -> bytes:
    """Canonical JSON of ``fields`` and their ``checksum``: an altered bit shows without a second copy.

    The checksum is the SHA-256 of the document without that line: ``grep -v '^  "checksum"' FILE | sha256sum``.
    """
    blank = canonical_json(fields | {"checksum": "0" * 64})
    return blank.replace(_CHECKSUM_LINE % (b"0" * 64), _CHECKSUM_LINE % sha256_bytes(_unsummed(blank)).encode(), 1)


def parse_checked_json(data: bytes, *, name: str) -> dict[str, Any]:
    """The fields of what ``checked_json`` wrote; RegistryError, naming the file and both digests, where they differ."""
    match = _CHECKSUM.search(data)
    found, recorded = sha256_bytes(_unsummed(data)), match[1].decode() if match else "none"
    if found != recorded:
        raise RegistryError(f"{name} was altered: its checksum is {found}, recorded {recorded}", RESTORE)
    document = parse_json(data, name=name)
    if not isinstance(document, dict) or "checksum" not in document:
        raise RegistryError(f"{name} is not an object with a checksum", RESTORE)
    del document["checksum"]
    return document


def _unsummed(data: bytes) -> bytes:
    """A document without its line of the checksum; JSON text has no line breaks, and what lies deeper is indented."""
    return _CHECKSUM.sub(b"\n", data, count=1)


def read_json(path: Path | str) -> Any:
    """Read a JSON file of at most 64 MiB; RegistryError names a file that is missing or damaged."""
    return parse_json(read_bytes(path, max_bytes=MAX_JSON_BYTES), name=str(path))


def read_checked_json(path: Path | str) -> dict[str, Any]:
    """The fields of a file of ``checked_json``; RegistryError names one that is missing or altered."""
    return parse_checked_json(read_bytes(path, max_bytes=MAX_JSON_BYTES), name=str(path))
