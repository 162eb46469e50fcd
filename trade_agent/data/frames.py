"""What a data source is asked for and what it returns."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd

PRICE_SIDES = ("mid", "bid", "ask")


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceRequest:
    """The arguments of ``load_bars`` that a source may use; each source reads those that concern it."""

    path: str | None
    symbols: Sequence[str]
    start: str | None
    end: str | None
    columns: Mapping[str, str]
    time_format: str | None
    timezone: str
    symbol_column: str | None
    delimiter: str | None
    price_side: str
    adjust: bool
    interval: str | None
    exchange: str | None
    num_bars: int | None
    seed: int | None


@dataclass(frozen=True, slots=True)
class Note:
    """Something a source saw in the file that validation could not see in the numbers any more."""

    kind: str
    symbol: str
    count: int
    detail: str


@dataclass(frozen=True, slots=True)
class SourceFrame:
    """Bars as the file has them: one row per bar and asset, in file order.

    frame: columns time (datetime64[ns], naive, UTC), symbol (str), open, high, low, close, volume (float64; NaN where
        the file has none), and where the source has them: adj_close; price_factor and split_factor (adjusted price =
        raw price * price_factor, adjusted volume = raw volume / split_factor); spread_open, spread_close (ask - bid,
        quote currency); other_volume.
    signals: names of further columns of the frame, finite throughout, that go into ``Bars.signals`` as they are.
    calendar: the calendar that the source knows of, else None.
    named: the symbols come from the data; False where the only asset is called after its file.
    """

    frame: pd.DataFrame
    notes: list[Note] = field(default_factory=list)
    calendar: str | None = None
    named: bool = True
    signals: tuple[str, ...] = ()
