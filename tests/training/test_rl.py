"""The agent stage: what an agent reads on train rows, and that a run repeats itself."""

import copy
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from trade_agent.agents.builders import AGENT_BUILDERS
from trade_agent.envs.market import account_fields
from trade_agent.networks.encoders import build_table
from trade_agent.training.distributed import World
from trade_agent.training.models import folds_from_state, forecaster_from_state, policy_from_state
from trade_agent.training.stages import rl, trading
from trade_agent.training.stages.trading import train_rows, validation_sharpe

CPU = torch.device("cpu")


class Stop(Exception):
    """Ends a stage where a test has seen enough."""


def test_train_rows_are_read_through_the_forecasters_that_did_not_see_them(
    trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, parent = trained.dataset, trained.parent("forecaster", "cnn_lstm")
    given: dict[str, Any] = {}

    def spy(*arguments: Any, **named: Any) -> None:
        given.update(named)
        raise Stop

    monkeypatch.setattr(rl, "train_agent", spy)
    config = trained.settings("stage=rl", "model=sac")
    with pytest.raises(Stop):
        rl.run(trained.context(tmp_path), model=config.model, forecaster=parent)

    rows = given["rows"]
    folds = folds_from_state(parent.state, dataset.bars.symbols, dataset.bars.timestamps, dataset.first_row + 7)
    assert rows == train_rows(dataset, 8)
    assert [fold.start for fold in folds] == [rows.start, folds[0].stop]
    assert folds[-1].stop == rows.stop  # the folds cover every row that the agent trains on
    account = torch.zeros(dataset.bars.num_bars, len(account_fields(dataset.rules, 1)))
    seen = given["observe"](torch.arange(dataset.bars.num_bars), account)
    final = forecaster_from_state(parent.state["forecaster"], CPU)
    own = build_table(final.network, dataset.features, 4096)[:, 0]
    width, latent = own.shape[1], final.network.latent_dim
    assert torch.equal(seen[: rows.start, :width], own[: rows.start])
    assert torch.equal(seen[rows.stop :, :width], own[rows.stop :])
    for fold in folds:
        final.network.load_state_dict(fold.state)
        block = slice(fold.start, fold.stop)
        of_fold = build_table(final.network, dataset.features, 4096)[block, 0]
        assert not torch.allclose(of_fold, own[block])
        torch.testing.assert_close(seen[block, latent:width], of_fold[:, latent:])


@pytest.mark.parametrize("asked", [False, True])
@pytest.mark.parametrize("model", ["ppo", "sac", "td3"])
def test_market_and_agent_are_compiled_where_it_is_asked_for(
    trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, asked: bool
) -> None:
    given: dict[str, Any] = {}

    def spy(**named: Any) -> None:
        given.update(named)
        raise Stop

    monkeypatch.setattr(trading, "TrainingMarket", spy)
    monkeypatch.setattr(AGENT_BUILDERS[model], "fuse", lambda agent: given.update(agent=agent))
    config = trained.settings("stage=rl", f"model={model}", f"device.compile={asked}")
    with pytest.raises(Stop):
        rl.run(
            trained.context(tmp_path, config), model=config.model, forecaster=trained.parent("forecaster", "cnn_lstm")
        )
    assert given["compiled"] is asked
    assert ("agent" in given) is asked


class Two(World):
    """As if there were another process; nothing is said to it."""

    def connect(self, agent: Any) -> None: ...


@pytest.mark.parametrize(("processes", "copies"), [(2, 1), (1, 2)])
@pytest.mark.parametrize("asked", ["auto", True])
@pytest.mark.parametrize("model", ["ppo", "sac"])
def test_several_processes_and_copies_are_compiled_too(
    trained: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    processes: int,
    copies: int,
    asked: Any,
    model: str,
) -> None:
    given: dict[str, Any] = {}

    def spy(**named: Any) -> None:
        given.update(named)
        raise Stop

    monkeypatch.setattr(trading, "TrainingMarket", spy)
    monkeypatch.setattr(trading, "choose_compiled", lambda *arguments, **named: named["world"].size == processes)
    monkeypatch.setattr(AGENT_BUILDERS[model], "fuse", lambda agent: given.update(agent=agent))
    config = trained.settings("stage=rl", f"model={model}", f"device.compile={asked}")
    context = replace(trained.context(tmp_path, config), world=Two(size=processes))
    with pytest.raises(Stop):
        rl.run(context, model=config.model, forecaster=trained.parent("forecaster", "cnn_lstm"), copies=copies)
    assert given["compiled"] is True
    assert given["num_envs"] == config.model.num_envs // processes * copies
    assert given["agent"].copies == copies


@pytest.mark.parametrize("algorithm", ["ppo", "sac", "td3"])
def test_the_registered_agent_is_the_one_that_was_judged(trained: Any, algorithm: str) -> None:
    parent = trained.parent("agent", algorithm)
    policy = policy_from_state(parent.state, trained.dataset.features)
    assert validation_sharpe(trained.dataset, policy) == pytest.approx(trained.score(parent), rel=1e-9)


def test_a_stage_does_not_depend_on_what_was_trained_before_it(trained: Any, run: Any, tmp_path: Path) -> None:
    """sac trained alone equals sac trained after ppo and its hybrid, weight by weight and number by number."""
    torch.manual_seed(99)
    result = run(tmp_path, "stage=rl", "model=sac")
    alone = json.loads((tmp_path / "models/sac/metadata_v1.0.0.json").read_text())
    among = trained.manager.registry.get("sac@latest")
    assert alone["weights_sha256"] == among.weights_sha256
    assert result.metrics == among.metrics
    assert result.objective["value"] == among.objective.value


SCRIPT = """
import sys
from dataclasses import replace
from trade_agent.config.load import compose_config, load_config
from trade_agent.training.unified_manager import UnifiedTrainingManager
UnifiedTrainingManager(load_config(compose_config(sys.argv[1:])), quiet=True).run()
"""


@pytest.mark.slow  # two interpreters that train three stages each
@pytest.mark.parametrize("algorithm", ["ppo", "sac", "td3"])
def test_fresh_processes_give_the_same_weights_and_metrics(tmp_path: Path, algorithm: str) -> None:
    found = []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        overrides = ["stage=hybrid", f"model={algorithm}", "trainer=smoke", "device=cpu", "device.threads=1",
                     "preprocessing=minimal", "data.start=2009-01-01", f"seed={seed}",
                     f"paths.models={tmp_path}/{name}", f"paths.outputs={tmp_path}/{name}/out"]  # fmt: skip
        subprocess.run([sys.executable, "-c", SCRIPT, *overrides], check=True, timeout=300)
        metadata = [json.loads((tmp_path / f"{name}/{kind}/metadata_v1.0.0.json").read_text())
                    for kind in ("cnn_lstm", algorithm, "hybrid")]  # fmt: skip
        found.append([(one["weights_sha256"], one["metrics"], one["objective"]) for one in metadata])
    assert found[0] == found[1]
    assert all(one[0] != other[0] for one, other in zip(found[0], found[2], strict=True))


def test_the_agent_that_did_best_on_validation_rows_is_the_one_that_is_kept(
    trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checks score 2, 3 and 1."""
    seen, scores = [], iter([2.0, 3.0, 1.0])

    def validate(context: Any, policies: Any, step: int) -> list[float]:
        (policy,) = policies
        seen.append((step, copy.deepcopy(policy.agent.state_dict())))
        return [next(scores)]

    monkeypatch.setattr(rl, "validate", validate)
    context = trained.context(tmp_path)
    context = replace(context, trainer=replace(context.trainer, validation_checks=3, off_policy_env_steps=400))
    config = trained.settings("stage=rl", "model=td3")
    outcome = rl.run(context, model=config.model, forecaster=trained.parent("forecaster", "cnn_lstm"))
    assert outcome.notes["kept_after_env_steps"] == seen[1][0]
    kept = outcome.state["agent"]["state"]
    assert any(not torch.equal(value, seen[2][1][name]) for name, value in kept.items())
    for name, value in kept.items():
        assert torch.equal(value, seen[1][1][name])
