"""Computed feature tables on disk, found by a hash over everything that went into them."""

from __future__ import annotations

import contextlib
import math
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from trade_agent import safe_io
from trade_agent.errors import RegistryError

MAX_BYTES = 2 * 1024**3


@cache
def code_fingerprint() -> str:
    """SHA-256 over the source of this package and the versions of the libraries that compute: any change is a miss.

    Finer than CODE_VERSION, which a person raises: here a needless miss costs seconds and a stale hit a wrong result.
    """
    sources = {path.name: safe_io.sha256_file(path) for path in Path(__file__).parent.glob("*.py")}
    libraries = {name: version(name) for name in ("numpy", "scikit-learn", "TA-Lib")}
    return safe_io.sha256_bytes(safe_io.canonical_json([sources, libraries]))


def cache_key(**parts: Any) -> str:
    """SHA-256 over plain values and the code that computes from them."""
    return safe_io.sha256_bytes(safe_io.canonical_json({**parts, "code": code_fingerprint()}))


class FeatureCache:
    """Arrays and small states under ``folder`` by key. A file that is missing, damaged or not what was asked is a miss.

    The files used least recently are deleted when they exceed ``max_bytes`` together.
    """

    def __init__(self, folder: Path, *, max_bytes: int = MAX_BYTES) -> None:
        self.folder = folder
        self.max_bytes = max_bytes

    def load_values(self, key: str, shape: tuple[int, ...]) -> np.ndarray | None:
        """The float32 array of this shape, or None."""
        data = self._read(f"{key}.f4")
        if data is None or len(data) != 4 * math.prod(shape):
            return None
        return np.frombuffer(bytearray(data), "<f4").reshape(shape)

    def save_values(self, key: str, values: np.ndarray) -> None:
        """Keep a float32 array; who loads it knows its shape."""
        self._write(f"{key}.f4", values.astype("<f4").tobytes())

    def load_state(self, key: str) -> dict[str, Any] | None:
        """The state of a fitted pipeline, or None."""
        data = self._read(f"{key}.pkl")
        if data is None:
            return None
        try:
            return safe_io.load_arrays(data, name=f"{key}.pkl")
        except RegistryError:
            return None

    def save_state(self, key: str, state: dict[str, Any]) -> None:
        """Keep the state of a fitted pipeline."""
        self._write(f"{key}.pkl", safe_io.dump_arrays(state))

    # A file is its content followed by the SHA-256 of it.

    def _read(self, name: str) -> bytes | None:
        path = self.folder / name
        try:
            data = safe_io.read_bytes(path)
        except RegistryError:
            return None
        content, digest = data[:-32], data[-32:]
        if safe_io.sha256_bytes(content) != digest.hex():
            return None
        with contextlib.suppress(OSError):
            path.touch()
        return content

    def _write(self, name: str, content: bytes) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        # A cache lost in a crash is no loss: no waiting for the disk.
        digest = bytes.fromhex(safe_io.sha256_bytes(content))
        safe_io.write_bytes(self.folder / name, content + digest, durable=False)
        self._evict(keep=name)

    def _evict(self, keep: str) -> None:
        files = []
        for path in self.folder.glob("[0-9a-f]*"):  # not the files that are being written, whose names begin with a dot
            with contextlib.suppress(FileNotFoundError):  # another process evicts too
                status = path.stat()
                files.append((status.st_mtime_ns, status.st_size, path))
        total = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if total <= self.max_bytes:
                break
            if path.name != keep:
                path.unlink(missing_ok=True)
                total -= size
