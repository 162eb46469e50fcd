"""Which models may be put aside: a plan first, nothing changed."""

import datetime
from collections.abc import Callable
from dataclasses import dataclass

from trade_agent.registry.resolve import ranked
from trade_agent.registry.snapshot import ACTIVE, ModelRecord, View


@dataclass(frozen=True, kw_only=True, slots=True)
class PrunePolicy:
    """What stays: of each model type the ``keep_best`` by validation objective and the ``keep_last`` versions, of each
    search the ``keep_best``, and what is younger than ``min_age_days``. What has an alias, and what a model that stays
    was built on, stays always."""

    keep_best: int = 3
    keep_last: int = 3
    min_age_days: float = 7.0


@dataclass(frozen=True, kw_only=True, slots=True)
class PruneItem:
    """A model that would be archived: size of its files in bytes, why, and which models, archived too, hang on it."""

    id: str
    size: int
    reason: str
    dependents: list[str]


def prune_plan(
    view: View, policy: PrunePolicy, *, size: Callable[[ModelRecord], int], now: datetime.datetime
) -> list[PruneItem]:
    """Models to archive, sorted by id. ``size`` of a model in bytes; ``now`` with a time zone."""
    active = {key: record for key, record in view.records.items() if record.state == ACTIVE}
    kept = {key for key in view.aliases.values() if key in active}
    places: dict[str, tuple[int, int]] = {}
    for model_type in {record.type for record in active.values()}:
        last = sorted((r for r in active.values() if r.type == model_type), key=lambda r: r.number, reverse=True)
        best = ranked(last)
        kept.update(record.id for record in [*last[: policy.keep_last], *best[: policy.keep_best]])
        order = {record.id: place for place, record in enumerate(best, start=1)}
        for study in {record.study for record in last if record.study}:  # which may have an objective of its own
            of_study = ranked([record for record in last if record.study == study])
            kept.update(record.id for record in of_study[: policy.keep_best])
        places |= {record.id: (order.get(record.id, 0), place) for place, record in enumerate(last, start=1)}
    kept.update(key for key, record in active.items() if _age_days(record, now) < policy.min_age_days)
    pending = list(kept)
    while pending:
        parents = [parent for parent in active[pending.pop()].parents if parent in active and parent not in kept]
        kept.update(parents)
        pending += parents
    return [
        PruneItem(
            id=key,
            size=size(active[key]),
            reason=_reason(active[key], places[key], now),
            dependents=sorted(other.id for other in active.values() if key in other.parents),
        )
        for key in sorted(active.keys() - kept)
    ]


def _age_days(record: ModelRecord, now: datetime.datetime) -> float:
    return (now - datetime.datetime.fromisoformat(record.created)).total_seconds() / 86400


def _reason(record: ModelRecord, place: tuple[int, int], now: datetime.datetime) -> str:
    best = f"number {place[0]} by {record.objective.name}" if place[0] else f"not ranked by {record.objective.name}"
    return f"{best}, number {place[1]} from the last, {_age_days(record, now):.0f} days old, no alias"
