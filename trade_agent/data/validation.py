"""What can be wrong with bars, what is done about it by default, and the report of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from trade_agent.errors import DataError

SHOWN_TIMESTAMPS = 5


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of finding: its policies (the first is the default) and what it means.

    keep: leave the rows as they are. drop: the asset has no bar there (tradable=False); nothing is filled in. clip:
    widen high and low to contain open and close. zero: set the volume to 0. sort: order by time. first, last: keep one
    of the bars of a time. adjust: apply the factor. refuse: stop with an error.
    """

    policies: tuple[str, ...]
    meaning: str


_ROWS = ("keep", "drop", "refuse")
KINDS: dict[str, Kind] = {
    "unsorted": Kind(("sort", "refuse"), "times go back (a file that runs newest first throughout is no finding)"),
    "duplicate_bar": Kind(("drop", "refuse"), "a bar is repeated with equal values; one is kept"),
    "duplicate_timestamp": Kind(("refuse", "first", "last", "drop"), "one time has several bars that differ"),
    "nan": Kind(("drop", "refuse"), "a price is missing or infinite"),
    "non_positive_price": Kind(("drop", "refuse"), "a price is zero or negative"),
    "high_below_low": Kind(("drop", "clip", "refuse"), "the high is below the low"),
    "close_outside_range": Kind(("clip", "keep", "drop", "refuse"), "the close is above the high or below the low"),
    "open_outside_range": Kind(("keep", "clip", "drop", "refuse"), "the open is above the high or below the low"),
    "nan_volume": Kind(("zero", "drop", "refuse"), "a volume is missing on some bars"),
    "negative_volume": Kind(("drop", "zero", "refuse"), "a volume is negative"),
    "missing_volume": Kind(("zero", "refuse"), "the asset has no volume at all; it reads 0"),
    "zero_volume": Kind(_ROWS, "nothing was traded in a bar of an asset that has volume elsewhere"),
    "negative_spread": Kind(("drop", "keep", "refuse"), "the ask is below the bid"),
    "volume_price_mismatch": Kind(_ROWS, "volume in quote currency / volume in units is no price of that bar"),
    "mixed_adjustment": Kind(("refuse", "keep"), "adjusted and raw prices are mixed in one series"),
    "split": Kind(("adjust", "refuse"), "a split, known from the adjusted close or the factor file, was adjusted"),
    "unadjusted_split": Kind(
        ("keep", "refuse"), "a jump by a simple ratio with the volume or adjusted close of a split"
    ),
    "not_adjusted": Kind(("keep", "refuse"), "adjustment was asked for and the source has no factors for it"),
    "close_only": Kind(("keep", "refuse"), "the file has closes only; open = high = low = close"),
    "stale": Kind(_ROWS, "a run of bars that repeat the one before"),
    "outlier": Kind(_ROWS, "a return far outside the usual ones; real crashes look like this"),
    "range_outlier": Kind(_ROWS, "high / low far outside the usual"),
    "gap": Kind(("keep", "refuse"), "bars that the calendar expects are absent"),
    "hole": Kind(("keep", "refuse"), "a year or more without a bar"),
    "off_session": Kind(_ROWS, "a bar at a time at which the calendar is closed"),
    "short_history": Kind(("keep", "refuse"), "the asset has far fewer bars than the others"),
    "many_dropped": Kind(("refuse", "keep"), "so many rows were dropped that the file was probably read wrongly"),
}


@dataclass(frozen=True, slots=True)
class Finding:
    """``count`` rows (or missing bars) of one kind for one asset; ``timestamps`` are the first few, ISO, UTC."""

    kind: str
    symbol: str
    count: int
    timestamps: tuple[str, ...]
    policy: str
    detail: str

    def __str__(self) -> str:
        first = f", first at {self.timestamps[0]}" if self.timestamps else ""
        return f"{self.symbol}: {self.count} x {self.kind}{first} ({self.detail})"


