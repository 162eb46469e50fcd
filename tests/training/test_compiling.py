"""`device.compile=auto`: when kernels pay, and that the choice stays with the run."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.exc import BackendCompilerFailed

from trade_agent.config.load import compose_config, load_config
from trade_agent.errors import ConfigError
from trade_agent.training.compiling import Timing, choose_compiled
from trade_agent.training.progress import ProgressReporter
from trade_agent.training.stages import rl


def test_kernels_pay_when_the_run_is_long_enough_for_building_them() -> None:
    timing = Timing(eager_seconds=3.0, compiled_seconds=1.0, build_seconds=20.0)
    assert not timing.pays(9)  # 29 s against 27
    assert not timing.pays(10)  # 30 s both ways
    assert timing.pays(11)  # 31 s against 33
    assert not Timing(eager_seconds=1.0, compiled_seconds=1.0, build_seconds=0.5).pays(1_000_000)


def choose(path: Path, make_round: Callable[[bool], Callable[[], object]]) -> bool:
    return choose_compiled(path, make_round=make_round, rounds=10, progress=ProgressReporter(quiet=True))


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


@pytest.mark.slow  # builds the kernels
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("algorithm", ["ppo", "sac"])
def test_a_stage_chooses_by_its_own_work(trained: Any, tmp_path: Path, algorithm: str) -> None:
    config = trained.settings("stage=rl", f"model={algorithm}", "device.compile=auto")
    outcome = rl.run(
        trained.context(tmp_path, config), model=config.model, forecaster=trained.parent("forecaster", "cnn_lstm")
    )
    assert outcome.env_steps > 0
    record = json.loads((tmp_path / "compile.json").read_text())
    assert record["build_seconds"] > 0.0
    assert record["rounds"] >= 1
