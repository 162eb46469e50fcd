"""How a version comes into being, without a lock.

1. Model, preprocessor and configuration are written in a private folder on the same disk.
2. A number is claimed by linking a file to ``.claims/vX.Y.Z``: exactly one writer succeeds. The same claim is linked to
   ``.claims/run-<id>``, so that a job that is started again finds what it already registered.
3. The data files are linked to their final names.
4. ``metadata_vX.Y.Z.json`` is linked: this is the commit. Before it no reader sees anything, after it everything.

Readers go by metadata alone. A writer that dies leaves a claim and perhaps data files that nothing refers to. Somebody
who must not wait for such a writer ends its attempt by linking a tombstone at the commit path: if the writer still
lives, its own commit fails there. So every number has exactly one outcome, a model or a tombstone.
"""

import os
import re
import time
from pathlib import Path
from typing import Any

from trade_agent import safe_io
from trade_agent.errors import RegistryError
from trade_agent.registry.drafts import Draft
from trade_agent.registry.layout import Layout, host, link_new, names
from trade_agent.registry.metadata import ModelMetadata
from trade_agent.registry.naming import file_names, metadata_file, run_file
from trade_agent.registry.signing import signature_file
from trade_agent.registry.snapshot import TOMBSTONE, read_metadata
from trade_agent.registry.versions import NextVersion, Version, next_version

RUN_WAIT_SECONDS = 5.0
POLL_SECONDS = 0.02
RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.=,+-]{0,127}")


def publish(layout: Layout, draft: Draft) -> ModelMetadata:
    """Register a draft, or return what its run has registered before.

    Raises:
        RegistryError: the asked bump is too low, or another process gave this attempt up (it can simply be repeated).
        OSError: the disk failed; nothing became visible.
    """
    model_type, run_id = draft.metadata.model_type, draft.metadata.run_id
    if not RUN_ID.fullmatch(run_id):
        raise RegistryError(f"the run id {run_id!r} cannot be a file name", "use letters, digits, '_', '.', '-'")
    earlier, _ = registered_run(layout, model_type, run_id)
    if earlier is not None:
        layout.sync(layout.folder(model_type))  # the wait for the disk may be what failed the first time
        return earlier
    with layout.scratch() as scratch:
        for role, data in draft.files.items():
            layout.write_new(scratch / role, data, wait=False)
        following = _claim_number(layout, draft, scratch)
        earlier = _claim_run(layout, draft, scratch / "claim")
        if earlier is not None:
            return earlier
        compared = following.compared_with
        metadata = draft.numbered(following, find_metadata(layout, model_type, compared) if compared else None)
        if _commit(layout, draft, metadata, scratch):
            return metadata
    earlier, _ = registered_run(layout, model_type, run_id)
    if earlier is not None:
        return earlier
    raise RegistryError(
        f"registration of {model_type} {following.version} was fenced: another process declared it abandoned",
        "register again",
    )


def _claim_number(layout: Layout, draft: Draft, scratch: Path) -> NextVersion:
    """Claim the next free number; a lost race starts anew, because the winner may have the same contract."""
    model = draft.metadata
    claims = layout.claims(model.model_type)
    while True:
        following = next_version(
            _used(layout, model.model_type),
            lambda version: line_hashes(layout, model.model_type, version),
            contract_hash=model.contract_hash,
            recipe_hash=model.recipe_hash,
            at_least=draft.at_least,
        )
        claim = {
            "version": str(following.version),
            "contract_hash": model.contract_hash,
            "recipe_hash": model.recipe_hash,
            "run_id": model.run_id,
            "host": host(),
            "pid": os.getpid(),
        }
        path = scratch / "claim"
        path.unlink(missing_ok=True)
        layout.write_new(path, safe_io.checked_json(claim), wait=False)
        if link_new(path, claims / f"v{following.version}"):
            return following


def _used(layout: Layout, model_type: str) -> list[Version]:
    """The highest used number of each MAJOR.

    The folders are listed once. From what was seen then it is a walk: a number stays used forever, and each is the next
    patch, minor or major one of another, so those since are found by asking for them one by one.
    """
    claims, folders = layout.claims(model_type), [layout.folder(model_type, archived=a) for a in (False, True)]

    def used(version: Version) -> bool:
        places = [claims / f"v{version}", *(folder / metadata_file(version) for folder in folders)]
        return any(path.exists() for path in places)

    def walk(version: Version) -> Version:
        for level in ("minor", "patch"):
            while used(version.bumped(level)):
                version = version.bumped(level)
        return version

    seen = layout.numbers.get(model_type)
    if seen is None:
        seen = [*layout.claimed(model_type), *layout.versions(model_type), *layout.versions(model_type, archived=True)]
    tops = {version.major: version for version in sorted(seen)}
    tops = {major: walk(version) for major, version in tops.items()}
    following = Version(max(tops, default=0) + 1, 0, 0)
    while used(following):
        tops[following.major] = walk(following)
        following = following.bumped("major")
    layout.numbers[model_type] = list(tops.values())
    return layout.numbers[model_type]


