from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from trade_agent.envs.episodes import observe
from trade_agent.envs.gymnasium_env import MarketGymEnv, MarketVectorEnv
from trade_agent.envs.market import reset, step
from trade_agent.envs.rules import MarketRules, position_actions
from trade_agent.envs.series import MarketSeries
from trade_agent.errors import ConfigError

SeriesFactory = Callable[..., MarketSeries]
NUM_BARS = 60
RUINOUS = MarketRules(max_weight=8.0, max_leverage=8.0, maintenance=0.8)


@pytest.fixture
def arguments(random_series: SeriesFactory) -> Callable[..., dict[str, Any]]:
    def build(*, num_assets: int = 2, rules: MarketRules | None = None, **changes: Any) -> dict[str, Any]:
        return {
            "series": random_series(NUM_BARS, num_assets, seed=4),
            "rules": rules or MarketRules(),
            "features": torch.randn(NUM_BARS, num_assets, 3, generator=torch.Generator().manual_seed(0)),
            "rows": range(5, NUM_BARS),
            "episode_bars": 10,
        } | changes

    return build


@pytest.mark.parametrize("num_assets", [1, 3])
@pytest.mark.parametrize("positions", [None, (-1.0, 0.0, 1.0)])
@pytest.mark.filterwarnings("ignore:.*A Box observation space m(in|ax)imum value is.*:UserWarning")
@pytest.mark.filterwarnings("ignore:.*Not able to test alternative render modes.*:UserWarning")
@pytest.mark.filterwarnings("error")
def test_gymnasium_accepts_the_environment(
    num_assets: int, positions: tuple[float, ...] | None, arguments: Callable[..., dict[str, Any]]
) -> None:
    check_env(MarketGymEnv(**arguments(num_assets=num_assets, positions=positions, window_bars=3)))


@pytest.mark.parametrize("positions", [None, (0.0, 0.5, 1.0)])
def test_the_faces_equal_the_pure_step(
    positions: tuple[float, ...] | None, arguments: Callable[..., dict[str, Any]]
) -> None:
    options = arguments(positions=positions, window_bars=3, rules=MarketRules(latency_bars=1))
    single, batch = MarketGymEnv(**options), MarketVectorEnv(**options, num_envs=3)
    series, rules, features = options["series"], options["rules"], options["features"]
    starts = torch.tensor([7, 9, 31])
    state = reset(series, rules, starts, starts + 10)
    observation, _ = single.reset(options={"start": 7})
    observations, _ = batch.reset(options={"start": starts.numpy()})
    batch.action_space.seed(0)
    for index in range(9):
        expected = observe(series, rules, features, state, 3).numpy()
        np.testing.assert_array_equal(observations, expected)
        np.testing.assert_allclose(observation, expected[0], rtol=1e-6)
        actions = batch.action_space.sample()
        chosen = torch.as_tensor(actions)
        chosen = chosen if positions is None else position_actions(rules, positions)[chosen]
        state, result = step(series, rules, state, chosen)
        observations, rewards, terminated, truncated, infos = batch.step(actions)
        observation, reward, ended, cut, info = single.step(actions[0])
        np.testing.assert_array_equal(rewards, result.reward.double().numpy())
        np.testing.assert_array_equal(infos["equity"], result.equity.numpy())
        np.testing.assert_array_equal(infos["cost"], result.cost.numpy())
        np.testing.assert_array_equal(infos["bar"], starts.numpy() + index + 1)
        assert reward == pytest.approx(rewards[0], rel=1e-6)
        assert info["equity"] == pytest.approx(infos["equity"][0], rel=1e-12)
        assert info["cost"] == pytest.approx(infos["cost"][0], rel=1e-12)
        assert (ended, cut) == (terminated[0], truncated[0]) == (False, False)
    assert single.step(actions[0])[3] is True


def test_the_batch_restarts_in_the_same_step(arguments: Callable[..., dict[str, Any]]) -> None:
    options = arguments(num_assets=1, rules=RUINOUS, episode_bars=20)
    env = MarketVectorEnv(**options, num_envs=32)
    assert env.metadata["autoreset_mode"] == AutoresetMode.SAME_STEP
    series, features = options["series"], options["features"]
    _, info = env.reset(seed=0)
    state = reset(series, RUINOUS, torch.tensor(info["bar"]), torch.tensor(info["bar"]) + 20)
    env.action_space.seed(0)
    reasons = np.zeros(2, dtype=int)
    for _ in range(40):
        actions = env.action_space.sample()
        state, result = step(series, RUINOUS, state, torch.as_tensor(actions))
        observations, rewards, terminated, truncated, info = env.step(actions)
        np.testing.assert_array_equal(terminated, result.terminated.numpy())
        np.testing.assert_array_equal(truncated, result.truncated.numpy())
        np.testing.assert_array_equal(rewards, result.reward.double().numpy())
        done = terminated | truncated
        last = observe(series, RUINOUS, features, state).numpy()
        np.testing.assert_array_equal(observations[~done], last[~done])
        if done.any():
            np.testing.assert_array_equal(info["_final_obs"], done)
            np.testing.assert_array_equal(info["final_obs"][done], last[done])
            np.testing.assert_array_equal(info["final_info"]["equity"][done], result.equity.numpy()[done])
            assert (info["equity"][done] == RUINOUS.initial_equity).all()
            fresh = reset(series, RUINOUS, torch.tensor(info["bar"]), torch.tensor(info["bar"]) + 20)
            np.testing.assert_array_equal(observations[done], observe(series, RUINOUS, features, fresh).numpy()[done])
            state = type(state)(
                *(
                    torch.where(torch.tensor(done).view(-1, *(1,) * (old.ndim - 1)), new, old)
                    for new, old in zip(fresh, state, strict=True)
                )
            )
        reasons += (terminated.sum(), truncated.sum())
    assert (reasons > 0).all()


