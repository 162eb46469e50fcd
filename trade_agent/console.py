"""What a person sees when something goes wrong: one clear line on stderr and an exit code that programs can rely on."""

import contextlib
import os
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from trade_agent.errors import ConfigError, StoppedError, TradeAgentError

EXIT_OK, EXIT_FAILED, EXIT_BAD_INPUT, EXIT_INTERRUPTED = 0, 1, 2, 130
# What Hydra itself leaves in a run folder before any of our code runs. One with a lock is, or was, somebody's run.
HYDRA_LEFTOVERS = {".hydra", "train.log"}


def exit_code_of(run: Callable[[], object]) -> int:
    """Call `run` and return the exit code: 0, 1 failed, 2 the input was wrong, 130 interrupted, 143 or 75 stopped.

    The errors of this project and of Hydra become one line on stderr; anything else is a defect and keeps its
    traceback.
    """
    try:
        run()
    except TradeAgentError as error:
        return report(error)
    except BrokenPipeError:
        # The reader of our output went away (`| head`): nobody is there to be told, but what was asked for is not done.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except Exception as error:
        return _report_other(error)
    return EXIT_OK


def _report_other(error: Exception) -> int:
    """Report an error of Hydra or of a file, or a defect. Hydra is imported here: commands that need no config start
    without it."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from trade_agent.config.load import explain

    if isinstance(error, HydraException | OmegaConfBaseException):  # first: one of Hydra's is an OSError
        return report(explain(error))
    if isinstance(error, OSError):
        # A run that has begun reports its own; this one could not even start.
        return report(ConfigError(str(error), "check the folders and files that the command names"))
    traceback.print_exception(error)
    return EXIT_FAILED


@contextlib.contextmanager
def hydra_job(run_dir: Path, *, sweep: bool) -> Iterator[None]:
    """Around the work of one Hydra job: wrong input leaves no run folder behind, and one line on stderr.

    A single run ends the program at once, because Hydra would print a line of its own before ours. In a sweep the error
    goes on to Hydra: one infeasible trial does not end the others.
    """
    try:
        yield
    except TradeAgentError as error:
        if error.exit_code == EXIT_BAD_INPUT:
            discard(run_dir)
        if sweep and not isinstance(error, StoppedError):
            raise
        raise SystemExit(report(error)) from error
    except SystemExit:  # of a signal, before the run was begun
        discard(run_dir)
        raise


def report(error: TradeAgentError) -> int:
    """Print the one line, return the exit code."""
    print(error if isinstance(error, StoppedError) else f"error: {error}", file=sys.stderr)
    return error.exit_code


def discard(run_dir: Path) -> None:
    """Remove a run folder in which nothing but Hydra's own files stand, and its parent when that is empty then.

    Never the working directory, which is the run folder of every process but the first one.
    """
    if run_dir.resolve() == Path.cwd() or not run_dir.is_dir():
        return
    if {entry.name for entry in run_dir.iterdir()} <= HYDRA_LEFTOVERS:
        shutil.rmtree(run_dir)
        with contextlib.suppress(OSError):
            run_dir.parent.rmdir()
