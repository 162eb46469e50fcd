"""Large tables lie in a file that nobody sees, and hold the same numbers."""

import gc
from pathlib import Path

import pytest
import torch

from trade_agent.errors import DataError
from trade_agent.networks import tables
from trade_agent.networks.cnn_lstm import CNNLSTM
from trade_agent.networks.encoders import TableEncoder, build_table
from trade_agent.networks.tables import new_table


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Tables of 1000 bytes and more are mapped, from files in here."""
    monkeypatch.setattr(tables, "MAPPED_FROM_BYTES", 1000)
    monkeypatch.setattr(tables.tempfile, "tempdir", str(tmp_path))
    return tmp_path


def is_mapped(table: torch.Tensor) -> bool:
    return table.untyped_storage().filename is not None


def test_a_table_is_mapped_from_its_size_on(folder: Path) -> None:
    assert not is_mapped(new_table(249, 1, like=torch.zeros(1)))
    table = new_table(125, 2, like=torch.zeros(1))
    assert is_mapped(table)
    assert table.shape == (125, 2)
    assert not table.any()
    assert is_mapped(new_table(125, 1, like=torch.zeros(1, dtype=torch.float64)))


def test_no_file_is_left_even_while_the_table_is_in_use(folder: Path) -> None:
    table = new_table(500, like=torch.zeros(1))
    table += 1.0
    gc.collect()
    assert list(folder.iterdir()) == []
    assert table.sum() == 500.0


def test_mapped_features_are_the_features(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    forecaster = CNNLSTM(
        num_features=3,
        window_bars=6,
        conv_channels=[4],
        kernel_size=2,
        lstm_hidden=5,
        lstm_layers=1,
        dropout=0.0,
        num_horizons=2,
    )
    series = torch.randn(70, 2, 3)
    mapped = build_table(forecaster, series, 16)
    assert is_mapped(mapped)
    monkeypatch.setattr(tables, "MAPPED_FROM_BYTES", 2**30)
    plain = build_table(forecaster, series, 16)
    assert not is_mapped(plain)
    assert torch.equal(mapped, plain)
    t = torch.tensor([69, 3, 40, 3])
    assert torch.equal(TableEncoder(mapped)(t), TableEncoder(plain)(t))


def test_a_full_disk_is_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tables.os, "posix_fallocate", full)
    with pytest.raises(DataError, match="a table of 0.0 GiB does not fit .*: No space left on device; set TMPDIR"):
        new_table(500, like=torch.zeros(1))
    assert list(folder.iterdir()) == []
