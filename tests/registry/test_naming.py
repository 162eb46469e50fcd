import pytest
from hypothesis import given
from hypothesis import strategies as st

from trade_agent.errors import RegistryError
from trade_agent.evaluation.grading import MODEL_KINDS, PerformanceGrade
from trade_agent.registry.naming import MODEL_ID, MODEL_TYPES, model_id, spell_number
from trade_agent.registry.versions import Version


def test_the_documented_id():
    assert (
        model_id("cnn_lstm", Version(1, 0, 0), PerformanceGrade.A, ("acc", 0.95)) == "cnn_lstm_v1.0.0_grade_A_acc_0.95"
    )


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.42, "0.42"),
        (-0.42, "m0.42"),
        (-0.001, "0.00"),
        (12, "12.00"),
        (float("nan"), "nan"),
        (float("inf"), "inf"),
        (float("-inf"), "minf"),
        (-1.5e12, "m1.50e12"),
    ],
)
def test_numbers_have_one_spelling(value, text):
    assert spell_number(value) == text


@given(st.sampled_from(MODEL_TYPES), st.sampled_from(list(PerformanceGrade)), st.floats(), st.integers(0, 999999))
def test_every_id_is_recognised_and_stays_one_path_component(model_type, grade, value, number):
    identifier = model_id(model_type, Version(number, 0, 1), grade, ("max_drawdown", value))
    match = MODEL_ID.fullmatch(identifier)
    assert (match["type"], match["version"]) == (model_type, f"{number}.0.1")
    assert "/" not in identifier


@pytest.mark.parametrize("name", ["", "../x", "a/b", "Sharpe", "a b", "é", "x" * 40, "."])
def test_metric_names_that_are_no_file_names_are_refused(name):
    with pytest.raises(RegistryError, match="metric name"):
        model_id("sac", Version(1, 0, 0), PerformanceGrade.B, (name, 0.0))


@pytest.mark.parametrize(
    "text", ["sac_v1.0_grade_A_acc_0.95", "sac_v01.0.0_grade_A_acc_0.95", "sac_v1.0.0_grade_Z_acc_0.95",
             "dqn_v1.0.0_grade_A_acc_0.95", "sac_v1.0.0_grade_A_acc_-0.95", "sac_v1.0.0_grade_A_acc_0.95\n"]
)  # fmt: skip
def test_other_spellings_are_no_ids(text):
    assert not MODEL_ID.fullmatch(text)


def test_graded_and_stored_types_are_the_same():
    assert set(MODEL_TYPES) == set(MODEL_KINDS)
