"""Real market files of other people, through all four stages. One series of each format here; skipped where absent."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared/data"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data is not beside the project"),
]

SERIES = {
    "bokeh_us_daily/stocks.csv.gz": ["data=csv", "data.symbols=[MSFT]"],
    "lean_us_daily/spy.zip": ["data=lean"],
    "gymanytrading_eurusd_1h/FOREX_EURUSD_1H_ASK.csv": ["data=csv"],
    "trademaster_shfe_5m/data.csv": ["data=csv", "data.symbols=[FU2305]"],
}
# Long series: the same code, minutes of backtests.
LONG_SERIES = {
    "coinbase_btcusd_1h/Coinbase_BTCUSD_1h.csv": ["data=csv"],
    "nautilus_btcperp_1m/btc-perp-20211231-20220201_1m.csv": ["data=csv"],
    "lean_oanda_eurusd_hour/eurusd.zip": ["data=lean"],
}


def train(folder: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "train.py"), "trainer=smoke", *overrides]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


@pytest.mark.parametrize("file", SERIES)
def test_all_four_stages_train_on_a_real_series(tmp_path: Path, file: str) -> None:
    done = train(tmp_path, "stage=ensemble", f"data.path={SHARED / file}", *SERIES[file])
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1].startswith("model_id: ensemble_v1.0.0_grade_")
    for stage in ("cnn_lstm", "ppo", "sac", "td3", "hybrid_ppo", "hybrid_sac", "hybrid_td3"):
        assert f"training {stage}" in done.stderr


@pytest.mark.parametrize("file", LONG_SERIES)
def test_a_long_series_trains(tmp_path: Path, file: str) -> None:
    done = train(tmp_path, "stage=rl", "model=ppo", f"data.path={SHARED / file}", *LONG_SERIES[file])
    assert done.returncode == 0, done.stderr[-3000:]


def test_a_series_that_is_too_short_says_why(tmp_path: Path) -> None:
    path = SHARED / "bokeh_us_daily/stocks.csv.gz"
    done = train(tmp_path, "stage=ensemble", "data=csv", f"data.path={path}", "data.symbols=[FB]")
    assert done.returncode == 2
    assert "FB has 196 bars, at least 900 are needed" in done.stderr
