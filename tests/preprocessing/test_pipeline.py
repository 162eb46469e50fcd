import copy
import dataclasses

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trade_agent import safe_io
from trade_agent.errors import PreprocessingError
from trade_agent.preprocessing import pipeline as module
from trade_agent.preprocessing.pipeline import PreprocessingPipeline, StepSpec
from trade_agent.preprocessing.schema import check_names
from trade_agent.preprocessing.templates import TEMPLATES, template_steps

SMALL = [StepSpec("log_return", {"lags": [1, 5]}), StepSpec("calendar"), StepSpec("standard_scaler")]


def perturb_rows(bars, start):
    """Other prices and volumes from ``start`` on, in the shape of the old ones."""
    columns = {}
    for name in ("open", "high", "low", "close", "volume"):
        values = getattr(bars, name).copy()
        values[start:] *= 7.0
        columns[name] = values
    return dataclasses.replace(bars, **columns)


@pytest.mark.parametrize("template", sorted(TEMPLATES))
def test_templates_give_finite_scaled_tables(make_bars, template):
    bars = make_bars(700, 2, gaps=True, bar_seconds=3600)
    table = PreprocessingPipeline(TEMPLATES[template]).fit(bars, range(600)).transform(bars)
    assert table.values.dtype == np.float32
    assert table.values.shape == (700, 2, len(table.names))
    assert np.isfinite(table.values).all()
    assert np.abs(table.values).max() <= 5.0
    usable = table.values[..., -1] == 1.0
    assert (table.values[~usable] == 0.0).all()


def test_the_default_template_is_small():
    names = {name for name in TEMPLATES if TEMPLATES[name] is TEMPLATES["default"]}
    assert {"cnn_lstm", "ppo", "sac", "td3", "hybrid", "ensemble"} < names
    with pytest.raises(PreprocessingError, match="unknown preprocessing template 'lstm'; choose from: default"):
        template_steps("lstm")


def test_default_has_18_features_and_200_bars_of_warmup(make_bars):
    pipeline = PreprocessingPipeline(TEMPLATES["default"])
    assert pipeline.warmup_bars == 200
    assert len(pipeline.fit(make_bars(300), range(300)).feature_names) == 18


def test_values_by_hand(make_bars):
    """Two train returns a and b: mean (a + b) / 2, standard deviation |a - b| / 2, so they become -1 and 1."""
    bars = make_bars(10)
    steps = [StepSpec("log_return", {"lags": [1]}), StepSpec("standard_scaler")]
    table = PreprocessingPipeline(steps).fit(bars, range(4, 6)).transform(bars)
    returns = np.diff(np.log(bars.close[:, 0]))[3:5]
    np.testing.assert_allclose(table.values[4:6, 0, 0], np.sign(returns - returns.mean()), rtol=1e-6)
    assert table.warmup_bars == 1
    assert table.values[0, 0, 0] == 0.0


def test_only_train_rows_are_fitted(make_bars):
    bars = make_bars(500, 2, gaps=True)
    fit = PreprocessingPipeline(TEMPLATES["default"]).fit(bars, range(220, 400))
    changed = PreprocessingPipeline(TEMPLATES["default"]).fit(perturb_rows(bars, 400), range(220, 400))
    assert safe_io.dump_arrays(fit.to_state()) == safe_io.dump_arrays(changed.to_state())
    assert fit.content_hash == changed.content_hash
    other = PreprocessingPipeline(TEMPLATES["default"]).fit(perturb_rows(bars, 399), range(220, 400))
    assert other.content_hash != fit.content_hash


def test_cycles_are_not_scaled(make_bars):
    bars = make_bars(100)
    pipeline = PreprocessingPipeline(SMALL).fit(bars, range(3, 60))
    table = pipeline.transform(bars)
    plain = PreprocessingPipeline(SMALL[:2]).fit(bars, range(3, 60)).transform(bars)
    cycles = [i for i, feature in enumerate(pipeline.contract["features"]) if feature["unit"] == "cycle"]
    assert [table.names[i] for i in cycles] == ["weekday_sin", "weekday_cos", "month_sin", "month_cos"]
    np.testing.assert_array_equal(table.values[..., cycles], plain.values[..., cycles])


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(stop=st.integers(230, 420), seed=st.integers(0, 5))
def test_one_bar_at_a_time_equals_the_whole_series(make_bars, stop, seed):
    bars = make_bars(420, 2, seed=seed, gaps=True)
    pipeline = PreprocessingPipeline(TEMPLATES["default"]).fit(bars, range(210, 400))
    whole, prefix = pipeline.transform(bars), pipeline.transform(bars.rows(0, stop))
    assert prefix.values[-1].tobytes() == whole.values[stop - 1].tobytes()


