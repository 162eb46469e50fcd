"""Who is told, when, how often; the clock is an argument. The webhook posts to a real server."""

import dataclasses
import json
import logging
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from trade_agent.config.load import compose_config, load_config
from trade_agent.config.schema import AlertsConfig
from trade_agent.errors import ConfigError
from trade_agent.training.monitoring.alerts import Alerts, LogChannel
from trade_agent.training.monitoring.files import AlertLines
from trade_agent.training.monitoring.open import open_alerts
from trade_agent.training.monitoring.webhook import QUEUED, WebhookChannel

SCORE, TURNOVER = "validation/sharpe", "validation/turnover"
WAIT = 300.0  # seconds; a busy machine is no failure


class Collected:
    def __init__(self) -> None:
        self.alerts: list[dict[str, Any]] = []

    def send(self, alert: dict[str, Any]) -> None:
        self.alerts.append(alert)

    def close(self) -> None:
        pass

    @property
    def rules(self) -> list[str]:
        return [alert["rule"] for alert in self.alerts]


@pytest.fixture(scope="module")
def config() -> AlertsConfig:
    return load_config(compose_config(["stage=cnn_lstm"])).monitoring.alerts


def watched(config: AlertsConfig, **changes: Any) -> tuple[Alerts, Collected]:
    channel = Collected()
    changed = dataclasses.replace(config, **changes)
    alerts = Alerts(changed, [channel], stage="sac", score=SCORE, wall_clock=lambda: 7.0)
    alerts.expect(QUICK)
    return alerts, channel


# What a run of SAC with trainer=quick is going to measure.
QUICK = {"grad_norm": 241, "entropy": 241, "memory_bytes": 241, "steps_per_second": 240, SCORE: 8, TURNOVER: 8}

# Rule, what switches it off, and measurements by which it fires at the last one.
CASES: list[tuple[str, dict[str, Any], list[dict[str, float]]]] = [
    ("not_finite", {"not_finite": False}, [{"loss_actor": 1.0}, {"loss_actor": float("nan")}]),
    ("plateau", {"plateau_fraction": 0.0}, [{SCORE: 1.0}] * 5),
    ("exploding_gradient", {"gradient_factor": 0.0}, [{"grad_norm": 1.0}] * 10 + [{"grad_norm": 200.0}]),
    (
        "throughput_fall",
        {"throughput_fraction": 0.0},
        [{"steps_per_second": 900.0}] * 10 + [{"steps_per_second": 100.0}] * 5,
    ),
    ("memory_growth", {"memory_factor": 0.0}, [{"memory_bytes": 1e9}] * 10 + [{"memory_bytes": 3e9}] * 5),
    ("collapsed_policy", {"collapsed_policy": False}, [{"entropy": -20.0}] * 5),
    ("idle_policy", {"collapsed_policy": False}, [{TURNOVER: 2.0}, {TURNOVER: 0.0}]),
]


@pytest.mark.parametrize(("rule", "off", "measured"), CASES, ids=[case[0] for case in CASES])
def test_a_rule_fires_at_the_default_settings_and_can_be_switched_off(
    config: AlertsConfig, rule: str, off: dict[str, Any], measured: list[dict[str, float]]
) -> None:
    alerts, told = watched(config)
    for step, values in enumerate(measured[:-1]):
        alerts.consider(step, values, now=float(step))
    assert told.alerts == []
    alerts.consider(99, measured[-1], now=99.0)
    assert [(alert["rule"], alert["step"], alert["stage"], alert["time"]) for alert in told.alerts] == [
        (rule, 99, "sac", 7.0)
    ]
    silent, told = watched(config, **off)
    for values in measured:
        silent.consider(0, values, now=0.0)
    assert told.alerts == []


def test_what_a_stage_is_too_short_for_or_does_not_measure_is_named_at_its_start(
    config: AlertsConfig, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="trade_agent.alerts"):
        watched(config)
        assert caplog.messages == []
        alerts, told = watched(config, memory_factor=0.0)
        alerts.expect({"grad_norm": 3, "memory_bytes": 3, "steps_per_second": 2, SCORE: 1, TURNOVER: 1})
    assert caplog.messages == [
        "plateau cannot fire in sac: it needs 2 values of validation/sharpe, of which there will be 1",
        "exploding_gradient cannot fire in sac: it needs 11 values of grad_norm, of which there will be 3",
        "throughput_fall cannot fire in sac: it needs 15 values of steps_per_second, of which there will be 2",
        "collapsed_policy cannot fire in sac: it needs 5 values of entropy, of which there will be 0",
        "idle_policy cannot fire in sac: it needs 2 values of validation/turnover, of which there will be 1",
    ]
    assert alerts.rules == []
    alerts.consider(1, {"loss": float("nan")}, now=0.0)  # needs no series
    assert told.rules == ["not_finite"]


@pytest.mark.parametrize("rule", [case[0] for case in CASES if case[0] != "not_finite"])
def test_a_rule_that_is_told_to_be_short_of_values_can_fire_with_one_more(config: AlertsConfig, rule: str) -> None:
    """What the log says of a rule is true: one value fewer than it needs is the most that keeps it from firing."""
    measured = next(case[2] for case in CASES if case[0] == rule)
    alerts, _ = watched(config)
    [found] = [each for each in alerts.rules if each.name == rule]
    values = [row[found.series] for row in measured]
    assert len(values) == found.needs
    assert found.judge(values) is not None
    assert found.judge(values[1:]) is None


