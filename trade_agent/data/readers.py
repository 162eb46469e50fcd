"""Files of the user's own: CSV (plain, .gz, .zip), Parquet and Feather, one file or a folder of them, -> one row per
bar and asset."""

import gzip
import re
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd

from trade_agent.data.columns import FIELDS, Layout, price_word, recognise
from trade_agent.data.delimited import decode, read_table, sniff
from trade_agent.data.frames import PRICE_SIDES, Note, SourceFrame, SourceRequest
from trade_agent.data.timestamps import parse_times
from trade_agent.errors import DataError

MAX_UNPACKED_BYTES = 4 * 2**30
_SUFFIXES = {
    "csv": (".csv", ".txt", ".tsv", ".csv.gz", ".txt.gz", ".zip"),
    "parquet": (".parquet", ".pq"),
    "feather": (".feather", ".arrow"),
}
_MULTIPLIERS = {"": 1.0, "K": 1e3, "M": 1e6, "B": 1e9}


def read_csv(request: SourceRequest) -> SourceFrame:
    """Delimited text. A folder or an archive with several tables holds one asset a file, named like the file, unless
    a column names it."""
    parts = []
    for path in files_of(request.path, "csv"):
        for name, data in _unpack(path):
            dialect = sniff(decode(data, name), delimiter=request.delimiter, name=name)
            table = read_table(decode(data, name), dialect, name=name)
            layout = (
                _positional_layout(table, request)
                if dialect.headerless
                else recognise(list(table.columns), columns=request.columns, symbol_column=request.symbol_column)
            )
            parts.append(
                to_bars(table, layout, request=request, asset=_stem(name), decimal_comma=dialect.delimiter != ",")
            )
    return _join(parts)


def read_parquet(request: SourceRequest) -> SourceFrame:
    """Parquet through pyarrow."""
    return _read_binary(request, "parquet")


def read_feather(request: SourceRequest) -> SourceFrame:
    """Feather (Arrow IPC) through pyarrow."""
    return _read_binary(request, "feather")


def files_of(path: str | None, source: str) -> list[Path]:
    """The file, or the folder's files with a suffix of the source, sorted. DataError when there is none."""
    if not path:
        raise DataError(f"data.path is empty and the source {source} reads a file", "set data.path=FILE")
    place = Path(path).expanduser()
    if place.is_file():
        return [place]
    if not place.is_dir():
        raise DataError(f"data.path={path} does not exist", "give an existing file or folder")
    found = sorted(item for item in place.iterdir() if item.is_file() and item.name.lower().endswith(_SUFFIXES[source]))
    if not found:
        raise DataError(
            f"the folder {path} has no file for source {source}", f"it reads {', '.join(_SUFFIXES[source])}"
        )
    return found


def _stem(name: str) -> str:
    return re.sub(r"(\.(csv|txt|tsv|gz|zip|parquet|pq|feather|arrow))+$", "", Path(name).name, flags=re.IGNORECASE)


def _unpack(path: Path) -> list[tuple[str, bytes]]:
    try:
        if path.suffix.lower() == ".zip":
            with zipfile.ZipFile(path) as archive:
                members = [
                    info for info in archive.infolist() if info.filename.lower().endswith((".csv", ".txt", ".tsv"))
                ]
                if not members:
                    raise DataError(f"{path} holds no csv, txt or tsv file", "pack the table as one of them")
                if sum(info.file_size for info in members) > MAX_UNPACKED_BYTES:
                    raise DataError(f"{path} unpacks to more than 4 GiB", "unpack it yourself, or use Parquet")
                return [(info.filename, archive.read(info)) for info in members]
        if path.suffix.lower() == ".gz":
            with gzip.open(path) as stream:
                data = stream.read(MAX_UNPACKED_BYTES + 1)
            if len(data) > MAX_UNPACKED_BYTES:
                raise DataError(f"{path} unpacks to more than 4 GiB", "unpack it yourself, or use Parquet")
            return [(path.name, data)]
        return [(path.name, path.read_bytes())]
    except (OSError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} cannot be read: {error}", "check that the file is complete and readable") from error


def _read_binary(request: SourceRequest, source: str) -> SourceFrame:
    parts = []
    for path in files_of(request.path, source):
        try:
            table = pd.read_parquet(path) if source == "parquet" else pd.read_feather(path)
        except (OSError, ValueError) as error:
            raise DataError(
                f"{path} is not a {source} file: {str(error).splitlines()[0]}", "check data.source and data.path"
            ) from error
        table = flatten(table)
        layout = recognise(list(table.columns), columns=request.columns, symbol_column=request.symbol_column)
        parts.append(to_bars(table, layout, request=request, asset=_stem(path.name), decimal_comma=False))
    return _join(parts)


