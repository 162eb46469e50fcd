import numpy as np
import pytest

from trade_agent.errors import PreprocessingError
from trade_agent.preprocessing.specs import StepSpec, complete_steps
from trade_agent.preprocessing.steps import TRANSFORMS

VALUES = np.array([[1.0, 5.0, 0.0], [2.0, 5.0, 0.0], [3.0, 5.0, 0.0], [4.0, 5.0, 0.0], [10.0, 5.0, 9.0]])


def fit_apply(name, values, **params):
    step, params = TRANSFORMS[name], dict(TRANSFORMS[name].defaults) | params
    fitted = [step.fit(column, params) for column in values.T]
    assert all(set(numbers) == set(step.arrays) for numbers in fitted)
    arrays = {key: [numbers[key] for numbers in fitted] for key in step.arrays}
    return arrays, np.column_stack([step.apply(*pair, params) for pair in zip(values.T, fitted, strict=True)])


def test_standard_scaler_by_hand():
    arrays, scaled = fit_apply("standard_scaler", VALUES)
    # Mean 4, variance (9 + 4 + 1 + 0 + 36) / 5 = 10; a constant column keeps the scale 1 and becomes 0.
    np.testing.assert_allclose(arrays["centre"], [4.0, 5.0, 1.8], rtol=1e-12)
    np.testing.assert_allclose(arrays["scale"][:2], [10.0**0.5, 1.0], rtol=1e-12)
    assert (scaled[:, 1] == 0.0).all()


def test_robust_scaler_by_hand():
    arrays, scaled = fit_apply("robust_scaler", VALUES)
    # Median 3, quartiles 2 and 4. The last column has no interquartile range: its standard deviation is 3.6.
    np.testing.assert_allclose(arrays["centre"], [3.0, 5.0, 0.0], rtol=1e-12)
    np.testing.assert_allclose(arrays["scale"], [2.0, 1.0, 3.6], rtol=1e-12)
    np.testing.assert_allclose(scaled[4], [3.5, 0.0, 2.5], rtol=1e-12)


def test_winsorize_by_hand():
    arrays, limited = fit_apply("winsorize", VALUES, lower=0.25, upper=0.75)
    assert limited[:, 0].tolist() == [2.0, 2.0, 3.0, 4.0, 4.0]
    assert arrays["lower"] == [2.0, 5.0, 0.0]
    assert TRANSFORMS["winsorize"].apply(np.array([-99.0]), {"lower": 2.0, "upper": 4.0}, {}).tolist() == [2.0]


def test_clip():
    assert fit_apply("clip", VALUES, limit=3.0)[1][4].tolist() == [3.0, 3.0, 3.0]


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([StepSpec("log_retrun")], "unknown preprocessing step 'log_retrun'; did you mean 'log_return'"),
        ([StepSpec("rsi", {"perod": 14})], "step 'rsi' has no parameter 'perod'; did you mean 'period'"),
        ([StepSpec("calendar", {"period": 14})], "no parameter 'period'; it takes none"),
        ([StepSpec("rsi", {"period": 14.0})], "rsi.period is 14.0; give a whole number from 2 to 50000"),
        ([StepSpec("rsi", {"period": True})], "rsi.period is True"),
        ([StepSpec("rsi", {"period": 1})], "rsi.period is 1; give a whole number from 2"),
        ([StepSpec("log_return", {"lags": 5})], "log_return.lags is 5; give a list of different whole numbers"),
        ([StepSpec("log_return", {"lags": [5, 5]})], "log_return.lags is .*5, 5"),
        ([StepSpec("log_return", {"lags": []})], "log_return.lags"),
        ([StepSpec("bollinger", {"deviations": float("nan")})], "bollinger.deviations is nan; give a finite number"),
        ([StepSpec("macd", {"fast": 30})], "fast must be below slow"),
        ([StepSpec("calendar"), StepSpec("winsorize", {"lower": 0.9, "upper": 0.1})], "0 <= lower < upper <= 1"),
        ([StepSpec("clip")], "needs at least one feature step"),
        ([StepSpec("rsi"), StepSpec("clip"), StepSpec("atr")], "feature step 'atr' comes after a scaler"),
    ],
)
def test_wrong_steps_are_refused_with_the_remedy(steps, message):
    with pytest.raises(PreprocessingError, match=message):
        complete_steps(steps)


def test_defaults_are_filled_in():
    assert complete_steps([StepSpec("log_return"), StepSpec("clip", {"limit": 3})]) == (
        StepSpec("log_return", {"lags": [1, 5, 20]}),
        StepSpec("clip", {"limit": 3.0}),
    )
