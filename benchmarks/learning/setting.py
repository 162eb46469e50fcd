"""What every unit of benchmarks.learning starts from: a config as the command line composes it, and its market."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trade_agent.config.load import compose_config, load_config
from trade_agent.config.schema import TrainingConfig
from trade_agent.envs.market import account_observation, reset, step
from trade_agent.envs.rules import MarketRules
from trade_agent.envs.series import MarketSeries
from trade_agent.training.checkpoint import no_checkpoints
from trade_agent.training.dataset import build_dataset, load_data
from trade_agent.training.distributed import World
from trade_agent.training.progress import ProgressReporter
from trade_agent.training.stages.context import StageContext
from trade_agent.training.unified_manager import grading_policy

Floats = NDArray[np.float64]
Policy = Callable[[Tensor, Tensor], Tensor]


def compose(overrides: Sequence[str], seed: int) -> TrainingConfig:
    """The config of one unit, with one seed for bars and agent."""
    return load_config(compose_config([*overrides, f"seed={seed}", f"data.seed={seed}"]))


def stage_context(config: TrainingConfig, *, window_bars: int, horizons: list[int], folder: Path) -> StageContext:
    """What a stage works on, as the training manager makes it; `folder` takes its pictures."""
    device = torch.device("cpu")
    loaded = load_data(config.data, config.evaluation)
    return StageContext(
        dataset=build_dataset(loaded, config, window_bars=window_bars, horizons=horizons, device=device),
        trainer=config.trainer,
        evaluation=config.evaluation,
        grading=grading_policy(config.grading),
        episode_bars=config.market.episode_bars,
        seed=config.seed,
        device=device,
        compiled=config.device.compile,
        progress=ProgressReporter(),
        folder=folder,
        checkpoints=no_checkpoints(),
        world=World(),
        num_trials=1,
    )


@dataclass(frozen=True, slots=True)
class Paths:
    """What N accounts did over S bars, [S, N] float64 each."""

    weight: Floats  # held after the fill, marked at the close
    reward: Floats
    equity: Floats
    turnover: Floats


@torch.no_grad()
def follow(series: MarketSeries, rules: MarketRules, policy: Policy, starts: range, num_bars: int) -> Paths:
    """Accounts that start flat at the closes of the bars `starts` and follow the policy for `num_bars` bars."""
    start = torch.tensor(starts)
    state = reset(series, rules, start, start + num_bars)
    recorded = []
    for _ in range(num_bars):
        action = policy(state.t, account_observation(series, rules, state))
        state, result = step(series, rules, state, action)
        recorded.append((result.weights[:, 0], result.reward, result.equity, result.turnover))
    return Paths(*(torch.stack(values).double().numpy() for values in zip(*recorded, strict=True)))


def blocks(rows: range, num_accounts: int) -> tuple[range, int]:
    """Starts and length of accounts that share `rows` among them, one block each."""
    num_bars = (len(rows) - 1) // num_accounts
    return range(rows.start, rows.start + num_accounts * num_bars, num_bars), num_bars
