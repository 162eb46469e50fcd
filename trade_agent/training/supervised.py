"""Training of the forecaster: targets, the loop with early stopping, and cross-fitted features.

Shapes: T bars, A assets, F features, H horizons, W window bars. A sample is a pair (bar t, asset a); its input is the
window that ends at t and its target the log return from close t to close t + h.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.linear_model import Ridge
from torch import Tensor
from torch.nn import functional

from trade_agent.agents.processes import Alone, Processes
from trade_agent.errors import TrainingDivergedError
from trade_agent.networks.cnn_lstm import CNNLSTM, Forecast, gather_windows
from trade_agent.networks.encoders import build_table
from trade_agent.training.checkpoint import Session
from trade_agent.training.memory import accumulate, in_parts

TABLE_BATCH = 4096
ALIGN_ROWS = 1_000_000  # bars x assets: a map between two latent spaces needs no more, each is copied in float64


class Targets(NamedTuple):
    """What the forecaster learns. Rows whose horizon is not traded to its end are masked out."""

    returns: Tensor  # [T, A, H] float32, log returns divided by `scale`
    valid: Tensor  # [T, A, H] bool
    scale: Tensor  # [H] float32, standard deviation of the log return over train rows


def make_targets(
    close: np.ndarray, tradable: np.ndarray, horizons: Sequence[int], train: range, scale: Tensor | None = None
) -> Targets:
    """Log returns of `close` [T, A] over each horizon, scaled by their standard deviation on train rows only.

    scale: [H], that of a forecaster which exists already and whose outputs are in its units.
    """
    num_bars, num_assets = close.shape
    returns = np.zeros((num_bars, num_assets, len(horizons)))
    valid = np.zeros_like(returns, dtype=bool)
    log_close = np.log(np.where(tradable, close, 1.0))
    for index, horizon in enumerate(horizons):
        ahead = num_bars - horizon
        both = tradable[:ahead] & tradable[horizon:]
        returns[:ahead, :, index] = np.where(both, log_close[horizon:] - log_close[:ahead], 0.0)
        valid[:ahead, :, index] = both
    if scale is None:
        deviations = [_train_deviation(returns, valid, train, index, h) for index, h in enumerate(horizons)]
        scale = torch.tensor(deviations, dtype=torch.float32)
    scaled = torch.tensor(returns / scale.double().cpu().numpy(), dtype=torch.float32)
    return Targets(scaled, torch.tensor(valid), scale)


def _train_deviation(returns: np.ndarray, valid: np.ndarray, train: range, index: int, horizon: int) -> float:
    rows = slice(train.start, train.stop - horizon)  # a label that ends after train would look into validation
    deviation = float(returns[rows, :, index][valid[rows, :, index]].std())
    return deviation if deviation > 0 else 1.0


def label_rows(rows: range, horizons: Sequence[int], window_bars: int, first_row: int) -> range:
    """Bars of a split whose window lies after the warm-up and whose longest label ends inside the split."""
    return range(max(rows.start, first_row + window_bars - 1), rows.stop - max(horizons))


def samples(bars: Sequence[int], valid: Tensor) -> Tensor:
    """Pairs (t, a) [S, 2] of the given bars whose targets are all valid."""
    t = torch.from_numpy(np.fromiter(bars, dtype=np.int64)).to(valid.device)
    pairs = valid[t].all(-1).nonzero()
    return torch.stack((t[pairs[:, 0]], pairs[:, 1]), dim=1)


def windows_of(series: Tensor, pairs: Tensor, window_bars: int) -> Tensor:
    """Input windows [S, W, F] of pairs (t, a) from `series` [T, A, F]."""
    num_assets = series.shape[1]
    if num_assets == 1:
        return gather_windows(series[:, 0], pairs[:, 0], window_bars)
    offsets = torch.arange(1 - window_bars, 1, device=series.device)
    index = (pairs[:, :1] + offsets) * num_assets + pairs[:, 1:]
    return series.flatten(0, 1).index_select(0, index.flatten()).view(len(pairs), window_bars, -1)


def forecast_loss(forecast: Forecast, returns: Tensor, valid: Tensor, direction_weight: float, count: Tensor) -> Tensor:
    """Squared error of the scaled return plus weighted cross-entropy of its sign, summed over valid entries and divided
    by `count` [] (see `valid_entries`).

    All of shape [..., H]; `valid` may be a number, how often an entry counts.
    """
    squared = (forecast.expected_return - returns).square()
    crossed = functional.binary_cross_entropy_with_logits(
        forecast.direction_logit, (returns > 0).to(returns.dtype), reduction="none"
    )
    weight = valid.to(returns.dtype)
    return ((squared + direction_weight * crossed) * weight).sum() / count


def valid_entries(valid: Tensor, processes: Processes) -> Tensor:
    """How many entries a mean is over [], at least one. Of several processes that have a part of the entries each, the
    mean of their losses is then that over all."""
    return processes.mean(valid.float().sum()).clamp(min=1.0 / processes.size)


class FitResult(NamedTuple):
    train_loss: list[float]  # per epoch
    validation_loss: list[float]
    best_epoch: int


@dataclass(slots=True, kw_only=True)
class FitProgress:
    """Where `fit_forecaster` is: the epoch, its order of samples and how many of them are done, and the best so far."""

    total: Tensor  # [] sum of the losses of this epoch's samples
    epoch: int = 0
    order: Tensor | None = None  # [S] int64, None between two epochs
    position: int = 0
    microbatch: int | None = None  # rows that fit memory at once; None: the whole minibatch
    train_loss: list[float] = field(default_factory=list)
    validation_loss: list[float] = field(default_factory=list)
    best_epoch: int = -1
    best_loss: float = math.inf
    best_state: dict[str, Tensor] | None = None

    def end_epoch(self, train_loss: float, validation_loss: float, network: CNNLSTM) -> None:
        """Take the losses down, and the weights where they are the best so far."""
        self.train_loss.append(train_loss)
        self.validation_loss.append(validation_loss)
        if validation_loss < self.best_loss or self.best_state is None:
            self.best_loss, self.best_epoch = validation_loss, self.epoch
            self.best_state = {name: value.clone() for name, value in network.state_dict().items()}
        self.epoch, self.order, self.position, self.total = self.epoch + 1, None, 0, torch.zeros_like(self.total)

    def state_dict(self) -> dict[str, Any]:
        return {item.name: getattr(self, item.name) for item in fields(self)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for item in fields(self):
            setattr(self, item.name, state[item.name])


@dataclass(frozen=True, slots=True, kw_only=True)
class FitSettings:
    epochs: int
    patience: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    direction_weight: float


def fit_forecaster(
    network: CNNLSTM,
    *,
    series: Tensor,
    targets: Targets,
    train: Tensor,
    validation: Tensor,
    settings: FitSettings,
    generator: torch.Generator,
    session: Session,
    on_epoch: Callable[[int, dict[str, float]], None] = lambda epoch, metrics: None,
) -> FitResult:
    """Train on the pairs `train` [S, 2], stop early on `validation`, leave the best epoch's weights in `network`.

    Takes up the newest checkpoint of `session`, and has a boundary after each minibatch. A minibatch that does not fit
    memory is taken in parts (`trade_agent.training.memory`).
    on_epoch(epoch, metrics) is called after each epoch, from 1, with the weights as the epoch left them.
    Raises TrainingDivergedError when a loss is not finite.
    """
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True
    )
    world = session.checkpoints.world
    progress = FitProgress(total=torch.zeros((), device=series.device))
    session.keep("network", network.state_dict, network.load_state_dict)
    session.keep("optimizer", optimizer.state_dict, optimizer.load_state_dict)
    session.keep("progress", progress.state_dict, progress.load_state_dict)
    session.restore()
    for group in optimizer.param_groups:
        group["lr"] = settings.learning_rate * session.rate_factor
    while not session.finished:
        network.train()
        norm: Tensor | None = None  # of the gradient of the last minibatch; a checkpoint may lie right behind it
        if progress.order is None:
            progress.order = torch.randperm(len(train), generator=generator, device=generator.device)
        while progress.position < len(train):
            chunk = progress.order[progress.position : progress.position + settings.batch_size]
            optimizer.zero_grad(set_to_none=True)
            own = train[chunk][world.rank :: world.size]
            rows = len(chunk) / world.size  # the mean over the processes is then that over all rows of the batch
            if not len(own):  # fewer rows than processes: a row that weighs nothing
                own, rows = train[chunk][:1], math.inf
            backward = functools.partial(_backward, network, series, targets, settings.direction_weight, rows)
            shares, progress.microbatch = accumulate(own, backward, size=progress.microbatch, clear=optimizer.zero_grad)
            world.average_gradients(list(network.parameters()))
            norm = torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            progress.total += torch.stack(shares).sum() * len(chunk)
            progress.position += len(chunk)
            session.boundary()
        train_loss = float(world.mean(progress.total)) / len(train)
        validation_loss = evaluate_loss(network, series, targets, validation, settings.direction_weight)
        validation_loss = world.agreed(validation_loss)
        metrics = {"train_loss": train_loss, "validation_loss": validation_loss}
        if norm is not None:
            metrics["grad_norm"] = float(norm)
        on_epoch(progress.epoch + 1, metrics)  # before the check: who watches a run wants to see what ended it
        if not math.isfinite(train_loss + validation_loss):
            raise TrainingDivergedError(
                f"the forecaster's loss is {train_loss} on train rows and {validation_loss} on validation rows in "
                f"epoch {progress.epoch + 1}",
                "lower model.learning_rate",
            )
        progress.end_epoch(train_loss, validation_loss, network)
        if progress.epoch == settings.epochs or progress.epoch - 1 - progress.best_epoch >= settings.patience:
            assert progress.best_state is not None
            network.load_state_dict(progress.best_state)
            session.finish()
    network.eval()
    return FitResult(progress.train_loss, progress.validation_loss, progress.best_epoch)


def _backward(
    network: CNNLSTM, series: Tensor, targets: Targets, direction_weight: float, batch: float, pairs: Tensor
) -> Tensor:
    """Add the gradient of the share [] that `pairs` have in the mean loss of `batch` rows; returns that share.

    Every row has as many valid targets (see `samples`), so shares go by the number of rows.
    """
    share = _loss(network, series, targets, pairs, direction_weight) * (len(pairs) / batch)
    share.backward()
    return share.detach()


def _loss(network: CNNLSTM, series: Tensor, targets: Targets, pairs: Tensor, direction_weight: float) -> Tensor:
    t, a = pairs[:, 0], pairs[:, 1]
    forecast = network(windows_of(series, pairs, network.window_bars))
    valid = targets.valid[t, a]
    return forecast_loss(forecast, targets.returns[t, a], valid, direction_weight, valid_entries(valid, Alone()))


@torch.no_grad()
def evaluate_loss(network: CNNLSTM, series: Tensor, targets: Targets, pairs: Tensor, direction_weight: float) -> float:
    network.eval()

    def losses(size: int) -> list[Tensor]:
        return [_loss(network, series, targets, chunk, direction_weight) * len(chunk) for chunk in pairs.split(size)]

    return float(torch.stack(in_parts(losses, size=min(TABLE_BATCH, len(pairs)))).sum()) / len(pairs)


def feature_table(network: CNNLSTM, series: Tensor) -> Tensor:
    """`build_table` in blocks that fit memory: [T, A, F] -> [T, A, D + 2H + F]."""
    return in_parts(lambda size: build_table(network, series, size), size=min(TABLE_BATCH, len(series)))


# ------------------------------------------------------------------------------------------------ cross-fitting


class Fold(NamedTuple):
    """A forecaster that did not train on the bars [start, stop), and the map of its latent onto the final one's.

    start, stop: rows of the bars it was trained on; stored as times, see `trade_agent.training.models.folds_to_state`.
    """

    start: int
    stop: int
    state: dict[str, Tensor]
    latent_weight: Tensor  # [D, D]
    latent_bias: Tensor  # [D]


def fold_bounds(bars: range, folds: int) -> list[range]:
    """Contiguous blocks that cover `bars`."""
    edges = np.linspace(bars.start, bars.stop, folds + 1).astype(int)
    return [range(int(a), int(b)) for a, b in pairwise(edges)]


def outside(bars: range, block: range, purge_bars: int) -> list[int]:
    """Bars whose windows and labels do not touch `block`: at least `purge_bars` away on either side."""
    return [t for t in bars if t < block.start - purge_bars or t >= block.stop + purge_bars]


@torch.no_grad()
def align_latent(
    fold_table: Tensor, final_table: Tensor, rows: Sequence[int], latent_dim: int
) -> tuple[Tensor, Tensor]:
    """Ridge regression that maps a fold's latent onto the final forecaster's, fitted on rows outside the block.

    Two forecasters trained apart span their latent spaces differently; without the map an agent trained on one could
    not read the other. Tables are [T, A, D + ...]; returns weight [D, D] and bias [D]. Where `rows` times
    assets are more than ALIGN_ROWS, every second, third, ... bar is taken.
    """
    taken = list(rows[:: max(1, math.ceil(len(rows) * fold_table.shape[1] / ALIGN_ROWS))])
    source = fold_table[taken, :, :latent_dim].flatten(0, 1).double().cpu().numpy()
    wanted = final_table[taken, :, :latent_dim].flatten(0, 1).double().cpu().numpy()
    ridge = Ridge(alpha=1.0).fit(source, wanted)
    return (
        torch.tensor(ridge.coef_.T, dtype=torch.float32).contiguous(),
        torch.tensor(ridge.intercept_, dtype=torch.float32),
    )


@torch.no_grad()
def cross_fitted_table(network: CNNLSTM, folds: Sequence[Fold], series: Tensor) -> Tensor:
    """Feature table [T, A, D + 2H + F] of the final forecaster, on each fold's block that of the fold's own."""
    table = feature_table(network, series)
    final_state = {name: value.clone() for name, value in network.state_dict().items()}
    latent = network.latent_dim
    for fold in folds:
        network.load_state_dict(fold.state)
        start = max(fold.start - network.window_bars + 1, 0)
        block = feature_table(network, series[start : fold.stop])[fold.start - start :]
        block[..., :latent] = block[..., :latent] @ fold.latent_weight.to(block) + fold.latent_bias.to(block)
        table[fold.start : fold.stop] = block
    network.load_state_dict(final_state)
    return table
