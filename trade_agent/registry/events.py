"""State changes of models: small numbered files that are only ever added, and folded in the order of their numbers.

The number is the order, so two changes that exclude each other need no lock: of an alias for a model and its archiving,
the second has no effect, and whoever wrote it sees that by folding the events again (`snapshot.apply_event`).
"""

import datetime
import re
from pathlib import Path
from typing import Any

from trade_agent import safe_io
from trade_agent.errors import RegistryError
from trade_agent.registry.layout import Layout, link_new, names

EVENT_FILE = re.compile(r"([0-9]{8})\.json")
GIVE_UP = "put it back from a backup, or move it away and give it up: trade-agent registry repair"
# What an event of each type holds besides `type`, `model_id` and `created`; all are texts but `decision`.
FIELDS: dict[str, frozenset[str]] = {
    "alias": frozenset({"model_type", "alias"}),  # an empty model_id takes the alias away
    "archive": frozenset(),
    "restore": frozenset(),
    "purge": frozenset(),
    "grade": frozenset({"grade", "decision"}),
    "note": frozenset({"text"}),
    "lost": frozenset(),  # in the place of one that was damaged and moved away: what it said is not known
}


def now() -> str:
    """The present time as events store it: ISO, UTC."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds")


def append_event(layout: Layout, kind: str, model_id: str, **fields: Any) -> int:
    """Store a state change durably under the next free number, and return that number."""
    event = {"type": kind, "model_id": model_id, "created": now(), **fields}
    layout.prepare()
    with layout.scratch() as scratch:
        layout.write_new(scratch / "event", safe_io.checked_json(event))
        number = max(event_numbers(layout), default=0) + 1
        while not link_new(scratch / "event", event_file(layout, number)):
            number += 1
        layout.sync(layout.events)
    return number


def event_file(layout: Layout, number: int) -> Path:
    """Path of an event."""
    return layout.events / f"{number:08d}.json"


def event_sha256(layout: Layout, number: int) -> str:
    """Digest of the file of an event; empty where there is none that can be read."""
    try:
        return safe_io.sha256_bytes(safe_io.read_bytes(event_file(layout, number), max_bytes=safe_io.MAX_JSON_BYTES))
    except RegistryError:
        return ""


def missing_numbers(layout: Layout) -> list[int]:
    """Numbers below the last one that no event has."""
    numbers = event_numbers(layout)
    return sorted(set(range(1, max(numbers, default=0))) - set(numbers))


def close_gaps(layout: Layout) -> list[int]:
    """Put ``lost`` in the place of every event that is missing; returns their numbers."""
    missing = missing_numbers(layout)
    for number in missing:
        event = {"type": "lost", "model_id": "", "created": now()}
        with layout.scratch() as scratch:
            layout.write_new(scratch / "event", safe_io.checked_json(event))
            link_new(scratch / "event", event_file(layout, number))
    if missing:
        layout.sync(layout.events)
    return missing


def event_numbers(layout: Layout) -> list[int]:
    """Numbers of the stored events, ascending.

    A listing of a large folder can lack a name that came while it was made, and have the one after it: where a number
    is missing, the file is asked for.
    """
    listed = {int(match[1]) for match in map(EVENT_FILE.fullmatch, names(layout.events)) if match}
    every = range(1, max(listed, default=0) + 1)
    return [number for number in every if number in listed or event_file(layout, number).exists()]


def read_event(layout: Layout, number: int) -> dict[str, Any]:
    """Read one state change; RegistryError when it is damaged."""
    path = event_file(layout, number)
    try:
        event = safe_io.read_checked_json(path)
    except RegistryError as error:
        raise type(error)(error.message, GIVE_UP) from error
    if event.get("type") in FIELDS:
        kinds = {key: type(value) for key, value in event.items()}
        expected = dict.fromkeys(("type", "model_id", "created", *FIELDS[event["type"]]), str)
        if kinds == expected | ({"decision": dict} if "decision" in expected else {}):
            return event
    raise RegistryError(f"{path} is not a known event", f"use a newer trade_agent, or {GIVE_UP}")