def test_the_seed_decides_the_start(arguments: Callable[..., dict[str, Any]]) -> None:
    env = MarketGymEnv(**arguments())
    first = [env.reset(seed=3)[1]["bar"], *(env.reset()[1]["bar"] for _ in range(8))]
    again = [env.reset(seed=3)[1]["bar"], *(env.reset()[1]["bar"] for _ in range(8))]
    other = [env.reset(seed=4)[1]["bar"], *(env.reset()[1]["bar"] for _ in range(8))]
    assert first == again
    assert first != other


def test_the_batch_equals_gymnasiums_own_batch_of_single_environments(arguments: Callable[..., dict[str, Any]]) -> None:
    options = arguments(num_assets=1, rules=RUINOUS, window_bars=2)
    ours = MarketVectorEnv(**options, num_envs=12)
    theirs = SyncVectorEnv([lambda: MarketGymEnv(**options)] * 12, autoreset_mode=AutoresetMode.SAME_STEP)
    mask = np.arange(12) % 3 == 0
    resets: list[dict[str, Any]] = [
        {"seed": 5},
        {},
        {"seed": list(range(40, 52))},
        {"seed": [7, None] * 6},
        {"seed": list(range(60, 72)), "options": {"reset_mask": mask}},
    ]
    ours.action_space.seed(0)
    ended = 0
    for arguments_of_reset in resets:
        observations, info = ours.reset(**copy.deepcopy(arguments_of_reset))
        expected, expected_info = theirs.reset(**copy.deepcopy(arguments_of_reset))
        chosen = arguments_of_reset.get("options", {}).get("reset_mask", np.ones(12, dtype=bool))
        np.testing.assert_array_equal(info["bar"][chosen], expected_info["bar"][chosen])
        np.testing.assert_allclose(observations, expected, rtol=1e-6)
        for _ in range(25):
            action = ours.action_space.sample()
            observations, *outcome, info = ours.step(action)
            expected, *expected_outcome, expected_info = theirs.step(action)
            np.testing.assert_allclose(observations, expected, rtol=1e-6)
            for mine, other in zip(outcome, expected_outcome, strict=True):
                assert mine.dtype == other.dtype
                np.testing.assert_allclose(mine, other, rtol=1e-6)
            np.testing.assert_array_equal(info["bar"], expected_info["bar"])
            np.testing.assert_allclose(info["equity"], expected_info["equity"])
            assert ("final_info" in info) is ("final_info" in expected_info)
            if "final_info" in info:
                done = info["_final_info"]
                np.testing.assert_array_equal(done, expected_info["_final_info"])
                np.testing.assert_array_equal(info["_final_obs"], expected_info["_final_obs"])
                final = expected_info["final_info"]
                np.testing.assert_allclose(info["final_info"]["equity"][done], final["equity"][done])
                np.testing.assert_allclose(
                    info["final_obs"][done], np.stack(list(expected_info["final_obs"][done])), rtol=1e-6
                )
                ended += int(done.sum())
    assert ended > 40


def test_every_account_has_a_seed_of_its_own(arguments: Callable[..., dict[str, Any]]) -> None:
    env = MarketVectorEnv(**arguments(), num_envs=4)
    bars = env.reset(seed=[3, 3, 8, 3])[1]["bar"]
    assert env.np_random_seed == (3, 3, 8, 3)
    assert bars[0] == bars[1] == bars[3] == MarketGymEnv(**arguments()).reset(seed=3)[1]["bar"]
    assert env.reset(seed=8)[1]["bar"][0] == bars[2]
    assert env.np_random_seed == (8, 9, 10, 11)
    # Without a seed the generators go on, and two fresh batches do not start alike.
    drawn = [env.reset()[1]["bar"].tolist() for _ in range(3)]
    assert len({tuple(rows) for rows in drawn}) == 3
    unseeded = [MarketVectorEnv(**arguments(), num_envs=20).reset()[1]["bar"].tolist() for _ in range(2)]
    assert unseeded[0] != unseeded[1]


