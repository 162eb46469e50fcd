"""Runs of several agents side by side: which one is kept, what is told of the others, and what it counts for."""

import copy
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.speed.loops import ALGORITHMS, agent_loop
from tests.training.test_checkpoint import assert_equal, finish_in_pieces
from tests.training.test_memory import short
from tests.training.test_reference import run as run_task
from trade_agent import safe_io
from trade_agent.agents.builders import agent_from_spec
from trade_agent.agents.copies import agents_from_spec, members_of, side_by_side
from trade_agent.agents.replay import Transitions
from trade_agent.agents.rollout import RolloutBuffer
from trade_agent.config.load import compose_config, load_config
from trade_agent.errors import ConfigError, TrainingDivergedError
from trade_agent.training.checkpoint import no_checkpoints
from trade_agent.training.learner import Learner, minibatch
from trade_agent.training.memory import accumulate, in_parts
from trade_agent.training.models import agent_from_state, policy_from_state
from trade_agent.training.progress import ProgressReporter
from trade_agent.training.reinforcement import Contest, _values
from trade_agent.training.report import print_result
from trade_agent.training.stages import rl, trading
from trade_agent.training.stages.trading import validation_sharpe
from trade_agent.training.unified_manager import UnifiedTrainingManager


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The lines that a run prints."""
    lines: list[str] = []
    monkeypatch.setattr(ProgressReporter, "say", lambda reporter, line: lines.append(line))
    return lines


def test_the_best_state_of_the_best_agent_is_kept(
    trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of three agents the second does best, at the first of two checks."""
    seen, scores = [], iter([[1.0, 5.0, 2.0], [3.0, 4.0, 4.5]])

    def validate(context: Any, policies: Any, step: int) -> list[float]:
        seen.append((step, [copy.deepcopy(policy.agent.state_dict()) for policy in policies]))
        return next(scores)

    monkeypatch.setattr(rl, "validate", validate)
    context = trained.context(tmp_path)
    context = replace(context, trainer=replace(context.trainer, validation_checks=2, off_policy_env_steps=400))
    config = trained.settings("stage=rl", "model=td3")
    outcome = rl.run(context, model=config.model, forecaster=trained.parent("forecaster", "cnn_lstm"), copies=3)
    assert outcome.notes["kept_after_env_steps"] == seen[0][0]
    assert outcome.env_steps == 400  # of each
    spread = outcome.notes["copies"]
    assert spread["scores"] == [3.0, 5.0, 4.5]
    assert spread["mean"] == pytest.approx(12.5 / 3)
    assert spread["std"] == pytest.approx(statistics.stdev([3.0, 5.0, 4.5]))
    assert outcome.objective["value"] == 5.0
    kept = outcome.state["agent"]["state"]
    for name, value in kept.items():
        assert torch.equal(value, seen[0][1][1][name])
    assert any(not torch.equal(value, seen[1][1][1][name]) for name, value in kept.items())
    assert any(not torch.equal(value, seen[0][1][0][name]) for name, value in kept.items())


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_in_a_run_nothing_of_one_reaches_another(algorithm: str) -> None:
    """Two runs in which only the first weights of one agent differ: the others end alike, bit for bit."""
    ends = []
    for shift in (0.0, 0.5):
        settings = {"normalise_observation": True, "normalise_reward": True}
        loop = agent_loop(algorithm, joint=False, updates=16, device=torch.device("cpu"), settings=settings, copies=3)
        members = members_of(loop.learner.agent)
        with torch.no_grad():
            for value in members[1].state_dict().values():
                value.add_(shift)
        loop.run()
        ends.append([member.state_dict() for member in members])
    for index in (0, 2):
        for name, value in ends[0][index].items():
            assert torch.equal(value, ends[1][index][name]), name
    assert not any(torch.equal(value, ends[1][1][name]) for name, value in ends[0][1].items() if "count" not in name)


