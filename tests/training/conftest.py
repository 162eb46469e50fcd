"""Tiny settings of the whole training path, and one set of trained models that many tests look at."""

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from trade_agent.config.load import compose_config, load_config
from trade_agent.config.schema import StepConfig, TrainingConfig
from trade_agent.envs.rules import MarketRules
from trade_agent.envs.series import MarketSeries
from trade_agent.training.checkpoint import no_checkpoints
from trade_agent.training.dataset import MarketDataset
from trade_agent.training.distributed import World
from trade_agent.training.results import TrainingResult
from trade_agent.training.stages import cnn_lstm, trading
from trade_agent.training.stages.context import Parent, StageContext
from trade_agent.training.unified_manager import UnifiedTrainingManager

WINDOW_BARS = 8
TINY = (
    "trainer=smoke",
    "device=cpu",
    "device.threads=1",
    "preprocessing=minimal",
    "data.start=2011-06-01",
    "evaluation.min_bars=300",
    "evaluation.bootstrap_samples=100",
    "evaluation.cost_sensitivity_bps=[10]",
    "env.episode_bars=32",
    "trainer.forecaster_epochs=1",
    "trainer.off_policy_env_steps=256",
    "trainer.on_policy_env_steps=256",
    "trainer.joint_off_policy_env_steps=128",
    "trainer.joint_on_policy_env_steps=128",
    "trainer.gate_epochs=1",
    "trainer.validation_checks=1",
)
FORECASTER = (f"window_bars={WINDOW_BARS}", "horizons=[1,2]", "conv_channels=[8]", "lstm_hidden=8", "batch_size=64")

LoadConfig = Callable[..., TrainingConfig]
RunStage = Callable[..., TrainingResult]


def _load(root: Path, *overrides: str) -> TrainingConfig:
    forecaster = "model" if "stage=cnn_lstm" in overrides else "upstream.cnn_lstm.model"
    sizes = tuple(f"{forecaster}.{setting}" for setting in FORECASTER)
    paths = (f"paths.models={root}/models", f"paths.outputs={root}/outputs")
    every = (*TINY, *sizes, *paths, *overrides)
    return load_config(compose_config(every), "python train.py " + " ".join(overrides))


def _run(root: Path, *overrides: str) -> TrainingResult:
    return UnifiedTrainingManager(_load(root, *overrides), quiet=True).run()


@pytest.fixture(scope="session")
def load() -> LoadConfig:
    """load(root, *overrides): a typed config in tiny settings whose models and runs lie under `root`."""
    return _load


@pytest.fixture(scope="session")
def run() -> RunStage:
    """run(root, *overrides): train it quietly."""
    return _run


def _hide_pictures(patch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than training does here; tests/evaluation tests it, and test_enhanced_training draws."""
    patch.setattr(trading, "_picture", lambda *arguments: "equity.png")
    patch.setattr(cnn_lstm, "_picture", lambda *arguments: "forecast.png")


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    _hide_pictures(monkeypatch)


@dataclass(frozen=True)
class Trained:
    """A registry with a forecaster, an agent and a hybrid of each algorithm, and an ensemble of the hybrids."""

    root: Path
    result: TrainingResult
    config: TrainingConfig
    manager: UnifiedTrainingManager
    dataset: MarketDataset
    cache: dict[tuple[str, ...], Any] = field(default_factory=dict)

    def settings(self, *overrides: str) -> TrainingConfig:
        """A config on this registry; groups (stage=, model=) come first. Its run id is not its own, so it is no
        config to register under."""
        groups = tuple(item for item in overrides if item.split("=")[0] in ("stage", "model"))
        if groups not in self.cache:
            self.cache[groups] = _load(self.root, *groups)
        config: TrainingConfig = copy.deepcopy(self.cache[groups])
        for item in overrides[len(groups) :]:  # set by hand: composing anew takes a third of a second
            name, value = item.split("=", 1)
            *path, leaf = name.split(".")
            node = functools.reduce(getattr, path, config)
            assert hasattr(node, leaf), name
            plain = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={value}"]))["value"]  # type: ignore
            setattr(node, leaf, [StepConfig(**step) for step in plain] if leaf == "steps" else plain)
        return config

    def parent(self, role: str, model_type: str, algorithm: str = "") -> Parent:
        """A registered model as a stage gets it. Its tensors are shared by all tests."""
        key = (role, model_type, algorithm)
        if key not in self.cache:
            self.cache[key] = self._parent(role, model_type, algorithm)
        parent: Parent = self.cache[key]
        return parent

    def _parent(self, role: str, model_type: str, algorithm: str) -> Parent:
        found = self.manager.registry.find(
            model_type, lambda model: not algorithm or model.contract["algorithm"] == algorithm
        )
        loaded = self.manager.registry.load(found[-1].model_id)
        return Parent(role=role, model_id=loaded.metadata.model_id, state=loaded.state)

    def score(self, parent: Parent) -> float:
        """What the registry says of a parent on validation rows."""
        value = self.manager.registry.get(parent.model_id).objective.value
        assert value is not None
        return value

    def context(self, folder: Path, config: TrainingConfig | None = None) -> StageContext:
        config = config or self.config
        return StageContext(
            dataset=self.dataset,
            trainer=config.trainer,
            evaluation=config.evaluation,
            grading=self.manager.grading,
            episode_bars=config.env.episode_bars,
            seed=config.seed,
            device=torch.device("cpu"),
            compiled=config.device.compile,
            progress=self.manager.progress,
            folder=folder,
            checkpoints=no_checkpoints(),
            world=World(),
            num_trials=1,
        )


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """One run of stage=ensemble on an empty registry. Tests read it and leave it as it is."""
    root = tmp_path_factory.mktemp("trained")
    config = _load(root, "stage=ensemble", "model.combiner=gate")
    manager = UnifiedTrainingManager(config, run_dir=root / "run", quiet=True)
    with pytest.MonkeyPatch.context() as patch:
        _hide_pictures(patch)
        result = manager.run()
    dataset, _ = manager.prepare()
    return Trained(root, result, config, manager, dataset)


@pytest.fixture
def series() -> MarketSeries:
    """80 bars of 2 assets, a random walk whose open is not the last close."""
    random = np.random.default_rng(5)
    close = 100.0 * np.exp(np.cumsum(random.normal(0.0, 0.01, (80, 2)), axis=0))
    open_ = close * np.exp(random.normal(0.0, 0.003, (80, 2)))
    return MarketSeries(
        open=torch.tensor(open_), close=torch.tensor(close), tradable=torch.ones(80, 2, dtype=torch.bool)
    )


@pytest.fixture
def rules() -> MarketRules:
    return MarketRules(commission_bps=5.0, periods_per_year=252.0)
