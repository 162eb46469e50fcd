"""The overview of all models: a fold over metadata and events, kept in ``registry.json`` to be quick.

``registry.json`` may be deleted, stale or damaged at any time. Every reader lists the folders and reads what the
snapshot lacks; the snapshot only saves reading again what cannot change.
"""

import dataclasses
import logging
from dataclasses import dataclass, field
from typing import Any

from trade_agent import safe_io
from trade_agent.errors import RegistryError
from trade_agent.registry.layout import Layout, names
from trade_agent.registry.metadata import ModelMetadata, Objective
from trade_agent.registry.naming import MODEL_TYPES, metadata_file
from trade_agent.registry.versions import Version

log = logging.getLogger(__name__)
FORMAT = 1
LARGE = 1000
ACTIVE, ARCHIVED = "active", "archived"


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelRecord:
    """The lean view of a model that listings show. ``file`` is relative to the registry's folder."""

    id: str
    type: str
    version: str
    grade: str
    state: str
    created: str
    objective: Objective
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


@dataclass(slots=True)
class View:
    """All models by id; aliases as ``type@alias`` -> id; tombstones as ``type@version``."""

    records: dict[str, ModelRecord] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    abandoned: set[str] = field(default_factory=set)
    last_event: int = 0

    def to_bytes(self) -> bytes:
        """One line a model, sorted: equal views give equal bytes."""

        def line(value: Any) -> str:
            return safe_io.canonical_json(value, indent=None).decode().rstrip("\n")

        models = [f"    {line(key)}: {line(self.records[key].to_dict())}" for key in sorted(self.records)]
        head = [f'  "abandoned": {line(sorted(self.abandoned))},', f'  "aliases": {line(self.aliases)},']
        head += [f'  "format": {FORMAT},', f'  "last_event": {self.last_event},', '  "models": {']
        text = "\n".join(head) + "\n" + ",\n".join(models) + "\n  }"
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
            return cls(records, value["aliases"], set(value["abandoned"]), value["last_event"])
        except (KeyError, TypeError) as error:  # the checksum fits, so another program wrote it
            raise RegistryError(
                f"{name} is not a registry snapshot: {error!r}", "trade-agent registry rebuild"
            ) from error


def record_of(metadata: ModelMetadata, *, metadata_sha256: str, state: str) -> ModelRecord:
    """The lean view of one model."""
    model_file = f"{metadata.model_id}.pth"
    folder = metadata.model_type if state == ACTIVE else f"archived/{metadata.model_type}"
    return ModelRecord(
        id=metadata.model_id,
        type=metadata.model_type,
        version=metadata.version,
        grade=metadata.grade,
        state=state,
        created=metadata.created,
        objective=metadata.objective,
        parents=[parent.id for parent in metadata.parents],
        file=f"{folder}/{model_file}",
        file_sha256=metadata.files[model_file].sha256,
        weights_sha256=metadata.weights_sha256,
        metadata_sha256=metadata_sha256,
    )


def read_metadata(layout: Layout, model_type: str, version: Version, *, archived: bool) -> tuple[Any, bytes]:
    """Return a version's metadata and its bytes; None instead of metadata for a tombstone.

    RegistryError when the file is damaged, or describes another model than its name says.
    """
    path = layout.folder(model_type, archived=archived) / metadata_file(version)
    data = safe_io.read_bytes(path, max_bytes=safe_io.MAX_JSON_BYTES)
    value = safe_io.parse_json(data, name=str(path))
    if isinstance(value, dict) and value.get("state") == "abandoned":
        return None, data
    metadata = ModelMetadata.from_dict(value, name=str(path))
    if (metadata.model_type, metadata.version) != (model_type, str(version)):
        raise RegistryError(
            f"{path} describes {metadata.model_id}, so two files were swapped or renamed", "give it back its own name"
        )
    if f"{metadata.model_id}.pth" not in metadata.files or data != metadata.to_json():
        raise RegistryError(f"{path} was not written by the registry", "restore it from a backup")
    return metadata, data


def read_snapshot(layout: Layout) -> View:
    """Read ``registry.json``; an empty view where it is missing or damaged, for it can be computed again."""
    try:
        data = safe_io.read_bytes(layout.snapshot, max_bytes=safe_io.MAX_JSON_BYTES)
        return View.from_bytes(data, name=str(layout.snapshot))
    except RegistryError:
        return View()


def read_view(layout: Layout, base: View | None = None) -> View:
    """The present state: ``base`` (the snapshot where None) with what is newer, without what is gone.

    A damaged metadata file is left out with a warning in the log; ``registry verify`` explains it.
    """
    base = read_snapshot(layout) if base is None else base
    known = {(record.type, record.version, record.state): record for record in base.records.values()}
    view = View(aliases=dict(base.aliases), last_event=base.last_event)
    for model_type in MODEL_TYPES:
        for state in (ARCHIVED, ACTIVE):  # a model found in both, in the middle of a restore, is active
            for version in layout.versions(model_type, archived=state == ARCHIVED):
                if (model_type, str(version), state) in known:
                    record = known[model_type, str(version), state]
                elif f"{model_type}@{version}" in base.abandoned:
                    view.abandoned.add(f"{model_type}@{version}")
                    continue
                else:
                    try:
                        metadata, data = read_metadata(layout, model_type, version, archived=state == ARCHIVED)
                    except RegistryError as error:
                        log.warning("left out of the list: %s", error)
                        continue
                    if metadata is None:
                        view.abandoned.add(f"{model_type}@{version}")
                        continue
                    record = record_of(metadata, metadata_sha256=safe_io.sha256_bytes(data), state=state)
                view.records[record.id] = record
    for number in event_numbers(layout):
        if number > view.last_event:
            apply_event(view, read_event(layout, number))
            view.last_event = number
    return view


def event_numbers(layout: Layout) -> list[int]:
    """Numbers of the stored events, ascending."""
    return [int(name[:-5]) for name in names(layout.events) if len(name) == 13 and name[:8].isdigit()]


def read_event(layout: Layout, number: int) -> dict[str, Any]:
    """Read one state change; RegistryError when it is damaged."""
    path = layout.events / f"{number:08d}.json"
    event = safe_io.read_json(path)
    texts = ("type", "model_type", "alias", "model_id", "created")
    if not isinstance(event, dict) or any(type(event.get(key)) is not str for key in texts) or event["type"] != "alias":
        raise RegistryError(f"{path} is not a known event", "use a newer trade_agent, or restore it from a backup")
    return event


def apply_event(view: View, event: dict[str, Any]) -> None:
    """Fold one event into the view; an empty ``model_id`` takes an alias away."""
    key = f"{event['model_type']}@{event['alias']}"
    if event["model_id"]:
        view.aliases[key] = event["model_id"]
    else:
        view.aliases.pop(key, None)


def refresh(layout: Layout, *, rebuild: bool = False) -> View:
    """Write ``registry.json`` anew, from metadata and events alone when ``rebuild``, and return what it shows.

    No lock: whoever writes last looks again afterwards, so the last file written lacks nothing. A large snapshot that
    lacks little is left as it is, since every reader adds what it lacks.
    """
    base = View() if rebuild else read_snapshot(layout)
    view = read_view(layout, base)
    if len(base.records) >= LARGE and len(view.records) - len(base.records) < LARGE // 5:
        return view
    while True:
        safe_io.write_bytes(layout.snapshot, view.to_bytes(), durable=layout.durable)
        before, view = view, read_view(layout, view)
        if view == before:
            return view
