"""Which stages a run trains and which it takes from the registry."""

import io
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from trade_agent.errors import DataError, RegistryError
from trade_agent.training.model_registry import ModelRegistry
from trade_agent.training.plan import Plan, check_parent, require_parents
from trade_agent.training.registration import models_tried
from trade_agent.training.unified_manager import UnifiedTrainingManager

OTHER_STEPS = "[{name: log_return, params: {lags: [1, 2, 5]}}, {name: standard_scaler}]"
HYBRID = ("stage=hybrid", "model=sac")


def plan_of(trained: Any, *overrides: str) -> Plan:
    return UnifiedTrainingManager(trained.settings(*overrides), quiet=True).prepare()[1]


def reused(plan: Plan) -> set[str]:
    return {stage.key for stage in plan.stages if stage.found is not None}


def id_of(trained: Any, model_type: str, algorithm: str = "") -> str:
    return str(trained.parent("any", model_type, algorithm).model_id)


def test_an_empty_registry_has_everything_to_train_in_order(load: Any, tmp_path: Path) -> None:
    plan = UnifiedTrainingManager(load(tmp_path, "stage=ensemble"), quiet=True).prepare()[1]
    agents = [key for name in ("ppo", "sac", "td3") for key in (name, f"hybrid_{name}")]
    assert [stage.key for stage in plan.stages] == ["cnn_lstm", *agents, "ensemble"]
    assert plan.to_train == plan.stages
    assert plan.missing == plan.stages[:-1]
    assert plan["hybrid_td3"].parents == (("forecaster", "cnn_lstm"), ("agent", "td3"))
    assert not list(tmp_path.rglob("*.*"))  # planning writes nothing


def test_a_second_plan_trains_the_target_only(trained: Any) -> None:
    plan = plan_of(trained, *HYBRID)
    assert [stage.key for stage in plan.to_train] == ["hybrid_sac"]
    assert plan["sac"].found is not None
    assert plan["sac"].found.model_id == id_of(trained, "sac")
    assert plan["sac"].line.split()[1:3] == ["reuse", id_of(trained, "sac")]
    assert plan.missing == []
    assert [stage.key for stage in plan_of(trained, "stage=ensemble").to_train] == ["ensemble"]
    assert reused(plan_of(trained, "stage=cnn_lstm")) == set()


@pytest.mark.parametrize(
    ("change", "kept"),
    [
        ("seed=2", set()),
        ("trainer.name=other", set()),
        ("trainer.forecaster_epochs=2", set()),
        ("trainer.off_policy_env_steps=300", {"cnn_lstm"}),
        ("trainer.on_policy_env_steps=300", {"cnn_lstm", "sac"}),
        ("trainer.joint_off_policy_env_steps=300", {"cnn_lstm", "sac"}),
        ("data.start=2011-05-01", set()),
        ("data.symbols=[IBM]", set()),
        ("evaluation.train_fraction=0.55", set()),
        (f"preprocessing.steps={OTHER_STEPS}", set()),
        ("upstream.cnn_lstm.model.dropout=0.1", set()),
        ("upstream.rl.model.gamma=0.9", {"cnn_lstm"}),
        ("model.gamma=0.9", {"cnn_lstm", "sac"}),
        ("env.commission_bps=9", {"cnn_lstm"}),
        ("evaluation.confidence=0.9", {"cnn_lstm", "sac"}),
        ("tags=[a]", {"cnn_lstm", "sac"}),
    ],
)
def test_what_a_parent_depends_on_decides_about_its_reuse(trained: Any, change: str, kept: set[str]) -> None:
    assert reused(plan_of(trained, *HYBRID, change)) == kept


# ------------------------------------------------------------------------------------------------ named parents


def test_a_named_agent_brings_its_forecaster(trained: Any) -> None:
    # Neither is what this recipe would find: the seed is another one.
    plan = plan_of(trained, *HYBRID, "seed=2", "upstream.rl_model=sac@latest")
    assert reused(plan) == {"cnn_lstm", "sac"}
    assert plan["cnn_lstm"].found is not None
    assert plan["cnn_lstm"].found.model_id == id_of(trained, "cnn_lstm")
    assert plan["cnn_lstm"].recipe != plan_of(trained, *HYBRID)["cnn_lstm"].recipe


def test_a_named_forecaster_is_taken_and_its_agent_trained(trained: Any) -> None:
    plan = plan_of(trained, *HYBRID, "seed=2", "upstream.cnn_lstm_model=cnn_lstm@latest")
    assert [stage.key for stage in plan.to_train] == ["sac", "hybrid_sac"]


