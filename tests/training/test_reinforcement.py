"""The training market and the two loops, watched from outside."""

import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor

from trade_agent.agents.ppo import PPO
from trade_agent.agents.processes import Alone
from trade_agent.agents.replay import ReplayBuffer, Transitions
from trade_agent.agents.rollout import RolloutBuffer
from trade_agent.agents.td3 import TD3
from trade_agent.envs.batched import Experience, TrainingMarket
from trade_agent.envs.market import MarketState, account_observation, step
from trade_agent.envs.rules import MarketRules
from trade_agent.envs.series import MarketSeries
from trade_agent.errors import TrainingDivergedError
from trade_agent.training import reinforcement
from trade_agent.training.checkpoint import no_checkpoints
from trade_agent.training.learner import minibatch, observed
from trade_agent.training.reinforcement import (
    Best,
    Hooks,
    copy_state,
    hand_on,
    train_off_policy,
    train_on_policy,
)

ROWS = range(10, 60)
MakeMarket = Callable[..., TrainingMarket]


@pytest.fixture
def make_market(series: MarketSeries, rules: MarketRules) -> MakeMarket:
    def make(seed: int = 0, num_envs: int = 6, episode_bars: int = 7, reward_scale: float = 1.0) -> TrainingMarket:
        return TrainingMarket(
            series=series,
            rules=rules,
            rows=ROWS,
            num_envs=num_envs,
            episode_bars=episode_bars,
            reward_scale=reward_scale,
            generator=torch.Generator().manual_seed(seed),
        )

    return make


def actions(count: int, num_envs: int = 6, seed: int = 1) -> Tensor:
    return torch.rand(count, num_envs, 2, generator=torch.Generator().manual_seed(seed)) * 2.0 - 1.0


# ------------------------------------------------------------------------------------------------ the market


@pytest.mark.parametrize("episode_bars", [2, 7, 49, 1000])
def test_episodes_stay_inside_the_rows(make_market: MakeMarket, episode_bars: int) -> None:
    market = make_market(num_envs=64, episode_bars=episode_bars)
    starts: set[int] = set()
    for action in actions(120, 64):
        assert int(market.state.t.min()) >= ROWS.start
        assert int(market.state.end.max()) <= ROWS.stop - 1
        seen = market.step(action)
        assert int(seen.t.max()) + 1 <= ROWS.stop - 1
        starts |= set(market.state.t[seen.truncated].tolist())
    # Every row from which a whole episode fits is a start.
    assert starts <= set(range(ROWS.start, ROWS.stop - min(episode_bars, len(ROWS) - 1)))
    assert min(starts) == ROWS.start
    assert len(starts) == 1 if episode_bars >= 49 else len(starts) > 0.9 * (len(ROWS) - episode_bars)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_the_compiled_market_is_the_market(series: MarketSeries) -> None:
    rules = MarketRules(max_weight=6.0, max_leverage=6.0, maintenance=0.95, impact=1e-4, latency_bars=1)
    plain, compiled = (
        TrainingMarket(
            series=series,
            rules=rules,
            rows=ROWS,
            num_envs=16,
            episode_bars=7,
            reward_scale=10.0,
            generator=torch.Generator().manual_seed(3),
            compiled=on,
        )
        for on in (False, True)
    )
    ruined = 0
    for action in actions(60, num_envs=16):
        expected, seen = plain.step(action), compiled.step(action)
        ruined += int(expected.terminated.sum())
        for name, value, other in zip(Experience._fields, expected, seen, strict=True):
            torch.testing.assert_close(
                other, value, rtol=1e-5, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
            )
        torch.testing.assert_close(compiled.state.equity, plain.state.equity, rtol=1e-9, atol=0.0)
    assert ruined > 5


def test_an_account_starts_anew_after_its_episode(make_market: MakeMarket) -> None:
    market = make_market()
    ends = 0
    for action in actions(30):
        seen = market.step(action)
        done = seen.truncated | seen.terminated
        ends += int(done.sum())
        assert (market.state.equity[done] == market.rules.initial_equity).all()
        assert (market.state.end[done] - market.state.t[done] == 7).all()
        assert torch.equal(market.state.t[~done], seen.t[~done] + 1)
    assert ends >= 6 * 30 // 7 - 6


