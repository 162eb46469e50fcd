"""What MLflow holds after a run, and what a run does when MLflow is not there: real databases, a real server."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mlflow", reason="needs the extra mlflow")

from trade_agent.config.load import compose_config, content, leaves, load_config
from trade_agent.errors import ConfigError
from trade_agent.training.monitoring.mlflow import BATCH, PARAM_LENGTH, PARAMS, MlflowRun, require_mlflow
from trade_agent.training.monitoring.watch import Watch

WAIT = 300.0  # seconds; a busy machine is no failure


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Making its tables takes seconds: one for all."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


def runs(uri: str, run_id: str) -> list[Any]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("trade_agent")
    found = client.search_runs([experiment.experiment_id], f"tags.run_id = '{run_id}'")
    for run in found:
        run.losses = sorted((m.step, m.value) for m in client.get_metric_history(run.info.run_id, "loss"))
    return list(found)


@pytest.mark.slow
def test_every_metric_arrives(database: str) -> None:
    run = MlflowRun(database, run_id="every", stage="sac", params={})
    for step in range(2 * BATCH):  # more than one batch, and a rest
        run.write(step, {"loss": float(step)})
    run.close(finished=True)
    [found] = runs(database, "every")
    assert (found.info.status, found.data.tags["stage"]) == ("FINISHED", "sac")
    assert found.losses == [(step, float(step)) for step in range(2 * BATCH)]


@pytest.mark.slow
def test_a_run_that_goes_on_goes_on_with_its_own(database: str) -> None:
    for step, finished in ((1, False), (2, True)):
        run = MlflowRun(database, run_id="again", stage="sac", params={})
        run.write(step, {"loss": float(step)})
        assert [found.info.status for found in runs(database, "again")] == ["RUNNING"]
        run.close(finished=finished)
        [found] = runs(database, "again")
        assert found.info.status == ("FINISHED" if finished else "FAILED")
    assert found.losses == [(1, 1.0), (2, 2.0)]
    other = MlflowRun(database, run_id="again", stage="hybrid_sac", params={})  # another stage is another one
    other.close(finished=True)
    assert len(runs(database, "again")) == 2


@pytest.mark.slow
def test_the_settings_of_a_run_arrive_once_and_whole(database: str, caplog: pytest.LogCaptureFixture) -> None:
    params = dict(leaves(content(load_config(compose_config(["stage=ensemble"])))))
    assert len(params) > PARAMS  # more than MLflow takes at once
    params["note"] = "n" * (PARAM_LENGTH + 1)
    for seconds in (300.0, 60.0):  # one of the settings that may change when a run goes on
        run = MlflowRun(database, run_id="settings", stage="sac", params=params | {"device.timeout_seconds": seconds})
        run.close(finished=True)
    [found] = runs(database, "settings")
    sent = {name.replace("+", "_"): str(value)[:PARAM_LENGTH] for name, value in params.items()}  # the grade B+
    assert found.data.params == sent
    assert "does not take" not in caplog.text


@pytest.mark.slow
def test_settings_that_are_refused_cost_one_line_and_no_metric(database: str, caplog: pytest.LogCaptureFixture) -> None:
    run = MlflowRun(database, run_id="refused", stage="sac", params={"n" * 1000: 1})
    run.write(1, {"loss": 1.0})
    run.close(finished=True)
    [found] = runs(database, "refused")
    assert (found.losses, found.data.params) == ([(1, 1.0)], {})
    assert caplog.text.count("MLflow does not take the settings of the run: ") == 1


@pytest.mark.parametrize("address", ["http://127.0.0.1:9", "nonsense:/user:secret@host", "{folder}"])
def test_an_address_that_takes_nothing_is_told_in_one_line_before_training(tmp_path: Path, address: str) -> None:
    with pytest.raises(ConfigError, match=r"^monitoring.mlflow cannot be used \(.+\); check the address$") as caught:
        require_mlflow(address.format(folder=tmp_path / "mlruns"))
    assert "secret" not in str(caught.value)


class Server:
    """Answers as MLflow does until it is told to hang: then it takes requests and says nothing."""

    def __init__(self) -> None:
        self.hang, self.asked, self.over = threading.Event(), threading.Semaphore(0), threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.answer(b'{"experiment": {"experiment_id": "1", "name": "trade_agent"}}')

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                if outer.hang.is_set():
                    outer.asked.release()
                    outer.over.wait(WAIT)
                if self.path.endswith("/runs/search"):
                    self.answer(b"{}")
                else:
                    self.answer(b'{"run": {"info": {"run_id": "r", "status": "RUNNING"}, "data": {}}}')

            def answer(self, body: bytes) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *arguments: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.over.set()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


def test_a_server_that_hangs_holds_up_no_training_and_is_named_once(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    run = MlflowRun(server.url, run_id="r1", stage="sac", params={})
    watch = Watch(sinks=[run])
    server.hang.set()
    batch = {f"metric_{number}": 1.0 for number in range(BATCH)}
    watch.validated(1, batch)
    assert server.asked.acquire(timeout=WAIT)  # the thread is held up, and the training goes on
    assert run._sent is not None
    assert run._sent.exception(timeout=WAIT) is not None
    for step in (2, 3, 4):
        watch.validated(step, batch)
    assert watch.sinks == []
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("MlflowRun takes no more metrics: ")
    watch.close()
