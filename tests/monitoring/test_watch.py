"""The door from a training to sinks, alerts and trial; and a real training through it."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from trade_agent.config.load import compose_config, from_snapshot, load_config, snapshot
from trade_agent.config.schema import MonitoringConfig
from trade_agent.errors import ConfigError
from trade_agent.training.monitoring.open import open_sinks
from trade_agent.training.monitoring.watch import Watch


class Kept:
    def __init__(self, failing: bool = False) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []
        self.failing, self.closed = failing, False

    def write(self, step: int, values: Mapping[str, float]) -> None:
        if self.failing:
            raise OSError("no space left")
        self.rows.append((step, dict(values)))

    def close(self, *, finished: bool) -> None:
        self.closed = True


def test_metrics_come_with_throughput_and_memory() -> None:
    sink, times = Kept(), iter([10.0, 10.5, 12.0, 13.0, 14.0, 15.0])
    watch = Watch(sinks=[sink], clock=lambda: next(times))
    watch.metrics(100, {"loss": 1.0})
    watch.metrics(150, {"loss": 0.5})
    watch.metrics(300, {"loss": 0.4})
    assert [row.get("steps_per_second") for _, row in sink.rows] == [None, 100.0, 100.0]
    assert all(row["memory_bytes"] > 2**20 for _, row in sink.rows)
    assert [(step, row["loss"]) for step, row in sink.rows] == [(100, 1.0), (150, 0.5), (300, 0.4)]
    for step in (300, 200, 250):  # the last updates of a step; back to a checkpoint; on from there
        watch.metrics(step, {})
    assert [row.get("steps_per_second") for _, row in sink.rows[3:]] == [None, None, 50.0]


def test_a_gpu_tells_what_it_holds_and_does(monkeypatch: pytest.MonkeyPatch) -> None:
    sink = Kept()
    for name, value in {"is_available": True, "is_initialized": True, "memory_allocated": 5, "utilization": 40}.items():
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    Watch(sinks=[sink]).metrics(1, {})
    assert (sink.rows[0][1]["gpu_memory_bytes"], sink.rows[0][1]["gpu_utilisation"]) == (5.0, 40.0)

    def without_nvml() -> int:
        raise ModuleNotFoundError("pynvml")

    monkeypatch.setattr(torch.cuda, "utilization", without_nvml)
    Watch(sinks=[sink]).metrics(2, {})
    assert "gpu_utilisation" not in sink.rows[1][1]


def test_checks_are_named_apart_from_losses() -> None:
    sink = Kept()
    Watch(sinks=[sink]).validated(100, {"sharpe": 1.0, "turnover": 3.0})
    assert sink.rows == [(100, {"validation/sharpe": 1.0, "validation/turnover": 3.0})]


def test_a_sink_that_fails_ends_neither_the_training_nor_the_others(caplog: pytest.LogCaptureFixture) -> None:
    broken, sound = Kept(failing=True), Kept()
    watch = Watch(sinks=[broken, sound])
    with caplog.at_level(logging.WARNING):
        watch.validated(1, {"sharpe": 1.0})
        watch.validated(2, {"sharpe": 1.0})
    assert [step for step, _ in sound.rows] == [1, 2]
    assert caplog.messages == ["Kept takes no more metrics: no space left"]
    watch.close()
    assert sound.closed


def test_without_anything_it_does_nothing() -> None:
    watch = Watch()
    watch.metrics(1, {"loss": 1.0})
    watch.validated(1, {"sharpe": 1.0})
    watch.close()
    assert not watch.prunes


def test_the_sinks_are_those_of_the_config(tmp_path: Path) -> None:
    def kinds(*overrides: str) -> list[str]:
        config: MonitoringConfig = load_config(compose_config(overrides)).monitoring
        sinks = open_sinks(config, stage="sac", folder=tmp_path, run_id="r1", params={})
        for sink in sinks:
            sink.close(finished=True)
        return [type(sink).__name__ for sink in sinks]

    assert kinds() == ["MetricLines", "TensorBoardEvents"]
    assert kinds("monitoring=off") == []
    assert kinds("monitoring=off", f"monitoring.prometheus={tmp_path}") == ["PrometheusText"]


def test_monitoring_changes_no_identity_and_survives_a_snapshot(monkeypatch: pytest.MonkeyPatch) -> None:
    from trade_agent.config.load import config_hash

    monkeypatch.setenv("HOOK", "https://example.org/secret")
    plain = load_config(compose_config(["stage=cnn_lstm"]))
    other = load_config(
        compose_config(["stage=cnn_lstm", "monitoring=off", "monitoring.alerts.webhook='${oc.env:HOOK}'"])
    )
    assert config_hash(plain) == config_hash(other)
    stored = json.loads(json.dumps(snapshot(other)))
    assert "secret" not in json.dumps(stored)
    again = from_snapshot(stored)
    assert (again.monitoring, again.hidden) == (other.monitoring, other.hidden)
    assert snapshot(again) == snapshot(other)
    monkeypatch.delenv("HOOK")
    with pytest.raises(
        ConfigError, match=r"^monitoring.alerts.webhook is \$\{oc.env:HOOK\}, which cannot be read any more"
    ):
        from_snapshot(stored)


def test_a_place_that_cannot_be_opened_any_more_is_named_and_the_others_are_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    config = load_config(compose_config([f"monitoring.prometheus={tmp_path}/file/prometheus"])).monitoring
    sinks = open_sinks(config, stage="sac", folder=tmp_path, run_id="r1", params={})
    assert [type(sink).__name__ for sink in sinks] == ["MetricLines", "TensorBoardEvents"]
    assert "the metrics of sac go without one of their places" in caplog.text
    assert f"{tmp_path}/file" in caplog.text


def train(folder: Path, *overrides: str, trial: Any = None) -> Any:
    from trade_agent.training.unified_manager import UnifiedTrainingManager

    config = load_config(
        compose_config(
            [
                "stage=cnn_lstm", "trainer=smoke", "trainer.cross_fit_folds=0", "device=cpu", "device.threads=1",
                "preprocessing=minimal", "data.start=2011-06-01", "evaluation.min_bars=300",
                "evaluation.bootstrap_samples=100", "model.conv_channels=[8]", "model.lstm_hidden=8",
                "model.window_bars=8", f"paths.models={folder}/models", f"paths.outputs={folder}/outputs", *overrides,
            ]
        )
    )  # fmt: skip
    return UnifiedTrainingManager(config, run_dir=folder / "run", quiet=True, trial=trial).run()


@pytest.mark.parametrize("options", [("stage=cnn_lstm",), ("stage=rl", "model=td3", "env=gymnasium")])
def test_a_place_that_cannot_be_written_is_told_before_anything_is_trained(
    tmp_path: Path, options: tuple[str, ...]
) -> None:
    from trade_agent.training.unified_manager import UnifiedTrainingManager

    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    paths = (f"paths.models={tmp_path}/models", f"monitoring.prometheus={tmp_path}/file/prometheus")
    config = load_config(compose_config([*options, *paths]))
    with pytest.raises(ConfigError, match=r"^monitoring.prometheus: \S+ cannot be written \(.+\); name a folder"):
        UnifiedTrainingManager(config, run_dir=tmp_path / "run", quiet=True).run()
    assert not (tmp_path / "run").exists()


def test_a_training_leaves_its_metrics_and_an_alert(tmp_path: Path) -> None:
    # A factor of almost 0 makes any memory "growth"; 20 epochs give the rule enough values.
    train(
        tmp_path,
        "trainer.forecaster_epochs=20",
        "trainer.forecaster_patience=20",
        "monitoring.alerts.memory_factor=0.001",
    )
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 21))
    assert {"train_loss", "validation_loss", "grad_norm", "memory_bytes"} <= rows[-1].keys()
    history = json.loads((tmp_path / "run/history.json").read_text())
    assert [row["train_loss"] for row in rows] == history["train_loss"]
    alerts = [json.loads(line) for line in (tmp_path / "run/alerts.jsonl").read_text().splitlines()]
    assert [(alert["rule"], alert["stage"]) for alert in alerts] == [("memory_growth", "cnn_lstm")]
    assert list((tmp_path / "run/tensorboard").iterdir())
