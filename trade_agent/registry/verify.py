"""Check a whole registry: is everything there, unchanged, and consistent?"""

import re
from dataclasses import dataclass, replace
from pathlib import Path

from trade_agent import safe_io
from trade_agent.errors import RegistryError
from trade_agent.registry.events import EVENT_FILE, event_file, event_numbers, read_event
from trade_agent.registry.garbage import left_overs
from trade_agent.registry.layout import Layout, names
from trade_agent.registry.metadata import ModelMetadata, check_config
from trade_agent.registry.naming import (
    CLAIM_FILE,
    COMMITTED_FILE,
    METADATA_FILE,
    MODEL_TYPES,
    data_file_version,
    file_names,
    metadata_file,
)
from trade_agent.registry.publish import is_tombstone, read_claim
from trade_agent.registry.signing import Signing, signature_file
from trade_agent.registry.snapshot import ACTIVE, PURGED, View, apply_event, parse_metadata, read_view, record_of
from trade_agent.registry.versions import Version

ERROR, NOTE = "error", "note"
REPAIR = "trade-agent registry repair finishes it"


@dataclass(frozen=True, slots=True)
class Finding:
    """``severity`` error: a model or record is wrong or missing. note: a left-over without consequence."""

    severity: str
    kind: str
    path: str
    message: str


@dataclass(frozen=True, slots=True)
class _Model:
    metadata: ModelMetadata
    metadata_sha256: str


class _Check:
    """Collects findings; ``damaged`` are the ids of models with an error."""

    def __init__(self, root: Path, *, deep: bool, signing: Signing) -> None:
        self.layout = Layout(root, durable=False)
        self.deep = deep
        self.signing = signing
        self.findings: list[Finding] = []
        self.models: dict[str, _Model] = {}
        self.view = View()  # from metadata and events alone
        self.damaged: set[str] = set()

    def add(self, severity: str, kind: str, path: Path, message: str) -> None:
        try:
            shown = path.relative_to(self.layout.root)
        except ValueError:
            shown = path
        self.findings.append(Finding(severity, kind, str(shown), message))


def verify(root: Path | str, *, deep: bool = False, signing: Signing | None = None) -> list[Finding]:
    """Return what is wrong under ``root``; an empty list, or one of notes only, means that all is well.

    Checks every digest and size, missing and unknown files, names against content, claims against metadata, parents
    recursively, events without gaps, aliases, and ``registry.json`` against what metadata and events say. ``deep`` also
    loads every file through the gate and recomputes the weights' digest; ``signing`` also checks signatures. Nothing is
    changed. Raises RegistryError where signatures are to be checked and there is no trusted key.

    Others may be writing meanwhile, and what they have half done can look wrong for a moment: what is found is looked
    for a second time, and only what was found both times is returned.
    """
    signing = signing or Signing()
    signing.check(Path(root).absolute())
    found = _look(Path(root), deep=deep, signing=signing)
    if not found:
        return []
    again = _look(Path(root), deep=deep, signing=signing)
    return [finding for finding in again if finding in found]


def _look(root: Path, *, deep: bool, signing: Signing) -> list[Finding]:
    """Look at everything once, in an order in which what is written meanwhile is seen later than what it rests on."""
    check = _Check(root, deep=deep, signing=signing)
    try:
        check.layout.check_format()
    except RegistryError as error:
        check.add(ERROR, "format", check.layout.format, str(error))
    stored = _stored_snapshot(check)
    try:
        check.view = read_view(check.layout, View())
    except (RegistryError, OSError) as error:
        check.add(ERROR, "folder", check.layout.root, str(error))
        return check.findings
    for model_type in MODEL_TYPES:
        try:
            _check_models(check, model_type)
        except (RegistryError, OSError) as error:
            check.add(ERROR, "folder", check.layout.root / model_type, str(error))
    _check_preprocessors(check)
    _check_parents(check)
    _check_events(check)
    _check_aliases(check)
    if stored is not None:
        _check_snapshot(check, stored)
    _check_others(check)
    return check.findings


def is_clean(findings: list[Finding]) -> bool:
    """Whether there is no error among the findings."""
    return all(finding.severity != ERROR for finding in findings)


