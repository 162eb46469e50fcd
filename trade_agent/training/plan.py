"""Which stages a run has to train and which it finds in the registry.

A recipe is everything a model's numbers depend on but its seed: settings of stage, model, trainer, market and splits,
the content of the data, and the recipes of its parents. A registered model is reused when recipe and seed are equal, so
a run gives the same result whether its parents were found or trained on the way.
"""

import dataclasses
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from trade_agent.config import schema
from trade_agent.config.schema import TrainingConfig
from trade_agent.errors import PreprocessingError, RegistryError
from trade_agent.preprocessing.pipeline import PreprocessingPipeline
from trade_agent.registry.metadata import ModelMetadata, plain_hash
from trade_agent.registry.store import ModelRegistry
from trade_agent.training.dataset import MarketDataset, with_pipeline

# Raise by one when a change of the training code gives other numbers for the same recipe: parents are then retrained.
TRAINING_CODE_VERSION = 2

TRAINER_FIELDS = {
    "cnn_lstm": ("name", "forecaster_epochs", "forecaster_patience", "cross_fit_folds"),
    "rl": ("name", "{kind}_env_steps", "validation_checks"),
    "hybrid": ("name", "joint_{kind}_env_steps", "validation_checks"),
    "ensemble": ("name", "gate_epochs", "validation_checks"),
}


def trainer_fields(stage: schema.StageConfig, model: schema.ModelConfig) -> list[str]:
    """The trainer settings that a stage reads."""
    kind = "on_policy" if isinstance(model, schema.PpoModel) else "off_policy"
    return [name.format(kind=kind) for name in TRAINER_FIELDS[stage.name]]


@dataclass(slots=True, kw_only=True)
class PlannedStage:
    """One model of a run. `found` is the registered model that takes its place, None when it is to be trained."""

    key: str
    stage: schema.StageConfig
    model: schema.ModelConfig
    model_type: str
    parents: tuple[tuple[str, str], ...]  # (role, key)
    recipe: dict[str, Any]
    found: ModelMetadata | None = None

    @property
    def found_id(self) -> str:
        """Id of the model that was found, or trained meanwhile."""
        assert self.found is not None
        return self.found.model_id

    @property
    def line(self) -> str:
        if self.found is None:
            return f"{self.key:12} train"
        data = self.found.data
        return (
            f"{self.key:12} reuse {self.found.model_id} ({', '.join(data.symbols)} to {data.splits['train'][1][:10]})"
        )


@dataclass(slots=True)
class Plan:
    """Stages in the order of training; the last one is what the run is for, and always trained."""

    stages: list[PlannedStage] = field(default_factory=list)

    def __getitem__(self, key: str) -> PlannedStage:
        return next(stage for stage in self.stages if stage.key == key)

    @property
    def target(self) -> PlannedStage:
        return self.stages[-1]

    @property
    def to_train(self) -> list[PlannedStage]:
        return [stage for stage in self.stages if stage.found is None]

    @property
    def missing(self) -> list[PlannedStage]:
        return [stage for stage in self.to_train if stage is not self.target]


@dataclass(frozen=True, slots=True)
class References:
    """Registered models that the user named, by the key of the stage whose place they take."""

    models: dict[str, ModelMetadata]

    def window(self, config: TrainingConfig) -> tuple[int, list[int]]:
        """Window and horizons that the split must leave room for: of the named forecasters, else of the config."""
        contracts = [model.contract for model in self.models.values()]
        if contracts:
            return max(c["window_bars"] for c in contracts), [max(max(c["horizons"]) for c in contracts)]
        model = config.model if isinstance(config.model, schema.CnnLstmModel) else None
        if model is None:
            model = config.upstream.cnn_lstm.model  # type: ignore[attr-defined]
        return model.window_bars, list(model.horizons)


