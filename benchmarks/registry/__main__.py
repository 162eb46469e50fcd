"""The registry: what writers that collide and die leave, how it scales, and how fast it is beside MLflow.

    python -m benchmarks.registry [--parts zeros soak scale throughput mlflow] [--folder DISK]

Prints one JSON line a figure. ``mlflow`` builds its own environment in benchmarks/.venvs/mlflow the first time.
"""

import argparse
import fcntl
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.machine import machine
from benchmarks.registry.drafts import draft, populate
from benchmarks.registry.writers import storm
from trade_agent.registry.snapshot import View, read_view
from trade_agent.training.model_registry import ModelRegistry, verify

MLFLOW = "3.17.2"
VENV = Path(__file__).resolve().parents[1] / ".venvs" / "mlflow"
WRITERS, EACH = 8, 25
SOAK_KILLS = 500


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--folder", type=Path, help="where to work, on the disk to be measured")
    options = parser.parse_args()
    for part in options.parts:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            PARTS[part](Path(folder))


def line(figure: str, unit: str, ours: float, *, target: float | None = None, **more: Any) -> None:
    """Print a figure; ``peer`` and ``peer_name`` are what it is set beside."""
    peer = more.get("peer")
    more |= {"ratio": round(ours / peer, 2)} if peer else {}
    load = round(os.getloadavg()[0], 1)
    print(
        json.dumps({"figure": figure, "unit": unit, "ours": ours, "target": target, **more, "load": load} | machine())
    )
    sys.stdout.flush()


# ---------------------------------------------------------------- zeros


def zeros(folder: Path) -> None:
    """Writers that are killed: what was acknowledged is there, once, whole; the same with locks that lock nothing."""
    count_zeros(folder / "a", writers=8, each=100, kills=3)
    count_zeros(folder / "b", writers=16, each=50, kills=8)
    fcntl.flock = fcntl.lockf = lambda *_: None  # type: ignore[assignment]
    count_zeros(folder / "c", writers=8, each=100, kills=3, locks="succeed for everybody")


def count_zeros(root: Path, *, writers: int, each: int, kills: int, locks: str = "real") -> None:
    outcome = storm(root, writers=writers, each=each, kills=kills)
    said = f"{writers} writers x {each}, {outcome.killed} killed, locks {locks}"
    report_zeros(root, said, outcome.acknowledged, outcome.broken_looks, outcome.looks)


def report_zeros(root: Path, said: str, acknowledged: dict[int, str], broken_looks: int, looks: int) -> None:
    """What must not have happened, counted in a registry whose writers said ``acknowledged`` (seed -> id)."""
    models = ModelRegistry(root).find("sac", lambda _: True)
    present = {metadata.seed: metadata.model_id for metadata in models}
    missing = sum(present.get(seed) != identifier for seed, identifier in acknowledged.items())
    line(f"{said}: acknowledged and missing", "models", missing, target=0, acknowledged=len(acknowledged))
    twice = len(models) - len({metadata.version for metadata in models})
    line(f"{said}: numbers given twice", "models", twice + len(models) - len(present), target=0, models=len(models))
    errors = [finding for finding in verify(root, deep=True) if finding.severity == "error"]
    line(f"{said}: damaged, or visible without all files", "findings", len(errors), target=0)
    line(f"{said}: calls of a reader that failed", "calls", broken_looks, target=0, calls=looks)


def soak(folder: Path) -> None:
    """The same for long: storm after storm over one registry, until 500 writers were killed; then all are repeated."""
    acknowledged: dict[int, str] = {}
    killed = looks = broken = rounds = 0
    while killed < SOAK_KILLS:
        outcome = storm(folder, writers=16, each=6, kills=10, number=rounds)
        acknowledged |= outcome.acknowledged
        killed, looks, broken = killed + outcome.killed, looks + outcome.looks, broken + outcome.broken_looks
        rounds += 1
        print(f"{killed} of {SOAK_KILLS} kills, {len(acknowledged)} models, {looks} calls", file=sys.stderr)
    said = f"soak, {rounds} rounds of 16 writers x 6, {killed} killed"
    report_zeros(folder, said, acknowledged, broken, looks)
    registry = ModelRegistry(folder)
    unsaid = {m.seed: m.model_id for m in registry.find("sac", lambda model: model.seed not in acknowledged)}
    lost = sum(registry.register(**draft(seed)).model_id != identifier for seed, identifier in unsaid.items())
    line(f"{said}: committed but not acknowledged, not found again by their runs", "models", lost, target=0,
         models=len(unsaid))  # fmt: skip
    repaired = registry.repair()
    removed = registry.collect_garbage(older_than_hours=0)  # no writer is at work any more
    left = [finding.message for finding in verify(folder)]
    line(f"{said}: left after repair and garbage collection", "findings", len(left), target=0, removed=len(removed),
         repaired=len(repaired), example=left[:1])  # fmt: skip


# ---------------------------------------------------------------- scale


