"""A whole run: what it writes, registers and says, also when it fails."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from trade_agent.config.load import config_hash
from trade_agent.errors import ConfigError, DataError, RegistryError, TradeAgentError, TrainingDivergedError
from trade_agent.registry.store import ModelRegistry
from trade_agent.search.pruners import make_pruner
from trade_agent.search.studies import create_study, open_storage
from trade_agent.search.sweeps import FOLDER
from trade_agent.search.trial import StudyTrial
from trade_agent.training import unified_manager
from trade_agent.training.checkpoint import no_checkpoints
from trade_agent.training.models import policy_from_state
from trade_agent.training.monitoring.watch import Watch
from trade_agent.training.stages.trading import backtest
from trade_agent.training.unified_manager import UnifiedTrainingManager

CONTRACT = {
    "stage", "model", "model_id", "version", "grade", "objective", "metrics", "baselines", "parents",
    "preprocessor_version", "config_hash", "data_fingerprint", "seed", "device", "world_size", "duration_seconds",
    "env_steps", "command",
}  # fmt: skip
BESIDE = {"run_id", "validation", "trainer", "grade_decision", "report", "notes", "artefacts"}


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def folders(trained: Any) -> dict[str, Path]:
    """Run folder of every stage of the shared run, by the key of the stage."""
    root = trained.root / "run"
    return {"ensemble": root} | {path.name: path for path in (root / "upstream").iterdir()}


def test_every_stage_leaves_a_result_with_the_promised_fields(trained: Any) -> None:
    found = folders(trained)
    assert len(found) == 8
    for key, folder in found.items():
        result = read(folder / "result.json")
        assert result.keys() == CONTRACT | BESIDE
        assert result["objective"].keys() == {"name", "value", "direction"}
        assert re.fullmatch(r"[0-9a-f]{64}", result["config_hash"])
        assert result["config_hash"] == config_hash(trained.config)
        assert (result["seed"], result["device"], result["world_size"]) == (1, "cpu", 1)
        assert result["command"] == trained.config.command
        assert result["trainer"] == "smoke"
        assert result["duration_seconds"] > 0.0
        assert "history.json" in result["artefacts"]
        assert {"flat", "buy_and_hold"} <= result["baselines"].keys() or key == "cnn_lstm"
        assert isinstance(read(folder / "history.json"), dict)


def test_env_steps_are_those_that_were_made(trained: Any) -> None:
    steps = {key: read(folder / "result.json")["env_steps"] for key, folder in folders(trained).items()}
    # PPO collects whole rollouts of 16 * 128 bars.
    expected = {"ppo": 2048, "sac": 256, "td3": 256, "hybrid_ppo": 2048, "hybrid_sac": 128, "hybrid_td3": 128}
    assert steps == expected | {"cnn_lstm": 0, "ensemble": 0}


def test_the_registry_says_the_same(trained: Any) -> None:
    registry = ModelRegistry(trained.root / "models")
    for key, folder in folders(trained).items():
        result = read(folder / "result.json")
        metadata = registry.get(result["model_id"])
        for name in ("version", "grade", "metrics", "baselines", "seed", "command", "run_id", "grade_decision"):
            expected = result[name] if name != "run_id" else f"{result['run_id']}-{key}"
            assert getattr(metadata, name) == expected, name
        assert vars_of(metadata.objective) == result["objective"]
        assert [parent.id for parent in metadata.parents] == result["parents"]
        assert metadata.preprocessor.version == result["preprocessor_version"]
        assert metadata.data.fingerprint == result["data_fingerprint"]
        assert metadata.trainer_profile == result["trainer"]
        assert metadata.recipe["cross_fit_folds"] == result["notes"].get("cross_fit_folds", 0)
    assert registry.get("ensemble@latest").model_id == trained.result.model_id


def vars_of(objective: Any) -> dict[str, Any]:
    return {name: getattr(objective, name) for name in ("name", "value", "direction")}


def test_parents_form_the_chain_of_stages(trained: Any) -> None:
    ids = {key: read(folder / "result.json")["model_id"] for key, folder in folders(trained).items()}
    parents = {key: read(folder / "result.json")["parents"] for key, folder in folders(trained).items()}
    assert parents["cnn_lstm"] == []
    assert parents["ensemble"] == [ids["hybrid_ppo"], ids["hybrid_sac"], ids["hybrid_td3"]]
    for name in ("ppo", "sac", "td3"):
        assert parents[name] == [ids["cnn_lstm"]]
        assert parents[f"hybrid_{name}"] == [ids["cnn_lstm"], ids[name]]


def test_the_run_folder_says_what_the_run_is(trained: Any) -> None:
    root = trained.root / "run"
    assert read(root / "config.json")["model"]["combiner"] == "gate"
    description = read(root / "run.json")
    assert len(description["plan"]) == 8
    assert description["data"]["splits"] == trained.dataset.splits()
    assert description["environment"]["torch"]
    assert not (root / "error.json").exists()


def test_splits_are_apart_by_window_and_horizon(trained: Any) -> None:
    split = trained.dataset.split
    assert split.train.stop + 8 + 2 <= split.validation.start
    assert split.validation.stop + 8 + 2 <= split.test.start
    assert trained.dataset.pipeline.fitted_rows == split.train


def test_the_verdict_on_every_trading_model_is_that_of_the_test_rows(trained: Any) -> None:
    dataset, registry = trained.dataset, ModelRegistry(trained.root / "models")
    split, times = dataset.split, np.datetime_as_string(dataset.bars.timestamps, unit="s")
    trading = {key: folder for key, folder in folders(trained).items() if key != "cnn_lstm"}
    assert len(trading) == 7
    for key, folder in trading.items():
        result = read(folder / "result.json")
        policy = policy_from_state(registry.load(result["model_id"]).state, dataset.features)

        def metrics(rows: range, policy: Any = policy) -> Any:
            return pytest.approx(backtest(dataset, policy, rows).metrics(), rel=1e-9)

        told = result["report"]
        first, last = times[split.test.start], times[split.test.stop - 1]
        assert (told["first_time"], told["last_time"], told["num_bars"]) == (first, last, len(split.test) - 1), key
        assert result["metrics"] == told["metrics"] == metrics(split.test), key
        assert result["validation"] == metrics(split.validation), key


def test_every_stored_model_verifies(trained: Any) -> None:
    registry = ModelRegistry(trained.root / "models")
    assert len([registry.load(model.model_id) for model in registry.find("hybrid", lambda model: True)]) == 3


# ------------------------------------------------------------------------------------------------ when it fails


def failing(error: Exception) -> Any:
    def run(*arguments: Any, **named: Any) -> None:
        raise error

    return run


def test_a_failure_keeps_what_is_finished_and_the_same_command_goes_on(
    load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("stage=hybrid", "model=td3")
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(unified_manager.hybrid, "run", failing(TrainingDivergedError("loss is nan", "lower it")))
        with pytest.raises(TrainingDivergedError, match="loss is nan"):
            UnifiedTrainingManager(load(tmp_path, *command), run_dir=folder, quiet=True).run()
    error = read(folder / "error.json")
    assert error.keys() == {"stage", "error", "message", "remedy", "resume", "time"}
    assert (error["stage"], error["error"]) == ("hybrid_td3", "TrainingDivergedError")
    assert (error["message"], error["remedy"]) == ("loss is nan", "lower it")
    assert error["resume"] == f"python train.py resume={folder}"
    assert not (folder / "result.json").exists()
    registry = ModelRegistry(tmp_path / "models")
    kept = [registry.get(f"{name}@latest").model_id for name in ("cnn_lstm", "td3")]
    assert not registry.find("hybrid", lambda model: True)

    # An error of ours that would mean wrong input is a failure, exit code 1, once training has begun.
    late = RegistryError("the disk is full", "make room")
    with monkeypatch.context() as patch:
        patch.setattr(unified_manager.hybrid, "run", failing(late))
        with pytest.raises(RegistryError):
            UnifiedTrainingManager(load(tmp_path, *command), run_dir=tmp_path / "late", quiet=True).run()
    assert late.exit_code == 1
    assert RegistryError.exit_code == 2
    assert read(tmp_path / "late/error.json")["message"] == "the disk is full"

    manager = UnifiedTrainingManager(load(tmp_path, *command), quiet=True)
    assert [stage.key for stage in manager.prepare()[1].to_train] == ["hybrid_td3"]
    result = manager.run()
    assert result.parents == kept
    assert registry.get("td3@latest").model_id == kept[1]


@pytest.mark.parametrize(
    ("error", "raised", "remedy"),
    [
        (ZeroDivisionError("no room"), ZeroDivisionError, ""),
        (MemoryError("no room"), TradeAgentError, "device.on_oom=cpu"),  # one line: what is full is no defect of ours
    ],
)
def test_an_error_that_is_not_ours_is_described_too(
    load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, raised: type[Exception], remedy: str
) -> None:
    monkeypatch.setattr(unified_manager.cnn_lstm, "run", failing(error))
    with pytest.raises(raised, match="no room"):
        UnifiedTrainingManager(load(tmp_path, "stage=cnn_lstm"), run_dir=tmp_path / "run", quiet=True).run()
    told = read(tmp_path / "run/error.json")
    assert (told["stage"], told["error"], told["message"]) == ("cnn_lstm", type(error).__name__, "no room")
    assert remedy in told["remedy"]


def test_a_run_folder_that_cannot_be_made_does_not_hide_the_error(load: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(FileExistsError):
        UnifiedTrainingManager(load(tmp_path, "stage=cnn_lstm"), run_dir=tmp_path / "file", quiet=True).run()


def test_a_store_that_cannot_be_written_is_named_before_training(load: Any, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models/preprocessors").write_text("in the way")
    manager = UnifiedTrainingManager(load(tmp_path, "stage=cnn_lstm"), run_dir=tmp_path / "run", quiet=True)
    with pytest.raises(ConfigError, match="models/preprocessors cannot be written") as caught:
        manager.run()
    assert caught.value.remedy
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("overrides", "kind"),
    [
        (["stage=cnn_lstm", "data.start=2013-01-01"], DataError),
        (["stage=cnn_lstm", "data.symbols=[NOPE]"], DataError),
        (["stage=cnn_lstm", "data=csv", "data.path=missing.csv"], DataError),
        (["stage=cnn_lstm", "data.symbols=[AAPL,FB]", "evaluation.min_bars=150"], DataError),  # FB: listed in 2012
        (["stage=rl", "upstream.cnn_lstm_model=cnn_lstm@v9.9.9"], RegistryError),
        (["stage=cnn_lstm", "model.window_bars=200"], DataError),
    ],
)
def test_wrong_input_leaves_nothing_behind(
    load: Any, tmp_path: Path, overrides: list[str], kind: type[TradeAgentError]
) -> None:
    with pytest.raises(kind) as caught:
        UnifiedTrainingManager(load(tmp_path, *overrides), quiet=True).run()
    assert caught.value.exit_code == 2
    assert caught.value.remedy
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_several_assets_train_through(run: Any, tmp_path: Path) -> None:
    result = run(tmp_path, "stage=hybrid", "model=td3", "data.symbols=[AAPL,IBM]")
    metadata = ModelRegistry(tmp_path / "models").get(result.model_id)
    assert metadata.data.symbols == ["AAPL", "IBM"]
    assert metadata.contract["num_assets"] == 2


def test_progress_and_table_go_to_stderr(load: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    result = UnifiedTrainingManager(load(tmp_path, "stage=cnn_lstm", "trainer.cross_fit_folds=0")).run()
    out, err = capfd.readouterr()
    assert out == ""
    assert "plan: cnn_lstm" in err
    assert "forecaster: 1/1" in err
    assert result.model_id.split("_grade")[0] in err
    assert f"grade {result.grade}" in err


def test_trials_that_left_no_model_count_among_those_that_were_tried(trained: Any, tmp_path: Path) -> None:
    """Each was a chance to be lucky, and lowers the deflated Sharpe ratio of the next."""
    address = f"journal:///{tmp_path}/studies.journal"
    study = create_study(
        open_storage(address), "sac", objectives={"sharpe": "maximize"}, sampler=None, pruner=optuna.pruners.NopPruner()
    )
    for state in (TrialState.PRUNED, TrialState.FAIL, TrialState.FAIL):
        study.tell(study.ask(), state=state)
    study.ask().set_user_attr(FOLDER, "/sweep/3")
    pruner = make_pruner("none", startup_trials=0)

    def num_trials(trial: StudyTrial | None) -> int:
        config = trained.settings("stage=rl", "model=sac")
        manager = UnifiedTrainingManager(config, run_dir=tmp_path / "run", quiet=True, trial=trial)
        dataset, plan = manager.prepare()
        return manager._context(plan.target, plan, dataset, tmp_path, no_checkpoints(), Watch()).num_trials

    assert num_trials(StudyTrial(address, "sac", "/sweep/3", pruner=pruner)) == num_trials(None) + 3
