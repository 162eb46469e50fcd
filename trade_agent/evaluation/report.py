"""Tables and figures of an evaluation. Pure: arrays in, a table or a PNG out; the same input gives the same bytes."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, PercentFormatter
from numpy.typing import NDArray
from rich.table import Table
from rich.text import Text

from trade_agent.evaluation.metrics import drawdowns, reliability_curve
from trade_agent.evaluation.significance import Comparison

Floats = NDArray[np.float64]

MODEL_COLOUR = "#0b3c8c"
TEST_SHADE = "#f3ead8"
GREY = "#6b6b6b"
# Colour-blind safe (Okabe and Ito, 2008); baselines stay thin and pale behind the model.
BASELINE_COLOURS = ("#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6d46", "#7f7f7f")

_PERCENT = {
    "total_return",
    "annual_return",
    "annual_volatility",
    "max_drawdown",
    "exposure",
    "hit_rate",
    "cost_paid",
    "directional_accuracy",
    "base_rate",
    "direction_edge",
    "skill_score",
}
_WHOLE = {"max_drawdown_bars", "num_trades"}
_RATIO = {"sharpe", "sortino", "calmar", "turnover"}
# The headline figures, few enough for a terminal of 80 columns; everything else is in `result.json`.
TABLE_COLUMNS = {
    "total_return": "return",
    "sharpe": "Sharpe",
    "max_drawdown": "drawdown",
    "turnover": "turnover",
    "cost_paid": "cost",
    "rmse": "RMSE",
    "skill_score": "skill",
    "directional_accuracy": "accuracy",
    "direction_edge": "edge",
    "rank_ic": "rank IC",
}


def format_metric(name: str, value: float) -> str:
    """A metric as people read it: percent, whole number, two decimals, or three significant digits."""
    if name in _PERCENT:
        return f"{value:.1%}" if abs(value) >= 0.01 or value == 0 else f"{value:.2%}"
    if name in _WHOLE:
        return f"{value:,.0f}"
    if name in _RATIO:
        return f"{value:,.2f}"
    return f"{value:.3g}"


def results_table(
    name: str,
    metrics: Mapping[str, float],
    baselines: Mapping[str, Mapping[str, float]],
    comparisons: Mapping[str, Comparison],
    *,
    title: str = "",
) -> Table:
    """One row for the model and one for each baseline, the headline metrics as columns.

    The last column says "yes" only where the interval of the difference to that baseline excludes 0.
    """
    columns = [column for column in TABLE_COLUMNS if column in metrics]
    confidence = next((comparison.interval.confidence for comparison in comparisons.values()), 0.95)
    table = Table(title=title or None, title_justify="left")
    table.add_column("test rows", no_wrap=True)
    for column in columns:
        table.add_column(TABLE_COLUMNS[column], justify="right", no_wrap=True)
    table.add_column(f"beaten ({confidence:.0%})", justify="right")
    table.add_row(name, *(format_metric(column, metrics[column]) for column in columns), "", style="bold")
    table.add_section()
    for key, values in baselines.items():
        verdict = _verdict(comparisons[key]) if key in comparisons else Text("")
        cells = [format_metric(column, values[column]) for column in columns]
        table.add_row(key.replace("_", " "), *cells, verdict)
    return table


def _verdict(comparison: Comparison) -> Text:
    return Text("yes", style="green") if comparison.beats else Text("no", style="dim")


def plot_equity(
    path: Path,
    *,
    timestamps: NDArray[np.datetime64],
    equity: Floats,
    baselines: Mapping[str, Floats],
    weights: Floats,
    asset_names: tuple[str, ...],
    test_start: int = 0,
    title: str = "",
    name: str = "model",
) -> None:
    """Writes a PNG of three panels: growth of 1 against the baselines, drawdown, position.

    Args:
        timestamps: [S+1], one per equity value.
        equity: [S+1] of the model; baselines: [S+1] each, all starting above 0. They are 1 at the first test row, and
            the figures in the legends are those of the test rows.
        weights: [S, A] held at the closes of bars 1 .. S.
        test_start: index of the first test row; what lies before it is labelled train. 0: all is test.
    """
    figure = Figure(figsize=(11, 8), dpi=120, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    top, middle, bottom = figure.subplots(3, 1, sharex=True, height_ratios=[3, 1.1, 1.1])
    times = timestamps.astype("datetime64[us]")
    _growth_panel(top, times, equity, baselines, name, test_start)
    _drawdown_panel(middle, times, equity, baselines, name, test_start)
    _position_panel(bottom, times, weights, asset_names)
    _label_periods((top, middle, bottom), times, test_start)
    locator = AutoDateLocator(minticks=5, maxticks=10)
    bottom.xaxis.set_major_locator(locator)
    bottom.xaxis.set_major_formatter(ConciseDateFormatter(locator))
    bottom.set_xlim(times[0], times[-1])
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold")
    _write_png(canvas, path)


def plot_forecast(
    path: Path,
    *,
    probability_up: Floats,
    expected_return: Floats,
    realised_return: Floats,
    title: str = "",
) -> None:
    """Writes a PNG of two panels: calibration of the direction, and forecast against outcome of the return.

    All arrays are [S] and finite; returns are fractions.
    """
    figure = Figure(figsize=(11, 5), dpi=120, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    _calibration_panel(left, probability_up, realised_return > 0.0)
    _outcome_panel(right, expected_return, realised_return)
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold")
    _write_png(canvas, path)


def _write_png(canvas: FigureCanvasAgg, path: Path) -> None:
    # Without this the file carries the version of the library and differs between machines.
    canvas.print_png(str(path), metadata={"Software": None})


def _clean(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=9)


def _colours(baselines: Mapping[str, Floats]) -> dict[str, str]:
    palette = iter(BASELINE_COLOURS * (1 + len(baselines) // len(BASELINE_COLOURS)))
    return {key: GREY if key == "flat" else next(palette) for key in baselines}


def _rebased(equity: Floats, start: int) -> Floats:
    """1 at ``start``, or at the beginning for an account that was ruined before it."""
    return equity / (equity[start] if equity[start] > 0.0 else equity[0])


def _growth_panel(
    axes: Axes,
    times: NDArray[np.datetime64],
    equity: Floats,
    baselines: Mapping[str, Floats],
    name: str,
    test_start: int,
) -> None:
    curves = {key: _rebased(curve, test_start) for key, curve in baselines.items()}
    for layer, (key, colour) in enumerate(_colours(baselines).items()):
        label = f"{key.replace('_', ' ')} {curves[key][-1] - curves[key][test_start]:+.1%}"
        # The first baselines lie on top: for one asset equal weight is buy and hold.
        axes.plot(times, curves[key], color=colour, linewidth=1.0, alpha=0.85, label=label, zorder=4 - 0.1 * layer)
    growth = _rebased(equity, test_start)
    label = f"{name} {growth[-1] - growth[test_start]:+.1%}"
    axes.plot(times, growth, color=MODEL_COLOUR, linewidth=2.0, label=label, zorder=5)
    values = np.concatenate([growth, *curves.values()])
    axes.set_ylabel("growth of 1, net of costs")
    # Equal distances are equal returns on a logarithmic axis; it needs positive values and pays only over a wide range.
    if values.min() > 0.0 and values.max() / values.min() > 3.0:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.set_ylabel("growth of 1, net of costs (log)")
    if "flat" not in baselines:
        axes.axhline(1.0, color=GREY, linewidth=0.7)
    _clean(axes)
    handles, labels = axes.get_legend_handles_labels()
    axes.legend([handles[-1], *handles[:-1]], [labels[-1], *labels[:-1]], loc="upper left", fontsize=9, frameon=False)


def _drawdown_panel(
    axes: Axes,
    times: NDArray[np.datetime64],
    equity: Floats,
    baselines: Mapping[str, Floats],
    name: str,
    test_start: int,
) -> None:
    below = drawdowns(equity)
    axes.fill_between(times, below, 0.0, color=MODEL_COLOUR, alpha=0.25, linewidth=0)
    axes.plot(times, below, color=MODEL_COLOUR, linewidth=1.0)
    note = f"{name} {drawdowns(equity[test_start:]).min():.1%}"
    if "buy_and_hold" in baselines:
        market = baselines["buy_and_hold"]
        axes.plot(times, drawdowns(market), color=_colours(baselines)["buy_and_hold"], linewidth=0.9)
        note += f", buy and hold {drawdowns(market[test_start:]).min():.1%}"
    axes.set_title(f"deepest in test: {note}", fontsize=9, loc="right", pad=3)
    axes.set_ylabel("drawdown")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    _clean(axes)


def _position_panel(axes: Axes, times: NDArray[np.datetime64], weights: Floats, asset_names: tuple[str, ...]) -> None:
    num_assets = weights.shape[1]
    if num_assets == 1:
        held = weights[:, 0]
        axes.fill_between(times[1:], held.clip(min=0.0), 0.0, step="pre", color="#009e73", alpha=0.6, linewidth=0)
        axes.fill_between(times[1:], held.clip(max=0.0), 0.0, step="pre", color="#d55e00", alpha=0.6, linewidth=0)
        axes.set_ylabel(f"weight of {asset_names[0]}")
    else:
        axes.plot(times[1:], weights.sum(axis=1), color=MODEL_COLOUR, linewidth=1.0, label="net")
        axes.plot(times[1:], np.abs(weights).sum(axis=1), color=GREY, linewidth=0.9, label="gross")
        axes.legend(loc="upper left", fontsize=8, frameon=False, ncols=2)
        axes.set_ylabel(f"weight, {num_assets} assets")
    axes.axhline(0.0, color=GREY, linewidth=0.7)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    _clean(axes)


def _label_periods(panels: tuple[Axes, ...], times: NDArray[np.datetime64], test_start: int) -> None:
    first, last = (np.datetime_as_string(times[i], unit="D") for i in (test_start, -1))
    if test_start == 0:
        _note(panels[0], times[0], f"test, {first} to {last}", "left")
        return
    for axes in panels:
        axes.axvspan(times[test_start], times[-1], color=TEST_SHADE, zorder=0, linewidth=0)
        axes.axvline(times[test_start], color=GREY, linewidth=0.8, linestyle="--")
    _note(panels[0], times[test_start], "train \u2190 ", "right")
    _note(panels[0], times[test_start], f" \u2192 test, {first} to {last}", "left")


def _note(axes: Axes, time: np.datetime64, text: str, align: Literal["left", "right"]) -> None:
    """Text above the panel at a moment of its time axis."""
    axes.text(
        time,  # type: ignore[arg-type]  # the axis converts dates
        1.005,
        text,
        ha=align,
        va="bottom",
        fontsize=9,
        color=GREY,
        transform=axes.get_xaxis_transform(),
    )


def _calibration_panel(axes: Axes, probability_up: Floats, up: NDArray[np.bool_]) -> None:
    forecast, observed, count = reliability_curve(probability_up, up)
    error = float(np.sum(count / count.sum() * np.abs(forecast - observed)))
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle="--", label="perfect")
    axes.axhline(float(up.mean()), color="#d55e00", linewidth=0.8, label=f"share of rises {up.mean():.1%}")
    # 95 % of a bin's share, were its forecast right: outside of it the miscalibration is more than chance.
    half = 1.96 * np.sqrt(forecast * (1.0 - forecast) / count)
    axes.errorbar(forecast, observed, yerr=half, color=MODEL_COLOUR, marker="o", markersize=5, capsize=2, label="model")
    for x, y, n in zip(forecast, observed, count, strict=True):
        axes.annotate(f"{n:,.0f}", (x, y), textcoords="offset points", xytext=(6, -10), fontsize=8, color=GREY)
    # Forecasts of returns crowd around one half: show the range they use.
    reach = max(0.05, float(np.abs(forecast - 0.5).max()) + 0.03, float(np.abs(observed - 0.5).max() + half.min()))
    axes.set_xlim(max(0.0, 0.5 - reach), min(1.0, 0.5 + reach))
    axes.set_ylim(max(0.0, 0.5 - reach), min(1.0, 0.5 + reach))
    axes.set_xlabel("forecast probability of a rise")
    axes.set_ylabel("observed share of rises")
    axes.set_title(f"calibration, expected error {error:.3f}", fontsize=10, loc="left")
    _clean(axes)
    axes.legend(loc="upper left", fontsize=9, frameon=False)


def _outcome_panel(axes: Axes, expected: Floats, realised: Floats) -> None:
    axes.scatter(100 * expected, 100 * realised, s=6, alpha=0.25, color=MODEL_COLOUR, linewidths=0, rasterized=True)
    order = np.array_split(np.argsort(expected, kind="stable"), min(10, len(expected)))
    x = [100 * float(expected[part].mean()) for part in order]
    y = [100 * float(realised[part].mean()) for part in order]
    spread = [1.96 * 100 * float(realised[part].std()) / math.sqrt(len(part)) for part in order]
    axes.errorbar(x, y, yerr=spread, color="#d55e00", marker="o", markersize=4, capsize=2, label="mean of each tenth")
    axes.axhline(0.0, color=GREY, linewidth=0.7)
    axes.axvline(0.0, color=GREY, linewidth=0.7)
    # The middle 98 % fill the panel; a single crash would flatten everything else.
    limit = 100 * float(np.quantile(np.abs(realised), 0.98)) or 1.0
    axes.set_ylim(-limit, limit)
    axes.set_xlabel("forecast return, %")
    axes.set_ylabel("realised return, % (middle 98 %)")
    correlation = float(np.corrcoef(expected, realised)[0, 1]) if expected.std() > 0 and realised.std() > 0 else 0.0
    axes.set_title(f"forecast and outcome, correlation {correlation:+.3f}", fontsize=10, loc="left")
    _clean(axes)
    axes.legend(loc="upper left", fontsize=9, frameon=False)
