"""A run on a gymnasium task: the same agents and loops, without market, forecaster or registry.

It proves the agents against published figures. Weights, curve and result stay in the run folder.
"""

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trade_agent import safe_io
from trade_agent.agents.base import Agent
from trade_agent.agents.copies import agents_from_spec, members_of
from trade_agent.config.schema import AgentModel, GymnasiumConfig, RlStage, TrainingConfig
from trade_agent.envs.gymnasium_tasks import GymnasiumTasks, PlayedEpisodes, play
from trade_agent.errors import TrainingDivergedError
from trade_agent.registry.metadata import finite
from trade_agent.training.agent_loop import History, loop_env_steps, train_in
from trade_agent.training.checkpoint import Checkpoints
from trade_agent.training.learner import Learner
from trade_agent.training.models import agent_from_state, agent_spec, agent_to_state
from trade_agent.training.monitoring.watch import Watch
from trade_agent.training.progress import ProgressReporter
from trade_agent.training.reinforcement import Contest
from trade_agent.training.report import spread_line, write_history
from trade_agent.training.stages.context import seed_everything

# First seeds of episodes that no training sees: of the checks, by which a state is chosen, and of the final figure.
CHECK_SEEDS, EVALUATION_SEEDS = 2_000_000_000, 2_100_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceResult:
    """One agent trained on one task. `result.json` holds exactly these fields.

    objective: mean return of an evaluation episode, neither scaled nor discounted. checks: environment steps and mean
    return at each of trainer.validation_checks; the best state was kept. copies: of several agents, the best check of
    each, their mean and standard deviation; `checks` are then those of the best agent at the time.
    """

    stage: str
    model: str
    task: str
    objective: dict[str, Any]
    metrics: dict[str, float]
    checks: list[tuple[int, float]]
    seed: int
    device: str
    duration_seconds: float
    env_steps: int
    command: str
    run_id: str
    trainer: str
    environment: dict[str, Any]
    copies: dict[str, Any] = field(default_factory=dict)
    artefacts: list[str] = field(default_factory=list)

    @property
    def validation(self) -> dict[str, float]:
        """What a search goes by: the best check. The final figure is looked at once, as test rows are."""
        return {"mean_return": max(score for _, score in self.checks)}

    @property
    def headline(self) -> str:
        """The last line that a run prints."""
        return f"{self.task} {self.model}: mean return {self.objective['value']:.1f}"


def run_reference(
    config: TrainingConfig,
    *,
    run_dir: Path,
    device: torch.device,
    environment: dict[str, Any],
    progress: ProgressReporter,
    checkpoints: Checkpoints,
    watch: Watch,
) -> ReferenceResult:
    """Train and evaluate; writes result.json, agent.pth, history.json and returns.png to `run_dir`."""
    env_config, model = config.env, config.model
    assert isinstance(env_config, GymnasiumConfig)
    assert isinstance(model, AgentModel)
    world = checkpoints.world
    agent, env_steps, history, checks, copies = train_task(
        config, env_config, model, device=device, progress=progress, checkpoints=checkpoints, watch=watch
    )
    episodes = evaluate(agent, env_config.id, EVALUATION_SEEDS, env_config.evaluation_episodes, device)
    mean = float(episodes.returns.mean())
    result = ReferenceResult(
        stage="rl",
        model=model.name,
        task=env_config.id,
        objective={"name": "mean_return", "value": mean, "direction": "max"},
        metrics={
            "mean_return": mean,
            "std_return": float(episodes.returns.std()),
            "min_return": float(episodes.returns.min()),
            "mean_length": float(episodes.lengths.mean()),
            "episodes": float(len(episodes.returns)),
        },
        checks=checks,
        seed=config.seed,
        device=str(device),
        duration_seconds=checkpoints.seconds,
        env_steps=env_steps,
        command=config.command,
        run_id=config.run_id,
        trainer=config.trainer.name,
        environment=environment,
        copies=copies,
        artefacts=["config.json", "run.json", "history.json", "agent.pth", "returns.png"],
    )
    if world.main:
        safe_io.write_bytes(
            run_dir / "agent.pth", safe_io.dump_tensors({"kind": model.name, "agent": agent_to_state(agent)})
        )
        write_history(run_dir, history)
        plot_checks(run_dir / "returns.png", env_config.id, model.name, checks, mean)
        safe_io.write_json(run_dir / "result.json", finite(dataclasses.asdict(result)))
        checkpoints.remove()
    if copies:
        progress.say(spread_line(copies))
    progress.say(f"{result.headline} (+- {result.metrics['std_return']:.1f} over {len(episodes.returns)} episodes)")
    return result