def _check_models(check: _Check, model_type: str) -> None:
    """The files of one type, in both of its folders, and its claims.

    A writer makes a claim, then the data files, then metadata. Names are therefore listed before metadata, and both
    before the claims: a model that is registered meanwhile is never taken for a stranger, nor its claim for missing.
    """
    layout = check.layout
    folders = [layout.folder(model_type, archived=archived) for archived in (False, True)]
    listed = [folder / name for folder in folders for name in names(folder) if name != ".claims"]
    # Looking at the first folder twice, around the other, misses none that moves meanwhile.
    versions = {version for away in (False, True, False) for version in layout.versions(model_type, archived=away)}
    homes: dict[Version, Path] = {}
    models: dict[Version, ModelMetadata] = {}
    for version in sorted(versions):
        homes[version], metadata = _check_model(check, model_type, version)
        if metadata is not None:
            models[version] = metadata
    claimed = _check_claims(check, model_type, versions, models)
    for path in listed:
        version_found = data_file_version(path.name)
        model = models.get(version_found) if version_found else None
        if version_found in homes:
            own = {metadata_file(version_found), signature_file(version_found), *model.files} if model else {path.name}
            if path.name not in own:
                check.add(ERROR, "unknown", path, "no model has this file")
            elif path.parent != homes[version_found]:
                check.add(NOTE, "unfinished", path, f"a move was cut off; {REPAIR}")
        elif path.parent == folders[0] and version_found in claimed:
            check.add(NOTE, "unfinished", path, "belongs to a registration that is under way or was not completed")
        else:
            check.add(ERROR, "unknown", path, "no model has this file")


def _check_model(check: _Check, model_type: str, version: Version) -> tuple[Path, ModelMetadata | None]:
    """The folder of a version's metadata, and what it says: None for a tombstone, or when it is damaged."""
    name = metadata_file(version)
    try:
        path, data = check.layout.read(model_type, name, max_bytes=safe_io.MAX_JSON_BYTES)
        metadata: ModelMetadata | None = parse_metadata(path, data, model_type, version)
    except RegistryError as error:
        path = check.layout.locate(model_type, name)
        check.add(ERROR, "metadata", path, str(error))
        return path.parent, None
    if metadata is None:
        return path.parent, None
    digest = safe_io.sha256_bytes(data)
    check.models[metadata.model_id] = _Model(metadata, digest)
    _check_state(check, metadata, path)
    signature = check.layout.locate(model_type, signature_file(version))
    try:
        check.signing.verify(signature.parent, version, digest)
    except RegistryError as error:
        check.damaged.add(metadata.model_id)
        check.add(ERROR, "signature", path.with_name(signature.name), f"{metadata.model_id}: {error}")
    return path.parent, metadata


def _check_state(check: _Check, metadata: ModelMetadata, path: Path) -> None:
    """The files where the state says, all of them there, or none but the metadata of a purged model."""
    record = check.view.records.get(metadata.model_id)
    if record is None or record.state != PURGED:
        _check_files(check, metadata, path.parent)
    elif any(check.layout.locate(metadata.model_type, name).exists() for name in metadata.files):
        check.add(NOTE, "unfinished", path, f"{record.id} was purged, but has files left: purge it again")
    archived = path.parent == check.layout.folder(metadata.model_type, archived=True)
    if record is not None and archived != (record.state != ACTIVE):
        check.add(NOTE, "unfinished", path, f"{record.id} is {record.state}, its files did not follow; {REPAIR}")


def _check_files(check: _Check, metadata: ModelMetadata, folder: Path) -> None:
    for role, name in file_names(metadata.model_id, metadata.version).items():
        expected = metadata.files[name]
        try:
            path, data = check.layout.read(metadata.model_type, name)
            digest = safe_io.sha256_bytes(data)
            if digest != expected.sha256:
                raise RegistryError(
                    f"altered: sha256 {digest} ({len(data)} bytes), recorded {expected.sha256} ({expected.size} bytes)"
                )
            if check.deep:
                _check_content(metadata, role, data, name)
        except RegistryError as error:
            check.damaged.add(metadata.model_id)
            path = check.layout.locate(metadata.model_type, name)
            path = path if path.exists() else folder / name
            check.add(ERROR, "file", path, f"{metadata.model_id}: {error}")


def _check_content(metadata: ModelMetadata, role: str, data: bytes, name: str) -> None:
    if role == "model":
        found = safe_io.weights_sha256(safe_io.load_tensors(data, name=name))
        if found != metadata.weights_sha256:
            raise RegistryError(f"weights {found}, recorded {metadata.weights_sha256}")
    elif role == "preprocessor":
        safe_io.load_arrays(data, name=name)
    elif role == "config":
        check_config(safe_io.parse_json(data, name=name), name=name)


