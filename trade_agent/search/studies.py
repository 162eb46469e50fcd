"""Where studies are kept, and what several sweeps on one study agree on.

A storage is an address: `journal:///FILE` (a file that many processes may append to, also on a shared folder) or any of
SQLAlchemy (`sqlite:///FILE`, `postgresql+psycopg://...`). Three slashes are a relative path, four an absolute one.

Two sweeps that make a study at the same moment would both create its tables, and a trial whose sweep was killed would
stay RUNNING for ever. Both are settled by locks of the operating system, which end with the process that held them:
one around asking for trials, and one that every sweep holds as long as it lives.
"""

import contextlib
import fcntl
import uuid
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState

from trade_agent.errors import ConfigError

JOURNAL = "journal:///"
SWEEP = "sweep"  # user attribute of a trial: the sweep that asked for it
JOB = "job"  # user attribute: the run that trains it
ABANDONED = "abandoned"  # user attribute: failed because its sweep was killed, and tried again under another number


def open_storage(address: str) -> BaseStorage:
    """Open a storage, making the folder of its file. Raises ConfigError for an address that is none."""
    if address.startswith(JOURNAL):
        # Absolute: the lock of a writer that was killed links to the file, and never ages where that leads nowhere.
        path = Path(address.removeprefix(JOURNAL)).resolve()
        path.parent.mkdir(parents=True, exist_ok=True)
        return JournalStorage(JournalFileBackend(str(path)))
    if address.startswith("sqlite:///"):
        Path(address.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    try:
        return RDBStorage(address)
    except Exception as error:  # SQLAlchemy, its drivers and alembic all have errors of their own
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"the storage {address.split('@')[-1]} cannot be opened ({reason})", "use journal:///FILE or sqlite:///FILE"
        ) from error


def load_study(address: str, name: str) -> optuna.Study:
    """A study that exists. Raises ConfigError naming those that do."""
    path = Path(address.split(":///", 1)[-1])
    if address.startswith((JOURNAL, "sqlite:///")) and not path.is_file():
        raise ConfigError(f"there is no {path}", "name the file of the studies with --storage")
    storage = open_storage(address)
    try:
        return optuna.load_study(study_name=name, storage=storage)
    except KeyError as error:
        known = ", ".join(sorted(optuna.get_all_study_names(storage))) or "none"
        raise ConfigError(f"there is no study {name} in {address}", f"studies there: {known}") from error


def create_study(
    storage: BaseStorage, name: str, *, objectives: Mapping[str, str], sampler: Any, pruner: Any
) -> optuna.Study:
    """Make a study, or open the one that is there. objectives: name of a validation metric -> minimize | maximize.

    Raises ConfigError when the study that is there was made for other objectives.
    """
    study = optuna.create_study(
        study_name=name,
        storage=storage,
        sampler=sampler,
        pruner=pruner,
        directions=[StudyDirection[way.upper()] for way in objectives.values()],
        load_if_exists=True,
    )
    found = dict(zip(study.metric_names or [], (way.name.lower() for way in study.directions), strict=False))
    if not study.metric_names:
        with warnings.catch_warnings(action="ignore", category=optuna.exceptions.ExperimentalWarning):
            study.set_metric_names(list(objectives))
    elif found != dict(objectives):
        raise ConfigError(
            f"the study {name} was made for {found}, not for {dict(objectives)}",
            "give the search a name of its own: hydra.sweeper.study_name=NAME",
        )
    return study


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock `path`, waiting for it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class Sweeps:
    """The sweeps that are alive, told by a folder of locks; `own` is the one of this process.

    Used as a context manager, it holds the own lock. `asking` is the lock under which trials are asked for.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.own = folder, uuid.uuid4().hex
        self._held = contextlib.ExitStack()

    def __enter__(self) -> "Sweeps":
        self._held.enter_context(locked(self._path(self.own)))
        return self

    def __exit__(self, *error: object) -> None:
        self._path(self.own).unlink(missing_ok=True)
        self._held.close()

    def asking(self) -> contextlib.AbstractContextManager[None]:
        return locked(self.folder / "asking.lock")

    def alive(self, sweep: str) -> bool:
        """Whether a process holds the lock of a sweep. One that was killed leaves a file that nobody holds."""
        if sweep == self.own:
            return True
        try:
            with open(self._path(sweep)) as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        self._path(sweep).unlink(missing_ok=True)
        return False

    def _path(self, sweep: str) -> Path:
        return self.folder / f"{sweep}.lock"


def abandon_dead(study: optuna.Study, sweeps: Sweeps) -> list[int]:
    """Mark RUNNING trials of killed sweeps as failed, and queue their settings again. Call it under `sweeps.asking()`.

    Returns their numbers.
    """
    dead = [
        trial
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        if not sweeps.alive(trial.user_attrs.get(SWEEP, ""))
    ]
    for trial in dead:
        abandon(study, trial)
    return [trial.number for trial in dead]


def abandon(study: optuna.Study, trial: FrozenTrial) -> None:
    """End a running trial that nobody works on any more; its settings are the next to be tried."""
    Trial(study, trial._trial_id).set_user_attr(ABANDONED, True)
    study.tell(trial.number, state=TrialState.FAIL)
    if trial.params:
        study.enqueue_trial(trial.params)


def counted(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that a study has had, running ones included, without those that were abandoned or only queued."""
    return [
        trial
        for trial in study.get_trials(deepcopy=False)
        if trial.state != TrialState.WAITING and ABANDONED not in trial.user_attrs
    ]
