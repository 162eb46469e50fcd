"""Plans a run, trains what is missing, judges and registers every stage, and reports."""

import contextlib
import dataclasses
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from pathlib import Path
from typing import TypeVar

from trade_agent import safe_io
from trade_agent.config import schema
from trade_agent.config.load import content, snapshot, with_run_id
from trade_agent.config.schema import TrainingConfig
from trade_agent.envs.gymnasium_tasks import describe_task
from trade_agent.errors import ConfigError, RegistryError, TrainingDivergedError, TrialPrunedError
from trade_agent.evaluation.grading import MODEL_KINDS, GradePolicy, policy_from_dict
from trade_agent.registry.environment import describe_environment
from trade_agent.registry.metadata import DataInfo, ModelMetadata, Objective, PreprocessorInfo, plain_hash
from trade_agent.registry.signing import Signing
from trade_agent.registry.store import ModelRegistry
from trade_agent.search.trial import StudyTrial
from trade_agent.training.checkpoint import Checkpoints
from trade_agent.training.dataset import MarketDataset, build_dataset, load_data
from trade_agent.training.device import DeviceManager
from trade_agent.training.distributed import find_world
from trade_agent.training.error_handler import TrainingErrorHandler
from trade_agent.training.launch import as_worker, is_worker, launch
from trade_agent.training.memory import is_out_of_memory
from trade_agent.training.monitoring.open import require_monitoring, watching
from trade_agent.training.monitoring.watch import Watch
from trade_agent.training.plan import Plan, PlannedStage, build_plan, fit_to_parents, named_references
from trade_agent.training.preprocessor_manager import PreprocessorManager
from trade_agent.training.progress import ProgressReporter
from trade_agent.training.reference import ReferenceResult, run_reference
from trade_agent.training.report import print_plan, print_result, write_history
from trade_agent.training.results import TrainingResult
from trade_agent.training.resume import (
    RESULT,
    continued,
    holds_run,
    locked,
    require_same_data,
    resume_command,
    stored_config,
    stored_run,
    where_it_began,
    write_run,
)
from trade_agent.training.signals import StopFlag, stop_on_signals
from trade_agent.training.stages import cnn_lstm, ensemble, hybrid, rl
from trade_agent.training.stages.context import Parent, StageContext, StageOutcome

__all__ = [
    "DeviceManager",
    "TrainingConfig",
    "TrainingErrorHandler",
    "TrainingResult",
    "UnifiedTrainingManager",
]

T = TypeVar("T")