def read_claim(path: Path) -> dict[str, Any]:
    """Read a claim; RegistryError when it is damaged."""
    remedy = "put it back from a backup, or move it away and have it made again: trade-agent registry repair"
    try:
        claim = safe_io.read_checked_json(path)
    except RegistryError as error:
        raise type(error)(error.message, remedy) from error
    expected = {"version": str, "contract_hash": str, "recipe_hash": str, "run_id": str, "host": str, "pid": int}
    if {key: type(value) for key, value in claim.items()} != expected:
        raise RegistryError(f"{path} is not a claim", remedy)
    return claim


def line_hashes(layout: Layout, model_type: str, version: Version) -> tuple[str, str] | None:
    """Contract and recipe hash of a used number, from its claim or else its metadata; None where both are damaged."""
    try:
        claim = read_claim(layout.claims(model_type) / f"v{version}")
        return claim["contract_hash"], claim["recipe_hash"]
    except RegistryError:
        metadata = find_metadata(layout, model_type, version)
        return (metadata.contract_hash, metadata.recipe_hash) if metadata else None


def find_metadata(layout: Layout, model_type: str, version: Version) -> ModelMetadata | None:
    """Metadata of an active or archived version; None where there is none that can be read."""
    try:
        metadata: ModelMetadata | None = read_metadata(layout, model_type, version)[0]
    except RegistryError:
        return None
    return metadata


def _commit(layout: Layout, draft: Draft, metadata: ModelMetadata, scratch: Path) -> bool:
    folder = layout.folder(draft.metadata.model_type)
    final = file_names(metadata.model_id, metadata.version)
    claims = layout.claims(draft.metadata.model_type)
    for role in draft.files:
        if not link_new(scratch / role, folder / final[role]):
            raise RegistryError(f"{folder / final[role]} exists, although its number was free", "move it away")
    layout.write_new(scratch / "metadata", metadata.to_json(), wait=False)
    if draft.sign is not None:  # before the commit: a model is never seen without its signature
        layout.write_new(scratch / "signature", draft.sign(metadata.to_json(), metadata.version), wait=False)
        if not link_new(scratch / "signature", folder / signature_file(metadata.version)):
            raise RegistryError(f"{folder / signature_file(metadata.version)} exists already", "move it away")
    # What the commit makes visible must be on the disk before it, the claim too: else a number could be given twice.
    layout.sync(*(scratch / name for name in names(scratch)), claims, folder)
    committed = link_new(scratch / "metadata", folder / metadata_file(metadata.version))
    if committed:  # whatever happens to the metadata later: this number is never taken for an abandoned one
        link_new(scratch / "metadata", layout.committed(metadata.model_type, Version.parse(metadata.version)))
    layout.sync(folder, claims)
    return committed


# ---------------------------------------------------------------- one version per run


def _claim_run(layout: Layout, draft: Draft, claim: Path) -> ModelMetadata | None:
    """Enter the run as registered by this claim; the metadata of another process that did so before."""
    while True:
        earlier, attempt = registered_run(layout, draft.metadata.model_type, draft.metadata.run_id)
        if earlier is not None:
            return earlier
        if link_new(claim, layout.claims(draft.metadata.model_type) / run_file(draft.metadata.run_id, attempt)):
            return None


def registered_run(layout: Layout, model_type: str, run_id: str) -> tuple[ModelMetadata | None, int]:
    """The model that a run registered, or None and the number of the next attempt.

    An attempt that is under way is waited for; one whose process is gone, or takes too long, is ended by a tombstone.
    """
    claims = layout.claims(model_type)
    attempt = 1
    while (claims / run_file(run_id, attempt)).exists():
        claim = read_claim(claims / run_file(run_id, attempt))
        metadata = _outcome(layout, model_type, Version.parse(claim["version"]), claim)
        if metadata is not None:
            return metadata, attempt
        attempt += 1
    return None, attempt


def _outcome(layout: Layout, model_type: str, version: Version, claim: dict[str, Any]) -> ModelMetadata | None:
    deadline = time.monotonic() + RUN_WAIT_SECONDS
    while True:
        if layout.locate(model_type, metadata_file(version)).exists():
            metadata: ModelMetadata | None = read_metadata(layout, model_type, version)[0]
            return metadata
        if layout.committed(model_type, version).exists():
            what = f"{layout.folder(model_type) / metadata_file(version)} was registered, and is gone"
            raise RegistryError(what, "trade-agent registry repair brings it back")
        if process_is_gone(claim["host"], claim["pid"]) or time.monotonic() > deadline:
            fence(layout, model_type, version)
        else:
            time.sleep(POLL_SECONDS)


def process_is_gone(where: str, pid: int) -> bool:
    """True only when the process is known to be gone; on another host nobody knows."""
    if where != host():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        pass
    return False


def is_tombstone(path: Path) -> bool:
    """Whether a metadata file closes its number without a model."""
    return safe_io.read_bytes(path, max_bytes=safe_io.MAX_JSON_BYTES) == TOMBSTONE


def fence(layout: Layout, model_type: str, version: Version) -> bool:
    """Commit a tombstone for a number whose writer is not waited for any more; False when it was decided before."""
    with layout.scratch() as scratch:
        layout.write_new(scratch / "tombstone", TOMBSTONE)
        fenced = link_new(scratch / "tombstone", layout.folder(model_type) / metadata_file(version))
    layout.sync(layout.folder(model_type))
    return fenced
