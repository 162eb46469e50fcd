"""G13: windows a second in training the forecaster, against a DataLoader with the same net and against another LSTM."""

import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from benchmarks.speed.measure import Figure, clock, in_turn
from benchmarks.speed.peer import Peer, reported_if_missing
from trade_agent.networks.cnn_lstm import CNNLSTM, gather_windows
from trade_agent.training.checkpoint import no_checkpoints
from trade_agent.training.supervised import FitSettings, Targets, fit_forecaster, forecast_loss

NUM_BARS, WINDOW, BATCH, FEATURES = 5_000, 32, 128, 8
SETTINGS = FitSettings(
    epochs=1, patience=1, batch_size=BATCH, learning_rate=1e-3, weight_decay=1e-4, direction_weight=0.5
)
PEER_STEPS = 40


def network(num_features: int) -> CNNLSTM:
    """The net of conf/model/cnn_lstm.yaml."""
    torch.manual_seed(0)
    return CNNLSTM(
        num_features=num_features,
        window_bars=WINDOW,
        conv_channels=[32, 32],
        kernel_size=3,
        lstm_hidden=32,
        lstm_layers=1,
        dropout=0.0,
        num_horizons=1,
    )


def measure(repeats: int, device: torch.device) -> None:
    against_dataloader(repeats, device)
    with reported_if_missing("G13 forecaster training, against neuralforecast LSTM", "neuralforecast"):
        against_neuralforecast(repeats, device)


def against_dataloader(repeats: int, device: torch.device) -> None:
    series, targets, train = data(FEATURES, device)
    windows = Windows(series.cpu(), targets.returns[:, 0].cpu(), train[:, 0])
    loader = DataLoader(windows, batch_size=BATCH, shuffle=True)
    # The last row of a window is the bar of its target in both.
    side, other = in_turn(lambda: fit_seconds(series, targets, train), lambda: loop_seconds(loader, device), repeats)
    window, target = (value.to(device) for value in windows[7])
    again = gather_windows(series[:, 0], train[7:8, 0], WINDOW)[0]
    agrees = torch.equal(window, again) and torch.equal(target, targets.returns[train[7, 0], 0])
    ours, peer, wanted = len(train) / side, len(train) / other, {"cpu": 1.0, "cuda": 20.0}[device.type]
    _line("a DataLoader over windows, the same net", ours, peer, wanted, agrees, device)


SAME_SIZE = {
    "encoder_n_layers": 1,
    "encoder_hidden_size": 32,
    "decoder_hidden_size": 32,
    "decoder_layers": 1,
}


def against_neuralforecast(repeats: int, device: torch.device) -> None:
    """Once with its LSTM as large as ours, once with what each side takes by default.

    The target is that of the defaults: LSTMs of one size are the same code of oneDNN on both sides.
    """
    series, targets, train = data(1, device)
    remark = "windows of 32; ours has two convolutions before an LSTM of 32"
    with tempfile.TemporaryDirectory() as folder, Peer("neuralforecast") as peer:
        path = Path(folder, "series.npz")
        np.savez(path, values=series[:, 0, 0].numpy(force=True))
        wanted = {"cpu": 3.0, "cuda": 20.0}[device.type]
        for name, size, target in (("an LSTM of 32", SAME_SIZE, None), ("default nets", {}, wanted)):
            settings = {"input_size": WINDOW, "windows_batch_size": BATCH} | size
            versions = peer.ask("load", path=str(path), settings=settings)
            side, other = in_turn(
                lambda: fit_seconds(series, targets, train), lambda: peer.ask("fit", steps=PEER_STEPS), repeats
            )
            peer_rate = PEER_STEPS * BATCH / other
            _line(f"neuralforecast LSTM, {name}", len(train) / side, peer_rate, target, None, device, versions, remark)


class Windows(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    """Windows cut out one by one, as a tutorial would."""

    def __init__(self, series: Tensor, returns: Tensor, ends: Tensor) -> None:
        self.series, self.returns, self.ends = series[:, 0], returns, ends.tolist()

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        end = self.ends[index]
        return self.series[end - WINDOW + 1 : end + 1], self.returns[end]


def data(num_features: int, device: torch.device) -> tuple[Tensor, Targets, Tensor]:
    generator = torch.Generator().manual_seed(0)
    series = torch.randn(NUM_BARS, 1, num_features, generator=generator)
    returns = torch.randn(NUM_BARS, 1, 1, generator=generator)
    targets = Targets(*(value.to(device) for value in (returns, torch.ones_like(returns).bool(), torch.ones(1))))
    ends = torch.arange(WINDOW - 1, NUM_BARS, device=device)
    return series.to(device), targets, torch.stack((ends, torch.zeros_like(ends)), dim=1)


def fit_seconds(series: Tensor, targets: Targets, train: Tensor) -> float:
    """One epoch; validation is one batch."""
    device = series.device
    net, generator = network(series.shape[-1]).to(device), torch.Generator(device).manual_seed(1)
    return clock(device)(
        lambda: fit_forecaster(
            net,
            series=series,
            targets=targets,
            train=train,
            validation=train[:BATCH],
            settings=SETTINGS,
            generator=generator,
            session=no_checkpoints().session("speed", generator),
        )
    )


def loop_seconds(loader: DataLoader[tuple[Tensor, Tensor]], device: torch.device) -> float:
    """One epoch with the same net, loss, clipping and optimizer."""
    net = network(FEATURES).to(device)
    optimizer = torch.optim.AdamW(net.parameters(), lr=SETTINGS.learning_rate, weight_decay=SETTINGS.weight_decay)

    def epoch() -> None:
        for batch in loader:
            windows, returns = (value.to(device) for value in batch)
            valid = torch.ones_like(returns)
            loss = forecast_loss(net(windows), returns, valid, SETTINGS.direction_weight, valid.sum())
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()

    return clock(device)(epoch)


def _line(
    peer_name: str,
    ours: float,
    peer: float,
    target: float | None,
    agrees: bool | None,
    device: torch.device,
    versions: dict[str, str] | None = None,
    remark: str = "",
) -> None:
    Figure(
        figure=f"G13 forecaster training, against {peer_name}",
        unit="windows/s",
        ours=ours,
        peer=peer,
        peer_name=peer_name,
        ratio=ours / peer,
        target=target,
        agrees=agrees,
        device=device.type,
        versions=versions,
        remark=remark,
    ).print()
