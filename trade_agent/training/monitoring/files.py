"""Metrics in files: one JSON line each, TensorBoard's event files, a text file for Prometheus."""

import json
import logging
import re
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from trade_agent import safe_io
from trade_agent.registry.metadata import finite

log = logging.getLogger(__name__)

EVENTS = "events.out.tfevents."


class JsonLines:
    """Appends to a file, one object a line, written out at once: after a crash at most the last line is cut."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file: IO[str] = open(path, "a", encoding="utf-8")  # noqa: SIM115  kept open until `close`

    def add(self, row: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(finite(dict(row)), allow_nan=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class MetricLines:
    """metrics.jsonl: {"time": seconds of the epoch, "step": ..., metric: value or null where it is not finite}.

    A run that goes on appends; where it repeats steps, the later line counts.
    """

    def __init__(self, path: Path, *, wall_clock: Callable[[], float] = time.time) -> None:
        self._lines, self._wall_clock = JsonLines(path), wall_clock

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._lines.add({"time": self._wall_clock(), "step": step, **values})

    def close(self, *, finished: bool) -> None:
        self._lines.close()


class AlertLines:
    """alerts.jsonl: one alert a line."""

    def __init__(self, path: Path) -> None:
        self._path = path  # made with the first alert: an empty file would look like one

    def send(self, alert: dict[str, Any]) -> None:
        try:
            lines = JsonLines(self._path)
            lines.add(alert)
            lines.close()
        except OSError as error:
            log.warning(f"{self._path} does not take the alert of {alert['rule']}: {error}")

    def close(self) -> None:
        """Nothing is held."""


class TensorBoardEvents:
    """An event file in `folder`, written out record by record.

    TensorBoard reads the files of a folder in the order of their names, which hold the second they were made in. A run
    that goes on therefore takes a name later than every one that is there, and says with its first record that what
    was written from that step on is void.
    """

    def __init__(self, folder: Path, *, wall_clock: Callable[[], float] = time.time) -> None:
        # Here, because nobody who trains without it should wait for it.
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._summary, self._wall_clock = Event, Summary, wall_clock
        self._start = SessionLog(status=SessionLog.START)
        folder.mkdir(parents=True, exist_ok=True)
        before = [int(path.name.removeprefix(EVENTS).split(".")[0]) for path in folder.glob(f"{EVENTS}*")]
        second = max([int(wall_clock()), *(made + 1 for made in before)])
        self._goes_on = bool(before)
        self._writer = RecordWriter(open(folder / f"{EVENTS}{second:010d}.{socket.gethostname()}", "xb"))  # noqa: SIM115
        self._add(file_version="brain.Event:2")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        if self._goes_on:
            self._add(step=step, session_log=self._start)
            self._goes_on = False
        scalars = [self._summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._add(step=step, summary=self._summary(value=scalars))

    def close(self, *, finished: bool) -> None:
        self._writer.close()

    def _add(self, **fields: Any) -> None:
        self._writer.write(self._event(wall_time=self._wall_clock(), **fields).SerializeToString())
        self._writer.flush()


class PrometheusText:
    """The latest value of every metric in one file, for the textfile collector of Prometheus' node exporter.

    Replaced as a whole, so that a reader never sees half of it; removed when the run ends, because the collector would
    go on to report the values of a run that is over.
    """

    def __init__(self, folder: Path, *, run_id: str, stage: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / f"trade_agent_{run_id}_{stage}.prom"
        self._labels = f'{{run="{run_id}",stage="{stage}"}}'
        self._latest: dict[str, float] = {}

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._latest.update(step=step, **values)
        lines = []
        for name, value in sorted(self._latest.items()):
            metric = "trade_agent_" + re.sub(r"[^a-zA-Z0-9_]", "_", name)
            lines += [f"# TYPE {metric} gauge", f"{metric}{self._labels} {prometheus_number(value)}"]
        safe_io.write_bytes(self._path, ("\n".join(lines) + "\n").encode(), durable=False)

    def close(self, *, finished: bool) -> None:
        self._path.unlink(missing_ok=True)


def prometheus_number(value: float) -> str:
    """A float in the text format, which spells what is not finite NaN, +Inf and -Inf."""
    if value != value:
        return "NaN"
    return {float("inf"): "+Inf", float("-inf"): "-Inf"}.get(value) or repr(float(value))
