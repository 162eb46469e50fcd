"""From what a user types to one model id. Pure functions over the view: user text never touches a path or a glob."""

import difflib
import math
import re
from collections.abc import Collection, Sequence

from trade_agent.errors import RegistryError
from trade_agent.registry.naming import MODEL_TYPES
from trade_agent.registry.snapshot import ACTIVE, ModelRecord, View
from trade_agent.registry.versions import Version

_TYPE = "|".join(MODEL_TYPES)
_REFERENCE = re.compile(r"[A-Za-z0-9_.@^:+-]{1,200}")
_EXACT = re.compile(rf"({_TYPE})(?:_v|@v?)(\d+\.\d+\.\d+)")
_SELECTED = re.compile(rf"({_TYPE})@(\^?)v?(\d+)(?:\.(\d+))?(?:\.(\d+))?")
_NAMED = re.compile(rf"({_TYPE})@([a-z][a-z0-9_-]{{0,31}})")
_DIGEST = re.compile(r"sha256:([0-9a-f]{7,64})")
ALIAS = re.compile(r"(?!v\d)[a-z][a-z0-9_-]{0,31}")  # v1 is a version
RESERVED_ALIASES = ("latest", "best")
MAX_CANDIDATES = 10


def resolve(view: View, reference: str, *, include_archived: bool = False, selecting: str = ACTIVE) -> ModelRecord:
    """Find the one model that ``reference`` means.

    With ``include_archived`` one that is archived or purged can be named too. What chooses among several models
    (``@latest``, ``@best``, ``@1``) chooses among those in the state ``selecting`` all the same.

    Order: exact id; exact version (``cnn_lstm_v1.0.0``, ``cnn_lstm@1.0.0``); ``@latest``, ``@best``, ``@1``, ``@1.2``,
    ``@^1.2`` (at least 1.2.0, below 2); alias (``@champion``); ``sha256:`` and 7 or more digits of the digest of model
    file, weights or metadata; a unique prefix of an id that ends where a word or number ends.

    Raises:
        RegistryError: nothing or more than one model fits; names up to ten candidates.
    """
    chosen = {key: record for key, record in view.records.items() if record.state == selecting}
    usable = {key: record for key, record in view.records.items() if include_archived or record.state == ACTIVE}
    if not _REFERENCE.fullmatch(reference):
        raise RegistryError(f"{reference!r} is not a model reference", _examples(usable))
    exact = _EXACT.fullmatch(reference)
    for record in view.records.values():
        if record.id == reference or (exact and (record.type, record.version) == exact.groups()):
            if record.id in usable:
                return record
            raise RegistryError(f"{record.id} is {record.state}", "add --archived, or use trade-agent registry restore")
    if match := _SELECTED.fullmatch(reference):
        fitting = [r for r in _of_type(chosen, match[1]) if _selected(r.number, match)]
        return _one(reference, fitting[-1:], chosen)
    if match := _NAMED.fullmatch(reference):
        return _named(view, chosen, reference, match[1], match[2])
    if match := _DIGEST.fullmatch(reference):
        digest = match[1]
        fitting = [
            record
            for record in usable.values()
            if any(d.startswith(digest) for d in (record.file_sha256, record.weights_sha256, record.metadata_sha256))
        ]
        return _one(reference, fitting, usable)
    return _one(reference, [record for key, record in usable.items() if is_prefix(reference, key)], usable)


def is_prefix(reference: str, identifier: str) -> bool:
    """Whether ``identifier`` continues ``reference`` at a boundary: v1.0.1 is no prefix of v1.0.10, nor A of A+."""
    rest = identifier[len(reference) :]
    return identifier.startswith(reference) and (not rest or rest[0] in "_.")


def ranked(records: Sequence[ModelRecord]) -> list[ModelRecord]:
    """Models by their validation objective, the best first, the higher version first where they are equal.

    Values of different objectives cannot be compared: the newest model says which one counts, the others are left out.
    """
    ordered = sorted(records, key=lambda record: record.number)
    finite = [r for r in ordered if r.objective.value is not None and math.isfinite(r.objective.value)]
    if not finite:
        return []
    name, direction = finite[-1].objective.name, finite[-1].objective.direction
    sign = 1.0 if direction == "max" else -1.0
    rivals = [r for r in finite if (r.objective.name, r.objective.direction) == (name, direction)]
    return sorted(rivals, key=lambda record: (sign * (record.objective.value or 0.0), record.number), reverse=True)


def _of_type(usable: dict[str, ModelRecord], model_type: str) -> list[ModelRecord]:
    return sorted((r for r in usable.values() if r.type == model_type), key=lambda record: record.number)


def _selected(version: Version, match: re.Match[str]) -> bool:
    """``@1``, ``@1.2``: exactly these parts; ``@^1.2``: the same major, not lower."""
    parts = tuple(int(part) for part in match.groups()[2:] if part is not None)
    number = (version.major, version.minor, version.patch)
    return number[0] == parts[0] and number >= parts if match[2] else number[: len(parts)] == parts


def _named(view: View, usable: dict[str, ModelRecord], reference: str, model_type: str, name: str) -> ModelRecord:
    records = _of_type(usable, model_type)
    if name == "latest":
        return _one(reference, records[-1:], usable)
    if name == "best":
        return _one(reference, ranked(records)[:1], usable)
    target = view.aliases.get(f"{model_type}@{name}")
    if target is None:
        raise _unknown(reference, usable, [key for key in view.aliases if key.startswith(f"{model_type}@")])
    if target not in usable:
        raise RegistryError(f"{reference} means {target}, which is archived or gone", "set the alias to another model")
    return usable[target]


def _one(reference: str, found: list[ModelRecord], usable: dict[str, ModelRecord]) -> ModelRecord:
    if len(found) == 1:
        return found[0]
    if not found:
        raise _unknown(reference, usable, [])
    listed = ", ".join(sorted(record.id for record in found)[:MAX_CANDIDATES])
    raise RegistryError(f"{reference!r} means {len(found)} models", f"say which: {listed}")


def _unknown(reference: str, usable: dict[str, ModelRecord], aliases: list[str]) -> RegistryError:
    known = [*usable, *aliases]
    near = difflib.get_close_matches(reference, known, n=MAX_CANDIDATES, cutoff=0.5)
    model_type = re.match(rf"({_TYPE})(?![a-z])", reference)
    near += [key for key in sorted(known, reverse=True) if model_type and key.startswith(model_type[1])]
    candidates = list(dict.fromkeys(near))[:MAX_CANDIDATES]
    remedy = f"did you mean {', '.join(candidates)}?" if candidates else _examples(usable)
    return RegistryError(f"there is no model {reference!r}", remedy)


def _examples(usable: Collection[str]) -> str:
    if not usable:
        return "the registry holds no model yet: train one first"
    return f"known models: {', '.join(sorted(usable)[:MAX_CANDIDATES])}"
