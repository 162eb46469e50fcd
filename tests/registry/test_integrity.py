"""Files that were swapped, an overview that is of no use, and what the digest of weights covers."""

import json
import shutil

import pytest
import torch
from typer.testing import CliRunner

from benchmarks.registry.drafts import copy, draft
from trade_agent import safe_io
from trade_agent.cli import app
from trade_agent.errors import RegistryError
from trade_agent.registry.verify import verify
from trade_agent.training.model_registry import ModelRegistry


@pytest.fixture
def models(registry, make_draft):
    """A registry of two models, and the folder they lie in."""
    registry.register(**make_draft())
    registry.register(**make_draft(seed=1, run_id="other", config={"model": {"name": "sac"}, "seed": 1},
                                   preprocessor=safe_io.dump_arrays({"schema": 1, "steps": []})))  # fmt: skip
    return registry


def file_of(registry, role, reference="sac@1.0.0"):
    metadata = registry.get(reference)
    names = {
        "model": f"{metadata.model_id}.pth",
        "preprocessor": f"preprocessor_v{metadata.version}.pkl",
        "config": f"config_v{metadata.version}.json",
        "metadata": f"metadata_v{metadata.version}.json",
    }
    return registry.root / "sac" / names[role]


def found(registry, path):
    """What verify says of a file."""
    return " ".join(finding.message for finding in verify(registry.root) if finding.path == f"sac/{path.name}")


ROLES = ["model", "preprocessor", "config", "metadata"]


@pytest.mark.parametrize("role", ROLES)
def test_swapped_files_are_named(models, role):
    first, second = file_of(models, role), file_of(models, role, "sac@1.0.1")
    shutil.move(first, first.with_name("aside"))
    shutil.move(second, first)
    shutil.move(first.with_name("aside"), second)
    for path, reference in ((first, "sac_v1.0.0"), (second, "sac_v1.0.1")):
        with pytest.raises(RegistryError, match=path.name):
            models.load(reference)
        assert found(models, path)


def test_the_same_weights_have_the_same_digest_in_every_file(models, make_draft):
    again = models.register(**make_draft(run_id="again", notes="the same weights"))
    assert again.weights_sha256 == models.get("sac@1.0.0").weights_sha256
    assert again.model_id != models.get("sac@1.0.0").model_id


def test_the_same_weights_have_the_same_digest_under_every_file_name(tmp_path):
    state = torch.nn.Linear(3, 2).state_dict()
    files = []
    for name in ("a.pth", "bb.pth"):
        torch.save(state, tmp_path / name)
        files.append((tmp_path / name).read_bytes())
    assert files[0] != files[1]  # torch writes the name into the file
    digests = {safe_io.weights_sha256(safe_io.load_tensors(data, name="x")) for data in files}
    assert digests == {safe_io.weights_sha256(state)}
    assert safe_io.dump_tensors(state) == safe_io.dump_tensors(safe_io.load_tensors(files[1], name="x"))


@pytest.mark.slow
def test_every_command_answers_right_with_an_overview_that_lacks_a_thousand_models(registry):
    first = registry.register(**draft(seed=0))
    registry.rebuild()
    old = registry.layout.snapshot.read_bytes()
    for seed in range(1, 1001):
        copy(registry.root / "sac", first, seed)

    def run(*arguments):
        registry.layout.snapshot.unlink(missing_ok=True)
        registry.layout.snapshot.write_bytes(old)  # whatever the command before made of it
        done = CliRunner().invoke(app, [*arguments, "--models-dir", str(registry.root)], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.output

    ids = [model["id"] for model in json.loads(run("list", "--json"))]
    assert len(set(ids)) == 1001
    assert json.loads(run("info", "sac@latest", "--json"))["seed"] == 1000
    assert json.loads(run("info", "sac@1.7.9", "--json"))["seed"] == 709
    run("registry", "alias", "sac@champion", "sac@1.7.9")
    assert json.loads(run("info", "sac@champion", "--json"))["seed"] == 709
    assert json.loads(run("registry", "archive", "sac@1.9.0", "--json")) == [ids[900]]
    assert len(json.loads(run("list", "--json"))) == 1000
    assert len(run("registry", "log").splitlines()) == 2
    assert json.loads(run("registry", "lineage", "sac@1.5.0", "--json")) == {"up": [], "down": []}
    assert ModelRegistry(registry.root).register(**draft(seed=5000)).version == "1.10.1"
    assert json.loads(run("registry", "restore", ids[900], "--json")) == [ids[900]]
    run("registry", "verify")
    assert verify(registry.root) == []
