"""What is known about a model: one immutable JSON file per version, the single source of truth."""

import dataclasses
import math
import types
import typing
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from trade_agent import safe_io
from trade_agent.errors import RegistryError, UnsafeFileError

SCHEMA = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Objective:
    """What was optimised, measured on the validation rows. ``value`` None: not finite. ``direction`` is max or min."""

    name: str
    value: float | None
    direction: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Parent:
    """A model this one was built on, pinned by digest. ``role``: forecaster, agent or member."""

    role: str
    id: str
    version: str
    metadata_sha256: str
    weights_sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class PreprocessorInfo:
    """``content_hash`` covers the fitted state, ``contract_hash`` what a model must know of its input."""

    version: str
    content_hash: str
    contract_hash: str


@dataclass(frozen=True, kw_only=True, slots=True)
class DataInfo:
    """The bars. ``splits`` maps train, validation and test to ISO times [first bar, last bar], both included, UTC."""

    fingerprint: str
    symbols: list[str]
    source: str
    splits: dict[str, list[str]]


@dataclass(frozen=True, kw_only=True, slots=True)
class FileInfo:
    """Digest and size in bytes of a stored file."""

    sha256: str
    size: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Bump:
    """Why the version is what it is; ``differing_keys`` is what differs from the version ``compared_with``."""

    level: str
    reason: str
    compared_with: str | None
    differing_keys: list[str]


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelMetadata:
    """Everything about one model version, in plain values.

    ``metrics`` and ``baselines`` are measured on the test rows; None stands for a number that is not finite.
    ``files`` maps a file name beside the metadata to its digest. ``created`` is an ISO time in UTC. ``study`` is the
    search that the run was a trial of, or empty.
    """

    model_id: str
    model_type: str
    version: str
    grade: str
    grade_decision: dict[str, Any]
    objective: Objective
    metrics: dict[str, Any]
    baselines: dict[str, Any]
    parents: list[Parent]
    preprocessor: PreprocessorInfo
    data: DataInfo
    contract: dict[str, Any]
    contract_hash: str
    recipe: dict[str, Any]
    recipe_hash: str
    config_hash: str
    seed: int
    run_id: str
    study: str
    trainer_profile: str
    files: dict[str, FileInfo]
    weights_sha256: str
    created: str
    environment: dict[str, str]
    command: str
    bump: Bump
    tags: list[str] = field(default_factory=list)
    notes: str = ""
    schema: int = SCHEMA

    def to_json(self) -> bytes:
        """Canonical bytes with a checksum."""
        return safe_io.checked_json(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, data: bytes, *, name: str) -> "ModelMetadata":
        """Read ``to_json``'s bytes; RegistryError names the file ``name`` and what does not fit."""
        value = safe_io.parse_checked_json(data, name=name)
        if value.get("schema") != SCHEMA:
            raise RegistryError(
                f"{name} is not model metadata of schema {SCHEMA} (found {value.get('schema')!r})",
                "use the program that wrote it",
            )
        metadata: ModelMetadata = build(cls, value, name)
        return metadata


def plain_hash(value: dict[str, Any]) -> str:
    """SHA-256 over the canonical JSON of a plain dict."""
    return safe_io.sha256_bytes(safe_io.canonical_json(value, indent=None))


def finite(value: Any) -> Any:
    """Copy plain values with None in place of NaN and infinities, which JSON cannot express."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, float):  # numpy.float64 too
        return float(value) if math.isfinite(value) else None
    return value


def check_config(config: Any, *, name: str) -> None:
    """Refuse a configuration that names code (``_target_``) or an interpolation, which could read the environment."""
    if isinstance(config, dict):
        for key, value in config.items():
            check_config(key, name=name)
            check_config(value, name=name)
    elif isinstance(config, list | tuple):
        for value in config:
            check_config(value, name=name)
    elif isinstance(config, str) and (config == "_target_" or "${" in config):
        raise UnsafeFileError(
            f"{name} contains {config!r}; a stored configuration holds values only", "resolve it first"
        )


@cache
def _hints(cls: Any) -> dict[str, Any] | None:
    return typing.get_type_hints(cls) if dataclasses.is_dataclass(cls) else None


@cache
def _parts(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    return typing.get_origin(hint), typing.get_args(hint)


def build(expected: Any, value: Any, where: str) -> Any:
    """Convert decoded JSON to the annotated type ``expected``, field by field."""
    if expected is Any or type(value) is expected:
        return value
    hints = _hints(expected)
    if hints is not None:
        if not isinstance(value, dict) or value.keys() != hints.keys():
            keys = value.keys() if isinstance(value, dict) else set()
            raise RegistryError(f"{where} does not have the right fields: {sorted(keys ^ hints.keys())}")
        return expected(**{key: build(hint, value[key], f"{where}: {key}") for key, hint in hints.items()})
    origin, arguments = _parts(expected)
    if origin is list and isinstance(value, list):
        return [build(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value)]
    if origin is dict and isinstance(value, dict):
        if arguments[1] is Any:
            return value
        return {key: build(arguments[1], item, f"{where}[{key!r}]") for key, item in value.items()}
    if origin is types.UnionType:
        for option in arguments:
            if option is type(None) and value is None:
                return None
            if option is not type(None) and value is not None:
                return build(option, value, where)
    if expected is float and type(value) is int:
        return float(value)
    raise RegistryError(f"{where} is {type(value).__name__} instead of {getattr(expected, '__name__', expected)}")
