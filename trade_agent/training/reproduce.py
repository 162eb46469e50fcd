"""Train a registered model again, from what the registry keeps of it, and compare."""

import math
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trade_agent.config.load import from_content
from trade_agent.config.schema import TrainingConfig
from trade_agent.errors import RegistryError
from trade_agent.registry.metadata import ModelMetadata, Parent, plain_hash
from trade_agent.registry.naming import file_names, metadata_file
from trade_agent.registry.store import ModelRegistry
from trade_agent.training.plan import Plan, PlannedStage
from trade_agent.training.unified_manager import UnifiedTrainingManager


@dataclass(frozen=True, slots=True)
class Comparison:
    """One value of the registered model and of the one that was trained again."""

    name: str
    registered: Any
    reproduced: Any

    @property
    def equal(self) -> bool:
        """Exactly equal; two NaN are."""
        first, second = self.registered, self.reproduced
        both_nan = isinstance(first, float) and isinstance(second, float) and math.isnan(first) and math.isnan(second)
        return first == second or both_nan


def reproduce(
    registry: ModelRegistry, reference: str, *, data: Path | None = None, quiet: bool = False
) -> list[Comparison]:
    """Train the model anew with its own configuration and seed, on its own parents, in a registry that is thrown away.

    data: the file that it was trained on, where that is not where it was any more; its fingerprint is compared.

    Raises:
        RegistryError: the model was imported, its data are not those it was trained on, or its recipe is not what this
            program would train (its code changed).
        ConfigError: a field came from the environment and was not stored.
    """
    stored = registry.load(reference, include_archived=True)
    model = stored.metadata
    if "settings_sha256" not in model.recipe or "origin" in model.recipe:
        raise RegistryError(
            f"{model.model_id} was imported, so its training is not known", "reproduce it where it was made"
        )
    with tempfile.TemporaryDirectory(prefix="reproduce-") as name:
        folder = Path(name)
        copy_ancestors(registry, model.model_id, folder / "models")
        config = _config(stored.config, folder, model.parents, data)
        manager = UnifiedTrainingManager(config, run_dir=folder / "run", quiet=quiet)
        manager.require_processes()
        dataset, plan = manager.prepare()
        if dataset.bars.fingerprint != model.data.fingerprint:
            raise RegistryError(
                f"the data are not those of {model.model_id}: fingerprint {dataset.bars.fingerprint[:12]}, trained on "
                f"{model.data.fingerprint[:12]}",
                "restore the file that it was trained on",
            )
        result, _ = manager.train_stage(_stage_of(plan, model), plan, dataset)
        again = manager.registry.get(result.model_id)
    return list(compare(model, again))


def compare(first: ModelMetadata, second: ModelMetadata) -> Iterator[Comparison]:
    """What a repetition must not change: weights, preprocessing, objective and test metrics."""
    yield Comparison("weights_sha256", first.weights_sha256, second.weights_sha256)
    yield Comparison("preprocessor", first.preprocessor.content_hash, second.preprocessor.content_hash)
    yield Comparison("data", first.data.fingerprint, second.data.fingerprint)
    yield Comparison(f"validation {first.objective.name}", first.objective.value, second.objective.value)
    ours, theirs = flat(first.metrics), flat(second.metrics)
    for name in sorted(ours.keys() | theirs.keys()):
        yield Comparison(f"test {name}", ours.get(name), theirs.get(name))


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested metrics by their dotted names."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        result |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return result


def copy_ancestors(registry: ModelRegistry, reference: str, root: Path) -> None:
    """Copy every model that this one was built on to the registry folder ``root``, each verified."""
    for link in registry.lineage(reference)["up"]:
        model = registry.load(link.parent, include_archived=True).metadata
        names = [*file_names(model.model_id, model.version).values(), metadata_file(model.version)]
        source, target = registry.root / model.model_type, root / model.model_type
        if not (source / names[-1]).exists():
            source = registry.root / "archived" / model.model_type
        target.mkdir(parents=True, exist_ok=True)
        for name in names:
            shutil.copyfile(source / name, target / name)


def _config(content: dict[str, Any], folder: Path, parents: Sequence[Parent], data: Path | None) -> TrainingConfig:
    """The stored config, with the parents it names by their ids: an alias, or `@latest`, means others in time."""
    config = from_content(content)
    upstream, changes = config.upstream, dict[str, Any]()
    for name, role in (("cnn_lstm_model", "forecaster"), ("rl_model", "agent")):
        if getattr(upstream, name, None):
            changes[name] = next((parent.id for parent in parents if parent.role == role), getattr(upstream, name))
    if getattr(upstream, "models", None):  # in their order, which decides about the weights
        changes["models"] = [parent.id for parent in parents if parent.role == "member"]
    config = replace(config, upstream=replace(upstream, **changes))
    if data is not None:
        config = replace(config, data=replace(config.data, path=str(data.resolve())))
    return replace(config, paths=replace(config.paths, models=str(folder / "models"), outputs=str(folder / "outputs")))


def _stage_of(plan: Plan, model: ModelMetadata) -> PlannedStage:
    """The stage of the run that made the model: a run trains the stages below its own as well."""
    for planned in plan.stages:
        if planned.model_type == model.model_type and plain_hash(planned.recipe) == model.recipe["settings_sha256"]:
            return planned
    raise RegistryError(
        f"this program would not train {model.model_id} from its configuration any more: the training code has changed",
        f"use the version it was trained with: git checkout {model.environment.get('git_commit', 'unknown')}",
    )
