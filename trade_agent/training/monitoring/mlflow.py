"""Metrics to an MLflow server or folder: the extra `mlflow`."""

import time
from collections.abc import Mapping
from typing import Any

from trade_agent.errors import ConfigError

BATCH = 20  # writes that are sent together: every call is a request


class MlflowRun:
    """One MLflow run for one stage of a run, in the experiment `trade_agent`.

    uri: a tracking address, such as `http://host:5000`, `sqlite:///mlflow.db` or a folder. Raises ConfigError without
    the extra, or where the server does not answer. A failure later on is an OSError.
    """

    def __init__(self, uri: str, *, run_id: str, stage: str) -> None:
        try:
            from mlflow.entities import Metric
            from mlflow.exceptions import MlflowException
            from mlflow.tracking import MlflowClient
        except ImportError as error:
            raise ConfigError("monitoring.mlflow needs mlflow", "pip install 'trade-agent[mlflow]'") from error
        self._metric, self._failure, self._client = Metric, MlflowException, MlflowClient(tracking_uri=uri)
        try:
            experiment = self._client.get_experiment_by_name("trade_agent")
            number = experiment.experiment_id if experiment else self._client.create_experiment("trade_agent")
            run = self._client.create_run(number, run_name=f"{stage} {run_id}", tags={"stage": stage, "run_id": run_id})
        except MlflowException as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(f"monitoring.mlflow cannot be used ({reason})", "check the address") from error
        self._run = run.info.run_id
        self._waiting: list[Any] = []
        self._writes = 0

    def write(self, step: int, values: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        self._waiting += [self._metric(name, value, now, step) for name, value in values.items()]
        self._writes += 1
        if self._writes % BATCH == 0:
            self._send()

    def close(self) -> None:
        self._send()
        try:
            self._client.set_terminated(self._run)
        except self._failure as error:
            raise OSError(str(error).splitlines()[0]) from error

    def _send(self) -> None:
        waiting, self._waiting = self._waiting, []
        for start in range(0, len(waiting), 1000):  # what MLflow takes in one call
            try:
                self._client.log_batch(self._run, metrics=waiting[start : start + 1000])
            except self._failure as error:
                raise OSError(str(error).splitlines()[0]) from error
