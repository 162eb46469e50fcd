"""Column names of any common spelling -> the fields of a bar, for one asset, many in rows (long) or many in columns
(wide)."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from trade_agent.errors import DataError

FIELDS = ("time", "open", "high", "low", "close", "adj_close", "volume")
_SPELLINGS = {
    "time": (
        "time date datetime timestamp ts dt day opentime starttime bartime gmttime localtime utctime datetimeutc"
        " dateutc timeutc timestamputc tradedate tradingday unix unixtime unixtimestamp epoch timestampms datadate"
    ),
    "open": "open o openprice opening openingprice",
    "high": "high h highprice max highest",
    "low": "low l lowprice min lowest",
    "close": "close c closeprice closing closingprice closelast last lastprice price",
    "adj_close": "adjclose adjustedclose adjcloseprice closeadj closeadjusted adjustedcloseprice adjprice",
    "volume": "volume vol v",
}
_ALIASES = {spelling: name for name, spellings in _SPELLINGS.items() for spelling in spellings.split()}
_EPOCH_NAMES = ("unix", "unixtime", "unixtimestamp", "epoch", "timestampms", "opentime")
_SYMBOL_NAMES = ("symbol", "ticker", "sym", "tic", "instrument", "asset", "pair", "code", "tscode", "secid", "name")
# Words that stand beside a symbol in the name of a wide column; single letters would be mistaken for symbols.
_WIDE_WORDS = ("adj close", "adj_close", "adjclose", "adjusted close", "open", "high", "low", "close", "volume", "vol")
_TICKER = re.compile(r"[A-Z0-9][A-Z0-9.^=/_-]{0,14}")


@dataclass(frozen=True, slots=True)
class Layout:
    """Which columns hold what. ``time`` has two names where date and time of day are apart.

    ``assets`` maps a symbol to its columns ({field: column}); the symbol is "" when the rows name it (``symbol``) or
    nothing does.
    """

    time: tuple[str, ...]
    assets: dict[str, dict[str, str]]
    symbol: str | None = None
    other_volume: str | None = None
    unused: tuple[str, ...] = field(default=())


def simple(name: str) -> str:
    """'Adj Close' -> 'adjclose', '<DATE>' -> 'date', '1. open' -> 'open'."""
    return re.sub(r"^\d+", "", re.sub(r"[^a-z0-9]", "", name.lower()))


def is_field_name(name: str) -> bool:
    """True for a common spelling of a field of FIELDS or of a symbol column."""
    return simple(name) in _ALIASES or simple(name) in _SYMBOL_NAMES


def price_word(name: str) -> str | None:
    """The field that a header word names ('Adj Close' -> 'adj_close'), None for a word that is no price or volume."""
    found = _ALIASES.get(simple(name))
    return None if found == "time" else found


def recognise(names: Sequence[str], *, columns: Mapping[str, str], symbol_column: str | None) -> Layout:
    """The layout of a file with these column names; ``columns`` ({field: name}) and ``symbol_column`` overrule what
    is guessed.

    Raises DataError for an option that names no column, for a field that two columns could hold and for a missing
    time or close.
    """
    _check_options(names, columns, symbol_column)
    taken = set(columns.values()) | ({symbol_column} if symbol_column else set())
    free = [name for name in names if name not in taken]
    symbol = symbol_column or _symbol(free)
    free = [name for name in free if name != symbol]
    time = (columns["time"],) if "time" in columns else _time(free, names)
    free = [name for name in free if name not in time]
    if "close" not in columns and not any(
        _candidates(free, name, exact=True) for name in ("open", "high", "low", "close")
    ):
        wide = _wide(free)
        if wide:
            return Layout(time=time, assets=wide)
    found = {name: columns[name] for name in FIELDS[1:] if name in columns}
    for name in FIELDS[1:]:
        if name not in found:
            guess = _volume(free) if name == "volume" else _price(free, name)
            if guess is not None:
                found[name] = guess
    if "close" not in found:
        panel = {name: {"close": name} for name in free if _TICKER.fullmatch(name)}
        if panel and len(panel) == len(free) and not found:
            return Layout(time=time, assets=panel)
        raise DataError(f"no close column among {', '.join(names)}", "name it: data.columns.close=...")
    unused = tuple(name for name in free if name not in found.values())
    others = [name for name in unused if simple(name).startswith("vol")]
    return Layout(
        time=time,
        assets={"": found},
        symbol=symbol,
        other_volume=others[0] if len(others) == 1 else None,
        unused=unused,
    )


def _check_options(names: Sequence[str], columns: Mapping[str, str], symbol_column: str | None) -> None:
    for key, name in columns.items():
        if key not in FIELDS:
            raise DataError(f"data.columns.{key} is not a field", f"use one of {', '.join(FIELDS)}")
        if name not in names:
            raise DataError(
                f"data.columns.{key}={name!r} is not a column of the file", f"its columns are {', '.join(names)}"
            )
    if symbol_column is not None and symbol_column not in names:
        raise DataError(
            f"data.symbol_column={symbol_column!r} is not a column of the file", f"its columns are {', '.join(names)}"
        )


def _candidates(names: Sequence[str], target: str, *, exact: bool = False) -> list[str]:
    """Columns that could hold ``target``; exact: only those of a spelling in the table."""
    found = [name for name in names if _ALIASES.get(simple(name)) == target]
    if exact or target not in ("close", "volume"):
        return found
    # Close_EUR, Volume BTC, Quote Volume: a second reading of the same field, which must not be dropped in silence.
    stem = {"close": r"close(?!time|adj)", "volume": r"vol|.*volume$|tickvol"}[target]
    return [name for name in names if name in found or re.match(stem, simple(name))]


def _ambiguous(target: str, found: Sequence[str]) -> DataError:
    return DataError(
        f"{len(found)} columns could hold the {target}: {', '.join(found)}",
        f"name one: data.columns.{target}={found[0]!r}",
    )


def _price(names: Sequence[str], target: str) -> str | None:
    found = _candidates(names, target)
    # 'last' or 'price' beside a column called close is another figure; two that are called close are not.
    plain = [name for name in found if simple(name).startswith(target.replace("_", ""))] or found
    if len(plain) > 1:
        raise _ambiguous(target, plain)
    return plain[0] if plain else None


def _volume(names: Sequence[str]) -> str | None:
    found = _candidates(names, "volume")
    plain = [name for name in found if simple(name) == "volume"]
    if len(found) > 1 and len(plain) != 1:
        raise _ambiguous("volume", plain or found)
    best = plain or found
    return best[0] if best else None


def _symbol(names: Sequence[str]) -> str | None:
    found = [name for name in names if simple(name) in _SYMBOL_NAMES]
    first = [name for name in found if simple(name) in ("symbol", "ticker")] or found
    if len(first) > 1:
        raise DataError(
            f"{len(first)} columns could hold the symbol: {', '.join(first)}",
            f"name one: data.symbol_column={first[0]!r}",
        )
    return first[0] if first else None


def _time(free: Sequence[str], names: Sequence[str]) -> tuple[str, ...]:
    found = _candidates(free, "time")
    by_name = {simple(name): name for name in found}
    epochs = [name for name in found if simple(name) in _EPOCH_NAMES]
    if len(epochs) == 1:
        return (epochs[0],)
    if len(found) == 2 and set(by_name) == {"date", "time"}:
        return by_name["date"], by_name["time"]
    if len(found) > 1:
        raise DataError(
            f"{len(found)} columns could hold the time: {', '.join(found)}", f"name one: data.columns.time={found[0]!r}"
        )
    if not found:
        unnamed = [name for name in free if name == "" or name.startswith("Unnamed")]
        if len(unnamed) == 1:
            return (unnamed[0],)
        raise DataError(f"no time column among {', '.join(names)}", "name it: data.columns.time=...")
    return (found[0],)


def _wide(names: Sequence[str]) -> dict[str, dict[str, str]] | None:
    """{symbol: {field: column}} when the columns are called like AAPL_Close or Close AAPL, else None."""
    assets: dict[str, dict[str, str]] = {}
    words = "|".join(re.escape(word) for word in _WIDE_WORDS)
    for name in names:
        if simple(name) in _ALIASES:
            continue
        match = re.fullmatch(rf"(.+?)[_ .:|/-]({words})", name, re.IGNORECASE)
        symbol, word = (match[1], match[2]) if match else ("", "")
        if not match:
            match = re.fullmatch(rf"({words})[_ .:|/-](.+)", name, re.IGNORECASE)
            symbol, word = (match[2], match[1]) if match else ("", "")
        if match:
            target = _ALIASES[simple(word)]
            if target in assets.setdefault(symbol, {}):
                raise _ambiguous(target, [assets[symbol][target], name])
            assets[symbol][target] = name
    assets = {symbol: found for symbol, found in assets.items() if "close" in found}
    return assets or None