def test_the_same_rule_is_silent_until_it_has_cooled_down(config: AlertsConfig) -> None:
    alerts, told = watched(config, cooldown_seconds=60.0)
    for now in (0.0, 1.0, 59.9):
        alerts.consider(int(now), {"loss": float("nan")}, now=now)
    assert [alert["step"] for alert in told.alerts] == [0]
    alerts.consider(30, {TURNOVER: 1.0}, now=59.95)
    alerts.consider(31, {TURNOVER: 0.0}, now=59.95)  # another rule has a cool-down of its own
    alerts.consider(60, {"loss": float("nan")}, now=60.0)
    assert told.rules == ["not_finite", "idle_policy", "not_finite"]


def test_what_is_not_finite_enters_no_series(config: AlertsConfig) -> None:
    alerts, told = watched(config)
    for _ in range(30):
        alerts.consider(0, {"grad_norm": float("nan")}, now=0.0)
    assert told.rules == ["not_finite"]
    assert "grad_norm" not in alerts.series


def test_log_and_file_hold_the_alert(config: AlertsConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "alerts.jsonl"
    alerts = Alerts(config, [LogChannel(), AlertLines(path)], stage="sac", score=SCORE, wall_clock=lambda: 7.0)
    alerts.consider(1, {"loss": 1.0}, now=0.0)
    assert not path.exists()
    with caplog.at_level(logging.WARNING, logger="trade_agent.alerts"):
        alerts.consider(2000, {"loss": float("inf")}, now=0.0)
    assert caplog.messages == ["not_finite in sac at step 2,000: loss is inf"]
    expected = {"rule": "not_finite", "stage": "sac", "step": 2000, "message": "loss is inf", "time": 7.0}
    assert [json.loads(line) for line in path.read_text().splitlines()] == [expected]


def test_an_alert_that_cannot_be_written_ends_nothing(
    config: AlertsConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "alerts.jsonl").mkdir()
    alerts = Alerts(config, [AlertLines(tmp_path / "alerts.jsonl")], stage="sac", score=SCORE, wall_clock=lambda: 7.0)
    alerts.consider(2000, {"loss": float("inf")}, now=0.0)
    assert "does not take the alert of not_finite" in caplog.text


def test_the_channels_are_those_of_the_config(config: AlertsConfig, tmp_path: Path) -> None:
    def kinds(**changes: Any) -> list[str] | None:
        alerts = open_alerts(dataclasses.replace(config, **changes), stage="sac", score=SCORE, folder=tmp_path)
        if alerts is None:
            return None
        alerts.close()
        return [type(channel).__name__ for channel in alerts.channels]

    assert kinds() == ["LogChannel", "AlertLines"]
    assert kinds(log=False, file=False) is None
    assert kinds(log=False, file=False, webhook="http://127.0.0.1:9") == ["WebhookChannel"]


def test_an_address_that_is_none_is_refused_without_showing_it() -> None:
    with pytest.raises(ConfigError, match="webhook is no web address") as caught:
        load_config(compose_config(["monitoring.alerts.webhook='file:///secret'"]))
    assert "secret" not in str(caught.value)


# ------------------------------------------------------------------------------------------------ webhook


class Server:
    """A local server that keeps what is posted; `answer` set: it answers, else it lets everybody wait."""

    def __init__(self, status: int = 200) -> None:
        self.posted: list[dict[str, Any]] = []
        self.arrived, self.answer = threading.Semaphore(0), threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                outer.posted.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                outer.arrived.release()
                outer.answer.wait(WAIT)
                self.send_response(status)
                self.end_headers()

            def log_message(self, *arguments: Any) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook?token=secret"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.answer.set()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


def test_the_webhook_gets_each_alert_as_json(config: AlertsConfig, server: Server) -> None:
    server.answer.set()
    channel = WebhookChannel(server.url, timeout_seconds=WAIT)
    alerts = Alerts(config, [channel], stage="sac", score=SCORE, wall_clock=lambda: 7.0)
    alerts.consider(3, {"loss": float("nan")}, now=0.0)
    alerts.close()  # waits until what was queued is sent
    assert server.posted == [{"rule": "not_finite", "stage": "sac", "step": 3, "message": "loss is nan", "time": 7.0}]


def test_a_server_that_does_not_answer_holds_nobody_up(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    channel = WebhookChannel(server.url, timeout_seconds=WAIT)
    channel.send({"rule": "first"})
    assert server.arrived.acquire(timeout=WAIT)  # the thread is held up in its post now
    for number in range(QUEUED + 3):
        channel.send({"rule": str(number)})
    assert [message for message in caplog.messages if "was dropped" in message] == [
        f"the webhook is too slow: an alert of {number} was dropped" for number in range(QUEUED, QUEUED + 3)
    ]
    server.answer.set()
    channel.close()
    assert [alert["rule"] for alert in server.posted] == ["first", *map(str, range(QUEUED))]


def test_what_does_not_arrive_is_told_without_the_address(caplog: pytest.LogCaptureFixture) -> None:
    server = Server(status=500)
    server.answer.set()
    channel = WebhookChannel(server.url, timeout_seconds=WAIT)
    channel.send({"rule": "plateau"})
    channel.close()
    server.close()
    assert caplog.messages == ["an alert of plateau did not reach the webhook: HTTPError"]
    assert "secret" not in caplog.text
