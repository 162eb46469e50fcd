"""Claims that are gone, as in a copy of the folder without the names that begin with a dot, made from metadata."""

from typing import Any

from trade_agent import safe_io
from trade_agent.errors import RegistryError
from trade_agent.registry.layout import Layout, link_new, names
from trade_agent.registry.metadata import ModelMetadata
from trade_agent.registry.naming import run_file
from trade_agent.registry.publish import find_metadata, read_claim
from trade_agent.registry.versions import Version


def link_missing_claims(layout: Layout, model_type: str) -> list[str]:
    """Claim the numbers that have metadata and no claim, and enter the runs of models that no claim names.

    Returns the paths of the new claims, relative to the registry's folder. Of a number that was closed by a tombstone,
    or whose metadata is damaged, only the number is known.
    """
    folder = layout.claims(model_type)
    settled = {version for archived in (False, True) for version in layout.versions(model_type, archived=archived)}
    claimed, entered = set(layout.claimed(model_type)), _entered(layout, model_type)
    linked = []
    for version in sorted(settled):
        metadata = find_metadata(layout, model_type, version)
        wanted = [f"v{version}"] if version not in claimed else []
        if metadata is not None and version not in entered:
            wanted.append(_free_name(layout, model_type, metadata.run_id))
        if wanted:
            layout.prepare()
            with layout.scratch() as scratch:
                layout.write_new(scratch / "claim", safe_io.checked_json(_claim(version, metadata)))
                linked += [folder / name for name in wanted if link_new(scratch / "claim", folder / name)]
            layout.sync(folder)
    return [str(path.relative_to(layout.root)) for path in linked]


def _claim(version: Version, metadata: ModelMetadata | None) -> dict[str, Any]:
    """As ``publish`` writes it; no process is waited for, since the number has its outcome."""
    known = {name: getattr(metadata, name, "") for name in ("contract_hash", "recipe_hash", "run_id")}
    return {"version": str(version), "host": "", "pid": 0, **known}


def _entered(layout: Layout, model_type: str) -> set[Version]:
    """The versions that a claim of a run names."""
    found = set()
    for name in names(layout.claims(model_type)):
        if name.startswith("run-"):
            try:
                found.add(Version.parse(read_claim(layout.claims(model_type) / name)["version"]))
            except RegistryError:  # damaged: verify names it
                continue
    return found


def _free_name(layout: Layout, model_type: str, run_id: str) -> str:
    attempt = 1
    while (layout.claims(model_type) / run_file(run_id, attempt)).exists():
        attempt += 1
    return run_file(run_id, attempt)
