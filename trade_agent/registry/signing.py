"""Signatures of registered models: Ed25519 over a model's metadata, which pins every other file by digest.

Digests prove that nothing changed by accident. Who can write the registry's folder can change a file and its digest;
with a signature they would also need the private key. Keys therefore lie outside of the registry:

    <keys>/signing_key.pem        private, signs what this user registers
    <keys>/trusted/*.pem          public, whose signatures are believed

``metadata_v1.0.0.sig`` is a DSSE envelope (https://github.com/secure-systems-lab/dsse, protocol v1) around an in-toto
statement (v1) that names the metadata file and its SHA-256. Needs the extra ``trade-agent[signing]``.
"""

import base64
import binascii
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trade_agent import safe_io
from trade_agent.errors import RegistryError
from trade_agent.registry.naming import metadata_file
from trade_agent.registry.versions import Version

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

MODES = ("off", "sign", "require")
PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "urn:trade-agent:model-metadata:v1"
MAX_BYTES = 64 * 1024


def signature_file(version: Version | str) -> str:
    """Name of the signature beside the metadata of a version."""
    return metadata_file(version).removesuffix(".json") + ".sig"


def default_keys() -> Path:
    """The user's folder of keys, as the XDG base directory specification places it."""
    base = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(base) / "trade-agent" / "keys"


@dataclass(frozen=True, slots=True)
class Signing:
    """How a registry signs. ``mode`` off: not at all. sign: what is registered is signed, a signature that exists must
    be good. require: a model without a good signature is neither loaded nor clean. ``keys``: folder, see above.
    """

    mode: str = "off"
    keys: Path | None = None

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise RegistryError(f"signing {self.mode!r} is unknown", f"use one of {', '.join(MODES)}")

    @property
    def folder(self) -> Path:
        """The folder of keys."""
        return (self.keys or default_keys()).absolute()

    def check(self, root: Path, *, writes: bool = False) -> None:
        """Raise RegistryError unless keys are there, outside of the registry ``root``, and fit for ``writes``."""
        if self.mode == "off":
            return
        if self.folder.resolve().is_relative_to(root.resolve()):
            raise RegistryError(
                f"the keys {self.folder} lie inside the registry", "keep them where others cannot write"
            )
        self.trusted()
        if writes:
            self._private_key()

    def sign(self, metadata: bytes, version: Version | str) -> bytes:
        """The envelope for a metadata file of this content."""
        subject = {"name": metadata_file(version), "digest": {"sha256": safe_io.sha256_bytes(metadata)}}
        statement = {"_type": STATEMENT, "subject": [subject], "predicateType": PREDICATE, "predicate": {}}
        payload = safe_io.canonical_json(statement, indent=None)
        key = self._private_key()
        signature = {"keyid": key_id(key.public_key()), "sig": _encoded(key.sign(_signed_bytes(payload)))}
        envelope = {"payloadType": PAYLOAD_TYPE, "payload": _encoded(payload), "signatures": [signature]}
        return safe_io.canonical_json(envelope)

    def verify(self, folder: Path, version: Version | str, metadata_sha256: str) -> None:
        """Raise RegistryError unless the signature beside a metadata file of this digest is what ``mode`` asks for."""
        if self.mode == "off":
            return
        path = folder / signature_file(version)
        if not os.path.lexists(path):
            if self.mode == "require":
                raise RegistryError(f"{path} is missing, signatures are required", f"{SIGN_IT} {folder.name}@{version}")
            return
        payload = self._trusted_payload(path)
        statement = safe_io.parse_json(payload, name=str(path))
        subject = {"name": metadata_file(version), "digest": {"sha256": metadata_sha256}}
        wanted = {"_type": STATEMENT, "subject": [subject], "predicateType": PREDICATE, "predicate": {}}
        if statement != wanted:
            found = statement.get("subject") if isinstance(statement, dict) else statement
            raise RegistryError(
                f"{path} signs {found}, not {metadata_file(version)} of sha256 {metadata_sha256}", DOUBT
            )

    def trusted(self) -> dict[str, "Ed25519PublicKey"]:
        """The public keys that are believed, by id; RegistryError where there is none."""
        _require_cryptography()
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
        from cryptography.hazmat.primitives.serialization import load_pem_public_key

        keys = {}
        for path in sorted((self.folder / "trusted").glob("*.pem")):
            try:
                key = load_pem_public_key(safe_io.read_bytes(path, max_bytes=MAX_BYTES))
            except ValueError as error:
                raise RegistryError(f"{path} is not a public key: {error}", "remove it from the folder") from error
            if not isinstance(key, Ed25519PublicKey):
                raise RegistryError(f"{path} is not an Ed25519 public key", "remove it from the folder")
            keys[key_id(key)] = key
        if not keys:
            raise RegistryError(f"there is no trusted key in {self.folder / 'trusted'}", MAKE_KEYS)
        return keys

    def _trusted_payload(self, path: Path) -> bytes:
        """What an envelope says, once a trusted key is found to have signed it."""
        from cryptography.exceptions import InvalidSignature

        envelope = safe_io.parse_json(safe_io.read_bytes(path, max_bytes=MAX_BYTES), name=str(path))
        try:
            payload = _decoded(envelope["payload"])
            signatures = {item["keyid"]: _decoded(item["sig"]) for item in envelope["signatures"]}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise RegistryError(f"{path} is not a signature: {error!r}", DOUBT) from error
        trusted = self.trusted()
        for identifier in signatures.keys() & trusted.keys():
            try:
                trusted[identifier].verify(signatures[identifier], _signed_bytes(payload))
            except InvalidSignature as error:
                raise RegistryError(
                    f"{path} does not hold: the signature of key {identifier} is wrong", DOUBT
                ) from error
            return payload
        raise RegistryError(f"{path} is signed by {', '.join(sorted(signatures))}, none of them trusted", DOUBT)

    def _private_key(self) -> "Ed25519PrivateKey":
        _require_cryptography()
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        path = self.folder / "signing_key.pem"
        if not path.exists():
            raise RegistryError(f"there is no signing key {path}", MAKE_KEYS)
        try:
            key = load_pem_private_key(safe_io.read_bytes(path, max_bytes=MAX_BYTES), password=None)
        except (ValueError, TypeError) as error:  # TypeError: it asks for a password
            raise RegistryError(f"{path} is not an unencrypted private key: {error}", MAKE_KEYS) from error
        if not isinstance(key, Ed25519PrivateKey):
            raise RegistryError(f"{path} is not an Ed25519 key", MAKE_KEYS)
        return key