def test_named_hybrids_take_the_place_of_all_stages_below(trained: Any) -> None:
    plan = plan_of(trained, "stage=ensemble", "upstream.models=[hybrid@v1.0.0,hybrid@v3.0.0]")
    assert [stage.key for stage in plan.stages] == ["member_1", "member_2", "ensemble"]
    assert plan.target.parents == (("member", "member_1"), ("member", "member_2"))
    assert [stage.key for stage in plan.to_train] == ["ensemble"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            [*HYBRID, "upstream.rl_model=ppo@latest"],
            r"upstream.rl_model=ppo@latest is a ppo, this run needs a sac; see: trade-agent list --type sac",
        ),
        (
            ["stage=rl", "upstream.cnn_lstm_model=td3@latest"],
            r"upstream.cnn_lstm_model=td3@latest is a td3, this run needs a cnn_lstm",
        ),
        (
            ["stage=ensemble", "upstream.models=[hybrid@v1.0.0,sac@latest]"],
            r"upstream.models=sac@latest is a sac, this run needs a hybrid",
        ),
        (
            ["stage=ensemble", "upstream.models=[hybrid@v3.0.0,hybrid@latest]"],
            "upstream.models names a hybrid twice",
        ),
        (["stage=rl", "upstream.cnn_lstm_model=nobody@latest"], "nobody"),
        (
            # The same bars, but tested from a day on which the named model was still being chosen.
            ["stage=rl", "upstream.cnn_lstm_model=cnn_lstm@latest", "data.end=2012-10-01"],
            r"cnn_lstm_v1.* was trained on rows up to 20\d\d-.*, and this run chooses by rows from 20\d\d-",
        ),
        (
            ["stage=rl", "upstream.cnn_lstm_model=cnn_lstm@latest", f"preprocessing.steps={OTHER_STEPS}"],
            r"cnn_lstm_v1.* reads other features: preprocessing v1.0.0 and \(not saved\) have different contracts: "
            r"feature 'log_return_20' only in the first; .*feature 'log_return_2' only in the second",
        ),
        (
            [*HYBRID, "upstream.rl_model=sac@latest", "env.latency_bars=1"],
            r"was trained with env.latency_bars=0, this run has env.latency_bars=1.*; use env.latency_bars=0",
        ),
        (
            ["stage=ensemble", "upstream.models=[hybrid@v1.0.0,hybrid@v2.0.0]", "env.allow_short=false"],
            r"was trained with env.allow_short=True, this run has env.allow_short=False.*; use env.allow_short=true",
        ),
    ],
)
def test_a_named_parent_that_does_not_fit_is_refused(trained: Any, overrides: list[str], message: str) -> None:
    with pytest.raises(RegistryError, match=message) as caught:
        plan_of(trained, *overrides)
    assert "\n" not in str(caught.value)


def test_an_agent_of_another_number_of_assets_is_refused_and_a_forecaster_is_not(trained: Any) -> None:
    for model_type in ("sac", "cnn_lstm"):
        model = trained.manager.registry.get(f"{model_type}@latest")
        wider = replace(model, data=replace(model.data, symbols=["AAPL", "IBM"]))
        if model_type == "cnn_lstm":
            check_parent(wider, trained.dataset)
        else:
            with pytest.raises(RegistryError, match="sac_v1.* trades 2 assets, this run has 1"):
                check_parent(wider, trained.dataset)


def test_an_agent_of_another_forecaster_than_the_named_one_is_refused(
    trained: Any, run: Any, load: Any, tmp_path: Path
) -> None:
    shutil.copytree(trained.root / "models", tmp_path / "models")
    other = run(tmp_path, "stage=cnn_lstm", "seed=5", "trainer.cross_fit_folds=0")
    named = ("upstream.rl_model=sac@latest", f"upstream.cnn_lstm_model={other.model_id}")
    with pytest.raises(RegistryError, match=f"upstream.rl_model was trained on cnn_lstm_v1.*, not on {other.model_id}"):
        UnifiedTrainingManager(load(tmp_path, *HYBRID, *named), quiet=True).prepare()


# ------------------------------------------------------------------------------------------------ what is missing


def test_missing_parents_are_refused_by_name(load: Any, tmp_path: Path) -> None:
    config = load(tmp_path, "stage=hybrid", "model=td3", "upstream.missing=error")
    with pytest.raises(RegistryError, match="the registry has no cnn_lstm, td3 for this data.*add upstream.missing=tr"):
        UnifiedTrainingManager(config, quiet=True).run()
    assert not list(tmp_path.iterdir())


