"""Units without a forecaster: the agent sees scaled columns of bar t and its account, and nothing else.

Each function trains one agent with one seed and gives numbers; what is `reached` and the `optimum` are in one unit and
on the same bars, which no training saw. `curve` is what the picture shows: the action against the signal.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.learning.setting import Floats, Policy, blocks, compose, follow, stage_context
from benchmarks.optima import garleanu_pedersen, leak
from trade_agent.agents.base import Agent
from trade_agent.agents.builders import agent_from_spec
from trade_agent.config.schema import AgentModel
from trade_agent.data.synthetic import GP_REVERSION, GP_STRENGTH, GP_VOLATILITY, LEAK_VOLATILITY
from trade_agent.envs.market import account_fields
from trade_agent.envs.rules import MarketRules
from trade_agent.evaluation.backtest import run_policy
from trade_agent.evaluation.grading import PerformanceGrade, grade
from trade_agent.evaluation.trading import evaluate_trading
from trade_agent.training.dataset import MarketDataset
from trade_agent.training.learner import Learner
from trade_agent.training.models import agent_spec
from trade_agent.training.stages.context import StageContext, seed_everything
from trade_agent.training.stages.trading import train_agent

CURVE_POINTS = 61


class SignalAgent:
    """An agent on the feature table of a dataset."""

    def __init__(self, model: AgentModel, dataset: MarketDataset) -> None:
        self.model, self.dataset = model, dataset
        self.table = dataset.features.flatten(1)
        self.account_dim = len(account_fields(dataset.rules, dataset.num_assets))
        width = self.table.shape[1] + self.account_dim
        spec = agent_spec(model, observation_dim=width, action_dim=dataset.num_assets, rules=dataset.rules)
        self.agent: Agent = agent_from_spec(spec)

    def observe(self, t: Tensor, account: Tensor) -> Tensor:
        return torch.cat((self.table.index_select(0, t), account), dim=-1)

    def act(self, t: Tensor, account: Tensor) -> Tensor:
        """The deterministic policy."""
        return self.agent.act(self.observe(t, account), deterministic=True).action

    def explore(self, t: Tensor, account: Tensor) -> Tensor:
        """The policy as it acts in training."""
        return self.agent.act(self.observe(t, account), deterministic=False).action

    def train(
        self,
        context: StageContext,
        generator: torch.Generator,
        env_steps: int,
        label: str,
        check: Callable[[int], None] = lambda env_steps: None,
    ) -> int:
        """Train on the train rows, without choosing among states; returns the environment steps that were made."""
        rows = context.dataset.split.train
        steps, _ = train_agent(
            context,
            self.agent,
            model=self.model,
            rows=range(max(rows.start, context.dataset.first_row), rows.stop),
            observe=self.observe,
            learner=Learner(self.agent, self.observe),
            check=check,
            on_policy_env_steps=env_steps,
            off_policy_env_steps=env_steps,
            random_warmup=True,
            generator=generator,
            label=label,
            session=context.checkpoints.session(label, generator),
        )
        return steps

    @torch.no_grad()
    def curve(self, signal: Floats, held: Floats) -> list[list[float]]:
        """Action for every held weight [H] and raw signal [S], [H][S]: a quiet account without profit or drawdown."""
        raw = next(iter(self.dataset.bars.signals.values()))[:, 0]
        rows = slice(self.dataset.first_row, None)
        slope, intercept = np.polyfit(raw[rows], self.table[rows, 0].double().numpy(), 1)  # the scaler, once more
        scaled = torch.tensor(slope * signal + intercept, dtype=torch.float32).unsqueeze(1)
        curves = []
        for weight in held:
            account = torch.tensor([weight, 0.0, 1.0, 1.0 - weight, 0.0, 0.1 * np.log(2.0)], dtype=torch.float32)
            observation = torch.cat((scaled, account.expand(len(scaled), self.account_dim)), dim=1)
            curves.append(self.agent.act(observation, deterministic=True).action[:, 0].tolist())
        return curves


def prepare(overrides: Sequence[str], seed: int, folder: Path) -> tuple[StageContext, SignalAgent, torch.Generator]:
    """Market, agent and generator of one unit."""
    config = compose(overrides, seed)
    context = stage_context(config, window_bars=1, horizons=[1], folder=folder)
    assert isinstance(config.model, AgentModel)
    generator = seed_everything(seed, context.device, "benchmarks.learning", config.data.source, config.model.name)
    return context, SignalAgent(config.model, context.dataset), generator


# ------------------------------------------------------------------------------------------------ leak

LEAK_ACCOUNTS = 20  # of 1,000 unseen bars each
LEAK_HELD = (-1.0, 1.0)


def leak_policy(optimum: leak.LeakOptimum, signal: Floats) -> Policy:
    """The optimum as a policy of the market: signal [T] is the return of the next bar."""

    def act(t: Tensor, account: Tensor) -> Tensor:
        return torch.tensor(optimum.targets(account[:, 0].double().numpy(), signal[t.numpy()])).unsqueeze(1)

    return act


def leak_growth(dataset: MarketDataset) -> Callable[[Policy], float]:
    """A function from a policy to its mean log growth of a test bar, in basis points."""
    starts, num_bars = blocks(dataset.split.test, LEAK_ACCOUNTS)

    def growth(policy: Policy) -> float:
        paths = follow(dataset.series, dataset.rules, policy, starts, num_bars)
        return float(np.log(paths.equity[-1] / dataset.rules.initial_equity).mean() / num_bars * 1e4)

    return growth


def solved_leak(dataset: MarketDataset) -> leak.LeakOptimum:
    """The optimum under the rules of the dataset."""
    return leak.solve(volatility=LEAK_VOLATILITY, cost=float(dataset.rules.linear_cost))


def learn_leak(overrides: Sequence[str], seed: int, env_steps: int, folder: Path) -> dict[str, Any]:
    """Mean log growth of a bar in basis points: of the agent, of the optimum and of following the sign."""
    context, learner, generator = prepare(overrides, seed, folder)
    dataset = context.dataset
    steps = learner.train(context, generator, env_steps, f"leak {learner.model.name} {seed}")
    signal = dataset.bars.signals["leak"]
    optimum, growth = solved_leak(dataset), leak_growth(dataset)
    shown, held = np.linspace(-3.0, 3.0, CURVE_POINTS) * LEAK_VOLATILITY, np.array(LEAK_HELD)
    return {
        "reached": growth(learner.act),
        "optimum": growth(leak_policy(optimum, signal[:, 0])),
        "sign": growth(lambda t, account: torch.as_tensor(signal)[t].sign()),
        "env_steps": steps,
        "curve": {
            "signal": shown.tolist(),
            "held": held.tolist(),
            "learned": learner.curve(shown, held),
            "optimal": [optimum.targets(np.full_like(shown, weight), shown).tolist() for weight in held],
        },
    }


# ------------------------------------------------------------------------------------------------ Garleanu-Pedersen

GP_ACCOUNTS = 2000
GP_BARS = 100  # with a discount of 0.9 what comes later counts less than 0.003 %


def gp_model(rules: MarketRules, discount: float) -> garleanu_pedersen.Model:
    """The market and its rules in the paper's terms."""
    return garleanu_pedersen.Model(
        reversion=GP_REVERSION,
        volatility=GP_VOLATILITY,
        risk_aversion=rules.risk_aversion,
        cost=2.0 * rules.impact / GP_VOLATILITY**2,
        discount=discount,
    )