MAKE_KEYS = "make a pair with: trade-agent registry keygen"
SIGN_IT = "if you trust it: trade-agent registry sign"
DOUBT = "restore model and signature from a backup"


def make_keys(folder: Path) -> str:
    """Make a key pair in ``folder``, trusting it, and return its id; RegistryError where there is a key already."""
    _require_cryptography()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

    (folder / "trusted").mkdir(parents=True, exist_ok=True, mode=0o700)
    key = Ed25519PrivateKey.generate()
    identifier = key_id(key.public_key())
    path = folder / "signing_key.pem"
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError as error:
        raise RegistryError(f"{path} exists", "move it away first; signatures made with it stay valid") from error
    with os.fdopen(descriptor, "wb") as file:
        file.write(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    safe_io.write_bytes(folder / "trusted" / f"{identifier[:16]}.pem", public)
    return identifier


def key_id(key: "Ed25519PublicKey") -> str:
    """SHA-256 of the raw public key."""
    return safe_io.sha256_bytes(key.public_bytes_raw())


def _signed_bytes(payload: bytes) -> bytes:
    """What is signed: DSSE's pre-authentication encoding PAE(type, body)."""
    kind = PAYLOAD_TYPE.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


def _encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _decoded(text: Any) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(str(error)) from error


def _require_cryptography() -> None:
    try:
        import cryptography  # noqa: F401
    except ImportError as error:
        raise RegistryError("signatures need the package cryptography", "pip install 'trade-agent[signing]'") from error
