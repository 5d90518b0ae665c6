"""Signed manifests: what is signed, what is refused, and that openssl and cosign agree."""

from __future__ import annotations

import base64
import json
import shutil
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builder.cli.group import run
from builder.errors import CapabilityError, ConfigError, IntegrityError
from builder.format.manifest import manifest_key, ref_key
from builder.stores.directory import DirectoryStore
from builder.weights import sign
from tests.conftest import missing
from tests.models import safetensors_model
from tests.unit.weights.build import push

DIGEST = "sha256:" + "0" * 64


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    """A store with one model, `m`."""
    found = DirectoryStore(tmp_path / "store")
    push(safetensors_model(tmp_path / "model"), found, name="m")
    return found


@pytest.fixture
def alice() -> tuple[sign.Ed25519Signer, sign.PublicKey]:
    return pair()


def pair() -> tuple[sign.Ed25519Signer, sign.PublicKey]:
    body, key = sign.generate()
    return sign.private_key(body, at="key.pem"), key


def digest_of(store: DirectoryStore, ref: str = "m") -> str:
    return (store.root / ref_key(ref)).read_text().strip()


def sig_file(store: DirectoryStore) -> Path:
    return store.root / sign.signature_key(digest_of(store))


def test_a_signed_manifest_is_vouched_for(store: DirectoryStore, alice: Any) -> None:
    signer, key = alice
    report = sign.sign_ref(store, "m", signer)
    assert (report.name, report.digest, report.key, report.signatures) == ("m", digest_of(store), key.id, 1)
    for ref in ("m", report.digest):
        assert sign.require(store.source(), ref, [key]) == sign.Vouched(report.digest, key.id, "ed25519")


def test_any_of_several_keys_will_do_and_signing_keeps_the_others(store: DirectoryStore, alice: Any) -> None:
    bob, other = pair()
    for signer in (alice[0], bob, bob):
        report = sign.sign_ref(store, "m", signer)
    assert report.signatures == 2
    assert sign.require(store.source(), "m", [pair()[1], other]).key == other.id
    assert sign.require(store.source(), "m", [alice[1]]).key == alice[1].id


def test_an_unsigned_manifest_is_refused(store: DirectoryStore, alice: Any) -> None:
    with pytest.raises(IntegrityError, match=f"unsigned; expected a signature of key {alice[1].id[:16]}") as caught:
        sign.require(store.source(), "m", [alice[1]])
    assert caught.value.where["expected"] == [alice[1].id]


def test_another_key_is_refused_and_both_are_named(store: DirectoryStore, alice: Any) -> None:
    signer, other = pair()
    sign.sign_ref(store, "m", signer)
    with pytest.raises(IntegrityError, match=f"signed by {other.id[:16]}; expected key {alice[1].id[:16]}") as caught:
        sign.require(store.source(), "m", [alice[1]])
    assert caught.value.where["found"] == [other.id]


def test_a_changed_signature_is_refused(store: DirectoryStore, alice: Any) -> None:
    sign.sign_ref(store, "m", alice[0])
    raw = json.loads(sig_file(store).read_text())
    value = bytearray(base64.b64decode(raw["signatures"][0]["value"]))
    value[5] ^= 1
    raw["signatures"][0]["value"] = base64.b64encode(value).decode()
    sig_file(store).write_bytes(canonical(raw))
    with pytest.raises(IntegrityError, match="is wrong for 'm'"):
        sign.require(store.source(), "m", [alice[1]])


def test_a_signature_of_another_key_under_this_keys_id_is_refused(store: DirectoryStore, alice: Any) -> None:
    mallory, _ = pair()
    value = mallory.key.sign(sign.payload("m", digest_of(store)))
    forged = sign.Signatures("m", digest_of(store), (sign.Signature(alice[1].id, "ed25519", value),))
    sig_file(store).write_bytes(forged.to_bytes())
    with pytest.raises(IntegrityError, match="is wrong for"):
        sign.require(store.source(), "m", [alice[1]])


