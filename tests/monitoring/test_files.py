"""What the files hold, read back by TensorBoard and by a parser of Prometheus' format."""

import json
import math
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from trade_agent.training.monitoring.files import MetricLines, PrometheusText, TensorBoardEvents


def test_metric_lines_are_strict_json_and_are_appended_to(tmp_path: Path) -> None:
    path = tmp_path / "run/metrics.jsonl"
    for step in (1, 2):
        lines = MetricLines(path, wall_clock=lambda: 5.0)
        lines.write(step, {"loss": math.nan if step == 1 else 0.5})
        lines.close(finished=True)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert rows == [{"time": 5.0, "step": 1, "loss": None}, {"time": 5.0, "step": 2, "loss": 0.5}]


def test_a_line_is_in_the_file_before_the_run_ends(tmp_path: Path) -> None:
    lines = MetricLines(tmp_path / "metrics.jsonl")
    lines.write(1, {"loss": 1.0})
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 1
    lines.close(finished=True)


def read_events(folder: Path, name: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def test_tensorboard_reads_the_events(tmp_path: Path) -> None:
    events = TensorBoardEvents(tmp_path)
    events.write(10, {"loss": 2.0, "validation/sharpe": -1.5})
    events.write(20, {"loss": 1.0})
    assert read_events(tmp_path, "loss") == [(10, 2.0), (20, 1.0)]  # before it is closed
    events.close(finished=True)
    assert read_events(tmp_path, "validation/sharpe") == [(10, -1.5)]


def test_a_run_that_goes_on_within_the_same_second_is_read_after_the_first_and_replaces_what_it_repeats(
    tmp_path: Path,
) -> None:
    for steps in ((10, 20, 30), (20, 30, 40), (30, 40, 50)):
        events = TensorBoardEvents(tmp_path, wall_clock=lambda: 1e9)  # a clock that stands still
        for step in steps:
            events.write(step, {"loss": float(steps[0])})
        events.close(finished=True)
    assert len(list(tmp_path.iterdir())) == 3
    assert read_events(tmp_path, "loss") == [(10, 10.0), (20, 20.0), (30, 30.0), (40, 30.0), (50, 30.0)]


def test_prometheus_text_is_what_a_scraper_reads(tmp_path: Path) -> None:
    text = PrometheusText(tmp_path, run_id="r1", stage="hybrid_sac")
    text.write(10, {"loss": 2.0, "validation/sharpe": -1.5, "bad": math.nan})
    text.write(20, {"loss": math.inf})
    path = tmp_path / "trade_agent_r1_hybrid_sac.prom"
    assert path.read_text() == (
        "# TYPE trade_agent_bad gauge\n"
        'trade_agent_bad{run="r1",stage="hybrid_sac"} NaN\n'
        "# TYPE trade_agent_loss gauge\n"
        'trade_agent_loss{run="r1",stage="hybrid_sac"} +Inf\n'
        "# TYPE trade_agent_step gauge\n"
        'trade_agent_step{run="r1",stage="hybrid_sac"} 20.0\n'
        "# TYPE trade_agent_validation_sharpe gauge\n"
        'trade_agent_validation_sharpe{run="r1",stage="hybrid_sac"} -1.5\n'
    )
    text.close(finished=True)
    assert list(tmp_path.iterdir()) == []
