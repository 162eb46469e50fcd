"""Whatever happens to a file of the registry is named by ``verify`` and refused by ``load``."""

import random
import shutil

import pytest

from trade_agent import safe_io
from trade_agent.errors import RegistryError
from trade_agent.registry.verify import is_clean, verify


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


def replace(path, data):
    path.unlink(missing_ok=True)
    path.write_bytes(data)


def found(registry, path):
    """What verify says of a file."""
    return " ".join(finding.message for finding in verify(registry.root) if finding.path == f"sac/{path.name}")


ROLES = ["model", "preprocessor", "config", "metadata"]
DATA = ROLES[:3]


@pytest.mark.parametrize("role", ROLES)
def test_a_bit_flipped_anywhere_is_found(models, role):
    path = file_of(models, role)
    original = path.read_bytes()
    rng = random.Random(role)
    expected = safe_io.sha256_bytes(original)
    for _ in range(100):
        data = bytearray(original)
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        replace(path, bytes(data))
        with pytest.raises(RegistryError, match=path.name) as caught:
            models.load("sac_v1.0.0")
        # Metadata that is no document any more, or says of itself that it does not fit, is refused before that.
        for message in (str(caught.value), found(models, path)):
            if role != "metadata":
                assert expected in message
                assert safe_io.sha256_bytes(data) in message
            assert message
    replace(path, original)
    assert models.load("sac_v1.0.0")
    assert is_clean(verify(models.root))


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("keep", [0, 1, 0.5, -1])
def test_a_truncated_file_is_named(models, role, keep):
    path = file_of(models, role)
    data = path.read_bytes()
    replace(path, data[: int(len(data) * keep) if 0 < keep < 1 else keep])
    with pytest.raises(RegistryError, match=path.name):
        models.load("sac_v1.0.0")
    assert found(models, path)


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


@pytest.mark.parametrize("role", DATA)
def test_a_deleted_or_renamed_file_is_named(models, role):
    path = file_of(models, role)
    path.rename(path.with_name("renamed"))
    with pytest.raises(RegistryError, match=path.name):
        models.load("sac_v1.0.0")
    assert found(models, path)
    assert "no model has this file" in found(models, path.with_name("renamed"))


def test_deleted_metadata_is_named(models):
    path = file_of(models, "metadata")
    path.unlink()
    with pytest.raises(RegistryError, match="sac_v1.0.0"):
        models.load("sac_v1.0.0")
    assert found(models, path)


def test_the_same_weights_have_the_same_digest_in_every_file(models, make_draft):
    again = models.register(**make_draft(run_id="again", notes="the same weights"))
    assert again.weights_sha256 == models.get("sac@1.0.0").weights_sha256
    assert again.model_id != models.get("sac@1.0.0").model_id
