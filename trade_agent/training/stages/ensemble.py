"""Stage 4: several registered hybrids combined into one policy."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from trade_agent.config.schema import EnsembleModel
from trade_agent.envs.rules import MarketRules, target_weights
from trade_agent.envs.series import MarketSeries
from trade_agent.errors import TrainingDivergedError
from trade_agent.networks.combiners import GateCombiner
from trade_agent.training.agent_loop import pack_history, unpack_history
from trade_agent.training.dataset import MarketDataset
from trade_agent.training.models import AgentPolicy, EnsemblePolicy, policy_from_state
from trade_agent.training.reinforcement import Best
from trade_agent.training.stages.context import Parent, StageContext, StageOutcome, seed_everything
from trade_agent.training.stages.trading import (
    backtest,
    trading_contract,
    trading_outcome,
    train_rows,
    validate,
    validation_sharpe,
    weighted_by_score,
)


def run(context: StageContext, *, model: EnsembleModel, members: Sequence[Parent]) -> StageOutcome:
    """Combine the members. Weights come from their validation Sharpe ratios; the gate is trained on train rows."""
    dataset = context.dataset
    generator = seed_everything(context.seed, context.device, "ensemble", model.combiner)
    policies = [policy_from_state(member.state, dataset.features) for member in members]
    agents = [policy for policy in policies if isinstance(policy, AgentPolicy)]
    notes: dict[str, Any] = {}
    # Scored here, on this run's validation rows: a named member was chosen on its own.
    weights = torch.full((len(agents),), 1.0 / len(agents), device=context.device)
    if model.combiner == "weighted":
        weights = weighted_by_score([validation_sharpe(dataset, agent) for agent in agents]).to(context.device)
        notes["weights"] = {member.model_id: float(weight) for member, weight in zip(members, weights, strict=True)}
    gate: GateCombiner | None = None
    gate_state: dict[str, Any] | None = None
    history: dict[str, list[float]] = {}
    if model.combiner == "gate":
        window_bars = max(member.state["forecaster"]["spec"]["window_bars"] for member in members)
        gate, gate_state, history = train_gate(context, model, agents, train_rows(dataset, window_bars), generator)
    flat_action = 0.0 if dataset.rules.allow_short else -1.0
    policy = EnsemblePolicy(
        agents,
        combiner=model.combiner,
        weights=weights,
        gate=gate,
        features=dataset.features,
        flat_action=flat_action,
    )
    first = members[0].state["forecaster"]
    return trading_outcome(
        context,
        model_type="ensemble",
        policy=policy,
        validation_score=validation_sharpe(dataset, policy),
        state={
            "kind": "ensemble",
            "combiner": model.combiner,
            "weights": weights,
            "flat_action": flat_action,
            "gate": gate_state,
            "members": [member.state for member in members],
        },
        contract=trading_contract(dataset, first["spec"]["window_bars"], tuple(first["horizons"]))
        | {"combiner": model.combiner, "num_members": len(members)},
        env_steps=0,
        history=history,
        notes=notes,
    )


def train_gate(
    context: StageContext,
    model: EnsembleModel,
    agents: Sequence[AgentPolicy],
    rows: range,
    generator: torch.Generator,
) -> tuple[GateCombiner, dict[str, Any], dict[str, list[float]]]:
    """A gate that maximises the mean log growth of the mixed positions on train rows, net of linear costs.

    The members' actions are those of their own backtests over these rows, so the whole path is one differentiable
    expression; that the mixture would move their accounts a little differently is neglected in training, not in the
    evaluation. The epoch with the best validation Sharpe ratio is kept.
    """
    dataset = context.dataset
    returns = held_returns(dataset.series, dataset.rules, rows)
    features = dataset.features[rows.start : rows.start + len(returns)].flatten(1)
    spec: dict[str, Any] = {
        "feature_dim": features.shape[1],
        "num_members": len(agents),
        "hidden_dims": list(model.gate_hidden_sizes),
    }
    gate = GateCombiner(**spec).to(context.device)
    actions = member_actions(dataset, agents, rows)[:, : len(returns)]
    optimizer = torch.optim.Adam(gate.parameters(), lr=model.gate_learning_rate)
    best = Best()
    history: dict[str, list[float]] = {"growth": []}

    def check(epoch: int) -> None:
        policy = EnsemblePolicy(
            agents,
            combiner="gate",
            weights=torch.ones(len(agents)),
            gate=gate,
            features=dataset.features,
            flat_action=0.0,
        )
        (score,) = validate(context, [policy], epoch)
        best.consider(score, gate.state_dict, epoch)

    done = {"epochs": 0}
    session = context.checkpoints.session("gate", generator)
    session.keep("gate", gate.state_dict, gate.load_state_dict)
    session.keep("optimizer", optimizer.state_dict, optimizer.load_state_dict)
    session.keep("best", best.state_dict, best.load_state_dict)
    session.keep("history", lambda: pack_history(history), lambda state: history.update(unpack_history(state)))
    session.keep("loop", lambda: dict(done), done.update)
    session.begin_with(lambda: check(0))
    session.restore()
    for group in optimizer.param_groups:
        group["lr"] = model.gate_learning_rate * session.rate_factor
    epochs, checks = context.trainer.gate_epochs, context.trainer.validation_checks
    context.watch.expect(metrics=[], reports=epochs, validation=["sharpe", "turnover"], checks=checks + 1)
    with context.progress.task("gate", epochs) as task:
        task.skip(done["epochs"])
        for epoch in range(done["epochs"], epochs):
            wanted = target_weights(dataset.rules, gate(actions, features))
            weights = carried(wanted, dataset.series, dataset.rules, rows)
            growth = log_growth(weights, returns, dataset.rules.linear_cost)
            optimizer.zero_grad()
            (-growth).backward()
            # Every process goes over the whole path, which is one expression: the average only keeps them equal.
            context.world.average_gradients(list(gate.parameters()))
            optimizer.step()
            history["growth"].append(float(growth.detach()))
            context.watch.metrics(epoch + 1, {"growth": history["growth"][-1]})
            if not torch.isfinite(growth):
                raise TrainingDivergedError(f"the gate diverged in epoch {epoch + 1}", "lower model.gate_learning_rate")
            task.advance(1)
            checked = (epoch + 1) * checks // epochs > epoch * checks // epochs
            if checked:
                check(epoch + 1)
            done["epochs"] = epoch + 1
            session.boundary(due=checked)
    assert best.state is not None
    gate.load_state_dict(best.state)
    return gate, {"spec": spec, "state": best.state}, history


def member_actions(dataset: MarketDataset, agents: Sequence[AgentPolicy], rows: range) -> Tensor:
    """Deterministic actions [M, S, A] of each member in its own backtest, at every bar of `rows` but the last."""
    recorded: list[Tensor] = []
    for agent in agents:
        actions: list[Tensor] = []

        def act(t: Tensor, account: Tensor, agent: AgentPolicy = agent, actions: list[Tensor] = actions) -> Tensor:
            actions.append(agent(t, account))
            return actions[-1]

        backtest(dataset, act, rows)
        recorded.append(torch.cat(actions))
    return torch.stack(recorded)


def held_returns(series: MarketSeries, rules: MarketRules, rows: range) -> Tensor:
    """Returns [S, A] that the order decided at each bar of `rows` earns between its own fill and the next one's.

    Under `next_open` that is open of t+1 to open of t+2: the gap before it belongs to the position held before. Bars
    whose order earns nothing inside `rows` any more are left out.
    """
    price = series.open if rules.fill == "next_open" else series.close
    delay = rules.latency_bars + (0 if rules.fill == "same_close" else 1)
    filled = price[rows.start + delay : rows.stop]
    return filled[1:] / filled[:-1] - 1.0


def carried(weights: Tensor, series: MarketSeries, rules: MarketRules, rows: range) -> Tensor:
    """Target weights [S, A] as they are held: an order that could not fill leaves the one before it in place.

    An asset must be tradable when the order is decided and when it fills; before its first fill nothing is held.
    """
    delay = rules.latency_bars + (0 if rules.fill == "same_close" else 1)
    decided = series.tradable[rows.start : rows.start + len(weights)]
    fillable = series.tradable[rows.start + delay : rows.start + delay + len(weights)]
    row = torch.arange(len(weights), device=weights.device).unsqueeze(1)
    last = torch.where(decided & fillable, row, -1).cummax(0).values
    return torch.where(last >= 0, weights.gather(0, last.clamp(min=0)), 0.0)


def log_growth(weights: Tensor, returns: Tensor, linear_cost: float | Tensor) -> Tensor:
    """Mean log(1 + w_s . r_s - cost |w_s - w_{s-1}|) of weights and the returns they earn [S, A], starting flat."""
    before = torch.cat((torch.zeros_like(weights[:1]), weights[:-1]))
    gain = (weights * returns).sum(-1) - linear_cost * (weights - before).abs().sum(-1)
    return torch.log1p(gain.clamp(min=-0.99)).mean()
