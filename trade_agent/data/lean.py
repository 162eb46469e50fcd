"""QuantConnect LEAN files: a zip with one headerless csv, daily or hourly.

Equity: time, open, high, low, close in 1/10,000 of a dollar, volume, not adjusted; a factor file beside it gives date,
price factor, split factor, reference price, each row valid up to and including its date. Forex and crypto quotes: time,
bid open, high, low, close, bid size, ask open, high, low, close, ask size, in plain prices. Crypto trades: time, open,
high, low, close, volume. Format: github.com/QuantConnect/Lean, Data/<security type>/readme.md.
"""

import io
import re
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd

from trade_agent.data.frames import Note, SourceFrame, SourceRequest
from trade_agent.data.readers import MAX_UNPACKED_BYTES, one_side
from trade_agent.data.timestamps import parse_times
from trade_agent.errors import DataError

PRICE_SCALE = 10_000.0
_PRICES = ["open", "high", "low", "close"]


def read_lean(request: SourceRequest) -> SourceFrame:
    """The bars of one zip, or of the zips of a folder (those of ``symbols`` where any are given)."""
    frames, notes = [], []
    for path in _zips(request):
        frame, found = _read_zip(path, request)
        frames.append(frame)
        notes.extend(found)
    return SourceFrame(pd.concat(frames, ignore_index=True), notes)


def _zips(request: SourceRequest) -> list[Path]:
    if not request.path:
        raise DataError(
            "data.path is empty and the source lean reads zip files", "set data.path=FILE.zip or a folder of them"
        )
    place = Path(request.path).expanduser()
    if place.is_file():
        return [place]
    found = sorted(place.glob("*.zip")) if place.is_dir() else []
    wanted = {symbol.lower() for symbol in request.symbols}
    chosen = [path for path in found if not wanted or path.stem.lower() in wanted]
    if not chosen:
        names = ", ".join(path.stem.upper() for path in found[:20]) or "no zip file"
        raise DataError(
            f"data.path={request.path} has nothing for symbols {sorted(request.symbols)}", f"it has {names}"
        )
    return chosen


def _read_zip(path: Path, request: SourceRequest) -> tuple[pd.DataFrame, list[Note]]:
    table = _table(path)
    symbol = re.sub(r"_(trade|quote)$", "", path.stem).upper()
    times = table[0].str.strip()
    if not times.str.fullmatch(r"(?:19|20)\d{6}( \d{2}:\d{2})?").all():
        raise DataError(
            f"{path}: {times.iloc[0]!r} is not a daily or hourly LEAN time", "use daily or hour files (20170131 00:00)"
        )
    layout = "%Y%m%d %H:%M" if times.str.len().gt(8).all() else "%Y%m%d"
    stamps = parse_times(times, time_format=layout, timezone=request.timezone)
    base = pd.DataFrame({"time": stamps, "symbol": symbol})
    if table.shape[1] == 11:
        numbers = _floats(path, table)
        bid, ask = (base.assign(**{name: numbers[first + i] for i, name in enumerate(_PRICES)}) for first in (1, 6))
        return one_side(bid.assign(volume=np.nan), ask, request.price_side), []
    if table.shape[1] != 6:
        raise DataError(f"{path} has {table.shape[1]} columns", "LEAN trade bars have 6 and quote bars 11")
    return _trades(path, table, base, symbol, request)


def _trades(
    path: Path, table: pd.DataFrame, base: pd.DataFrame, symbol: str, request: SourceRequest
) -> tuple[pd.DataFrame, list[Note]]:
    # Only equities are scaled, and they are written as whole numbers; in LEAN's own tree the folder settles it.
    folders = {part.lower() for part in path.resolve().parts}
    whole = all(pd.api.types.is_integer_dtype(table[i].dtype) for i in range(1, 5))
    scale = PRICE_SCALE if whole and not folders & {"crypto", "cryptofuture", "forex", "cfd"} else 1.0
    numbers = _floats(path, table)
    frame = base.assign(**{name: numbers[i + 1] / scale for i, name in enumerate(_PRICES)}, volume=numbers[5])
    factors = _factor_file(path) if scale != 1.0 else None
    if factors is None:
        wanted = scale != 1.0 and request.adjust
        detail = f"no factor file factor_{path.stem}.csv: prices stay raw"
        return frame, [Note("not_adjusted", symbol, len(frame), detail)] if wanted else []
    days = frame["time"].to_numpy().astype("datetime64[D]")
    # The first row whose date is not before the bar's.
    index = np.searchsorted(factors["date"].to_numpy().astype("datetime64[D]"), days, side="left")
    index = np.minimum(index, len(factors) - 1)
    price, split = factors["price"].to_numpy()[index], factors["split"].to_numpy()[index]
    return frame.assign(price_factor=price * split, split_factor=split), []


def _table(path: Path) -> pd.DataFrame:
    try:
        with zipfile.ZipFile(path) as archive:
            members = [info for info in archive.infolist() if info.filename.endswith(".csv")]
            if len(members) != 1 or members[0].file_size > MAX_UNPACKED_BYTES:
                raise DataError(f"{path} holds {len(members)} csv files", "a LEAN daily or hour zip holds exactly one")
            data = archive.read(members[0])
        return pd.read_csv(io.BytesIO(data), header=None, dtype={0: str})
    except (OSError, zipfile.BadZipFile, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise DataError(f"{path} cannot be read as a LEAN zip: {error}", "check data.source and data.path") from error


def _floats(path: Path, table: pd.DataFrame) -> pd.DataFrame:
    try:
        return table.iloc[:, 1:].astype(float)
    except ValueError as error:
        raise DataError(f"{path} is not a LEAN file: {error}", "check data.source and data.path") from error


def _factor_file(path: Path) -> pd.DataFrame | None:
    """factor_<symbol>.csv beside the zip, or factor_files/<symbol>.csv beside its folder as in LEAN's own tree."""
    for place in (path.with_name(f"factor_{path.stem}.csv"), path.parent.parent / "factor_files" / f"{path.stem}.csv"):
        if place.is_file():
            table = pd.read_csv(place, header=None, usecols=[0, 1, 2], names=["date", "price", "split"], dtype=str)
            dates = pd.to_datetime(table["date"], format="%Y%m%d", errors="coerce")
            values = table[["price", "split"]].apply(pd.to_numeric, errors="coerce")
            if dates.isna().any() or values.isna().any().any() or (values <= 0).any().any():
                raise DataError(
                    f"{place} is not a LEAN factor file", "each line is date, price factor, split factor, price"
                )
            return values.assign(date=dates).sort_values("date", ignore_index=True)
    return None
