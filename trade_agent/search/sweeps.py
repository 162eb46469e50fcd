"""What several sweeps on one study agree on: who makes it, who asks for trials, and which of them are gone.

Two sweeps that make a study at the same moment would both create its tables, and a trial whose sweep was killed would
stay RUNNING for ever. Both are settled by locks of the operating system, which end with the process that held them:
one around making a study and asking for trials, and one that every sweep holds as long as it lives.
"""

import contextlib
import socket
import uuid
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from trade_agent.safe_io.locks import RUN, held, locked
from trade_agent.search.studies import file_of

SWEEP = "sweep"  # user attribute of a trial: the sweep that asked for it
FOLDER = "folder"  # user attribute: where its run is, which it keeps when another sweep goes on with it
KILLED = "killed"  # user attribute: how often its sweep was killed while it was trained


class Sweeps:
    """The sweeps on one storage, told by a folder of locks; `own` names the one of this process.

    Used as a context manager, it holds the own lock. `asking` is the lock under which trials are asked for.

    The locks of a file lie beside it, whatever `outputs` is. A server has no such place: there they lie in `outputs`,
    and what a sweep on another host or with other outputs does cannot be told; its trials are left alone.
    """

    def __init__(self, storage: str, outputs: Path) -> None:
        file = file_of(storage)
        self.folder = file.with_name(f"{file.name}.sweeps") if file else outputs.resolve() / "searches"
        self.place = "" if file else f"{socket.gethostname()}:{self.folder}"
        self.own = f"{self.place}#{uuid.uuid4().hex}"
        self._held = contextlib.ExitStack()

    def __enter__(self) -> "Sweeps":
        self._held.enter_context(locked(self._path(self.own), wait=True))
        return self

    def __exit__(self, *error: object) -> None:
        self._path(self.own).unlink(missing_ok=True)
        self._held.close()

    def asking(self) -> contextlib.AbstractContextManager[None]:
        return locked(self.folder / "asking.lock", wait=True)

    def alive(self, sweep: str) -> bool:
        """Whether a sweep is at work, as far as can be told. One that was killed leaves a lock that nobody holds."""
        if sweep == self.own or sweep.rpartition("#")[0] != self.place:
            return True
        path = self._path(sweep)
        if held(path):
            return True
        path.unlink(missing_ok=True)
        return False

    def _path(self, sweep: str) -> Path:
        return self.folder / f"{sweep.rpartition('#')[2]}.lock"


def put_back(study: optuna.Study, trial: FrozenTrial | Trial) -> None:
    """Let a running trial wait: the next to be asked for, with its settings, its folder and what it reported."""
    study._storage.set_trial_state_values(trial._trial_id, state=TrialState.WAITING)


def put_back_dead(study: optuna.Study, sweeps: Sweeps, *, max_restarts: int) -> list[str]:
    """Put back the RUNNING trials of killed sweeps, unless their job is still at work. Call it under `sweeps.asking()`.

    A trial that had begun whenever its sweep was killed, more than `max_restarts` times, is what kills them: it fails.
    Returns a line for each of them.
    """
    lines = []
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        folder = Path(trial.user_attrs.get(FOLDER, ""))
        if sweeps.alive(trial.user_attrs.get(SWEEP, "")) or (folder.is_absolute() and held(folder / RUN)):
            continue
        killed = trial.user_attrs.get(KILLED, 0) + int(folder.is_absolute() and folder.is_dir())
        Trial(study, trial._trial_id).set_user_attr(KILLED, killed)
        if killed > max_restarts:
            study.tell(trial.number, state=TrialState.FAIL)
            lines.append(f"trial {trial.number} was under way when its sweep was killed, {killed} times: failed")
        else:
            put_back(study, trial)
            lines.append(f"trial {trial.number} was left running by a sweep that is gone: it goes on")
    return lines