def _check_claims(
    check: _Check, model_type: str, settled: set[Version], models: dict[Version, ModelMetadata]
) -> set[Version]:
    """The claims of a type against its models and ``settled``, the numbers that had metadata; returns those claimed."""
    claims = check.layout.claims(model_type)
    claimed: set[Version] = set()
    unnamed = dict(models)
    for name in names(claims):
        number = CLAIM_FILE.fullmatch(name)
        if number is None and not name.startswith("run-"):
            copied = COMMITTED_FILE.fullmatch(name)
            if copied is None or not (Version.parse(copied["version"]) in settled or (claims / name[:-5]).exists()):
                check.add(ERROR, "unknown", claims / name, "is not a claim")
            continue
        if number is not None:
            claimed.add(Version.parse(number["version"]))
        try:
            claim = read_claim(claims / name)
            version = Version.parse(claim["version"])
        except RegistryError as error:
            check.add(ERROR, "claim", claims / name, str(error))
            continue
        if number is None:
            unnamed.pop(version, None)
        metadata = models.get(version)
        promised = (claim["contract_hash"], claim["recipe_hash"], claim["run_id"])
        if metadata and promised != (metadata.contract_hash, metadata.recipe_hash, metadata.run_id):
            check.add(ERROR, "claim", claims / name, f"does not fit {metadata.model_id}")
        named = f"v{claim['version']}" if number else f"run-{claim['run_id']}"
        if name != named and not re.fullmatch(re.escape(named) + r"~\d+", name):
            check.add(ERROR, "claim", claims / name, f"was made for {named}")
    for version in sorted(settled - claimed):
        check.add(ERROR, "claim", claims / f"v{version}", f"missing: the number is in use without a claim; {REPAIR}")
    for version in sorted(claimed - settled):
        committed = check.layout.committed(model_type, version).exists()  # asked first: it comes after the metadata
        path = check.layout.locate(model_type, metadata_file(version))
        if committed and not path.exists():
            check.add(ERROR, "missing", path, "was registered, and is gone: trade-agent registry repair brings it back")
        if committed:
            continue
        reason = f"no {metadata_file(version)}: a registration that is under way or was not completed"
        check.add(NOTE, "unfinished", claims / f"v{version}", reason)
    for version, metadata in models.items():
        _check_copy(check, check.layout.committed(model_type, version), check.models[metadata.model_id])
    for metadata in unnamed.values():
        reason = f"missing or damaged: the run would register {metadata.model_id} a second time; {REPAIR}"
        check.add(ERROR, "claim", claims / f"run-{metadata.run_id}", reason)
    return claimed


def _check_copy(check: _Check, path: Path, model: _Model) -> None:
    """The copy of a model's metadata, from which a lost one comes back."""
    if not path.exists():
        check.add(NOTE, "claim", path, f"missing: the second copy of the metadata; {REPAIR}")
        return
    try:
        digest = safe_io.sha256_bytes(safe_io.read_bytes(path, max_bytes=safe_io.MAX_JSON_BYTES))
        if digest != model.metadata_sha256:
            raise RegistryError("altered: it is not the metadata of the model any more")
    except RegistryError as error:
        check.add(ERROR, "claim", path, str(error))


def _check_preprocessors(check: _Check) -> None:
    """The store of pipelines, as ``training.preprocessor_manager`` writes it; its cache may be deleted at any time."""
    folder = check.layout.root / "preprocessors"
    known = {"cache"}
    listed = names(folder)
    for name in listed:
        match = METADATA_FILE.fullmatch(name)
        if match is None:
            continue
        data_file = folder / f"preprocessor_v{match['version']}.pkl"
        known |= {name, data_file.name}
        try:
            if is_tombstone(folder / name):
                known.remove(data_file.name)
                continue
            recorded = safe_io.read_checked_json(folder / name).get("sha256")
        except RegistryError as error:
            check.add(ERROR, "preprocessor", folder / name, str(error))
            continue
        try:
            data = safe_io.read_bytes(data_file, max_bytes=safe_io.MAX_ARRAY_BYTES)
            digest = safe_io.sha256_bytes(data)
            if digest != recorded:
                raise RegistryError(f"altered: sha256 {digest} ({len(data)} bytes), recorded {recorded}")
            if check.deep:
                safe_io.load_arrays(data, name=data_file.name)
        except RegistryError as error:
            check.add(ERROR, "preprocessor", data_file, str(error))
    for name in listed:
        if name not in known:
            if data_file_version(name):
                reason = "has no metadata: left by a writer that died, or still at work; trade-agent registry gc"
                check.add(NOTE, "preprocessor", folder / name, reason)
            else:
                check.add(ERROR, "preprocessor", folder / name, "no pipeline has this file")


def _check_others(check: _Check) -> None:
    """Left-overs of writers, and what somebody else put between the folders of the registry."""
    layout, private = check.layout, left_overs(check.layout)
    for path in private:
        check.add(NOTE, "temporary", path, "left by a writer that died, or still at work; trade-agent registry gc")
    own = {
        layout.root: (*MODEL_TYPES, "archived", "preprocessors", "temp", ".registry", "registry.json", "README.md"),
        layout.root / "archived": MODEL_TYPES,
        layout.format.parent: ("events", "format.json"),
        layout.temp: (),
    }
    others = [folder / name for folder in own for name in names(folder) if name not in own[folder]]
    others += [layout.events / name for name in names(layout.events) if not EVENT_FILE.fullmatch(name)]
    for path in others:
        if path not in private:
            check.add(NOTE, "unknown", path, "was not put here by the registry, which leaves it alone")


