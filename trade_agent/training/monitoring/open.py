"""From the config to the watch of one stage."""

import contextlib
import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from trade_agent.config.schema import AlertsConfig, MonitoringConfig
from trade_agent.errors import ConfigError
from trade_agent.search.trial import StudyTrial
from trade_agent.training.monitoring.alerts import Alerts, Channel, LogChannel
from trade_agent.training.monitoring.files import AlertLines, MetricLines, PrometheusText, TensorBoardEvents
from trade_agent.training.monitoring.watch import Sink, Watch
from trade_agent.training.monitoring.webhook import WebhookChannel

log = logging.getLogger(__name__)


def require_monitoring(config: MonitoringConfig) -> None:
    """Raise ConfigError when metrics could not go where the config wants them: better now than after training."""
    if config.prometheus is not None:
        try:
            Path(config.prometheus).mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=config.prometheus):
                pass
        except OSError as error:
            what = f"monitoring.prometheus: {config.prometheus} cannot be written ({error.strerror})"
            raise ConfigError(what, "name a folder that can") from error
    if config.mlflow is not None:
        from trade_agent.training.monitoring.mlflow import require_mlflow  # an extra

        require_mlflow(config.mlflow)


@contextlib.contextmanager
def watching(
    config: MonitoringConfig,
    *,
    stage: str,
    score: str,
    folder: Path,
    run_id: str,
    params: Mapping[str, Any],
    trial: StudyTrial | None,
) -> Iterator[Watch]:
    """The watch of one stage, closed whatever ends it.

    stage: what is trained, such as hybrid_sac. score: the validation figure by which a state is chosen. folder: where
    the files of this stage go. params: settings of the run by their dotted names. trial: where the stage is what a
    search is for.
    """
    watch = Watch(
        sinks=open_sinks(config, stage=stage, folder=folder, run_id=run_id, params=params),
        alerts=open_alerts(config.alerts, stage=stage, score=f"validation/{score}", folder=folder),
        trial=trial,
    )
    finished = False
    try:
        yield watch
        finished = True
    finally:
        watch.close(finished=finished)


def open_sinks(
    config: MonitoringConfig, *, stage: str, folder: Path, run_id: str, params: Mapping[str, Any]
) -> list[Sink]:
    """What of the config can be opened. The rest is named in the log: no stage waits or ends for want of a sink."""
    wanted: list[Callable[[], Sink]] = []
    if config.jsonl:
        wanted.append(lambda: MetricLines(folder / "metrics.jsonl"))
    if config.tensorboard:
        wanted.append(lambda: TensorBoardEvents(folder / "tensorboard"))
    if config.prometheus is not None:
        directory = Path(config.prometheus)
        wanted.append(lambda: PrometheusText(directory, run_id=run_id, stage=stage))
    if config.mlflow is not None:
        from trade_agent.training.monitoring.mlflow import MlflowRun  # an extra

        uri = config.mlflow
        wanted.append(lambda: MlflowRun(uri, run_id=run_id, stage=stage, params=params))
    sinks: list[Sink] = []
    for opened in wanted:
        try:
            sinks.append(opened())
        except OSError as error:
            log.warning(f"the metrics of {stage} go without one of their places: {error}")
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