class UnifiedTrainingManager:
    """Runs a config from data to a registered model.

    run_dir: folder of this run, by default `<paths.outputs>/<stage>/<date_time>`. quiet: no progress, no tables.
    trial: where the run is one of a search; it may end the run with a TrialPrunedError, and then nothing is registered.
    Every stage is registered as soon as it is finished, so a failure later on loses none of them: the same command
    finds them and goes on.
    """

    def __init__(
        self,
        config: TrainingConfig,
        *,
        run_dir: Path | None = None,
        quiet: bool = False,
        trial: StudyTrial | None = None,
    ) -> None:
        self.trial = trial
        self.world = find_world(config.device.timeout_seconds)
        if config.device.processes > 1 and self.world.size == 1:
            what = f"device.processes={config.device.processes}: several processes are started by train.py"
            raise ConfigError(what, f"run: {config.command or 'python train.py ...'}")
        self.run_dir = Path(self.world.agreed(str(run_dir or default_run_dir(config))))
        self.config = continued(config, self.run_dir) or with_run_id(config)  # a run id names one run in the registry
        outside = 1 if config.device.processes > 1 else self.world.size
        self.stop = StopFlag(resume_command(self.run_dir, started_from_outside=outside))
        self.config = dataclasses.replace(self.config, run_id=self.world.agreed(self.config.run_id))
        self.progress = ProgressReporter(quiet or not self.world.main)
        keys = config.registry.keys
        signing = Signing(config.registry.signing, Path(keys) if keys else None)
        self.registry = ModelRegistry(Path(config.paths.models), durability=config.registry.durability, signing=signing)
        self.preprocessors = PreprocessorManager(Path(config.paths.models) / "preprocessors")
        device = config.device
        self.devices = DeviceManager(
            name=device.name, strict=device.strict, precision=device.precision, threads=device.threads
        )
        self.grading = grading_policy(config.grading)
        stored = self.world.agreed(stored_run(self.run_dir))
        self.stored = stored if stored.get("run_id") == self.config.run_id else {}  # empty for a run that begins
        # At the start: the files may change while a long run goes on.
        self.environment: dict[str, str] = self.stored.get("environment") or describe_environment()

    def run(self) -> TrainingResult | ReferenceResult:
        """Train what the config asks for. Returns the result of the stage that the run is for, and prints it.

        With env=gymnasium that is one agent on one task, of which nothing is registered.
        """
        with (
            # Before anything can fail: what another process is at work on is not ours to write an error into.
            locked(self.run_dir) if self.stored and self.world.main else contextlib.nullcontext(),
            TrainingErrorHandler(
                self.run_dir, self.stop.resume, resumed=bool(self.stored), writes=self.world.main
            ) as handler,
            stop_on_signals(self.stop),
        ):
            if isinstance(self.config.env, schema.GymnasiumConfig):
                return self._train_on_task(self.config.env, handler)
            return self._train_model(handler)

    def _lock(self) -> AbstractContextManager[None]:
        """The lock of a new run's folder, which is made only now that nothing is wrong with the input."""
        return contextlib.nullcontext() if self.stored or not self.world.main else locked(self.run_dir)

    def _train_on_task(self, env: schema.GymnasiumConfig, handler: TrainingErrorHandler) -> ReferenceResult:
        """A run on a gymnasium task, of which nothing is registered."""
        describe_task(env.id)
        if self.world.main:
            require_monitoring(self.config.monitoring)
        with self._lock():
            if self.world.main:
                write_run(self.run_dir, self.config, environment=self.environment)
            handler.stage = "reference"

            def train(checkpoints: Checkpoints) -> ReferenceResult:
                return run_reference(
                    self.config,
                    run_dir=self.run_dir,
                    device=self.devices.device,
                    environment=self.environment,
                    progress=self.progress,
                    checkpoints=checkpoints,
                    watch=watch,
                )

            with self._watching(self.config.model.name, self.run_dir, "mean_return", self.trial) as watch:
                result = self._with_retries(self._checkpoints("reference"), train)
            handler.settle()
        return result

    def _watching(
        self, stage: str, folder: Path, score: str, trial: StudyTrial | None
    ) -> AbstractContextManager[Watch]:
        config = self.config
        if not self.world.main:
            return contextlib.nullcontext(Watch())
        return watching(config.monitoring, stage=stage, score=score, folder=folder, run_id=config.run_id, trial=trial)

    def _train_model(self, handler: TrainingErrorHandler) -> TrainingResult:
        """Train and register what the plan finds missing."""
        dataset, plan = self.prepare()
        self._agree(plan)
        print_plan(self.progress, plan, dataset, self.devices.report(), self.config)
        if self.stored:  # the plan was agreed to when the run began
            require_same_data(self.stored, dataset.bars.fingerprint)
        else:
            require_parents(plan, self.config)
        for folder in (self.registry.root, self.preprocessors.root):
            check_writable(folder)
        if self.world.main:
            require_monitoring(self.config.monitoring)
        self.registry.signing.check(self.registry.root, writes=True)
        with self._lock():
            if self.world.main:
                self._write_run_files(dataset, plan)
            for planned in plan.stages:
                if planned.found is None:
                    if any(self.world.any(self.stop.requested)):
                        self.stop.raise_stopped()
                    handler.stage = planned.key
                    result, outcome = self.train_stage(planned, plan, dataset)
            handler.settle()
        memory = self.devices.memory_used_bytes()
        print_result(self.progress, result, outcome.comparisons, memory, self.run_dir)
        return result

    def _agree(self, plan: Plan) -> None:
        """Take the plan of the first process, should the registry have changed between two looks at it.

        Raises ConfigError where what is to be trained cannot be divided among the processes.
        """
        found = [planned.found.model_id if planned.found else None for planned in plan.stages]
        for planned, identifier in zip(plan.stages, self.world.agreed(found), strict=True):
            planned.found = self.registry.get(identifier) if identifier else None
        for planned in plan.to_train:
            if isinstance(planned.model, schema.AgentModel):
                self.world.share(planned.model.num_envs, "model.num_envs")
                self.world.share(planned.model.batch_size, "model.batch_size")

    def prepare(self) -> tuple[MarketDataset, Plan]:
        """Everything that can be wrong with the input shows here: data, references, contracts. Writes nothing."""
        config = self.config
        references = named_references(config, self.registry)
        loaded = load_data(config.data, config.evaluation)
        window_bars, horizons = references.window(config)
        dataset = build_dataset(loaded, config, window_bars=window_bars, horizons=horizons, device=self.devices.device)
        dataset = fit_to_parents(dataset, self.registry, references)
        plan = build_plan(config, self.registry, dataset, references, unfinished=self._cut_off())
        for planned in plan.to_train:
            if isinstance(planned.model, schema.CnnLstmModel):
                cnn_lstm.check_folds(dataset, planned.model, config.trainer.cross_fit_folds)
        return dataset, plan

    def train_stage(
        self, planned: PlannedStage, plan: Plan, dataset: MarketDataset
    ) -> tuple[TrainingResult, StageOutcome]:
        """Train and register one stage of a plan, whose parents were found or trained before."""
        checkpoints = self._checkpoints(planned.key)
        target = planned is plan.target
        folder = self.run_dir if target else self.run_dir / "upstream" / planned.key
        self.progress.say(f"training {planned.key}")

        def train(checkpoints: Checkpoints) -> StageOutcome:
            with self._folder(folder) as own:
                data = dataset.to(self.devices.device)
                context = self._context(planned, plan, data, own, checkpoints, watch)
                return self._run_stage(planned, plan, context)

        score = "skill_score" if planned.model_type == "cnn_lstm" else "sharpe"
        with self._watching(planned.key, folder, score, self.trial if target else None) as watch:
            outcome = self._with_retries(checkpoints, train)
        stored = self._register(planned, plan, dataset, outcome) if self.world.main else None
        identifier = self.world.agreed(stored.model_id if stored else None)
        planned.found = metadata = stored or self.registry.get(identifier)
        result = self._result(planned, dataset, outcome, metadata, checkpoints.seconds)
        if self.world.main:
            write_history(folder, outcome.history)
            result.write(folder)
            checkpoints.remove()
        self.progress.say(f"  registered {metadata.model_id} in {result.duration_seconds:.0f} s")
        return result, outcome

    @contextlib.contextmanager
    def _folder(self, folder: Path) -> Iterator[Path]:
        """Where a stage draws its pictures: those of all processes but the first are thrown away."""
        if self.world.main:
            folder.mkdir(parents=True, exist_ok=True)
            yield folder
        else:
            with tempfile.TemporaryDirectory() as scratch:
                yield Path(scratch)

    def _with_retries(self, checkpoints: Checkpoints, train: Callable[[Checkpoints], T]) -> T:
        """Train; where that diverges, go back to the last checkpoint with half the learning rates, a few times.

        Where it does not fit the memory of a GPU, not even in parts, train on the CPU if device.on_oom says so.
        """
        while True:
            try:
                return train(checkpoints)
            except TrialPrunedError:
                checkpoints.remove()  # nobody goes on with it
                raise
            except TrainingDivergedError as error:
                if checkpoints.retries >= self.config.trainer.divergence_retries:
                    raise
                checkpoints.roll_back()
                rates = f"learning rates x {0.5**checkpoints.retries:g}"
                self.progress.say(f"  {error.message}: back to the last checkpoint, {rates}")
            except (RuntimeError, MemoryError) as error:
                gpu = self.devices.device.type != "cpu" and self.world.size == 1
                if not is_out_of_memory(error) or not gpu or self.config.device.on_oom == "stop":
                    raise
                self.devices.fall_back()
                self.progress.say(f"  device: {self.devices.device} ({self.devices.reason})")

    def _checkpoints(self, key: str) -> Checkpoints:
        """Those of one stage of this run."""
        return Checkpoints(
            self.run_dir / "checkpoints" / key,
            every_seconds=self.config.trainer.checkpoint_seconds,
            stop=self.stop,
            world=self.world,
        )

    def _cut_off(self) -> set[str]:
        """Run ids of stages that an earlier process may have registered without coming to their end, which is the
        removal of their checkpoints: they go through their end once more, and register nothing a second time."""
        folder = self.run_dir / "checkpoints"
        if not self.stored or not folder.is_dir():
            return set()
        return {stage_run_id(self.config, path.name) for path in folder.iterdir()}

    def _context(
        self,
        planned: PlannedStage,
        plan: Plan,
        dataset: MarketDataset,
        folder: Path,
        checkpoints: Checkpoints,
        watch: Watch,
    ) -> StageContext:
        tried = self._tried(planned, plan, dataset)
        if self.trial is not None and planned is plan.target:
            tried += self.trial.unregistered()
        return StageContext(
            dataset=dataset,
            trainer=self.config.trainer,
            evaluation=self.config.evaluation,
            grading=self.grading,
            episode_bars=self.config.market.episode_bars,
            seed=self.config.seed,
            device=self.devices.device,
            compiled=self.config.device.compile,
            capture=self.config.device.capture,
            progress=self.progress,
            folder=folder,
            checkpoints=checkpoints,
            world=self.world,
            num_trials=tried + 1,
            watch=watch,
        )

    def _tried(self, planned: PlannedStage, plan: Plan, dataset: MarketDataset) -> int:
        """Other models of the same kind that were judged on some of these test rows: each was a chance to be lucky,
        archived since or not.

        The same recipe and seed again is no other chance, and neither are the models this one is built on.
        """
        first, last = dataset.splits()["test"]
        symbols = list(dataset.bars.symbols)
        own = {(plain_hash(planned.recipe), self.config.seed)}
        pending = [found_id(plan[key]) for _, key in planned.parents]
        while pending:
            ancestor = self.registry.get(pending.pop(), include_archived=True)
            own.add(trial_of(ancestor))
            pending += [parent.id for parent in ancestor.parents]

        def overlaps(model: ModelMetadata) -> bool:
            if "test" not in model.data.splits:  # imported
                return False
            start, stop = model.data.splits["test"]
            return model.data.symbols == symbols and start <= last and first <= stop

        kinds = [kind for kind in MODEL_KINDS if MODEL_KINDS[kind] == MODEL_KINDS[planned.model_type]]
        others = {
            trial_of(model) for kind in kinds for model in self.registry.find(kind, overlaps, include_archived=True)
        }
        return len(others - own)

    def _run_stage(self, planned: PlannedStage, plan: Plan, context: StageContext) -> StageOutcome:
        """Load the parents, verified, and hand over to the stage."""
        stage, model = planned.stage, planned.model
        parents = [self._parent(role, plan[key]) for role, key in planned.parents]
        if isinstance(stage, schema.CnnLstmStage) and isinstance(model, schema.CnnLstmModel):
            return cnn_lstm.run(context, stage=stage, model=model)
        if isinstance(stage, schema.RlStage) and isinstance(model, schema.AgentModel):
            return rl.run(context, model=model, forecaster=parents[0])
        if isinstance(stage, schema.HybridStage) and isinstance(model, schema.AgentModel):
            return hybrid.run(
                context,
                stage=stage,
                forecaster_stage=self.config.upstream.cnn_lstm.stage,  # type: ignore[attr-defined]
                model=model,
                forecaster=parents[0],
                agent=parents[1],
            )
        assert isinstance(model, schema.EnsembleModel)
        return ensemble.run(context, model=model, members=parents)

    def _parent(self, role: str, planned: PlannedStage) -> Parent:
        assert planned.found is not None
        loaded = self.registry.load(planned.found.model_id)
        return Parent(role=role, model_id=loaded.metadata.model_id, state=loaded.state)

    def _register(
        self, planned: PlannedStage, plan: Plan, dataset: MarketDataset, outcome: StageOutcome
    ) -> ModelMetadata:
        config, pipeline = self.config, dataset.pipeline
        stored_config = snapshot(config)  # without what came from the environment
        stored = self.preprocessors.save(pipeline, data_fingerprint=dataset.bars.fingerprint, rows=pipeline.fitted_rows)
        return self.registry.register(
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
            parents=[self.registry.pin(found_id(plan[key]), role=role) for role, key in planned.parents],
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
            study=self.trial.study.study_name if self.trial is not None and planned is plan.target else "",
            trainer_profile=config.trainer.name,
            environment=self.environment,
            command=config.command,
            tags=stored_config["tags"],
            notes=stored_config["notes"],
        )

    def _result(
        self,
        planned: PlannedStage,
        dataset: MarketDataset,
        outcome: StageOutcome,
        metadata: ModelMetadata,
        seconds: float,
    ) -> TrainingResult:
        config = self.config
        return TrainingResult(
            stage=planned.stage.name,
            model=planned.model.name,
            model_id=metadata.model_id,
            version=metadata.version,
            grade=metadata.grade,
            objective=outcome.objective,
            validation=outcome.validation,
            metrics=outcome.metrics,
            baselines=outcome.baselines,
            parents=[parent.id for parent in metadata.parents],
            preprocessor_version=metadata.preprocessor.version,
            config_hash=metadata.config_hash,
            data_fingerprint=dataset.bars.fingerprint,
            seed=config.seed,
            device=str(self.devices.device),
            world_size=self.world.size,
            duration_seconds=round(seconds, 3),
            env_steps=outcome.env_steps,
            command=config.command,
            run_id=config.run_id,
            trainer=config.trainer.name,
            grade_decision=outcome.grade.as_dict(),
            report=outcome.report,
            notes=outcome.notes,
            artefacts=[*outcome.pictures, "history.json"],
        )

    def _write_run_files(self, dataset: MarketDataset, plan: Plan) -> None:
        """What the run is, before it starts: config, data findings, plan, versions."""
        about = {
            "plan": [planned.line for planned in plan.stages],
            "data": {"fingerprint": dataset.bars.fingerprint, "splits": dataset.splits()},
            "findings": {name: value for name, value in dataset.validation.to_dict().items() if name != "path"},
        }
        write_run(self.run_dir, self.config, environment=self.environment, about=about)


