"""A trained stage becomes a registered model."""

from typing import Any

from trade_agent import safe_io
from trade_agent.config.load import content, snapshot
from trade_agent.config.schema import TrainingConfig
from trade_agent.evaluation.grading import MODEL_KINDS
from trade_agent.registry.metadata import DataInfo, ModelMetadata, Objective, PreprocessorInfo, plain_hash
from trade_agent.registry.store import ModelRegistry
from trade_agent.training.dataset import MarketDataset
from trade_agent.training.plan import Plan, PlannedStage
from trade_agent.training.preprocessor_manager import PreprocessorManager
from trade_agent.training.stages.context import StageOutcome


def stage_run_id(config: TrainingConfig, key: str) -> str:
    """By which the registry knows what one stage of a run has registered."""
    return f"{config.run_id}-{key}"


def register_stage(
    planned: PlannedStage,
    plan: Plan,
    outcome: StageOutcome,
    *,
    config: TrainingConfig,
    dataset: MarketDataset,
    registry: ModelRegistry,
    preprocessors: PreprocessorManager,
    environment: dict[str, Any],
    study: str,
) -> ModelMetadata:
    """Store the model of a stage, its parents' ids and its preprocessing. study: of which it is a trial, else empty."""
    pipeline = dataset.pipeline
    stored_config = snapshot(config)  # without what came from the environment
    stored = preprocessors.save(pipeline, data_fingerprint=dataset.bars.fingerprint, rows=pipeline.fitted_rows)
    return registry.register(
        model_type=planned.model_type,
        state=outcome.state,
        preprocessor=safe_io.dump_arrays(pipeline.to_state()),
        config=content(config),
        grade=outcome.grade.grade,
        grade_decision=outcome.grade.as_dict(),
        metric_token=outcome.headline,
        objective=Objective(**outcome.objective),
        metrics=outcome.metrics,
        baselines=outcome.baselines,
        parents=[registry.pin(plan[key].found_id, role=role) for role, key in planned.parents],
        preprocessor_info=PreprocessorInfo(
            version=stored.version, content_hash=pipeline.content_hash, contract_hash=pipeline.contract_hash
        ),
        data=DataInfo(
            fingerprint=dataset.bars.fingerprint,
            symbols=list(dataset.bars.symbols),
            source=dataset.source,
            splits=dataset.splits(),
        ),
        contract=outcome.contract,
        recipe={
            "settings": planned.recipe,
            "settings_sha256": plain_hash(planned.recipe),
            "cross_fit_folds": outcome.notes.get("cross_fit_folds", 0),
        },
        seed=config.seed,
        run_id=stage_run_id(config, planned.key),
        study=study,
        trainer_profile=config.trainer.name,
        environment=environment,
        command=config.command,
        tags=stored_config["tags"],
        notes=stored_config["notes"],
    )


def models_tried(
    planned: PlannedStage, plan: Plan, *, dataset: MarketDataset, registry: ModelRegistry, seed: int
) -> int:
    """Other models of the same kind that were judged on some of these test rows: each was a chance to be lucky,
    archived since or not.

    The same recipe and seed again is no other chance, and neither are the models this one is built on. A model that is
    the best of several copies was as many chances, here and among those it is built on.
    """
    first, last = dataset.splits()["test"]
    symbols = list(dataset.bars.symbols)
    own = {(plain_hash(planned.recipe), seed): copies_of(planned.recipe)}
    pending = [plan[key].found_id for _, key in planned.parents]
    while pending:
        ancestor = registry.get(pending.pop(), include_archived=True)
        own |= _chances(ancestor)
        pending += [parent.id for parent in ancestor.parents]

    def overlaps(model: ModelMetadata) -> bool:
        if "test" not in model.data.splits:  # imported
            return False
        start, stop = model.data.splits["test"]
        return model.data.symbols == symbols and start <= last and first <= stop

    kinds = [kind for kind in MODEL_KINDS if MODEL_KINDS[kind] == MODEL_KINDS[planned.model_type]]
    tried = dict(own)
    for kind in kinds:
        for model in registry.find(kind, overlaps, include_archived=True):
            tried |= _chances(model)
    return sum(tried.values()) - len(own)


def _chances(model: ModelMetadata) -> dict[tuple[str, int], int]:
    """Recipe and seed of what was tried, and how often."""
    return {(str(model.recipe.get("settings_sha256")), model.seed): copies_of(model.recipe.get("settings", {}))}


def copies_of(recipe: dict[str, Any]) -> int:
    """Agents of which the model of a recipe is the best."""
    return int(recipe.get("stage", {}).get("copies", 1))
