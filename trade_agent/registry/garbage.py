"""What writers that died have left: numbers without a model, files that nothing refers to, private folders."""

import contextlib
import os
import re
import shutil
import time
from pathlib import Path

from trade_agent import safe_io
from trade_agent.errors import RegistryError
from trade_agent.registry.layout import Layout, host, link_new, names
from trade_agent.registry.naming import METADATA_FILE, MODEL_TYPES, data_file_version, metadata_file
from trade_agent.registry.pipelines import collect_pipelines
from trade_agent.registry.publish import fence, is_tombstone, process_is_gone, read_claim
from trade_agent.registry.snapshot import parse_metadata, read_metadata
from trade_agent.registry.versions import Version

_SCRATCH = re.compile(r"(?P<host>.+)-(?P<pid>\d+)-[0-9a-f]{12}")
_TEMPORARY = re.compile(r"\.(registry|format)\.json\.[0-9a-f]{32}")  # see safe_io.write_bytes


def collect(layout: Layout, *, older_than_hours: float) -> list[str]:
    """End what is abandoned, then remove its files; returns the numbers that were closed (``type@version``), and the
    paths of what was removed, relative to the registry's folder.

    A writer counts as gone when its process on this host is, or when its claim is older than ``older_than_hours``. Age
    alone deletes nothing: first a tombstone takes the place of the commit, at which a writer that wakes up after all
    is turned away.
    """
    ended = close_abandoned(layout, older_than_hours=older_than_hours)
    removed: list[Path] = []
    for model_type in MODEL_TYPES:
        folder = layout.folder(model_type)
        closed = {version for version in layout.versions(model_type) if is_tombstone(folder / metadata_file(version))}
        for name in names(folder):
            if data_file_version(name) in closed and not METADATA_FILE.fullmatch(name):
                (folder / name).unlink()
                removed.append(folder / name)
    removed += collect_pipelines(layout, before=time.time() - 3600 * older_than_hours)
    for path in left_overs(layout):
        try:
            if not _forgotten(path, older_than_hours):
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        except FileNotFoundError:  # its writer, or another collector, was quicker
            continue
        removed.append(path)
    return [*ended, *(str(path.relative_to(layout.root)) for path in removed)]


def close_abandoned(layout: Layout, *, older_than_hours: float) -> list[str]:
    """End registrations whose writers are gone by tombstones; returns them as ``type@version``."""
    closed = []
    for model_type in MODEL_TYPES:
        for version in layout.claimed(model_type):
            if layout.locate(model_type, metadata_file(version)).exists():
                continue
            if layout.committed(model_type, version).exists():  # a model that lost its metadata: verify names it
                continue
            if _abandoned(layout, model_type, version, older_than_hours) and fence(layout, model_type, version):
                closed.append(f"{model_type}@{version}")
    return closed


def left_overs(layout: Layout) -> list[Path]:
    """What writers keep for themselves while they work, and leave where they die."""
    hidden = [folder / name for folder in (layout.root, layout.format.parent) for name in names(folder)]
    private = [layout.temp / name for name in names(layout.temp) if _SCRATCH.fullmatch(name)]
    return [*private, *(path for path in hidden if _TEMPORARY.fullmatch(path.name))]


def bring_back(layout: Layout) -> list[str]:
    """Give models whose metadata is gone the copy that their claims hold; the claims, where they have none, theirs.

    Returns the first as ``type@version``. What is damaged is left alone.
    """
    back = []
    for model_type in MODEL_TYPES:
        for version in layout.claimed(model_type):
            copy, found = layout.committed(model_type, version), layout.locate(model_type, metadata_file(version))
            with contextlib.suppress(RegistryError):
                if found.exists() and not copy.exists() and read_metadata(layout, model_type, version)[0] is not None:
                    link_new(found, copy)
                elif copy.exists() and not found.exists():
                    content = safe_io.read_bytes(copy, max_bytes=safe_io.MAX_JSON_BYTES)
                    parse_metadata(copy, content, model_type, version)
                    if link_new(copy, layout.folder(model_type) / metadata_file(version)):
                        back.append(f"{model_type}@{version}")
        layout.sync(layout.claims(model_type), layout.folder(model_type))
    return back


def _abandoned(layout: Layout, model_type: str, version: Version, older_than_hours: float) -> bool:
    path = layout.claims(model_type) / f"v{version}"
    try:
        claim = read_claim(path)
        if process_is_gone(claim["host"], claim["pid"]):
            return True
    except RegistryError:  # damaged: only its age can tell
        pass
    return _hours_old(path) >= older_than_hours


def _forgotten(path: Path, older_than_hours: float) -> bool:
    """Whether nobody will come back to it; a writer on this host still can while its process is there."""
    match = _SCRATCH.fullmatch(path.name)
    if match is not None and match["host"] == host():
        return process_is_gone(match["host"], int(match["pid"]))
    return _hours_old(path) >= older_than_hours


def _hours_old(path: Path) -> float:
    return (time.time() - os.stat(path, follow_symlinks=False).st_mtime) / 3600