def test_gaps_are_zero_masked_and_left_out_of_windows(make_bars):
    """An asset that was suspended has the features of its own bars, as if the suspended ones did not exist."""
    bars = make_bars(300)
    tradable = np.ones((300, 1), dtype=bool)
    tradable[100:120] = False
    columns = {n: np.where(tradable, getattr(bars, n), np.nan) for n in ("open", "high", "low", "close", "volume")}
    gappy = dataclasses.replace(bars, tradable=tradable, **columns)
    table = PreprocessingPipeline(SMALL[:1]).fit(gappy, range(200)).transform(gappy)
    assert table.names == ("log_return_1", "log_return_5", "available")
    assert (table.values[100:120] == 0.0).all()
    assert (table.values[5:100, 0, 2] == 1.0).all()
    assert table.values[120, 0, 0] == pytest.approx(np.log(bars.close[120, 0] / bars.close[99, 0]), rel=1e-6)
    unmasked = PreprocessingPipeline(SMALL[:1]).fit(gappy, range(100))
    assert unmasked.feature_names == ("log_return_1", "log_return_5")
    assert (unmasked.transform(gappy).values[100:120] == 0.0).all()


def test_an_asset_listed_late_waits_for_its_own_warmup(make_bars):
    bars = make_bars(300, 2, gaps=True)
    table = PreprocessingPipeline(SMALL[:1]).fit(bars, range(300)).transform(bars)
    listed = np.flatnonzero(bars.tradable[:, 1])
    assert np.flatnonzero(table.values[:, 1, -1]).tolist() == listed[5:].tolist()


def test_state_round_trip(make_bars):
    bars = make_bars(500, 2, gaps=True)
    pipeline = PreprocessingPipeline(TEMPLATES["full"], prices="raw").fit(bars, range(400))
    state = safe_io.load_arrays(safe_io.dump_arrays(pipeline.to_state()), name="test")
    loaded = PreprocessingPipeline.from_state(state)
    assert loaded.contract == pipeline.contract
    assert loaded.content_hash == pipeline.content_hash
    assert loaded.fitted_rows == range(400)
    assert loaded.transform(bars).values.tobytes() == pipeline.transform(bars).values.tobytes()


def set_at(state, path, value):
    for key in path[:-1]:
        state = state[key]
    if value is None:
        del state[path[-1]]
    else:
        state[path[-1]] = value


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["schema"], 2, "another schema"),
        (["code_version"], 0, "fitted by feature code 0"),
        (["fit"], None, "other fields"),
        (["extra"], 1, "other fields"),
        (["fit", "start"], 1.5, "field 'start' of 'fit' is float, not int"),
        (["input", "masked"], 1, "field 'masked' of 'input' is int, not bool"),
        (["steps", 2, "name"], "os.system", "unknown preprocessing step 'os.system'"),
        (["steps", 2, "name"], "clip", r"step 'clip' of the preprocessing state has the arrays \['centre', 'scale'\]"),
        (["steps", 2, "arrays", "scale"], None, "has the arrays"),
        (["steps", 2, "arrays", "scale"], np.zeros(2), "array 'scale' of step 'standard_scaler'"),
        (["steps", 2, "arrays", "centre"], np.array([1.0, np.nan]), "is not 2 finite numbers"),
        (["steps", 2, "arrays", "centre"], np.ones(3), "is not 2 finite numbers"),
        (["steps", 2, "arrays", "centre"], np.ones(2, dtype=np.float32), "of type float64"),
    ],
)
def test_a_damaged_state_is_refused(make_bars, path, value, message):
    state = PreprocessingPipeline(SMALL).fit(make_bars(100), range(100)).to_state()
    PreprocessingPipeline.from_state(copy.deepcopy(state))
    set_at(state, path, value)
    with pytest.raises(PreprocessingError, match=message):
        PreprocessingPipeline.from_state(state)


