"""What goes wrong while a run is under way: each trouble is a real one, is told in one line, and ends in the weights of
a run that had none."""

import contextlib
import json
import logging
import os
import resource
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.training.test_checkpoint import StopAt
from trade_agent.errors import ConfigError, DataError, StoppedError, TradeAgentError, TrainingDivergedError
from trade_agent.registry.store import ModelRegistry
from trade_agent.training import reinforcement
from trade_agent.training.checkpoint import stage_under_way
from trade_agent.training.launch import failed_worker
from trade_agent.training.results import TrainingResult
from trade_agent.training.resume import locked
from trade_agent.training.run_log import run_log
from trade_agent.training.runs import resume_run, run_config
from trade_agent.training.stages import cnn_lstm
from trade_agent.training.unified_manager import UnifiedTrainingManager

FORECASTER = ("stage=cnn_lstm", "trainer.cross_fit_folds=2", "trainer.checkpoint_seconds=0")


def write_bars(path: Path, seed: int) -> None:
    """Daily bars of a random walk, enough for every split."""
    random = np.random.default_rng(seed)
    close = 100.0 * np.exp(np.cumsum(random.normal(0.0, 0.01, 900)))
    days = np.arange(np.datetime64("2012-01-01"), np.datetime64("2012-01-01") + 900)
    rows = [f"{day},{c:.6f},{c * 1.001:.6f},{c * 0.999:.6f},{c:.6f},1000" for day, c in zip(days, close, strict=True)]
    path.write_text("\n".join(["time,open,high,low,close,volume", *rows]) + "\n", encoding="utf-8")


def stop_early(config: Any, folder: Path, monkeypatch: pytest.MonkeyPatch, boundaries: int = 5) -> None:
    """Begin a run and stop it at a boundary."""
    with monkeypatch.context() as patch:
        patch.setattr("trade_agent.training.unified_manager.StopFlag", lambda resume: StopAt(boundaries))
        with pytest.raises(StoppedError):
            UnifiedTrainingManager(config, run_dir=folder, quiet=True).run()


def learned(root: Path) -> tuple[str, Any]:
    model = ModelRegistry(root / "models").get("cnn_lstm@latest")
    return model.weights_sha256, model.metrics


def error_of(folder: Path) -> dict[str, str]:
    error: dict[str, str] = json.loads((folder / "error.json").read_text(encoding="utf-8"))
    assert error["resume"] == f"python train.py resume={folder}"
    return error


