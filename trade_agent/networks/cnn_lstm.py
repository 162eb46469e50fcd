"""CNN-LSTM forecaster: convolutions over a window of bars, an LSTM over what they find, two heads on its last state.

Shapes: B windows, W bars in a window, F features, C channels of the last convolution, D latent, H horizons,
T bars of a series, A assets. The last row of a window is the newest bar; nothing after it is seen.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from trade_agent.errors import ConfigError


class Forecast(NamedTuple):
    """Leading dimensions ... are [B], or [B, A] where a series of several assets was encoded."""

    latent: Tensor  # [..., D]
    direction_logit: Tensor  # [..., H] log-odds that the return over the horizon is positive
    expected_return: Tensor  # [..., H] in the unit of the training target


def gather_windows(rows: Tensor, ends: Tensor, length: int) -> Tensor:
    """Windows of ``length`` rows that end at ``ends`` (inclusive): [T, ...] and [B] integer -> [B, length, ...].

    ``ends`` must lie in [length - 1, T). Rows without a gradient are read through a view of all windows, a whole window
    at a time. The backward pass of that view would cost memory of the size of all windows, so rows with a gradient are
    gathered one by one.
    """
    if not rows.requires_grad:
        return rows.unfold(0, length, 1).movedim(-1, 1).index_select(0, ends - (length - 1))
    offsets = torch.arange(1 - length, 1, device=ends.device)
    index = (ends.unsqueeze(1) + offsets).flatten()
    return rows.index_select(0, index).view(len(ends), length, *rows.shape[1:])


class CNNLSTM(nn.Module):
    """Conv1d + ReLU layers without padding, an LSTM that starts from zero for each window, LayerNorm, two heads.

    Convolutions are valid (unpadded), so that convolving a series once gives what convolving each window would
    (``convolve_series`` and ``encode_from_series``; the tests hold them equal to 1e-6). They shorten a window by
    ``len(conv_channels) * (kernel_size - 1)`` bars. The latent is the LayerNorm of the last hidden state: an agent
    that reads it as an observation gets inputs of unit scale whatever the forecaster's training did to the LSTM.
    Dropout acts in training mode only: on the input of the LSTM, between its layers, and on the input of the heads
    (not on the latent that is handed out). NaN in a window gives NaN out.

    On CUDA the LSTM of a module in eval mode has no backward pass (cuDNN): joint training needs training mode.
    Raises ConfigError when the convolutions leave nothing of the window.
    """

    def __init__(
        self,
        *,
        num_features: int,
        window_bars: int,
        conv_channels: Sequence[int],
        kernel_size: int,
        lstm_hidden: int,
        lstm_layers: int,
        dropout: float,
        num_horizons: int,
    ) -> None:
        super().__init__()
        self.num_features, self.window_bars, self.num_horizons = num_features, window_bars, num_horizons
        self.conv_lag = len(conv_channels) * (kernel_size - 1)
        if window_bars <= self.conv_lag:
            raise ConfigError(
                f"window_bars={window_bars} is shorter than what {len(conv_channels)} convolutions of "
                f"kernel_size={kernel_size} consume",
                f"use window_bars >= {self.conv_lag + 1}, or fewer or smaller convolutions",
            )
        channels = (num_features, *conv_channels)
        self.convolutions = nn.ModuleList(nn.Conv1d(before, after, kernel_size) for before, after in pairwise(channels))
        self.lstm = nn.LSTM(
            channels[-1], lstm_hidden, lstm_layers, batch_first=True, dropout=dropout if lstm_layers > 1 else 0.0
        )
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(lstm_hidden)
        self.direction_head = nn.Linear(lstm_hidden, num_horizons)
        self.return_head = nn.Linear(lstm_hidden, num_horizons)
        self._init_lstm()

    @torch.no_grad()
    def _init_lstm(self) -> None:
        # Orthogonal recurrent weights and a forget bias of 1 let gradients reach the start of the window from the
        # first update on (Jozefowicz et al., 2015). PyTorch adds two biases: the second one starts at 0.
        for name, parameter in self.lstm.named_parameters():
            if name.startswith("weight_hh"):
                for gate in parameter.chunk(4):
                    nn.init.orthogonal_(gate)
            elif name.startswith("bias"):
                parameter.zero_()
                if name.startswith("bias_ih"):
                    parameter.chunk(4)[1].fill_(1.0)

    @property
    def latent_dim(self) -> int:
        return self.norm.normalized_shape[0]

    @property
    def feature_dim(self) -> int:
        """D + 2H, the width of ``features``."""
        return self.latent_dim + 2 * self.num_horizons

    def forward(self, windows: Tensor) -> Forecast:
        """``windows`` [B, W, F], oldest bar first -> Forecast of [B, ...]."""
        return self._encode(self._convolve(windows.transpose(1, 2)).transpose(1, 2))

    def features(self, windows: Tensor) -> Tensor:
        """``windows`` [B, W, F] -> [B, D + 2H]: latent, probability of a rise, expected return."""
        return forecast_features(self(windows))

    def convolve_series(self, series: Tensor) -> Tensor:
        """``series`` [T, F] or [T, A, F] -> [T', C] or [T', A, C]; row j is what a window sees at bar j + conv_lag."""
        shape = series.shape
        channels_first = series.reshape(shape[0], -1, shape[-1]).permute(1, 2, 0)  # [A, F, T]
        convolved = self._convolve(channels_first).permute(2, 0, 1)  # [T', A, C]
        return convolved.reshape(convolved.shape[0], *shape[1:-1], convolved.shape[-1])

    def encode_from_series(self, convolved: Tensor, ends: Tensor) -> Forecast:
        """Forecasts of the windows that end at bars ``ends`` of the series given to ``convolve_series``.

        ``convolved`` [T', C] or [T', A, C], ``ends`` [B] integer bar indices in [W - 1, T) -> [B, ...] or [B, A, ...].
        """
        windows = gather_windows(convolved, ends - self.conv_lag, self.window_bars - self.conv_lag)
        if windows.ndim == 3:
            return self._encode(windows)
        batch, _, assets, _ = windows.shape
        forecast = self._encode(windows.transpose(1, 2).flatten(0, 1))
        return Forecast(*(part.view(batch, assets, -1) for part in forecast))

    def _convolve(self, channels_first: Tensor) -> Tensor:
        for convolution in self.convolutions:
            channels_first = torch.relu(convolution(channels_first))
        return channels_first

    def _encode(self, convolved: Tensor) -> Forecast:
        """[B, W', C] -> Forecast. No state is passed to the LSTM: it starts from zero for each window."""
        _, (hidden, _) = self.lstm(self.dropout(convolved))
        latent = self.norm(hidden[-1])
        head_input = self.dropout(latent)
        return Forecast(latent, self.direction_head(head_input), self.return_head(head_input))


def forecast_features(forecast: Forecast) -> Tensor:
    """[..., D + 2H]: latent, probability of a rise, expected return."""
    return torch.cat((forecast.latent, forecast.direction_logit.sigmoid(), forecast.expected_return), dim=-1)
