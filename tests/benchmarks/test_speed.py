"""The speed benchmark: its parts are there, a peer is asked over its pipe, and what does not agree has no ratio."""

import argparse
import importlib
import inspect
import json
import mmap
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.arguments import Names
from benchmarks.speed import forecaster, frozen, leak, off_policy, peer, replay, rollout, scaling, start
from benchmarks.speed.__main__ import CPU_ONLY, GROUPS, main
from benchmarks.speed.cuda import busy_share, captured_loop
from benchmarks.speed.env import FREE, WINDOW, _Steps, random_walk, same_profits, same_window, tape_player
from benchmarks.speed.loops import ALGORITHMS
from benchmarks.speed.measure import Figure, in_turn
from benchmarks.speed.peer import PACKAGES, Peer
from benchmarks.speed.seeds import seeds_in_one_batch
from trade_agent.agents.sac import SAC
from trade_agent.agents.td3 import TD3
from trade_agent.agents.torchrl_modules import sac_loss, td3_loss
from trade_agent.envs.episodes import observe
from trade_agent.envs.market import MarketState, reset
from trade_agent.envs.rules import MarketRules
from trade_agent.envs.series import MarketSeries

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("group", GROUPS)
def test_every_group_can_be_measured(group: str) -> None:
    measure = importlib.import_module(f"benchmarks.speed.{group}").measure
    assert list(inspect.signature(measure).parameters) == ["repeats", "device"][: 1 if group in CPU_ONLY else 2]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["speed", "--only", "cuda", "--device", "cuda"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "device.name=cuda but there is none here" in capsys.readouterr().err


def test_busy_is_the_time_that_lies_within_any_kernel_of_the_second_half() -> None:
    assert busy_share([(8.0, 10.0), (0.0, 2.0), (5.0, 7.0), (4.0, 6.0)]) == 0.8
    assert busy_share([(0.0, 10.0), (1.0, 2.0)]) == 1.0
    assert busy_share([]) is None


def test_every_peer_has_packages_and_a_program() -> None:
    programs = {path.stem for path in (ROOT / "benchmarks" / "speed" / "peers").glob("*.py")}
    assert programs - {"serve"} == set(PACKAGES)


@pytest.mark.parametrize("given", [["env,ppo"], ["env", "ppo"], ["env,", "ppo"]])
def test_names_may_have_spaces_or_commas_between_them(given: list[str]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", action=Names, known=GROUPS)
    assert parser.parse_args(["--only", *given]).only == ["env", "ppo"]
    assert parser.parse_args([]).only == list(GROUPS)


def test_an_unknown_name_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", action=Names, known=("env", "ppo"))
    with pytest.raises(SystemExit) as ended:
        parser.parse_args(["--only", "env,sax"])
    assert ended.value.code == 2
    assert "--only: there is no 'sax', choose from env, ppo" in capsys.readouterr().err


@pytest.mark.slow
def test_a_peer_that_cannot_be_installed_is_told_and_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(peer, "VENVS", tmp_path)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    leak.measure(1)
    line = json.loads(capsys.readouterr().out)
    assert (line["ours"], line["peer"], line["ratio"]) == (None, None, None)
    assert line["peer_name"] == "Stable-Baselines3"
    assert "stable-baselines3==2.9.0 cannot be installed: No matching distribution" in line["remark"]
    with pytest.raises(peer.PeerMissingError):  # half an environment is none
        Peer("stable_baselines3")


def test_a_python_that_makes_no_environment_is_told_and_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def create(folder: Path, *, with_pip: bool) -> None:
        raise subprocess.CalledProcessError(1, [str(folder / "bin" / "python"), "-m", "ensurepip"])

    monkeypatch.setattr(peer, "VENVS", tmp_path)
    monkeypatch.setattr(peer.venv, "create", create)
    leak.measure(1)
    line = json.loads(capsys.readouterr().out)
    assert line["ours"] is None
    assert "makes no virtual environment with pip" in line["remark"]


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="there is no /proc")
def test_memory_of_a_process_counts_files_that_lie_in_memory() -> None:
    before = scaling.own_memory("self")
    with mmap.mmap(-1, 2**27) as shared:  # on Linux a file of a tmpfs
        shared.write(bytes(2**27))
        assert scaling.own_memory("self") - before > 0.1


def test_the_median_counts_and_the_first_run_does_not() -> None:
    ours, peer = iter([100.0, 1.0, 9.0, 2.0]), iter([0.0, 30.0, 10.0, 20.0])
    assert in_turn(lambda: next(ours), lambda: next(peer), 3) == (2.0, 20.0)


@pytest.mark.parametrize(("agrees", "ratio"), [(True, 3.0), (None, 3.0), (False, None)])
def test_what_does_not_agree_has_no_ratio(
    capsys: pytest.CaptureFixture[str], agrees: bool | None, ratio: float | None
) -> None:
    Figure(figure="G0", unit="s", ours=1.0, peer=3.0, ratio=3.0, agrees=agrees).print()
    line = json.loads(capsys.readouterr().out)
    assert line["ratio"] == ratio
    assert {"figure", "unit", "ours", "peer", "peer_name", "target", "device", "threads", "versions"} <= set(line)


def test_profits_of_another_tape_do_not_agree() -> None:
    series, rules = random_walk(60), MarketRules(fill="next_close", allow_short=False, maintenance=0.0, **FREE)
    close = series.close[:, 0]
    # Bought at the close of bar 31, sold at that of bar 33: the tape starts at bar 30 and fills a bar later.
    profit = float(close[33] / close[31])
    assert same_profits(series, rules, [1, 1, 0], [1.0, 1.0, profit])
    assert not same_profits(series, rules, [1, 0, 0], [1.0, 1.0, profit])


def test_a_window_of_another_bar_does_not_agree() -> None:
    series, rules, features = random_walk(60), MarketRules(), torch.randn(60, 2)
    bars = range(WINDOW - 29, WINDOW + 1)  # those up to the first decision, 30 of them
    assert same_window(series, rules, features, features[bars].tolist())
    assert not same_window(series, rules, features, features[range(WINDOW - 30, WINDOW)].tolist())


def test_equity_of_other_steps_does_not_agree() -> None:
    steps = _Steps(random_walk(200), MarketRules(), None, num_envs=8, compiled=False)
    assert steps.as_plain()
    steps._play, plain = (lambda state, actions: plain(state, 0.999 * actions)), steps._play
    assert not steps.as_plain()


def test_windows_of_another_bar_do_not_agree() -> None:
    series, features = random_walk(200), torch.arange(200.0).unsqueeze(1)
    steps = _Steps(series, MarketRules(), features, num_envs=8, compiled=False, window=5)
    assert steps.as_plain()
    state, _, seen = steps._play(steps._state, steps._actions[0])
    assert torch.equal(seen[-1][:, :, 0], state.t.unsqueeze(1) + torch.arange(-4, 1))
    steps._plain = tape_player(series, MarketRules(), (features + 1.0).unfold(0, 5, 1).transpose(1, 2))
    assert not steps.as_plain()


@pytest.mark.filterwarnings("ignore:No target network updater")
@pytest.mark.parametrize(("agent_class", "loss_of"), [(SAC, sac_loss), (TD3, td3_loss)])
def test_losses_of_other_weights_do_not_agree(agent_class: Any, loss_of: Any) -> None:
    torch.manual_seed(0)
    data = off_policy.make_data()
    agent = agent_class(observation_dim=off_policy.FEATURES + off_policy.PRIVATE, action_dim=1, hidden_dims=(16,))
    loss = loss_of(agent)
    assert off_policy.losses_of_torchrl_agree(agent, loss, data)
    with torch.no_grad():
        agent.critic.weights[0].add_(1e-3)
    assert not off_policy.losses_of_torchrl_agree(agent, loss, data)


def test_rewards_of_a_policy_that_sees_another_bar_do_not_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(rollout, "NUM_BARS", 400)
    series, rules, features = random_walk(400), MarketRules(), torch.randn(400, 1, rollout.FEATURES)
    agent = rollout.decided_agent(observe(series, rules, features, flat_accounts(series, rules)).shape[-1])
    assert rollout.same_rollout(agent, series, rules, features)
    monkeypatch.setattr(rollout, "observe", lambda *seen: observe(*seen[:2], features.roll(1, 0), seen[3]))
    assert not rollout.same_rollout(agent, series, rules, features)


def flat_accounts(series: MarketSeries, rules: MarketRules) -> MarketState:
    start = torch.zeros(1, dtype=torch.int64)
    return reset(series, rules, start, start + series.num_bars - 1)


@pytest.mark.parametrize("alike", [True, False])
def test_captured_loops_count_where_they_end_alike(capsys: pytest.CaptureFixture[str], alike: bool) -> None:
    class AsItIs:
        """Nothing is recorded; random numbers are those of the run, or others."""

        def __init__(self, generator: torch.Generator) -> None:
            self.generators = (generator,)

        def warm_up(self, work: Callable[[], Any]) -> Any:
            before = torch.get_rng_state()
            result = work()
            if not alike:
                torch.set_rng_state(before)
                torch.rand(7)
            return result

        def record(self, work: Callable[[], Any]) -> Any:
            raise RuntimeError("there are no graphs")

    captured_loop("td3", joint=False, updates=8, device=CPU, graphs=AsItIs, repeats=1)
    line = json.loads(capsys.readouterr().out)
    assert (line["agrees"], line["ratio"] is not None) == (alike, alike)


def test_a_peer_answers_over_its_pipe_whatever_it_prints() -> None:
    program = "from benchmarks.speed.peers.serve import serve\nserve(double=lambda x: print('noise') or 2 * x)"
    lines = "".join(json.dumps({"what": "double", "x": x}) + "\n" for x in (1, 2))
    answer = subprocess.run(
        [sys.executable, "-c", program],
        input=lines,
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert answer.stdout.split() == ["2", "4"]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_seeds_in_one_batch_are_those_one_after_another(capsys: pytest.CaptureFixture[str], algorithm: str) -> None:
    seeds_in_one_batch(algorithm, seeds=2, updates=8, device=CPU, repeats=1)
    line = json.loads(capsys.readouterr().out)
    assert line["agrees"] is True
    assert line["ratio"] > 0.0


def lines_of(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_replay_buffers_hand_out_the_same_rows(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(replay, "ROUNDS", 2)
    replay.measure(1, CPU)
    plain, tensordict, _ = lines_of(capsys)
    assert plain["agrees"] is tensordict["agrees"] is True
    assert plain["ratio"] > 0.0


def test_the_forecaster_sees_the_windows_of_a_dataloader(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(forecaster, "NUM_BARS", 300)
    forecaster.against_dataloader(1, CPU)
    (line,) = lines_of(capsys)
    assert line["agrees"] is True
    assert line["ratio"] > 0.0


def test_an_agent_learns_with_a_frozen_forecaster_and_without(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(frozen, "ENV_STEPS", 200)
    frozen.measure(1, CPU)
    (line,) = lines_of(capsys)
    assert line["ratio"] > 0.0
    assert line["target"] == 1.1


@pytest.mark.slow
def test_both_commands_start_and_end(capsys: pytest.CaptureFixture[str]) -> None:
    start.measure(1)
    assert [line["ours"] > 0.0 for line in lines_of(capsys)] == [True, True]
