"""`device.compile=auto`: when kernels pay, and that the choice stays with the run."""

import copy
import json
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.exc import BackendCompilerFailed

from trade_agent.agents.builders import AGENT_BUILDERS
from trade_agent.agents.copies import agents_from_spec
from trade_agent.config.load import compose_config, load_config
from trade_agent.config.schema import PpoModel, SacModel, Td3Model
from trade_agent.envs.batched import TrainingMarket
from trade_agent.envs.rules import MarketRules
from trade_agent.envs.series import MarketSeries
from trade_agent.errors import ConfigError
from trade_agent.training import timed_round
from trade_agent.training.compiling import Timing, choose_compiled
from trade_agent.training.distributed import World
from trade_agent.training.progress import ProgressReporter
from trade_agent.training.stages import rl, trading
from trade_agent.training.timed_round import one_round


class Stop(Exception): ...


def test_kernels_pay_when_the_run_is_long_enough_for_building_them() -> None:
    timing = Timing(eager_seconds=3.0, compiled_seconds=1.0, build_seconds=20.0)
    assert not timing.pays(9)  # 29 s against 27
    assert not timing.pays(10)  # 30 s both ways
    assert timing.pays(11)  # 31 s against 33
    assert not Timing(eager_seconds=1.0, compiled_seconds=1.0, build_seconds=0.5).pays(1_000_000)


def choose(path: Path, make_round: Callable[[bool], Callable[[], object]]) -> bool:
    progress = ProgressReporter(quiet=True)
    return choose_compiled(path, make_round=make_round, rounds=10, world=World(), progress=progress)


@pytest.mark.parametrize("before", [True, False])
def test_a_run_that_goes_on_keeps_its_choice(tmp_path: Path, before: bool) -> None:
    (tmp_path / "compile.json").write_text(json.dumps({"compile": before}))

    def never(compiled: bool) -> Callable[[], object]:
        raise AssertionError("timed again")

    assert choose(tmp_path / "compile.json", never) is before


def test_both_ways_are_timed_and_no_random_number_is_used_up(tmp_path: Path) -> None:
    called: list[bool] = []

    def make_round(compiled: bool) -> Callable[[], object]:
        return lambda: (called.append(compiled), torch.rand(1))

    before = torch.get_rng_state()
    chosen = choose(tmp_path / "compile.json", make_round)
    assert torch.equal(torch.get_rng_state(), before)
    assert called.count(True) == called.count(False) == 4
    record = json.loads((tmp_path / "compile.json").read_text())
    assert record["compile"] is chosen
    assert record["rounds"] == 10
    assert min(record["eager_seconds"], record["compiled_seconds"], record["build_seconds"]) >= 0.0
    timing = Timing(**{name: value for name, value in record.items() if name.endswith("_seconds")})
    assert chosen is timing.pays(10)


def test_without_a_compiler_the_eager_way_is_taken(tmp_path: Path) -> None:
    def make_round(compiled: bool) -> Callable[[], object]:
        def work() -> None:
            if compiled:
                raise BackendCompilerFailed(lambda: None, FileNotFoundError("g++"), None)

        return work

    assert choose(tmp_path / "compile.json", make_round) is False
    record = json.loads((tmp_path / "compile.json").read_text())
    assert record == {"compile": False, "reason": "nothing can be compiled here: FileNotFoundError"}


def test_other_values_are_refused() -> None:
    with pytest.raises(ConfigError, match="device.compile=maybe is not a choice; use one of true, false, auto"):
        load_config(compose_config(["device.compile=maybe"]))


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize(("copies", "processes"), [(1, 1), (3, 2)])
@pytest.mark.parametrize(("algorithm", "updates"), [("ppo", 3 * 3), ("sac", 12), ("td3", 12)])
def test_a_timed_round_does_what_a_round_of_training_does(
    series: MarketSeries,
    monkeypatch: pytest.MonkeyPatch,
    algorithm: str,
    updates: int,
    copies: int,
    processes: int,
    compiled: bool,
) -> None:
    """4 environments for 8 or 6 steps: 3 epochs in minibatches of 12 rows, or an update for 2 environment steps; a
    stack has as many of each copy, and a process its share of both."""
    monkeypatch.setattr(timed_round, "TIMED_STEPS", 6)
    kind, done, rows = AGENT_BUILDERS[algorithm], Counter(), set()
    plain_update, plain_step = kind.update, TrainingMarket.step
    monkeypatch.setattr(kind, "fuse", lambda agent: done.update(["fuse"]))
    monkeypatch.setattr(
        kind,
        "update",
        lambda agent, batch: (
            done.update(["update"]),
            rows.add((agent.copies, len(batch))),
            plain_update(agent, batch),
        ),
    )
    monkeypatch.setattr(
        TrainingMarket, "step", lambda market, action: (done.update(["step"]), plain_step(market, action))
    )
    market = TrainingMarket(
        series=series,
        rules=MarketRules(),
        rows=range(40),
        episode_bars=8,
        reward_scale=1.0,
        num_envs=4 // processes * copies,
        generator=torch.Generator().manual_seed(0),
    )
    agent = agents_from_spec({"name": algorithm, "observation_dim": 5, "action_dim": 2}, copies)
    models = {
        "ppo": PpoModel(num_envs=4, rollout_steps=8, epochs=3, batch_size=12),
        "sac": SacModel(num_envs=4, batch_size=12, env_steps_per_update=2),
        "td3": Td3Model(num_envs=4, batch_size=12, env_steps_per_update=2),
    }
    before = copy.deepcopy(agent.state_dict())
    one_round(market, agent, models[algorithm], compiled)()
    assert done == {"update": updates, "step": 8 if algorithm == "ppo" else 6} | ({"fuse": 1} if compiled else {})
    assert rows == {(copies, 12 // processes * copies)}
    torch.testing.assert_close(agent.state_dict(), before, atol=0.0, rtol=0.0)  # another agent learned


@pytest.mark.slow  # builds the kernels
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("algorithm", ["ppo", "td3"])
def test_a_stage_chooses_by_its_own_work(trained: Any, tmp_path: Path, algorithm: str) -> None:
    config = trained.settings("stage=rl", f"model={algorithm}", "device.compile=auto")
    outcome = rl.run(
        trained.context(tmp_path, config), model=config.model, forecaster=trained.parent("forecaster", "cnn_lstm")
    )
    assert outcome.env_steps > 0
    record = json.loads((tmp_path / "compile.json").read_text())
    assert record["build_seconds"] > 0.0
    assert record["rounds"] >= 1


@pytest.mark.slow
def test_a_process_may_train_in_any_number_of_compiled_markets(
    trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compile = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda work, **options: compile(work, backend="eager", fullgraph=True, dynamic=False)
    )
    stepped = []

    def one_step(market: TrainingMarket, agent: Any, **named: Any) -> None:
        stepped.append(market.step(torch.ones(market.num_envs, market.action_dim)))
        raise Stop

    monkeypatch.setattr(trading, "train_in", one_step)
    config = trained.settings("stage=rl", "model=ppo", "device.compile=true")
    context = trained.context(tmp_path, config)
    for bps in range(10):
        rules = replace(context.dataset.rules, commission_bps=float(bps))
        with pytest.raises(Stop):
            rl.run(
                replace(context, dataset=replace(context.dataset, rules=rules)),
                model=config.model,
                forecaster=trained.parent("forecaster", "cnn_lstm"),
            )
    assert len(stepped) == 10
