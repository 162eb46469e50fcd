"""From the config to the watch of one stage."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from trade_agent.config.schema import AlertsConfig, MonitoringConfig
from trade_agent.search.trial import StudyTrial
from trade_agent.training.monitoring.alerts import Alerts, Channel, LogChannel
from trade_agent.training.monitoring.files import AlertLines, MetricLines, PrometheusText, TensorBoardEvents
from trade_agent.training.monitoring.watch import Sink, Watch
from trade_agent.training.monitoring.webhook import WebhookChannel


@contextlib.contextmanager
def watching(
    config: MonitoringConfig, *, stage: str, score: str, folder: Path, run_id: str, trial: StudyTrial | None
) -> Iterator[Watch]:
    """The watch of one stage, closed whatever ends it.

    stage: what is trained, such as hybrid_sac. score: the validation figure by which a state is chosen. folder: where
    the files of this stage go. trial: where the stage is what a search is for.
    """
    watch = Watch(
        sinks=open_sinks(config, stage=stage, folder=folder, run_id=run_id),
        alerts=open_alerts(config.alerts, stage=stage, score=f"validation/{score}", folder=folder),
        trial=trial,
    )
    try:
        yield watch
    finally:
        watch.close()


def open_sinks(config: MonitoringConfig, *, stage: str, folder: Path, run_id: str) -> list[Sink]:
    sinks: list[Sink] = []
    if config.jsonl:
        sinks.append(MetricLines(folder / "metrics.jsonl"))
    if config.tensorboard:
        sinks.append(TensorBoardEvents(folder / "tensorboard"))
    if config.prometheus is not None:
        sinks.append(PrometheusText(Path(config.prometheus), run_id=run_id, stage=stage))
    if config.mlflow is not None:
        from trade_agent.training.monitoring.mlflow import MlflowRun  # an extra

        sinks.append(MlflowRun(config.mlflow, run_id=run_id, stage=stage))
    return sinks


def open_alerts(config: AlertsConfig, *, stage: str, score: str, folder: Path) -> Alerts | None:
    """None where nobody would be told."""
    channels: list[Channel] = []
    if config.log:
        channels.append(LogChannel())
    if config.file:
        channels.append(AlertLines(folder / "alerts.jsonl"))
    if config.webhook is not None:
        channels.append(WebhookChannel(config.webhook, timeout_seconds=config.webhook_timeout_seconds))
    return Alerts(config, channels, stage=stage, score=score) if channels else None
