"""A registered model is trained again from what the registry keeps of it, and comes out the same."""

import shutil

import pytest

from trade_agent import safe_io
from trade_agent.config.load import content, from_content
from trade_agent.errors import ConfigError, RegistryError
from trade_agent.registry.metadata import Parent
from trade_agent.registry.quarantine import import_model
from trade_agent.registry.store import ModelRegistry
from trade_agent.registry.verify import verify
from trade_agent.training.reproduce import Comparison, _config, reproduce


@pytest.fixture
def registry(trained, tmp_path):
    """A copy of the trained registry, to be changed."""
    shutil.copytree(trained.root / "models", tmp_path / "models")
    return ModelRegistry(tmp_path / "models", durability="relaxed")


@pytest.mark.parametrize("model_type", ["cnn_lstm", "sac"])
def test_a_model_comes_out_the_same(registry, model_type):
    """Both were trained on the way to an ensemble: only their own stage is run again."""
    before = verify(registry.root)
    rows = reproduce(registry, f"{model_type}@1", quiet=True)
    assert [row for row in rows if not row.equal] == []
    assert {"weights_sha256", "data", "preprocessor"} <= {row.name for row in rows}
    assert len([row for row in rows if row.name.startswith("test ")]) > 3
    assert verify(registry.root) == before
    assert len(registry.list(model_type)) == 1


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["ppo", "td3", "hybrid", "ensemble"])
def test_every_type_comes_out_the_same(registry, model_type):
    for record in registry.list(model_type):
        assert [row for row in reproduce(registry, record.id, quiet=True) if not row.equal] == []


def test_another_seed_comes_out_different(registry, monkeypatch):
    """The comparison can fail."""
    load = registry.load

    def with_other_seed(reference, **options):
        loaded = load(reference, **options)
        loaded.config["seed"] += 1
        return loaded

    monkeypatch.setattr(registry, "load", with_other_seed)
    rows = reproduce(registry, "cnn_lstm@1", quiet=True)
    assert "weights_sha256" in {row.name for row in rows if not row.equal}


def test_parents_are_those_it_was_trained_on_whatever_their_names_mean_by_now(registry, monkeypatch):
    """The references of the config go by, and an alias among them need not exist any more."""
    load = registry.load

    def with_references(reference, **options):
        loaded = load(reference, **options)
        if "cnn_lstm_model" in loaded.config["upstream"]:
            loaded.config["upstream"]["cnn_lstm_model"] = "cnn_lstm@champion"
        return loaded

    monkeypatch.setattr(registry, "load", with_references)
    assert [row for row in reproduce(registry, "sac@1", quiet=True) if not row.equal] == []


def test_members_keep_their_order_and_the_data_file_may_have_moved(registry, load, tmp_path):
    parents = [Parent(role="member", id=name, version="1.0.0", metadata_sha256="", weights_sha256="") for name in "ba"]
    stored = content(load(tmp_path, "stage=ensemble", "upstream.models=[hybrid@champion,hybrid@latest]"))
    config = _config(stored, tmp_path, parents, tmp_path / "moved.csv")
    assert config.upstream.models == ["b", "a"]
    assert config.data.path == str(tmp_path / "moved.csv")


def test_nan_equals_nan_and_nothing_else_does():
    assert Comparison("x", float("nan"), float("nan")).equal
    assert not Comparison("x", float("nan"), None).equal
    assert not Comparison("x", 1.0, 1.0 + 2**-52).equal


def test_imported_models_cannot_be_reproduced(registry, trained, tmp_path):
    other = ModelRegistry(tmp_path / "other", durability="relaxed")
    record = registry.list("cnn_lstm")[0]
    import_model(other, registry.root / record.file)
    with pytest.raises(RegistryError, match="was imported, so its training is not known"):
        reproduce(other, "cnn_lstm@1", quiet=True)


def test_a_changed_training_code_is_said_before_training(registry, monkeypatch):
    monkeypatch.setattr("trade_agent.training.plan.TRAINING_CODE_VERSION", 10**6)
    with pytest.raises(RegistryError, match="the training code has changed; use the version .* git checkout"):
        reproduce(registry, "cnn_lstm@1", quiet=True)


# ---------------------------------------------------------------- the config, back from its snapshot


@pytest.mark.parametrize("overrides", [["stage=cnn_lstm"], ["stage=rl", "model=ppo"], ["stage=hybrid", "model=td3"],
                                       ["stage=ensemble"], ["stage=rl", "data.start=2012-01-01", "env.fill=next_close"],
                                       ["stage=rl", "preprocessing=full", "trainer=full", "seed=9"]])  # fmt: skip
def test_a_config_comes_back_from_what_is_stored_of_it(load, tmp_path, overrides):
    config = load(tmp_path, *overrides)
    stored = safe_io.parse_json(safe_io.canonical_json(content(config)), name="x")
    again = from_content(stored)
    assert content(again) == content(config)
    assert type(again.model) is type(config.model)
    assert type(again.upstream) is type(config.upstream)


def test_entries_that_a_config_had_removed_stay_away(load, tmp_path):
    stored = content(load(tmp_path, "stage=ensemble"))
    del stored["upstream"]["members"]["td3"]
    assert set(from_content(stored).upstream.members) == {"ppo", "sac"}


def test_what_cannot_come_back_is_named(load, tmp_path):
    stored = content(load(tmp_path, "stage=rl"))
    with pytest.raises(ConfigError, match="data.path came from the environment and was not stored"):
        from_content(stored | {"data": stored["data"] | {"path": "<from the environment>"}})
    del stored["seed"]
    with pytest.raises(ConfigError, match="another version of the program: seed"):
        from_content(stored)
