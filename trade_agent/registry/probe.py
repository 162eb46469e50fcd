"""What the disk below a registry can do."""

import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from trade_agent import safe_io
from trade_agent.errors import RegistryError
from trade_agent.registry.layout import rename_new, storage_errors

NETWORK = {"nfs", "nfs4", "lustre", "gpfs", "cifs", "smb3", "smbfs", "ceph", "glusterfs", "beegfs", "9p", "afs"}


@dataclass(frozen=True, slots=True)
class Ability:
    """One thing a disk can do or not. ``needed``: without it there can be no registry here."""

    name: str
    there: bool
    needed: bool
    meaning: str


def doctor(root: Path) -> list[Ability]:
    """Try everything out in a folder of its own in ``root``; RegistryError when it is not there or not writable."""
    if not root.is_dir():
        raise RegistryError(f"{root} is not a folder", "make it first, or name another one with --models-dir")
    kind = file_system(root)
    with storage_errors(f"writing to {root}"), tempfile.TemporaryDirectory(dir=root, prefix=".doctor-") as name:
        folder = Path(name)
        (folder / "first").write_bytes(b"1")
        (folder / "second").write_bytes(b"2")
        links, creates = _works(lambda: _links(folder)), _works(lambda: _creates(folder))
        moves = _works(lambda: _moves(folder))
        abilities = [
            Ability("hard links", links, not (moves or creates), "a version appears whole, for one writer only"),
            Ability("rename", _works(lambda: _renames(folder)), True, "registry.json is replaced at once"),
            Ability("folder sync", _works(lambda: _syncs(folder)), True, "what is registered survives a power cut"),
            Ability("exclusive rename", moves, False, "takes the place of hard links where there are none"),
            Ability(
                "exclusive create",
                creates,
                not (links or moves),
                "takes the place of both, but not safe against kill -9",
            ),
            Ability("flock", _works(lambda: _locks(folder)), False, "not relied on"),
        ]
    local = kind not in NETWORK
    abilities.append(
        Ability("local disk", local, False, f"{kind or 'unknown'}; on a network disk archiving waits a minute a model")
    )
    free = shutil.disk_usage(root).free
    abilities.append(Ability("room", free > 2**30, False, f"{free / 2**30:.1f} GiB free"))
    return abilities


def file_system(path: Path) -> str:
    """Type of the file system that holds ``path``, such as ext4 or nfs4; empty where the system does not tell."""
    try:
        lines = Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    target = os.path.realpath(path)
    mounts = [(fields[1].replace("\\040", " "), fields[2]) for fields in map(str.split, lines)]
    holding = [mount for mount in mounts if target == mount[0] or target.startswith(mount[0].rstrip("/") + "/")]
    return max(holding, key=lambda mount: len(mount[0]), default=("", ""))[1]


def network_file_system(path: Path) -> bool:
    """Whether another host may see changes under ``path`` late."""
    return file_system(path) in NETWORK


def _works(attempt: Callable[[], bool]) -> bool:
    try:
        return attempt()
    except OSError:
        return False


def _links(folder: Path) -> bool:
    os.link(folder / "first", folder / "link")
    try:
        os.link(folder / "second", folder / "link")
    except FileExistsError:
        return True
    return False


def _renames(folder: Path) -> bool:
    (folder / "new").write_bytes(b"new")
    (folder / "old").write_bytes(b"old")
    os.replace(folder / "new", folder / "old")
    return (folder / "old").read_bytes() == b"new"


def _syncs(folder: Path) -> bool:
    safe_io.sync(folder)
    return True


def _moves(folder: Path) -> bool:
    (folder / "third").write_bytes(b"3")
    return rename_new(folder / "third", folder / "moved") and not rename_new(folder / "second", folder / "moved")


def _creates(folder: Path) -> bool:
    try:
        os.close(os.open(folder / "first", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except FileExistsError:
        return True
    return False


def _locks(folder: Path) -> bool:
    with open(folder / "first", "rb") as one, open(folder / "first", "rb") as other:
        fcntl.flock(one, fcntl.LOCK_EX)
        try:
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return error.errno in (errno.EAGAIN, errno.EACCES)
    return False