def flatten(table: pd.DataFrame) -> pd.DataFrame:
    """One level of text column names ('AAPL Close' from two levels), and an index that means something as columns."""
    out = table.copy(deep=False)
    if isinstance(out.columns, pd.MultiIndex):
        levels = [[str(value) for value in level] for level in zip(*out.columns, strict=True)]
        first = 0 if all(price_word(value) for value in levels[0]) else 1
        out.columns = pd.Index(
            [f"{symbol} {field}" for symbol, field in zip(levels[1 - first], levels[first], strict=True)]
        )
    if not (isinstance(out.index, pd.RangeIndex) or (out.index.name is None and out.index.dtype.kind in "iu")):
        names = [str(name) if name is not None else "date" for name in out.index.names]
        out.index.names = names
        out = out.reset_index()
    out.columns = pd.Index([str(name) for name in out.columns])
    return out


def _positional_layout(table: pd.DataFrame, request: SourceRequest) -> Layout:
    """No header: time, (time of day,) open, high, low, close(, volume), or time and close; anything else needs
    data.columns.*"""
    names = list(table.columns)
    if "close" in request.columns:
        assets = {key: name for key, name in request.columns.items() if key != "time"}
        unknown = [f"data.columns.{k}={v}" for k, v in request.columns.items() if k not in FIELDS or v not in names]
        if unknown:
            raise DataError(
                f"{unknown[0]} fits no column", f"the file has no header: use positions 0 to {len(names) - 1}"
            )
        return Layout(time=(request.columns.get("time", "0"),), assets={"": assets}, symbol=request.symbol_column)
    clock = len(names) > 2 and bool(table[names[1]].astype(str).str.fullmatch(r"\d{1,2}:\d{2}(:\d{2})?").all())
    time = (names[0], names[1]) if clock else (names[0],)
    rest = [name for name in names[len(time) :] if name != request.symbol_column]
    fields = {1: ["close"], 4: ["open", "high", "low", "close"], 5: ["open", "high", "low", "close", "volume"]}.get(
        len(rest)
    )
    found = dict(zip(fields, rest, strict=True)) if fields else {}
    if not fields or ("high" in found and not _plausible(table, found)):
        raise DataError(
            f"the file has no header and its {len(names)} columns are not time, open, high, low, close, volume",
            "name them by position, e.g. data.columns.time=0 data.columns.close=4",
        )
    return Layout(time=time, assets={"": found}, symbol=request.symbol_column)


def _plausible(table: pd.DataFrame, found: dict[str, str]) -> bool:
    values = {name: pd.to_numeric(table[column], errors="coerce") for name, column in found.items()}
    others = (values["open"], values["close"])
    ordered = [(values["high"] >= other) & (values["low"] <= other) for other in others]
    return bool((ordered[0] & ordered[1]).mean() > 0.5)


def to_bars(
    table: pd.DataFrame, layout: Layout, *, request: SourceRequest, asset: str, decimal_comma: bool
) -> SourceFrame:
    """The table as one row per bar and asset, in the order of the file. ``asset``: the name where neither a column
    nor a wide header gives one."""
    symbols = None if layout.symbol is None else table[layout.symbol].astype(str).str.strip()
    stamps = parse_times(
        _time_values(table, layout), time_format=request.time_format, timezone=request.timezone, groups=symbols
    )
    notes: list[Note] = []
    parts = {}
    for symbol, fields in layout.assets.items():
        part = pd.DataFrame({"time": stamps, "symbol": symbol or asset})
        if symbols is not None:
            part["symbol"] = symbols.to_numpy()
        for name in FIELDS[1:]:
            if name in fields:
                part[name] = _numbers(table[fields[name]], fields[name], decimal_comma)
        if layout.other_volume and not symbol:
            part["other_volume"] = _numbers(table[layout.other_volume], layout.other_volume, decimal_comma)
        parts[symbol] = _complete(part, symbol or asset, notes)
    if symbols is None and len(layout.assets) == 1:
        _refuse_hidden_assets(table, layout, stamps)
    if {name.lower() for name in parts} == {"bid", "ask"}:
        sides = {name.lower(): part for name, part in parts.items()}
        return SourceFrame(
            one_side(sides["bid"].assign(symbol=asset), sides["ask"], request.price_side), notes, named=False
        )
    frame = pd.concat(parts.values(), ignore_index=True)
    if len(layout.assets) > 1:
        # A wide table has a cell for each asset and time; an empty one means that there is no bar.
        frame = frame[frame[["open", "high", "low", "close"]].notna().any(axis=1)].reset_index(drop=True)
    return SourceFrame(frame, notes, named=symbols is not None or "" not in layout.assets)


