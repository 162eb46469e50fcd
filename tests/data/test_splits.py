import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trade_agent.data.splits import Split, chronological_split, walk_forward_splits
from trade_agent.errors import DataError

FRACTIONS = {"train_fraction": 0.6, "validation_fraction": 0.2}


def test_golden_split():
    # 120 bars - 10 warm-up - 2 * 5 embargo = 100 usable: 60, 20, 20.
    split = chronological_split(num_bars=120, warmup_bars=10, embargo_bars=5, min_rows=20, **FRACTIONS)
    assert (split.train, split.validation, split.test) == (range(10, 70), range(75, 95), range(100, 120))


def test_golden_walk_forward():
    arguments = {"num_bars": 120, "warmup_bars": 10, "num_folds": 2, "embargo_bars": 5, "min_rows": 5, **FRACTIONS}
    anchored = walk_forward_splits(anchored=True, **arguments)
    assert [s.train for s in anchored] == [range(10, 70), range(10, 80)]
    assert [s.validation for s in anchored] == [range(75, 95), range(85, 105)]
    assert [s.test for s in anchored] == [range(100, 110), range(110, 120)]
    sliding = walk_forward_splits(anchored=False, **arguments)
    assert [s.train for s in sliding] == [range(10, 70), range(20, 80)]


sizes = st.fixed_dictionaries(
    {
        "num_bars": st.integers(1, 3000),
        "warmup_bars": st.integers(0, 300),
        "embargo_bars": st.integers(0, 200),
        "min_rows": st.integers(1, 50),
        "train_fraction": st.floats(0.05, 0.9),
        "validation_fraction": st.floats(0.05, 0.9),
    }
)


def check(split: Split, arguments: dict) -> None:
    embargo = arguments["embargo_bars"]
    assert arguments["warmup_bars"] <= split.train.start
    assert split.test.stop <= arguments["num_bars"]
    for before, after in ((split.train, split.validation), (split.validation, split.test)):
        # The last row of one part and the first of the next have at least the embargo's bars between them.
        assert after[0] - before[-1] - 1 >= embargo
        assert not set(before) & set(after)
    assert min(len(split.train), len(split.validation), len(split.test)) >= arguments["min_rows"]


@given(sizes)
@settings(deadline=None, max_examples=200)
def test_disjoint_ordered_embargoed(arguments):
    try:
        split = chronological_split(**arguments)
    except DataError:
        return
    check(split, arguments)
    assert split.train.start == arguments["warmup_bars"]
    assert split.test.stop == arguments["num_bars"]


@given(sizes, st.integers(1, 12), st.booleans())
@settings(deadline=None, max_examples=200)
def test_walk_forward_folds_stitch(arguments, num_folds, anchored):
    try:
        splits = walk_forward_splits(num_folds=num_folds, anchored=anchored, **arguments)
    except DataError:
        return
    assert len(splits) == num_folds
    for split in splits:
        check(split, arguments)
    for before, after in itertools.pairwise(splits):
        assert after.test.start == before.test.stop
        assert len(after.train) == len(before.train) if not anchored else after.train.start == before.train.start
    assert splits[-1].test.stop == arguments["num_bars"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_bars": 30}, "30 bars with a warm-up of 10"),
        ({"min_rows": 21}, "20 validation bars, 21 are needed"),
        ({"train_fraction": 0.9}, "below 1"),
        ({"validation_fraction": 0.0}, "positive"),
        ({"embargo_bars": 60}, "usable bars"),
    ],
)
def test_too_short_or_senseless(changes, message):
    arguments = {"num_bars": 120, "warmup_bars": 10, "embargo_bars": 5, "min_rows": 20, **FRACTIONS}
    with pytest.raises(DataError, match=message):
        chronological_split(**{**arguments, **changes})


def test_split_refuses_overlap():
    with pytest.raises(DataError, match="closer than 5 bars"):
        Split(train=range(10), validation=range(14, 20), test=range(30, 40), embargo_bars=5)
