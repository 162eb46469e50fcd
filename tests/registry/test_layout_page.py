"""models/README.md explains the folder to somebody who opens it without the program."""

import re
from pathlib import Path

import pytest

from trade_agent.registry.events import FIELDS
from trade_agent.registry.signing import Signing, make_keys
from trade_agent.training.model_registry import ModelRegistry, verify

PAGE = (Path(__file__).resolve().parents[2] / "models/README.md").read_text(encoding="utf-8")


def test_every_file_of_a_registry_is_on_the_page(tmp_path, make_draft):
    pytest.importorskip("cryptography", reason="needs the extra signing")
    make_keys(tmp_path / "keys")
    registry = ModelRegistry(tmp_path / "models", durability="relaxed", signing=Signing("sign", tmp_path / "keys"))
    metadata = registry.register(**make_draft())
    registry.set_alias("sac@1", "champion")
    drawn = PAGE[PAGE.index("registry.json") : PAGE.index("**A model exists")]
    words = set(re.findall(r"[\w.]+", drawn))
    for path in registry.root.rglob("*"):
        parts = path.relative_to(registry.root).parts
        inside = ".claims" in parts[:-1] or ".registry" in parts[:-1]  # these folders are drawn as a whole
        name = path.name.replace(metadata.model_id, "sac_v1.0.0_grade_B_sharpe_0.42")
        assert inside or name in words, path
    assert "champion" in PAGE


def test_every_registry_has_the_page(tmp_path, make_draft):
    registry = ModelRegistry(tmp_path / "models", durability="relaxed")
    registry.register(**make_draft())
    assert (tmp_path / "models/README.md").read_text(encoding="utf-8") == PAGE
    assert verify(registry.root) == []


def test_every_kind_of_event_is_explained():
    explained = PAGE[PAGE.index("**What became of it**") :]
    assert [kind for kind in FIELDS if f"`{kind}`" not in explained] == []