def run_config(
    config: TrainingConfig,
    *,
    run_dir: Path,
    arguments: Sequence[str],
    trial: StudyTrial | None = None,
    quiet: bool = False,
) -> TrainingResult | ReferenceResult:
    """What `train.py ARGUMENTS` does with its config: train here, as one of several workers, or start these.

    Prints the line that names the result. A run that was finished in this folder is not trained again: so a job that a
    batch system starts once more ends well.
    """
    if (run_dir / RESULT).exists() and holds_run(run_dir, config):
        return finished_result(run_dir)
    if not is_worker() and config.device.processes > 1:
        launch(config.device, run_dir, arguments)
        return read_result(run_dir)  # whose line the first worker has printed
    with as_worker(run_dir) if is_worker() else contextlib.nullcontext():
        manager = UnifiedTrainingManager(config, run_dir=run_dir, trial=trial, quiet=quiet)
        result = manager.run()
    if manager.world.main:
        print(result.headline)
    manager.world.leave()
    return result


def read_result(run_dir: Path) -> TrainingResult | ReferenceResult:
    """What another process has written to `result.json`."""
    values = safe_io.read_json(run_dir / "result.json")
    return TrainingResult(**values) if "model_id" in values else ReferenceResult(**values)


def finished_result(run_dir: Path) -> TrainingResult | ReferenceResult:
    """The result of a run that has ended, and say so; what a process that was killed then has left is removed."""
    result = read_result(run_dir)
    if os.environ.get("RANK", "0") == "0":
        (run_dir / "error.json").unlink(missing_ok=True)
        shutil.rmtree(run_dir / "checkpoints", ignore_errors=True)
        print(f"the run in {run_dir} is finished: nothing is left to do", file=sys.stderr)
        print(result.headline)
    return result