def test_a_signature_of_another_manifest_counts_for_nothing(store: DirectoryStore, alice: Any, tmp_path: Path) -> None:
    sign.sign_ref(store, "m", alice[0])
    old = sig_file(store).read_bytes()
    push(safetensors_model(tmp_path / "evil", seed=1), store, name="m")
    sig_file(store).write_bytes(old)
    with pytest.raises(IntegrityError, match=r"signatures of sha256:.*, expected of sha256:"):
        sign.require(store.source(), "m", [alice[1]])
    raw = json.loads(old) | {"manifest": digest_of(store)}
    sig_file(store).write_bytes(canonical(raw))
    with pytest.raises(IntegrityError, match="is wrong for 'm'"):
        sign.require(store.source(), "m", [alice[1]])


def test_a_ref_moved_to_another_signed_model_is_refused(store: DirectoryStore, alice: Any, tmp_path: Path) -> None:
    push(safetensors_model(tmp_path / "small", seed=1), store, name="small")
    sign.sign_ref(store, "small", alice[0])
    shutil.copy(store.root / ref_key("small"), store.root / ref_key("m"))
    with pytest.raises(IntegrityError, match="signed as 'small', but 'm' was asked for"):
        sign.require(store.source(), "m", [alice[1]])
    raw = json.loads(sig_file(store).read_text()) | {"name": "m"}
    sig_file(store).write_bytes(canonical(raw))
    with pytest.raises(IntegrityError, match="is wrong for 'm'"):
        sign.require(store.source(), "m", [alice[1]])


def test_a_commit_that_is_asked_for_must_be_the_signed_ones(store: DirectoryStore, alice: Any) -> None:
    sign.sign_ref(store, "m", alice[0])
    for tag in ("stable", "a" * 40):
        shutil.copy(store.root / ref_key("m"), store.root / ref_key(f"m@{tag}"))
    assert sign.require(store.source(), "m@stable", [alice[1]]).digest == digest_of(store)
    with pytest.raises(IntegrityError, match="revision none, but m@aaaa"):
        sign.require(store.source(), "m@" + "a" * 40, [alice[1]])


def test_the_store_may_not_choose_the_model(store: DirectoryStore, alice: Any) -> None:
    with pytest.raises(ConfigError, match="needs the model's name"):
        sign.require(store.source(), "", [alice[1]])


def test_a_damaged_manifest_is_not_signed(store: DirectoryStore, alice: Any) -> None:
    path = store.root / manifest_key(digest_of(store))
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(IntegrityError, match="manifest is sha256"):
        sign.sign_ref(store, digest_of(store), alice[0])
    assert not sig_file(store).exists()


def test_another_models_name_is_not_signed(store: DirectoryStore, alice: Any) -> None:
    with pytest.raises(ConfigError, match="a manifest of 'm', not of 'other'"):
        sign.sign_manifest(store, digest_of(store), "other", alice[0])


def test_the_number_of_signatures_is_bounded() -> None:
    many = tuple(sign.Signature(f"{i:064x}", "ed25519", bytes(64)) for i in range(sign.MAX_SIGNATURES))
    full = sign.Signatures("m", DIGEST, many)
    assert sign.parse(full.to_bytes(), at="x", digest=DIGEST) == full
    with pytest.raises(ConfigError, match="at most 32"):
        full.having(sign.Signature("f" * 64, "ed25519", bytes(64)))


@given(st.from_regex(sign.NAME, fullmatch=True).filter(lambda n: not n.endswith("\n")), st.binary(min_size=32, max_size=32))
def test_no_two_statements_have_the_same_payload(name: str, digest: bytes) -> None:
    body = sign.payload(name, f"sha256:{digest.hex()}")
    assert body.decode().split("\n") == [sign.CONTEXT, name, f"sha256:{digest.hex()}", ""]


@pytest.mark.parametrize(("name", "digest"), [("a\nb", DIGEST), ("", DIGEST), ("m", "0" * 64), ("m", DIGEST + "\n")])
def test_a_payload_of_anything_else_is_refused(name: str, digest: str) -> None:
    with pytest.raises(ValueError, match="not a model's name"):
        sign.payload(name, digest)


def canonical(raw: Any) -> bytes:
    return json.dumps(raw, sort_keys=True, separators=(",", ":")).encode()


def sig(**top: Any) -> bytes:
    entry = {"key": "a" * 64, "kind": "ed25519", "value": base64.b64encode(bytes(64)).decode()}
    return canonical({"format": 1, "manifest": DIGEST, "name": "m", "signatures": [entry], **top})


def one(**changes: Any) -> bytes:
    return sig(signatures=[{"key": "a" * 64, "kind": "ed25519", "value": base64.b64encode(bytes(64)).decode(), **changes}])


