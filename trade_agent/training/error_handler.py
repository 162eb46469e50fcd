"""What happens when a run fails: nothing finished is lost, and `error.json` says why and how to go on."""

import contextlib
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from trade_agent import safe_io
from trade_agent.errors import ConfigError, PeerLostError, StoppedError, TradeAgentError, TrialPrunedError
from trade_agent.training.memory import is_out_of_memory
from trade_agent.training.resume import resume_command

START, RESUME = "start", "resume"  # no stage is being trained yet


class TrainingErrorHandler:
    """Context manager around a run.

    Once a stage is being trained, or was before this process `resumed` the run, whatever ends it leaves `error.json` in
    its folder: what went wrong, the remedy, and the command that goes on from the last checkpoint. Before that nothing
    was started: wrong input (exit code 2) leaves no file, and neither does a run that was asked to stop or was pruned.
    The error goes on to the caller; that of a disk, or of memory that ran out, as a TradeAgentError of one line.

    Of several processes each has a handler. One that only lost another leaves what that has written.
    """

    def __init__(self, run_dir: Path, *, resumed: bool = False) -> None:
        self.path, self.resume = run_dir / "error.json", resume_command(run_dir)
        self.stage = RESUME if resumed else START
        self.before = self._written()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.stage == START or not isinstance(error, Exception):
            return
        if isinstance(error, StoppedError | TrialPrunedError):
            return
        if not isinstance(error, PeerLostError) or self._written() == self.before:
            self.write(error)
        go_on = f"go on with: {self.resume}"
        if isinstance(error, TradeAgentError):
            if error.exit_code == ConfigError.exit_code:
                error.exit_code = TradeAgentError.exit_code  # the other would say that nothing was started
            error.remedy = f"{error.remedy}; {go_on}" if error.remedy else go_on
        elif isinstance(error, OSError) or is_out_of_memory(error):
            reason = str(error).splitlines()[0] if str(error) else "out of memory"
            raise TradeAgentError(f"{self.stage} failed: {reason}", f"{remedy_of(error)}; {go_on}") from error

    def write(self, error: BaseException) -> None:
        """Leave `error.json`; where the disk is the trouble that fails too, and must not hide the error itself."""
        with contextlib.suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            safe_io.write_json(self.path, self.describe(error))

    def settle(self) -> None:
        """The run is done: what went wrong on the way is no news any more."""
        self.path.unlink(missing_ok=True)

    def _written(self) -> bytes:
        with contextlib.suppress(OSError):
            return self.path.read_bytes()
        return b""

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
