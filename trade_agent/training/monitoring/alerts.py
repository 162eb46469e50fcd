"""From metrics to alarms: which rules are due, who is told, and how often."""

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from trade_agent.config.schema import AlertsConfig
from trade_agent.training.monitoring import rules

log = logging.getLogger("trade_agent.alerts")
REMEMBERED = 500  # values of each series


class Channel(Protocol):
    """Somebody who is told. `send` returns at once and raises nothing."""

    def send(self, alert: dict[str, Any]) -> None: ...

    def close(self) -> None: ...


class LogChannel:
    """A warning in the log of the run."""

    def send(self, alert: dict[str, Any]) -> None:
        log.warning(f"{alert['rule']} in {alert['stage']} at step {alert['step']:,}: {alert['message']}")

    def close(self) -> None:
        """Nothing is held."""


class Alerts:
    """Runs the rules over what a stage measures, and tells the channels; the same rule again after a cool-down.

    Rules on series of values run once the stage has said what these are going to be (`expect`).
    stage: what is being trained. score: the validation figure that must not stand still.
    """

    def __init__(
        self,
        config: AlertsConfig,
        channels: Sequence[Channel],
        *,
        stage: str,
        score: str,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self.config, self.channels, self.stage, self.score = config, channels, stage, score
        self.wall_clock = wall_clock
        self.series: dict[str, deque[float]] = {}
        self.rules: list[rules.Rule] = []
        self.fired: dict[str, float] = {}  # rule -> when, by the clock of `consider`

    def expect(self, counts: Mapping[str, int]) -> None:
        """What the stage is going to measure: series -> how many values, at most. By default nothing.

        The log says which rules are kept from firing by that.
        """
        wanted = rules.series_rules(self.config, score=self.score, checks=counts.get(self.score, 0))
        self.rules = [rule for rule in wanted if counts.get(rule.series, 0) >= rule.needs]
        for rule in wanted:
            if rule not in self.rules:
                log.info(
                    f"{rule.name} cannot fire in {self.stage}: it needs {rule.needs} values of {rule.series}, "
                    f"of which there will be {counts.get(rule.series, 0)}"
                )

    def consider(self, step: int, values: Mapping[str, float], now: float) -> None:
        """Take in what was measured at `step`, and tell the channels what is wrong. now: seconds of any clock."""
        new = {name: value for name, value in values.items() if math.isfinite(value)}
        for name, value in new.items():
            self.series.setdefault(name, deque(maxlen=REMEMBERED)).append(value)
        findings = [("not_finite", rules.not_finite(values))] if self.config.not_finite else []
        findings += [
            (rule.name, rule.judge(list(self.series[rule.series]))) for rule in self.rules if rule.series in new
        ]
        for rule, message in findings:
            if message is not None and now - self.fired.get(rule, -float("inf")) >= self.config.cooldown_seconds:
                self.fired[rule] = now
                alert = {"time": self.wall_clock(), "stage": self.stage, "step": step, "rule": rule, "message": message}
                for channel in self.channels:
                    channel.send(alert)

    def close(self) -> None:
        for channel in self.channels:
            channel.close()