def gp_policy(optimum: garleanu_pedersen.Policy, factor: Floats, max_weight: float) -> Policy:
    """The closed form as a policy of the market: factor [T]."""
    table = torch.as_tensor(factor)

    def act(t: Tensor, account: Tensor) -> Tensor:
        return optimum.position(account[:, 0].double(), table[t]).unsqueeze(1) / max_weight

    return act


def gp_value(dataset: MarketDataset, discount: float) -> Callable[[Policy], tuple[float, float]]:
    """A function from a policy to its discounted reward from a flat start on test rows, times 10,000.

    The mean is over accounts that start at many bars. The first number counts each bar with its expectation given the
    signal: the return that the signal does not explain would drown the difference between policies. The second one is
    the sum of the market's own rewards.
    """
    rows, rules = dataset.split.test, dataset.rules
    starts = range(rows.start, rows.stop - GP_BARS - 1, max(1, (len(rows) - GP_BARS - 1) // GP_ACCOUNTS))
    decided = np.arange(GP_BARS)[:, None] + np.array(starts)  # [S, N]
    factor, weights = dataset.bars.signals["factor"][decided, 0], discount ** np.arange(GP_BARS)
    growth = (dataset.bars.close / dataset.bars.open)[decided + 1, 0]

    def value(policy: Policy) -> tuple[float, float]:
        paths = follow(dataset.series, rules, policy, starts, GP_BARS)
        position = paths.weight / growth  # as it was filled
        risk = 0.5 * rules.risk_aversion * GP_VOLATILITY**2 * position**2
        expected = position * factor - risk - rules.impact * paths.turnover**2
        return float(weights @ expected.mean(axis=1)) * 1e4, float(weights @ paths.reward.mean(axis=1)) * 1e4

    return value


def learn_garleanu_pedersen(overrides: Sequence[str], seed: int, env_steps: int, folder: Path) -> dict[str, Any]:
    """Discounted reward of the agent and of the closed form on the same bars, see gp_value."""
    context, learner, generator = prepare(overrides, seed, folder)
    dataset, discount = context.dataset, learner.model.gamma
    steps = learner.train(context, generator, env_steps, f"garleanu_pedersen {learner.model.name} {seed}")
    model = gp_model(dataset.rules, discount)
    optimum = garleanu_pedersen.closed_form(model)
    value = gp_value(dataset, discount)
    reached, realised = value(learner.act)
    factor, limit = dataset.bars.signals["factor"][:, 0], dataset.rules.max_weight
    best, realised_best = value(gp_policy(optimum, factor, limit))
    deviation = GP_STRENGTH * GP_VOLATILITY
    aim = optimum.aim_per_factor * deviation
    shown, held = np.linspace(-2.5, 2.5, CURVE_POINTS) * deviation, np.array([-aim, 0.0, aim])
    return {
        "reached": reached,
        "optimum": best,
        "realised": realised,
        "realised_optimum": realised_best,
        "closed_form": garleanu_pedersen.value(model, optimum, deviation) * 1e4,
        "env_steps": steps,
        "curve": {
            "signal": shown.tolist(),
            "held": held.tolist(),
            "learned": (limit * np.array(learner.curve(shown, held))).tolist(),
            "optimal": [optimum.position(weight, shown).tolist() for weight in held],
        },
    }


# ------------------------------------------------------------------------------------------------ noise

NOISE_ACCOUNTS = 20


def learn_noise(overrides: Sequence[str], seed: int, env_steps: int, folder: Path) -> dict[str, Any]:
    """Whether a market without anything to learn is taken for one with: by the test against flat, by the grade.

    `turnover` is that of the exploring policy, a bar, before and after training.
    """
    context, learner, generator = prepare(overrides, seed, folder)
    dataset = context.dataset
    starts, num_bars = blocks(dataset.split.test, NOISE_ACCOUNTS)

    def turnover() -> float:
        return float(follow(dataset.series, dataset.rules, learner.explore, starts, num_bars).turnover.mean())

    before = turnover()
    steps = learner.train(context, generator, env_steps, f"noise {learner.model.name} {seed}")
    rows = dataset.split.test
    backtest = run_policy(dataset.series, dataset.rules, learner.act, start=rows.start, end=rows.stop - 1)
    result = evaluate_trading(
        backtest,
        series=dataset.series,
        rules=dataset.rules,
        timestamps=dataset.bars.timestamps,
        seed=seed,
        num_trials=1,
        num_resamples=context.evaluation.bootstrap_samples,
        cost_bps=(),
    )
    decision = grade(learner.model.name, result.grade_inputs(), context.grading)
    return {
        "significant": result.mean_return.low > 0.0,  # the lower end of 95 %: a one-sided test of 2.5 %
        "above_c": decision.grade > PerformanceGrade.C,
        "grade": str(decision.grade),
        "sharpe": result.metrics["sharpe"],
        "turnover": [before, turnover()],
        "env_steps": steps,
    }
