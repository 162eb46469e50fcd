import zipfile
from pathlib import Path

import numpy as np
import pytest

from trade_agent.errors import DataError

EQUITY = (
    "20200102 00:00,1000000,1100000,900000,1050000,100\n"
    "20200103 00:00,1040000,1100000,900000,1000000,100\n"
    "20200106 00:00,500000,550000,450000,520000,220\n"
    "20200107 00:00,520000,560000,510000,550000,200\n"
)
QUOTES = (
    "20200102 00:00,1.10,1.20,1.00,1.15,0,1.12,1.22,1.02,1.17,0\n"
    "20200102 01:00,1.15,1.20,1.00,1.10,0,1.17,1.22,1.02,1.14,0\n"
)


def pack(folder: Path, name: str, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}.csv", text)
    return path


def test_factor_rows_hold_up_to_and_including_their_date(tmp_path, load):
    path = pack(tmp_path, "abc", EQUITY)
    # 2 for 1 on the 6th (raw price halves), and a dividend that takes 10 % off everything before the 3rd.
    (tmp_path / "factor_abc.csv").write_text("20200102,0.9,0.5,1\n20200103,1,0.5,1\n20501231,1,1,0\n")
    bars, report = load(source="lean", path=str(path), calendar="XNYS")
    assert bars.symbols == ("ABC",)
    np.testing.assert_allclose(bars.close[:, 0], [105 * 0.45, 50, 52, 55], rtol=1e-15)
    np.testing.assert_allclose(bars.volume[:, 0], [200, 200, 220, 200], rtol=1e-15)
    assert [(f.kind, f.count, f.timestamps) for f in report.of_kind("split")] == [
        ("split", 1, ("2020-01-06T00:00:00",))
    ]
    raw, report = load(source="lean", path=str(path), calendar="XNYS", adjust=False)
    assert raw.close[:, 0].tolist() == [105.0, 100.0, 52.0, 55.0]
    assert report.of_kind("unadjusted_split")[0].count == 1


def test_own_tree_of_lean_and_missing_factors(tmp_path, load):
    path = pack(tmp_path / "equity/usa/daily", "abc", EQUITY)
    _, report = load(source="lean", path=str(path))
    assert report.of_kind("not_adjusted")[0].symbol == "ABC"
    (tmp_path / "equity/usa/factor_files").mkdir()
    (tmp_path / "equity/usa/factor_files/abc.csv").write_text("20200103,1,0.5,1\n20501231,1,1,0\n")
    bars, report = load(source="lean", path=str(path))
    assert bars.close[0, 0] == 52.5
    assert not report.of_kind("not_adjusted")


def test_quotes_have_sides_and_no_scale(tmp_path, load):
    path = str(pack(tmp_path, "eurusd", QUOTES))
    bars, report = load(source="lean", path=path)
    np.testing.assert_allclose(bars.close[:, 0], [1.16, 1.12], rtol=1e-15)
    # Spreads of 2 and 4 cents on 1.16 and 1.12: 172.4 and 357.1 basis points, their median is the mean of both.
    assert report.median_spread_bps == pytest.approx((200 / 1.16 + 400 / 1.12) / 2, rel=1e-9)
    assert bars.bar_seconds == 3600
    assert load(source="lean", path=path, price_side="ask")[0].close[1, 0] == 1.14
    assert load(source="lean", path=path, price_side="bid")[0].high[0, 0] == 1.20


def test_negative_spread_is_dropped(tmp_path, load):
    days = "".join(QUOTES.replace("20200102", f"2020010{day}") for day in (3, 6, 7))
    path = str(pack(tmp_path, "eurusd", QUOTES.replace(",1.14,0", ",1.09,0") + days))
    bars, report = load(source="lean", path=path)
    assert report.of_kind("negative_spread")[0].timestamps == ("2020-01-02T01:00:00",)
    assert bars.num_bars == 7


def test_crypto_trades_are_not_scaled(tmp_path, load):
    text = "20200102 00:00,7000,7100,6900,7050,1.5\n20200102 01:00,7050,7100,7000,7100,2.5\n"
    path = pack(tmp_path / "crypto/coinbase/hour", "btcusd_trade", text)
    bars, _ = load(source="lean", path=str(path))
    assert bars.symbols == ("BTCUSD",)
    assert bars.close[:, 0].tolist() == [7050.0, 7100.0]


def test_folder_and_symbols(tmp_path, load):
    for name in ("abc", "xyz"):
        pack(tmp_path, name, EQUITY)
    assert load(source="lean", path=str(tmp_path))[0].symbols == ("ABC", "XYZ")
    assert load(source="lean", path=str(tmp_path), symbols=["XYZ"])[0].symbols == ("XYZ",)
    with pytest.raises(DataError, match=r"nothing for symbols.*it has ABC, XYZ"):
        load(source="lean", path=str(tmp_path), symbols=["IBM"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("34200000,1,2,1,2,3\n", "not a daily or hourly LEAN time"),
        ("20200102 00:00,1,2,1\n", "has 4 columns"),
    ],
)
def test_other_files_are_refused(tmp_path, load, text, message):
    with pytest.raises(DataError, match=message):
        load(source="lean", path=str(pack(tmp_path, "abc", text)))


def test_broken_factor_file(tmp_path, load):
    path = pack(tmp_path, "abc", EQUITY)
    (tmp_path / "factor_abc.csv").write_text("date,price,split\n")
    with pytest.raises(DataError, match=r"not a LEAN factor file"):
        load(source="lean", path=str(path))
