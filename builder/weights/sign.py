"""Signed manifests: who vouches for a model in a store that others can write to.

Beside the manifest, as canonical JSON of at most 64 KiB:

    manifests/sha256/<64 hex>.sig
    {"format": 1, "manifest": "sha256:<64 hex>", "name",
     "signatures": [{"key": <sha256 of the public key's SPKI DER, hex>, "kind": "ed25519" | "cosign", "value": base64}, ...]}

    ed25519   over `payload(name, digest)`: a line that says what is signed, the model's name, the manifest's digest. So a
              signature counts for one manifest under one name, and for nothing else that the key may ever sign.
    cosign    what `cosign sign-blob` makes of the manifest's own bytes, which hold the name (see weights.cosign).

The manifest's digest commits to every byte of the model: nothing else needs a signature. A signature never expires and does
not say that its manifest is the newest: whoever can write refs/ can put an older signed one back, under the same name. Only
a digest that came another way (builder.lock, an image) rules that out.
"""

from __future__ import annotations

import base64
import binascii
import functools
import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from builder.errors import ConfigError, IntegrityError, printable
from builder.format.manifest import NAME, Manifest, is_digest, manifest_key, unique
from builder.stores.base import Reader, Store
from builder.transfer.checksum import crc64nvme_hex, sha256_hex
from builder.transfer.manifests import read_manifest, resolve
from builder.transfer.retry import retrying
from builder.transfer.source import Source
from builder.weights import cosign

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

FORMAT = 1
CONTEXT = "builder manifest signature v1"
ED25519, COSIGN = "ed25519", "cosign"
MAX_BYTES = 64 << 10
MAX_SIGNATURES = 32
MAX_VALUE = 16 << 10  # base64 digits; an RSA-8192 signature has 1368, one of ML-DSA-87 6172
_KEY = re.compile(r"[0-9a-f]{64}\Z")
_COMMIT = re.compile(r"[0-9a-f]{40}\Z")


@dataclass(frozen=True)
class Signature:
    """key: id of the public key, 64 hex digits.  kind: ED25519 or COSIGN.  value: the signature's bytes."""

    key: str
    kind: str
    value: bytes


@dataclass(frozen=True)
class Signatures:
    """What lies beside one manifest. Read from a store, it is a claim: nothing in it is true until `require` says so."""

    name: str
    digest: str
    signatures: tuple[Signature, ...]

    def to_bytes(self) -> bytes:
        entries = [{"key": s.key, "kind": s.kind, "value": base64.b64encode(s.value).decode()} for s in self.signatures]
        body = {"format": FORMAT, "manifest": self.digest, "name": self.name, "signatures": entries}
        return json.dumps(body, sort_keys=True, separators=(",", ":")).encode()

    def having(self, new: Signature) -> Signatures:
        """With `new`, in place of the same key's earlier one of that kind."""
        others = [s for s in self.signatures if (s.key, s.kind) != (new.key, new.kind)]
        if len(others) >= MAX_SIGNATURES:
            raise ConfigError(f"{self.digest}: {len(others)} signatures already, expected at most {MAX_SIGNATURES}")
        ordered = sorted([*others, new], key=lambda s: (s.key, s.kind))
        return Signatures(self.name, self.digest, tuple(ordered))


@dataclass(frozen=True)
class PublicKey:
    """A key that may vouch. id: sha256 of its SPKI DER, hex.  pem: SPKI.  at: where it came from, for messages."""

    id: str
    pem: bytes
    at: str
    ed25519: Ed25519PublicKey | None = field(default=None, repr=False)


class Signer(Protocol):
    """Makes one signature of a manifest."""

    def sign(self, manifest: Manifest) -> Signature: ...


@dataclass(frozen=True)
class Ed25519Signer:
    """A private key in memory. It is in no message and in no value that is printed."""

    key: Ed25519PrivateKey = field(repr=False)

    @property
    def id(self) -> str:
        return _id(self.key.public_key())

    def sign(self, manifest: Manifest) -> Signature:
        return Signature(self.id, ED25519, self.key.sign(payload(manifest.name, manifest.digest)))


@dataclass(frozen=True)
class CosignSigner:
    """A key that cosign holds. key: what `cosign sign-blob --key` takes: a file, or a key management service's URI."""

    key: str

    def sign(self, manifest: Manifest) -> Signature:
        public = public_key(cosign.public_key(self.key), at=self.key)
        return Signature(public.id, COSIGN, cosign.sign(self.key, manifest.to_bytes()))


