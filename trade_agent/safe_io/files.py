"""Bytes of whole files: read once, replaced atomically, named by digest."""

import contextlib
import hashlib
import os
import stat
import uuid
from pathlib import Path

from trade_agent.errors import RegistryError, UnsafeFileError

MAX_BYTES = 2 * 1024**3
RESTORE = "restore the file from a backup, or train and register the model again"


def read_bytes(path: Path | str, *, max_bytes: int = MAX_BYTES) -> bytes:
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
            return file.read(status.st_size)
        except OSError as error:
            raise RegistryError(f"cannot read {path}: {error.strerror}") from error


def sync(path: Path | str) -> None:
    """Make a file's content, or the names in a directory, durable (fsync of a file says nothing of its name)."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
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
        sync(path.parent)


def sha256_bytes(data: bytes | bytearray | memoryview) -> str:
    """SHA-256 as 64 hexadecimal digits, the same as ``sha256sum`` prints."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path | str) -> str:
    """SHA-256 of a file's content; reads in pieces."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
