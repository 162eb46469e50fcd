"""The agents on gymnasium tasks, beside published returns.

    python -m benchmarks.reference [--only Pendulum-v1] [--algorithms sac] [--seeds 3] [--workers 1]

Prints one JSON line a figure and draws the learning curves. A unit (task, algorithm, seed) that is finished leaves a
small file in the results folder, and is not run again while its settings stay the same; what is not finished is listed
as such. Stop and start it at will; `--seeds 0` runs nothing and prints every result that is kept. Needs
`pip install 'trade-agent[reference]'`.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.arguments import Names
from benchmarks.intervals import mean_interval
from benchmarks.machine import machine
from trade_agent import safe_io
from trade_agent.config.load import compose_config, load_config
from trade_agent.training.reference import ReferenceResult
from trade_agent.training.unified_manager import UnifiedTrainingManager

FOLDER = Path(__file__).resolve().parent
RESULTS = FOLDER / "results/reference"
DEFAULT_SEEDS = 3
TOLERANCE = 0.1  # the mean over seeds may be worse than the published return by this share of it


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """published: mean return of one run of rl-zoo. overrides: of `python train.py`, chosen on seed 1 where required.

    What is not required is for the record: hours of CPU, run only where `--only` names the task.
    """

    task: str
    algorithm: str
    published: float
    env_steps: int
    required: bool
    overrides: tuple[str, ...]

    @property
    def threshold(self) -> float:
        return self.published - TOLERANCE * abs(self.published)

    @property
    def settings(self) -> list[str]:
        """What a result depends on, as overrides of the command line; the seed comes on top."""
        budget = "on_policy" if self.algorithm == "ppo" else "off_policy"
        return [
            "stage=rl",
            "env=gymnasium",
            f"env.id={self.task}",
            f"model={self.algorithm}",
            f"trainer.{budget}_env_steps={self.env_steps}",
            "trainer.validation_checks=20",
            "device=cpu",
            *self.overrides,
        ]


OFF_POLICY = ("model.hidden_sizes=[256,256]", "model.batch_size=256", "model.learning_rate=1e-3")
CRITIC = ("model.critic_learning_rate=1e-3",)
# Half of the updates of the published runs, of half of their batch: a seed fits into half an hour of one core.
LANDER = (
    *("model.hidden_sizes=[256,256]", "model.batch_size=128", "model.env_steps_per_update=2", "model.tau=0.01"),
    *("model.warmup_env_steps=10_000", "env.check_episodes=50"),
)
RATES = ("model.learning_rate=7e-4", "model.critic_learning_rate=7e-4", "model.alpha_learning_rate=7e-4")
UNITS = (
    Unit(
        task="Pendulum-v1",
        algorithm="sac",
        published=-157.0,
        env_steps=20_000,
        required=True,
        overrides=(*OFF_POLICY, *CRITIC, "model.env_steps_per_update=1", "model.num_envs=1"),
    ),
    Unit(
        task="Pendulum-v1",
        algorithm="td3",
        published=-152.0,
        env_steps=20_000,
        required=True,
        overrides=(*OFF_POLICY, *CRITIC, "model.env_steps_per_update=1", "model.num_envs=1"),
    ),
    Unit(
        task="Pendulum-v1",
        algorithm="ppo",
        published=-172.0,
        env_steps=100_000,
        required=True,
        overrides=(
            *("model.num_envs=4", "model.rollout_steps=1024", "model.epochs=10", "model.batch_size=64"),
            *("model.gamma=0.95", "model.gae_lambda=0.95", "model.learning_rate=1e-3"),
            *("model.learning_rate_schedule=linear", "model.normalise_reward=true", "model.activation=silu"),
            "env.check_episodes=50",
        ),
    ),
    Unit(
        task="LunarLanderContinuous-v3",
        algorithm="ppo",
        published=271.0,
        env_steps=1_000_000,
        required=True,
        overrides=(
            *("model.num_envs=16", "model.rollout_steps=1024", "model.epochs=4", "model.batch_size=64"),
            *("model.gamma=0.999", "model.gae_lambda=0.98", "model.entropy_coefficient=0.01"),
            *("model.activation=silu", "model.normalise_reward=true"),
        ),
    ),
    Unit(
        task="LunarLanderContinuous-v3",
        algorithm="td3",
        published=207.0,
        env_steps=300_000,
        required=True,
        overrides=(*LANDER, "model.gamma=0.98", "model.learning_rate=1e-3", *CRITIC),
    ),
    Unit(
        task="LunarLanderContinuous-v3",
        algorithm="sac",
        published=260.0,
        env_steps=500_000,
        required=True,
        overrides=(*LANDER, "model.replay_capacity=500_000", "model.learning_rate_schedule=linear", *RATES),
    ),
    Unit(
        task="BipedalWalker-v3",
        algorithm="sac",
        published=298.0,
        env_steps=500_000,
        required=False,
        overrides=(*LANDER, "model.gamma=0.98", "model.replay_capacity=300_000", *RATES),
    ),
    Unit(
        task="BipedalWalker-v3",
        algorithm="td3",
        published=306.0,
        env_steps=1_000_000,
        required=False,
        overrides=(*LANDER, "model.gamma=0.98", "model.learning_rate=1e-3", *CRITIC),
    ),
    Unit(
        task="MountainCarContinuous-v0",
        algorithm="sac",
        published=94.7,
        env_steps=50_000,
        required=False,
        overrides=("model.gamma=0.9999", "model.batch_size=512", "model.tau=0.01", "model.env_steps_per_update=1"),
    ),
    Unit(
        task="MountainCarContinuous-v0",
        algorithm="td3",
        published=93.5,
        env_steps=300_000,
        required=False,
        overrides=(*OFF_POLICY, *CRITIC, "model.exploration_noise=0.5", "model.env_steps_per_update=2"),
    ),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    tasks = sorted({unit.task for unit in UNITS})
    parser.add_argument("--only", action=Names, known=tasks, default=(), help="tasks")
    parser.add_argument("--algorithms", action=Names, known=["ppo", "sac", "td3"])
    parser.add_argument("--seeds", type=int, default=DEFAULT_SEEDS)
    parser.add_argument("--workers", type=int, default=1, help="units at a time, one core each")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the finished units")
    options = parser.parse_args()
    units = [unit for unit in UNITS if unit.task in (options.only or tasks) and unit.algorithm in options.algorithms]
    wanted = [unit for unit in units if unit.required or options.only]
    run_missing(wanted, options.seeds, options.results, options.workers)
    for unit in units:
        known = stored(unit, options.results)
        count = options.seeds or max([DEFAULT_SEEDS, *(result["seed"] for result in known)])
        line = figure(unit, [result for result in known if result["seed"] <= count], count)
        print(json.dumps(line), flush=True)
    plot(options.results, (FOLDER if options.results == RESULTS else options.results) / "reference.png")


def path_of(unit: Unit, seed: int, results: Path) -> Path:
    return results / unit.task / f"{unit.algorithm}_{seed}.json"


def stored(unit: Unit, results: Path) -> list[dict[str, Any]]:
    """Finished seeds of a unit with the settings of now, in their order."""
    paths = (results / unit.task).glob(f"{unit.algorithm}_*.json")
    known = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    return sorted((result for result in known if result["settings"] == unit.settings), key=lambda kept: kept["seed"])


def run_missing(units: Sequence[Unit], seeds: int, results: Path, workers: int) -> None:
    """Run what is not finished, one file each; a unit that fails is told and left unfinished."""
    missing = []
    for seed in range(1, seeds + 1):
        for unit in units:
            if seed not in {result["seed"] for result in stored(unit, results)}:
                missing.append((unit, seed))
    with ProcessPoolExecutor(workers) as pool:
        futures = {pool.submit(run_unit, unit, seed, results): (unit, seed) for unit, seed in missing}
        for count, future in enumerate(as_completed(futures), start=1):
            unit, seed = futures[future]
            outcome = "finished" if future.exception() is None else f"failed: {future.exception()}"
            print(
                f"[{count}/{len(missing)}] {unit.task} {unit.algorithm} {seed} {outcome}", file=sys.stderr, flush=True
            )


def run_unit(unit: Unit, seed: int, results: Path) -> None:
    """Train and evaluate one unit in this process, and keep the result."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        overrides = [*unit.settings, f"seed={seed}", f"paths.outputs={folder}", f"paths.models={folder}/models"]
        result = UnifiedTrainingManager(load_config(compose_config(overrides)), run_dir=Path(folder) / "run").run()
    assert isinstance(result, ReferenceResult)
    path = path_of(unit, seed, results)
    path.parent.mkdir(parents=True, exist_ok=True)
    safe_io.write_json(
        path,
        {
            "settings": unit.settings,
            "seed": seed,
            "mean_return": result.metrics["mean_return"],
            "checks": [[steps, round(score, 2)] for steps, score in result.checks],
            "env_steps": result.env_steps,
            "seconds": round(result.duration_seconds, 1),
            "machine": machine(),
        },
    )