HOSTILE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "not JSON"),
    "above_64_kib": (sig(name="m" * (64 << 10)), "at most 65536"),
    "nested_too_deep": (b"[" * 60_000, "not JSON"),
    "number_of_60000_digits": (b'{"format":' + b"9" * 60_000 + b"}", "not JSON"),
    "not_utf8": (b'{"\xff": 1}', "not JSON"),
    "a_list": (b"[]", "not signatures"),
    "format_is_true": (sig(format=True), "not signatures"),
    "format_is_a_fraction": (sig(format=1.0), "not signatures"),
    "newer_format": (sig(format=2), "format 2, this builder reads up to 1"),
    "key_twice_in_an_object": (sig()[:-1] + b',"name":"m"}', "occurs twice"),
    "name_with_a_line_end": (sig(name="m\nx"), "does not match"),
    "name_is_a_number": (sig(name=1), "does not match"),
    "manifest_is_a_path": (sig(manifest="sha256:../" + "0" * 61), "is not sha256"),
    "another_manifest": (sig(manifest="sha256:" + "1" * 64), "expected of sha256:000"),
    "no_signatures": (canonical({"format": 1, "manifest": DIGEST, "name": "m"}), "missing key 'signatures'"),
    "signatures_is_an_object": (sig(signatures={}), "expected a list"),
    "a_thousand_signatures": (sig(signatures=[1] * 1000), "at most 32"),
    "signature_is_a_string": (sig(signatures=["x"]), "not an object"),
    "key_in_capitals": (one(key="A" * 64), "does not match"),
    "unknown_kind": (one(kind="none"), "kind 'none'"),
    "short_signature": (one(value="AAAA"), "has 3 bytes"),
    "empty_signature": (one(kind="cosign", value=""), "has 0 bytes"),
    "not_base64": (one(value="*" * 88), "Only base64 data is allowed"),
    "signature_of_40_kb": (one(kind="cosign", value="A" * 40_000), "at most 16384"),
    "same_key_twice": (sig(signatures=json.loads(sig())["signatures"] * 2), "not sorted by key and kind"),
    "another_key_in_it": (sig(extra=1), "not in canonical form"),
    "spaces": (sig() + b"\n", "not in canonical form"),
}


@pytest.mark.parametrize("fault", HOSTILE)
def test_hostile_signatures_are_refused(fault: str) -> None:
    body, words = HOSTILE[fault]
    with pytest.raises(IntegrityError) as caught:
        sign.parse(body, at="store/x.sig", digest=DIGEST)
    assert words in caught.value.message, caught.value.message
    assert len(caught.value.message) < 500


def test_signatures_above_the_limit_are_not_read(store: DirectoryStore, alice: Any) -> None:
    sig_file(store).write_bytes(bytes(sign.MAX_BYTES + 1))
    with pytest.raises(IntegrityError, match="expected at most 65536"):
        sign.require(store.source(), "m", [alice[1]])


def test_damaged_signatures_are_not_signed_over(store: DirectoryStore, alice: Any) -> None:
    sig_file(store).write_bytes(b"{}")
    with pytest.raises(IntegrityError, match="not signatures"):
        sign.sign_ref(store, "m", alice[0])
    assert sig_file(store).read_bytes() == b"{}"


def test_keys_that_are_not_keys_are_refused_without_showing_them(alice: Any) -> None:
    private, key = sign.generate(b"word")
    with pytest.raises(ConfigError, match="the private key is encrypted"):
        sign.private_key(private, at="k")
    with pytest.raises(ConfigError, match="or another passphrase"):
        sign.private_key(private, at="k", passphrase=b"other")
    assert sign.private_key(private, at="k", passphrase=b"word").id == key.id
    with pytest.raises(ConfigError, match="a private key, expected the public one"):
        sign.public_key(private, at="k")
    with pytest.raises(ConfigError, match="not a public key") as caught:
        sign.public_key(b"-----BEGIN S3CRET", at="k")
    assert "S3CRET" not in str(caught.value)
    with pytest.raises(ConfigError, match="not a private key") as caught:
        sign.private_key(b"-----BEGIN S3CRET", at="k")
    assert "S3CRET" not in str(caught.value)
    assert "key" not in repr(alice[0]).replace("Ed25519Signer", "").lower()


