"""Proof that the agents learn: markets whose best possible result is known, and how much of it is reached.

    python -m benchmarks.learning [--only leak,noise] [--variants ppo] [--seeds 3] [--workers 1]

Prints one JSON line a figure and draws learned against optimal policies. A unit (task, variant, seed) that is finished
leaves a small file in the results folder, and is not run again while its settings stay the same; what is not finished
is listed as such. Stop and start it at will; `--seeds 0` runs nothing and prints every result that is kept.
"""

import argparse
import json
import math
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch

from benchmarks.arguments import Names
from benchmarks.learning.figures import AXES, figures, plot_policies
from benchmarks.learning.tasks import TASKS, Task
from benchmarks.machine import machine
from trade_agent import safe_io

FOLDER = Path(__file__).resolve().parents[1]
RESULTS = FOLDER / "results/learning"
DEFAULT_SEEDS = 3
VARIANTS = sorted({variant for task in TASKS.values() for variant in task.variants})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", action=Names, known=list(TASKS), help="tasks")
    parser.add_argument("--variants", action=Names, known=VARIANTS, help="algorithms or markets")
    parser.add_argument("--seeds", type=int, default=DEFAULT_SEEDS, help="of the tasks that do not fix their number")
    parser.add_argument("--workers", type=int, default=1, help="units at a time, one core each")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the finished units")
    options = parser.parse_args()
    units = [
        (name, variant, seed)
        for name in options.only
        for variant in chosen(name, options.variants)
        for seed in range(1, seeds_of(TASKS[name], options.seeds) + 1)
    ]
    run_missing(units, options.results, options.workers)
    report(options.only, options.variants, options.seeds, options.results)


def chosen(name: str, variants: list[str]) -> list[str]:
    return [variant for variant in TASKS[name].variants if variant in variants]


def seeds_of(task: Task, seeds: int) -> int:
    """The task's own number unless the caller asked for none at all."""
    return task.seeds if task.seeds is not None and seeds > 0 else seeds


def kept(results: Path, name: str, variant: str) -> dict[int, dict[str, Any]]:
    """Stored results with the settings of now by seed, in their order."""
    numbers = (path.stem.removeprefix(f"{variant}_") for path in (results / name).glob(f"{variant}_*.json"))
    stored = {int(seed): finished(results, name, variant, int(seed)) for seed in numbers if seed.isdigit()}
    return {seed: result for seed, result in sorted(stored.items()) if result is not None}


def unit_path(results: Path, name: str, variant: str, seed: int) -> Path:
    return results / name / f"{variant}_{seed}.json"


def settings(task: Task, variant: str) -> list[str]:
    """What a result depends on: the variant comes first, so that its groups are chosen before they are changed."""
    return [*task.variants[variant], *task.overrides, f"env_steps={task.env_steps}"]


def finished(results: Path, name: str, variant: str, seed: int) -> dict[str, Any] | None:
    """The stored result of a unit, None when there is none with the settings of now."""
    path = unit_path(results, name, variant, seed)
    if not path.is_file():
        return None
    result = json.loads(path.read_text(encoding="utf-8"))
    return result if result["settings"] == settings(TASKS[name], variant) else None


def run_missing(units: list[tuple[str, str, int]], results: Path, workers: int) -> None:
    """Run every unit that is not finished, one file each; a unit that fails is told and left unfinished."""
    missing = [unit for unit in units if finished(results, *unit) is None]
    if not missing:
        return
    started = time.monotonic()
    with ProcessPoolExecutor(workers, max_tasks_per_child=None) as pool:
        futures = {pool.submit(run_unit, *unit, results): unit for unit in missing}
        for count, future in enumerate(as_completed(futures), start=1):
            label = " ".join(str(part) for part in futures[future])
            left = (time.monotonic() - started) / count * (len(missing) - count)
            error = future.exception()
            outcome = "finished" if error is None else f"failed: {error}"
            print(f"[{count}/{len(missing)}] {label} {outcome}, {left:.0f} s left", file=sys.stderr, flush=True)


def run_unit(name: str, variant: str, seed: int, results: Path) -> None:
    """Train and measure one unit in this process, and keep the result."""
    torch.set_num_threads(1)
    task, started = TASKS[name], time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        overrides = settings(task, variant)[:-1]
        result = task.learn(tuple(overrides), seed, task.env_steps, Path(folder))
    path = unit_path(results, name, variant, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    safe_io.write_json(
        path,
        {
            "settings": settings(task, variant),
            "seconds": round(time.monotonic() - started, 1),
            "machine": machine(),
            **result,
        },
    )


def report(names: list[str], variants: list[str], seeds: int, results: Path) -> None:
    """One JSON line a figure of what was chosen, from its first `seeds` (0: all that are kept), and the pictures.

    A picture shows the first kept seed of every variant of its task, whatever was chosen.
    """
    for name in names:
        task = TASKS[name]
        stored = {variant: kept(results, name, variant) for variant in task.variants}
        for variant in chosen(name, variants):
            wanted = seeds_of(task, seeds or max([DEFAULT_SEEDS, *stored[variant]]))
            known = [result for seed, result in stored[variant].items() if seed <= wanted]
            for line in figures(name, variant, task, known, wanted):
                print(json.dumps({key: rounded(value) for key, value in line.items()}), flush=True)
        if name in AXES and any(stored.values()):
            curves = {variant: next(iter(known.values()))["curve"] for variant, known in stored.items() if known}
            place = FOLDER if results == RESULTS else results
            plot_policies(place / f"learning_{name}.png", name, curves)


def rounded(value: Any) -> Any:
    """Five significant digits: more would only be noise."""
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return float(f"{value:.5g}") if isinstance(value, float) and math.isfinite(value) else value


if __name__ == "__main__":
    main()