def train_task(
    config: TrainingConfig,
    env_config: GymnasiumConfig,
    model: AgentModel,
    *,
    device: torch.device,
    progress: ProgressReporter,
    checkpoints: Checkpoints,
    watch: Watch,
) -> tuple[Agent, int, History, list[tuple[int, float]], dict[str, Any]]:
    """The agent in the state that did best in a check, environment steps, history of the losses, the checks, and what
    `Contest.spread` says."""
    assert isinstance(config.stage, RlStage)
    copies = config.stage.copies
    generator = seed_everything(config.seed, device, "reference", env_config.id, model.name)
    world = checkpoints.world
    num_envs = world.share(model.num_envs, "model.num_envs")
    envs = GymnasiumTasks(
        env_config.id,
        num_envs=num_envs * copies,
        reward_scale=model.reward_scale,
        # The environments follow it: two runs share no episode.
        seed=config.seed * 10_000 + world.rank * num_envs * copies,
        device=device,
    )
    spec = agent_spec(model, observation_dim=envs.private_dim, action_dim=envs.action_dim)
    agent = agents_from_spec(spec, copies, device=device)
    world.connect(agent)
    world.own_random_numbers(generator)
    contest, checks = Contest(members_of(agent)), list[tuple[int, float]]()
    session = checkpoints.session(model.name, generator)
    session.keep("contest", contest.state_dict, contest.load_state_dict)
    session.keep("checks", lambda: list(checks), checks.extend)

    def check(env_steps: int) -> None:
        played = [
            evaluate(member, env_config.id, CHECK_SEEDS, env_config.check_episodes, device) for member in contest.agents
        ]
        scores = world.agreed([float(episodes.returns.mean()) for episodes in played])
        score = max(scores)
        checks.append((env_steps, score))
        progress.say(f"  {env_steps:,} steps: mean return {score:.1f}")
        watch.validated(env_steps, {"mean_return": score})
        if not all(math.isfinite(each) for each in scores):
            raise TrainingDivergedError(
                f"{env_config.id} gave a mean return of {scores} after {env_steps} environment steps",
                "lower model.learning_rate, or look for NaN and infinity in the rewards of the task",
            )
        contest.consider(scores, env_steps)

    def observe(t: Tensor, private: Tensor) -> Tensor:
        return private

    trainer = config.trainer
    env_steps, history = train_in(
        envs,
        agent,
        model=model,
        observe=observe,
        learner=Learner(agent, observe),
        capture=config.device.capture,
        check=check,
        total_env_steps=loop_env_steps(
            model, on_policy=trainer.on_policy_env_steps, off_policy=trainer.off_policy_env_steps
        ),
        validation_checks=trainer.validation_checks,
        validation_figures=("mean_return",),
        random_warmup=True,
        generator=generator,
        progress=progress,
        watch=watch,
        label=f"{model.name} on {env_config.id}",
        session=session,
    )
    envs.envs.close()
    kept = agent_from_state({"spec": agent.spec(), "state": contest.winner.state}, device)
    return kept, env_steps, history, checks, contest.spread()


@torch.no_grad()
def evaluate(agent: Agent, task_id: str, first_seed: int, episodes: int, device: torch.device) -> PlayedEpisodes:
    """Whole episodes of the deterministic policy."""

    def act(observation: Tensor) -> Tensor:
        return agent.act(observation, deterministic=True).action

    return play(act, task_id, seeds=range(first_seed, first_seed + episodes), device=device)


def plot_checks(path: Path, task: str, model: str, checks: list[tuple[int, float]], final: float) -> None:
    """Mean return over the run, and that of the final evaluation."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.0, 3.5), layout="constrained")
    axes = figure.subplots()
    axes.plot(*zip(*checks, strict=True), marker="o", label="checks")
    axes.axhline(final, color="C1", linestyle="--", label="final evaluation")
    axes.set_title(f"{model} on {task}")
    axes.set_xlabel("environment steps")
    axes.set_ylabel("mean return of an episode")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=110)
