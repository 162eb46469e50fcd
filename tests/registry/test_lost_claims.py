"""A copy of a registry without the names that begin with a dot has no claims: they are made again from metadata."""

import shutil

import pytest

from trade_agent import safe_io
from trade_agent.registry.publish import read_claim
from trade_agent.registry.verify import is_clean
from trade_agent.training.model_registry import ModelRegistry, verify


def claims(registry):
    return sorted(path.name for path in registry.layout.claims("sac").iterdir())


@pytest.fixture
def copied(registry, make_draft, tmp_path):
    """A registry with an active and an archived model and a closed number, copied without dot files."""
    registry.register(**make_draft(seed=0))
    claim = read_claim(registry.layout.claims("sac") / "v1.0.0") | {"version": "1.0.1", "run_id": "dead"}
    (registry.layout.claims("sac") / "v1.0.1").write_bytes(safe_io.checked_json(claim))
    registry.collect_garbage(older_than_hours=0)
    registry.register(**make_draft(seed=1))
    registry.archive(["sac@1.0.2"])
    shutil.copytree(registry.root, tmp_path / "copy", ignore=shutil.ignore_patterns(".*"))
    return ModelRegistry(tmp_path / "copy", durability="relaxed")


def test_they_are_made_again_and_runs_are_known(registry, copied, make_draft):
    missing = {finding.path for finding in verify(copied.root) if finding.kind == "claim"}
    assert missing >= {
        "sac/.claims/v1.0.0",
        "sac/.claims/v1.0.1",
        "sac/.claims/v1.0.2",
        "sac/.claims/run-run-of-seed-1",
    }
    done = copied.repair()
    assert "sac/.claims/v1.0.0: made again" in done
    assert claims(copied) == claims(registry)
    copied.rebuild()  # the events are gone too, and registry.json has seen them
    assert verify(copied.root) == []
    assert copied.repair() == ()
    versions = [copied.register(**make_draft(seed=seed)).version for seed in range(3)]
    assert versions == ["1.0.0", "1.0.2", "1.0.3"]


def test_one_that_is_damaged_is_made_again_once_it_is_away(registry, make_draft):
    registry.register(**make_draft())
    for name in ("v1.0.0", "run-run-of-seed-0"):
        path = registry.layout.claims("sac") / name
        path.unlink()
        path.write_bytes(b"{}")
        assert not is_clean(verify(registry.root))
        path.unlink()
        assert registry.repair() == (f"sac/.claims/{name}: made again",)
        assert verify(registry.root) == []
