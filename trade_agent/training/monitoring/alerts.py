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
        self.fired: dict[str, float] = {}  # rule -> when, by the clock of `consider`

    def consider(self, step: int, values: Mapping[str, float], now: float) -> None:
        """Take in what was measured at `step`, and tell the channels what is wrong. now: seconds of any clock."""
        new = {name: value for name, value in values.items() if math.isfinite(value)}
        for name, value in new.items():
            self.series.setdefault(name, deque(maxlen=REMEMBERED)).append(value)
        findings = [("not_finite", rules.not_finite(values))] if self.config.not_finite else []
        for rule, message in findings + self._findings(new):
            if message is not None and now - self.fired.get(rule, -float("inf")) >= self.config.cooldown_seconds:
                self.fired[rule] = now
                alert = {"time": self.wall_clock(), "stage": self.stage, "step": step, "rule": rule, "message": message}
                for channel in self.channels:
                    channel.send(alert)

    def close(self) -> None:
        for channel in self.channels:
            channel.close()

    def _findings(self, values: Mapping[str, float]) -> list[tuple[str, str | None]]:
        """The rules on series that are switched on and whose series has a new value."""
        config = self.config
        found: list[tuple[str, str | None]] = []
        if config.plateau_checks and self.score in values:
            found.append(("plateau", rules.plateau(self._seen(self.score), checks=config.plateau_checks)))
        if config.gradient_factor and "grad_norm" in values:
            norms = self._seen("grad_norm")
            found.append(("exploding_gradient", rules.exploding_gradient(norms, factor=config.gradient_factor)))
        if config.throughput_fraction and "steps_per_second" in values:
            rates = self._seen("steps_per_second")
            found.append(("throughput_fall", rules.throughput_fall(rates, fraction=config.throughput_fraction)))
        if config.memory_factor and "memory_bytes" in values:
            sizes = self._seen("memory_bytes")
            found.append(("memory_growth", rules.memory_growth(sizes, factor=config.memory_factor)))
        if config.collapsed_policy and "entropy" in values:
            entropies = self._seen("entropy")
            found.append(("collapsed_policy", rules.collapsed_policy(entropies, floor=config.entropy_floor)))
        if config.collapsed_policy and "validation/turnover" in values:
            found.append(("idle_policy", rules.idle_policy(self._seen("validation/turnover"))))
        return found

    def _seen(self, name: str) -> list[float]:
        return list(self.series[name])
