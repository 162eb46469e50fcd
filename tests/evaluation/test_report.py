import io
from pathlib import Path

import numpy as np
import pytest
from matplotlib import image
from rich.console import Console

from trade_agent.evaluation.report import format_metric, plot_equity, plot_forecast, results_table
from trade_agent.evaluation.significance import Comparison, Interval

NUM_STEPS = 300


def compared(beats: bool) -> Comparison:
    return Comparison(Interval(0.1, 0.05 if beats else -0.1, 0.2, 0.95), beats, 200)


def test_table_says_beaten_only_where_it_is():
    values = {"total_return": 0.1234, "sharpe": 1.5, "max_drawdown": -0.5, "num_trades": 7.0}
    table = results_table(
        "ppo",
        values,
        {"flat": values, "buy_and_hold": values, "random": values},
        {"flat": compared(True), "buy_and_hold": compared(False)},
    )
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(table)
    lines = {line.split()[1]: line for line in console.export_text().splitlines() if line[:1] == "│"}
    assert "yes" in lines["flat"]
    assert "no" in lines["buy"]
    assert "yes" not in lines["buy"] + lines["random"] + lines["ppo"]
    assert "12.3%" in lines["ppo"]
    assert "1.50" in lines["ppo"]
    assert "-50.0%" in lines["random"]
    assert "num" not in console.export_text()


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("total_return", -0.25, "-25.0%"),
        ("cost_paid", 0.0004, "0.04%"),
        ("sharpe", 0.0513, "0.05"),
        ("rmse", 0.0123456, "0.0123"),
        ("turnover", 1234.5, "1,234.50"),
        ("num_trades", 1200.0, "1,200"),
    ],
)
def test_metrics_are_formatted(name, value, text):
    assert format_metric(name, value) == text


def draw(path: Path, num_assets: int = 1, test_start: int = 0, scale: float = 0.01) -> bytes:
    rng = np.random.default_rng(0)
    equity = 1e6 * np.exp(np.cumsum(rng.normal(0, scale, NUM_STEPS + 1)))
    plot_equity(
        path,
        timestamps=np.datetime64("2020-01-01", "ns") + np.arange(NUM_STEPS + 1) * np.timedelta64(1, "D"),
        equity=equity,
        baselines={"flat": np.full(NUM_STEPS + 1, 1e6), "buy_and_hold": equity[::-1]},
        weights=rng.uniform(-0.3, 0.3, (NUM_STEPS, num_assets)),
        asset_names=tuple(f"A{i}" for i in range(num_assets)),
        test_start=test_start,
        title="ppo_v1.0.0",
    )
    return path.read_bytes()


@pytest.mark.parametrize(("num_assets", "test_start", "scale"), [(1, 0, 0.01), (1, 200, 0.1), (3, 200, 0.01)])
def test_equity_figure_is_a_picture_and_deterministic(tmp_path, num_assets, test_start, scale):
    first = draw(tmp_path / "a.png", num_assets, test_start, scale)
    assert first == draw(tmp_path / "b.png", num_assets, test_start, scale)
    pixels = image.imread(tmp_path / "a.png")
    assert pixels.shape[:2] == (960, 1320)
    assert pixels[..., :3].std() > 0.05


def test_figure_shows_what_it_is_given(tmp_path):
    assert draw(tmp_path / "a.png") != draw(tmp_path / "b.png", test_start=200)


def test_ruined_account_can_be_drawn(tmp_path):
    equity = np.array([1e6, 5e5, -1e4, -1e4, -1e4])
    plot_equity(
        tmp_path / "a.png",
        timestamps=np.datetime64("2020-01-01", "ns") + np.arange(5) * np.timedelta64(1, "h"),
        equity=equity,
        baselines={"flat": np.full(5, 1e6)},
        weights=np.zeros((4, 1)),
        asset_names=("A",),
        test_start=2,
    )
    assert (tmp_path / "a.png").stat().st_size > 10_000


def test_forecast_figure(tmp_path):
    rng = np.random.default_rng(0)
    expected = rng.normal(0, 0.002, 500)
    for name in ("a", "b"):
        plot_forecast(
            tmp_path / f"{name}.png",
            probability_up=1 / (1 + np.exp(-100 * expected)),
            expected_return=expected,
            realised_return=expected + np.random.default_rng(1).normal(0, 0.01, 500),
            title="cnn_lstm",
        )
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    plot_forecast(
        tmp_path / "constant.png",
        probability_up=np.full(50, 0.5),
        expected_return=np.zeros(50),
        realised_return=np.zeros(50),
    )
    assert (tmp_path / "constant.png").stat().st_size > 10_000
