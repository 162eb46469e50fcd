"""train.py in a process that is killed with SIGKILL at a moment that is given to it: for `benchmarks.kills`.

    python -m benchmarks.killed LOG MOMENT ARGUMENTS...

MOMENT is the JSON of a `Moment`, or null for a life without a kill. LOG takes JSON: the time of the first boundary of
the training, the seconds of the processor until then, and the boundaries of each stage. What is killed is the real
program, with nothing in it for the purpose.
"""

import io
import json
import os
import runpy
import signal
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from trade_agent.registry.store import ModelRegistry
from trade_agent.safe_io import files
from trade_agent.training.checkpoint import Session

STEP, HALF_WRITTEN, NOT_IN_PLACE, IN_PLACE, REGISTERED = (
    "step",
    "half written",
    "not in place",
    "in place",
    "registered",
)
WRITING = (HALF_WRITTEN, NOT_IN_PLACE, IN_PLACE)
HOWS = (STEP, *WRITING, REGISTERED)
LONGEST_DELAY = 0.03  # seconds: a step of the smoke settings takes about as long


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """When a life ends.

    stage: the one under way. boundary: the how-manieth of the stage in this life. how: in the step after it (share: of
    LONGEST_DELAY, after which the signal comes); in the checkpoint written there, when half of the file is written,
    when it is complete under its temporary name, when it has its name and the older ones are still there; or when the
    stage is registered and its result is not written. every: a checkpoint is written at each so-manieth boundary.
    """

    stage: str
    boundary: int
    how: str
    share: float
    every: int


class Life:
    """What one process has seen of its training, and its end."""

    def __init__(self, log: Path, moment: Moment | None) -> None:
        self.log, self.moment, self.seen = log, moment, Counter[str]()
        self.first, self.processor = 0.0, 0.0

    def boundary(self, real: Any) -> Any:
        def boundary(session: Session, *, due: bool = False) -> None:
            assert session.checkpoints.folder is not None
            stage = session.checkpoints.folder.name
            self.seen[stage] += 1
            if not self.first:
                self.first, self.processor = time.time(), time.process_time()
            moment = self.moment
            if moment is None:
                real(session, due=due)
                return
            here = moment.stage == stage and moment.boundary == self.seen[stage]
            if here and moment.how in WRITING:
                self.die_in_write(moment.how)
            real(session, due=due or here or self.seen[stage] % moment.every == 0)
            if here and moment.how == STEP:
                threading.Timer(moment.share * LONGEST_DELAY, self.die).start()

        return boundary

    def register(self, real: Any) -> Any:
        def register(registry: ModelRegistry, **fields: Any) -> Any:
            registered = real(registry, **fields)
            moment = self.moment
            if moment and moment.how == REGISTERED and fields["run_id"].endswith(f"-{moment.stage}"):
                self.die()
            return registered

        return register

    def die_in_write(self, how: str) -> None:
        """Let the next file that is replaced be the last one."""
        life, replace = self, os.replace

        class CutShort(io.FileIO):
            def write(self, data: Any) -> NoReturn:
                super().write(data[: len(data) // 2])
                life.die()

        def last_replace(source: Any, target: Any) -> NoReturn:
            if how == IN_PLACE:
                replace(source, target)
            life.die()

        if how == HALF_WRITTEN:
            vars(files)["open"] = CutShort
        else:
            vars(os)["replace"] = last_replace

    def die(self) -> NoReturn:
        self.write()
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("unreachable")

    def write(self) -> None:
        """Not through `safe_io`, where the kill lies."""
        self.log.write_text(
            json.dumps({"first": self.first, "processor": self.processor, "boundaries": self.seen}), encoding="utf-8"
        )


def main() -> None:
    log, moment, *arguments = sys.argv[1:]
    values = json.loads(moment)
    life = Life(Path(log).resolve(), Moment(**values) if values else None)
    Session.boundary = life.boundary(Session.boundary)  # type: ignore[method-assign]
    ModelRegistry.register = life.register(ModelRegistry.register)  # type: ignore[method-assign]
    program = Path(__file__).resolve().parents[1] / "train.py"
    sys.argv = [str(program), *arguments]
    try:
        runpy.run_path(str(program), run_name="__main__")
    finally:
        life.write()


if __name__ == "__main__":
    main()
