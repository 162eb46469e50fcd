"""What a run prints: its plan before it starts, a table of results against baselines at its end."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trade_agent import safe_io
from trade_agent.config.schema import TrainingConfig
from trade_agent.evaluation.report import results_table
from trade_agent.evaluation.significance import Comparison
from trade_agent.registry.metadata import finite
from trade_agent.training.dataset import MarketDataset
from trade_agent.training.device import DeviceReport
from trade_agent.training.plan import Plan
from trade_agent.training.progress import ProgressReporter
from trade_agent.training.results import TrainingResult


def print_plan(
    progress: ProgressReporter, plan: Plan, dataset: MarketDataset, device: DeviceReport, config: TrainingConfig
) -> None:
    """Data with its findings, device, and the stages to come."""
    bars = dataset.bars
    progress.say(config.command)
    progress.say(
        f"data: {', '.join(bars.symbols)} from {dataset.source}, {bars.num_bars:,} bars "
        f"{str(bars.timestamps[0])[:10]} to {str(bars.timestamps[-1])[:10]}"
    )
    for row in dataset.validation.table_rows():
        progress.say("  " + "  ".join(str(cell) for cell in row))
    for name, (first, last) in dataset.splits().items():
        progress.say(f"  {name:11} {first[:16]} to {last[:16]}")
    looked = f"{len(dataset.causality.points)} bars tried"
    if dataset.causality.ok:
        progress.say(f"  no feature looks ahead ({looked})")
    else:
        progress.say(f"  FEATURES LOOK AHEAD at {len(dataset.causality.leaks)} of {looked}: the grade will be F")
    progress.say(
        f"device: {device.device} ({device.reason}), {device.precision}, {device.threads} threads; "
        f"trainer: {config.trainer.name}"
    )
    if plan.missing:
        progress.say(f"not in the registry ({config.paths.models}): {', '.join(p.key for p in plan.missing)}")
    progress.say("plan: " + " -> ".join(planned.key for planned in plan.stages))
    for planned in plan.stages:
        progress.say(f"  {planned.line}")


def print_result(
    progress: ProgressReporter,
    result: TrainingResult,
    comparisons: Mapping[str, Comparison],
    memory_bytes: int,
    run_dir: Path,
) -> None:
    """The table against baselines, the grade with its reasons, where things are."""
    name = f"hybrid {result.model}" if result.stage == "hybrid" else result.model
    progress.console.print(results_table(name, result.metrics, result.baselines, comparisons))
    # Only what binds: a cap at A+ does not explain a C. `trade-agent info` shows all of them.
    reasons = "; ".join(cap["reason"] for cap in result.grade_decision["caps"] if cap["cap"] == result.grade)
    progress.say(f"grade {result.grade}" + (f" (capped: {reasons})" if reasons else ""))
    objective = result.objective
    progress.say(f"{objective['name']}: {objective['value']:.4f}   trainer: {result.trainer}   seed: {result.seed}")
    if copies := result.notes.get("copies"):
        progress.say(spread_line(copies))
    progress.say(f"peak memory {memory_bytes / 2**20:,.0f} MiB   results in {run_dir}")


def spread_line(copies: dict[str, Any]) -> str:
    """What `Contest.spread` found out, for a reader."""
    return f"the best of {len(copies['scores'])} copies; of all: {copies['mean']:.4f} +- {copies['std']:.4f}"


def write_history(folder: Path, history: dict[str, list[float]]) -> None:
    """Training curves: one list for each metric, in the order of training."""
    safe_io.write_json(folder / "history.json", finite(history))
