"""Columns of the data that are no prices: from bars into the feature table, like any feature."""

import dataclasses

import numpy as np
import pytest

from trade_agent.errors import PreprocessingError
from trade_agent.preprocessing.causality import check_causal, replace_future
from trade_agent.preprocessing.pipeline import PreprocessingPipeline, StepSpec
from trade_agent.preprocessing.templates import template_steps


@pytest.fixture
def signal_bars(make_bars):
    def make(**arguments):
        bars = make_bars(**arguments)
        values = np.random.default_rng(5).standard_normal(bars.tradable.shape)
        return dataclasses.replace(bars, signals={"mood": np.where(bars.tradable, values, np.nan)})

    return make


def test_a_signal_passes_through_unchanged_and_scaled_only_on_request(signal_bars):
    bars = signal_bars(num_bars=50, num_assets=2)
    plain = PreprocessingPipeline([StepSpec("signal", {"name": "mood"})]).fit(bars, range(30))
    np.testing.assert_allclose(plain.transform(bars).values[:, :, 0], bars.signals["mood"], rtol=1e-6)
    assert plain.feature_names[0] == "mood"
    assert plain.contract["columns"] == ["mood"]
    scaled = PreprocessingPipeline([StepSpec("signal", {"name": "mood"}), StepSpec("standard_scaler")])
    values = scaled.fit(bars, range(30)).transform(bars).values[:30, :, 0]
    assert (values.mean(), values.std()) == (pytest.approx(0.0, abs=1e-6), pytest.approx(1.0, abs=1e-6))


def test_a_template_reads_the_signals_that_the_data_bring(signal_bars):
    bars = signal_bars(num_bars=400)
    pipeline = PreprocessingPipeline(template_steps("minimal", ["mood"])).fit(bars, range(300))
    assert pipeline.feature_names[:2] == ("mood", "log_return_1")
    again = PreprocessingPipeline.from_state(pipeline.to_state())
    np.testing.assert_array_equal(again.transform(bars).values, pipeline.transform(bars).values)


def test_bars_without_the_signal_are_refused_by_name(signal_bars, make_bars):
    steps = [StepSpec("signal", {"name": "mood"}), StepSpec("log_return")]
    with pytest.raises(PreprocessingError, match="no signal 'mood'"):
        PreprocessingPipeline(steps).fit(make_bars(num_bars=100), range(80))
    fitted = PreprocessingPipeline(steps).fit(signal_bars(num_bars=100), range(80))
    with pytest.raises(PreprocessingError, match="column 'mood' is missing"):
        fitted.transform(make_bars(num_bars=100))


@pytest.mark.parametrize("params", [{}, {"name": ""}, {"name": 3}])
def test_a_signal_step_needs_a_name(params):
    with pytest.raises(PreprocessingError, match="name"):
        PreprocessingPipeline([StepSpec("signal", params)])


def test_the_audit_replaces_signals_too(signal_bars):
    bars = signal_bars(num_bars=60, num_assets=2, gaps=True)
    future = replace_future(bars, 30, rng=np.random.default_rng(0), move_gaps=True)
    np.testing.assert_array_equal(future.signals["mood"][:31], bars.signals["mood"][:31])
    both = bars.tradable[31:] & future.tradable[31:]
    assert not np.any(future.signals["mood"][31:][both] == bars.signals["mood"][31:][both])

    def peeks(bars):
        return np.nan_to_num(np.roll(bars.signals["mood"], -1, axis=0))

    assert not check_causal(peeks, bars, num_points=8, seed=0).ok
    assert check_causal(lambda bars: np.nan_to_num(bars.signals["mood"]), bars, num_points=8, seed=0).ok
