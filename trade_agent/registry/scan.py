"""Look at files from elsewhere without opening them: what is on the allow-list, and why the rest is not."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from trade_agent import safe_io
from trade_agent.errors import ConfigError, RegistryError, UnsafeFileError
from trade_agent.registry.metadata import check_config
from trade_agent.safe_io.checkpoints import read_checkpoint

PROGRAMS = frozenset(
    {".pt2", ".py", ".pyc", ".so", ".dll", ".sh", ".joblib", ".keras", ".h5"}  # formats that hold code by design
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """``kind`` is what the content shows, whatever the name says: checkpoint, arrays, json or unknown."""

    path: str
    kind: str
    safe: bool
    reason: str


def scan(path: Path | str, *, deep: bool = False) -> list[Verdict]:
    """Judge a file, or every file below a folder, in the order of their names. Nothing is executed or changed.

    Only checkpoints and arrays that the gate accepts, and JSON without code, are safe. ``deep`` asks picklescan too.
    Raises ConfigError where ``path`` is missing, or ``deep`` needs the extra ``trade-agent[scan]``.
    """
    path = Path(path)
    if not os.path.lexists(path):
        raise ConfigError(f"there is no {path}", "name a file or a folder")
    if deep:
        _require_picklescan()
    verdicts = [judge(file) for file in _files(path)]
    return [_second_opinion(verdict) for verdict in verdicts] if deep else verdicts


def judge(path: Path) -> Verdict:
    """The verdict of the allow-list about one file."""
    kind = "unknown"
    try:
        data = safe_io.read_bytes(path)
        if path.suffix.lower() in PROGRAMS:
            raise UnsafeFileError(f"{path.suffix} files hold code")
        if data[:2] == b"PK":
            kind = "checkpoint"
            read_checkpoint(data, str(path))
        elif data[:1] == b"\x80":
            kind = "arrays"
            safe_io.load_arrays(data, name=str(path))
        elif data.lstrip()[:1] in (b"{", b"["):
            kind = "json"
            check_config(safe_io.parse_json(data, name=str(path)), name=str(path))
        else:
            raise UnsafeFileError("is of no format that can be checked")
    except RegistryError as error:
        return Verdict(str(path), kind, False, error.message)
    return Verdict(str(path), kind, True, "plain data")


def _files(path: Path) -> Iterator[Path]:
    if path.is_symlink() or not path.is_dir():
        yield path
        return
    for folder, folders, names in os.walk(path):
        folders.sort()
        links = [name for name in folders if (Path(folder) / name).is_symlink()]  # os.walk does not follow them
        yield from (Path(folder) / name for name in sorted([*names, *links]))


def _require_picklescan() -> None:
    try:
        import picklescan  # noqa: F401
    except ImportError as error:
        raise ConfigError("a deep scan needs the package picklescan", "pip install 'trade-agent[scan]'") from error


def _second_opinion(verdict: Verdict) -> Verdict:
    """picklescan can only take safety away: its list is of known dangers."""
    from picklescan.scanner import scan_file_path

    if not verdict.safe or verdict.kind == "json":
        return verdict
    result = scan_file_path(verdict.path, strict=True)
    # The strict list of harmless names lacks names that sound checkpoints and array files use.
    own = {("torch._utils", "_rebuild_parameter"), ("torch", "Size"), ("numpy", "ndarray")}
    found = [f"{item.module}.{item.name}" for item in result.globals if item.safety.value != "innocuous"
             and (item.module, item.name) not in own]  # fmt: skip
    if found or result.scan_err:
        reason = f"picklescan objects to {', '.join(found)}" if found else "picklescan cannot read it"
        return Verdict(verdict.path, verdict.kind, False, reason)
    return verdict
