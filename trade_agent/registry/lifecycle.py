"""Archive, restore and purge: a state change is decided by an event, and then the files follow.

A file is in its old place or in its new one at any moment, and readers look in both. The metadata goes first into the
archive and last out of it; whoever finds a move half done can finish it (``repair``). A model that others were built on
stays as long as they do. Where a child is registered while its parent is being archived, the child's writer looks at
the parents after its commit and the archiver at the children after its event: at least one of them sees the other, and
takes its own step back.
"""

import datetime
import math
import os
import time
from collections.abc import Iterable, Sequence
from graphlib import TopologicalSorter
from pathlib import Path

from trade_agent.errors import RegistryError
from trade_agent.registry.claims import link_missing_claims
from trade_agent.registry.events import GIVE_UP, append_event, close_gaps, event_file, missing_numbers, read_event
from trade_agent.registry.garbage import bring_back, close_abandoned
from trade_agent.registry.layout import Layout
from trade_agent.registry.metadata import ModelMetadata
from trade_agent.registry.naming import MODEL_TYPES, metadata_file
from trade_agent.registry.probe import network_file_system
from trade_agent.registry.publish import POLL_SECONDS, RUN_WAIT_SECONDS, find_metadata
from trade_agent.registry.signing import signature_file
from trade_agent.registry.snapshot import ACTIVE, ARCHIVED, PURGED, ModelRecord, View, holds_events, read_view, refresh

NETWORK_GRACE_SECONDS = 60.0  # longer than a network file system believes its own cache


def changeable_view(layout: Layout) -> View:
    """The present view. RegistryError where an event or the metadata of a model cannot be read or is missing: what they
    say must be known before anything changes."""
    view = read_view(layout)
    for number in missing_numbers(layout):
        what = f"{event_file(layout, number)} is missing, so nothing can be changed"
        raise RegistryError(what, "put it back from a backup, or give it up: trade-agent registry repair")
    for number in range(layout.sound_events + 1, view.last_event + 1):
        try:
            read_event(layout, number)
        except RegistryError as error:
            what = f"{event_file(layout, number)} is damaged, so nothing can be changed"
            raise RegistryError(what, GIVE_UP) from error
    layout.sound_events = view.last_event
    for path in view.unreadable:
        what = f"{path} is damaged, so nothing can be changed"
        raise RegistryError(what, "put it back from a backup, or move it away")
    return view


def archive(layout: Layout, wanted: Sequence[str], *, cascade: bool) -> list[str]:
    """Archive active models, children first; returns their ids. See ``ModelRegistry.archive``."""
    view = changeable_view(layout)
    chosen = with_relatives(view, wanted, cascade=cascade, down=True, states=(ACTIVE,))
    for identifier in chosen:
        if view.records[identifier].state == PURGED:
            raise RegistryError(f"{identifier} was purged: only its metadata is left", "there is nothing to archive")
    for alias, identifier in view.aliases.items():
        if identifier in chosen:
            raise RegistryError(f"{identifier} is {alias}", "set the alias to another model, or remove it, first")
    _archive_all(layout, [view.records[identifier] for identifier in chosen])
    return chosen


def _archive_all(layout: Layout, records: Sequence[ModelRecord]) -> None:
    """All events first, so that a network file system is waited for once; then the children are looked at."""
    for record in records:
        if record.state != ARCHIVED:  # or an earlier archiving was cut off: its files go now
            append_event(layout, "archive", record.id)
    if network_file_system(layout.root):
        time.sleep(NETWORK_GRACE_SECONDS)
    refused: list[RegistryError] = []
    view = changeable_view(layout)
    for record in records:
        late = relatives(view, record.id, down=True, states=(ACTIVE,))
        if not _is(view, record.id, ARCHIVED):
            what = f"{record.id} was restored or given an alias meanwhile"
            refused.append(RegistryError(what, "see trade-agent registry log"))
        elif late:
            append_event(layout, "restore", record.id)
            settle(layout, record, ACTIVE)
            view = changeable_view(layout)
            what = f"{late[0]} was built on {record.id} meanwhile"
            refused.append(RegistryError(what, "archive it first, or use --cascade"))
        else:
            settle(layout, record, ARCHIVED)
    refresh(layout, at_once=True)
    if refused:
        raise refused[0]