def test_the_watch_hears_of_the_best_policy(trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context, heard = trained.context(tmp_path), []
    monkeypatch.setattr(context.watch, "validated", lambda step, metrics: heard.append((step, metrics)))
    positions = (-1.0, 0.5, 0.0)
    scores = trading.validate(context, [lambda t, account, x=x: torch.full((1, 1), x) for x in positions], 7)
    rows = trained.dataset.split.validation
    alone = [
        trading.backtest(trained.dataset, lambda t, account, x=x: torch.full((1, 1), x), rows).metrics()
        for x in positions
    ]
    assert scores == [metrics["sharpe"] for metrics in alone]
    assert len(set(scores)) == 3
    assert heard == [(7, max(alone, key=lambda metrics: metrics["sharpe"]))]


@pytest.mark.parametrize(
    ("algorithm", "overrides"),
    [
        ("ppo", ["model.rollout_steps=4", "model.normalise_observation=true", "model.normalise_reward=true"]),
        ("sac", ["model.n_step=3"]),
    ],
)
def test_a_run_that_is_stopped_and_goes_on_ends_alike(
    trained: Any, tmp_path: Path, algorithm: str, overrides: list[str]
) -> None:
    config = trained.settings("stage=rl", f"model={algorithm}", *overrides)
    parent = trained.parent("forecaster", "cnn_lstm")

    def run(context: Any) -> Any:
        return rl.run(context, model=config.model, forecaster=parent, copies=2)

    context = trained.context(tmp_path, config)
    context = replace(context, trainer=replace(context.trainer, validation_checks=2))
    whole = run(replace(context, checkpoints=no_checkpoints()))
    pieces, stops = finish_in_pieces(run, context, tmp_path / "checkpoints", 2 if algorithm == "ppo" else 6)
    assert stops >= 1
    assert_equal(whole, pieces)
    assert whole.notes == pieces.notes
    alone = rl.run(replace(context, checkpoints=no_checkpoints()), model=config.model, forecaster=parent)
    assert whole.env_steps == alone.env_steps  # of each
    assert whole.history["env_steps"] == alone.history["env_steps"]


@pytest.mark.slow  # five stages
def test_a_run_registers_one_agent_and_counts_all(run: Any, tmp_path: Path) -> None:
    options = ("stage=rl", "model=sac", "stage.copies=2")
    result = run(tmp_path, *options)
    assert max(result.notes["copies"]["scores"]) == result.objective["value"] == result.validation["sharpe"]
    assert result.report["num_trials"] == 2
    manager = UnifiedTrainingManager(load_config(compose_config(["stage=rl", f"paths.models={tmp_path}/models"])))
    loaded = manager.registry.load("sac@latest")
    assert loaded.metadata.model_id == result.model_id
    assert all(value.ndim < 3 or "critic" in name for name, value in loaded.state["agent"]["state"].items())

    other = run(tmp_path, *options, "seed=2")
    assert other.report["num_trials"] == 4  # those of the first run, too
    child = run(tmp_path, "stage=hybrid", "model=sac", "upstream.rl.stage.copies=2")
    assert result.model_id in child.parents  # found by its recipe
    assert child.report["num_trials"] == 4  # itself, another one of its parent, two of the other run


def test_the_registered_agent_is_the_one_that_was_judged(trained: Any, tmp_path: Path) -> None:
    config = trained.settings("stage=rl", "model=ppo")
    outcome = rl.run(
        trained.context(tmp_path), model=config.model, forecaster=trained.parent("forecaster", "cnn_lstm"), copies=2
    )
    stored = safe_io.load_tensors(safe_io.dump_tensors(outcome.state), name="state")
    policy = policy_from_state(stored, trained.dataset.features)
    assert validation_sharpe(trained.dataset, policy) == outcome.objective["value"]


def test_one_agent_has_no_spread(trained: Any, tmp_path: Path) -> None:
    config = trained.settings("stage=rl", "model=ppo")
    outcome = rl.run(trained.context(tmp_path), model=config.model, forecaster=trained.parent("forecaster", "cnn_lstm"))
    assert "copies" not in outcome.notes


def test_at_its_end_a_run_prints_how_far_its_agents_are_apart(trained: Any, tmp_path: Path, said: list[str]) -> None:
    contest = Contest(agents_from_spec({"name": "td3", "observation_dim": 1, "action_dim": 1}, 3).members)
    contest.consider([-1.0, 2.0, 0.5], 10)  # variance (1.5^2 + 1.5^2 + 0) / 2
    for notes, printed in (
        ({"copies": contest.spread()}, ["the best of 3 copies; of all: 0.5000 +- 1.5000"]),
        ({}, []),
    ):
        said.clear()
        print_result(ProgressReporter(quiet=True), replace(trained.result, notes=notes), {}, 2**20, tmp_path)
        assert [line for line in said if "copies" in line] == printed


@pytest.mark.parametrize("model", ["ppo", "td3"])
def test_of_a_gymnasium_task_the_best_is_kept(tmp_path: Path, model: str, said: list[str]) -> None:
    result = run_task(tmp_path, f"model={model}", "stage.copies=2")
    assert result.env_steps == run_task(tmp_path / "alone", f"model={model}").env_steps
    scores = result.copies["scores"]
    assert len(set(scores)) == 2
    assert result.validation["mean_return"] == max(scores)
    state = safe_io.load_tensors((tmp_path / "run" / "agent.pth").read_bytes(), name="agent.pth")
    agent = agent_from_state(state["agent"], torch.device("cpu"))
    assert agent.act(torch.zeros(1, 3), deterministic=True).action.shape == (1, 1)
    spread = f"{statistics.fmean(scores):.4f} +- {statistics.stdev(scores):.4f}"
    assert [line for line in said if "copies" in line] == [
        f"the best of 2 copies; of all: {spread}"
    ]  # not of one alone


@pytest.mark.parametrize("where", [["env=gymnasium"], ["preprocessing=minimal"]])
def test_several_processes_are_refused(tmp_path: Path, where: list[str]) -> None:
    options = ["stage=rl", "stage.copies=2", "device=cpu", "device.processes=2", *where]
    config = load_config(compose_config([*options, f"paths.models={tmp_path}/m", f"paths.outputs={tmp_path}/o"]))
    with pytest.raises(ConfigError, match=r"stage\.copies=2 is for one process, and the run is one of 2"):
        UnifiedTrainingManager(config, run_dir=tmp_path / "run", quiet=True).begin()
    assert not (tmp_path / "run").exists()


def test_rows_that_belong_together_are_not_parted() -> None:
    sizes: list[int] = []

    def work(rows: torch.Tensor) -> int:
        sizes.append(len(rows))
        if len(rows) > 3:
            raise MemoryError
        return len(rows)

    done, size = accumulate(torch.zeros(15), work, size=None, clear=lambda: None, together=3)
    assert (sizes[:3], done, size) == ([15, 9, 6], [3] * 5, 3)
    with pytest.raises(MemoryError):
        accumulate(torch.zeros(8), work, size=None, clear=lambda: None, together=4)
    tried: list[int] = []

    def fits(size: int) -> int:
        tried.append(size)
        if size > 4:
            raise MemoryError
        return size

    assert in_parts(fits, size=12, together=4) == 4
    assert tried == [12, 8, 4]


def test_a_minibatch_of_copies_that_does_not_fit_is_taken_in_parts_with_rows_of_each() -> None:
    """15 rows of three agents are halved to 9, never to 8."""

    def observe(t: torch.Tensor, private: torch.Tensor) -> torch.Tensor:
        return torch.cat((t.unsqueeze(1) / 100.0, private), dim=-1)

    def step(observe: Any) -> list[torch.Tensor]:
        torch.manual_seed(0)
        agent = agents_from_spec({"name": "sac", "observation_dim": 3, "action_dim": 1, "hidden_dims": [8]}, 3)
        rows = torch.randn(15, 6)
        sample = Transitions(
            torch.arange(15),
            rows[:, :2],
            rows[:, 2:3].tanh(),
            rows[:, 3],
            rows[:, 3] < -1.0,
            rows[:, 4:],
            torch.ones(15, dtype=torch.int64),
        )
        learner = Learner(agent, observe)
        learner(minibatch(sample))
        assert learner.rows in (None, 9)
        return list(agent.parameters())

    for whole, parts in zip(step(observe), step(short(observe, most=9)), strict=True):
        torch.testing.assert_close(whole, parts, rtol=1e-4, atol=1e-5)


def test_values_of_copies_that_do_not_fit_are_taken_in_parts_with_rows_of_each(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """15 rows of three agents, as above."""
    spec = {"name": "ppo", "observation_dim": 2, "action_dim": 1, "hidden_dims": [8]}
    agents = [agent_from_spec(spec).double() for _ in range(3)]  # type: ignore[attr-defined]
    buffer = RolloutBuffer(num_steps=5, num_envs=3, private_dim=1, action_dim=1, copies=3)
    buffer.t = torch.randint(4, 90, (5, 3))
    buffer.private, buffer.next_private = torch.randn(2, 5, 3, 1, dtype=torch.float64)

    def observe(t: torch.Tensor, private: torch.Tensor) -> torch.Tensor:
        return torch.cat((t.unsqueeze(1) / 100.0, private), dim=-1)

    expected = [
        torch.stack([agents[i].value(observe(t[:, i], private[:, i])) for i in range(3)], dim=1)
        for t, private in ((buffer.t, buffer.private), (buffer.t + 1, buffer.next_private))
    ]
    found = _values(side_by_side(agents), buffer, short(observe, most=9))
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0.0, atol=1e-12)
    assert [record.args for record in caplog.records] == [(15, 9)] * 2


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_one_agent_that_diverges_ends_the_loop_of_all(algorithm: str) -> None:
    loop = agent_loop(algorithm, joint=False, updates=16, device=torch.device("cpu"), copies=4)
    with torch.no_grad():
        next(iter(loop.learner.agent.members[2].critic.parameters())).fill_(torch.nan)
    with pytest.raises(TrainingDivergedError, match=r"loss_\w+ is nan after"):
        loop.run()
