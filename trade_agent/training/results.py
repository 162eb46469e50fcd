"""What a run ends with, for people and for programs."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trade_agent import safe_io
from trade_agent.registry.metadata import finite


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingResult:
    """One trained, judged and registered model. `result.json` holds exactly these fields.

    objective: name, value and direction ("max" or "min") on validation rows, one of the figures of `validation`.
    metrics and baselines: test rows.
    parents: ids. artefacts: files of the run folder. duration_seconds: of this stage alone, in all processes that
    worked on it one after another.
    """

    stage: str
    model: str
    model_id: str
    version: str
    grade: str
    objective: dict[str, Any]
    validation: dict[str, float]
    metrics: dict[str, Any]
    baselines: dict[str, Any]
    parents: list[str]
    preprocessor_version: str
    config_hash: str
    data_fingerprint: str
    seed: int
    device: str
    world_size: int
    duration_seconds: float
    env_steps: int
    command: str
    run_id: str
    trainer: str
    grade_decision: dict[str, Any]
    report: dict[str, Any]
    notes: dict[str, Any]
    artefacts: list[str] = field(default_factory=list)

    @property
    def headline(self) -> str:
        """The last line that a run prints."""
        return f"model_id: {self.model_id}"

    def write(self, folder: Path) -> None:
        safe_io.write_json(folder / "result.json", finite(dataclasses.asdict(self)))
