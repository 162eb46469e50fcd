"""What writers to ``preprocessors/`` left; ``training.preprocessor_manager`` says how it is written."""

import os
from pathlib import Path

from trade_agent.registry.layout import Layout, link_new, names
from trade_agent.registry.naming import data_file_version, metadata_file
from trade_agent.registry.publish import is_tombstone
from trade_agent.registry.snapshot import TOMBSTONE


def collect_pipelines(layout: Layout, *, before: float) -> list[Path]:
    """Remove pipelines without metadata that were written before a time (seconds since 1970); returns their paths.

    As with models a tombstone takes the place of the metadata first: a writer that wakes up after all is turned away.
    """
    folder = layout.root / "preprocessors"
    removed = []
    for name in names(folder):
        version = data_file_version(name)
        if version is None or name == metadata_file(version):
            continue
        path, commit = folder / name, folder / metadata_file(version)
        if not commit.exists() and os.stat(path, follow_symlinks=False).st_mtime <= before:
            with layout.scratch() as scratch:
                layout.write_new(scratch / "tombstone", TOMBSTONE)
                link_new(scratch / "tombstone", commit)
            layout.sync(folder)
        if commit.exists() and is_tombstone(commit):
            path.unlink(missing_ok=True)
            removed.append(path)
    return removed