@dataclass(frozen=True)
class SignReport:
    """key: id of the key that signed.  signatures: beside the manifest now, this one included."""

    name: str
    digest: str
    store: str
    key: str
    kind: str
    signatures: int

    def to_json(self) -> dict[str, Any]:
        return dict(vars(self))


@dataclass(frozen=True)
class Vouched:
    """A manifest that one of the asked keys has signed."""

    digest: str
    key: str
    kind: str


def payload(name: str, digest: str) -> bytes:
    """What an Ed25519 key signs. Three lines, of which none can hold a line end: no two pairs give the same bytes.

    >>> payload("m", "sha256:" + "0" * 64)[:32]
    b'builder manifest signature v1\\nm\\n'
    """
    if not NAME.match(name) or not is_digest(digest):
        raise ValueError(f"{name!r}, {digest!r}: not a model's name and a manifest's digest")
    return f"{CONTEXT}\n{name}\n{digest}\n".encode()


def signature_key(digest: str) -> str:
    """Where the signatures of manifest `digest` lie in a store."""
    return f"{manifest_key(digest)}.sig"


def generate(passphrase: bytes = b"") -> tuple[bytes, PublicKey]:
    """A new key pair: the private key as PKCS#8 PEM, encrypted if there is a passphrase; and the public key."""
    from cryptography.hazmat.primitives import serialization as pem_form
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    private = Ed25519PrivateKey.generate()
    lock = pem_form.BestAvailableEncryption(passphrase) if passphrase else pem_form.NoEncryption()
    body = private.private_bytes(pem_form.Encoding.PEM, pem_form.PrivateFormat.PKCS8, lock)
    return body, public_key(_pem(private.public_key()), at="new key")


def private_key(pem: bytes, *, at: str, passphrase: bytes = b"") -> Ed25519Signer:
    """The key in a PKCS#8 PEM. Raises ConfigError, which never holds any of `pem`, if it is no Ed25519 private key."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization as pem_form
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    try:
        key = pem_form.load_pem_private_key(pem, passphrase or None)
    except TypeError as exc:  # a passphrase is missing, or there is one for a key that has none
        found = "is not encrypted" if passphrase else "is encrypted"
        raise ConfigError(f"{at}: the private key {found}", hint="--passphrase env:NAME goes with an encrypted key") from exc
    except (ValueError, UnsupportedAlgorithm) as exc:
        hint = "check the passphrase; `builder weights keygen` makes a key"
        raise ConfigError(f"{at}: not a private key in PEM form, or another passphrase", hint=hint) from exc
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(f"{at}: expected an Ed25519 key, found {type(key).__name__}", hint="sign with --cosign instead")
    return Ed25519Signer(key)


def public_key(pem: bytes, *, at: str) -> PublicKey:
    """The key in a PEM. Of another kind than Ed25519 it can only check cosign's signatures. Raises ConfigError."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization as pem_form
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    if b"PRIVATE KEY" in pem:
        raise ConfigError(f"{at}: a private key, expected the public one", hint="and keep the private one where it is")
    try:
        key = pem_form.load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm) as exc:
        raise ConfigError(f"{at}: not a public key in PEM form", hint="`builder weights keygen` makes a pair") from exc
    return PublicKey(_id(key), _pem(key), at, key if isinstance(key, Ed25519PublicKey) else None)


def sign_ref(store: Store, ref: str, signer: Signer) -> SignReport:
    """Sign what `ref` stands for. A digest is certain; a name is whatever the store says it is. Raises as sign_manifest."""
    source = Reader(store)
    digest = resolve(source, ref)
    name = read_manifest(source, digest).name if is_digest(ref) else ref.partition("@")[0]
    return sign_manifest(store, digest, name, signer)


