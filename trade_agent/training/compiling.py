"""`device.compile=auto`: both ways are timed on the work of the run itself, and the choice is kept with the run.

Fused kernels are faster, and take a while to build: they pay where the run is long enough.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch._dynamo.exc import BackendCompilerFailed

from trade_agent import safe_io
from trade_agent.training.distributed import World
from trade_agent.training.progress import ProgressReporter

REPEATS = 3  # rounds of each way that are timed; the fastest counts, others were disturbed


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Seconds of one round of either way, and of the first compiled round, in which the kernels are built."""

    eager_seconds: float
    compiled_seconds: float
    build_seconds: float

    def pays(self, rounds: int) -> bool:
        """Whether a run of so many rounds ends sooner with compiled ones."""
        return self.build_seconds + rounds * self.compiled_seconds < rounds * self.eager_seconds


def choose_compiled(
    path: Path,
    *,
    make_round: Callable[[bool], Callable[[], object]],
    rounds: int,
    world: World,
    progress: ProgressReporter,
) -> bool:
    """Whether to compile: what `path` (compile.json) says, else what is faster, which is then written there.

    make_round: from whether to compile to a function that does one of the `rounds` of the run on data of its own. No
    random number of the run is used up. Where one of the processes has no C++ compiler the eager way is taken. All of
    them time, for they will train side by side, and the times of the first one decide.
    """

    def read() -> bool | None:
        return bool(safe_io.read_json(path)["compile"]) if world.main and path.exists() else None

    stored: bool | None = world.agreed(world.together(read))
    if stored is not None:
        return stored
    with torch.random.fork_rng():
        outcomes = world.gathered(outcome(make_round))
    torch.compiler.reset()  # the rounds of the run shall have all the room there is for variants of a function
    failure = next((one for one in outcomes if isinstance(one, str)), None)
    record: dict[str, Any]
    if failure is not None:
        chosen, record = False, {"reason": f"nothing can be compiled here: {failure}"}
    else:
        timing: Timing = outcomes[0]
        chosen, record = timing.pays(rounds), {"rounds": rounds, **asdict(timing)}

    def keep() -> None:
        if world.main:
            safe_io.write_json(path, {"compile": chosen, **record})
            progress.say(f"  device.compile=auto: {'compiled' if chosen else 'eager'}, see {path}")

    world.together(keep)
    return chosen


def outcome(make_round: Callable[[bool], Callable[[], object]]) -> Timing | str:
    """What `timed` measures, or why nothing can be compiled in this process."""
    try:
        return timed(make_round)
    except BackendCompilerFailed as error:
        return type(error.inner_exception).__name__


def timed(make_round: Callable[[bool], Callable[[], object]]) -> Timing:
    """Run both ways. Raises BackendCompilerFailed where nothing can be compiled."""
    eager, compiled = make_round(False), make_round(True)
    eager()
    build = seconds(compiled)
    return Timing(
        eager_seconds=min(seconds(eager) for _ in range(REPEATS)),
        compiled_seconds=min(seconds(compiled) for _ in range(REPEATS)),
        build_seconds=build,
    )


def seconds(work: Callable[[], object]) -> float:
    """How long a call takes, until the device is done with it."""
    started = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started
