"""A model before it has its number: what decides about the version, and the metadata once the number is known."""

import datetime
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from trade_agent import safe_io
from trade_agent.errors import RegistryError
from trade_agent.evaluation.grading import PerformanceGrade
from trade_agent.registry.metadata import (
    Bump,
    DataInfo,
    FileInfo,
    ModelMetadata,
    Parent,
    PreprocessorInfo,
    finite,
)
from trade_agent.registry.naming import file_names, model_id
from trade_agent.registry.versions import NextVersion, Version, differing_keys

CHECKPOINT_SCHEMA = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Draft:
    """A model without its number.

    ``metadata`` lacks what follows from the number. ``metric_token`` is the name and value that the id shows. ``files``
    maps the roles model, preprocessor and config to their bytes. ``at_least``: the least bump that is asked for.
    ``sign`` makes the signature of the metadata of a version, None where the registry does not sign.
    """

    metadata: ModelMetadata
    metric_token: tuple[str, float]
    at_least: str | None
    files: dict[str, bytes]
    sign: Callable[[bytes, str], bytes] | None = None

    def __post_init__(self) -> None:
        """Whatever is wrong shows now, before a number is used up."""
        self.numbered(NextVersion(Version(1, 0, 0), "major", "", None), None)

    def numbered(self, following: NextVersion, compared: ModelMetadata | None) -> ModelMetadata:
        """The whole metadata, of the version ``following``; ``compared``: the model it is compared with, if any.

        It is what later readers get: read back from its bytes. RegistryError where a field has a wrong type.
        """
        draft = self.metadata
        identifier = model_id(draft.model_type, following.version, PerformanceGrade(draft.grade), self.metric_token)
        names = file_names(identifier, following.version)
        metadata = replace(
            draft,
            model_id=identifier,
            version=str(following.version),
            files={
                names[role]: FileInfo(sha256=safe_io.sha256_bytes(content), size=len(content))
                for role, content in self.files.items()
            },
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds"),
            bump=Bump(
                level=following.level,
                reason=following.reason,
                compared_with=str(following.compared_with) if following.compared_with else None,
                differing_keys=_differing(compared, draft),
            ),
        )
        return ModelMetadata.from_json(metadata.to_json(), name=f"the metadata of {identifier}")


def _differing(old: ModelMetadata | None, new: ModelMetadata) -> list[str]:
    if old is None:
        return []
    before, after = ({"contract": each.contract, "recipe": each.recipe} for each in (old, new))
    return [*differing_keys(before, after)]


def full_contract(
    contract: Mapping[str, Any],
    *,
    state: Mapping[Any, Any],
    preprocessor: PreprocessorInfo,
    parents: Sequence[Parent],
) -> dict[str, Any]:
    """What a consumer must know, in plain values: ``contract`` with layout of the state, preprocessor and parents.

    Raises ValueError for values that JSON does not have.
    """
    return _plain(
        dict(contract)
        | {
            "checkpoint_schema": CHECKPOINT_SCHEMA,
            "state_layout": safe_io.layout_sha256(dict(state)),
            "preprocessor_contract": preprocessor.contract_hash,
            "parents": sorted(_generation(parent) for parent in parents),
        }
    )


def full_recipe(
    recipe: Mapping[str, Any], *, data: DataInfo, preprocessor: PreprocessorInfo, parents: Sequence[Parent]
) -> dict[str, Any]:
    """What else decides about the result but the seed, in plain values. Raises ValueError as above."""
    return _plain(
        dict(recipe)
        | {
            "data": finite(
                {
                    "fingerprint": data.fingerprint,
                    "symbols": data.symbols,
                    "source": data.source,
                    "splits": data.splits,
                }
            ),
            "preprocessor": preprocessor.content_hash,
            "parents": sorted(f"{parent.role}:{parent.id}:{parent.weights_sha256}" for parent in parents),
        }
    )


def known_grade(grade: PerformanceGrade | str) -> PerformanceGrade:
    """Raises RegistryError for what is no grade."""
    try:
        return PerformanceGrade(grade)
    except ValueError as error:
        known = ", ".join(each.value for each in PerformanceGrade)
        raise RegistryError(f"{grade!r} is not a grade", f"use one of {known}") from error


def _plain(value: dict[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(safe_io.canonical_json(value))
    return plain


def _generation(parent: Parent) -> str:
    """A parent as a child's consumer sees it: another major has another contract."""
    return f"{parent.role}:{parent.id.split('_v')[0]}@{Version.parse(parent.version).major}"