def test_first_episodes_have_lengths_of_their_own(make_market: MakeMarket) -> None:
    market = make_market(num_envs=7)
    assert (market.state.end - market.state.t).tolist() == [1, 2, 3, 4, 5, 6, 7]


def test_experience_is_what_the_market_says_when_stepped_again(
    make_market: MakeMarket, series: MarketSeries, rules: MarketRules
) -> None:
    market = make_market(reward_scale=50.0)
    truncated = 0
    for action in actions(20):
        before: MarketState = market.state
        seen = market.step(action)
        after, result = step(series, rules, before, action)
        assert torch.equal(seen.t, before.t)
        assert torch.equal(seen.private, account_observation(series, rules, before))
        # Of the end of the old episode, not of the start of the next one.
        assert torch.equal(seen.next_private, account_observation(series, rules, after))
        torch.testing.assert_close(seen.reward, 50.0 * result.reward)
        assert torch.equal(seen.truncated, result.truncated)
        truncated += int(seen.truncated.sum())
    assert truncated > 0


def test_ruin_is_terminated_and_starts_anew(series: MarketSeries) -> None:
    crashing = torch.linspace(100.0, 1.0, 80, dtype=torch.float64)[:, None].repeat(1, 2)
    market = TrainingMarket(
        series=MarketSeries(open=crashing, close=crashing, tradable=series.tradable),
        rules=MarketRules(periods_per_year=252.0, maintenance=0.9),
        rows=ROWS,
        num_envs=4,
        episode_bars=30,
        reward_scale=1.0,
        generator=torch.Generator().manual_seed(0),
    )
    seen = [market.step(torch.ones(4, 2)) for _ in range(12)]
    terminated = torch.stack([one.terminated for one in seen])
    assert terminated.any(0).all()
    assert not (terminated & torch.stack([one.truncated for one in seen])).any()
    assert (market.state.equity > 0.9 * market.rules.initial_equity).all()


def test_a_market_goes_on_from_its_state(make_market: MakeMarket) -> None:
    first, again = make_market(seed=0), make_market(seed=5)
    for action in actions(10):
        first.step(action)
    again.load_state_dict(copy_state(first.state_dict()))
    again.generator.set_state(first.generator.get_state())
    for action in actions(20, seed=2):
        for name, one, two in zip(Experience._fields, first.step(action), again.step(action), strict=True):
            assert torch.equal(one, two), name


def test_the_generator_alone_decides_where_episodes_start(make_market: MakeMarket) -> None:
    def path(seed: int, global_seed: int) -> Tensor:
        torch.manual_seed(global_seed)
        market = make_market(seed)
        return torch.stack([market.step(action).t for action in actions(30)])

    assert torch.equal(path(3, 0), path(3, 1))
    assert not torch.equal(path(3, 0), path(4, 0))


# ------------------------------------------------------------------------------------------------ the loops