def sign_manifest(store: Store, digest: str, name: str, signer: Signer) -> SignReport:
    """Put a signature beside the manifest `digest`, which must be the model `name`'s; those of other keys stay.

    The manifest is read, and checked against `digest`, first. Two that sign one manifest at once may lose one of the two
    signatures, for a store has no way to add to an object: then sign again.
    Raises IntegrityError if the manifest or what lies beside it is damaged, ConfigError if it is another model's.
    """
    source = Reader(store)
    manifest = read_manifest(source, digest)
    if manifest.name != name:
        raise ConfigError(f"{store.url}: {digest} is a manifest of {manifest.name!r}, not of {name!r}", hint="check REF")
    old = read_signatures(source, digest) or Signatures(name, digest, ())
    if old.name != name:
        raise _bad(f"{store.url}/{signature_key(digest)}", f"signatures for {old.name!r}, expected for {name!r}")
    made = signer.sign(manifest)
    new = old.having(made)
    body = new.to_bytes()
    if len(body) > MAX_BYTES:
        raise ConfigError(f"{digest}: its signatures would take {len(body)} bytes, expected at most {MAX_BYTES}")
    store.replace(signature_key(digest), body, sha256=sha256_hex(body), crc64nvme=crc64nvme_hex(body))
    return SignReport(name, digest, store.url, made.key, made.kind, len(new.signatures))


def require(source: Source, ref: str, keys: Sequence[PublicKey]) -> Vouched:
    """The digest that `ref` stands for, if one of `keys` has signed that manifest under that name. Reads no chunk.

    Go on with the digest that this returns, never with `ref`: a store may answer differently the second time.
    ref: not "": a store must not choose which of the signed models is meant. `name@<commit>` must be of that commit.
    Raises IntegrityError, with the key ids that were expected and found, if it is unsigned, signed by others, or if a
    signature is wrong or was made for another manifest or name. CapabilityError where cosign is needed and missing.
    """
    if not ref:
        raise ConfigError("a required signature needs the model's name", hint="name the model: REF")
    source = retrying(source)
    digest = resolve(source, ref)
    manifest = functools.cache(lambda: read_manifest(source, digest))
    at = f"{source.url}/{signature_key(digest)}"
    found = read_signatures(source, digest)
    good = _first_good(found, keys, lambda: manifest().to_bytes(), at)
    _require_asked(ref, manifest(), good.name, at)
    return Vouched(digest, good.signature.key, good.signature.kind)


def read_signatures(source: Source, digest: str) -> Signatures | None:
    """What lies beside the manifest, or None. Raises IntegrityError unless it is well formed and names `digest`."""
    key = signature_key(digest)
    body = source.read(key, limit=MAX_BYTES)
    return None if body is None else parse(bytes(body), at=f"{source.url}/{key}", digest=digest)


def parse(body: bytes, *, at: str, digest: str) -> Signatures:
    """The signatures in `body`, which must be for `digest`. Their form is checked here; `require` checks their truth."""
    if len(body) > MAX_BYTES:
        raise _bad(at, f"{len(body)} bytes, expected at most {MAX_BYTES}")
    try:
        raw = json.loads(body, object_pairs_hook=unique)
    except (ValueError, RecursionError) as exc:
        raise _bad(at, f"not JSON: {exc}") from exc
    version = raw.get("format") if isinstance(raw, dict) else None
    if type(version) is not int:
        raise _bad(at, "not signatures of a builder manifest")
    if version > FORMAT:
        what = f"{at}: signatures of format {_short(version)}, this builder reads up to {FORMAT}"
        raise IntegrityError(what, hint="use a newer builder", where={"object": at})
    try:
        found = _signatures(raw)
    except (KeyError, TypeError, ValueError, binascii.Error) as exc:
        raise _bad(at, f"missing key {exc}" if isinstance(exc, KeyError) else str(exc)) from exc
    if found.to_bytes() != body:
        raise _bad(at, "not in canonical form")
    if found.digest != digest:
        raise _bad(at, f"signatures of {found.digest}, expected of {digest}")
    return found


@dataclass(frozen=True)
class _Good:
    signature: Signature
    name: str


def _first_good(found: Signatures | None, keys: Sequence[PublicKey], body: Callable[[], bytes], at: str) -> _Good:
    """The first signature that one of `keys` made; Ed25519 first, for it needs no other program and no manifest."""
    expected = ", ".join(f"{k.id[:16]} ({printable(k.at)})" for k in keys)
    where: dict[str, Any] = {"object": at, "expected": [k.id for k in keys]}
    if found is None:
        hint = "`builder weights sign` signs a manifest"
        raise IntegrityError(f"{at}: unsigned; expected a signature of key {expected}", hint=hint, where=where)
    where["found"] = [s.key for s in found.signatures]
    pairs = [(k, s) for s in found.signatures for k in keys if k.id == s.key]
    if not pairs:
        others = ", ".join(s.key[:16] for s in found.signatures) or "none"
        raise IntegrityError(
            f"{at}: signed by {others}; expected key {expected}", hint="ask who published the model for its key", where=where
        )
    faults = []
    for key, signature in sorted(pairs, key=lambda pair: pair[1].kind != ED25519):
        fault = _fault(key, signature, found, body)
        if not fault:
            return _Good(signature, found.name)
        faults.append(f"{signature.kind} key {key.id[:16]}: {fault}")
    what = f"{at}: the signature is wrong for {found.name!r} {found.digest} ({'; '.join(faults)})"
    raise IntegrityError(what, hint="do not use this model: it is not what the key's holder signed", where=where)