def figure(unit: Unit, results: Sequence[dict[str, Any]], wanted: int) -> dict[str, Any]:
    """Mean over seeds of the mean return of 100 unseen episodes, beside the published one.

    Whether the target is met is said when all seeds are there, not before.
    """
    returns = [result["mean_return"] for result in results]
    reached, interval = mean_interval(returns) if returns else (None, None)
    finished = len(results) >= wanted
    return {
        "figure": f"{unit.task} {unit.algorithm}",
        "unit": "return of an episode",
        "published": unit.published,
        "target": round(unit.threshold, 1),
        "reached": None if reached is None else round(reached, 1),
        "interval": None if interval is None else [round(value, 1) for value in interval],
        "by_seed": [round(value, 1) for value in returns],
        "met": reached >= unit.threshold if finished and reached is not None else None,
        "required": unit.required,
        "env_steps": unit.env_steps,
        "seconds": [result["seconds"] for result in results],
        "finished": finished,
        "missing": max(wanted - len(results), 0),
    }


def plot(results: Path, path: Path) -> None:
    """Learning curves of all kept seeds, one panel for each task and algorithm; the published return is dashed."""
    from matplotlib.figure import Figure

    known = [(unit, found) for unit in UNITS if (found := stored(unit, results))]
    if not known:
        return
    columns = min(3, len(known))
    rows = -(-len(known) // columns)
    picture = Figure(figsize=(4.0 * columns, 3.0 * rows), layout="constrained")
    panels = picture.subplots(rows, columns, squeeze=False).flatten()
    for panel, (unit, found) in zip(panels, known, strict=False):
        for result in found:
            panel.plot(*zip(*result["checks"], strict=True), label=f"seed {result['seed']}")
        panel.axhline(unit.published, color="black", linestyle="--", label="published")
        panel.set_title(f"{unit.task} {unit.algorithm}", fontsize="small")
        panel.set_xlabel("environment steps")
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("mean return of an episode")
    panels[0].legend(fontsize="x-small")
    for panel in panels[len(known) :]:
        panel.set_visible(False)
    picture.savefig(path, dpi=100)


if __name__ == "__main__":
    main()
