"""Take a checkpoint from elsewhere into the registry.

The file is read once, goes through the gate, is written anew in our own format and registered with its origin; the
file itself never lies in the registry. Two kinds are taken:

*   A model of another registry, with its metadata, configuration and preprocessor beside it. It stays what it was:
    contract, metrics and grade come along, and it can be the parent of other models. Its own parents are linked where
    models of the same weights are here.
*   Any other checkpoint that ``torch.save`` made of contiguous tensors and plain values. The user says what type it is
    and gives the configuration that it was built with. It can be loaded, named and archived; nothing is trained on it,
    because nobody knows what its inputs mean.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trade_agent import safe_io
from trade_agent.errors import ConfigError, RegistryError
from trade_agent.registry.metadata import (
    DataInfo,
    ModelMetadata,
    Objective,
    Parent,
    PreprocessorInfo,
    check_config,
    plain_hash,
)
from trade_agent.registry.naming import MODEL_ID, MODEL_TYPES, check_model_type, file_names, metadata_file
from trade_agent.registry.snapshot import ACTIVE, ARCHIVED
from trade_agent.registry.store import ModelRegistry, checked

TAG = "imported"
ADDED_BY_REGISTER = {
    "contract": ("checkpoint_schema", "state_layout", "preprocessor_contract", "parents"),
    "recipe": ("data", "preprocessor", "parents"),
}
NO_PREPROCESSOR = {"imported": True, "preprocessor": None}


def import_model(
    registry: ModelRegistry,
    path: Path | str,
    *,
    model_type: str | None = None,
    config: Path | str | None = None,
    preprocessor: Path | str | None = None,
    notes: str = "",
) -> ModelMetadata:
    """Register the checkpoint ``path`` and return its metadata; the same files again return the first version.

    Args:
        model_type, config, preprocessor: for a checkpoint without metadata beside it. ``config`` is a JSON object with
            what its network was built with; ``preprocessor`` a file that this project wrote, if there is one.

    Raises:
        ConfigError: something is missing, or given although the metadata says it.
        UnsafeFileError: a file holds more than data; says what.
        RegistryError: a file is missing or does not fit its metadata; or the same was imported before, and archived.
    """
    path = Path(path).absolute()
    data = safe_io.read_bytes(path)
    state = safe_io.load_tensors(data, name=str(path))
    origin = {"file": path.name, "sha256": safe_io.sha256_bytes(data)}
    match = MODEL_ID.fullmatch(path.stem)
    beside = path.parent / metadata_file(match["version"]) if match else None
    if beside is not None and beside.exists():
        if model_type or config or preprocessor:
            raise ConfigError(f"{beside} says what {path.name} is", "leave --type, --config and --preprocessor away")
        return _from_registry(registry, path, beside, state, origin, notes)
    if model_type is None or config is None:
        raise ConfigError(
            f"there is no metadata beside {path}, so nobody knows what it is",
            f"give --type ({', '.join(MODEL_TYPES)}) and --config FILE.json with what it was built with",
        )
    check_model_type(model_type)
    if state.get("kind", model_type) != model_type:
        raise ConfigError(f"{path} says that it is a {state['kind']}", f"use --type {state['kind']}")
    return _foreign(registry, model_type, Path(config), preprocessor, state, origin, notes)


def _from_registry(
    registry: ModelRegistry, path: Path, beside: Path, state: dict[Any, Any], origin: dict[str, Any], notes: str
) -> ModelMetadata:
    content = safe_io.read_bytes(beside, max_bytes=safe_io.MAX_JSON_BYTES)
    model = ModelMetadata.from_json(content, name=str(beside))
    names = file_names(model.model_id, model.version)
    if (
        path.name != names["model"]
        or beside.name != metadata_file(model.version)
        or model.files.keys() != set(names.values())
    ):
        raise RegistryError(f"{beside} describes {model.model_id}, not {path.name}", "give it back its own name")
    paths = {role: path.parent / name for role, name in names.items()}
    files = {role: checked(each, safe_io.read_bytes(each), model.files[each.name]) for role, each in paths.items()}
    origin |= {
        "model_id": model.model_id,
        "metadata_sha256": safe_io.sha256_bytes(content),
        "parents": [f"{parent.role}:{parent.id}" for parent in model.parents],
    }
    return _register(
        registry,
        origin,
        model_type=model.model_type,
        state=state,
        preprocessor=files["preprocessor"],
        config=safe_io.parse_json(files["config"], name=str(path.parent / names["config"])),
        grade=model.grade,
        grade_decision=model.grade_decision,
        metric_token=(model.objective.name, _value(model.objective)),
        objective=model.objective,
        metrics=model.metrics,
        baselines=model.baselines,
        parents=[found for parent in model.parents for found in _here(registry, parent)],
        preprocessor_info=model.preprocessor,
        data=model.data,
        contract=_without(model.contract, ADDED_BY_REGISTER["contract"]),
        recipe=_without(model.recipe, ADDED_BY_REGISTER["recipe"]) | {"origin": origin},
        seed=model.seed,
        study=model.study,
        trainer_profile=model.trainer_profile,
        environment=model.environment,
        command=model.command,
        tags=[*model.tags, TAG],
        notes=notes or model.notes,
    )


def _foreign(
    registry: ModelRegistry,
    model_type: str,
    config: Path,
    preprocessor: Path | str | None,
    state: dict[Any, Any],
    origin: dict[str, Any],
    notes: str,
) -> ModelMetadata:
    settings = safe_io.read_json(config)
    check_config(settings, name=str(config))
    if not isinstance(settings, dict):
        raise ConfigError(f"{config} is not a JSON object", 'write {"name": value, ...}')
    pipeline = safe_io.dump_arrays(NO_PREPROCESSOR)
    if preprocessor is not None:
        pipeline = safe_io.read_bytes(preprocessor, max_bytes=safe_io.MAX_ARRAY_BYTES)
        safe_io.load_arrays(pipeline, name=str(preprocessor))
    digest = safe_io.sha256_bytes(pipeline)
    reason = {"rule": "imported", "cap": "F", "reason": "imported without a test"}
    return _register(
        registry,
        origin | {"config": plain_hash(settings), "preprocessor": digest},
        model_type=model_type,
        state=state,
        preprocessor=pipeline,
        config=settings,
        grade="F",
        grade_decision={"inputs": {}, "caps": [reason]},
        metric_token=(TAG, float("nan")),
        objective=Objective(name=TAG, value=None, direction="max"),
        metrics={},
        baselines={},
        parents=[],
        preprocessor_info=PreprocessorInfo(version="", content_hash=digest, contract_hash=digest),
        data=DataInfo(fingerprint="", symbols=[], source=TAG, splits={}),
        contract={"foreign": True, "config": plain_hash(settings)},
        recipe={"origin": origin},
        seed=0,
        trainer_profile=TAG,
        command="",
        tags=[TAG],
        notes=notes,
    )


def _here(registry: ModelRegistry, parent: Parent) -> list[Parent]:
    """The newest active model of a parent's type and weights, pinned; none where there is none."""
    same = [record for record in registry.list() if record.weights_sha256 == parent.weights_sha256]
    same = [record for record in same if record.type == parent.id.split("_v")[0]]
    return [registry.pin(record.id, role=parent.role) for record in same[-1:]]


def _register(registry: ModelRegistry, origin: Mapping[str, Any], *, model_type: str, **fields: Any) -> ModelMetadata:
    """Once for each origin; anew where that model was purged since."""
    run_id, attempt = f"import-{plain_hash(dict(origin) | {'file': ''})}", 1
    while True:
        metadata = registry.register(
            model_type=model_type, run_id=run_id if attempt == 1 else f"{run_id}-{attempt}", **fields
        )
        state = registry.view().records[metadata.model_id].state
        if state == ACTIVE:
            return metadata
        if state == ARCHIVED:
            what = f"{origin['file']} was imported before as {metadata.model_id}, which is archived"
            raise RegistryError(what, f"trade-agent registry restore {metadata.model_id}")
        attempt += 1


def _value(objective: Objective) -> float:
    return float("nan") if objective.value is None else objective.value


def _without(values: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in names}
