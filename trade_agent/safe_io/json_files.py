"""Strict JSON, with one spelling for each value."""

import json
from pathlib import Path
from typing import Any

from trade_agent.errors import RegistryError, UnsafeFileError
from trade_agent.safe_io.files import RESTORE, read_bytes, sha256_bytes, write_bytes

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


def checksum(fields: dict[str, Any]) -> str:
    """SHA-256 over a document, to be stored in it as its field ``checksum``: an altered bit shows without a copy."""
    return sha256_bytes(canonical_json(fields, indent=None))


def without_checksum(document: Any, *, name: str) -> dict[str, Any]:
    """The fields of a document whose ``checksum`` fits; RegistryError, naming the file and both digests, if not."""
    if not isinstance(document, dict):
        raise RegistryError(f"{name} holds a {type(document).__name__} instead of an object", RESTORE)
    fields = {key: value for key, value in document.items() if key != "checksum"}
    try:
        found, recorded = checksum(fields), document.get("checksum")
    except ValueError as error:  # 1e999 is read as infinity
        raise RegistryError(f"{name} was altered: {error}", RESTORE) from error
    if found != recorded:
        raise RegistryError(f"{name} was altered: its checksum is {found}, recorded {recorded}", RESTORE)
    return fields


def read_checked_json(path: Path | str) -> dict[str, Any]:
    """The fields of a JSON file that has their checksum; RegistryError names a file that is missing or altered."""
    data = read_bytes(path, max_bytes=MAX_JSON_BYTES)
    document = parse_json(data, name=str(path))
    fields = without_checksum(document, name=str(path))
    if data != canonical_json(document):  # a missing last byte, or space between values
        raise RegistryError(f"{path} was altered: it is not in its canonical form", RESTORE)
    return fields


def read_json(path: Path | str) -> Any:
    """Read a JSON file of at most 64 MiB; RegistryError names a file that is missing or damaged."""
    return parse_json(read_bytes(path, max_bytes=MAX_JSON_BYTES), name=str(path))