def restore(layout: Layout, wanted: Sequence[str], *, cascade: bool) -> list[str]:
    """Restore archived models, parents first; returns their ids. See ``ModelRegistry.restore``."""
    view = changeable_view(layout)
    chosen = with_relatives(view, wanted, cascade=cascade, down=False, states=(ARCHIVED, PURGED))
    for identifier in chosen:
        if view.records[identifier].state == PURGED:
            raise RegistryError(f"{identifier} was purged: only its metadata is left", "train it again: see reproduce")
    for identifier in chosen:
        if view.records[identifier].state != ACTIVE:
            append_event(layout, "restore", identifier)
    now = read_view(layout)
    for identifier in chosen:
        if not _is(now, identifier, ACTIVE):
            raise RegistryError(f"{identifier} was purged meanwhile", "train it again: see reproduce")
        settle(layout, view.records[identifier], ACTIVE)
        confirm_parents(layout, identifier)
    refresh(layout, at_once=True)
    return chosen


def purge(layout: Layout, wanted: Sequence[str], *, cascade: bool, purge_after_days: float) -> list[str]:
    """Delete the files of archived models but their metadata, children first. See ``ModelRegistry.purge``."""
    view = changeable_view(layout)
    for identifier in wanted:
        if view.records[identifier].state == ACTIVE:
            raise RegistryError(f"{identifier} is active", "archive it first")
    chosen = with_relatives(view, wanted, cascade=cascade, down=True, states=(ARCHIVED,))
    for identifier in chosen:
        active = relatives(view, identifier, down=True, states=(ACTIVE,))
        if active:  # an archiver died before it looked
            raise RegistryError(f"{active[0]}, built on {identifier}, is active", "trade-agent registry repair")
        if days_since(view.since.get(identifier, "")) < purge_after_days:
            raise RegistryError(
                f"{identifier} was archived less than {purge_after_days:g} days ago", "wait, or lower --after-days"
            )
    for identifier in chosen:
        if view.records[identifier].state != PURGED:  # or an earlier purge was cut off: its files go now
            append_event(layout, "purge", identifier)
    now = read_view(layout)
    for identifier in chosen:
        if not _is(now, identifier, PURGED):
            raise RegistryError(f"{identifier} was restored meanwhile", "it stays")
        _delete_data(layout, view.records[identifier])
    refresh(layout, at_once=True)
    return chosen


def _delete_data(layout: Layout, record: ModelRecord) -> None:
    metadata = _metadata(layout, record)
    for archived in (False, True):
        folder = layout.folder(record.type, archived=archived)
        for name in metadata.files:
            (folder / name).unlink(missing_ok=True)
        if folder.is_dir():
            layout.sync(folder)


def with_relatives(view: View, wanted: Sequence[str], *, cascade: bool, down: bool, states: Sequence[str]) -> list[str]:
    """``wanted`` and all that hang on them (``down``) or that they hang on, in one of ``states``, these first.

    RegistryError naming one that is not wanted, unless ``cascade``.
    """
    edges: dict[str, list[str]] = {}
    pending = list(wanted)
    while pending:
        identifier = pending.pop()
        if identifier not in edges:
            edges[identifier] = relatives(view, identifier, down=down, states=states)
            pending += edges[identifier]
    others = sorted(edges.keys() - set(wanted))
    if others and not cascade:
        relation = "has models that were built on it" if down else "was built on models that are not active"
        listed = ", ".join(others[:10])
        raise RegistryError(f"{wanted[0]} {relation}: {listed}", "name these too, or use --cascade")
    return list(TopologicalSorter(edges).static_order())


def _is(view: View, identifier: str, state: str) -> bool:
    record = view.records.get(identifier)
    return record is not None and record.state == state


def relatives(view: View, identifier: str, *, down: bool, states: Iterable[str]) -> list[str]:
    """Direct children (``down``) or parents of a model that are in one of ``states``, sorted."""
    if down:
        found = [record.id for record in view.records.values() if identifier in record.parents]
    else:
        found = [parent for parent in view.records[identifier].parents if parent in view.records]
    return sorted({each for each in found if view.records[each].state in states})


def confirm_parents(layout: Layout, identifier: str) -> None:
    """After a model became active: its parents must still be. One whose archiving is under way is waited for, since the
    archiver may yet see this child and give way; a parent that is gone takes the child along.

    Raises RegistryError in that case, the child archived.
    """
    deadline = time.monotonic() + RUN_WAIT_SECONDS
    while True:
        view = read_view(layout)
        if identifier not in view.records:
            raise RegistryError(f"the metadata of {identifier} cannot be read now", "trade-agent registry verify")
        record = view.records[identifier]
        gone = [parent for parent in record.parents if _is_gone(view, parent)]
        if not gone or record.state != ACTIVE:
            return
        if all(parent not in view.records or view.records[parent].moved for parent in gone) or (
            time.monotonic() > deadline
        ):
            _archive_all(layout, [record])
            raise RegistryError(
                f"{gone[0]} was archived meanwhile, so {identifier}, built on it, is archived too",
                f"trade-agent registry restore --cascade {identifier}",
            )
        time.sleep(POLL_SECONDS)