def one_side(bid: pd.DataFrame, ask: pd.DataFrame, side: str) -> pd.DataFrame:
    """Bars of the bid, the ask or their mean, with the spread (ask - bid) at open and close. The mean of two highs is
    an
    approximation of the high of the mean."""
    if side not in PRICE_SIDES:
        raise DataError(f"data.price_side={side!r} is not known", f"use one of {', '.join(PRICE_SIDES)}")
    out = bid.copy()
    for name in ("open", "high", "low", "close"):
        out[name] = {"bid": bid[name], "ask": ask[name], "mid": (bid[name] + ask[name]) / 2}[side]
    return out.assign(spread_open=ask["open"] - bid["open"], spread_close=ask["close"] - bid["close"])


def _time_values(table: pd.DataFrame, layout: Layout) -> pd.Series:
    values = table[layout.time[0]]
    if len(layout.time) == 1:
        return values
    clock = table[layout.time[1]].astype(str).str.strip()
    if not clock.str.fullmatch(r"\d{1,2}:?\d{2}(:?\d{2}(\.\d+)?)?").all():
        raise DataError(
            f"{layout.time[0]} and {layout.time[1]} both look like the time",
            f"name one: data.columns.time={layout.time[0]!r}",
        )
    return values.astype(str).str.strip() + " " + clock


def _complete(part: pd.DataFrame, symbol: str, notes: list[Note]) -> pd.DataFrame:
    """All five fields; a file with closes only gets open = high = low = close and a note."""
    absent = [name for name in ("open", "high", "low") if name not in part]
    if len(absent) == 3:
        notes.append(Note("close_only", symbol, len(part), "the file has closes only: open = high = low = close"))
        part = part.assign(open=part["close"], high=part["close"], low=part["close"])
    elif absent:
        raise DataError(f"{symbol}: no {' and no '.join(absent)} column", f"name it: data.columns.{absent[0]}=...")
    if "volume" not in part:
        part["volume"] = np.nan
    return part


def _refuse_hidden_assets(table: pd.DataFrame, layout: Layout, stamps: np.ndarray) -> None:
    """Several assets in rows under a column that is not recognised would look like duplicated bars."""
    if len(np.unique(stamps)) > 0.7 * len(stamps):
        return
    for name in layout.unused:
        if table[name].nunique() > 1 and table.groupby(name).size().max() <= len(np.unique(stamps)):
            raise DataError(
                f"most times occur more than once; the column {name} may name the asset",
                f"set data.symbol_column={name!r}",
            )


def _numbers(values: pd.Series, name: str, decimal_comma: bool) -> np.ndarray:
    """float64; reads '$1,234.5', '1.2M' and, in files not separated by commas, '1,05'. DataError for any other
    text."""
    if pd.api.types.is_numeric_dtype(values.dtype):
        return values.to_numpy(dtype=np.float64, na_value=np.nan).copy()
    texts = values.astype("str").str.strip()
    empty = values.isna() | texts.isin(["", "nan", "NaN", "null", "None", "NA", "N/A", "-", "."])
    cleaned = texts.str.replace(r"[$€£\s]", "", regex=True)
    commas = cleaned[~empty & cleaned.str.contains(",", regex=False)]
    if decimal_comma and len(commas) and not commas.str.contains(".", regex=False).any():
        if commas.str.fullmatch(r"\d{1,3}(,\d{3})+").all():
            raise DataError(
                f"{name}: {commas.iloc[0]!r} can be read with a decimal comma or with thousands",
                "write the file with decimal points",
            )
        cleaned = cleaned.str.replace(",", ".", regex=False)
    cleaned = cleaned.str.replace(",", "", regex=False)
    parts = cleaned.str.extract(r"^([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)([KMB]?)$")
    bad = parts[0].isna() & ~empty
    if bad.any():
        row = int(np.flatnonzero(bad)[0]) + 1
        raise DataError(
            f"column {name}: {texts[bad].iloc[0]!r} in row {row} of the data is not a number",
            "repair it or name another column: data.columns.*",
        )
    return parts[0].astype(float).to_numpy() * parts[1].fillna("").map(_MULTIPLIERS).to_numpy(dtype=np.float64)


def _join(parts: list[SourceFrame]) -> SourceFrame:
    if len(parts) == 1:
        return parts[0]
    return SourceFrame(
        pd.concat([part.frame for part in parts], ignore_index=True), [note for part in parts for note in part.notes]
    )
