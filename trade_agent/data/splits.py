"""Chronological splits with an embargo, as ranges of bar indices.

train | embargo | validation | embargo | test. The embargo bars belong to no part: with an embargo of at least window +
horizon bars, no window or label of one part touches a bar of another (purging; Lopez de Prado, Advances in Financial
Machine Learning, 2018, ch. 7).
"""

from dataclasses import dataclass

from trade_agent.errors import DataError


@dataclass(frozen=True, slots=True)
class Split:
    """Three disjoint, ordered ranges of bar indices (stop exclusive), ``embargo_bars`` or more apart.

    Raises DataError when the ranges overlap, are out of order or closer than the embargo.
    """

    train: range
    validation: range
    test: range
    embargo_bars: int

    def __post_init__(self) -> None:
        for before, after in ((self.train, self.validation), (self.validation, self.test)):
            if after.start - before.stop < self.embargo_bars:
                raise DataError(
                    f"split: {before} and {after} are closer than {self.embargo_bars} bars",
                    "leave the embargo between them",
                )
        if min(len(self.train), len(self.validation), len(self.test)) == 0 or self.embargo_bars < 0:
            raise DataError(f"split: an empty part or a negative embargo in {self}", "give every part at least one bar")


def _check_fractions(train_fraction: float, validation_fraction: float) -> None:
    if not (train_fraction > 0 and validation_fraction > 0 and train_fraction + validation_fraction < 1):
        raise DataError(
            f"split: train_fraction={train_fraction} and validation_fraction={validation_fraction} leave no room",
            "use two positive fractions whose sum is below 1; the rest is the test part",
        )


def _check_rows(split: Split, *, num_bars: int, warmup_bars: int, min_rows: int) -> Split:
    sizes = {"train": len(split.train), "validation": len(split.validation), "test": len(split.test)}
    for name, size in sizes.items():
        if size < min_rows:
            raise _too_short(num_bars, warmup_bars, split.embargo_bars, f"{size} {name} bars, {min_rows} are needed")
    return split


def _too_short(num_bars: int, warmup_bars: int, embargo_bars: int, why: str) -> DataError:
    return DataError(
        f"split: {num_bars} bars with a warm-up of {warmup_bars} and an embargo of {embargo_bars} leave {why}",
        "use more data, a shorter window or horizon, or other fractions",
    )


def chronological_split(
    *,
    num_bars: int,
    warmup_bars: int,
    train_fraction: float,
    validation_fraction: float,
    embargo_bars: int,
    min_rows: int,
) -> Split:
    """One split of the bars warmup_bars .. num_bars - 1.

    The fractions are shares of the bars that remain after the warm-up and both embargoes; the test part takes the rest
    and ends with the last bar. Raises DataError when a part would hold fewer than ``min_rows`` bars.
    """
    _check_fractions(train_fraction, validation_fraction)
    usable = num_bars - warmup_bars - 2 * embargo_bars
    if usable < 3 or warmup_bars < 0 or embargo_bars < 0:
        raise _too_short(num_bars, warmup_bars, embargo_bars, f"{max(usable, 0)} usable bars")
    num_train = int(usable * train_fraction)
    num_validation = int(usable * validation_fraction)
    if min(num_train, num_validation) == 0:
        raise _too_short(num_bars, warmup_bars, embargo_bars, "an empty train or validation part")
    validation_start = warmup_bars + num_train + embargo_bars
    test_start = validation_start + num_validation + embargo_bars
    split = Split(
        train=range(warmup_bars, warmup_bars + num_train),
        validation=range(validation_start, validation_start + num_validation),
        test=range(test_start, num_bars),
        embargo_bars=embargo_bars,
    )
    return _check_rows(split, num_bars=num_bars, warmup_bars=warmup_bars, min_rows=min_rows)


def walk_forward_splits(
    *,
    num_bars: int,
    warmup_bars: int,
    num_folds: int,
    train_fraction: float,
    validation_fraction: float,
    embargo_bars: int,
    min_rows: int,
    anchored: bool,
) -> list[Split]:
    """Folds whose test parts follow each other without a gap and end with the last bar, so that their results join
    into one curve.

    The first fold is cut as ``chronological_split`` cuts; its test part is then divided into ``num_folds`` blocks. Each
    later fold moves train end, validation and test on by one block; its train part starts at ``warmup_bars`` (anchored)
    or moves along with constant length (sliding). Raises DataError when a part of any fold would hold fewer than
    ``min_rows`` bars.
    """
    if num_folds < 1:
        raise DataError(f"split: num_folds={num_folds}", "use at least one fold")
    first = chronological_split(
        num_bars=num_bars,
        warmup_bars=warmup_bars,
        train_fraction=train_fraction,
        validation_fraction=validation_fraction,
        embargo_bars=embargo_bars,
        min_rows=1,
    )
    block = len(first.test) // num_folds
    if block == 0:
        raise _too_short(num_bars, warmup_bars, embargo_bars, f"{len(first.test)} test bars for {num_folds} folds")
    splits = []
    for fold in range(num_folds):
        shift = fold * block
        # Division leaves a remainder of less than one bar a fold: the last fold takes it.
        test_stop = num_bars if fold == num_folds - 1 else first.test.start + shift + block
        split = Split(
            train=range(first.train.start + (0 if anchored else shift), first.train.stop + shift),
            validation=range(first.validation.start + shift, first.validation.stop + shift),
            test=range(first.test.start + shift, test_stop),
            embargo_bars=embargo_bars,
        )
        splits.append(_check_rows(split, num_bars=num_bars, warmup_bars=warmup_bars, min_rows=min_rows))
    return splits
