import gzip
import zipfile

import numpy as np
import pandas as pd
import pytest

from trade_agent.errors import DataError

# Four days; every dialect below must give exactly these bars.
ROWS = [
    ("2021-01-04", 10.0, 12.0, 9.0, 11.0, 1000.0),
    ("2021-01-05", 11.0, 13.5, 10.5, 12.25, 2000.0),
    ("2021-01-06", 12.25, 12.5, 11.0, 11.5, 1500.0),
    ("2021-01-07", 11.5, 14.0, 11.25, 13.75, 500.0),
]


def text(header: str | None, *, sep: str = ",", time=str, rows=ROWS, decimal: str = ".") -> str:
    lines = [] if header is None else [header]
    for day, *numbers in rows:
        lines.append(sep.join([time(day), *(str(number).replace(".", decimal) for number in numbers)]))
    return "\n".join(lines) + "\n"


def check(bars) -> None:
    assert bars.timestamps.astype("datetime64[D]").astype(str).tolist() == [row[0] for row in ROWS]
    got = np.stack([bars.open, bars.high, bars.low, bars.close, bars.volume], axis=-1)[:, 0]
    np.testing.assert_array_equal(got, np.array([row[1:] for row in ROWS]))


@pytest.mark.parametrize(
    "content",
    [
        text("Date,Open,High,Low,Close,Volume"),
        text("timestamp;open;high;low;close;volume", sep=";"),
        text("date\to\th\tl\tc\tvol", sep="\t"),
        text("datetime|OPEN|HIGH|LOW|CLOSE|VOL", sep="|"),
        text("time;open;high;low;close;volume", sep=";", decimal=","),
        text(None),
        text(None, sep=";"),
        text(None, time=lambda day: day.replace("-", "") + ",00:00"),
        text("<DATE>\t<TIME>\t<OPEN>\t<HIGH>\t<LOW>\t<CLOSE>\t<VOL>", sep="\t", time=lambda d: d + "\t00:00:00"),
        text("date,open,high,low,close,volume", rows=ROWS[::-1]),
        "Downloaded from example.org,on Monday\n" + text("date,open,high,low,close,volume"),
        "# made by hand\n\n" + text("date,open,high,low,close,volume"),
        text("unix,open,high,low,close,volume", time=lambda day: str(pd.Timestamp(day).value // 10**9)),
        text("open_time,open,high,low,close,volume", time=lambda day: str(pd.Timestamp(day).value // 10**6)),
        text("ts,open,high,low,close,volume", time=lambda day: str(pd.Timestamp(day).value // 10**3)),
        text("ts,open,high,low,close,volume", time=lambda day: str(pd.Timestamp(day).value)),
        text("date,1. open,2. high,3. low,4. close,5. volume"),
        text("unix,date,open,high,low,close,volume", time=lambda d: f"{pd.Timestamp(d).value // 10**9},{d}"),
        "\ufeff" + text("date,open,high,low,close,volume"),
        text("date,open,high,low,close,volume").replace("\n", "\r\n"),
    ],
)
def test_dialects(load_text, content):
    bars, report = load_text(content)
    check(bars)
    assert bars.symbols == ("ACME",)
    assert not [f for f in report.findings if f.kind != "short_history"]


def test_other_numbers_and_names(load_text):
    content = (
        'Date,Price,Open,High,Low,Vol.,Change %\n"Jan 05, 2021","1,012.50","$1,011",1013.5,1010.5,1.2K,0.5%\n'
        '"Jan 04, 2021","1,011.00",1010,1012,1009,0.5M,-\n'
    )
    bars, _ = load_text(content)
    assert bars.close[:, 0].tolist() == [1011.0, 1012.5]
    assert bars.open[:, 0].tolist() == [1010.0, 1011.0]
    assert bars.volume[:, 0].tolist() == [500_000.0, 1200.0]


def test_long_file_keeps_symbols_as_text(load_text):
    content = "date,ticker,open,high,low,close,volume\n" + "".join(
        f"{day},{symbol},{o},{h},{low},{c},{v}\n"
        for symbol in ("NA", "000001", "TRUE")
        for day, o, h, low, c, v in ROWS
    )
    bars, _ = load_text(content)
    assert bars.symbols == ("000001", "NA", "TRUE")
    assert load_text(content, symbols=["TRUE", "na"])[0].symbols == ("TRUE", "na")
    with pytest.raises(DataError, match=r"no bars of IBM; it has 000001, NA, TRUE"):
        load_text(content, symbols=["IBM"])


def test_single_asset_takes_the_name_asked_for_only_when_the_file_gives_none(load_text):
    assert load_text(text("date,open,high,low,close,volume"), symbols=["XYZ"])[0].symbols == ("XYZ",)
    named = "date,symbol,open,high,low,close\n2021-01-04,ACME,1,1,1,1\n2021-01-05,ACME,2,2,2,2\n"
    with pytest.raises(DataError, match=r"no bars of XYZ"):
        load_text(named, symbols=["XYZ"])


@pytest.mark.parametrize("shape", ["{s}_{f}", "{f}_{s}", "{s} {f}", "{s}.{f}"])
def test_wide_columns(load_text, shape):
    fields = ("Open", "High", "Low", "Close", "Volume")
    header = ",".join(["Date", *(shape.format(s=s, f=f) for s in ("AAA", "BRK_B") for f in fields)])
    body = "".join(
        ",".join([day, *map(str, numbers), *(["" for _ in numbers] if i == 1 else [str(2 * n) for n in numbers])])
        + "\n"
        for i, (day, *numbers) in enumerate(ROWS)
    )
    bars, _ = load_text(header + "\n" + body)
    assert bars.symbols == ("AAA", "BRK_B")
    assert bars.tradable[:, 1].tolist() == [True, False, True, True]
    assert bars.close[3].tolist() == [13.75, 27.5]
    assert np.isnan(bars.close[1, 1])


def test_two_level_header_as_yfinance_writes_it(load_text):
    fields = ("Close", "High", "Low", "Open", "Volume")
    lines = [
        "Price," + ",".join(f for f in fields for _ in range(2)),
        "Ticker," + ",".join(["AAA", "BBB"] * 5),
        "Date" + "," * 10,
    ]
    for day, o, h, low, c, v in ROWS:
        lines.append(",".join([day, *(str(k * x) for x in (c, h, low, o, v) for k in (1, 10))]))
    bars, _ = load_text("\n".join(lines) + "\n")
    assert bars.symbols == ("AAA", "BBB")
    assert bars.close[:, 1].tolist() == [110.0, 122.5, 115.0, 137.5]
    assert bars.open[:, 0].tolist() == [10.0, 11.0, 12.25, 11.5]


def test_close_only_and_panel_of_closes(load_text):
    bars, report = load_text("date,price\n2021-01-04,5\n2021-01-05,6\n2021-01-06,7\n")
    assert (bars.open == bars.close).all()
    assert (bars.high == bars.low).all()
    assert bars.volume.tolist() == [[0.0], [0.0], [0.0]]
    assert [f.kind for f in report.findings] == ["close_only", "missing_volume"]
    bars, _ = load_text("date,AAA,BBB\n2021-01-04,5,50\n2021-01-05,6,60\n")
    assert bars.symbols == ("AAA", "BBB")
    assert bars.close.tolist() == [[5.0, 50.0], [6.0, 60.0]]


def test_bid_and_ask_columns(load_text):
    names = ",".join(f"{side}_{f}" for side in ("bid", "ask") for f in ("open", "high", "low", "close"))
    content = f"time,{names}\n2021-01-04 10:00,1,2,1,1.5,1.2,2.2,1.2,1.7\n2021-01-04 11:00,1.5,2,1,1,1.7,2.2,1.2,1.2\n"
    closes = {side: load_text(content, price_side=side)[0].close[:, 0] for side in ("mid", "bid", "ask")}
    np.testing.assert_allclose(closes["mid"], [1.6, 1.1], rtol=1e-15)
    assert closes["bid"].tolist() == [1.5, 1.0]
    assert closes["ask"].tolist() == [1.7, 1.2]
    with pytest.raises(DataError, match=r"data.price_side='last'"):
        load_text(content, price_side="last")


def test_containers(tmp_path, load):
    content = text("date,open,high,low,close,volume")
    packed = tmp_path / "ACME.csv.gz"
    packed.write_bytes(gzip.compress(content.encode()))
    check(load(path=str(packed))[0])
    archive = tmp_path / "ACME.zip"
    with zipfile.ZipFile(archive, "w") as out:
        out.writestr("ACME.csv", content)
        out.writestr("__notes.md", "no table")
    check(load(path=str(archive))[0])
    utf16 = tmp_path / "MT5.csv"
    utf16.write_text(content, encoding="utf-16")
    check(load(path=str(utf16))[0])
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in ("BBB", "AAA"):
        (folder / f"{name}.csv").write_text(content)
    assert load(path=str(folder))[0].symbols == ("AAA", "BBB")


@pytest.mark.parametrize("kind", ["parquet", "feather"])
def test_binary_tables(tmp_path, load, kind):
    path = tmp_path / f"ACME.{kind}"
    table = pd.DataFrame(ROWS, columns=["Date", "Open", "High", "Low", "Close", "Volume"])
    table["Date"] = pd.to_datetime(table["Date"])

    def write(frame):
        frame.to_parquet(path) if kind == "parquet" else frame.to_feather(path)
        return load(source=kind, path=str(path))[0]

    check(write(table))
    check(write(table.assign(Date=table["Date"].dt.tz_localize("America/New_York"))))
    if kind == "parquet":
        check(write(table.set_index("Date")))
        wide = table.set_index("Date")
        wide.columns = pd.MultiIndex.from_product([wide.columns, ["AAA"]])
        bars = write(wide)
        check(bars)
        assert bars.symbols == ("AAA",)


@pytest.mark.parametrize(
    ("content", "changes", "message"),
    [
        (
            "date,open,high,low,close,Volume BTC,Volume USD\n{r},1,1",
            {},
            r"2 columns.*volume.*data.columns.volume='Volume BTC'",
        ),
        ("date,open,high,low,close,Close\n{r},2", {}, r"2 columns could hold the close.*data.columns.close="),
        ("date,open,high,low,close,close_eur\n{r},2", {}, r"2 columns could hold the close.*data.columns.close="),
        (
            "date,timestamp,open,high,low,close\n2021-01-04,{r}",
            {},
            r"2 columns could hold the time.*data.columns.time=",
        ),
        ("date,open,high,low,foo\n{r}", {}, r"no close column.*data.columns.close="),
        ("foo,open,high,low,close\n{r}", {}, r"no time column.*data.columns.time="),
        ("date,low,close\n2021-01-04,1,2", {}, r"no open and no high column"),
        ("date,code,name,open,high,low,close\n2021-01-04,a,b,1,1,1,1", {}, r"data.symbol_column='code'"),
        ("{r},7,8", {}, r"has no header.*data.columns.time=0 data.columns.close=4"),
        ("2021-01-04,1,0.5,2,1\n2021-01-05,1,0.5,2,1", {}, "has no header"),
        ("date,open,high,low,close\n2021-01-04,1,2,1,n.a.?", {}, r"column close: 'n.a.\?' in row 1"),
        ("date;open;high;low;close\n2021-01-04;1,100;1,200;1,100;1,150", {}, "decimal comma or with thousands"),
        ("hello\nworld\n", {}, "no rows of numbers"),
        ("", {}, "no rows of numbers"),
        ("date,open,high,low,close\n{r}", {"columns": {"close": "last"}}, "data.columns.close='last' is not a column"),
        ("date,open,high,low,close\n{r}", {"columns": {"closing": "close"}}, "data.columns.closing is not a field"),
        ("date,open,high,low,close\n{r}", {"symbol_column": "sym"}, "data.symbol_column='sym' is not a column"),
        ("01/02/2021,1,2,1,2\n02/02/2021,1,2,1,2", {}, "data.time_format"),
        ("date,open,high,low,close\n{r}\n2021-01-05,1,2,1,2\n2021-01-06,1,2,1,2,3,4", {}, "cannot be read as a table"),
    ],
)
def test_ambiguous_or_broken_is_refused_with_the_option(load_text, content, changes, message):
    with pytest.raises(DataError, match=message):
        load_text(content.replace("{r}", "2021-01-04,1,2,1,2"), **changes)


def test_options_settle_what_is_ambiguous(load_text):
    content = "date,open,high,low,close,Volume BTC,Volume USD\n2021-01-04,1,2,1,2,7,70\n2021-01-05,1,2,1,2,8,80\n"
    assert load_text(content, columns={"volume": "Volume USD"})[0].volume[:, 0].tolist() == [70.0, 80.0]
    klines = "1609459200000,1,3,1,2,10,1609462799999,20\n1609462800000,2,3,1,3,11,1609466399999,33\n"
    names = {"time": "0", "open": "1", "high": "2", "low": "3", "close": "4", "volume": "5"}
    bars, _ = load_text(klines, columns=names)
    assert bars.close[:, 0].tolist() == [2.0, 3.0]
    assert bars.timestamps[0] == np.datetime64("2021-01-01")
    assert load_text("01/02/2021,1,2,1,2\n02/02/2021,1,2,1,2", time_format="%m/%d/%Y")[0].bar_seconds == 31 * 86_400


def test_asset_under_an_unknown_name_is_not_taken_for_duplicates(load_text):
    content = "date,fund,open,high,low,close\n" + "".join(
        f"{day},{fund},{k * o},{k * h},{k * low},{k * c}\n"
        for day, o, h, low, c, _ in ROWS
        for k, fund in ((1, "x"), (2, "y"))
    )
    with pytest.raises(DataError, match=r"data.symbol_column='fund'"):
        load_text(content)
    assert load_text(content, symbol_column="fund")[0].symbols == ("x", "y")


def test_missing_files(load, tmp_path):
    with pytest.raises(DataError, match=r"data.path is empty.*data.path=FILE"):
        load(path=None)
    with pytest.raises(DataError, match=r"does not exist"):
        load(path=str(tmp_path / "none.csv"))
    with pytest.raises(DataError, match=r"has no file for source csv"):
        load(path=str(tmp_path))
    broken = tmp_path / "a.zip"
    broken.write_bytes(b"PK\x03\x04 no")
    with pytest.raises(DataError, match=r"cannot be read"):
        load(path=str(broken))
    with pytest.raises(DataError, match=r"not a parquet file"):
        load(source="parquet", path=str(broken))
