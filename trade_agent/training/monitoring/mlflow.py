"""Metrics to an MLflow server or database: the extra `mlflow`."""

import logging
import os
import re
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from trade_agent.errors import ConfigError

log = logging.getLogger(__name__)
EXPERIMENT = "trade_agent"
BATCH = 100  # metrics that are sent together: every call is a request
# What every version of MLflow takes: parameters in one call, and characters of one.
PARAMS, PARAM_LENGTH = 100, 500
NOT_IN_NAMES = re.compile(r"[^/\w.\- :]")
# MLflow would try for minutes. With these a server that is gone is told so in seconds; who sets them is obeyed.
PATIENCE = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER": "false",
}


class MlflowRun:
    """One MLflow run for one stage of a run, in the experiment `trade_agent`. A run that goes on goes on with its own,
    which is found by the tags `run_id` and `stage`.

    uri: a tracking address, such as `http://host:5000` or `sqlite:///mlflow.db`. params: settings by their dotted
    names, which MLflow gets once, fitted to what it takes; that it refuses them is one line in the log. A thread of its
    own sends, one batch after the other: training waits for nobody, and learns of a failure, which is an OSError, with
    a later `write`.
    """

    def __init__(self, uri: str, *, run_id: str, stage: str, params: Mapping[str, Any]) -> None:
        self._uri = uri
        try:
            self._client = connect(uri)
            run = find_run(self._client, run_id=run_id, stage=stage)
        except Exception as error:
            raise OSError(reason(error, uri)) from error
        self._run = str(run.info.run_id)
        self._thread = ThreadPoolExecutor(1, "mlflow")
        self._sent: Future[None] | None = None  # the latest batch
        self._waiting: list[Any] = []
        # It takes no other value for what it has, and a run that goes on may have other values of a few settings.
        taken = {NOT_IN_NAMES.sub("_", name): str(value)[:PARAM_LENGTH] for name, value in params.items()}
        missing = {name: value for name, value in taken.items() if name not in run.data.params}
        if missing:
            self._sent = self._thread.submit(self._send_params, missing)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._waiting += [Metric(name, value, now, step) for name, value in values.items()]
        if len(self._waiting) >= BATCH and (self._sent is None or self._sent.done()):
            self._settle()
            waiting, self._waiting = self._waiting, []
            self._sent = self._thread.submit(self._send, waiting)

    def close(self, *, finished: bool) -> None:
        """Sends the rest, as long as MLflow waits for an answer. finished: the stage came to its end."""
        try:
            self._settle()
            self._send(self._waiting)
            self._client.set_terminated(self._run, "FINISHED" if finished else "FAILED")
        except Exception as error:
            raise OSError(reason(error, self._uri)) from error
        finally:
            self._thread.shutdown()

    def _settle(self) -> None:
        """Wait for the latest batch, and raise what became of it."""
        sent, self._sent = self._sent, None
        try:
            if sent is not None:
                sent.result()
        except Exception as error:
            raise OSError(reason(error, self._uri)) from error

    def _send_params(self, params: Mapping[str, str]) -> None:
        from mlflow.entities import Param

        entries = [Param(name, value) for name, value in params.items()]
        try:
            for start in range(0, len(entries), PARAMS):
                self._client.log_batch(self._run, params=entries[start : start + PARAMS])
        except Exception as error:
            log.warning(f"MLflow does not take the settings of the run: {reason(error, self._uri)}")

    def _send(self, metrics: list[Any]) -> None:
        for start in range(0, len(metrics), 1000):  # what MLflow takes in one call
            self._client.log_batch(self._run, metrics=metrics[start : start + 1000])


def require_mlflow(uri: str) -> None:
    """Raise ConfigError without the extra, or where the address takes nothing."""
    try:
        find_experiment(connect(uri))
    except ImportError as error:
        package = "'trade-agent[mlflow]'" if error.name == "mlflow" else error.name  # a database has a driver
        raise ConfigError(f"monitoring.mlflow needs {error.name}", f"pip install {package}") from error
    except Exception as error:
        raise ConfigError(f"monitoring.mlflow cannot be used ({reason(error, uri)})", "check the address") from error


def connect(uri: str) -> Any:
    """A client for one address."""
    for name, value in PATIENCE.items():
        os.environ.setdefault(name, value)
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri=uri)


def find_experiment(client: Any) -> str:
    """Its number; it is made where it is not there yet."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(EXPERIMENT)
    if found is None:
        try:
            return str(client.create_experiment(EXPERIMENT))
        except MlflowException:
            found = client.get_experiment_by_name(EXPERIMENT)  # another run has just made it
            if found is None:
                raise
    return str(found.experiment_id)


def find_run(client: Any, *, run_id: str, stage: str) -> Any:
    """The MLflow run of a stage, under way from now on: the one that an earlier process began, or a new one."""
    experiment = find_experiment(client)
    begun = client.search_runs([experiment], f"tags.run_id = '{run_id}' and tags.stage = '{stage}'", max_results=1)
    if begun:
        client.update_run(begun[0].info.run_id, status="RUNNING")
        return begun[0]
    return client.create_run(experiment, run_name=f"{stage} {run_id}", tags={"stage": stage, "run_id": run_id})


def reason(error: Exception, uri: str) -> str:
    """The first line of an error, without the address, which may hold a password."""
    lines = str(error).replace(uri, "the address").splitlines()
    return lines[0] if lines else type(error).__name__