@dataclass(frozen=True, slots=True)
class SymbolSummary:
    """Rows of one asset before and after validation, and its first and last time that was kept (ISO, UTC)."""

    symbol: str
    rows_read: int
    rows_kept: int
    first: str
    last: str


@dataclass(frozen=True, slots=True)
class ValidationReport:
    """The result of validating one source. ``median_spread_bps`` is (ask - bid) / mid in basis points, None without
    quotes."""

    source: str
    path: str | None
    calendar: str
    bar_seconds: int
    symbols: tuple[SymbolSummary, ...]
    findings: tuple[Finding, ...]
    median_spread_bps: float | None

    @property
    def rows_read(self) -> int:
        return sum(item.rows_read for item in self.symbols)

    @property
    def rows_kept(self) -> int:
        return sum(item.rows_kept for item in self.symbols)

    @property
    def rows_dropped(self) -> int:
        return self.rows_read - self.rows_kept

    @property
    def refused(self) -> tuple[Finding, ...]:
        """The findings whose policy is to refuse; load_bars raises when there is one."""
        return tuple(finding for finding in self.findings if finding.policy == "refuse")

    def of_kind(self, kind: str) -> tuple[Finding, ...]:
        """The findings of one kind, in the order of the symbols."""
        return tuple(finding for finding in self.findings if finding.kind == kind)

    def to_dict(self) -> dict[str, Any]:
        """Plain values with stable keys, for JSON."""
        return {
            "source": self.source,
            "path": self.path,
            "ok": not self.refused,
            "calendar": self.calendar,
            "bar_seconds": self.bar_seconds,
            "rows_read": self.rows_read,
            "rows_kept": self.rows_kept,
            "rows_dropped": self.rows_dropped,
            "median_spread_bps": self.median_spread_bps,
            "symbols": [
                {
                    "symbol": s.symbol,
                    "rows_read": s.rows_read,
                    "rows_kept": s.rows_kept,
                    "first": s.first,
                    "last": s.last,
                }
                for s in self.symbols
            ],
            "findings": [
                {
                    "kind": f.kind,
                    "symbol": f.symbol,
                    "count": f.count,
                    "timestamps": list(f.timestamps),
                    "policy": f.policy,
                    "detail": f.detail,
                }
                for f in self.findings
            ],
        }

    def table_rows(self) -> list[tuple[str, str, str, str, str, str]]:
        """(symbol, kind, count, policy, first time, detail) for each finding, as text."""
        return [
            (f.symbol, f.kind, f"{f.count:,}", f.policy, f.timestamps[0] if f.timestamps else "", f.detail)
            for f in self.findings
        ]

    def raise_if_refused(self) -> None:
        """DataError naming the first refused finding and the option that lets it pass."""
        if self.refused:
            finding = self.refused[0]
            more = f" and {len(self.refused) - 1} more refused findings" if len(self.refused) > 1 else ""
            others = [policy for policy in KINDS[finding.kind].policies if policy != "refuse"]
            raise DataError(
                f"{self.path or self.source}: {finding}{more}",
                f"repair the data, or set data.policies.{finding.kind}={'|'.join(others)}",
            )


def resolve_policies(policies: Mapping[str, str]) -> dict[str, str]:
    """The policy of every kind: the default, or what ``policies`` says. DataError for an unknown kind or policy."""
    for kind, policy in policies.items():
        if kind not in KINDS:
            raise DataError(f"data.policies.{kind} is not a kind of finding", f"use one of {', '.join(KINDS)}")
        if policy not in KINDS[kind].policies:
            raise DataError(
                f"data.policies.{kind}={policy!r} is not a policy", f"use one of {', '.join(KINDS[kind].policies)}"
            )
    return {kind: policies.get(kind, rule.policies[0]) for kind, rule in KINDS.items()}


def iso(stamps: np.ndarray) -> tuple[str, ...]:
    """The first few of [n] datetime64[ns] as ISO texts to the second."""
    return tuple(str(stamp) for stamp in stamps[:SHOWN_TIMESTAMPS].astype("datetime64[s]"))
