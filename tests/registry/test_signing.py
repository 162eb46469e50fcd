"""Signatures: what is signed loads, and whoever changes metadata and digests together is found out."""

import base64
import json
import stat

import pytest

from trade_agent import safe_io
from trade_agent.errors import RegistryError
from trade_agent.registry import signing as module
from trade_agent.registry.signing import Signing, key_id, make_keys
from trade_agent.registry.verify import is_clean, verify
from trade_agent.training.model_registry import ModelRegistry

pytest.importorskip("cryptography", reason="needs the extra signing")


@pytest.fixture
def keys(tmp_path):
    make_keys(tmp_path / "keys")
    return tmp_path / "keys"


@pytest.fixture
def open_with(tmp_path, keys):
    def open_registry(mode, folder=keys):
        return ModelRegistry(tmp_path / "models", durability="relaxed", signing=Signing(mode, folder))

    return open_registry


def replace(path, data):
    path.unlink()
    path.write_bytes(data)


def test_a_signed_model_loads_and_verifies_in_every_mode(open_with, make_draft, keys):
    metadata = open_with("sign").register(**make_draft())
    path = open_with("off").root / "sac/metadata_v1.0.0.sig"
    assert stat.S_IMODE(path.stat().st_mode) == 0o444
    for mode in module.MODES:
        registry = open_with(mode)
        assert registry.load("sac@1").metadata == metadata
        assert verify(registry.root, signing=registry.signing) == []


def test_the_signature_is_a_dsse_envelope_that_others_can_check(open_with, make_draft, keys):
    """The bytes that are signed, written out from the DSSE specification (protocol v1, PAE)."""
    registry = open_with("sign")
    registry.register(**make_draft())
    envelope = json.loads((registry.root / "sac/metadata_v1.0.0.sig").read_bytes())
    payload = base64.b64decode(envelope["payload"])
    (public,) = registry.signing.trusted().values()
    signed = b"DSSEv1 28 application/vnd.in-toto+json " + str(len(payload)).encode() + b" " + payload
    public.verify(base64.b64decode(envelope["signatures"][0]["sig"]), signed)
    assert envelope["signatures"][0]["keyid"] == key_id(public)
    digest = safe_io.sha256_file(registry.root / "sac/metadata_v1.0.0.json")
    assert json.loads(payload)["subject"] == [{"name": "metadata_v1.0.0.json", "digest": {"sha256": digest}}]


def forge(registry):
    """Change a model and every digest that speaks of it, as somebody who may write the folder would."""
    metadata = registry.get("sac@1")
    path = registry.root / "sac/metadata_v1.0.0.json"
    changed = json.loads(path.read_bytes()) | {"notes": "forged"}
    del changed["checksum"]
    replace(path, safe_io.checked_json(changed))
    (registry.root / "registry.json").unlink()
    return metadata


@pytest.mark.parametrize("mode", ["sign", "require"])
def test_metadata_replaced_together_with_its_digests_is_refused(open_with, make_draft, mode):
    open_with("sign").register(**make_draft())
    forge(open_with("off"))
    assert open_with("off").load("sac@1").metadata.notes == "forged"  # digests alone do not show it
    registry = open_with(mode)
    with pytest.raises(RegistryError, match=r"metadata_v1\.0\.0\.sig signs .*, not metadata_v1\.0\.0\.json of sha256"):
        registry.load("sac@1")
    assert {(each.severity, each.kind, each.path) for each in verify(registry.root, signing=registry.signing)} == {
        ("error", "signature", "sac/metadata_v1.0.0.sig"),
        ("error", "claim", "sac/.claims/v1.0.0.json"),  # the copy, which the forger forgot
    }


def test_an_unsigned_model_is_refused_only_where_signatures_are_required(open_with, make_draft):
    open_with("off").register(**make_draft())
    assert open_with("sign").load("sac@1")
    registry = open_with("require")
    with pytest.raises(
        RegistryError, match=r"metadata_v1\.0\.0\.sig is missing, .* trade-agent registry sign sac@1.0.0"
    ):
        registry.load("sac@1")
    assert not is_clean(verify(registry.root, signing=registry.signing))
    assert registry.sign("sac@1") == registry.root / "sac/metadata_v1.0.0.sig"
    assert registry.load("sac@1")
    with pytest.raises(RegistryError, match="exists"):
        registry.sign("sac@1")
    with pytest.raises(RegistryError, match="signing is off"):
        open_with("off").sign("sac@1")


