"""One door to the two loops: an agent, any batched environment, and the settings of the agent's model."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from trade_agent.agents.base import Agent
from trade_agent.agents.ppo import PPO
from trade_agent.agents.replay import ReplayBuffer
from trade_agent.config.schema import AgentModel, OffPolicyModel, PpoModel, Td3Model
from trade_agent.envs.batched import BatchedEnv
from trade_agent.training.capture import CapturedLearner, graphs_of
from trade_agent.training.checkpoint import Session
from trade_agent.training.learner import Learner, Observe
from trade_agent.training.monitoring.watch import Watch
from trade_agent.training.progress import ProgressReporter
from trade_agent.training.reinforcement import METRICS_EVERY, Hooks, Learn, train_off_policy, train_on_policy

History = dict[str, list[float]]


def train_in(
    env: BatchedEnv,
    agent: Agent,
    *,
    model: AgentModel,
    observe: Observe,
    learner: Learner,
    capture: bool,
    check: Callable[[int], None],
    total_env_steps: int,
    validation_checks: int,
    validation_figures: Sequence[str],
    random_warmup: bool,
    generator: torch.Generator,
    progress: ProgressReporter,
    watch: Watch,
    label: str,
    session: Session,
) -> tuple[int, History]:
    """Run the loop of the agent's kind in `env`, or go on with it from the newest checkpoint of `session`.

    capture: replay updates, and steps of the market, as CUDA graphs, see `trade_agent.training.capture`.
    validation_figures: what `check` tells the watch, as far as an alarm may be raised for it.
    Returns environment steps and the history of its metrics.
    """
    history: History = {}
    world = session.checkpoints.world
    graphs = graphs_of(generator, world=world) if capture else None
    learn: Learn = CapturedLearner(learner, graphs) if graphs else learner
    batch_size = world.share(model.batch_size, "model.batch_size")
    session.keep("history", lambda: pack_history(history), lambda state: history.update(unpack_history(state)))
    watch.expect(
        metrics=["grad_norm"] if isinstance(model, Td3Model) else ["grad_norm", "entropy"],
        reports=expected_reports(model, total_env_steps),
        validation=validation_figures,
        checks=validation_checks,
    )
    with progress.task(label, total_env_steps) as task:

        def record(env_steps: int, metrics: dict[str, float]) -> None:
            watch.metrics(env_steps, metrics)
            for name, value in {"env_steps": float(env_steps), **metrics}.items():
                history.setdefault(name, []).append(value)

        hooks = Hooks(check=check, skip=task.skip, advance=task.advance, metrics=record)
        if isinstance(model, PpoModel):
            assert isinstance(agent, PPO)
            env_steps = train_on_policy(
                agent,
                env=env,
                observe=observe,
                learn=learn,
                total_env_steps=total_env_steps,
                learning_rate_schedule=model.learning_rate_schedule,
                rollout_steps=model.rollout_steps,
                epochs=model.epochs,
                batch_size=batch_size,
                validation_checks=validation_checks,
                generator=generator,
                hooks=hooks,
                session=session,
                graphs=graphs,
            )
        else:
            assert isinstance(model, OffPolicyModel)
            env_steps = train_off_policy(
                agent,
                env=env,
                replay=ReplayBuffer(
                    # A buffer larger than the run would only be memory that is never touched.
                    capacity=min(model.replay_capacity, total_env_steps + model.num_envs) // world.size,
                    private_dim=env.private_dim,
                    action_dim=env.action_dim,
                    copies=agent.copies,
                    device=env.device,
                ),
                observe=observe,
                learn=learn,
                total_env_steps=total_env_steps,
                learning_rate_schedule=model.learning_rate_schedule,
                n_step=model.n_step,
                warmup_env_steps=warmup_env_steps(model, total_env_steps),
                random_warmup=random_warmup,
                env_steps_per_update=model.env_steps_per_update,
                batch_size=batch_size,
                validation_checks=validation_checks,
                generator=generator,
                hooks=hooks,
                session=session,
                graphs=graphs,
            )
    return env_steps, history


def pack_history(history: History) -> dict[str, Tensor]:
    """Tensors in place of lists: a long run has more values than a checkpoint may hold one by one."""
    return {name: torch.tensor(values, dtype=torch.float64) for name, values in history.items()}


def unpack_history(state: dict[str, Tensor]) -> History:
    return {name: values.tolist() for name, values in state.items()}


def loop_env_steps(model: AgentModel, *, on_policy: int, off_policy: int) -> int:
    """The budget of the agent's kind."""
    return on_policy if isinstance(model, PpoModel) else off_policy


def expected_updates(model: AgentModel, total_env_steps: int) -> int:
    """Gradient steps that a budget allows for."""
    if isinstance(model, PpoModel):
        rollout = model.rollout_steps * model.num_envs
        return math.ceil(total_env_steps / rollout) * model.epochs * math.ceil(rollout / model.batch_size)
    assert isinstance(model, OffPolicyModel)
    return (total_env_steps - warmup_env_steps(model, total_env_steps)) // model.env_steps_per_update


def expected_reports(model: AgentModel, total_env_steps: int) -> int:
    """How often the metrics of a budget are looked at."""
    if isinstance(model, PpoModel):
        return math.ceil(total_env_steps / (model.rollout_steps * model.num_envs))
    return math.ceil(expected_updates(model, total_env_steps) / METRICS_EVERY)


def warmup_env_steps(model: OffPolicyModel, total_env_steps: int) -> int:
    """Steps before the first update: as configured, but never more than a quarter of a small budget."""
    return min(model.warmup_env_steps, total_env_steps // 4)
