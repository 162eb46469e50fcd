"""The one shape in which market data leaves this package."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from trade_agent.data.calendars import bars_per_year
from trade_agent.errors import DataError

PRICE_FIELDS = ("open", "high", "low", "close")


@dataclass(frozen=True, slots=True)
class Bars:
    """Bars of A assets on one common time axis of T moments.

    timestamps: [T] datetime64[ns], UTC, strictly increasing. The moment a bar opens, as its file says it; a daily bar
        carries the date of its session at 00:00.
    symbols: A names, unique.
    open, high, low, close: [T, A] float64, in quote currency, adjusted for splits and dividends when the loader was
        asked to. Finite and positive where ``tradable``, NaN elsewhere: nothing is ever filled in.
    volume: [T, A] float64, >= 0 where ``tradable``, NaN elsewhere; all 0 for a market that reports none.
    tradable: [T, A] bool, False where the asset has no bar (not listed yet, suspended, dropped by validation).
    calendar: an exchange_calendars name, "24/7", "24/5" or "observed" (the sessions seen in the data themselves).
    bar_seconds: the median step.
    signals: further columns by name, each [T, A] float64, known at the close of the bar: finite where ``tradable``, NaN
        elsewhere. They may be negative and are no prices.

    Raises DataError when a field contradicts this.
    """

    timestamps: np.ndarray
    symbols: tuple[str, ...]
    open: np.ndarray
    high: np.ndarray
    low: np.ndarray
    close: np.ndarray
    volume: np.ndarray
    tradable: np.ndarray
    calendar: str
    bar_seconds: int
    signals: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_axes(self)
        shape = (len(self.timestamps), len(self.symbols))
        if self.tradable.shape != shape or self.tradable.dtype != np.bool_:
            raise DataError(f"bars: tradable is {_describe(self.tradable)}", f"give a bool array of shape {shape}")
        for name in (*PRICE_FIELDS, "volume"):
            values = getattr(self, name)
            self._check_column(name, values, shape)
            if values[self.tradable].min(initial=1.0) < 0 or (name != "volume" and (values[self.tradable] <= 0).any()):
                raise DataError(f"bars: {name} has a value that is not positive", "drop such rows before building Bars")

        for name, values in self.signals.items():
            if name in (*PRICE_FIELDS, "volume"):
                raise DataError(f"bars: a signal is called {name}", "give it a name of its own")
            self._check_column(name, values, shape)

    def _check_column(self, name: str, values: np.ndarray, shape: tuple[int, int]) -> None:
        if values.shape != shape or values.dtype != np.float64:
            raise DataError(f"bars: {name} is {_describe(values)}", f"give a float64 array of shape {shape}")
        if not np.isfinite(values[self.tradable]).all():
            raise DataError(f"bars: {name} is not finite on a tradable bar", "mark that bar as not tradable")
        if not np.isnan(values[~self.tradable]).all():
            raise DataError(f"bars: {name} has a value where nothing traded", "use NaN where tradable is False")

    @property
    def num_bars(self) -> int:
        """T."""
        return len(self.timestamps)

    @property
    def num_assets(self) -> int:
        """A."""
        return len(self.symbols)

    @property
    def periods_per_year(self) -> float:
        """Bars in a year of this calendar: 252 for US days, 365 for crypto days, 8760 for crypto hours."""
        return bars_per_year(self.calendar, self.bar_seconds, self.timestamps)

    @property
    def fingerprint(self) -> str:
        """sha256 (hex) over every field; equal content gives an equal fingerprint on every machine."""
        digest = hashlib.sha256()
        header = f"{self.symbols!r}|{self.calendar}|{self.bar_seconds}|{self.num_bars}|{self.num_assets}|"
        digest.update(header.encode())
        digest.update(np.ascontiguousarray(self.timestamps).astype("<i8").tobytes())
        digest.update(np.ascontiguousarray(self.tradable).tobytes())
        columns = {name: getattr(self, name) for name in (*PRICE_FIELDS, "volume")}
        for name, values in self.signals.items():
            digest.update(f"{name}|".encode())
            columns[name] = values
        for values in columns.values():
            # A NaN has many bit patterns and a zero has two: only the meaning is hashed.
            canonical = np.where(self.tradable, values, 0.0) + 0.0
            digest.update(np.ascontiguousarray(canonical, dtype="<f8").tobytes())
        return digest.hexdigest()

    def rows(self, start: int, stop: int) -> "Bars":
        """The bars start .. stop - 1 (views, no copy); calendar and bar_seconds stay as they are."""
        if not 0 <= start < stop <= self.num_bars:
            raise DataError(
                f"rows({start}, {stop}) is outside the {self.num_bars} bars", "use 0 <= start < stop <= num_bars"
            )
        part = slice(start, stop)
        return Bars(
            timestamps=self.timestamps[part],
            symbols=self.symbols,
            open=self.open[part],
            high=self.high[part],
            low=self.low[part],
            close=self.close[part],
            volume=self.volume[part],
            tradable=self.tradable[part],
            calendar=self.calendar,
            bar_seconds=self.bar_seconds,
            signals={name: values[part] for name, values in self.signals.items()},
        )


def _describe(values: np.ndarray) -> str:
    return f"{values.dtype} of shape {values.shape}"


def _check_axes(bars: Bars) -> None:
    stamps = bars.timestamps
    if stamps.ndim != 1 or stamps.dtype != np.dtype("datetime64[ns]") or len(stamps) == 0:
        raise DataError(
            f"bars: timestamps is {_describe(stamps)}", "give at least one datetime64[ns] value in one dimension"
        )
    if np.isnat(stamps).any() or (np.diff(stamps) <= np.timedelta64(0, "ns")).any():
        raise DataError("bars: timestamps are not strictly increasing", "sort them and remove duplicates")
    if not bars.symbols or len(set(bars.symbols)) != len(bars.symbols):
        raise DataError(f"bars: symbols {bars.symbols!r} are empty or not unique", "name every asset once")
    if bars.bar_seconds <= 0:
        raise DataError(f"bars: bar_seconds is {bars.bar_seconds}", "give a positive number of seconds")
