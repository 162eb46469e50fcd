"""Where studies are kept.

A storage is an address: `journal:///FILE` (a file that many processes may append to, also on a shared folder) or any of
SQLAlchemy (`sqlite:///FILE`, `postgresql+psycopg://...`). Three slashes are a relative path, four an absolute one.
"""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, check_distribution_compatibility
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from trade_agent.errors import ConfigError

SETTINGS = "settings"  # user attribute of a study: what its trials have in common
DEFAULTS = "defaults"  # user attribute of a trial: it is the config as it stands
JOURNAL = "journal:///"
SQLITE = "sqlite:///"


def file_of(address: str) -> Path | None:
    """The absolute path of a storage that is a file; None for a server."""
    if address.startswith(JOURNAL):
        return Path(address.removeprefix(JOURNAL)).resolve()
    return Path(address.removeprefix(SQLITE).partition("?")[0]).resolve() if address.startswith(SQLITE) else None


def open_storage(address: str) -> BaseStorage:
    """Open a storage, making the folder of its file. Raises ConfigError for an address that is none."""
    path = file_of(address)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
    try:
        if path is not None and address.startswith(JOURNAL):
            # Absolute: the lock of a writer that was killed links to the file, and never ages where that leads nowhere.
            return JournalStorage(JournalFileBackend(str(path)))
        return RDBStorage(address)
    except Exception as error:  # SQLAlchemy, its drivers and alembic all have errors of their own
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"the storage {address.split('@')[-1]} cannot be opened ({reason})", "use journal:///FILE or sqlite:///FILE"
        ) from error


def load_study(address: str, name: str) -> optuna.Study:
    """A study that exists. Raises ConfigError naming those that do."""
    path = file_of(address)
    if path is not None and not path.is_file():
        raise ConfigError(f"there is no {path}", "name the file of the studies with --storage")
    storage = open_storage(address)
    try:
        return optuna.load_study(study_name=name, storage=storage)
    except KeyError as error:
        known = ", ".join(sorted(optuna.get_all_study_names(storage))) or "none"
        raise ConfigError(f"there is no study {name} in {address.split('@')[-1]}", f"studies there: {known}") from error


def create_study(
    storage: BaseStorage, name: str, *, objectives: Mapping[str, str], sampler: Any, pruner: Any
) -> optuna.Study:
    """Make a study, or open the one that is there. objectives: name of a validation metric -> minimize | maximize.

    Raises ConfigError when the study that is there was made for other objectives.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
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


def keep_settings(study: optuna.Study, settings: Mapping[str, Any], space: Mapping[str, BaseDistribution]) -> None:
    """Note what all trials of a study have in common: dotted name -> plain value. space: what is searched.

    Raises ConfigError where the trials that it has do not compare: they were made with other settings, or searched
    what is not searched now, or another choice of it.
    """
    remedy = "give the search a name of its own: hydra.sweeper.study_name=NAME"
    trials = study.get_trials(deepcopy=False)
    if any(trial.state not in (TrialState.FAIL, TrialState.WAITING) for trial in trials):
        made = study.user_attrs.get(SETTINGS, {})
        changed = [name for name, value in settings.items() if made.get(name, value) != value]
        if changed:
            name = changed[0]
            others = f" and {len(changed) - 1} others" if changed[1:] else ""
            what = f"the study {study.study_name} was made with {name}={made[name]}, not with {settings[name]}{others}"
            raise ConfigError(what, remedy)
    for trial in trials:
        for name, distribution in trial.distributions.items():
            try:
                check_distribution_compatibility(distribution, space[name])
            except (KeyError, ValueError) as error:
                raise ConfigError(f"the study {study.study_name} searched {name} in {distribution}", remedy) from error
    study.set_user_attr(SETTINGS, dict(settings))


def enqueue_defaults(study: optuna.Study, values: Mapping[str, Any]) -> None:
    """Make the config as it stands the next trial, unless it is one already that has not failed."""
    for trial in study.get_trials(deepcopy=False):
        if trial.state != TrialState.FAIL and trial.system_attrs.get("fixed_params", trial.params) == values:
            return
    study.enqueue_trial(dict(values), user_attrs={DEFAULTS: True})


def counted(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that a study has had, running ones included, without those that wait."""
    return [trial for trial in study.get_trials(deepcopy=False) if trial.state != TrialState.WAITING]
