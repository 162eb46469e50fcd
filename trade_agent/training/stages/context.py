"""What a stage is given and what it hands back."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from trade_agent.config.schema import EvaluationConfig, TrainerConfig
from trade_agent.evaluation.grading import GradeDecision, GradePolicy
from trade_agent.evaluation.significance import Comparison
from trade_agent.training.checkpoint import Checkpoints
from trade_agent.training.dataset import MarketDataset
from trade_agent.training.distributed import World
from trade_agent.training.monitoring.watch import Watch
from trade_agent.training.progress import ProgressReporter


@dataclass(frozen=True, slots=True, kw_only=True)
class Parent:
    """A registered model that a stage builds on, loaded and verified."""

    role: str  # forecaster | agent | member
    model_id: str
    state: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class StageContext:
    """The surroundings of one stage of one run."""

    dataset: MarketDataset
    trainer: TrainerConfig
    evaluation: EvaluationConfig
    grading: GradePolicy
    episode_bars: int
    seed: int
    device: torch.device
    compiled: bool | Literal["auto"]  # whether the step of the market and the agent are compiled
    progress: ProgressReporter
    folder: Path  # of this stage's pictures and tables
    checkpoints: Checkpoints
    world: World
    num_trials: int  # models of this kind judged on some of these test rows, this one included
    capture: bool = False  # whether updates of agents and steps of the market are replayed as CUDA graphs
    watch: Watch = field(default_factory=Watch)  # where metrics and validation scores go; by default nowhere


@dataclass(frozen=True, slots=True, kw_only=True)
class StageOutcome:
    """A trained and evaluated model, not registered yet.

    contract: what a user of the model must know. objective: value on the validation rows, one of the figures of
    `validation`. metrics, baselines and report come from the test rows.
    """

    state: dict[str, Any]
    contract: dict[str, Any]
    objective: dict[str, Any]
    validation: dict[str, float]
    metrics: dict[str, float]
    baselines: dict[str, dict[str, float]]
    comparisons: dict[str, Comparison]
    report: dict[str, Any]
    grade: GradeDecision
    headline: tuple[str, float]
    env_steps: int
    history: dict[str, list[float]]
    pictures: list[str] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)


def seed_everything(seed: int, device: torch.device, *labels: str) -> torch.Generator:
    """Seed the library generators for one piece of work, and return a generator of its own on `device`.

    The labels (stage, algorithm) make the seed of a stage independent of what was trained before it in the same run.
    """
    digest = hashlib.sha256("|".join([str(seed), *labels]).encode()).digest()
    derived = int.from_bytes(digest[:8], "big") % 2**63
    torch.manual_seed(derived)
    np.random.seed(derived % 2**32)  # noqa: NPY002  libraries below us may draw from the global generator
    return torch.Generator(device).manual_seed(derived)
