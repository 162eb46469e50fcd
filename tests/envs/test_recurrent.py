"""A recurrent policy on the TorchRL face: its hidden state begins with every episode.

TorchRL's InitTracker says where an episode begins; without it an LSTM carries its state over a restart in silence.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import Tensor, nn
from torchrl.collectors import Collector
from torchrl.envs import InitTracker, TransformedEnv, check_env_specs
from torchrl.modules import LSTMModule, set_recurrent_mode

from trade_agent.envs.rules import MarketRules
from trade_agent.envs.series import MarketSeries
from trade_agent.envs.torchrl_env import MarketEnv

SeriesFactory = Callable[..., MarketSeries]
NUM_BARS, NUM_ENVS, NUM_STEPS, HIDDEN = 60, 8, 50, 5


class Recurrent:
    """An LSTM and a linear layer on the market, as a user would build them."""

    def __init__(self, series: MarketSeries, features: Tensor, *, tracked: bool = True) -> None:
        # Leverage close to the maintenance level: ruin restarts the accounts at different times.
        self.market = MarketEnv(
            series=series,
            rules=MarketRules(max_weight=8.0, max_leverage=8.0, maintenance=0.7),
            features=features,
            rows=range(5, NUM_BARS),
            num_envs=NUM_ENVS,
            episode_bars=14,
            window_bars=2,
            seed=1,
        )
        torch.manual_seed(0)
        size = self.market.observation_spec["observation"].shape[-1]
        self.lstm = LSTMModule(input_size=size, hidden_size=HIDDEN, in_key="observation", out_key="memory")
        self.head = nn.Sequential(nn.Linear(HIDDEN, 1), nn.Tanh())
        for weights in self.lstm.parameters():  # so that the memory of an old episode would weigh
            nn.init.uniform_(weights, -1.0, 1.0)
        nn.init.uniform_(self.head[0].weight, -3.0, 3.0)
        self.policy = TensorDictSequential(
            self.lstm, TensorDictModule(self.head, in_keys=["memory"], out_keys=["action"])
        )
        self.env = TransformedEnv(self.market, InitTracker()) if tracked else TransformedEnv(self.market)
        self.env.append_transform(self.lstm.make_tensordict_primer())

    def from_zero_state(self, observation: Tensor) -> Tensor:
        """Actions [S, 1] on the observations [S, D] of one episode, by the same weights and torch's own LSTM."""
        memory, _ = self.lstm.lstm(observation.unsqueeze(0))
        return self.head(memory).squeeze(0)


@pytest.fixture
def features() -> Tensor:
    return torch.randn(NUM_BARS, 1, 3, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def recurrent(random_series: SeriesFactory, features: Tensor) -> Recurrent:
    return Recurrent(random_series(NUM_BARS, 1, seed=4), features)


def assert_each_episode_starts_from_nothing(recurrent: Recurrent, steps: TensorDict) -> int:
    """``steps`` is [N, S]; returns the number of restarts in it."""
    done = steps["next", "done"].squeeze(-1)
    begins = torch.cat((torch.ones(NUM_ENVS, 1, dtype=torch.bool), done[:, :-1]), dim=1)
    assert torch.equal(steps["is_init"].squeeze(-1), begins)
    for account in range(NUM_ENVS):
        rows = [*begins[account].nonzero().flatten().tolist(), done.shape[1]]
        for first, stop in itertools.pairwise(rows):
            alone = recurrent.from_zero_state(steps["observation"][account, first:stop])
            torch.testing.assert_close(steps["action"][account, first:stop], alone, rtol=0.0, atol=1e-5)
    return int(begins[:, 1:].sum())


def test_the_specs_hold_with_a_recurrent_policy(recurrent: Recurrent) -> None:
    check_env_specs(recurrent.env, seed=0, break_when_any_done="both")


@torch.no_grad()
def test_the_hidden_state_restarts_with_the_episode(recurrent: Recurrent) -> None:
    steps = recurrent.env.rollout(NUM_STEPS, recurrent.policy, break_when_any_done=False)
    assert bool(steps["next", "terminated"].any())
    assert bool(steps["next", "truncated"].any())
    assert assert_each_episode_starts_from_nothing(recurrent, steps) > 20
    assert float(steps["action"].std()) > 0.1


@torch.no_grad()
def test_the_hidden_state_restarts_under_a_collector(recurrent: Recurrent) -> None:
    """Episodes that began in an earlier batch go on in the next one."""
    batches = list(
        Collector(recurrent.env, recurrent.policy, frames_per_batch=NUM_ENVS * 25, total_frames=NUM_ENVS * NUM_STEPS)
    )
    assert [batch.shape for batch in batches] == [(NUM_ENVS, 25), (NUM_ENVS, 25)]
    assert assert_each_episode_starts_from_nothing(recurrent, torch.cat(batches, dim=1)) > 20


@torch.no_grad()
def test_a_whole_rollout_at_once_gives_the_actions_that_were_taken(recurrent: Recurrent) -> None:
    """The recurrent mode that losses use cuts a rollout at is_init."""
    steps = recurrent.env.rollout(NUM_STEPS, recurrent.policy, break_when_any_done=False)
    with set_recurrent_mode(True):
        again = recurrent.policy(steps.select("observation", "is_init", "recurrent_state_h", "recurrent_state_c"))
    torch.testing.assert_close(again["action"], steps["action"], rtol=0.0, atol=1e-5)


@torch.no_grad()
def test_without_init_tracker_it_does_not_run_at_all(random_series: SeriesFactory, features: Tensor) -> None:
    forgetful = Recurrent(random_series(NUM_BARS, 1, seed=4), features, tracked=False)
    with pytest.raises(KeyError, match="is_init"):
        forgetful.env.rollout(NUM_STEPS, forgetful.policy, break_when_any_done=False)
