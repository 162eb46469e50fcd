"""Stage 2: PPO, SAC or TD3 on the features of a frozen forecaster."""

import torch
from torch import Tensor

from trade_agent.agents.copies import agents_from_spec, members_of
from trade_agent.config.schema import AgentModel
from trade_agent.networks.encoders import TableEncoder
from trade_agent.training.learner import Learner
from trade_agent.training.models import (
    AgentPolicy,
    agent_from_state,
    agent_spec,
    agent_to_state,
    folds_from_state,
    forecaster_from_state,
    observation_dim,
)
from trade_agent.training.reinforcement import Contest
from trade_agent.training.stages.context import Parent, StageContext, StageOutcome, seed_everything
from trade_agent.training.stages.trading import (
    trading_contract,
    trading_outcome,
    train_agent,
    train_rows,
    validate,
)
from trade_agent.training.supervised import cross_fitted_table, feature_table


def run(context: StageContext, *, model: AgentModel, forecaster: Parent, copies: int = 1) -> StageOutcome:
    """Train an agent on cross-fitted features; keep the state that does best on validation rows.

    Of several copies, trained side by side, the one with the best such state is kept.
    """
    dataset, generator = context.dataset, seed_everything(context.seed, context.device, "rl", model.name)
    parent = forecaster_from_state(forecaster.state["forecaster"], context.device)
    first_window = dataset.first_row + parent.network.window_bars - 1
    folds = folds_from_state(forecaster.state, dataset.bars.symbols, dataset.bars.timestamps, first_window)
    # Train rows read forecasts made without them, as test rows do; evaluation reads the final forecaster throughout.
    encoder = TableEncoder(cross_fitted_table(parent.network, folds, dataset.features))
    table = feature_table(parent.network, dataset.features)
    width = observation_dim(parent.network, dataset.num_assets, dataset.rules)
    spec = agent_spec(model, observation_dim=width, action_dim=dataset.num_assets, rules=dataset.rules)
    agent = agents_from_spec(spec, copies, device=context.device)
    contest = Contest(members_of(agent))
    policies = [AgentPolicy(member, table) for member in contest.agents]
    session = context.checkpoints.session(model.name, generator)
    session.keep("contest", contest.state_dict, contest.load_state_dict)

    def observe(t: Tensor, account: Tensor) -> Tensor:
        return torch.cat((encoder(t), account), dim=-1)

    env_steps, history = train_agent(
        context,
        agent,
        model=model,
        rows=train_rows(dataset, parent.network.window_bars),
        observe=observe,
        learner=Learner(agent, observe),
        check=lambda steps: contest.consider(validate(context, policies, steps), steps),
        on_policy_env_steps=context.trainer.on_policy_env_steps,
        off_policy_env_steps=context.trainer.off_policy_env_steps,
        random_warmup=True,
        generator=generator,
        label=model.name,
        session=session,
    )
    winner = contest.winner
    kept = agent_from_state({"spec": agent.spec(), "state": winner.state}, context.device)
    return trading_outcome(
        context,
        model_type=model.name,
        policy=AgentPolicy(kept, table),
        validation_score=winner.score,
        state={
            "kind": model.name,
            "forecaster": parent.to_state(),
            "agent": agent_to_state(kept),
            "reward_scale": model.reward_scale,
        },
        contract=trading_contract(dataset, parent.network.window_bars, parent.horizons),
        env_steps=env_steps,
        history=history,
        notes={
            "cross_fit_folds": len(folds),
            "kept_after_env_steps": winner.env_steps,
            **({"copies": contest.spread()} if copies > 1 else {}),
        },
    )