def _fault(key: PublicKey, signature: Signature, found: Signatures, body: Callable[[], bytes]) -> str:
    """ "" if the signature is good, else what is wrong with it."""
    if signature.kind == COSIGN:
        return cosign.verify(key.pem, signature.value, body())
    if key.ed25519 is None:
        return "not an Ed25519 key"
    from cryptography.exceptions import InvalidSignature

    try:
        key.ed25519.verify(signature.value, payload(found.name, found.digest))
    except InvalidSignature:
        return "made by another key, or for something else"
    return ""


def _require_asked(ref: str, manifest: Manifest, signed: str, at: str) -> None:
    """The signed manifest is the one of the name, and where `ref` has a commit of that commit."""
    name, _, revision = ("" if is_digest(ref) else ref).partition("@")
    where = {"object": at, "expected": name or signed, "found": manifest.name}
    if manifest.name != signed:
        raise IntegrityError(f"{at}: signed as {signed!r}, but the manifest is of {manifest.name!r}", where=where)
    if name and name != signed:
        hint = "the ref was moved to another model; push that name again, and sign it"
        raise IntegrityError(f"{at}: signed as {signed!r}, but {name!r} was asked for", hint=hint, where=where)
    if _COMMIT.match(revision) and manifest.revision != revision:
        what = f"{at}: the manifest is of revision {manifest.revision or 'none'}, but {ref} was asked for"
        raise IntegrityError(what, where={"object": at, "expected": revision, "found": manifest.revision})


def _signatures(raw: dict[str, Any]) -> Signatures:
    name, digest, entries = raw["name"], raw["manifest"], raw["signatures"]
    if not isinstance(name, str) or not NAME.match(name):
        raise ValueError(f"name {_short(name)} does not match {NAME.pattern}")
    if not isinstance(digest, str) or not is_digest(digest):
        raise ValueError(f"manifest {_short(digest)} is not sha256:<64 hex digits>")
    if not isinstance(entries, list) or len(entries) > MAX_SIGNATURES:
        raise ValueError(f"expected a list of at most {MAX_SIGNATURES} signatures")
    found = tuple(_signature(entry) for entry in entries)
    marks = [(s.key, s.kind) for s in found]
    if marks != sorted(set(marks)):
        raise ValueError("signatures are not sorted by key and kind, each once")
    return Signatures(name, digest, found)


def _signature(raw: Any) -> Signature:
    if not isinstance(raw, dict):
        raise TypeError("a signature is not an object")
    key, kind, value = raw["key"], raw["kind"], raw["value"]
    if not isinstance(key, str) or not _KEY.match(key):
        raise ValueError(f"key {_short(key)} does not match {_KEY.pattern}")
    if kind not in (ED25519, COSIGN):
        raise ValueError(f"kind {_short(kind)}, expected {ED25519} or {COSIGN}")
    if not isinstance(value, str) or len(value) > MAX_VALUE:
        raise ValueError(f"signature of key {key[:16]} is not a string of at most {MAX_VALUE} characters")
    body = base64.b64decode(value, validate=True)
    if not body or (kind == ED25519 and len(body) != 64):
        raise ValueError(f"{kind} signature of key {key[:16]} has {len(body)} bytes")
    return Signature(key, kind, body)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:80] + "..."


def _bad(at: str, what: str) -> IntegrityError:
    hint = "whoever signs the model removes this object and signs again"
    return IntegrityError(f"{at}: {what}", hint=hint, where={"object": at})


def _pem(key: Any) -> bytes:
    from cryptography.hazmat.primitives import serialization as pem_form

    return bytes(key.public_bytes(pem_form.Encoding.PEM, pem_form.PublicFormat.SubjectPublicKeyInfo))


def _id(key: Any) -> str:
    from cryptography.hazmat.primitives import serialization as pem_form

    return hashlib.sha256(key.public_bytes(pem_form.Encoding.DER, pem_form.PublicFormat.SubjectPublicKeyInfo)).hexdigest()