def scale(folder: Path) -> None:
    """10,000 models; and the command line on 1,000."""
    registry = populate(folder / "many", 10_000)
    middle = registry.list()[5_000].id
    timed("exact get of 10,000", lambda: registry.get(middle), 200, target=1.0)
    timed("list of 10,000, by a process that has listed before", registry.list, 9, target=150.0)
    timed("list of 10,000, by one that has not", lambda: ModelRegistry(registry.root).list(), 3)
    timed("rebuild of 10,000", registry.rebuild, 3, target=2000.0)
    register_times(registry, ModelRegistry(folder / "few"))
    kept = read_view(registry.layout).to_bytes()
    differs = kept != read_view(ModelRegistry(registry.root).layout, View()).to_bytes()
    line("kept overview that differs from a rebuilt one", "overviews", int(differs), target=0)
    populate(folder / "models", 1_000)
    command_line(folder / "models")


def register_times(many: ModelRegistry, few: ModelRegistry) -> None:
    """Registrations in turn into a registry of 10,000 and an empty one, each by its own warm process state."""
    many = ModelRegistry(many.root)
    timed("first registration of a process at 10,000", lambda: many.register(**draft(20_000)), 1)
    few.register(**draft(20_000))
    times: dict[ModelRegistry, list[float]] = {many: [], few: []}
    for seed in range(20_001, 20_201):
        for registry, taken in times.items():
            begun = time.perf_counter()
            registry.register(**draft(seed))
            taken.append((time.perf_counter() - begun) * 1000)
    at_many, at_few = (round(statistics.quantiles(taken, n=20)[-1], 2) for taken in times.values())
    line("registration, 95th percentile at 10,000", "ms", at_many, peer=at_few, peer_name="ours, empty", target=1.5)


def command_line(root: Path) -> None:
    look = "finally: print('torch' in sys.modules, file=sys.stderr)"
    code = f"import sys; from trade_agent.cli import main\ntry: main()\n{look}"
    command = [sys.executable, "-c", code, "list", "--json", "--models-dir", str(root)]
    answers = []

    def run() -> None:
        answers.append(subprocess.run(command, capture_output=True, text=True, check=True))

    timed("trade-agent list --json of 1,000, cold process", run, 7, target=500.0)
    assert len(json.loads(answers[-1].stdout)) == 1_000
    line("of these, with torch imported", "processes", sum("True" in each.stderr for each in answers), target=0)


def timed(figure: str, call: Callable[[], object], times: int, *, target: float | None = None) -> None:
    """Print the median wall time of several calls, and their processor time: the first counts what others do too."""
    taken, used = [], []
    for _ in range(times):
        begun, before = time.perf_counter(), processor_seconds()
        call()
        taken.append((time.perf_counter() - begun) * 1000)
        used.append((processor_seconds() - before) * 1000)
    cpu = round(statistics.median(used), 3)
    line(figure, "ms", round(statistics.median(taken), 3), target=target, ours_cpu=cpu)


def processor_seconds() -> float:
    """Processor time of this process and the children that ended."""
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in usage)


# ---------------------------------------------------------------- throughput


def ours(folder: Path) -> float:
    outcome = storm(folder / uuid.uuid4().hex, writers=WRITERS, each=EACH, kills=0)
    assert len(outcome.acknowledged) == WRITERS * EACH
    return round(len(outcome.acknowledged) / outcome.seconds, 1)


def throughput(folder: Path) -> None:
    line(f"registrations by {WRITERS} processes, each waited for", "models/s", ours(folder), target=60.0)


def mlflow(folder: Path) -> None:
    """The same with MLflow on the same disk; ours again beside each, since others use the machine too.

    What MLflow refuses with an error counts as not registered.
    """
    python = environment()
    for store, mode, each, target in (
        ("sqlite", "bare", 25, 10.0),
        ("sqlite", "full", 10, 10.0),
        ("file", "bare", 8, None),  # few: each version takes it longer than the one before
    ):
        home = folder / f"{store}-{mode}"
        home.mkdir()
        uri = f"sqlite:///{home}/mlflow.db" if store == "sqlite" else f"file://{home}/mlruns"
        script = str(Path(__file__).with_name("mlflow_writers.py"))
        command = [str(python), script, uri, mode, str(WRITERS), str(each)]
        before = ours(folder)
        run = subprocess.run(command, capture_output=True, text=True, check=False, cwd=home, timeout=900)
        if run.returncode != 0:
            raise SystemExit(f"MLflow failed:\n{run.stderr[-2000:]}")
        answer = json.loads(run.stdout.splitlines()[-1])
        peer = round(answer["distinct"] / answer["seconds"], 2)
        what = "version alone" if mode == "bare" else "version with run, metrics, tags and three files"
        name = f"MLflow {answer['mlflow']}, {store} store, {what}"
        lost = answer["versions"] - answer["distinct"]
        mean = round((before + ours(folder)) / 2, 1)
        theirs = {"peer": peer, "peer_name": name, "peer_asked": WRITERS * each, "peer_errors": answer["errors"]}
        theirs |= {"peer_numbers_given_twice": lost, "peer_example": answer["example"]}
        line("registrations by 8 processes", "models/s", mean, target=target, **theirs)


def environment() -> Path:
    """The interpreter of MLflow's own environment, which is built where it is missing."""
    python = VENV / "bin" / "python"
    if not (VENV / ".complete").exists():
        shutil.rmtree(VENV, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(VENV)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", f"mlflow=={MLFLOW}"], check=True)
        (VENV / ".complete").touch()
    return python


PARTS = {"zeros": zeros, "soak": soak, "scale": scale, "throughput": throughput, "mlflow": mlflow}


if __name__ == "__main__":
    main()