@dataclass
class Recorder:
    """Stands where a stage stands: counts what the loops call back, and observes t and the account as they are."""

    checks: list[int] = field(default_factory=list)
    steps: int = 0
    history: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    batches: list[TensorDict] = field(default_factory=list)
    with_gradient: list[int] = field(default_factory=list)

    def hooks(self) -> Hooks:
        return Hooks(
            check=self.checks.append,
            skip=self.advance,
            advance=self.advance,
            metrics=lambda *row: self.history.append(row),
        )

    def advance(self, count: int) -> None:
        self.steps += count

    def observe(self, t: Tensor, private: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            self.with_gradient.append(len(t))
        return torch.cat((t.unsqueeze(1) / 100.0, private), dim=-1)

    def learn(self, batch: TensorDict) -> dict[str, Tensor]:
        self.batches.append(observed(batch, self.observe).clone())
        return {"loss": torch.tensor(float(len(self.batches)))}


NORMALISED = {"normalise_observation": True, "normalise_reward": True}


def run_off_policy(
    market: TrainingMarket, recorder: Recorder, settings: dict[str, Any] | None = None, **changes: Any
) -> tuple[int, ReplayBuffer, TD3]:
    torch.manual_seed(0)
    width = 1 + market.private_dim
    agent = TD3(observation_dim=width, action_dim=2, hidden_dims=(8,), exploration_noise=0.0, **(settings or {}))
    recorder.agent = agent
    replay = ReplayBuffer(capacity=1000, private_dim=market.private_dim, action_dim=2)
    arguments: dict[str, Any] = {
        "total_env_steps": 120,
        "learning_rate_schedule": "constant",
        "n_step": 1,
        "warmup_env_steps": 30,
        "random_warmup": True,
        "env_steps_per_update": 4,
        "validation_checks": 3,
    }
    generator = torch.Generator().manual_seed(2)
    env_steps = train_off_policy(
        agent,
        env=market,
        replay=replay,
        observe=recorder.observe,
        learn=recorder.learn,
        batch_size=5,
        generator=generator,
        hooks=recorder.hooks(),
        session=no_checkpoints().session("test", generator),
        **(arguments | changes),
    )
    return env_steps, replay, agent


def stored(replay: ReplayBuffer) -> Transitions:
    return replay._taken(torch.arange(len(replay)))


@pytest.mark.parametrize(
    ("changes", "updates"),
    [
        ({}, 22),  # (120 - 30) / 4, the half left over
        ({"env_steps_per_update": 1}, 90),
        ({"env_steps_per_update": 60}, 1),
        ({"warmup_env_steps": 0}, 30),
    ],
)
def test_off_policy_updates_follow_the_budget(make_market: MakeMarket, changes: dict[str, Any], updates: int) -> None:
    recorder = Recorder()
    env_steps, replay, _ = run_off_policy(make_market(), recorder, **changes)
    assert env_steps == recorder.steps == len(replay) == 120
    assert len(recorder.batches) == updates
    assert recorder.checks == [42, 84, 120]
    assert recorder.with_gradient == [5] * updates  # only what is learned from is encoded with a graph


def test_off_policy_metrics_reach_the_history_to_the_last_update(make_market: MakeMarket) -> None:
    recorder = Recorder()
    run_off_policy(make_market(), recorder, env_steps_per_update=1)
    assert [row["loss"] for _, row in recorder.history] == [50.0, 90.0]
    assert recorder.history[-1][0] == 120


@pytest.mark.parametrize("random_warmup", [True, False])
def test_random_actions_come_first_only_when_asked_for(make_market: MakeMarket, random_warmup: bool) -> None:
    recorder = Recorder()
    _, replay, agent = run_off_policy(make_market(), recorder, random_warmup=random_warmup)
    seen = stored(replay)
    wanted = agent.act(recorder.observe(seen.t, seen.private), deterministic=True).action
    by_agent = (seen.action - wanted).abs().amax(1) < 1e-5  # the agent never learns here and has no noise
    assert by_agent[:30].any().item() is not random_warmup
    assert by_agent[30:].all()
    if random_warmup:
        assert float(seen.action[:30].min()) < -0.8
        assert float(seen.action[:30].max()) > 0.8


def test_a_batch_is_observed_at_its_bar_and_the_next_one(make_market: MakeMarket) -> None:
    recorder = Recorder()
    _, replay, _ = run_off_policy(make_market(), recorder)
    sample = replay.sample(40, torch.Generator().manual_seed(0))
    batch = observed(minibatch(sample), recorder.observe)
    torch.testing.assert_close(batch["next", "observation"][:, 0] - batch["observation"][:, 0], torch.full((40,), 0.01))
    assert torch.equal(batch["next", "observation"][:, 1:], sample.next_private)
    assert torch.equal(batch["t"], sample.t.long())
    assert torch.equal(batch["next", "terminated"][:, 0], sample.terminated)


def test_several_steps_of_the_loop_are_those_of_the_market(make_market: MakeMarket) -> None:
    """The same run, once in single steps and once in threes: rewards are summed up to the end of the episode."""
    recorder, last_only = Recorder(), {"warmup_env_steps": 119, "env_steps_per_update": 1}
    _, single, _ = run_off_policy(make_market(), Recorder(), **last_only)
    _, several, agent = run_off_policy(make_market(), recorder, n_step=3, **last_only)
    one, three = stored(single), stored(several)
    assert len(several) == 120 - 2 * 6  # two steps of each environment are under way at the end
    steps = three.steps
    assert isinstance(steps, torch.Tensor)
    assert set(steps.tolist()) == {1, 2, 3}
    bars = one.t.view(-1, 6)
    for row in range(len(several)):
        step, env, count = row // 6, row % 6, int(steps[row])
        rewards = one.reward.view(-1, 6)[step : step + count, env]
        expected = (rewards * agent.gamma ** torch.arange(count)).sum()
        torch.testing.assert_close(three.reward[row], expected)
        assert torch.equal(
            three.next_private[row], one.next_private.view(-1, 6, market_width(one))[step + count - 1, env]
        )
        assert bars[step + count - 1, env] == three.t[row] + count - 1  # within one episode bars follow each other
    batch = recorder.batches[0]
    moved = (batch["next", "observation"] - batch["observation"])[:, 0] * 100.0
    torch.testing.assert_close(moved, batch["steps_to_next_obs"].squeeze(1).float(), atol=1e-3, rtol=0.0)


def market_width(transitions: Any) -> int:
    return int(transitions.next_private.shape[1])


def test_off_policy_statistics_are_those_of_everything_seen(make_market: MakeMarket) -> None:
    recorder = Recorder()
    _, replay, agent = run_off_policy(make_market(), recorder, NORMALISED)
    seen = stored(replay)
    observation = recorder.observe(seen.t, seen.private).double()
    moments = agent.observation_normaliser.moments
    assert moments is not None
    torch.testing.assert_close(moments.mean, observation.mean(0))
    torch.testing.assert_close(moments.variance, observation.var(0, correction=0))
    assert agent.reward_normaliser.moments is not None
    assert agent.reward_normaliser.moments.count == 120
    # What is stored, and handed to the agent, is as it was seen: the agent normalises it when it learns.
    _, plain, _ = run_off_policy(make_market(), Recorder(), random_warmup=True, warmup_env_steps=120)
    torch.testing.assert_close(seen.reward[:30], stored(plain).reward[:30])


@pytest.mark.parametrize("kind", ["on_policy", "off_policy"])
@pytest.mark.parametrize(("schedule", "ends"), [("constant", 1.0), ("linear", 0.0)])
def test_learning_rates_fall_to_zero_over_the_budget(
    make_market: MakeMarket, kind: str, schedule: str, ends: float
) -> None:
    recorder, rates = Recorder(), []

    def spy(batch: TensorDict) -> dict[str, Tensor]:
        rates.append(recorder.agent.optimizer.param_groups[0]["lr"] / 3e-4)
        return {"loss": torch.tensor(0.0)}

    recorder.learn = spy  # type: ignore[method-assign]
    run_loop = run_on_policy if kind == "on_policy" else run_off_policy
    run_loop(make_market(), recorder, learning_rate_schedule=schedule)
    if kind == "on_policy":  # three rounds of two epochs with three minibatches
        expected = [1.0] * 6 + [1.0 + (ends - 1.0) / 3.0] * 6 + [1.0 + 2.0 * (ends - 1.0) / 3.0] * 6
        assert rates == pytest.approx(expected)
    else:  # twenty rounds, the first updates in the sixth
        assert rates[0] == pytest.approx(1.0 + (ends - 1.0) * 5.0 / 20.0)
        assert rates[-1] == pytest.approx(1.0 + (ends - 1.0) * 19.0 / 20.0)
        assert rates == sorted(rates, reverse=True)


def run_on_policy(
    market: TrainingMarket, recorder: Recorder, settings: dict[str, Any] | None = None, **changes: Any
) -> tuple[int, PPO]:
    torch.manual_seed(0)
    agent = PPO(observation_dim=1 + market.private_dim, action_dim=2, hidden_dims=(8,), **(settings or {}))
    recorder.agent = agent
    arguments: dict[str, Any] = {"total_env_steps": 130, "rollout_steps": 10, "epochs": 2, "batch_size": 25}
    arguments["learning_rate_schedule"] = "constant"
    generator = torch.Generator().manual_seed(2)
    env_steps = train_on_policy(
        agent,
        env=market,
        observe=recorder.observe,
        learn=recorder.learn,
        validation_checks=2,
        generator=generator,
        hooks=recorder.hooks(),
        session=no_checkpoints().session("test", generator),
        **(arguments | changes),
    )
    return env_steps, agent


def test_on_policy_goes_over_each_rollout_as_often_as_asked(make_market: MakeMarket) -> None:
    recorder = Recorder()
    env_steps, _ = run_on_policy(make_market(), recorder)
    assert env_steps == recorder.steps == 180  # three rollouts of 60, the first to reach 130
    assert [len(batch) for batch in recorder.batches] == [25, 25, 10] * 2 * 3
    assert recorder.checks == [120, 180]
    assert [steps for steps, _ in recorder.history] == [60, 120, 180]
    first_epoch = torch.cat([batch["t"] for batch in recorder.batches[:3]]).sort().values
    second_epoch = torch.cat([batch["t"] for batch in recorder.batches[3:6]]).sort().values
    assert torch.equal(first_epoch, second_epoch)


def test_a_truncated_step_is_bootstrapped_with_the_value_before_the_reset(
    make_market: MakeMarket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With gamma 1 and lambda 0 a value target is reward + V(next observation), whatever ended there."""
    steps: list[Experience] = []
    original = TrainingMarket.step
    monkeypatch.setattr(TrainingMarket, "step", lambda self, a: (steps.append(original(self, a)), steps[-1])[1])
    finished: list[tuple[Tensor, Tensor]] = []
    finish = RolloutBuffer.finish

    def spy(buffer: RolloutBuffer, **arguments: Any) -> None:
        finish(buffer, **(arguments | {"gamma": 1.0, "gae_lambda": 0.0}))
        finished.append((arguments["next_value"], buffer.value_target.clone()))

    monkeypatch.setattr(reinforcement.RolloutBuffer, "finish", spy)
    recorder = Recorder()
    _, agent = run_on_policy(make_market(reward_scale=10.0), recorder, total_env_steps=60)
    next_value, target = finished[0]
    truncated = torch.stack([seen.truncated for seen in steps])
    assert truncated.any()
    for s, seen in enumerate(steps):
        expected = agent.value(recorder.observe(seen.t + 1, seen.next_private))
        torch.testing.assert_close(next_value[s], expected)
        torch.testing.assert_close(target[s], seen.reward + expected)


@pytest.mark.parametrize("policy", ["gaussian", "beta", "categorical"])
def test_what_is_stored_belongs_to_the_action_that_was_taken(make_market: MakeMarket, policy: str) -> None:
    recorder = Recorder()
    settings = {"policy": policy, "actions": [-1.0, 0.0, 1.0]}
    _, agent = run_on_policy(make_market(), recorder, settings, total_env_steps=60, epochs=1, batch_size=60)
    batch = recorder.batches[0]
    metrics = agent.update(batch)  # the agent has not learned yet: every probability ratio is 1
    assert float(metrics["approx_kl"]) == pytest.approx(0.0, abs=1e-6)
    assert float(metrics["clip_fraction"]) == 0.0


def test_observations_are_normalised_alike_throughout_a_round(make_market: MakeMarket) -> None:
    recorder, seen = Recorder(), []

    def learn(batch: TensorDict) -> dict[str, Tensor]:
        agent, batch = recorder.agent, observed(batch, recorder.observe)
        moments = agent.observation_normaliser.moments
        normalised = agent.observation_normaliser(batch["observation"])
        log_prob = agent.policy.distribution.log_prob(batch["raw"], agent.policy(normalised))
        seen.append((float(moments.count), float((log_prob - batch["log_prob"]).detach().abs().max())))
        recorder.batches.append(batch.clone())
        return {"loss": torch.tensor(0.0)}

    recorder.learn = learn  # type: ignore[method-assign]
    _, agent = run_on_policy(make_market(), recorder, NORMALISED, epochs=1, batch_size=60)
    assert [count for count, _ in seen] == [0.0, 60.0, 120.0]
    assert max(difference for _, difference in seen) < 1e-4
    observation = torch.cat([batch["observation"] for batch in recorder.batches]).double()
    moments = agent.observation_normaliser.moments
    assert moments is not None
    torch.testing.assert_close(moments.mean, observation.mean(0))
    torch.testing.assert_close(moments.variance, observation.var(0, correction=0))


def test_rewards_of_a_rollout_are_divided_by_one_scale(
    make_market: MakeMarket, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished: list[Tensor] = []
    finish = RolloutBuffer.finish
    monkeypatch.setattr(
        reinforcement.RolloutBuffer,
        "finish",
        lambda buffer, **named: (finished.append(buffer.reward.clone()), finish(buffer, **named))[1],
    )
    plain, normalised = (run_on_policy(make_market(), Recorder(), s, total_env_steps=60)[1] for s in ({}, NORMALISED))
    assert plain.reward_normaliser.moments is None
    moments = normalised.reward_normaliser.moments
    assert moments is not None
    torch.testing.assert_close(finished[1], finished[0] / moments.variance.sqrt().float(), atol=1e-5, rtol=1e-4)


# ------------------------------------------------------------------------------------------------ what is kept


def test_best_keeps_a_copy_of_the_highest_score() -> None:
    weights = {"network": {"w": torch.zeros(2)}, "count": 1}
    best = Best()
    best.consider(0.5, lambda: weights, 10)
    weights["network"]["w"] += 1.0  # type: ignore[index]
    best.consider(0.5, lambda: weights, 20)  # no better: the earlier one stays
    best.consider(math.nan, lambda: weights, 30)
    assert best.state is not None
    assert (best.score, best.env_steps, best.state["network"]["w"].tolist()) == (0.5, 10, [0.0, 0.0])
    best.consider(0.6, lambda: weights, 40)
    assert (best.env_steps, best.state["network"]["w"].tolist(), best.state["count"]) == (40, [1.0, 1.0], 1)


def test_copies_share_no_memory() -> None:
    inner = torch.zeros(1)
    copied = copy_state({"a": {"b": inner}, "c": "text"})
    inner += 1.0
    assert copied == {"a": {"b": torch.zeros(1)}, "c": "text"}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_metric_that_is_not_finite_is_named(value: float) -> None:
    recorder = Recorder()
    hooks = recorder.hooks()
    hand_on({"loss_actor": torch.tensor(2.0)}, 5, hooks, Alone())
    with pytest.raises(TrainingDivergedError, match=r"loss_critic is -?(nan|inf) after 640 environment steps"):
        hand_on({"loss_actor": torch.tensor(0.0), "loss_critic": torch.tensor(value)}, 640, hooks, Alone())
    assert [(steps, list(metrics)) for steps, metrics in recorder.history] == [
        (5, ["loss_actor"]),
        (640, ["loss_actor", "loss_critic"]),
    ]


def test_an_update_that_is_not_finite_ends_the_loop(make_market: MakeMarket) -> None:
    recorder = Recorder()
    recorder.learn = lambda batch: {"loss_critic": torch.tensor(math.nan)}  # type: ignore[method-assign]
    with pytest.raises(TrainingDivergedError, match="loss_critic is nan after 120 environment steps"):
        run_off_policy(make_market(), recorder)
    with pytest.raises(TrainingDivergedError, match="loss_critic is nan after 60 environment steps"):
        run_on_policy(make_market(), recorder)