def named_references(config: TrainingConfig, registry: ModelRegistry) -> References:
    """Look up what `upstream` names. Raises RegistryError for an unknown model or one of the wrong type."""
    upstream = config.upstream
    if isinstance(upstream, schema.EnsembleUpstream):
        models = [_of_type(registry, name, "hybrid", "upstream.models") for name in upstream.models]
        if len({model.model_id for model in models}) != len(models):
            raise RegistryError("upstream.models names a hybrid twice", "name each hybrid once")
        return References({f"member_{index + 1}": model for index, model in enumerate(models)})
    found: dict[str, ModelMetadata] = {}
    if isinstance(upstream, schema.HybridUpstream) and upstream.rl_model:
        agent = _of_type(registry, upstream.rl_model, config.model.name, "upstream.rl_model")
        found[agent.model_type] = agent
        found["cnn_lstm"] = registry.get(_parent_id(agent, "forecaster"))
    if isinstance(upstream, schema.RlUpstream | schema.HybridUpstream) and upstream.cnn_lstm_model:
        forecaster = _of_type(registry, upstream.cnn_lstm_model, "cnn_lstm", "upstream.cnn_lstm_model")
        expected = found.setdefault("cnn_lstm", forecaster)
        if expected.model_id != forecaster.model_id:
            raise RegistryError(
                f"upstream.rl_model was trained on {expected.model_id}, not on {forecaster.model_id}",
                "leave upstream.cnn_lstm_model away: an agent brings its forecaster with it",
            )
    return References(found)


def _of_type(registry: ModelRegistry, reference: str, model_type: str, option: str) -> ModelMetadata:
    model = registry.get(reference)
    if model.model_type != model_type:
        raise RegistryError(
            f"{option}={reference} is a {model.model_type}, this run needs a {model_type}",
            f"see: trade-agent list --type {model_type}",
        )
    if model.contract.get("foreign"):
        raise RegistryError(
            f"{model.model_id} was imported without a training contract, so nobody knows what its inputs mean",
            "it can be loaded, but nothing can be trained on it",
        )
    return model


def _parent_id(model: ModelMetadata, role: str) -> str:
    found = next((parent.id for parent in model.parents if parent.role == role), None)
    if found is None:
        raise RegistryError(
            f"{model.model_id} was imported without its {role}",
            f"import the {role} first, then {model.model_type} again",
        )
    return found


def build_plan(
    config: TrainingConfig,
    registry: ModelRegistry,
    dataset: MarketDataset,
    references: References,
    *,
    unfinished: Collection[str] = (),
) -> Plan:
    """Work out every stage of the run and look for the parents in the registry. For `dataset` see `fit_to_parents`.

    unfinished: run ids whose models do not count as found.
    """
    plan = Plan()
    builder = _Builder(config, registry, dataset, references, plan, unfinished)
    upstream = config.upstream
    if isinstance(upstream, schema.EnsembleUpstream):
        builder.ensemble(upstream)
    elif isinstance(upstream, schema.HybridUpstream):
        builder.forecaster(upstream.cnn_lstm)
        builder.agent(config.model.name, upstream.rl)
        builder.hybrid(config.model.name, config.stage, config.model)
    elif isinstance(upstream, schema.RlUpstream):
        builder.forecaster(upstream.cnn_lstm)
        builder.add(config.model.name, config.stage, config.model, config.model.name, (("forecaster", "cnn_lstm"),))
    else:
        builder.add("cnn_lstm", config.stage, config.model, "cnn_lstm", ())
    plan.target.found = None
    _pin_forecaster(plan, registry)
    return _needed(plan)


