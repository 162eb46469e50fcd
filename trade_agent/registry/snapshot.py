"""The overview of all models: a fold over metadata and events, kept in ``registry.json`` to be quick.

``registry.json`` may be deleted, stale or damaged at any time. Every reader lists the folders and reads what the
snapshot lacks; the snapshot only saves reading again what cannot change.
"""

import dataclasses
import logging
import time
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from trade_agent import safe_io
from trade_agent.errors import RegistryError
from trade_agent.registry.events import event_numbers, event_sha256, read_event
from trade_agent.registry.layout import Layout
from trade_agent.registry.metadata import ModelMetadata, Objective
from trade_agent.registry.naming import MODEL_ID, MODEL_TYPES, file_names, metadata_file
from trade_agent.registry.versions import Version

log = logging.getLogger(__name__)
FORMAT = 4
REFRESH_SECONDS, REFRESH_CHANGES = 5.0, 200
ACTIVE, ARCHIVED, PURGED = "active", "archived", "purged"
TOMBSTONE = safe_io.canonical_json({"state": "abandoned"})  # where the metadata of a number that was given up would be


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelRecord:
    """The lean view of a model that listings show.

    ``state`` is active, archived or purged (nothing but its metadata is left), ``grade`` the present one. ``file`` is
    relative to the registry's folder and follows the metadata, which a move may not have reached yet.
    """

    id: str
    type: str
    version: str
    grade: str
    state: str
    created: str
    objective: Objective
    study: str
    parents: list[str]
    file: str
    file_sha256: str
    weights_sha256: str
    metadata_sha256: str

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values."""
        fields = {name: getattr(self, name) for name in self.__slots__}
        return fields | {"objective": dataclasses.asdict(self.objective)}

    @property
    def number(self) -> Version:
        """The version, comparable."""
        return Version.parse(self.version)

    @property
    def moved(self) -> bool:
        """Whether the metadata lies under ``archived/``."""
        return self.file.startswith("archived/")


@dataclass(slots=True)
class View:
    """All models by id, tombstones as ``type@version``, and what the events up to ``last_event`` made of them, which
    has the digest ``last_event_sha256``.

    ``aliases`` maps ``type@alias`` to an id. ``states`` and ``since`` (ISO time) have the models that were ever
    archived, ``grades`` those that were graded again. ``damaged`` are the numbers of events that cannot be read: they
    hide no model, but nothing can be changed before they are back. ``unreadable`` are metadata files likewise: nobody
    knows what those models were built on.
    """

    records: dict[str, ModelRecord] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    states: dict[str, str] = field(default_factory=dict)
    since: dict[str, str] = field(default_factory=dict)
    grades: dict[str, str] = field(default_factory=dict)
    abandoned: set[str] = field(default_factory=set)
    last_event: int = 0
    last_event_sha256: str = ""
    damaged: list[int] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)

    def to_bytes(self) -> bytes:
        """One line a model, sorted: equal views give equal bytes."""

        def line(value: Any) -> str:
            return safe_io.canonical_json(value, indent=None).decode().rstrip("\n")

        models = [f"    {line(key)}: {line(self.records[key].to_dict())}" for key in sorted(self.records)]
        head = {"abandoned": sorted(self.abandoned), "aliases": self.aliases, "format": FORMAT, "grades": self.grades}
        head |= {"last_event": self.last_event, "last_event_sha256": self.last_event_sha256}
        head |= {"since": self.since, "states": self.states}
        lines = [f'  "{key}": {line(value)},' for key, value in head.items()] + ['  "models": {']
        text = "\n".join(lines) + "\n" + ",\n".join(models) + "\n  }"
        # A damaged snapshot must be recognised as such, or it would be believed.
        return f'{{\n{text},\n  "sha256": "{safe_io.sha256_bytes(text.encode())}"\n}}\n'.encode()

    @classmethod
    def from_bytes(cls, data: bytes, *, name: str) -> "View":
        """Read ``to_bytes``; RegistryError for anything else."""
        text, _, digest = data.decode(errors="replace").partition(',\n  "sha256": ')
        if digest != f'"{safe_io.sha256_bytes(text[2:].encode())}"\n}}\n':
            raise RegistryError(f"{name} is damaged: its checksum does not fit", "trade-agent registry rebuild")
        value = safe_io.parse_json(f"{text}}}".encode(), name=name)
        try:
            if value["format"] != FORMAT:
                raise RegistryError(f"{name} has the format {value['format']}, not {FORMAT}", "use a newer trade_agent")
            records = {
                key: ModelRecord(**(fields | {"objective": Objective(**fields["objective"])}))
                for key, fields in value["models"].items()
            }
            return cls(
                records=records,
                aliases=value["aliases"],
                states=value["states"],
                since=value["since"],
                grades=value["grades"],
                abandoned=set(value["abandoned"]),
                last_event=value["last_event"],
                last_event_sha256=value["last_event_sha256"],
            )
        except (KeyError, TypeError) as error:  # the checksum fits, so another program wrote it
            raise RegistryError(
                f"{name} is not a registry snapshot: {error!r}", "trade-agent registry rebuild"
            ) from error


def record_of(metadata: ModelMetadata, *, metadata_sha256: str, archived: bool) -> ModelRecord:
    """The lean view of one model as it was born, in the folder where its metadata was found."""
    model_file = f"{metadata.model_id}.pth"
    folder = f"archived/{metadata.model_type}" if archived else metadata.model_type
    return ModelRecord(
        id=metadata.model_id,
        type=metadata.model_type,
        version=metadata.version,
        grade=metadata.grade,
        state=ARCHIVED if archived else ACTIVE,
        created=metadata.created,
        objective=metadata.objective,
        study=metadata.study,
        parents=[parent.id for parent in metadata.parents],
        file=f"{folder}/{model_file}",
        file_sha256=metadata.files[model_file].sha256,
        weights_sha256=metadata.weights_sha256,
        metadata_sha256=metadata_sha256,
    )


def read_metadata(layout: Layout, model_type: str, version: Version) -> tuple[Any, bytes]:
    """Return a version's metadata, active or archived, and its bytes; None instead of metadata for a tombstone.

    RegistryError when the file is damaged, or describes another model than its name says.
    """
    path, data = layout.read(model_type, metadata_file(version), max_bytes=safe_io.MAX_JSON_BYTES)
    return parse_metadata(path, data, model_type, version), data


def parse_metadata(path: Path, data: bytes, model_type: str, version: Version) -> Any:
    """What ``read_metadata`` returns for the content of one file."""
    if data == TOMBSTONE:
        return None
    metadata = ModelMetadata.from_json(data, name=str(path))
    if (metadata.model_type, metadata.version) != (model_type, str(version)):
        raise RegistryError(
            f"{path} describes {metadata.model_id}, so two files were swapped or renamed", "give it back its own name"
        )
    # Its names become paths: one that was forged must not lead out of the folder.
    names = set(file_names(metadata.model_id, metadata.version).values())
    match = MODEL_ID.fullmatch(metadata.model_id)
    if not match or (match["type"], match["version"]) != (model_type, str(version)) or metadata.files.keys() != names:
        raise RegistryError(f"{path} was not written by the registry", "restore it from a backup")
    return metadata


def read_snapshot(layout: Layout) -> View:
    """Read ``registry.json``; an empty view where it is missing or damaged, for it can be computed again."""
    try:
        data = safe_io.read_bytes(layout.snapshot, max_bytes=safe_io.MAX_JSON_BYTES)
        return View.from_bytes(data, name=str(layout.snapshot))
    except RegistryError:
        return View()


def read_view(layout: Layout, base: View | None = None, *, until: int | None = None) -> View:
    """The present state: ``base`` (what was seen last where None, or the snapshot) with what is newer, without what is
    gone.

    ``until`` leaves out later events; the base must not hold them. A damaged file is left out with a warning in the
    log; ``registry verify`` explains it.
    """
    if base is None:
        base = layout.known or read_snapshot(layout)
    if not holds_events(layout, base):
        base = View()  # an event was moved away by hand, and what it did with it
    known = {(record.type, metadata_file(record.version), record.moved): record for record in base.records.values()}
    view = View(
        aliases=dict(base.aliases),
        states=dict(base.states),
        since=dict(base.since),
        grades=dict(base.grades),
        last_event=base.last_event,
        last_event_sha256=base.last_event_sha256,
    )
    for model_type in MODEL_TYPES:
        for name, archived in _found(layout, model_type).items():
            record = known.get((model_type, name, archived))
            if record is None:
                version = name.removeprefix("metadata_v").removesuffix(".json")
                if f"{model_type}@{version}" in base.abandoned:
                    view.abandoned.add(f"{model_type}@{version}")
                    continue
                try:
                    record = _read_record(layout, model_type, Version.parse(version), archived=archived)
                except RegistryError as error:
                    _warn_once(f"left out of the list: {error}")
                    view.unreadable.append(f"{layout.folder(model_type, archived=archived) / name}")
                    continue
                if record is None:
                    view.abandoned.add(f"{model_type}@{version}")
                    continue
            view.records[record.id] = record
    for number in event_numbers(layout):
        if view.last_event < number and (until is None or number <= until):
            try:
                apply_event(view, read_event(layout, number))
            except RegistryError as error:
                _warn_once(f"left out: {error}")
                view.damaged.append(number)
            view.last_event = number
    if view.last_event != base.last_event:
        view.last_event_sha256 = event_sha256(layout, view.last_event)
    for key, record in view.records.items():
        # Moved by hand, without an event: archived. In a past state the files of today say nothing.
        state = view.states.get(key, ARCHIVED if record.moved and until is None else ACTIVE)
        if view.damaged and until is None and state == ARCHIVED and not record.moved:
            state = ACTIVE  # what cannot be read may have restored it
        grade = view.grades.get(key, record.grade)
        if (state, grade) != (record.state, record.grade):
            view.records[key] = dataclasses.replace(record, state=state, grade=grade)
    if until is None and not view.damaged:  # a damaged event may come back
        layout.known = view
    return view


@cache
def _warn_once(message: str) -> None:
    """A damaged file is met again by every view: once in the life of a process is enough."""
    log.warning("%s", message)


def holds_events(layout: Layout, view: View) -> bool:
    """Whether the last event that a view knows is still the one that it saw."""
    return not view.last_event or event_sha256(layout, view.last_event) == view.last_event_sha256


def _found(layout: Layout, model_type: str) -> dict[str, bool]:
    """Names of the metadata files of a type, and whether each lies under ``archived/``.

    Looking at the first folder twice, around the other, misses none that moves meanwhile.
    """
    found = dict.fromkeys(layout.metadata_files(model_type), False)
    if layout.folder(model_type, archived=True).is_dir():
        found |= dict.fromkeys(layout.metadata_files(model_type, archived=True), True)
        found |= {name: found.get(name, False) for name in layout.metadata_files(model_type)}
    return found


def _read_record(layout: Layout, model_type: str, version: Version, *, archived: bool) -> ModelRecord | None:
    """The record of a version, None for a tombstone."""
    metadata, data = read_metadata(layout, model_type, version)
    if metadata is None:
        return None
    return record_of(metadata, metadata_sha256=safe_io.sha256_bytes(data), archived=archived)


def apply_event(view: View, event: dict[str, Any]) -> None:
    """Fold one event into the view. What the events before it rule out has no effect: an alias of a model that is not
    active, the archiving of one that has an alias, the purge of one that is not archived, a restore after a purge."""
    identifier, kind = event["model_id"], event["type"]
    state = view.states.get(identifier, ACTIVE)
    if kind == "alias":
        key = f"{event['model_type']}@{event['alias']}"
        if not identifier:
            view.aliases.pop(key, None)
        elif state == ACTIVE:
            view.aliases[key] = identifier
    elif kind == "grade":
        view.grades[identifier] = event["grade"]
    elif (
        (kind == "archive" and state == ACTIVE and identifier not in view.aliases.values())
        or (kind == "restore" and state != PURGED)
        or (kind == "purge" and state == ARCHIVED)
    ):
        view.states[identifier] = {"archive": ARCHIVED, "restore": ACTIVE, "purge": PURGED}[kind]
        view.since[identifier] = event["created"]


def refresh(layout: Layout, *, at_once: bool = False) -> None:
    """After a change: write ``registry.json`` where it is old or lacks much, since each reader adds what it lacks.

    ``at_once``: in any case, as after a state change: an event that is lost later is then missed.

    No lock: of two that write at once, either leaves a file that lacks a little at most. Not where an event is damaged,
    which may come back. A failing disk is logged: the change itself is made.
    """
    layout.unlisted += 1
    try:
        if at_once or layout.unlisted >= REFRESH_CHANGES or _is_old(layout):
            view = read_view(layout)
            if not view.damaged:
                write_snapshot(layout, view)
    except OSError as error:
        log.warning("%s could not be refreshed: %s", layout.snapshot, error)


def write_snapshot(layout: Layout, view: View) -> None:
    """Replace ``registry.json``. Nobody waits for the disk: it can be computed again."""
    safe_io.write_bytes(layout.snapshot, view.to_bytes(), durable=False)
    layout.unlisted = 0


def _is_old(layout: Layout) -> bool:
    """Whether ``registry.json`` is missing, or was written more than REFRESH_SECONDS ago (or in the future)."""
    try:
        return abs(time.time() - layout.snapshot.stat().st_mtime) > REFRESH_SECONDS
    except FileNotFoundError:
        return True
