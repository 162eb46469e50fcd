"""What the trading stages share: the score on validation rows, the verdict on test rows, the outcome."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from trade_agent.agents.base import Agent
from trade_agent.config.schema import AgentModel
from trade_agent.envs.batched import TrainingMarket
from trade_agent.evaluation.backtest import Backtest, Policy, run_policy
from trade_agent.evaluation.grading import grade
from trade_agent.evaluation.report import plot_equity
from trade_agent.evaluation.trading import evaluate_trading
from trade_agent.training.agent_loop import loop_env_steps, train_in
from trade_agent.training.checkpoint import Session
from trade_agent.training.compiling import choose_compiled
from trade_agent.training.dataset import MarketDataset
from trade_agent.training.learner import Learner, Observe
from trade_agent.training.stages.context import StageContext, StageOutcome
from trade_agent.training.timed_round import one_round, steps_of_round


def backtest(dataset: MarketDataset, policy: Policy, rows: range) -> Backtest:
    """The policy from the close of the first bar of `rows`, flat, to the close of the last one."""
    return run_policy(dataset.series, dataset.rules, policy, start=rows.start, end=rows.stop - 1)


def validation_sharpe(dataset: MarketDataset, policy: Policy) -> float:
    """Annual Sharpe ratio net of costs on the validation rows, the score by which states and parents are chosen."""
    return backtest(dataset, policy, dataset.split.validation).metrics()["sharpe"]


def validate(context: StageContext, policies: Sequence[Policy], step: int) -> list[float]:
    """One validation check: returns the score of each policy, and tells the watch of the run every figure of the best.

    Raises TrialPrunedError where the run is a trial of a search that is not worth going on.
    """
    rows = context.dataset.split.validation
    figures = context.world.agreed([backtest(context.dataset, policy, rows).metrics() for policy in policies])
    context.watch.validated(step, max(figures, key=lambda metrics: metrics["sharpe"]))
    return [metrics["sharpe"] for metrics in figures]


def train_rows(dataset: MarketDataset, window_bars: int) -> range:
    """Bars of the train split that have a whole window behind them."""
    return range(max(dataset.split.train.start, dataset.first_row + window_bars - 1), dataset.split.train.stop)


def train_agent(
    context: StageContext,
    agent: Agent,
    *,
    model: AgentModel,
    rows: range,
    observe: Observe,
    learner: Learner,
    check: Callable[[int], None],
    on_policy_env_steps: int,
    off_policy_env_steps: int,
    random_warmup: bool,
    generator: torch.Generator,
    label: str,
    session: Session,
) -> tuple[int, dict[str, list[float]]]:
    """Run the loop of the agent's kind over `rows`. Returns environment steps and the history of its metrics."""
    dataset = context.dataset
    context.world.connect(agent)
    context.world.own_random_numbers(generator)

    def make_market(generator: torch.Generator, compiled: bool) -> TrainingMarket:
        return TrainingMarket(
            series=dataset.series,
            rules=dataset.rules,
            rows=rows,
            num_envs=context.world.share(model.num_envs, "model.num_envs") * agent.copies,
            episode_bars=context.episode_bars,
            reward_scale=model.reward_scale,
            generator=generator,
            compiled=compiled,
        )

    if context.compiled:
        torch.compiler.reset()  # of one function at most eight variants are kept, and a process may train many agents
    total_env_steps = loop_env_steps(model, on_policy=on_policy_env_steps, off_policy=off_policy_env_steps)
    compiled = context.compiled
    if compiled == "auto":
        compiled = choose_compiled(
            context.folder / "compile.json",
            make_round=lambda on: one_round(make_market(torch.Generator(context.device), on), agent, model, on),
            rounds=math.ceil(total_env_steps / (steps_of_round(model) * model.num_envs)),
            world=context.world,
            progress=context.progress,
        )
    if compiled:
        agent.fuse()
    return train_in(
        make_market(generator, compiled),
        agent,
        model=model,
        observe=observe,
        learner=learner,
        capture=context.capture,
        check=check,
        total_env_steps=total_env_steps,
        validation_checks=context.trainer.validation_checks,
        validation_figures=("sharpe", "turnover"),
        random_warmup=random_warmup,
        generator=generator,
        progress=context.progress,
        watch=context.watch,
        label=label,
        session=session,
    )


def trading_outcome(
    context: StageContext,
    *,
    model_type: str,
    policy: Policy,
    validation_score: float,
    state: dict[str, Any],
    contract: dict[str, Any],
    env_steps: int,
    history: dict[str, list[float]],
    notes: dict[str, Any],
) -> StageOutcome:
    """Judge a finished policy, once, on test rows. `validation_score` is its Sharpe ratio on validation rows."""
    dataset, settings = context.dataset, context.evaluation
    test = backtest(dataset, policy, dataset.split.test)
    result = evaluate_trading(
        test,
        series=dataset.series,
        rules=dataset.rules,
        timestamps=dataset.bars.timestamps,
        seed=context.seed,
        num_trials=context.num_trials,
        confidence=settings.confidence,
        num_resamples=settings.bootstrap_samples,
        cost_bps=settings.cost_sensitivity_bps,
    )
    return StageOutcome(
        state=state,
        contract=contract,
        objective={"name": "validation_sharpe", "value": validation_score, "direction": "max"},
        validation=backtest(dataset, policy, dataset.split.validation).metrics(),
        metrics=result.metrics,
        baselines=result.baselines,
        comparisons=result.comparisons,
        report=result.as_dict(),
        grade=grade(model_type, result.grade_inputs() | dataset.grade_inputs(), context.grading),
        headline=("sharpe", result.metrics["sharpe"]),
        env_steps=env_steps,
        history=history,
        pictures=[_picture(context, test, result.curves, model_type)],
        notes=notes,
    )


def trading_contract(dataset: MarketDataset, window_bars: int, horizons: tuple[int, ...]) -> dict[str, Any]:
    """What somebody must know to run the policy: the observation it reads and the meaning of its action."""
    rules = dataset.rules
    return {
        "window_bars": window_bars,
        "horizons": list(horizons),
        "num_assets": dataset.num_assets,
        "action": {
            "meaning": "target weight of each asset, -1 the lowest and 1 the highest allowed",
            "max_weight": rules.max_weight,
            "max_leverage": rules.max_leverage,
            "allow_short": rules.allow_short,
            "fill": rules.fill,
            "latency_bars": rules.latency_bars,
        },
    }


def weighted_by_score(scores: list[float]) -> Tensor:
    """Weights [M] in proportion to positive scores; equal ones where no member scored above 0."""
    positive = torch.tensor([max(score, 0.0) if math.isfinite(score) else 0.0 for score in scores])
    return positive / positive.sum() if positive.sum() > 0 else torch.full_like(positive, 1.0 / len(scores))


def _picture(context: StageContext, test: Backtest, curves: dict[str, Any], model_type: str) -> str:
    path = context.folder / "equity.png"
    stamps = context.dataset.bars.timestamps[test.start : test.start + len(test.equity)]
    plot_equity(
        path,
        timestamps=stamps,
        equity=test.equity,
        baselines=curves,
        weights=test.weights,
        asset_names=context.dataset.bars.symbols,
        title=f"{model_type} on {', '.join(context.dataset.bars.symbols)}: test rows",
        name=model_type,
    )
    return path.name
