"""What happens when a run fails: nothing finished is lost, and `error.json` says why and how to go on."""

import contextlib
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from trade_agent import safe_io
from trade_agent.errors import StoppedError, TradeAgentError, TrialPrunedError
from trade_agent.training.memory import is_out_of_memory

START, RESUME = "start", "resume"  # no stage is being trained yet


class TrainingErrorHandler:
    """Context manager around a run.

    Once a stage is being trained, or was before this process `resumed` the run, whatever ends it leaves `error.json` in
    its folder: what went wrong, the remedy, and the command that goes on from the last checkpoint. Before that nothing
    was started: wrong input (exit code 2) leaves no file, and neither does a run that was asked to stop or was pruned.
    The error goes on to the caller; that of a disk, or of memory that ran out, as a TradeAgentError of one line.
    """

    def __init__(self, run_dir: Path, resume: str, *, resumed: bool = False, writes: bool = True) -> None:
        self.run_dir, self.resume, self.writes = run_dir, resume, writes
        self.stage = RESUME if resumed else START

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None or self.stage == START or isinstance(error, StoppedError | TrialPrunedError):
            return
        if isinstance(error, TradeAgentError):
            error.exit_code = 1  # 2 would say that nothing was started
        if not self.writes:  # one of several processes writes for all
            return
        self.write(error)
        if isinstance(error, OSError) or is_out_of_memory(error):
            reason = str(error).splitlines()[0] if str(error) else "out of memory"
            raise TradeAgentError(f"{self.stage} failed: {reason}", remedy_of(error)) from error

    def write(self, error: BaseException) -> None:
        """Leave `error.json`; where the disk is the trouble that fails too, and must not hide the error itself."""
        with contextlib.suppress(OSError):
            self.run_dir.mkdir(parents=True, exist_ok=True)
            safe_io.write_json(self.run_dir / "error.json", self.describe(error))

    def settle(self) -> None:
        """The run is done: what went wrong on the way is no news any more."""
        if self.writes:
            (self.run_dir / "error.json").unlink(missing_ok=True)

    def describe(self, error: BaseException) -> dict[str, str]:
        """Plain fields of `error.json`."""
        return {
            "stage": self.stage,
            "error": type(error).__name__,
            "message": getattr(error, "message", None) or str(error),
            "remedy": getattr(error, "remedy", "") or remedy_of(error),
            "resume": self.resume,
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
        }


def remedy_of(error: BaseException) -> str:
    """What usually helps against errors that are not ours."""
    if is_out_of_memory(error):
        return "lower model.num_envs or the sizes of the networks, or set device.on_oom=cpu, in a new run"
    if isinstance(error, OSError):
        return "check that the disk is writable and has room, then resume"
    return "resume: stages that finished are found in the registry, the one under way goes on from its checkpoint"