def _check_parents(check: _Check) -> None:
    """Compare the pinned digests; then a model is tainted when one of its ancestors has an error."""
    for identifier, model in check.models.items():
        path = check.layout.root / model.metadata.model_type / metadata_file(model.metadata.version)
        for parent in model.metadata.parents:
            known = check.models.get(parent.id)
            states = {
                key: check.view.records[key].state for key in (identifier, parent.id) if key in check.view.records
            }
            if states.get(identifier) == ACTIVE and states.get(parent.id, ACTIVE) != ACTIVE:
                check.add(ERROR, "parent", path, f"{identifier} is active, its {parent.role} {parent.id} is not")
            if known is None:
                check.damaged.add(identifier)
                check.add(ERROR, "parent", path, f"{identifier}: its {parent.role} {parent.id} is missing")
            elif (parent.metadata_sha256, parent.weights_sha256) != (
                known.metadata_sha256,
                known.metadata.weights_sha256,
            ):
                check.damaged.add(identifier)
                check.add(ERROR, "parent", path, f"{identifier}: its {parent.role} {parent.id} was altered")
    remaining = dict(check.models)
    while True:
        tainted = {
            identifier: next(parent.id for parent in model.metadata.parents if parent.id in check.damaged)
            for identifier, model in remaining.items()
            if identifier not in check.damaged and any(p.id in check.damaged for p in model.metadata.parents)
        }
        if not tainted:
            return
        for identifier, ancestor in tainted.items():
            metadata = check.models[identifier].metadata
            path = check.layout.root / metadata.model_type / metadata_file(metadata.version)
            check.add(ERROR, "tainted", path, f"{identifier} was built on {ancestor}, which has errors")
            check.damaged.add(identifier)


def _check_events(check: _Check) -> None:
    numbers = event_numbers(check.layout)
    for number in sorted(set(range(1, max(numbers, default=0) + 1)) - set(numbers)):
        check.add(ERROR, "event", event_file(check.layout, number), "missing: the numbers have a gap")
    for number in numbers:
        try:
            read_event(check.layout, number)
        except RegistryError as error:
            check.add(ERROR, "event", event_file(check.layout, number), str(error))


def _check_aliases(check: _Check) -> None:
    for alias, identifier in check.view.aliases.items():
        record = check.view.records.get(identifier)
        # A model that got its name while the view was read is in ``models``, which were read after it.
        if identifier not in check.models or (record is not None and record.state != ACTIVE):
            check.add(ERROR, "alias", check.layout.events, f"{alias} means {identifier}, which is archived or gone")


def _stored_snapshot(check: _Check) -> View | None:
    """What ``registry.json`` holds. It is read before everything else, so that nothing it says is newer than that."""
    path = check.layout.snapshot
    try:
        if path.exists():  # it is derived and may be deleted
            return View.from_bytes(safe_io.read_bytes(path, max_bytes=safe_io.MAX_JSON_BYTES), name=str(path))
    except (RegistryError, OSError) as error:
        check.add(ERROR, "snapshot", path, str(error))
    return None


def _check_snapshot(check: _Check, stored: View) -> None:
    """What ``registry.json`` says, against the metadata and the events up to the last one it has seen."""
    path, rebuilt = check.layout.snapshot, check.view
    if rebuilt.damaged:
        return
    for key in sorted(stored.records.keys() - rebuilt.records.keys()):
        lost = stored.records[key]
        lost_path = (check.layout.root / lost.file).with_name(metadata_file(lost.version))
        check.add(ERROR, "missing", lost_path, f"{key} was registered, but its metadata is gone or damaged")
    if stored.last_event > rebuilt.last_event:
        check.add(ERROR, "event", event_file(check.layout, stored.last_event), f"missing: {path.name} has seen it")
        return
    then = View()
    for number in event_numbers(check.layout):
        if number <= stored.last_event:
            apply_event(then, read_event(check.layout, number))
    wrong = []
    for key, record in stored.records.items():
        if key in check.models:
            model = check.models[key]
            born = record_of(model.metadata, metadata_sha256=model.metadata_sha256, archived=record.moved)
            state, grade = then.states.get(key, born.state), then.grades.get(key, born.grade)
            if record != replace(born, state=state, grade=grade):
                wrong.append(key)
    made = [(view.aliases, view.states, view.since, view.grades) for view in (stored, then)]
    if wrong or made[0] != made[1] or not stored.abandoned <= rebuilt.abandoned:
        check.add(ERROR, "snapshot", path, f"does not show what is stored{': ' if wrong else ''}{', '.join(wrong[:3])}")
