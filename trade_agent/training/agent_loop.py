"""One door to the two loops: an agent, any batched environment, and the settings of the agent's model."""

from collections.abc import Callable

import torch

from trade_agent.agents.base import Agent
from trade_agent.agents.ppo import PPO
from trade_agent.agents.replay import ReplayBuffer
from trade_agent.config.schema import AgentModel, OffPolicyModel, PpoModel
from trade_agent.envs.batched import BatchedEnv
from trade_agent.training.progress import ProgressReporter
from trade_agent.training.reinforcement import Hooks, Learn, Observe, train_off_policy, train_on_policy

History = dict[str, list[float]]


def train_in(
    env: BatchedEnv,
    agent: Agent,
    *,
    model: AgentModel,
    observe: Observe,
    learn: Learn,
    check: Callable[[int], None],
    total_env_steps: int,
    validation_checks: int,
    random_warmup: bool,
    generator: torch.Generator,
    progress: ProgressReporter,
    label: str,
) -> tuple[int, History]:
    """Run the loop of the agent's kind in `env`. Returns environment steps and the history of its metrics."""
    history: History = {}
    with progress.task(label, total_env_steps) as task:

        def record(env_steps: int, metrics: dict[str, float]) -> None:
            for name, value in {"env_steps": float(env_steps), **metrics}.items():
                history.setdefault(name, []).append(value)

        hooks = Hooks(check=check, advance=task.advance, metrics=record)
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
                batch_size=model.batch_size,
                validation_checks=validation_checks,
                generator=generator,
                hooks=hooks,
            )
        else:
            assert isinstance(model, OffPolicyModel)
            env_steps = train_off_policy(
                agent,
                env=env,
                replay=ReplayBuffer(
                    # A buffer larger than the run would only be memory that is never touched.
                    capacity=min(model.replay_capacity, total_env_steps + model.num_envs),
                    private_dim=env.private_dim,
                    action_dim=env.action_dim,
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
                batch_size=model.batch_size,
                validation_checks=validation_checks,
                generator=generator,
                hooks=hooks,
            )
    return env_steps, history


def loop_env_steps(model: AgentModel, *, on_policy: int, off_policy: int) -> int:
    """The budget of the agent's kind."""
    return on_policy if isinstance(model, PpoModel) else off_policy


def warmup_env_steps(model: OffPolicyModel, total_env_steps: int) -> int:
    """Steps before the first update: as configured, but never more than a quarter of a small budget."""
    return min(model.warmup_env_steps, total_env_steps // 4)
