"""Observation encoders: what an agent sees of the market at bar t, from the bar index alone.

The market does not react to the agent, so buffers keep t and the encoder turns it into features on the device where
the series lies. Both encoders map ``t`` [B] (integer bar index; what is known when bar t has closed) to [B, A * D],
asset by asset. Shapes: T bars, A assets, F input features, D features of an asset in the observation.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from trade_agent.errors import DataError
from trade_agent.networks.cnn_lstm import CNNLSTM, Forecast, forecast_features, gather_windows
from trade_agent.networks.tables import new_table


class Encoding(NamedTuple):
    observation: Tensor  # [B, A * D]
    bars: Tensor  # [U] the distinct bars of the batch, clamped to the first whole window
    counts: Tensor  # [U] how often each of them is in the batch
    forecast: Forecast  # of these bars, [U, A, ...]: an auxiliary loss needs no second pass


class TableEncoder(nn.Module):
    """Gathers frozen features: ``table`` [T, A, D] float32 stays resident and is no part of ``state_dict``.

    ``t`` outside [0, T) is an error (a device-side assertion on CUDA).
    """

    table: Tensor

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.register_buffer("table", table.flatten(1), persistent=False)

    @property
    def output_dim(self) -> int:
        return self.table.shape[1]

    def forward(self, t: Tensor) -> Tensor:
        return self.table.index_select(0, t)


class WindowEncoder(nn.Module):
    """Runs a forecaster on the window of bars [t - W + 1, t], for each asset with the same weights.

    An asset's part of the observation is latent D | probability of a rise H | expected return H | features F of bar t.
    Gradients reach the forecaster. ``series`` [T, A, F] float32 holds scaled features; leading rows that are not finite
    (warm-up of indicators) count as missing, and bars before the first whole window of finite rows, ``first_bar``,
    are encoded as zeros. A later row that is not finite raises DataError.
    """

    series: Tensor

    def __init__(self, forecaster: CNNLSTM, series: Tensor) -> None:
        super().__init__()
        self.forecaster = forecaster
        first_row = _first_finite_row(series)
        self.first_bar = first_row + forecaster.window_bars - 1
        if self.first_bar >= len(series):
            raise DataError(
                f"a series of {len(series)} bars ({first_row} of them not finite) is shorter than one window of "
                f"{forecaster.window_bars} bars",
                "load more bars or lower window_bars",
            )
        if first_row:
            series = series.clone()
            series[:first_row] = 0.0
        self.register_buffer("series", series, persistent=False)

    @property
    def output_dim(self) -> int:
        return self.series.shape[1] * (self.forecaster.feature_dim + self.series.shape[2])

    def forward(self, t: Tensor) -> Tensor:
        return self.encode(t).observation

    def encode(self, t: Tensor) -> Encoding:
        """``t`` [B] -> observation and the forecasts behind it."""
        bars, inverse, counts = _distinct(t)
        whole = bars >= self.first_bar
        ends = bars.clamp_min(self.first_bar)
        forecast = self._forecast(ends)
        rows = torch.cat((forecast_features(forecast), self.series.index_select(0, ends)), dim=-1).flatten(1)
        rows = torch.where(whole.unsqueeze(1), rows, 0.0)
        return Encoding(rows if inverse is None else rows.index_select(0, inverse), ends, counts, forecast)

    def _forecast(self, ends: Tensor) -> Forecast:
        forecaster = self.forecaster
        window_bars, (num_bars, num_assets, _) = forecaster.window_bars, self.series.shape
        if num_bars <= len(ends) * window_bars:
            # The windows together are longer than the series: convolving each bar once is cheaper, and equal.
            return forecaster.encode_from_series(forecaster.convolve_series(self.series), ends)
        windows = gather_windows(self.series, ends, window_bars).transpose(1, 2).flatten(0, 1)  # [B * A, W, F]
        return Forecast(*(part.view(len(ends), num_assets, -1) for part in forecaster(windows)))


@torch.no_grad()
def build_table(forecaster: CNNLSTM, series: Tensor, batch: int) -> Tensor:
    """What ``WindowEncoder`` in eval mode would give at every bar: [T, A, F] -> [T, A, D + 2H + F], rows before
    the first whole window zero.

    Each block of ``batch`` bars is convolved once. The forecaster's mode is left as it was found. For NaN and errors
    see WindowEncoder.
    """
    first_row = _first_finite_row(series)
    num_bars, num_assets, num_features = series.shape
    table = new_table(num_bars, num_assets, forecaster.feature_dim + num_features, like=series)
    was_training = forecaster.training
    forecaster.eval()
    try:
        lag = forecaster.window_bars - 1
        for start in range(first_row + lag, num_bars, batch):
            stop = min(start + batch, num_bars)
            convolved = forecaster.convolve_series(series[start - lag : stop])
            ends = torch.arange(lag, lag + stop - start, device=series.device)
            features = forecast_features(forecaster.encode_from_series(convolved, ends))
            table[start:stop] = torch.cat((features, series[start:stop]), dim=-1)
    finally:
        forecaster.train(was_training)
    return table


def _distinct(t: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
    """Distinct bars [U], the position of each t among them [B], and their counts [U]; or ``t`` itself, None and ones.

    The number of distinct bars is data: on CUDA it would have to be waited for, which costs more than it saves.
    """
    if t.device.type != "cpu":
        return t, None, torch.ones_like(t)
    bars, inverse, counts = torch.unique(t, return_inverse=True, return_counts=True)
    return bars, inverse, counts


def _first_finite_row(series: Tensor) -> int:
    """How many rows at the start are not finite. Raises DataError where a later one is not."""
    finite = series.isfinite().flatten(1).all(1)
    first_row = int(finite.long().argmax())  # 0 where no row is finite
    gaps = (~finite[first_row:]).nonzero()
    if len(gaps):
        raise DataError(f"the features of bar {first_row + int(gaps[0])} are not finite", "fill or drop them upstream")
    return first_row