# The command line


def builder(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        run(words)
    return int(ended.value.code or 0)


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    assert builder("weights", "keygen", "--out", str(tmp_path / "keys")) == 0
    return tmp_path / "keys"


def test_keygen_never_overwrites_and_hides_the_private_key(keys: Path, capsys: pytest.CaptureFixture[str]) -> None:
    private, public = keys / "builder-signing.key", keys / "builder-signing.pub"
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    before = private.read_bytes(), public.read_bytes()
    assert builder("weights", "keygen", "--out", str(keys)) == 2
    public.unlink()
    assert builder("weights", "keygen", "--out", str(keys)) == 2
    assert not public.exists()
    assert private.read_bytes() == before[0]
    assert "builder-signing.key: is there already" in capsys.readouterr().err


def test_pull_and_verify_ask_for_the_signature_before_any_chunk(
    store: DirectoryStore, keys: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--store", store.url, "--require-signature", str(keys / "builder-signing.pub")]
    shutil.rmtree(store.root / "chunks")  # whoever reads one fails with "no object", not with "unsigned"
    for words in (["pull", "m", "--to", str(tmp_path / "out")], ["verify", "m"], ["verify", "m", "--remote"]):
        assert builder("weights", *words, *asked) == 3
        assert "unsigned; expected a signature of key" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_sign_then_pull_and_verify(
    store: DirectoryStore, keys: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIGNING_KEY", (keys / "builder-signing.key").read_text())
    at = ["--store", store.url]
    asked = [*at, "--require-signature", str(keys / "builder-signing.pub")]
    assert builder("weights", "sign", digest_of(store), "--key", "env:SIGNING_KEY", "--format", "json", *at) == 0
    report = json.loads(capsys.readouterr().out)
    assert builder("weights", "verify", "m", *asked) == 0
    assert builder("weights", "pull", "m", "--to", str(tmp_path / "out"), *asked) == 0
    assert f"signed by key {report['key'][:16]}" in capsys.readouterr().err
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (tmp_path / "model" / "model.safetensors").read_bytes()
    assert builder("weights", "verify", "--local", str(tmp_path / "out"), "--require-signature", "x") == 2


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--key", "none.pem"], "none.pem: key cannot be read"),
        (["--key", "env:NO_SUCH"], "NO_SUCH is not set"),
        ([], "one key signs"),
        (["--key", "a", "--cosign", "b"], "one key signs"),
        (["--cosign", "b", "--passphrase", "env:PATH"], "COSIGN_PASSWORD"),
        (["--key", "{key}", "--passphrase", "swordfish"], "expected env:NAME"),
        (["--key", "{key}", "--passphrase", "env:PATH"], "the private key is not encrypted"),
        (["--key", "{pub}"], "not a private key"),
    ],
)
def test_wrong_keys_are_usage_errors(
    store: DirectoryStore, keys: Path, words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [w.format(key=keys / "builder-signing.key", pub=keys / "builder-signing.pub") for w in words]
    assert builder("weights", "sign", "m", "--store", store.url, *words) == 2
    err = capsys.readouterr().err
    assert told in err
    assert "swordfish" not in err


def test_a_description_can_require_a_signature(
    keys: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    safetensors_model(tmp_path / "tiny")
    monkeypatch.chdir(tmp_path)
    assert builder("init", "tiny") == 0
    text = (tmp_path / "builder.yaml").read_text()
    assert "\nweights:\n" in text
    wanted = "\nweights:\n  require_signature: [keys/builder-signing.pub]\n"
    (tmp_path / "builder.yaml").write_text(text.replace("\nweights:\n", wanted))
    assert builder("weights", "push") == 0
    assert builder("weights", "pull", "--to", "out") == 3
    assert "unsigned" in capsys.readouterr().err
    assert builder("weights", "sign", "--key", "keys/builder-signing.key") == 0
    assert builder("weights", "pull", "--to", "out") == 0


def test_without_builder_lock_and_name_nothing_is_signed(store: DirectoryStore, keys: Path) -> None:
    assert builder("weights", "sign", "--key", str(keys / "builder-signing.key"), "--store", store.url) == 2


# Other programs


def test_openssl_agrees(store: DirectoryStore, keys: Path, tmp_path: Path) -> None:
    """The check that docs/signing.md shows, by a program that shares no line with this one."""
    if shutil.which("openssl") is None:
        missing("openssl", "openssl is not installed")
    assert builder("weights", "sign", "m", "--key", str(keys / "builder-signing.key"), "--store", store.url) == 0
    raw = json.loads(sig_file(store).read_text())
    (tmp_path / "sig").write_bytes(base64.b64decode(raw["signatures"][0]["value"]))
    command = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", keys / "builder-signing.pub", "-rawin", "-in"]
    for name, code in (("m", 0), ("n", 1)):
        (tmp_path / "payload").write_text(f"builder manifest signature v1\n{name}\n{digest_of(store)}\n")
        done = subprocess.run([*command, tmp_path / "payload", "-sigfile", tmp_path / "sig"], capture_output=True, check=False)
        assert done.returncode == code


@pytest.fixture
def cosign_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    if shutil.which("cosign") is None:
        missing("cosign", "cosign is not installed")
    monkeypatch.setenv("COSIGN_PASSWORD", "word")
    (tmp_path / "cosign").mkdir()
    subprocess.run(["cosign", "generate-key-pair"], cwd=tmp_path / "cosign", capture_output=True, check=True)
    return tmp_path / "cosign"


def test_cosign_signs_and_checks(store: DirectoryStore, cosign_keys: Path, tmp_path: Path, alice: Any) -> None:
    at = ["--store", store.url]
    asked = [*at, "--require-signature", str(cosign_keys / "cosign.pub")]
    assert builder("weights", "sign", "m", "--cosign", str(cosign_keys / "cosign.key"), *at) == 0
    sign.sign_ref(store, "m", alice[0])
    assert builder("weights", "verify", "m", *asked) == 0
    (entry,) = [s for s in json.loads(sig_file(store).read_text())["signatures"] if s["kind"] == "cosign"]
    (tmp_path / "sig").write_text(entry["value"])
    by_hand = ["cosign", "verify-blob", "--key", cosign_keys / "cosign.pub", "--insecure-ignore-tlog", "--signature"]
    manifest = store.root / manifest_key(digest_of(store))
    subprocess.run([*by_hand, tmp_path / "sig", manifest], check=True, capture_output=True)


@pytest.mark.parametrize("value", [b"garbage", bytes(72), bytes.fromhex("3006020101020101")])
def test_a_wrong_cosign_signature_is_refused(store: DirectoryStore, cosign_keys: Path, value: bytes) -> None:
    key = sign.public_key((cosign_keys / "cosign.pub").read_bytes(), at="cosign.pub")
    forged = sign.Signatures("m", digest_of(store), (sign.Signature(key.id, "cosign", value),))
    sig_file(store).write_bytes(forged.to_bytes())
    with pytest.raises(IntegrityError, match="is wrong for 'm'"):
        sign.require(store.source(), "m", [key])


def test_a_cosign_signature_moved_to_another_name_is_refused(store: DirectoryStore, cosign_keys: Path) -> None:
    sign.sign_ref(store, "m", sign.CosignSigner(str(cosign_keys / "cosign.key")))
    key = sign.public_key((cosign_keys / "cosign.pub").read_bytes(), at="cosign.pub")
    sig_file(store).write_bytes(canonical(json.loads(sig_file(store).read_text()) | {"name": "n"}))
    shutil.copy(store.root / ref_key("m"), store.root / ref_key("n"))
    with pytest.raises(IntegrityError, match="signed as 'n', but the manifest is of 'm'"):
        sign.require(store.source(), "n", [key])


def test_a_cosign_key_of_another_passphrase_is_told(
    store: DirectoryStore, cosign_keys: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COSIGN_PASSWORD", "other")
    assert builder("weights", "sign", "m", "--cosign", str(cosign_keys / "cosign.key"), "--store", store.url) == 1
    assert "COSIGN_PASSWORD" in capsys.readouterr().err


def test_without_cosign_its_signatures_cannot_be_checked(
    store: DirectoryStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    pem = generate_private_key(SECP256R1()).public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    key = sign.public_key(pem, at="cosign.pub")
    signed = sign.Signatures("m", digest_of(store), (sign.Signature(key.id, "cosign", b"x"),))
    sig_file(store).write_bytes(signed.to_bytes())
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CapabilityError, match="cosign: program not found"):
        sign.require(store.source(), "m", [key])
