"""Every YAML under conf/ composes, and what a user gets for a stage is complete without further flags."""

from pathlib import Path

import pytest

from trade_agent.config import schema
from trade_agent.config.load import compose_config, conf_dir, load_config

FILES = sorted(path.relative_to(conf_dir()) for path in conf_dir().rglob("*.yaml"))
GROUPS = (
    "data",
    "preprocessing",
    "env",
    "device",
    "trainer",
    "evaluation",
    "grading",
    "paths",
    "registry",
    "monitoring",
    "search",
)


def load(*overrides: str) -> schema.TrainingConfig:
    return load_config(compose_config(overrides))


def test_the_files_are_those_that_these_tests_know() -> None:
    assert len(FILES) == 63


def options() -> list[str]:
    single = [f"{path.parent}={path.stem}" for path in FILES if str(path.parent) in GROUPS and path.stem != "base"]
    needs = dict.fromkeys(("data=csv", "data=parquet", "data=feather", "data=lean"), "data.path=x.csv")
    needs["env=gymnasium"] = "stage=rl"
    return [f"{option} {needs.get(option, '')}" for option in single]


@pytest.mark.parametrize("option", options())
def test_every_choice_of_every_group_composes(option: str) -> None:
    config = load(*option.split())
    assert isinstance(config, schema.TrainingConfig)


@pytest.mark.parametrize(
    ("overrides", "model", "upstream"),
    [
        (["stage=cnn_lstm"], schema.CnnLstmModel, schema.UpstreamConfig),
        (["stage=rl"], schema.SacModel, schema.RlUpstream),
        (["stage=rl", "model=ppo"], schema.PpoModel, schema.RlUpstream),
        (["stage=rl", "model=td3"], schema.Td3Model, schema.RlUpstream),
        ([], schema.SacModel, schema.HybridUpstream),
        (["stage=hybrid", "model=ppo"], schema.PpoModel, schema.HybridUpstream),
        (["stage=ensemble"], schema.EnsembleModel, schema.EnsembleUpstream),
    ],
)
def test_a_stage_alone_is_complete(overrides: list[str], model: type, upstream: type) -> None:
    config = load(*overrides)
    assert type(config.model) is model
    assert type(config.upstream) is upstream


def test_a_hybrid_trains_the_parent_of_its_own_algorithm() -> None:
    upstream = load("stage=hybrid", "model=ppo").upstream
    assert isinstance(upstream, schema.HybridUpstream)
    assert type(upstream.rl.model) is schema.PpoModel


def test_an_ensemble_shows_every_member_in_full_and_each_can_be_overridden() -> None:
    upstream = load("stage=ensemble", "upstream.members.ppo.rl.model.epochs=7").upstream
    assert isinstance(upstream, schema.EnsembleUpstream)
    assert list(upstream.members) == ["ppo", "sac", "td3"]
    assert type(upstream.members["td3"].hybrid.model) is schema.Td3Model
    ppo = upstream.members["ppo"].rl.model
    assert isinstance(ppo, schema.PpoModel)
    assert ppo.epochs == 7


def test_conf_is_found_beside_the_package() -> None:
    assert (conf_dir() / "train.yaml").is_file()
    assert conf_dir() == Path(__file__).resolve().parents[2] / "conf"