@pytest.mark.parametrize(
    ("reset", "message"),
    [
        ({"seed": [1, 2]}, "reset got 2 seeds for 3 accounts; give one seed each"),
        ({"options": {"reset_mask": np.array([True, False])}}, r"'reset_mask'\] is bool of shape \(2,\); give 3"),
        ({"options": {"reset_mask": np.array([1, 0, 1])}}, r"'reset_mask'\] is int64"),
    ],
)
def test_a_reset_that_does_not_fit_is_refused(
    reset: dict[str, Any], message: str, arguments: Callable[..., dict[str, Any]]
) -> None:
    env = MarketVectorEnv(**arguments(), num_envs=3)
    env.reset(seed=0)
    with pytest.raises(ConfigError, match=message):
        env.reset(**reset)


def test_starts_stay_inside_the_rows(arguments: Callable[..., dict[str, Any]]) -> None:
    env = MarketGymEnv(**arguments(rows=range(20, 35)))
    assert {env.reset(seed=s)[1]["bar"] for s in range(100)} == {20, 21, 22, 23, 24}
    for row in (19, 34):
        with pytest.raises(ConfigError, match=rf"start'\] is {row}; start within 20\.\.33"):
            env.reset(options={"start": row})


def test_the_data_ends_as_a_truncation(arguments: Callable[..., dict[str, Any]]) -> None:
    env = MarketGymEnv(**arguments(episode_bars=None))
    env.reset(options={"start": NUM_BARS - 3})
    action = np.zeros(2, dtype=np.float32)
    assert env.step(action)[2:4] == (False, False)
    assert env.step(action)[2:4] == (False, True)


@pytest.mark.parametrize("positions", [None, (-1.0, 0.0, 1.0)])
def test_a_step_that_cannot_be_made_says_so_in_the_terms_of_gymnasium(
    positions: tuple[float, ...] | None, arguments: Callable[..., dict[str, Any]]
) -> None:
    env = MarketGymEnv(**arguments(episode_bars=2, positions=positions))
    action = env.action_space.sample()
    with pytest.raises(gymnasium.error.ResetNeeded, match="step came before reset"):
        env.step(action)
    env.reset(seed=0)
    env.step(action)
    env.step(action)
    with pytest.raises(gymnasium.error.ResetNeeded, match="the episode is over"):
        env.step(action)
    env.reset(seed=0)
    env.step(action)


@pytest.mark.parametrize(
    ("positions", "action", "message"),
    [
        (None, [0.1], r"shape \(1,\)"),
        (None, [[[0.1, 0.2]]], r"shape \(1, 1, 2\)"),
        (None, [float("nan"), 0.0], "not finite"),
        ((-1.0, 0.0, 1.0), [3, 0], "index of the 3 positions"),
        ((-1.0, 0.0, 1.0), [0, -1], "index of the 3 positions"),
        ((-1.0, 0.0, 1.0), [0.0, 1.0], "index of the 3 positions"),
    ],
)
def test_what_is_no_action_is_refused_and_changes_nothing(
    positions: tuple[float, ...] | None, action: Any, message: str, arguments: Callable[..., dict[str, Any]]
) -> None:
    env = MarketGymEnv(**arguments(positions=positions))
    _, before = env.reset(seed=0)
    with pytest.raises(gymnasium.error.InvalidAction, match=message):
        env.step(np.array(action))
    *_, info = env.step(env.action_space.sample())
    assert info["bar"] == before["bar"] + 1


def test_a_batch_that_was_not_reset_or_lacks_actions_is_refused(arguments: Callable[..., dict[str, Any]]) -> None:
    env = MarketVectorEnv(**arguments(), num_envs=3)
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(np.zeros((3, 2)))
    env.reset(seed=0)
    # As many numbers in another layout would be the orders of somebody else.
    for shape in ((2, 2), (2, 3), (6,)):
        with pytest.raises(gymnasium.error.InvalidAction, match=r"2 for each of 3 accounts"):
            env.step(np.zeros(shape))


@pytest.mark.parametrize("start", [5.5, "first", [6, 7, 8]])
def test_what_is_no_row_is_refused(start: Any, arguments: Callable[..., dict[str, Any]]) -> None:
    with pytest.raises(ConfigError, match=r"options\['start'\] is .*; give one row, or 2"):
        MarketVectorEnv(**arguments(), num_envs=2).reset(options={"start": start})


def test_what_is_returned_is_not_the_state(arguments: Callable[..., dict[str, Any]]) -> None:
    env = MarketVectorEnv(**arguments(random_starts=False), num_envs=2)
    observation, info = env.reset(seed=0)
    observation[:] = 7.0
    info["equity"][:] = 7.0
    info["bar"][:] = 0
    _, _, _, _, info = env.step(np.zeros((2, 2), dtype=np.float32))
    assert info["equity"].tolist() == [1e5, 1e5]
    assert info["bar"].tolist() == [6, 6]


def test_gymnasium_wrappers_count_the_episode(arguments: Callable[..., dict[str, Any]]) -> None:
    env = gymnasium.wrappers.RecordEpisodeStatistics(MarketGymEnv(**arguments(num_assets=1)))
    env.reset(seed=0)
    env.action_space.seed(0)
    total, cut = 0.0, False
    while not cut:
        _, reward, _, cut, info = env.step(env.action_space.sample())
        total += float(reward)
    assert info["episode"]["l"] == 10
    assert float(info["episode"]["r"]) == pytest.approx(total)