def _is_gone(view: View, parent: str) -> bool:
    return parent not in view.records or view.records[parent].state != ACTIVE


def days_since(moment: str) -> float:
    """Days since an ISO time of an event; endless where it is not known."""
    if not moment:
        return float("inf")
    return (datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(moment)).total_seconds() / 86400


def settle(layout: Layout, record: ModelRecord, state: str) -> bool:
    """Move a model's files to where its ``state`` wants them, or another one that it has got meanwhile; False: nothing.

    Somebody else may be moving the same files, even the other way: whoever has moved one looks at the state again, so
    the last of them leaves all as the last event says.
    """
    moved = False
    while _move(layout, record, archived=state != ACTIVE):
        moved = True
        state = _state_now(layout, record.id)
    return moved


def _state_now(layout: Layout, identifier: str) -> str:
    """The state by all events, of which most often none is newer than what this process knows."""
    known: View | None = layout.known
    if known is None or event_file(layout, known.last_event + 1).exists() or not holds_events(layout, known):
        known = read_view(layout)
    return known.states.get(identifier, ACTIVE)


def _move(layout: Layout, record: ModelRecord, *, archived: bool) -> bool:
    """Move the files that are not there yet; False where all of them are.

    By rename, which leaves a file in one place or the other whatever happens; linking and unlinking would lose one that
    two processes move in opposite directions.
    """
    source = layout.folder(record.type, archived=not archived)
    target = layout.folder(record.type, archived=archived)
    target.mkdir(parents=True, exist_ok=True)
    order = [metadata_file(record.number), signature_file(record.number), *sorted(_metadata(layout, record).files)]
    moved = False
    for name in order if archived else reversed(order):
        try:
            # Seen in both places, one file was on its way between the two looks; only another one is in the way.
            if _inode(target / name) not in (None, os.lstat(source / name).st_ino):
                raise RegistryError(f"{target / name} and {source / name} both exist", "move one of them away")
            os.rename(source / name, target / name)
        except FileNotFoundError:  # moved already, or there is none: a model without a signature
            continue
        moved = moved or not os.path.lexists(source / name)
    if moved:
        layout.sync(target, source)
    return moved


def _inode(path: Path) -> int | None:
    try:
        return os.lstat(path).st_ino
    except FileNotFoundError:
        return None


def _metadata(layout: Layout, record: ModelRecord) -> ModelMetadata:
    metadata = find_metadata(layout, record.type, record.number)
    if metadata is None:
        raise RegistryError(f"the metadata of {record.id} is gone or damaged", "restore it from a backup")
    return metadata


def repair(layout: Layout) -> list[str]:
    """Finish what was cut off; returns a line for each thing done. Deletes nothing.

    An event that is missing is given up; claims that are gone are made again from metadata, and metadata that is gone
    from its copy among the claims. A registration whose process is gone is closed by a tombstone. A model whose
    archiver, or whose child's writer, died before it had looked at the other gets back what it was built on. Then every
    file follows the state of its model; where that is impossible for one, a RegistryError says so after the others.
    """
    done = [f"event {number}: given up, it is missing" for number in close_gaps(layout)]
    done += [f"{path}: made again" for each in MODEL_TYPES for path in link_missing_claims(layout, each)]
    done += [f"{each}: its metadata is back" for each in bring_back(layout)]
    view = changeable_view(layout)
    done += [f"{each}: closed, its writer is gone" for each in close_abandoned(layout, older_than_hours=math.inf)]
    needed: dict[str, str] = {}
    for child in [record.id for record in view.records.values() if record.state == ACTIVE]:
        for parent in with_relatives(view, [child], cascade=True, down=False, states=(ARCHIVED,))[:-1]:
            needed.setdefault(parent, child)
    for parent, child in needed.items():
        append_event(layout, "restore", parent)
        done.append(f"{parent}: active again, as {child}, built on it, is")
    impossible: list[RegistryError] = []
    for record in read_view(layout).records.values():
        try:
            if settle(layout, record, record.state):
                done.append(f"{record.id}: its files followed its state, {record.state}")
        except RegistryError as error:
            impossible.append(error)
    refresh(layout, at_once=True)
    if impossible:
        raise impossible[0]
    return done