@dataclass(slots=True)
class _Builder:
    config: TrainingConfig
    registry: ModelRegistry
    dataset: MarketDataset
    references: References
    plan: Plan
    unfinished: Collection[str]

    def forecaster(self, recipe: schema.CnnLstmRecipe) -> None:
        self.add("cnn_lstm", recipe.stage, recipe.model, "cnn_lstm", ())

    def agent(self, key: str, recipe: schema.RlRecipe) -> None:
        self.add(key, recipe.stage, recipe.model, recipe.model.name, (("forecaster", "cnn_lstm"),))

    def hybrid(self, agent_key: str, stage: schema.StageConfig, model: schema.ModelConfig) -> str:
        key = f"hybrid_{agent_key}"
        self.add(key, stage, model, "hybrid", (("forecaster", "cnn_lstm"), ("agent", agent_key)))
        return key

    def ensemble(self, upstream: schema.EnsembleUpstream) -> None:
        keys = list(self.references.models)
        if keys:
            for key, model in self.references.models.items():
                self.plan.stages.append(
                    PlannedStage(
                        key=key,
                        stage=self.config.stage,
                        model=self.config.model,
                        model_type="hybrid",
                        parents=(),
                        recipe={"named": model.weights_sha256},
                        found=model,
                    )
                )
        else:
            self.forecaster(upstream.cnn_lstm)
            for name, member in upstream.members.items():
                self.agent(name, member.rl)
                keys.append(self.hybrid(name, member.hybrid.stage, member.hybrid.model))
        self.add("ensemble", self.config.stage, self.config.model, "ensemble", tuple(("member", key) for key in keys))

    def add(
        self,
        key: str,
        stage: schema.StageConfig,
        model: schema.ModelConfig,
        model_type: str,
        parents: Sequence[tuple[str, str]],
    ) -> None:
        recipe = self.recipe(stage, model, parents)
        found = self.references.models.get(key) or self.find(model_type, recipe)
        if found is not None and key in self.references.models:
            recipe = {"named": found.weights_sha256}
        self.plan.stages.append(
            PlannedStage(
                key=key,
                stage=stage,
                model=model,
                model_type=model_type,
                parents=tuple(parents),
                recipe=recipe,
                found=found,
            )
        )

    def recipe(
        self, stage: schema.StageConfig, model: schema.ModelConfig, parents: Sequence[tuple[str, str]]
    ) -> dict[str, Any]:
        config, dataset = self.config, self.dataset
        content: dict[str, Any] = {
            "code": TRAINING_CODE_VERSION,
            "stage": dataclasses.asdict(stage),
            "model": dataclasses.asdict(model),
            "trainer": {name: getattr(config.trainer, name) for name in trainer_fields(stage, model)},
            "data": {"fingerprint": dataset.bars.fingerprint, "splits": dataset.splits()},
            "preprocessing": dataset.pipeline.content_hash,
            "parents": {key: plain_hash(self.plan[key].recipe) for _, key in parents},
        }
        if stage.name != "cnn_lstm":
            content["env"] = dataclasses.asdict(config.env)
        if stage.name == "hybrid":
            content["forecast_loss"] = dataclasses.asdict(config.upstream.cnn_lstm.stage)  # type: ignore[attr-defined]
        return content

    def find(self, model_type: str, recipe: dict[str, Any]) -> ModelMetadata | None:
        """The newest registered model of this recipe and seed."""
        wanted, seed = plain_hash(recipe), self.config.seed

        def fits(model: ModelMetadata) -> bool:
            same = model.recipe.get("settings_sha256") == wanted and model.seed == seed
            return same and model.run_id not in self.unfinished

        fitting = self.registry.find(model_type, fits)
        return fitting[0] if fitting else None


def _pin_forecaster(plan: Plan, registry: ModelRegistry) -> None:
    """An agent that was found brings the very forecaster it was trained on, whatever else the recipe would find.

    Agents that were trained on another one than the first found agent are trained anew: all share one forecaster.
    """
    pinned: str | None = None
    for planned in plan.stages:
        if planned.found is not None and planned.model_type in schema.ALGORITHMS:
            forecaster = _parent_id(planned.found, "forecaster")
            if pinned is None:
                pinned = forecaster
                plan["cnn_lstm"].found = registry.get(forecaster)
            elif forecaster != pinned:
                planned.found = None


def _needed(plan: Plan) -> Plan:
    """Without the stages that only serve to train something which was found."""
    wanted = {plan.target.key}
    for planned in reversed(plan.stages):
        if planned.key in wanted and planned.found is None:
            wanted.update(key for _, key in planned.parents)
    return Plan([planned for planned in plan.stages if planned.key in wanted])


