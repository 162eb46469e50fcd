"""The sweep itself: which trials are asked for and what is told of them. Jobs are plain functions here."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import OmegaConf
from optuna.trial import TrialState

from trade_agent.config.load import conf_dir
from trade_agent.config.store import register_schemas
from trade_agent.errors import ConfigError, DataError, TradeAgentError
from trade_agent.registry.naming import MODEL_TYPES
from trade_agent.search.studies import load_study
from trade_agent.search.summary import summarise
from trade_agent.search.sweeper import StudySweeper, default_values, settings_of, violations

Job = Callable[[int, dict[str, str]], Any]
SPACE = {"model.gamma": "interval(0.0, 1.0)", "model.batch_size": "choice(64, 128)"}


class Launcher:
    """Runs a function in place of train.py; what it raises is the outcome, as with Hydra's own launchers."""

    def __init__(self, job: Job) -> None:
        self.job, self.batches = job, []

    def launch(self, overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        self.batches.append(len(overrides))
        returns = []
        for index, items in enumerate(overrides, start=initial_job_idx):
            returned = JobReturn()
            try:
                returned.return_value = self.job(index, dict(item.split("=", 1) for item in items))
                returned.status = JobStatus.COMPLETED
            except Exception as error:
                returned.return_value = error
                returned.status = JobStatus.FAILED
            returns.append(returned)
        return returns


def sweep(
    folder: Path,
    job: Job,
    *,
    arguments: Sequence[str] = (),
    sweep_dir: Path | None = None,
    settings: Any = None,
    **options: Any,
) -> tuple[optuna.Study, Launcher]:
    """One sweep on the study in `folder`, with random samples."""
    sweep_dir = sweep_dir or folder / "sweep"
    chosen: dict[str, Any] = {
        "storage": f"journal:///{folder}/studies.journal",
        "study_name": "sac",
        "objectives": {"sharpe": "maximize"},
        "at_most": {},
        "at_least": {},
        "n_trials": 4,
        "n_jobs": 1,
        "defaults_first": True,
        "max_failures_in_a_row": 3,
        "max_restarts": 2,
        "pruner": "none",
        "pruner_startup_trials": 0,
        "pruner_warmup_checks": 0,
        "params": OmegaConf.create(SPACE),
        "sampler": OmegaConf.create({"_target_": "optuna.samplers.RandomSampler", "seed": 3}),
    }
    sweeper = StudySweeper(**(chosen | options))
    launcher = Launcher(job)
    sweeper.sweeper.launcher = launcher  # type: ignore[assignment]
    sweeper.sweeper.sweep_dir = str(sweep_dir)
    sweeper.sweeper.config = OmegaConf.create(
        {
            "paths": {"outputs": str(folder)},
            "hydra": {"sweep": {"dir": str(sweep_dir)}},
            "model": {"gamma": 0.97, "batch_size": 128, "tau": 0.01},
            **(settings or {"trainer": {"name": "smoke", "checkpoint_seconds": 60}}),
        }
    )
    sweeper.sweep(list(arguments))
    return load_study(chosen["storage"], str(options.get("study_name", "sac"))), launcher


def states(study: optuna.Study) -> list[str]:
    return [trial.state.name for trial in study.trials]


def gamma(index: int, overrides: dict[str, str]) -> dict[str, float]:
    return {"sharpe": float(overrides["model.gamma"]), "turnover": 100.0 * float(overrides["model.gamma"])}


def test_the_first_trial_is_the_config_as_it_stands(tmp_path: Path) -> None:
    study, _ = sweep(tmp_path, gamma, n_trials=2)
    assert study.trials[0].params == {"model.gamma": 0.97, "model.batch_size": 128}
    assert study.trials[0].values == [0.97]
    assert study.trials[0].user_attrs["validation"] == {"sharpe": 0.97, "turnover": 97.0}
    other, _ = sweep(tmp_path, gamma, n_trials=1, defaults_first=False, study_name="other")
    assert other.trials[0].params["model.gamma"] != 0.97


def test_n_trials_are_those_of_the_study(tmp_path: Path) -> None:
    study, launcher = sweep(tmp_path, gamma, n_trials=3, n_jobs=2)
    assert launcher.batches == [2, 1]
    study, launcher = sweep(tmp_path, gamma, n_trials=3)
    assert launcher.batches == []
    study, launcher = sweep(tmp_path, gamma, n_trials=5)
    assert (len(study.trials), launcher.batches) == (5, [1, 1])
    assert [trial.params["model.gamma"] for trial in study.trials].count(0.97) == 1  # defaults are tried once


def test_what_the_command_line_fixes_is_not_searched(tmp_path: Path) -> None:
    study, _ = sweep(tmp_path, gamma, arguments=["model.gamma=0.5", "trainer=smoke"])
    assert {value for trial in study.trials for value in trial.values} == {0.5}
    assert set(study.trials[0].params) == {"model.batch_size"}
    assert study.trials[0].user_attrs["trainer"] == "smoke"


def test_a_failed_trial_ends_nothing_and_a_pruned_one_is_no_failure(tmp_path: Path) -> None:
    def job(index: int, overrides: dict[str, str]) -> Any:
        if index in (0, 1, 4, 5):
            raise TradeAgentError("the disk is full")
        return None if index == 2 else {"sharpe": 1.0}

    study, _ = sweep(tmp_path, job, n_trials=7)
    assert states(study) == ["FAIL", "FAIL", "PRUNED", "COMPLETE", "FAIL", "FAIL", "COMPLETE"]


def test_a_search_that_only_fails_stops_with_the_error(tmp_path: Path) -> None:
    def job(index: int, overrides: dict[str, str]) -> Any:
        raise TradeAgentError("the disk is full")

    with pytest.raises(TradeAgentError, match="the disk is full"):
        sweep(tmp_path, job, n_trials=9)
    study = load_study(f"journal:///{tmp_path}/studies.journal", "sac")
    assert states(study) == ["FAIL"] * 3


@pytest.mark.parametrize("value", [float("nan"), "many"])
def test_an_objective_that_is_no_number_is_a_failure(tmp_path: Path, value: Any) -> None:
    study, _ = sweep(tmp_path, lambda index, overrides: {"sharpe": value if index == 0 else 1.0}, n_trials=2)
    assert states(study) == ["FAIL", "COMPLETE"]


def test_an_objective_that_the_stage_has_not_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no validation metric calmar.*sharpe, turnover"):
        sweep(tmp_path, gamma, objectives={"calmar": "maximize"})


def test_an_interrupted_trial_goes_on_in_its_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = []

    def interrupted(index: int, overrides: dict[str, str]) -> Any:
        folders.append((overrides["hydra.sweep.dir"], overrides["hydra.sweep.subdir"]))
        if len(folders) == 2:
            (tmp_path / "sweep/1").mkdir(parents=True)
            raise KeyboardInterrupt
        return gamma(index, overrides)

    with pytest.raises(KeyboardInterrupt):
        sweep(tmp_path, interrupted)
    assert "go on with: python train.py" in capsys.readouterr().err
    before = load_study(f"journal:///{tmp_path}/studies.journal", "sac").trials
    assert [trial.state.name for trial in before] == ["COMPLETE", "WAITING"]
    study, _ = sweep(tmp_path, interrupted, sweep_dir=tmp_path / "later")
    assert states(study) == ["COMPLETE"] * 4
    assert study.trials[1].params == before[1].params
    own, later = f"'{tmp_path}/sweep'", f"'{tmp_path}/later'"
    assert folders == [(own, "'0'"), (own, "'1'"), (own, "'1'"), (later, "'2'"), (later, "'3'")]


@pytest.mark.parametrize(
    ("kept", "threads", "goes_on"), [(True, 1, True), (False, 1, False), (True, 2, False)], ids=["", "gone", "threads"]
)
def test_a_trial_whose_run_cannot_go_on_begins_again(tmp_path: Path, kept: bool, threads: int, goes_on: bool) -> None:
    """Its folder is gone, or what a run keeps to has changed."""
    folders = []

    def interrupted(index: int, overrides: dict[str, str]) -> Any:
        folders.append(overrides["hydra.sweep.dir"])
        if len(folders) == 1:
            (tmp_path / "sweep").mkdir()
            if kept:
                (tmp_path / "sweep/0").mkdir()
            raise KeyboardInterrupt
        return gamma(index, overrides)

    def settings(threads: int, seconds: int) -> Any:
        return {"trainer": {"name": "smoke", "checkpoint_seconds": seconds}, "device": {"threads": threads}}

    with pytest.raises(KeyboardInterrupt):
        sweep(tmp_path, interrupted, settings=settings(1, 60))
    later = tmp_path / "later"
    sweep(tmp_path, interrupted, sweep_dir=later, n_trials=1, settings=settings(threads, 5))
    assert folders == [f"'{tmp_path}/sweep'", f"'{tmp_path}/sweep'" if goes_on else f"'{later}'"]


def test_a_study_is_not_gone_on_with_under_other_settings(tmp_path: Path) -> None:
    """Trials on other data, or of another budget, do not compare, and those of the study would pass for new ones."""
    sweep(tmp_path, gamma)
    with pytest.raises(
        ConfigError, match=r"study sac was made with trainer\.name=smoke, not with quick; .*study_name=NAME"
    ):
        sweep(tmp_path, gamma, settings={"trainer": {"name": "quick", "checkpoint_seconds": 60}})
    study, _ = sweep(tmp_path, gamma, n_trials=5, settings={"trainer": {"name": "smoke", "checkpoint_seconds": 5}})
    assert len(study.trials) == 5
    sweep(tmp_path, gamma, study_name="other", settings={"trainer": {"name": "quick"}})


@pytest.mark.parametrize(
    ("space", "fixed"),
    [
        (SPACE | {"model.batch_size": "choice(32, 64)"}, []),
        (SPACE | {"model.gamma": "choice(0.9, 0.99)"}, []),
        (SPACE, ["model.batch_size=64"]),
    ],
)
def test_a_study_is_not_gone_on_with_in_a_space_that_does_not_fit(
    tmp_path: Path, space: dict[str, str], fixed: list[str]
) -> None:
    sweep(tmp_path, gamma)
    with pytest.raises(ConfigError, match=r"the study sac searched model\.(gamma|batch_size) in .*study_name=NAME"):
        sweep(tmp_path, gamma, n_trials=5, params=OmegaConf.create(space), arguments=fixed)
    wider = SPACE | {"model.gamma": "interval(0.0, 2.0)", "model.tau": "interval(0.0, 1.0)"}
    study, _ = sweep(tmp_path, gamma, n_trials=5, params=OmegaConf.create(wider))
    assert len(study.trials) == 5


def test_wrong_input_of_the_config_as_it_stands_ends_the_search(tmp_path: Path) -> None:
    """No other trial could do better; once it is mended the defaults are tried again."""

    def broken(index: int, overrides: dict[str, str]) -> Any:
        raise DataError("the file is gone")

    with pytest.raises(DataError, match="the file is gone"):
        sweep(tmp_path, broken, settings={"trainer": {"name": "wrong"}})
    study, _ = sweep(tmp_path, gamma)
    assert states(study) == ["FAIL", "COMPLETE", "COMPLETE", "COMPLETE"]
    assert study.trials[1].params == study.trials[0].params == {"model.gamma": 0.97, "model.batch_size": 128}


def test_several_objectives_give_a_front(tmp_path: Path) -> None:
    def job(index: int, overrides: dict[str, str]) -> Any:
        return {"sharpe": [1.0, 2.0, 0.5, 3.0][index], "turnover": [10.0, 20.0, 30.0, 25.0][index]}

    study, _ = sweep(tmp_path, job, objectives={"sharpe": "maximize", "turnover": "minimize"})
    summary = summarise(study)
    assert sorted(summary["best"]) == [0, 1, 3]  # trial 2 trades most and earns least
    assert summary["objectives"] == {"sharpe": "maximize", "turnover": "minimize"}


def test_what_violates_a_constraint_is_never_the_best(tmp_path: Path) -> None:
    def job(index: int, overrides: dict[str, str]) -> Any:
        return {"sharpe": [1.0, 2.0, 3.0, 0.0][index], "max_drawdown": [-0.2, -0.1, -0.4, -0.1][index]}

    study, _ = sweep(tmp_path, job, at_least={"max_drawdown": -0.3})
    summary = summarise(study)
    assert summary["best"] == [1]
    assert [trial["violated"] for trial in summary["trials"]] == [[], [], ["max_drawdown at least -0.3"], []]
    study, _ = sweep(tmp_path, job, at_most={"sharpe": -1.0}, study_name="none")
    assert summarise(study)["best"] == []


def test_violations_are_zero_or_less_within_the_bounds() -> None:
    metrics = {"turnover": 60.0, "max_drawdown": -0.3}
    found = violations(metrics, {"turnover": 50.0}, {"max_drawdown": -0.3})
    assert found == {"turnover at most 50": 10.0, "max_drawdown at least -0.3": 0.0}


def test_a_sweep_leaves_table_and_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep(tmp_path, gamma, n_trials=6)
    folder = tmp_path / "sweep/summary"
    assert {path.name for path in folder.iterdir()} == {"summary.json", "history.png", "importance.png"}
    for name in ("history.png", "importance.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [f"trial {number} of 6 in {tmp_path}/sweep/{number}" for number in (0, 1)]
    assert lines[6].startswith("study sac: 6 complete")
    assert lines[-1].startswith("best trial ")
    assert f" in {tmp_path}/sweep/" in lines[-1]
    assert "model.gamma=" in lines[-1]


def test_the_importance_is_that_of_what_decides(tmp_path: Path) -> None:
    study, _ = sweep(tmp_path, gamma, n_trials=30)
    assert summarise(study)["importance"]["model.gamma"] > 0.9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objectives": {}}, "objectives is empty"),
        ({"objectives": {"sharpe": "max"}}, "objectives.sharpe=max is not a choice"),
        ({"n_trials": 0}, "n_trials=0 is out of range"),
        ({"n_jobs": 0}, "n_jobs=0 is out of range"),
        ({"max_failures_in_a_row": 0}, "max_failures_in_a_row=0"),
        ({"max_restarts": -1}, "max_restarts=-1"),
        ({"pruner_startup_trials": -1}, "pruner_startup_trials=-1"),
        ({"pruner_warmup_checks": -1}, "pruner_warmup_checks=-1"),
        ({"pruner": "best"}, "pruner=best"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_made(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        sweep(tmp_path, gamma, **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", MODEL_TYPES)
def test_every_search_composes_and_its_defaults_lie_in_their_ranges(name: str) -> None:
    register_schemas()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf_dir())):
        cfg = compose("train", [f"search={name}"], return_hydra_config=True)
    sweeper = cfg.hydra.sweeper
    assert sweeper._target_ == "trade_agent.search.sweeper.StudySweeper"
    from hydra_plugins.hydra_optuna_sweeper._impl import create_params_from_overrides

    space, _, _ = create_params_from_overrides([f"{key}={value}" for key, value in sweeper.params.items()])
    assert len(space) > 1
    assert set(default_values(cfg, space)) == set(space)
    settings = settings_of(cfg, space)
    assert {"seed", "trainer.name", "data.source", "env.fill"} <= settings.keys()
    assert not settings.keys() & space
    assert not {name for name in settings if name.startswith(("hydra.", "paths."))}
    json.dumps(settings)  # as a storage does
    assert set(sweeper.objectives) == {"skill_score" if name == "cnn_lstm" else "sharpe"}


def test_values_out_of_range_are_left_to_the_sampler() -> None:
    space = {
        "a": optuna.distributions.FloatDistribution(0.0, 1.0),
        "b": optuna.distributions.CategoricalDistribution(["mean", "gate"]),
        "c": optuna.distributions.IntDistribution(1, 3),
    }
    assert default_values(OmegaConf.create({"a": 2.0, "b": "vote", "c": 4}), space) == {}
    assert default_values(OmegaConf.create({"a": 1.0, "b": "gate", "c": 3}), space) == {"a": 1.0, "b": "gate", "c": 3}


def test_states_are_all_told(tmp_path: Path) -> None:
    study, _ = sweep(tmp_path, gamma, n_jobs=3)
    assert not study.get_trials(states=(TrialState.RUNNING, TrialState.WAITING))
