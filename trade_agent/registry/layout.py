"""Where things lie under ``models/``, and the few file-system operations the registry is built from."""

import contextlib
import ctypes
import errno
import os
import shutil
import socket
import stat
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

from trade_agent import safe_io
from trade_agent.errors import RegistryError
from trade_agent.registry.naming import CLAIM_FILE, METADATA_FILE, MODEL_TYPES, check_model_type
from trade_agent.registry.versions import Version

LAYOUT = 2
NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS)  # what link(2) says where the file system has none
NO_EXCLUSIVE_RENAME = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)
RENAME_NOREPLACE = 1  # of renameat2(2)


class Layout:
    """Paths of one registry. Creating it touches nothing; ``prepare`` makes the folders."""

    def __init__(self, root: Path | str, *, durable: bool) -> None:
        self.root = Path(root).absolute()
        self.durable = durable
        self.snapshot = self.root / "registry.json"
        self.events = self.root / ".registry" / "events"
        self.format = self.root / ".registry" / "format.json"
        self.temp = self.root / "temp"
        # What this process has seen, to look only for what is newer: the view (see ``snapshot``), how many changes
        # were made since the snapshot was written, up to which number all events can be read, and the highest used
        # number of each MAJOR by type.
        self.known: Any = None
        self.unlisted = 0
        self.sound_events = 0
        self.numbers: dict[str, list[Version]] = {}

    def folder(self, model_type: str, *, archived: bool = False) -> Path:
        """Folder of a model type; RegistryError when it is a link that leads elsewhere."""
        check_model_type(model_type)
        return _no_link(self.root / "archived" / model_type if archived else self.root / model_type)

    def locate(self, model_type: str, name: str) -> Path:
        """Where a file of a model is, which may be on its way into the archive or out of it.

        A file that was in neither place when they were looked at one after the other has moved meanwhile, and is in the
        first one: looking there again misses nothing.
        """
        active, archived = self.folder(model_type) / name, self.folder(model_type, archived=True) / name
        return next((path for path in (active, archived, active) if path.exists()), active)

    def read(self, model_type: str, name: str, *, max_bytes: int = safe_io.MAX_BYTES) -> tuple[Path, bytes]:
        """Where a file of a model was found, and its content. One that moves away before it is opened is followed."""
        while True:
            path = self.locate(model_type, name)
            try:
                return path, safe_io.read_bytes(path, max_bytes=max_bytes)
            except RegistryError:
                if self.locate(model_type, name) == path:
                    raise

    def claims(self, model_type: str) -> Path:
        """Folder with one file for every number ever used by a type, and one for every run that registered.

        ``v1.0.0`` says that a number is used, ``v1.0.0.json`` that it became a model: the same file as its metadata.
        """
        return _no_link(self.folder(model_type) / ".claims")

    def committed(self, model_type: str, version: Version) -> Path:
        """What shows that a version became a model, should its metadata be lost."""
        return self.claims(model_type) / f"v{version}.json"

    def prepare(self) -> None:
        """Make the folders, and on first use find out whether this disk can hold a registry."""
        claims = [self.claims(model_type) for model_type in MODEL_TYPES]
        folders = [self.events, self.temp, self.root / "archived", self.root / "preprocessors", *claims]
        for path in folders:
            path.mkdir(parents=True, exist_ok=True)
        if self.format.exists():
            self.check_format()
            return
        with self.scratch() as folder:
            (folder / "probe").touch()
            (folder / "second").touch()
            # Everything rests on this: a new name appears for one of two writers only.
            if not link_new(folder / "probe", folder / "name") or link_new(folder / "second", folder / "name"):
                raise RegistryError(f"new names on the disk of {self.root} are not exclusive", "use another disk")
        if not (self.root / "README.md").exists():
            safe_io.write_bytes(self.root / "README.md", layout_page(), durable=False)
        self.sync(self.root.parent, self.root, self.events.parent, *(path.parent for path in claims))
        safe_io.write_json(self.format, {"layout": LAYOUT}, durable=self.durable)

    def check_format(self) -> None:
        """Refuse a folder that another program laid out differently, or whose parts are links that lead elsewhere."""
        with storage_errors(f"opening {self.root}"):
            for path in (self.temp, self.events.parent, self.events, self.root / "archived"):
                _no_link(path)
            known = self.format.exists()
        if known:
            found = safe_io.read_json(self.format)
            if not isinstance(found, dict) or found.get("layout") != LAYOUT:
                raise RegistryError(
                    f"{self.format} names the layout {found!r}, not {LAYOUT}", "use the trade_agent that wrote it"
                )

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        """A private folder on the same file system, removed at the end (not after a kill: it is never visible)."""
        path = self.temp / f"{host()}-{os.getpid()}-{uuid.uuid4().hex[:12]}"
        path.mkdir(parents=True)
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)

    def write_new(self, path: Path, data: bytes, *, wait: bool = True) -> None:
        """Write a read-only file that does not exist yet; without ``wait`` the caller syncs it, with others at once."""
        with open(path, "xb") as file:
            file.write(data)
            os.fchmod(file.fileno(), 0o444)
        if wait:
            self.sync(path)

    def sync(self, *paths: Path) -> None:
        """Make files, and the names in folders, durable where durability is asked for.

        Asked for all at once, because the disk then writes them together: one wait instead of one for each.
        """
        if not self.durable:
            return
        if len(paths) == 1:
            safe_io.sync(paths[0])
            return
        with ThreadPoolExecutor(len(paths)) as pool:
            for _ in pool.map(safe_io.sync, paths):
                pass

    def metadata_files(self, model_type: str, *, archived: bool = False) -> list[str]:
        """Names of the metadata files in a type's folder, one for each model or tombstone."""
        found = (name for name in names(self.folder(model_type, archived=archived)) if name.startswith("metadata_v"))
        return [name for name in found if METADATA_FILE.fullmatch(name)]

    def versions(self, model_type: str, *, archived: bool = False) -> list[Version]:
        """Versions with a metadata file in a type's folder, ascending."""
        found = self.metadata_files(model_type, archived=archived)
        return sorted(Version.parse(name.removeprefix("metadata_v").removesuffix(".json")) for name in found)

    def claimed(self, model_type: str) -> list[Version]:
        """Versions with a claim, ascending."""
        matches = map(CLAIM_FILE.fullmatch, names(self.claims(model_type)))
        return sorted(Version.parse(match[1]) for match in matches if match)