def test_what_is_there_is_not_missing(trained: Any) -> None:
    config = trained.settings(*HYBRID, "upstream.missing=error")
    _, plan = UnifiedTrainingManager(config, quiet=True).prepare()
    assert plan.missing == []
    require_parents(plan, config)  # raises when something is missing


@pytest.mark.parametrize(("terminal", "answer", "goes_on"), [(False, "y", False), (True, "y", True), (True, "", False)])
def test_ask_needs_a_terminal_and_a_yes(
    load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, terminal: bool, answer: str, goes_on: bool
) -> None:
    class Input(io.StringIO):
        def isatty(self) -> bool:
            return terminal

    config = load(tmp_path, "stage=rl", "model=ppo", "upstream.missing=ask")
    _, plan = UnifiedTrainingManager(config, quiet=True).prepare()
    monkeypatch.setattr("sys.stdin", Input(answer + "\n"))
    if goes_on:
        require_parents(plan, config)
    else:
        with pytest.raises(RegistryError, match="the registry has no cnn_lstm"):
            require_parents(plan, config)


def test_folds_that_leave_nothing_to_train_on_are_refused(load: Any, tmp_path: Path) -> None:
    short = ("stage=cnn_lstm", "model.window_bars=28", "evaluation.train_fraction=0.4")
    config = load(tmp_path, *short)
    message = r"\d+ train bars in 2 cross-fit folds leave \d+ bars to train one on, at least 40 are needed; give a"
    with pytest.raises(DataError, match=message):
        UnifiedTrainingManager(config, quiet=True).prepare()
    without = load(tmp_path, *short, "trainer.cross_fit_folds=0")
    UnifiedTrainingManager(without, quiet=True).prepare()


def test_a_named_parent_is_read_through_its_own_scaler(trained: Any) -> None:
    """Its rows are this run's, its scaler is what its own train rows gave."""
    named = ("stage=rl", "model=ppo", "upstream.cnn_lstm_model=cnn_lstm@latest")
    later = trained.settings(*named, "evaluation.train_fraction=0.62", "evaluation.validation_fraction=0.18")
    dataset, plan = UnifiedTrainingManager(later, quiet=True).prepare()
    assert dataset.pipeline.content_hash == trained.dataset.pipeline.content_hash
    assert dataset.split.train != trained.dataset.split.train
    rows = slice(trained.dataset.first_row, None)
    assert torch.equal(dataset.features[rows], trained.dataset.features[rows])
    assert plan["cnn_lstm"].found is not None


def test_members_are_told_apart_by_their_names(trained: Any, load: Any) -> None:
    both = ("model@upstream.members.td3.rl.model=sac", "model@upstream.members.td3.hybrid.model=sac")
    gammas = ("upstream.members.td3.rl.model.gamma=0.9", "upstream.members.td3.hybrid.model.gamma=0.9")
    plan = UnifiedTrainingManager(load(trained.root, "stage=ensemble", *both, *gammas), quiet=True).prepare()[1]
    assert [stage.key for stage in plan.to_train] == ["td3", "hybrid_td3", "ensemble"]
    assert [key for _, key in plan.target.parents] == ["hybrid_ppo", "hybrid_sac", "hybrid_td3"]
    assert plan["td3"].model_type == "sac"


def test_repeating_a_run_is_no_further_trial(trained: Any) -> None:
    def trials(*overrides: str) -> int:
        config = trained.settings(*overrides)
        manager = UnifiedTrainingManager(config, quiet=True)
        dataset, plan = manager.prepare()
        return models_tried(plan.target, plan, dataset=dataset, registry=manager.registry, seed=config.seed)

    assert trials("stage=cnn_lstm") == 0  # the only forecaster so far is this very one
    assert trials("stage=cnn_lstm", "seed=9") == 1
    # Of four copies each is a trial; the registered agent of one copy is another model then.
    assert trials("stage=rl", "model=sac", "stage.copies=4") == trials("stage=rl", "model=sac") + 1 + 3
    # Two agents and two hybrids are neither this hybrid nor its parent; with the ensemble that makes five.
    assert trials(*HYBRID) == 5
    registry = ModelRegistry(trained.root / "models")
    [ensemble] = registry.archive(["ensemble@latest"])
    assert trials(*HYBRID) == 5  # it was looked at all the same
    registry.restore([ensemble])
