"""What a stage tells about itself while it trains: metrics of its updates, and validation checks."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from trade_agent.search.trial import StudyTrial
from trade_agent.training.monitoring.alerts import Alerts
from trade_agent.training.monitoring.system import system_metrics

log = logging.getLogger(__name__)


class Sink(Protocol):
    """Somewhere that metrics are kept. An OSError of it ends the sink, never the training."""

    def write(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self, *, finished: bool) -> None:
        """finished: whether the stage came to its end."""


class Watch:
    """The one door from a training to its sinks, its alerts, and the trial of a search that it may be.

    A step is an environment step, or an epoch where there is no environment. Without arguments it keeps nothing.
    clock: seconds, for the throughput and the cool-down of alerts.
    """

    def __init__(
        self,
        *,
        sinks: Sequence[Sink] = (),
        alerts: Alerts | None = None,
        trial: StudyTrial | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.sinks, self.alerts, self.trial, self.clock = list(sinks), alerts, trial, clock
        self._last: tuple[int, float] | None = None  # step and time of the last metrics

    @property
    def prunes(self) -> bool:
        """Whether anybody waits for validation scores in the midst of training."""
        return self.trial is not None

    def expect(self, *, metrics: Sequence[str], reports: int, validation: Sequence[str] = (), checks: int = 0) -> None:
        """What is going to be told, at most: `metrics` in each of `reports`, the figures `validation` in each check."""
        if self.alerts is not None:
            counts = dict.fromkeys((*metrics, "memory_bytes"), reports) | {"steps_per_second": reports - 1}
            self.alerts.expect(counts | {f"validation/{name}": checks for name in validation})

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Metrics of the latest update. Called every METRICS_EVERY updates, so that nothing waits for it."""
        if self.sinks or self.alerts:
            self._write(step, {**values, **self._throughput(step), **system_metrics()})

    def validated(self, step: int, metrics: Mapping[str, float]) -> None:
        """Figures of a validation check. Raises TrialPrunedError when the trial is to end here."""
        if self.sinks or self.alerts:
            self._write(step, {f"validation/{name}": value for name, value in metrics.items()})
        if self.trial is not None:
            self.trial.report(step, metrics)

    def close(self, *, finished: bool = True) -> None:
        for sink in self.sinks:
            try:
                sink.close(finished=finished)
            except OSError as error:
                log.warning(f"{type(sink).__name__} did not take its last metrics: {error}")
        if self.alerts is not None:
            self.alerts.close()

    def _throughput(self, step: int) -> dict[str, float]:
        """Steps per second since the last metrics, validation checks in between included; nothing where no step was
        made, or the training went back to a checkpoint."""
        now = self.clock()
        last, self._last = self._last, (step, now)
        if last is None or step <= last[0] or now <= last[1]:
            return {}
        return {"steps_per_second": (step - last[0]) / (now - last[1])}

    def _write(self, step: int, values: Mapping[str, float]) -> None:
        for sink in list(self.sinks):
            try:
                sink.write(step, values)
            except OSError as error:
                log.warning(f"{type(sink).__name__} takes no more metrics: {error}")
                self.sinks.remove(sink)
        if self.alerts is not None:
            self.alerts.consider(step, values, self.clock())
