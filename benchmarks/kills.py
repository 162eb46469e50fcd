"""One run that is killed again and again, beside the same run that is left alone: `benchmarks.checkpoint --kills N`.

Each life of the first one is ended by SIGKILL at a random moment in a stage, and the next one begins with
`train.py resume=FOLDER`. All stages take part: forecaster, PPO, SAC and TD3 agents, their hybrids, and the ensemble.
"""

import dataclasses
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.killed import REGISTERED, STEP, WRITING, Moment
from trade_agent.registry.store import ModelRegistry

ROOT = Path(__file__).resolve().parents[1]
WAIT = 3600.0  # seconds for one life; a busy machine is no failure
RUN = (
    "stage=ensemble",
    "model.combiner=gate",
    "trainer=smoke",
    "trainer.gate_epochs=12",
    "device=cpu",
    "device.threads=1",
    "upstream.members.ppo.rl.model.rollout_steps=16",
    "upstream.members.ppo.hybrid.model.rollout_steps=16",
    "hydra.run.dir=run",
)


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What came of the kills.

    moments: all of them, in their order. wrong: what differs from the run that was left alone, by stage. restarts:
    seconds from the start of a resume command to the first training step of its process; processor: what of them the
    process itself took.
    """

    moments: list[Moment] = field(default_factory=list)
    wrong: dict[str, list[str]] = field(default_factory=dict)
    restarts: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)

    @property
    def survived(self) -> int:
        """Kills in stages that ended alike."""
        return sum(moment.stage not in self.wrong for moment in self.moments)


def killed_and_left_alone(folder: Path, *, kills: int, seed: int, overrides: tuple[str, ...] = ()) -> Outcome:
    """Train both runs in `folder` and compare all that they have learned. Raises RuntimeError where a life went wrong
    in another way than it was to."""
    whole, killed, outcome = folder / "whole", folder / "killed", Outcome()
    for each in (whole, killed):
        each.mkdir(parents=True)
    told = live(whole, None, *RUN, *overrides)
    outcome.moments = moments(told["boundaries"], kills=kills, random_numbers=random.Random(seed))
    arguments: tuple[str, ...] = (*RUN, *overrides)
    for moment in [*outcome.moments, None]:
        started = time.time()
        told = live(killed, moment, *arguments)
        if arguments[0].startswith("resume=") and told["first"]:
            outcome.restarts.append(told["first"] - started)
            outcome.processor.append(told["processor"])
        arguments = ("resume=run",)
    one, other = learned(whole), learned(killed)
    for stage in one.keys() | other.keys():
        mine, theirs = one.get(stage, {}), other.get(stage, {})
        if wrong := sorted(name for name in mine.keys() | theirs.keys() if mine.get(name) != theirs.get(name)):
            outcome.wrong[stage] = wrong
    return outcome


def moments(boundaries: dict[str, int], *, kills: int, random_numbers: random.Random) -> list[Moment]:
    """Random moments in the order in which they come. boundaries: of every stage in a run that is left alone.

    Each life of a stage takes at most its share of the boundaries, so that the next one still finds some.
    """
    stages = list(boundaries)
    chosen = Counter((random_numbers.sample(stages, len(stages)) * -(-kills // len(stages)))[:kills])
    found = []
    for stage in stages:
        for number in range(chosen[stage]):
            last = number == chosen[stage] - 1
            hows = (STEP, STEP, STEP, *WRITING, REGISTERED) if last else (STEP, STEP, STEP, *WRITING)
            found.append(
                Moment(
                    stage=stage,
                    boundary=random_numbers.randint(1, max(boundaries[stage] // chosen[stage], 1)),
                    how=random_numbers.choice(hows),
                    share=random_numbers.random(),
                    every=random_numbers.randint(1, 8),
                )
            )
    return found


def live(folder: Path, moment: Moment | None, *arguments: str) -> dict[str, Any]:
    """One life of the run in `folder`: what it has told. Raises RuntimeError where it does not end as it is to."""
    command = [
        sys.executable, "-m", "benchmarks.killed", "life.json",
        json.dumps(moment and dataclasses.asdict(moment)), *arguments,
    ]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=WAIT)
    if done.returncode != (-signal.SIGKILL if moment else 0):
        raise RuntimeError(f"{moment} ended with {done.returncode}: {done.stderr[-2000:]}")
    told: dict[str, Any] = json.loads((folder / "life.json").read_text(encoding="utf-8"))
    return told


def learned(folder: Path) -> dict[str, dict[str, Any]]:
    """By stage: the id, the weights and all figures; a model that no result speaks of stands under its id."""
    registry = ModelRegistry(folder / "models")
    weights = {record.id: registry.get(record.id).weights_sha256 for record in registry.list()}
    found: dict[str, dict[str, Any]] = {}
    for path in [folder / "run/result.json", *sorted((folder / "run/upstream").glob("*/result.json"))]:
        result = json.loads(path.read_text(encoding="utf-8"))
        names = ("model_id", "objective", "validation", "metrics", "baselines", "report", "env_steps", "notes")
        stage = "ensemble" if path.parent.name == "run" else path.parent.name
        found[stage] = {name: result[name] for name in names}
        found[stage]["weights_sha256"] = weights.pop(result["model_id"])
        found[stage]["history"] = json.loads((path.parent / "history.json").read_text(encoding="utf-8"))
    return found | {identifier: {"weights_sha256": digest} for identifier, digest in weights.items()}


def figures(outcome: Outcome) -> list[tuple[str, str, float]]:
    """Name, unit and value of each."""
    kinds = Counter("in a step" if moment.how == STEP else moment.how for moment in outcome.moments)
    return [
        ("kill -9: kills", "kills", float(len(outcome.moments))),
        ("kill -9: survived, bit for bit", "kills", float(outcome.survived)),
        *((f"kill -9: of the kills, {kind}", "kills", float(count)) for kind, count in sorted(kinds.items())),
        ("kill -9: stages hit", "stages", float(len({moment.stage for moment in outcome.moments}))),
        ("kill -9: from the resume command to the first step, median", "s", statistics.median(outcome.restarts)),
        ("kill -9: from the resume command to the first step, longest", "s", max(outcome.restarts)),
        ("kill -9: of it on the processor, median", "s", statistics.median(outcome.processor)),
    ]
