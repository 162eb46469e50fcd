"""The speed benchmark: its parts are there, a peer is asked over its pipe, and what does not agree has no ratio."""

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.speed.__main__ import GROUPS
from benchmarks.speed.cuda import captured_loop
from benchmarks.speed.env import FREE, random_walk, same_profits
from benchmarks.speed.loops import ALGORITHMS
from benchmarks.speed.measure import Figure, in_turn
from benchmarks.speed.peer import PACKAGES
from benchmarks.speed.seeds import seeds_in_one_batch
from trade_agent.envs.rules import MarketRules

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("group", GROUPS)
def test_every_group_can_be_measured(group: str) -> None:
    assert callable(importlib.import_module(f"benchmarks.speed.{group}").measure)


def test_every_peer_has_packages_and_a_program() -> None:
    programs = {path.stem for path in (ROOT / "benchmarks" / "speed" / "peers").glob("*.py")}
    assert programs - {"serve"} == set(PACKAGES)


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

    captured_loop("td3", joint=False, updates=8, device=torch.device("cpu"), graphs=AsItIs, repeats=1)
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
    seeds_in_one_batch(algorithm, seeds=2, updates=8, device=torch.device("cpu"), repeats=1)
    line = json.loads(capsys.readouterr().out)
    assert line["agrees"] is True
    assert line["ratio"] > 0.0