def test_an_altered_model_is_not_signed(open_with, make_draft):
    metadata = open_with("off").register(**make_draft())
    path = open_with("off").root / f"sac/{metadata.model_id}.pth"
    replace(path, path.read_bytes()[:-1])
    with pytest.raises(RegistryError, match="was altered"):
        open_with("sign").sign("sac@1")


def test_another_models_signature_is_refused(open_with, make_draft):
    registry = open_with("require")
    registry.register(**make_draft())
    registry.register(**make_draft(seed=1, run_id="other"))
    folder = registry.root / "sac"
    replace(folder / "metadata_v1.0.0.sig", (folder / "metadata_v1.0.1.sig").read_bytes())
    with pytest.raises(RegistryError, match=r"metadata_v1\.0\.0\.sig signs .*metadata_v1\.0\.1\.json"):
        registry.load("sac@1.0.0")


def test_a_key_that_is_not_trusted_signs_in_vain(open_with, make_draft, tmp_path):
    make_keys(tmp_path / "stranger")
    open_with("sign", tmp_path / "stranger").register(**make_draft())
    with pytest.raises(RegistryError, match="none of them trusted"):
        open_with("require").load("sac@1")


def test_every_flipped_bit_of_a_signature_is_refused(open_with, make_draft):
    registry = open_with("require")
    registry.register(**make_draft())
    path = registry.root / "sac/metadata_v1.0.0.sig"
    original = path.read_bytes()
    start, stop = original.index(b'"payload"'), original.index(b'"signatures"')
    start_of_type = original.index(b'"payloadType"')
    for position in range(0, len(original), 5):
        if start_of_type <= position < stop or original[position : position + 1] in b' \n{}[]:,"':
            continue  # the type is fixed, and between the values JSON allows white space
        data = bytearray(original)
        data[position] ^= 1
        replace(path, bytes(data))
        with pytest.raises(RegistryError, match=r"metadata_v1\.0\.0\.sig"):
            registry.load("sac@1")
    assert start < stop


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[]", b'{"payload": 1, "signatures": []}', b'{"payload": "!", "signatures": []}']
)
def test_what_is_no_signature_is_named(open_with, make_draft, content):
    registry = open_with("require")
    registry.register(**make_draft())
    replace(registry.root / "sac/metadata_v1.0.0.sig", content)
    with pytest.raises(RegistryError, match=r"metadata_v1\.0\.0\.sig"):
        registry.load("sac@1")


def test_missing_and_wrong_keys_are_named_before_anything_is_written(tmp_path, make_draft, keys):
    def open_registry(folder, mode="sign"):
        return ModelRegistry(tmp_path / "models", signing=Signing(mode, folder))

    with pytest.raises(RegistryError, match=r"no trusted key in .*nowhere.*trade-agent registry keygen"):
        open_registry(tmp_path / "nowhere")
    (keys / "signing_key.pem").unlink()
    registry = open_registry(keys)
    with pytest.raises(RegistryError, match="no signing key"):
        registry.register(**make_draft())
    assert registry.list() == ()
    (keys / "signing_key.pem").write_text("not a key")
    with pytest.raises(RegistryError, match=r"signing_key\.pem is not an unencrypted private key"):
        registry.register(**make_draft())
    (keys / "trusted" / "x.pem").write_text("not a key")
    with pytest.raises(RegistryError, match=r"x\.pem is not a public key"):
        open_registry(keys)
    with pytest.raises(RegistryError, match="lie inside the registry"):
        open_registry(tmp_path / "models" / "keys")
    with pytest.raises(RegistryError, match="signing 'on' is unknown"):
        open_registry(keys, mode="on")


def test_a_key_is_private_and_never_overwritten(keys):
    assert stat.S_IMODE((keys / "signing_key.pem").stat().st_mode) == 0o600
    content = (keys / "signing_key.pem").read_bytes()
    with pytest.raises(RegistryError, match="exists"):
        make_keys(keys)
    assert (keys / "signing_key.pem").read_bytes() == content


def test_keys_are_found_in_the_users_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert Signing("sign").folder == tmp_path / "trade-agent" / "keys"


def test_without_the_extra_the_remedy_is_named(open_with, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "cryptography", None)
    with pytest.raises(RegistryError, match=r"pip install 'trade-agent\[signing\]'"):
        open_with("sign")
