"""What the typed door refuses, and what it says."""

import json

import pytest

from trade_agent.config.load import FROM_ENVIRONMENT, compose_config, config_hash, from_snapshot, load_config, snapshot
from trade_agent.config.schema import TrainingConfig
from trade_agent.errors import ConfigError


def load(*overrides: str) -> TrainingConfig:
    return load_config(compose_config(overrides), "python train.py")


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["model.gama=0.9"], ["no option model.gama", "gamma"]),
        (["+model.gama=0.9"], ["no option model.gama", "did you mean model.gamma?"]),
        (["+typo=1"], ["no option typo"]),
        (["+upstream.rl.model.taus=1"], ["no option upstream.rl.model.taus", "upstream.rl.model.tau"]),
        (["model.gamma=x"], ["model.gamma=x", "Float"]),
        (["model.gamma=1.5"], ["model.gamma=1.5", "from 0 to 1"]),
        (["model.gamma=nan"], ["model.gamma=nan", "from 0 to 1"]),
        (["model.hidden_sizes=[]", "upstream.rl.model.hidden_sizes=[]"], ["model.hidden_sizes is empty"]),
        (["model.hidden_sizes=[0]"], ["model.hidden_sizes=0", "from 1 to"]),
        (["seed=-1"], ["seed=-1", "from 0"]),
        (["stage=rl", "stage.copies=0"], ["stage.copies=0", "from 1 to 64"]),
        (["stage=hybrid", "stage.copies=2"], ["no option stage.copies"]),
        (["env.fill=yesterday"], ["env.fill=yesterday", "next_open, next_close, same_close"]),
        (["env.max_leverage=0"], ["env.max_leverage=0", "from 1e-06"]),
        (["env.max_weight=0"], ["env.max_weight=0", "from 1e-06"]),
        (["env.maintenance=1"], ["env.maintenance=1", "to 0.999"]),
        (["env.reward_floor=0"], ["env.reward_floor=0", "to -1e-06"]),
        (["env.latency_bars=10", "env.episode_bars=10"], ["env.latency_bars=10", "raise env.episode_bars"]),
        (["env.sizing=fixed_notional"], ["log_return compounds", "env.reward=mean_variance"]),
        (["data=leak", "data.seed=null"], ["data.seed=None", "a seed of 0 or more"]),
        (["stage=nowhere"], ["stage=nowhere", "use one of cnn_lstm, ensemble, hybrid, rl"]),
        (["model=dqn"], ["model=dqn", "ppo, sac, td3"]),
        (["stage=cnn_lstm", "model=sac"], ["stage=cnn_lstm", "model=sac", "leave model= away"]),
        (["stage=ensemble", "model=ppo"], ["stage=ensemble", "model=ppo", "model.combiner"]),
        (["stage=rl", "model=cnn_lstm"], ["stage=rl", "model=cnn_lstm", "ppo|sac|td3"]),
        (["stage=rl", "upstream=hybrid"], ["upstream", "upstream=rl"]),
        (["upstream.rl.model.hidden_sizes=[8]"], ["hidden_sizes", "upstream.rl.model.hidden_sizes"]),
        (["stage=cnn_lstm", "model.window_bars=4"], ["model.window_bars=4", "kernel_size=3", "at least 5"]),
        (["upstream.cnn_lstm.model.window_bars=4"], ["upstream.cnn_lstm.model.window_bars=4"]),
        (["upstream.rl.model.gamma=0.5"], ["model.gamma=0.99", "set upstream.rl.model.gamma"]),
        (["model.reward_scale=1"], ["reward_scale", "set upstream.rl.model.reward_scale"]),
        (["data.symbols=AAPL"], ["data.symbols takes a list", "data.symbols=[AAPL]"]),
        (["data.path=x.csv"], ["data.path=x.csv is not read by data=sample", "data=csv"]),
        (["data.columns.close=Last"], ["data.columns.close is not read by data=sample"]),
        (["data=csv", "data.columns.clos=Last"], ["no option data.columns.clos", "data.columns.close?"]),
        (["data.timezone=Mars"], ["data.timezone=Mars is unknown"]),
        (["data.delimiter=;"], ["data.delimiter=;", "quotes"]),
        (["stage=cnn_lstm", "upstream=hybrid"], ["leave upstream= away"]),
        (
            ["upstream.rl.model.num_envs=128", "upstream.rl.model.replay_capacity=100"],
            ["upstream.rl.model.num_envs=128"],
        ),
        (["stage=rl", "model.replay_capacity=100", "model.num_envs=200"], ["model.num_envs=200", "replay_capacity"]),
        (["trainer.cross_fit_folds=1"], ["trainer.cross_fit_folds=1", "0 (off)"]),
        (["evaluation.train_fraction=0.8", "evaluation.validation_fraction=0.2"], ["too little to test"]),
        (["stage=ensemble", "upstream.models=[a]"], ["ensemble of 1", "min_members=2"]),
        (["stage=ensemble", "upstream.models=[a,a]"], ["names a model twice"]),
        (["model.gamma"], ["model.gamma"]),
    ],
)
def test_bad_input_is_one_line_that_names_field_and_remedy(overrides: list[str], parts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load(*overrides)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message
    assert caught.value.exit_code == 2


def test_the_run_id_is_unique_and_starts_from_content_and_time() -> None:
    configs = [load() for _ in range(20)]
    assert len({config.run_id for config in configs}) == 20
    assert {config.run_id.rsplit("-", 1)[1] for config in configs} == {config_hash(configs[0])[:8]}


def test_the_hash_follows_the_content_and_not_the_folder() -> None:
    base = config_hash(load())
    assert config_hash(load("paths.models=elsewhere", "notes=x", "tags=[y]")) == base
    assert config_hash(load("seed=2")) != base
    assert config_hash(load("upstream.rl.model.tau=0.5")) != base


def test_no_value_from_the_environment_enters_a_snapshot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "hunter2-in-a-path")
    config = load(
        "data=csv", "data.path=${oc.env:SECRET_TOKEN}", "tags=[a,'${oc.env:SECRET_TOKEN}']", "notes='see ${data.path}'"
    )
    assert config.data.path == "hunter2-in-a-path"
    stored = snapshot(config)
    assert "hunter2" not in json.dumps(stored)
    assert stored["data"]["path"] == FROM_ENVIRONMENT
    assert stored["tags"] == ["a", FROM_ENVIRONMENT]
    assert stored["notes"] == FROM_ENVIRONMENT


def test_a_run_that_goes_on_reads_the_environment_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLACE", "first")
    options = [
        "data=csv",
        "data.path='${oc.env:PLACE}/bars.csv'",
        "paths.models='${oc.env:PLACE}/models'",
        "tags=[a,'${notes}']",
    ]
    config = load_config(compose_config([*options, "notes='${oc.env:PLACE}'"]))
    stored = snapshot(config)
    assert "first" not in str(stored)
    monkeypatch.setenv("PLACE", "second")
    again = from_snapshot(stored)
    assert (again.data.path, again.paths.models) == ("second/bars.csv", "second/models")  # type: ignore[attr-defined]
    assert (again.notes, again.tags) == ("second", ["a", "second"])
    assert snapshot(again) == stored
    assert config_hash(again) == config_hash(config)


def test_an_interpolation_that_reads_no_environment_is_stored_as_its_value() -> None:
    config = load("stage=rl", "model.critic_learning_rate=${model.learning_rate}")
    assert snapshot(config)["model"]["critic_learning_rate"] == 3e-4
