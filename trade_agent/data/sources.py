"""The table of data sources: name -> function(SourceRequest) -> SourceFrame. A new source is one function and one
line here."""

import gzip
import hashlib
import io
from collections.abc import Callable
from importlib import resources

import numpy as np
import pandas as pd

from trade_agent.data.downloads import read_crypto, read_yahoo
from trade_agent.data.frames import SourceFrame, SourceRequest
from trade_agent.data.lean import read_lean
from trade_agent.data.readers import read_csv, read_feather, read_parquet
from trade_agent.data.synthetic import MARKETS, source
from trade_agent.errors import DataError

SAMPLE_SHA256 = "5abadf99b2d394f920120a27de6f0df129859d71d4cfb0bf661bcc99446ab1fd"
_SAMPLE_COLUMNS = ["symbol", "time", "open", "high", "low", "close", "volume", "adj_close"]


def read_sample(request: SourceRequest) -> SourceFrame:
    """The embedded daily bars of AAPL, FB, GOOG, IBM and MSFT, 2000 to 2013 (see sample/PROVENANCE.md). DataError
    when damaged."""
    data = resources.files("trade_agent.data").joinpath("sample/us_daily.csv.gz").read_bytes()
    if hashlib.sha256(data).hexdigest() != SAMPLE_SHA256:
        raise DataError(
            "the embedded sample trade_agent/data/sample/us_daily.csv.gz is damaged (sha256)", "reinstall trade-agent"
        )
    table = pd.read_csv(io.BytesIO(gzip.decompress(data)), header=0, names=_SAMPLE_COLUMNS)
    times = pd.to_datetime(table["time"], format="%Y-%m-%d").to_numpy().astype("datetime64[ns]")
    frame = table.assign(time=times, volume=table["volume"].astype(np.float64))
    return SourceFrame(frame, calendar="XNYS")


SOURCES: dict[str, Callable[[SourceRequest], SourceFrame]] = {
    "sample": read_sample,
    "csv": read_csv,
    "parquet": read_parquet,
    "feather": read_feather,
    "lean": read_lean,
    "yahoo": read_yahoo,
    "crypto": read_crypto,
    **{name: source(name) for name in MARKETS},
}