# What a pipeline over high, low and close is given instead of them, and what it says.
OTHER_INPUTS = {
    "missing": (lambda c: {"high": c["high"], "close": c["close"]},
                "column 'low' is missing; expected, in this order: high, low, close"),
    "extra": (lambda c: c | {"vwap": c["close"]},
              "column 'vwap' is not expected; expected, in this order: high, low, close"),
    "reordered": (lambda c: {name: c[name] for name in ("low", "high", "close")},
                  "column 'low' stands at position 0, where 'high' is expected; reorder to: high, low, close"),
    "retyped": (lambda c: c | {"low": c["low"].astype(np.float32)},
                "column 'low' has type float32, expected float64; convert the column"),
}  # fmt: skip


@pytest.mark.parametrize("change", OTHER_INPUTS)
def test_other_columns_than_the_schema_has_are_named(make_bars, change):
    bars = make_bars(300)
    pipeline = PreprocessingPipeline([StepSpec("atr")]).fit(bars, range(300))
    columns = {name: getattr(bars, name) for name in ("high", "low", "close")}
    assert pipeline.contract["columns"] == list(columns)
    pipeline.check_input(columns, bar_seconds=86_400)
    alter, message = OTHER_INPUTS[change]
    with pytest.raises(PreprocessingError) as caught:
        pipeline.check_input(alter(columns), bar_seconds=86_400)
    assert str(caught.value) == message


def test_bars_of_another_frequency_are_named(make_bars):
    pipeline = PreprocessingPipeline([StepSpec("atr")]).fit(make_bars(300), range(300))
    with pytest.raises(PreprocessingError, match="bar_seconds is 3600, the pipeline was fitted on bars of 86400"):
        pipeline.transform(make_bars(300, bar_seconds=3600))


def test_a_signal_that_the_bars_lack_is_named(make_bars):
    bars = make_bars(100)
    with_signal = dataclasses.replace(bars, signals={"mood": bars.close.copy()})
    pipeline = PreprocessingPipeline([StepSpec("signal", {"name": "mood"})]).fit(with_signal, range(100))
    with pytest.raises(PreprocessingError, match="column 'mood' is missing; expected, in this order: mood"):
        pipeline.transform(bars)


@pytest.mark.parametrize(
    ("column", "value"),
    [("close", np.nan), ("open", 0.0), ("low", -1.0), ("high", np.inf), ("volume", -1.0), ("volume", np.inf)],
)
def test_a_value_out_of_its_range_is_named_with_its_place(make_bars, column, value):
    bars = make_bars(300)
    pipeline = PreprocessingPipeline(SMALL).fit(bars, range(200))
    getattr(bars, column)[250] = value
    wanted = "finite and not negative" if column == "volume" else "a finite price above 0"
    with pytest.raises(
        PreprocessingError, match=f"column '{column}' of S0 is {value} at 2015-09-12.*, expected {wanted}"
    ):
        pipeline.transform(bars)
    bars.tradable[250] = False  # a row that is no bar is not looked at
    assert pipeline.transform(bars).values.shape[0] == 300


def test_names_that_occur_twice_are_refused():
    with pytest.raises(PreprocessingError, match="feature 'a' occurs twice"):
        check_names(["a", "a"], ["a"], what="feature")


def test_misuse_is_refused(make_bars):
    bars = make_bars(250)
    with pytest.raises(PreprocessingError, match=r"not fitted; call fit\(bars, rows\) first"):
        PreprocessingPipeline(SMALL).transform(bars)
    with pytest.raises(PreprocessingError, match="0 usable train rows from bar 0 to 150 after 200 bars of warm-up"):
        PreprocessingPipeline([StepSpec("rsi")]).fit(bars, range(150))
    with pytest.raises(PreprocessingError, match="give a non-empty range"):
        PreprocessingPipeline(SMALL).fit(bars, range(100, 300))
    with pytest.raises(PreprocessingError, match="200 bars are all warm-up"):
        PreprocessingPipeline([StepSpec("rsi")]).fit(bars, range(240)).transform(bars.rows(0, 200))
    with pytest.raises(PreprocessingError, match="feature 'rsi_14' occurs twice"):
        PreprocessingPipeline([StepSpec("rsi"), StepSpec("rsi")])


