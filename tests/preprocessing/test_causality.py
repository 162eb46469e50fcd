import numpy as np
import pandas as pd
import pytest

from trade_agent.errors import DataError
from trade_agent.preprocessing.causality import check_causal, check_isolated, replace_future
from trade_agent.preprocessing.features import FEATURES
from trade_agent.preprocessing.pipeline import PreprocessingPipeline, StepSpec
from trade_agent.preprocessing.steps import TRANSFORMS
from trade_agent.preprocessing.templates import TEMPLATES


def closes(bars):
    return pd.DataFrame(bars.close)


def next_return(bars):
    return (closes(bars).shift(-1) / closes(bars)).to_numpy()


def centred_rolling(bars):
    return closes(bars).rolling(5, center=True).mean().to_numpy()


def global_scaler(bars):
    return ((closes(bars) - closes(bars).mean()) / closes(bars).std()).to_numpy()


def back_fill(bars):
    return closes(bars).bfill().to_numpy()


def cross_ticker_fill(bars):
    """The forward fill of a long frame sorted by ticker: the last asset's first NaN take the end of the one before."""
    return closes(bars).unstack().ffill().to_numpy().reshape(bars.num_assets, -1).T


def label_among_features(bars):
    up = (closes(bars).shift(-3) > closes(bars)).to_numpy()
    return np.stack([closes(bars).pct_change().to_numpy(), up], axis=-1)


def coarse_bars_stamped_at_start(bars):
    """The close of each block of five bars, known from the block's first bar on."""
    return closes(bars).groupby(np.arange(bars.num_bars) // 5).transform("last").to_numpy()


def pipeline_fitted_on_everything(bars):
    return PreprocessingPipeline(TEMPLATES["minimal"]).fit(bars, range(bars.num_bars)).transform(bars).values


LEAKS = [
    next_return,
    centred_rolling,
    global_scaler,
    back_fill,
    cross_ticker_fill,
    label_among_features,
    coarse_bars_stamped_at_start,
    pipeline_fitted_on_everything,
]


@pytest.mark.parametrize("leak", LEAKS)
def test_planted_leaks_are_caught(make_bars, leak):
    bars = make_bars(300, 3, gaps=True)
    report = check_causal(leak, bars, num_points=60, seed=0)
    assert not report.ok
    assert all(found.index[0] <= found.t for found in report.leaks)


def test_a_back_fill_of_one_gap_is_caught(make_bars):
    bars = make_bars(600)
    columns = {name: getattr(bars, name) for name in ("open", "high", "low", "close", "volume")}
    tradable = bars.tradable.copy()
    tradable[417] = False
    for values in columns.values():
        values[417] = np.nan
    bars = type(bars)(bars.timestamps, bars.symbols, *columns.values(), tradable, "24/7", bars.bar_seconds)
    report = check_causal(back_fill, bars, num_points=10, seed=0)
    assert [leak.index for leak in report.leaks] == [(417, 0)]


def test_a_causal_transform_raises_no_alarm(make_bars):
    bars = make_bars(300, 3, gaps=True)
    report = check_causal(lambda b: closes(b).ffill().rolling(7).mean().to_numpy(), bars, num_points=60, seed=0)
    assert report.ok
    assert len(set(report.points)) == 60


@pytest.mark.parametrize("gaps", [False, True])
@pytest.mark.parametrize("name", sorted(FEATURES.keys() - {"signal"}))  # which bars have only on request
def test_every_feature_is_causal_and_isolated(make_bars, name, gaps):
    bars = make_bars(500, 2, gaps=gaps)
    pipeline = PreprocessingPipeline([StepSpec(name)]).fit(bars, range(450))
    report = check_causal(lambda b: pipeline.transform(b).values, bars, num_points=30, seed=1)
    assert report.ok, report.leaks
    assert check_isolated(lambda b: pipeline.transform(b).values, bars, seed=1).ok


@pytest.mark.parametrize("scaler", sorted(TRANSFORMS))
def test_every_step_is_causal_beyond_its_train_rows(make_bars, scaler):
    """Here fitting is part of what is audited."""
    bars = make_bars(400, 2, gaps=True)

    def fit_and_transform(b):
        steps = [StepSpec("log_return"), StepSpec("volume_zscore"), StepSpec(scaler)]
        return PreprocessingPipeline(steps).fit(b, range(50, 250)).transform(b).values

    assert check_causal(fit_and_transform, bars, num_points=40, seed=2, first=249).ok
    # Before the end of the train rows a fit does see later train rows; clip fits nothing.
    assert check_causal(fit_and_transform, bars, num_points=40, seed=2).ok == (scaler == "clip")


@pytest.mark.parametrize("template", ["default", "minimal", "full"])
@pytest.mark.parametrize(("num_assets", "gaps", "bar_seconds"), [(1, False, 3600), (3, True, 86_400)])
def test_every_template_is_causal(make_bars, template, num_assets, gaps, bar_seconds):
    bars = make_bars(800, num_assets, gaps=gaps, bar_seconds=bar_seconds)
    pipeline = PreprocessingPipeline(TEMPLATES[template]).fit(bars, range(700))
    report = check_causal(lambda b: pipeline.transform(b).values, bars, num_points=25, seed=3, first=300)
    assert report.ok, report.leaks


def test_isolation_catches_a_fill_from_the_next_ticker(make_bars):
    bars = make_bars(300, 3, gaps=True)

    def fill(b):
        return closes(b).bfill(axis=1).to_numpy()

    assert check_causal(fill, bars, num_points=60, seed=0).ok  # nothing of it lies in the future
    assert not check_isolated(fill, bars, seed=0).ok


def test_the_replaced_future_is_new_and_the_past_is_not(make_bars):
    bars = make_bars(100, 2, gaps=True)
    future = replace_future(bars, 60, rng=np.random.default_rng(0), move_gaps=True)
    assert future.rows(0, 61).fingerprint == bars.rows(0, 61).fingerprint
    for name in ("open", "high", "low", "close", "volume", "timestamps"):
        assert not (getattr(future, name)[61:] == getattr(bars, name)[61:]).any()
    assert (future.high >= np.maximum(future.open, future.close))[61:][future.tradable[61:]].all()


def test_a_transform_without_one_row_per_bar_is_refused(make_bars):
    with pytest.raises(DataError, match="give one row per bar"):
        check_causal(lambda b: b.close[5:], make_bars(50), num_points=3, seed=0)
    with pytest.raises(DataError, match="no bar to try"):
        check_causal(lambda b: b.close, make_bars(50), num_points=3, seed=0, first=49)