def resume_run(run_dir: Path, *, quiet: bool = False) -> TrainingResult | ReferenceResult:
    """Go on with the run in a folder: registered stages are found, the one under way goes on from its newest
    checkpoint, and one that is finished is left as it is. Raises ConfigError where there is no run."""
    run_dir = run_dir.resolve()
    if (run_dir / RESULT).exists():
        return finished_result(run_dir)
    config = stored_config(run_dir)
    with where_it_began(run_dir):
        return run_config(config, run_dir=run_dir, arguments=[f"resume={run_dir}"], quiet=quiet)


def stage_run_id(config: TrainingConfig, key: str) -> str:
    """By which the registry knows what one stage of a run has registered."""
    return f"{config.run_id}-{key}"


def trial_of(model: ModelMetadata) -> tuple[str, int]:
    """What was tried: the recipe and the seed."""
    return str(model.recipe.get("settings_sha256")), model.seed


def check_writable(folder: Path) -> None:
    """Raise ConfigError when the registry could not be written: better now than after training."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        what = f"paths.models: {folder} cannot be written ({error.strerror})"
        raise ConfigError(what, "name a folder that can") from error


def found_id(planned: PlannedStage) -> str:
    assert planned.found is not None
    return planned.found.model_id


def default_run_dir(config: TrainingConfig) -> Path:
    return Path(config.paths.outputs) / config.stage.name / f"{datetime.now():%Y-%m-%d_%H-%M-%S-%f}"


def grading_policy(grading: schema.GradingConfig) -> GradePolicy:
    """The typed policy. Raises ConfigError naming the field that is wrong."""
    return policy_from_dict(
        {"id": grading.id, "forecaster": grading.forecaster, "trading": grading.trading}, where="grading"
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
