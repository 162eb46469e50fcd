"""Every file that a registry consists of: whatever happens to one is named by ``verify``, and by whoever reads it.

The store of pipelines is tested the same way in ``test_preprocessor_manager``.
"""

import random
import re

import pytest

from tests.registry.conftest import draft
from trade_agent import safe_io
from trade_agent.errors import RegistryError
from trade_agent.registry.events import read_event
from trade_agent.registry.publish import read_claim
from trade_agent.registry.signing import Signing, make_keys
from trade_agent.registry.verify import is_clean, verify
from trade_agent.training.model_registry import ModelRegistry

pytest.importorskip("cryptography", reason="needs the extra signing")

FILES = {
    "model": "sac/sac_v1.0.0_grade_B_sharpe_0.42.pth",
    "preprocessor": "sac/preprocessor_v1.0.0.pkl",
    "config": "sac/config_v1.0.0.json",
    "metadata": "sac/metadata_v1.0.0.json",
    "signature": "sac/metadata_v1.0.0.sig",
    "archived model": "archived/sac/sac_v1.0.1_grade_B_sharpe_0.42.pth",
    "archived metadata": "archived/sac/metadata_v1.0.1.json",
    "claim": "sac/.claims/v1.0.0",
    "claim of a run": "sac/.claims/run-run-of-seed-0",
    "event": ".registry/events/00000001.json",
    "last event": ".registry/events/00000002.json",
    "format": ".registry/format.json",
    "overview": "registry.json",
}
COPY = "sac/.claims/v1.0.0.json"  # of the metadata
WITH_DIGESTS = ["model", "preprocessor", "config", "archived model"]
WITH_CHECKSUM = ["metadata", "archived metadata", "claim", "claim of a run", "event", "last event"]


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    """A registry with a file of every kind; tests put back what they change."""
    folder = tmp_path_factory.mktemp("every")
    make_keys(folder / "keys")
    registry = ModelRegistry(folder / "models", durability="relaxed", signing=Signing("require", folder / "keys"))
    other = {"config": {"other": 1}, "preprocessor": safe_io.dump_arrays({"other": 1})}
    for seed in range(2):
        registry.register(**draft(seed=seed, **(other if seed else {})))
    registry.set_alias("sac@1.0.0", "champion")
    registry.archive(["sac@1.0.1"])
    registry.rebuild()
    assert verify(registry.root, signing=registry.signing) == []
    return registry


@pytest.fixture
def path(registry, kind):
    path = registry.root / FILES[kind]
    kept = path.read_bytes()
    yield path
    path.with_name(f"moved-{path.name}").unlink(missing_ok=True)
    replace(path, kept)
    assert verify(registry.root, signing=registry.signing) == []


def replace(path, data):
    path.unlink(missing_ok=True)
    path.write_bytes(data)


def named(registry, path):
    """What verify says of a file; it must not be clean."""
    findings = verify(registry.root, signing=registry.signing)
    assert not is_clean(findings)
    return " ".join(each.message for each in findings if each.path == str(path.relative_to(registry.root)))


def read(registry, kind, path):
    """Read a file as the program does, which knows nothing of it yet."""
    if kind.startswith("claim"):
        read_claim(path)
    elif "event" in kind:
        read_event(registry.layout, int(path.stem))
    else:
        fresh = ModelRegistry(registry.root, signing=registry.signing)
        fresh.load("sac@1.0.1" if kind.startswith("archived") else "sac@1.0.0", include_archived=True)


def test_no_file_is_forgotten_here(registry):
    """Every file of the registry is of one of these kinds, or of the same kind as one."""
    kinds = {re.sub(r"\d+", "#", name) for name in (*FILES.values(), COPY, "README.md")}
    found = [path.relative_to(registry.root) for path in registry.root.rglob("*") if path.is_file()]
    others = {re.sub(r"\d+", "#", str(path).removeprefix("archived/")) for path in found}
    assert others <= {each.removeprefix("archived/") for each in kinds}


@pytest.mark.parametrize("kind", FILES)
def test_a_bit_flipped_at_a_hundred_places_is_found_each_time(registry, kind, path):
    rng, original = random.Random(kind), path.read_bytes()
    for _ in range(100):
        data = bytearray(original)
        place = rng.randrange(len(data))
        data[place] ^= 1 << rng.randrange(8)
        if kind == "signature" and is_decoration(original, place):
            continue
        replace(path, bytes(data))
        said = [named(registry, path)]
        if kind != "overview":  # derived: readers do without it
            with pytest.raises(RegistryError, match=re.escape(path.name)) as caught:
                read(registry, kind, path)
            said.append(caught.value.message)
        for message in said:
            if kind in WITH_DIGESTS:
                assert safe_io.sha256_bytes(original) in message
                assert safe_io.sha256_bytes(data) in message
            elif kind in WITH_CHECKSUM and (checksums := both_checksums(original, bytes(data))):
                assert all(each in message for each in checksums), message
            assert message


def is_decoration(envelope, place):
    """Whether a byte of a signature carries nothing: what lies between the values, and the type, which is fixed."""
    values = [match.span(1) for match in re.finditer(rb'"(?:payload|keyid|sig)": "([^"]+)"', envelope)]
    return not any(start <= place < stop for start, stop in values)


CHECKSUM = re.compile(rb'\n  "checksum": "([0-9a-f]{64})",?\n')


def both_checksums(original, damaged):
    """The recorded checksum and the one that the rest of the document has now; None where no checksum is left."""
    if not CHECKSUM.search(damaged):
        return None
    return CHECKSUM.search(damaged)[1].decode(), safe_io.sha256_bytes(CHECKSUM.sub(b"\n", damaged, count=1))


@pytest.mark.parametrize("kind", [kind for kind in FILES if kind != "overview"])
def test_a_truncated_file_is_named(registry, kind, path):
    original = path.read_bytes()
    for keep in (0, 1, len(original) // 2, len(original) - 1):
        replace(path, original[:keep])
        if kind in ("signature", "format") and original[keep:].isspace():
            continue  # a line break at the end says nothing
        assert named(registry, path)
        with pytest.raises(RegistryError, match=re.escape(path.name)):
            read(registry, kind, path)


@pytest.mark.parametrize("kind", [kind for kind in FILES if kind not in ("overview", "format")])
def test_a_deleted_and_a_renamed_file_are_named(registry, kind, path):
    moved = path.with_name(f"moved-{path.name}")
    path.rename(moved)
    assert named(registry, path)
    assert named(registry, moved)
    moved.unlink()
    assert named(registry, path)


@pytest.mark.parametrize("kind", ["overview", "format"])
def test_what_can_be_made_again_is_not_missed(registry, kind, path):
    path.unlink()
    fresh = ModelRegistry(registry.root, signing=registry.signing)
    assert fresh.load("sac@champion").metadata.seed == 0
    assert verify(registry.root, signing=registry.signing) == []


def test_the_copy_of_the_metadata_is_checked_and_made_again(registry):
    path = registry.root / COPY
    kept = path.read_bytes()
    for damaged in (kept[:-1], kept.replace(b"sharpe", b"Sharpe"), b""):
        replace(path, damaged)
        assert "altered" in named(registry, path)
    path.unlink()
    findings = verify(registry.root, signing=registry.signing)
    assert [(each.severity, each.path) for each in findings] == [("note", COPY)]
    registry.repair()
    assert path.read_bytes() == kept
    assert verify(registry.root, signing=registry.signing) == []
