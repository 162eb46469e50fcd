"""Plans a run, trains what is missing, judges and registers every stage, and reports."""

import contextlib
import dataclasses
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeVar

import torch

from trade_agent.config import schema
from trade_agent.config.load import content, leaves
from trade_agent.config.schema import TrainingConfig
from trade_agent.envs.gymnasium_tasks import make_env
from trade_agent.errors import ConfigError, DataError, TrainingDivergedError, TrialPrunedError
from trade_agent.evaluation.grading import GradePolicy, policy_from_dict
from trade_agent.registry.environment import describe_environment
from trade_agent.registry.metadata import ModelMetadata
from trade_agent.registry.signing import Signing
from trade_agent.registry.store import ModelRegistry
from trade_agent.search.trial import StudyTrial
from trade_agent.training.checkpoint import FOLDER, Checkpoints
from trade_agent.training.dataset import MarketDataset, build_dataset, load_data
from trade_agent.training.device import DeviceManager
from trade_agent.training.distributed import find_world, share
from trade_agent.training.error_handler import TrainingErrorHandler
from trade_agent.training.memory import is_out_of_memory
from trade_agent.training.monitoring.open import require_monitoring, watching
from trade_agent.training.monitoring.watch import Watch
from trade_agent.training.plan import (
    Plan,
    PlannedStage,
    build_plan,
    fit_to_parents,
    named_references,
    require_parents,
)
from trade_agent.training.preprocessor_manager import PreprocessorManager
from trade_agent.training.progress import ProgressReporter
from trade_agent.training.reference import ReferenceResult, run_reference
from trade_agent.training.registration import copies_of, models_tried, register_stage, stage_run_id
from trade_agent.training.report import print_plan, print_result, write_history
from trade_agent.training.results import TrainingResult
from trade_agent.training.resume import (
    continued,
    default_run_dir,
    locked,
    require_same_data,
    resume_command,
    stored_run,
    write_config,
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
        self.run_dir = Path(self.world.agreed(str(run_dir or default_run_dir(config))))
        stored = stored_run(self.run_dir)
        self.handler = TrainingErrorHandler(self.run_dir, resumed=bool(stored))  # knows what was written before
        self.stored: dict[str, Any] = self.world.agreed(stored)  # empty for a run that begins
        config = self.world.together(lambda: continued(config, self.run_dir))
        # One of a new run's processes may have looked before another one wrote.
        self.config = dataclasses.replace(config, run_id=self.world.agreed(config.run_id))
        asked = config.device.processes
        self.processes: int = self.stored.get("processes") or (asked if asked > 1 else self.world.size)
        self.stop = StopFlag(resume_command(self.run_dir))
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
        # At the start: the files may change while a long run goes on, and others may end trials of the study.
        self.environment: dict[str, str] = self.stored.get("environment") or describe_environment()
        self.study: str = self.stored.get("study", trial.study.study_name if trial else "")
        self.trials_lost: int = self.stored.get("trials_lost", trial.unregistered() if trial else 0)

    def run(self) -> TrainingResult | ReferenceResult:
        """Train what the config asks for. Returns the result of the stage that the run is for, and prints it.

        With env=gymnasium that is one agent on one task, of which nothing is registered.
        """
        self.require_processes()
        with contextlib.ExitStack() as held, stop_on_signals(self.stop):
            if self.stored:
                # Before anything can fail: what another process is at work on is not ours to write an error into.
                self.world.together(lambda: held.enter_context(locked(self.run_dir)) if self.world.main else None)
            held.enter_context(self.handler)
            begun = self._check()
            with self._lock():
                self._write_run(begun)
                return self._train_on_task() if begun is None else self._train_stages(*begun)

    def begin(self) -> None:
        """What comes before the training: looks for all that can be wrong with the input, and writes what the run is.

        The processes that then train it are started on its folder.
        """
        if self.stored:
            with locked(self.run_dir):
                write_config(self.run_dir, self.config)  # what may change of it
            return
        if self.config.upstream.missing != "ask":  # who is asked needs the plan; else the first worker prints it
            self.progress = ProgressReporter(quiet=True)
        begun = self._check()
        with self._lock():
            self._write_run(begun)

    def require_processes(self) -> None:
        """Raises ConfigError where the run is one of more or fewer processes than these."""
        if self.processes == self.world.size:
            return
        command = self.stop.resume if self.stored else self.config.command or "python train.py ..."
        raise ConfigError(
            f"the run is one of {self.processes} processes, and here are {self.world.size}",
            f"train.py starts as many as it needs: {command}",
        )

    def _lock(self) -> AbstractContextManager[None]:
        """The lock of a new run's folder, which is made only now that nothing is wrong with the input."""
        return contextlib.nullcontext() if self.stored or not self.world.main else locked(self.run_dir)

    def _check(self) -> tuple[MarketDataset, Plan] | None:
        """All that can be wrong with the input, in one process or another, before anything is written.

        Returns what is to be trained on what; None for a gymnasium task.
        """
        self.world.together(self._check_settings)
        if isinstance(self.config.env, schema.GymnasiumConfig):
            return None
        dataset, plan = self.world.together(self.prepare)
        prints = self.world.gathered(dataset.bars.fingerprint)
        self._agree(plan)
        print_plan(self.progress, plan, dataset, self.devices.report(), self.config)
        self.world.together(lambda: self._check_plan(dataset, plan, prints))
        return dataset, plan

    def _check_settings(self) -> None:
        if self.processes > 1 and self.config.device.on_oom == "cpu":
            raise ConfigError("device.on_oom=cpu is for one process", "leave device.on_oom=stop")
        if self.world.main:
            require_monitoring(self.config.monitoring)
        if isinstance(self.config.env, schema.GymnasiumConfig):
            make_env(self.config.env.id).close()  # refuses what the agents cannot act in
            assert isinstance(self.config.model, schema.AgentModel)
            self._check_shares(self.config.stage, self.config.model)

    def _check_shares(self, stage: schema.StageConfig, model: schema.AgentModel) -> None:
        """Raises ConfigError where the work of an agent cannot be divided among the processes."""
        share(model.num_envs, "model.num_envs", self.processes)
        share(model.batch_size, "model.batch_size", self.processes)
        if self.processes > 1 and isinstance(stage, schema.RlStage) and stage.copies > 1:
            raise ConfigError(
                f"stage.copies={stage.copies} is for one process, and the run is one of {self.processes}",
                "use stage.copies=1, or one process",
            )

    def _check_plan(self, dataset: MarketDataset, plan: Plan, prints: list[str]) -> None:
        if len(set(prints)) > 1:
            found = ", ".join(each[:12] for each in prints)
            raise DataError(f"the processes read different data: fingerprints {found}", "give all hosts the same file")
        for planned in plan.to_train:
            if isinstance(planned.model, schema.AgentModel):
                self._check_shares(planned.stage, planned.model)
        if self.stored:  # the plan was agreed to when the run began
            require_same_data(self.stored, dataset.bars.fingerprint)
        elif self.world.main:
            require_parents(plan, self.config)
        for folder in (self.registry.root, self.preprocessors.root):
            check_writable(folder)
        self.registry.signing.check(self.registry.root, writes=True)

    def _write_run(self, begun: tuple[MarketDataset, Plan] | None) -> None:
        """What the run is, before it starts: config, processes, versions, plan, data and what was found in them."""
        if not self.world.main:
            return
        about = {
            "environment": self.environment,
            "processes": self.processes,
            "study": self.study,
            "trials_lost": self.trials_lost,
        }
        if begun is not None:
            dataset, plan = begun
            about |= {
                "plan": [planned.line for planned in plan.stages],
                "data": {"fingerprint": dataset.bars.fingerprint, "splits": dataset.splits()},
                "findings": {name: value for name, value in dataset.validation.to_dict().items() if name != "path"},
            }
        write_run(self.run_dir, self.config, about=about)

    def _train_on_task(self) -> ReferenceResult:
        """A run on a gymnasium task, of which nothing is registered."""
        self.handler.stage = "reference"

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
        if self.world.main:
            self.handler.settle()
        return result

    def _watching(
        self, stage: str, folder: Path, score: str, trial: StudyTrial | None
    ) -> AbstractContextManager[Watch]:
        config = self.config
        if not self.world.main:
            return contextlib.nullcontext(Watch())
        if self.world.size > 1:
            trial = None  # pruned by itself it would leave the others waiting
        return watching(
            config.monitoring,
            stage=stage,
            score=score,
            folder=folder,
            run_id=config.run_id,
            params=dict(leaves(content(config))),
            trial=trial,
        )

    def _train_stages(self, dataset: MarketDataset, plan: Plan) -> TrainingResult:
        """Train and register what the plan finds missing."""
        for planned in plan.to_train:
            (number,) = self.world.most(self.stop.number)
            if number:
                self.stop.raise_stopped(number)
            self.handler.stage = planned.key
            result, outcome = self.train_stage(planned, plan, dataset)
        if self.world.main:
            self.handler.settle()
        memory = self.devices.memory_used_bytes()
        print_result(self.progress, result, outcome.comparisons, memory, self.run_dir)
        return result

    def _agree(self, plan: Plan) -> None:
        """Take the plan of the first process, should the registry have changed between two looks at it."""
        found = [planned.found.model_id if planned.found else None for planned in plan.stages]
        for planned, identifier in zip(plan.stages, self.world.agreed(found), strict=True):
            planned.found = self.registry.get(identifier) if identifier else None

    def prepare(self) -> tuple[MarketDataset, Plan]:
        """Everything that can be wrong with the input shows here: data, references, contracts. Writes nothing."""
        config = self.config
        references = named_references(config, self.registry)
        loaded = load_data(config.data, config.evaluation)
        window_bars, horizons = references.window(config)
        # Who only starts others leaves the GPU to them.
        device = self.devices.device if self.processes == self.world.size else torch.device("cpu")
        dataset = build_dataset(loaded, config, window_bars=window_bars, horizons=horizons, device=device)
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
        planned.found = metadata = self.world.agreed(stored)
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
        """Those of one stage of this run, of which the folder now says that it is under way."""
        checkpoints = Checkpoints(
            self.run_dir / FOLDER / key,
            every_seconds=self.config.trainer.checkpoint_seconds,
            stop=self.stop,
            world=self.world,
        )
        checkpoints.note()
        return checkpoints

    def _cut_off(self) -> set[str]:
        """Run ids of stages that an earlier process may have registered without coming to their end, which is the
        removal of their checkpoints: they go through their end once more, and register nothing a second time."""
        folder = self.run_dir / FOLDER
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
        tried = models_tried(planned, plan, dataset=dataset, registry=self.registry, seed=self.config.seed)
        if planned is plan.target:
            tried += self.trials_lost * copies_of(planned.recipe)
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

    def _run_stage(self, planned: PlannedStage, plan: Plan, context: StageContext) -> StageOutcome:
        """Load the parents, verified, and hand over to the stage."""
        stage, model = planned.stage, planned.model
        parents = [self._parent(role, plan[key]) for role, key in planned.parents]
        if isinstance(stage, schema.CnnLstmStage) and isinstance(model, schema.CnnLstmModel):
            return cnn_lstm.run(context, stage=stage, model=model)
        if isinstance(stage, schema.RlStage) and isinstance(model, schema.AgentModel):
            return rl.run(context, model=model, forecaster=parents[0], copies=stage.copies)
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
        return register_stage(
            planned,
            plan,
            outcome,
            config=self.config,
            dataset=dataset,
            registry=self.registry,
            preprocessors=self.preprocessors,
            environment=self.environment,
            study=self.study if planned is plan.target else "",
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


def check_writable(folder: Path) -> None:
    """Raise ConfigError when the registry could not be written: better now than after training."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        what = f"paths.models: {folder} cannot be written ({error.strerror})"
        raise ConfigError(what, "name a folder that can") from error


def grading_policy(grading: schema.GradingConfig) -> GradePolicy:
    """The typed policy. Raises ConfigError naming the field that is wrong."""
    return policy_from_dict(
        {"id": grading.id, "forecaster": grading.forecaster, "trading": grading.trading}, where="grading"
    )