def fit_to_parents(dataset: MarketDataset, registry: ModelRegistry, references: References) -> MarketDataset:
    """The dataset as the named parents read it: through the pipeline that they were trained with, scalers included.

    Raises RegistryError when a parent does not fit the run, or when the parents were trained with different pipelines.
    """
    models = list(references.models.values())
    for model in models:
        check_features(model, dataset, registry)
        check_parent(model, dataset)
    if not models:
        return dataset
    other = next((m for m in models if m.preprocessor.content_hash != models[0].preprocessor.content_hash), None)
    if other is not None:
        raise RegistryError(
            f"{models[0].model_id} and {other.model_id} were trained with differently fitted preprocessing "
            f"({models[0].preprocessor.version} and {other.preprocessor.version})",
            "name models that were trained on the same data and splits",
        )
    state = registry.load(models[0].model_id).preprocessor_state
    return with_pipeline(dataset, PreprocessingPipeline.from_state(state))


def check_features(model: ModelMetadata, dataset: MarketDataset, registry: ModelRegistry) -> None:
    """Refuse a named model that reads other features: says both versions of the preprocessing, and what differs."""
    if model.preprocessor.contract_hash == dataset.pipeline.contract_hash:
        return
    try:
        pipeline = PreprocessingPipeline.from_state(registry.load(model.model_id).preprocessor_state)
        pipeline.version = model.preprocessor.version
        pipeline.require_same_contract(dataset.pipeline)
    except PreprocessingError as error:
        raise RegistryError(
            f"{model.model_id} reads other features: {error.message}",
            "use the preprocessing= and data= it was trained with, or train another parent",
        ) from error


def check_parent(model: ModelMetadata, dataset: MarketDataset) -> None:
    """Refuse a named model of another market, or one that has seen rows on which this run would be tested."""
    if len(model.data.symbols) != dataset.num_assets and model.model_type != "cnn_lstm":
        raise RegistryError(
            f"{model.model_id} trades {len(model.data.symbols)} assets, this run has {dataset.num_assets}",
            "choose the same symbols with data.symbols=[...]",
        )
    theirs, rules = model.contract.get("action", {}), dataset.rules
    for name in ("fill", "latency_bars", "allow_short", "max_weight", "max_leverage"):
        mine = getattr(rules, name)
        if name in theirs and theirs[name] != mine:
            raise RegistryError(
                f"{model.model_id} was trained with env.{name}={theirs[name]}, this run has env.{name}={mine}: "
                "it would read other observations, or mean other positions by its actions",
                f"use env.{name}={str(theirs[name]).lower()}, or train another parent",
            )
    if dataset.num_assets > 1 and model.data.symbols != list(dataset.bars.symbols):
        raise RegistryError(
            f"{model.model_id} was trained on {', '.join(model.data.symbols)} in this order, this run has "
            f"{', '.join(dataset.bars.symbols)}",
            f"use data.symbols=[{','.join(model.data.symbols)}]",
        )
    validation_start, last_fitted = dataset.splits()["validation"][0], model.data.splits["train"][1]
    if last_fitted >= validation_start:
        raise RegistryError(
            f"{model.model_id} was trained on rows up to {last_fitted}, and this run chooses by rows from "
            f"{validation_start} on",
            "use a parent with earlier splits, or later validation rows",
        )
    test_start = dataset.splits()["test"][0]
    last_seen = model.data.splits["validation"][1]
    if last_seen >= test_start:
        raise RegistryError(
            f"{model.model_id} was trained and chosen on rows up to {last_seen}, and this run is tested from "
            f"{test_start} on",
            "use a parent with earlier splits, or later test rows",
        )


def require_parents(plan: Plan, config: TrainingConfig) -> None:
    """Apply `upstream.missing`: train what is missing below, refuse, or ask on a terminal.

    Raises RegistryError naming what is missing and the commands that train it.
    """
    if not plan.missing or config.upstream.missing == "train":
        return
    names = ", ".join(planned.key for planned in plan.missing)
    if config.upstream.missing == "ask" and ask(f"{names} not in the registry: train now?"):
        return
    raise RegistryError(
        f"the registry has no {names} for this data, split, preprocessing, trainer and seed",
        "add upstream.missing=train, or name a model with upstream.cnn_lstm_model=, rl_model= or models=",
    )


def ask(question: str) -> bool:
    """Yes or no on a terminal; no without one."""
    if not sys.stdin.isatty():
        return False
    return input(f"{question} [y/N] ").strip().lower() in {"y", "yes"}