@contextlib.contextmanager
def no_file_larger_than(size: int) -> Iterator[None]:
    """The system refuses to write on, as it does on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_ends_the_run_with_one_line_and_it_goes_on_when_there_is_room(
    load: Any, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path / "whole", *FORECASTER)
    folder = tmp_path / "run"
    stop_early(load(tmp_path, *FORECASTER), folder, monkeypatch)
    kept = sorted(path.name for path in (folder / "checkpoints/cnn_lstm").iterdir())
    limit = max(path.stat().st_size for path in (folder / "checkpoints/cnn_lstm").iterdir()) // 2
    with no_file_larger_than(limit), pytest.raises(TradeAgentError) as caught:
        resume_run(folder, quiet=True)
    assert caught.value.exit_code == 1
    assert "\n" not in str(caught.value)
    error = error_of(folder)
    assert error["error"] == "OSError"
    assert error["remedy"] == "check that the disk is writable and has room, then resume"
    assert sorted(path.name for path in (folder / "checkpoints/cnn_lstm").iterdir()) == kept  # nothing half-written

    resume_run(folder, quiet=True)
    assert learned(tmp_path) == learned(tmp_path / "whole")
    assert not (folder / "error.json").exists()


def test_a_place_that_cannot_be_written_loses_no_finished_stage(
    load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file stands where the folder of checkpoints has to be: no permission stops the superuser."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints/td3").write_text("in the way", encoding="utf-8")
    with pytest.raises(TradeAgentError, match="td3 failed"):
        UnifiedTrainingManager(load(tmp_path, "stage=rl", "model=td3"), run_dir=folder, quiet=True).run()
    assert error_of(folder)["stage"] == "td3"
    forecaster = ModelRegistry(tmp_path / "models").get("cnn_lstm@latest").model_id
    (folder / "checkpoints/td3").unlink()
    result = resume_run(folder, quiet=True)
    assert result.parents == [forecaster]  # type: ignore[union-attr]


def test_a_stage_that_was_registered_and_not_reported_is_reported_and_registered_once(
    load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(result: TrainingResult, folder: Path) -> None:
        raise KeyboardInterrupt

    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(TrainingResult, "write", killed)
        with pytest.raises(KeyboardInterrupt):
            UnifiedTrainingManager(load(tmp_path, "stage=rl", "model=td3"), run_dir=folder, quiet=True).run()
    (registered,) = ModelRegistry(tmp_path / "models").list()
    resume_run(folder, quiet=True)
    assert [record.id for record in ModelRegistry(tmp_path / "models").list("cnn_lstm")] == [registered.id]
    assert json.loads((folder / "upstream/cnn_lstm/result.json").read_text())["model_id"] == registered.id
    assert (folder / "upstream/cnn_lstm/history.json").is_file()
    assert not (folder / "checkpoints").exists()


def with_a_full_gpu(config: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> UnifiedTrainingManager:
    """A run whose first try of the forecaster is as if on a GPU without memory left."""
    manager, real, tries = UnifiedTrainingManager(config, run_dir=folder, quiet=True), cnn_lstm.run, []

    def run(*arguments: Any, **named: Any) -> Any:
        tries.append(None)
        if len(tries) > 1:
            return real(*arguments, **named)
        manager.devices.device = torch.device("cuda")
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.\nGPU 0 is full.")

    monkeypatch.setattr(cnn_lstm, "run", run)
    return manager


def test_what_does_not_fit_the_gpu_ends_with_one_line(
    load: Any, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(TradeAgentError, match=r"^cnn_lstm failed: CUDA out of memory. Tried to allocate 9 GiB.; lower"):
        with_a_full_gpu(load(tmp_path, *FORECASTER), tmp_path / "run", monkeypatch).run()
    assert error_of(tmp_path / "run")["error"] == "OutOfMemoryError"
    assert "device.on_oom=cpu" in error_of(tmp_path / "run")["remedy"]


def test_what_does_not_fit_the_gpu_is_trained_on_the_cpu_where_that_is_asked_for(
    load: Any, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path / "whole", *FORECASTER)
    config = load(tmp_path, *FORECASTER, "device.on_oom=cpu")
    result = with_a_full_gpu(config, tmp_path / "run", monkeypatch).run()
    assert result.device == "cpu"
    assert learned(tmp_path) == learned(tmp_path / "whole")
    assert not (tmp_path / "run/error.json").exists()


def test_data_that_are_gone_or_changed_are_told_and_the_run_goes_on_once_they_are_back(
    load: Any, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bars, folder = tmp_path / "bars.csv", tmp_path / "run"
    options = (*FORECASTER, "data=csv", f"data.path={bars}")
    write_bars(bars, seed=1)
    run(tmp_path / "whole", *options)
    stop_early(load(tmp_path, *options), folder, monkeypatch)

    bars.unlink()
    with pytest.raises(DataError, match="bars.csv"):
        resume_run(folder, quiet=True)
    assert "bars.csv" in error_of(folder)["message"]

    write_bars(bars, seed=2)
    with pytest.raises(DataError, match="the data have changed since the run began"):
        resume_run(folder, quiet=True)
    assert error_of(folder)["remedy"] == "restore the file, or begin a new run"

    write_bars(bars, seed=1)
    resume_run(folder, quiet=True)
    assert learned(tmp_path) == learned(tmp_path / "whole")


def test_checkpoints_that_are_all_damaged_cost_time_and_nothing_else(
    load: Any, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run(tmp_path / "whole", *FORECASTER)
    folder = tmp_path / "run"
    stop_early(load(tmp_path, *FORECASTER), folder, monkeypatch)
    damaged = list((folder / "checkpoints/cnn_lstm").iterdir())
    for path in damaged:
        path.write_bytes(path.read_bytes()[:-1])
    (folder / "checkpoints/cnn_lstm/.forecaster-000009-cut.pth.1").write_bytes(b"half of a checkpoint")
    resume_run(folder, quiet=True)
    assert caplog.text.count("is damaged") == len(damaged) - 1 > 1
    assert caplog.text.count("stage.json is passed over") == 1
    assert learned(tmp_path) == learned(tmp_path / "whole")


def test_a_run_goes_on_from_any_folder_with_the_versions_it_began_with(
    load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its relative paths count from where it was started."""
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    home.mkdir()
    elsewhere.mkdir()
    config = load(home, *FORECASTER)
    config.paths.models = "models"
    monkeypatch.chdir(home)
    stop_early(config, home / "run", monkeypatch)
    began = json.loads((home / "run/run.json").read_text(encoding="utf-8"))
    began["environment"]["git_commit"] = "the one before"
    (home / "run/run.json").write_text(json.dumps(began), encoding="utf-8")
    monkeypatch.chdir(elsewhere)
    result = resume_run(Path("../home/run"), quiet=True)
    assert ModelRegistry(home / "models").get(result.model_id).environment["git_commit"] == "the one before"  # type: ignore[union-attr]
    assert list(elsewhere.iterdir()) == []
    assert Path.cwd() == elsewhere