def test_contract_names_meaning_and_content_names_the_fit(make_bars):
    bars = make_bars(400)
    first = PreprocessingPipeline(SMALL).fit(bars, range(300))
    later = PreprocessingPipeline(SMALL).fit(bars, range(350))
    assert first.contract_hash == later.contract_hash
    assert first.content_hash != later.content_hash
    others = [
        PreprocessingPipeline(SMALL, prices="raw").fit(bars, range(300)),
        PreprocessingPipeline(SMALL[:2]).fit(bars, range(300)),
        PreprocessingPipeline([SMALL[1], SMALL[0], SMALL[2]]).fit(bars, range(300)),
        PreprocessingPipeline(SMALL).fit(make_bars(400, bar_seconds=8 * 86_400), range(300)),
        PreprocessingPipeline(SMALL).fit(make_bars(400, 2), range(300)),
    ]
    assert len({first.contract_hash, *(other.contract_hash for other in others)}) == 6


def test_the_content_covers_steps_parameters_order_code_rows_and_data(make_bars, monkeypatch):
    bars = make_bars(300)

    def content(steps=SMALL, rows=range(200), bars=bars):
        return PreprocessingPipeline(steps).fit(bars, rows).content_hash

    assert content() == content()
    hashes = {
        content(),
        content([*SMALL, StepSpec("clip")]),
        content([*SMALL, StepSpec("clip", {"limit": 3.0})]),
        content([StepSpec("log_return", {"lags": [5, 1]}), *SMALL[1:]]),
        content([SMALL[1], SMALL[0], SMALL[2]]),
        content(rows=range(1, 200)),
        content(rows=range(201)),
        content(bars=make_bars(300, seed=1)),
    }
    monkeypatch.setattr(module, "CODE_VERSION", module.CODE_VERSION + 1)
    assert len(hashes | {content()}) == 9


@pytest.mark.parametrize(
    ("steps", "prices", "message"),
    [
        (SMALL, "raw", r"prices \(adjusted and raw\)"),
        ([SMALL[1], SMALL[0], SMALL[2]], "adjusted", "order of the features"),
        ([*SMALL[:2], StepSpec("robust_scaler")], "adjusted", r"transforms \(.*standard_scaler.*robust_scaler"),
        (
            [StepSpec("log_return", {"lags": [1, 7]}), *SMALL[1:]],
            "adjusted",
            "feature 'log_return_5' only in the first",
        ),
        ([StepSpec("log_return", {"lags": [1]}), *SMALL[1:]], "adjusted", "feature 'log_return_5' only in the first"),
    ],
)
def test_a_contract_mismatch_names_versions_and_keys(make_bars, steps, prices, message):
    first = PreprocessingPipeline(SMALL).fit(make_bars(100), range(100))
    second = PreprocessingPipeline(steps, prices=prices).fit(make_bars(100), range(100))
    first.version = "v1.0.0"
    first.require_same_contract(first)
    with pytest.raises(PreprocessingError, match=rf"v1.0.0 and \(not saved\) have different contracts: .*{message}"):
        first.require_same_contract(second)


def test_numbers_have_not_changed_under_this_code_version(make_bars):
    """When this fails on purpose, raise CODE_VERSION: stored pipelines would feed their models other features."""
    bars = make_bars(420)
    values = PreprocessingPipeline(TEMPLATES["full"][:-3]).fit(bars, range(400)).transform(bars).values[-1, 0]
    np.testing.assert_allclose(values, GOLDEN, rtol=1e-5, atol=1e-7)


# fmt: off
GOLDEN = [
    -0.001477718, 0.008675552, 0.0138062, -0.01514092, -0.01229546, -0.04255755, -0.001369199, -0.0001085192,
    0.002744252, 0.01121286, 0.01118116, 0.009606987, 0.003506376, 0.003631887, 0.01192519, -0.7586177,
    -1.231593, -0.9154497, -0.07245824, 0.4685412, -0.005525048, -0.0009635654, 0.3682398, 0.05051793,
    0.0109726, 0.08855401, -0.01172923, 0.3779116, 0.3308867, -0.003978248, -0.01285111, -0.7818315,
    0.6234898, 0.5, 0.8660254,
]
# fmt: on
