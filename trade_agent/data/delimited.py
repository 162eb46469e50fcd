"""Delimited text of unknown dialect -> a frame of named columns, with nothing interpreted yet but the header."""

import csv
import io
import re
from collections import Counter
from dataclasses import dataclass

import pandas as pd

from trade_agent.data.columns import is_field_name, price_word
from trade_agent.errors import DataError

DELIMITERS = (";", "\t", "|", ",")
_HEAD_LINES = 60
_NUMBER = re.compile(r"[-+]?[$€£]?\s?(\d[\d.,]*|\.\d+)([eE][-+]?\d+)?%?")
_TIME = re.compile(
    r"\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}.*|\d{8}[ T].*|\d{1,2}:\d{2}.*"
    r"|\d{1,2}[- ][A-Za-z]{3,9}[- ]\d{4}.*|[A-Za-z]{3,9} \d{1,2}, \d{4}.*"
)


@dataclass(frozen=True, slots=True)
class Dialect:
    """delimiter; column names; how many lines come before the data; whether the names are positions '0', '1', ..."""

    delimiter: str
    names: tuple[str, ...]
    skip_lines: int
    headerless: bool


def decode(data: bytes, name: str) -> str:
    """The text of a file in UTF-8 or UTF-16 (with or without byte order mark) or, failing that, Windows-1252."""
    for encoding in ("utf-16",) if data[:2] in (b"\xff\xfe", b"\xfe\xff") else ("utf-8-sig", "cp1252"):
        try:
            return data.decode(encoding)
        except UnicodeDecodeError:
            continue
    raise DataError(f"{name} is not text", "use source parquet or feather for binary files, or save it as UTF-8")


def sniff(text: str, *, delimiter: str | None, name: str) -> Dialect:
    """Delimiter, header and first line of data, from the first lines of the text. DataError when it is not a table."""
    lines = text[:200_000].splitlines()[:_HEAD_LINES]
    candidates = (delimiter,) if delimiter else DELIMITERS
    best: tuple[int, str, list[list[str]]] | None = None
    for candidate in candidates:
        rows = _cells(lines, candidate)
        width = _width(rows)
        agreeing = sum(len(row) == width for row in rows if _is_data(row)) if width > 1 else 0
        # A comma may be a decimal mark inside another dialect, so it comes last and must do strictly better.
        if agreeing and (best is None or agreeing > best[0]):
            best = (agreeing, candidate, rows)
    if best is None:
        raise DataError(
            f"{name} holds no rows of numbers in columns", "set data.delimiter, or check that the file is a table"
        )
    rows = best[2]
    width = _width(rows)
    first = next(i for i, row in enumerate(rows) if _is_data(row) and len(row) == width)
    header = [row for row in rows[:first] if len(row) == width and not row[0].startswith("#")]
    if not header and first and rows[first - 1] and _header_like(rows[first - 1]):
        raise DataError(
            f"{name}: the header has {len(rows[first - 1])} columns and the data {width}", "repair the header line"
        )
    if not header:
        return Dialect(best[1], tuple(str(i) for i in range(width)), first, headerless=True)
    return Dialect(best[1], _unique(_header_names(header)), first, headerless=False)


def read_table(text: str, dialect: Dialect, *, name: str) -> pd.DataFrame:
    """The data lines with columns ``dialect.names``: prices and volumes as numbers where all of them are, the rest as
    text."""
    numeric = [column for column in dialect.names if price_word(column.rsplit(" ", 1)[-1]) or price_word(column)]
    missing = ["", "nan", "NaN", "NAN", "null", "NULL", "None", "NA", "N/A", "n/a", "-", "."]
    body = text.split("\n", dialect.skip_lines)[-1] if dialect.skip_lines else text
    try:
        return pd.read_csv(
            io.StringIO(body),
            sep=dialect.delimiter,
            header=None,
            names=list(dialect.names),
            index_col=False,
            # A symbol may read NA or TRUE, a time of day 0930, a Chinese stock 000001: text stays text.
            dtype={column: str for column in dialect.names if column not in numeric},
            keep_default_na=False,
            na_values=dict.fromkeys(numeric, missing),
            skipinitialspace=True,
            low_memory=False,
        )
    except (pd.errors.ParserError, pd.errors.EmptyDataError, ValueError) as error:
        raise DataError(
            f"{name} cannot be read as a table: {str(error).splitlines()[0]}", "repair that line or set data.delimiter"
        ) from error


def _cells(lines: list[str], delimiter: str) -> list[list[str]]:
    # One row a line: a quoted line break does not occur in price files, and skip_lines counts lines.
    return [[cell.strip() for cell in next(csv.reader([line], delimiter=delimiter), [])] for line in lines]


def _width(rows: list[list[str]]) -> int:
    """The most common number of cells in a line of data, 0 when there is no such line."""
    return max(Counter(len(row) for row in rows if _is_data(row)).items(), key=lambda item: item[1], default=(0, 0))[0]


def _is_data(row: list[str]) -> bool:
    """Has a time or number among its first two cells and a number elsewhere; a header has neither."""
    filled = [bool(_NUMBER.fullmatch(cell)) for cell in row]
    timed = [bool(_TIME.fullmatch(cell)) for cell in row]
    starts = any(filled[:2]) or any(timed)
    return len(row) > 1 and starts and sum(filled) + sum(timed) >= 2


def _header_like(row: list[str]) -> bool:
    return sum(is_field_name(cell) for cell in row) >= 2


def _header_names(rows: list[list[str]]) -> list[str]:
    """One name a column from the last header line, or from two levels (fields above or below symbols, as yfinance
    writes)."""
    # The third line of such a file names the index only: 'Date,,,'.
    index_name = ""
    if len(rows) > 1 and rows[-1][0] and not any(rows[-1][1:]):
        index_name, rows = rows[-1][0], rows[:-1]
    if len(rows) >= 2:
        upper, lower = rows[-2][1:], rows[-1][1:]
        for fields, symbols in ((upper, lower), (lower, upper)):
            two_levels = all(symbols) and not any(price_word(cell) for cell in symbols)
            if two_levels and all(price_word(cell) for cell in fields):
                pairs = zip(symbols, fields, strict=True)
                return [index_name or "Date", *(f"{symbol} {field}" for symbol, field in pairs)]
    return rows[-1]


def _unique(names: list[str]) -> tuple[str, ...]:
    """Repeated names get .1, .2, ...: recognition then sees two columns where there are two."""
    seen: dict[str, int] = {}
    out = []
    for name in names:
        count = seen.get(name, 0)
        seen[name] = count + 1
        out.append(f"{name}.{count}" if count else name)
    return tuple(out)