def test_what_a_run_logs_is_in_one_file_before_and_after_it_was_stopped(
    load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr("trade_agent.training.unified_manager.StopFlag", lambda resume: StopAt(5))
        with pytest.raises(StoppedError):
            run_config(load(tmp_path, *FORECASTER), run_dir=folder, quiet=True)
    first = (folder / "train.log").read_text(encoding="utf-8")
    assert first.count("INFO trade_agent.alerts: plateau cannot fire in cnn_lstm") == 1
    resume_run(folder, quiet=True)
    whole = (folder / "train.log").read_text(encoding="utf-8")
    assert whole.startswith(first)
    assert whole.count("INFO trade_agent.alerts: plateau cannot fire in cnn_lstm") == 2
    logging.getLogger("trade_agent").warning("of something else")
    assert (folder / "train.log").read_text(encoding="utf-8") == whole


def test_the_error_of_a_killed_worker_names_the_stage_that_was_under_way(
    load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it had written nothing yet, and an error of another stage is there from before."""
    folder = tmp_path / "run"
    (folder / "checkpoints/sac").mkdir(parents=True)
    (folder / "checkpoints/sac/stage.json").write_text("{}", encoding="utf-8")
    os.utime(folder / "checkpoints/sac/stage.json", (0, 0))
    (folder / "error.json").write_text('{"stage": "sac"}', encoding="utf-8")

    def killed(*context: Any, **settings: Any) -> None:
        raise KeyboardInterrupt  # as little is done about it as about SIGKILL

    with monkeypatch.context() as patch:
        patch.setattr(cnn_lstm, "run", killed)
        with pytest.raises(KeyboardInterrupt):
            run_config(load(tmp_path, *FORECASTER), run_dir=folder, quiet=True)
    assert failed_worker(folder, 1, -signal.SIGKILL).message == "worker 1 was ended by SIGKILL"
    assert error_of(folder)["stage"] == "cnn_lstm"
    resume_run(folder, quiet=True)
    assert stage_under_way(folder) == "sac"


def test_a_line_of_the_log_waits_for_the_folder_and_makes_none(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with run_log(folder):
        logging.getLogger("trade_agent").info("before it is begun")
        assert not folder.exists()
        folder.mkdir()
        logging.getLogger("trade_agent").info("under way")
    lines = (folder / "train.log").read_text(encoding="utf-8").splitlines()
    assert [line.split("trade_agent: ")[1] for line in lines] == ["before it is begun", "under way"]


def test_a_run_that_is_under_way_is_refused_and_left_alone(
    load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    stop_early(load(tmp_path, *FORECASTER), folder, monkeypatch)
    with locked(folder), pytest.raises(ConfigError, match="another process is at work") as caught:
        resume_run(folder, quiet=True)
    assert caught.value.exit_code == 2
    assert not (folder / "error.json").exists()


# ------------------------------------------------------------------------------------------------ gymnasium

TASK = (
    "stage=rl",
    "model=td3",
    "env=gymnasium",
    "env.evaluation_episodes=1",
    "env.check_episodes=1",
    "trainer.off_policy_env_steps=600",
    "trainer.validation_checks=2",
    "model.hidden_sizes=[8]",
    "model.num_envs=2",
)


def task_config(folder: Path) -> Any:
    from trade_agent.config.load import compose_config, load_config

    paths = (f"paths.models={folder / 'models'}", f"paths.outputs={folder}")
    return load_config(compose_config(["trainer=smoke", "device=cpu", *TASK, *paths]))


def figures(folder: Path) -> tuple[Any, ...]:
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    history = (folder / "history.json").read_text(encoding="utf-8")
    return result["metrics"], result["checks"], history, (folder / "agent.pth").read_bytes()


def test_a_run_on_a_task_goes_on_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = task_config(tmp_path)
    UnifiedTrainingManager(config, run_dir=tmp_path / "whole", quiet=True).run()
    stop_early(config, tmp_path / "run", monkeypatch, boundaries=230)  # in the second episode
    torch.manual_seed(5)
    resume_run(tmp_path / "run", quiet=True)
    assert figures(tmp_path / "run") == figures(tmp_path / "whole")


def test_a_run_on_a_task_that_diverges_leaves_its_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []
    original = reinforcement.LearningRates.set

    def seen(self: Any, done: float) -> None:
        original(self, done)
        rates.append(self.optimizer.param_groups[0]["lr"])

    def diverged(*arguments: Any) -> None:
        raise TrainingDivergedError("loss_critic is nan", "lower model.learning_rate")

    monkeypatch.setattr(reinforcement.LearningRates, "set", seen)
    monkeypatch.setattr(reinforcement, "finite", diverged)
    config = task_config(tmp_path)
    with pytest.raises(TrainingDivergedError):
        UnifiedTrainingManager(config, run_dir=tmp_path / "run", quiet=True).run()
    base = config.model.learning_rate  # type: ignore[attr-defined]
    assert list(dict.fromkeys(rates)) == [base, base / 2, base / 4, base / 8]
    assert error_of(tmp_path / "run")["message"] == "loss_critic is nan"
