"""Steps that do not fit memory are taken in parts, and what is learned stays the same."""

import logging

import pytest
import torch

from trade_agent.networks.cnn_lstm import CNNLSTM
from trade_agent.training.checkpoint import no_checkpoints
from trade_agent.training.memory import accumulate, is_out_of_memory
from trade_agent.training.supervised import FitResult, FitSettings, Targets, fit_forecaster

MORE_THAN_THERE_IS = 2**59  # elements: no allocator grants it, whatever the machine has


class Crowded(CNNLSTM):
    """In training more than `most` windows at once ask the allocator for what it cannot give."""

    most = 10**9

    def forward(self, windows: torch.Tensor):  # type: ignore[no-untyped-def]
        if self.training and len(windows) > self.most:
            torch.empty(MORE_THAN_THERE_IS, dtype=torch.uint8)
        return super().forward(windows)


def fit(most: int) -> tuple[dict[str, torch.Tensor], FitResult]:
    """Two epochs in float64, where sums in another order still agree to many digits."""
    torch.manual_seed(3)
    network = Crowded(
        num_features=2, window_bars=4, conv_channels=[4], kernel_size=2, lstm_hidden=4, lstm_layers=1, dropout=0.0,
        num_horizons=2,
    ).double()  # fmt: skip
    network.most = most
    series = torch.randn(60, 1, 2, dtype=torch.float64)
    returns = torch.randn(60, 1, 2, dtype=torch.float64)
    targets = Targets(returns, torch.ones(60, 1, 2, dtype=torch.bool), torch.ones(2))
    pairs = torch.stack((torch.arange(4, 60), torch.zeros(56, dtype=torch.int64)), dim=1)
    generator = torch.Generator().manual_seed(1)
    result = fit_forecaster(
        network,
        series=series,
        targets=targets,
        train=pairs[:40],
        validation=pairs[40:],
        settings=FitSettings(
            epochs=2, patience=2, batch_size=16, learning_rate=1e-3, weight_decay=0.0, direction_weight=0.5
        ),
        generator=generator,
        session=no_checkpoints().session("forecaster", generator),
    )
    return network.state_dict(), result


def test_a_forecaster_that_does_not_fit_learns_the_same_in_parts(caplog: pytest.LogCaptureFixture) -> None:
    whole, expected = fit(most=16)
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        parts, result = fit(most=5)
    assert [record.args for record in caplog.records] == [(16, 8), (8, 4)]  # once, not in every step
    assert result.train_loss == pytest.approx(expected.train_loss, rel=1e-12)
    assert result.validation_loss == pytest.approx(expected.validation_loss, rel=1e-10)
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-8, atol=1e-10)


def test_what_does_not_fit_row_by_row_is_the_error_of_the_allocator() -> None:
    with pytest.raises(RuntimeError, match="allocate") as caught:
        fit(most=0)
    assert is_out_of_memory(caught.value)


def test_other_errors_are_not_taken_for_a_lack_of_memory() -> None:
    def wrong(part: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes"):
        accumulate(torch.zeros(4), wrong, size=None, clear=lambda: None)