@cache
def host() -> str:
    """This machine since it was started, and this name space of processes: within it a process id means one process.

    Containers may share a host name, and see other processes.
    """
    marks = [socket.gethostname()]
    with contextlib.suppress(OSError):  # Linux only
        marks += [Path("/proc/sys/kernel/random/boot_id").read_text(), os.readlink("/proc/self/ns/pid")]
    return f"{marks[0]}-{safe_io.sha256_bytes(' '.join(marks).encode())[:8]}"


def layout_page() -> bytes:
    """What a registry's README.md says: beside the package in a checkout, inside it in an installed wheel."""
    inside = Path(__file__).with_name("README.md")
    return (inside if inside.is_file() else inside.parents[2] / "models/README.md").read_bytes()


def _no_link(path: Path) -> Path:
    if path.is_symlink():
        raise RegistryError(f"{path} is a symbolic link", "put the folder itself there")
    return path


def names(folder: Path) -> list[str]:
    """Names in a folder, sorted; none where it does not exist."""
    try:
        return sorted(os.listdir(folder))
    except FileNotFoundError:
        return []


def link_new(source: Path, target: Path) -> bool:
    """Give ``source`` a second name that must not exist yet; False when somebody else was first.

    What counts is which file bears the name, not what ``link`` said: a network file system can lose the reply to a
    call that succeeded (open(2), "O_EXCL"). Where the disk has no hard links, see ``_copy_new``.
    """
    try:
        os.link(source, target)
        return True
    except OSError as error:
        if error.errno in NO_LINKS:
            return _copy_new(source, target)
        try:
            there = os.stat(target, follow_symlinks=False)
        except FileNotFoundError:
            raise error from None
        own = os.stat(source)
        if stat.S_ISREG(there.st_mode) and (there.st_dev, there.st_ino) == (own.st_dev, own.st_ino):
            return True
        if error.errno == errno.EEXIST:
            return False
        raise


def _copy_new(source: Path, target: Path) -> bool:
    """The same without hard links, by a copy that is renamed where nothing has the name.

    Where the disk cannot do that either, the name is taken by an empty file and the copy then replaces it. A process
    that is killed in between leaves the empty file, which counts as damaged: ``registry verify`` names it.
    """
    copy = source.with_name(f"{source.name}.copy")
    shutil.copy(source, copy)
    safe_io.sync(copy)
    try:
        return rename_new(copy, target)
    except OSError as error:
        if error.errno not in NO_EXCLUSIVE_RENAME:
            raise
    try:
        os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC))
    except FileExistsError:
        copy.unlink()
        return False
    try:
        os.replace(copy, target)
    except OSError:
        target.unlink()
        raise
    return True


def rename_new(source: Path, target: Path) -> bool:
    """Give ``source`` another name that must not exist yet, whole and at once; False when somebody else has it.

    OSError with one of ``NO_EXCLUSIVE_RENAME`` where the system (only Linux has it) or the file system cannot do this.
    """
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), str(target)) from None
    here = -100  # AT_FDCWD: paths are as they are everywhere else
    if renameat2(here, os.fsencode(source), here, os.fsencode(target), RENAME_NOREPLACE) == 0:
        return True
    code = ctypes.get_errno()
    if code == errno.EEXIST:
        return not source.exists()  # then it was this call that gave the name, and its answer was lost on the way
    raise OSError(code, os.strerror(code), str(target))


@contextlib.contextmanager
def storage_errors(action: str) -> Iterator[None]:
    """Turn a failing disk into one line."""
    try:
        yield
    except OSError as error:
        raise RegistryError(f"{action} failed: {error}", "check free space, quota and permissions") from error
