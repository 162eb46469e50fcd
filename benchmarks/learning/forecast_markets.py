"""Units that run the stages themselves: forecasters against Bayes, joint training against frozen, gate against member.

Each function trains with one seed and gives numbers from the test rows.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.learning.setting import compose, stage_context
from benchmarks.optima import bayes
from trade_agent.config.schema import (
    AgentModel,
    CnnLstmModel,
    CnnLstmStage,
    EnsembleModel,
    EnsembleUpstream,
    HybridStage,
    HybridUpstream,
    TrainingConfig,
)
from trade_agent.training.stages import cnn_lstm, ensemble, hybrid, rl
from trade_agent.training.stages.context import Parent, StageContext, StageOutcome

# ------------------------------------------------------------------------------------------------ forecaster


def learn_forecaster(overrides: Sequence[str], seed: int, env_steps: int, folder: Path) -> dict[str, Any]:
    """Accuracy of the direction of the next bar: forecaster, Bayes rule, and always naming the commoner direction.

    On noise there is no Bayes rule to compare with: whether the naive forecast or the base rate is beaten is told.
    """
    config = compose(overrides, seed)
    assert isinstance(config.model, CnnLstmModel)
    assert isinstance(config.stage, CnnLstmStage)
    context = stage_context(config, window_bars=config.model.window_bars, horizons=config.model.horizons, folder=folder)
    outcome = cnn_lstm.run(context, stage=config.stage, model=config.model)
    accuracy, rows = outcome.metrics["directional_accuracy"], context.dataset.split.test
    base_rate = outcome.metrics["base_rate"]
    if config.data.source not in bayes.FILTERS:
        beaten = [name for name in ("base_rate", "last_value") if outcome.comparisons[name].beats]
        return {"reached": accuracy, "base_rate": base_rate, "beaten": beaten, "env_steps": 0}
    closes = np.log(context.dataset.bars.close[:, 0])
    returns = np.diff(closes, prepend=math.log(float(context.dataset.bars.open[0, 0])))
    probability = bayes.FILTERS[config.data.source](returns)
    optimum = bayes.accuracy(probability[rows.start : rows.stop], returns[rows.start : rows.stop])
    return {"reached": accuracy, "optimum": optimum, "base_rate": base_rate, "env_steps": 0}


# ------------------------------------------------------------------------------------------------ hybrid


def growth(outcome: StageOutcome, context: StageContext) -> float:
    """Mean log growth of a test bar in basis points."""
    return math.log1p(outcome.metrics["total_return"]) / (len(context.dataset.split.test) - 1) * 1e4


def parent_of(role: str, outcome: StageOutcome) -> Parent:
    return Parent(role=role, model_id=f"{role} of this unit", state=outcome.state)


def forecaster_of(context: StageContext, stage: CnnLstmStage, model: CnnLstmModel) -> Parent:
    return parent_of("forecaster", cnn_lstm.run(context, stage=stage, model=model))


def with_steps(context: StageContext, env_steps: int) -> StageContext:
    """The same context with another budget for an agent of either kind."""
    return replace(
        context, trainer=replace(context.trainer, on_policy_env_steps=env_steps, off_policy_env_steps=env_steps)
    )


def learn_hybrid(overrides: Sequence[str], seed: int, env_steps: int, folder: Path) -> dict[str, Any]:
    """Growth on test rows of joint training and of an agent on the frozen forecaster that had all steps of both stages.

    One half of the steps goes to the agent that the hybrid starts from, one half to joint training.
    """
    config = compose(overrides, seed)
    upstream = config.upstream
    assert isinstance(upstream, HybridUpstream)
    assert isinstance(config.stage, HybridStage)
    assert isinstance(config.model, AgentModel)
    context = hybrid_context(config, upstream.cnn_lstm.model, env_steps // 2, folder)
    forecaster = forecaster_of(context, upstream.cnn_lstm.stage, upstream.cnn_lstm.model)
    agent = rl.run(with_steps(context, env_steps // 2), model=upstream.rl.model, forecaster=forecaster)
    frozen = rl.run(with_steps(context, env_steps), model=upstream.rl.model, forecaster=forecaster)
    joint = hybrid.run(
        context,
        stage=config.stage,
        forecaster_stage=upstream.cnn_lstm.stage,
        model=config.model,
        forecaster=forecaster,
        agent=parent_of("agent", agent),
    )
    return {
        "reached": growth(joint, context),
        "compared": growth(frozen, context),
        "parent": growth(agent, context),
        "env_steps": agent.env_steps + joint.env_steps,
    }


def hybrid_context(config: TrainingConfig, model: CnnLstmModel, joint_env_steps: int, folder: Path) -> StageContext:
    context = stage_context(config, window_bars=model.window_bars, horizons=model.horizons, folder=folder)
    trainer = replace(
        context.trainer, joint_on_policy_env_steps=joint_env_steps, joint_off_policy_env_steps=joint_env_steps
    )
    return replace(context, trainer=trainer)


# ------------------------------------------------------------------------------------------------ ensemble


def learn_ensemble(overrides: Sequence[str], seed: int, env_steps: int, folder: Path) -> dict[str, Any]:
    """Growth on test rows of the gated ensemble and of its best member; each member saw one regime only.

    The market begins with a quarter of its bars in each regime: these are the members' train rows. The gate is trained
    on all train rows.
    """
    config = compose(overrides, seed)
    upstream = config.upstream
    assert isinstance(upstream, EnsembleUpstream)
    assert isinstance(config.model, EnsembleModel)
    model = upstream.cnn_lstm.model
    context = stage_context(config, window_bars=model.window_bars, horizons=model.horizons, folder=folder)
    forecaster = forecaster_of(context, upstream.cnn_lstm.stage, model)
    quarter = context.dataset.bars.num_bars // 4
    members = []
    for rows in (range(quarter), range(quarter, 2 * quarter)):
        own = replace(context.dataset, split=replace(context.dataset.split, train=rows))
        specialist = replace(with_steps(context, env_steps), dataset=own)
        members.append(rl.run(specialist, model=upstream.members["ppo"].rl.model, forecaster=forecaster))
    gated = ensemble.run(context, model=config.model, members=[parent_of("member", member) for member in members])
    alone = [growth(member, context) for member in members]
    return {
        "reached": growth(gated, context),
        "compared": max(alone),
        "members": alone,
        "env_steps": sum(member.env_steps for member in members),
    }
