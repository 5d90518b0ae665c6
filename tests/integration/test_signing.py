"""Images signed and attested by the real cosign in a real registry, and verified by cosign as a cluster's policy would."""

from __future__ import annotations

import base64
import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from builder import process
from builder.config.load import parse as parse_spec
from builder.errors import BuilderError, CapabilityError, ConfigError, RemoteError
from builder.image import attest
from builder.image.attest import signing
from builder.image.attest.provenance import Run
from tests.conftest import missing
from tests.images import files, image
from tests.servers import registry as registries
from tests.servers.registry import Registry

PASSWORD = "correct horse battery staple"
DESCRIPTION = b"""\
version: 1
name: tiny
model: {source: hf://org/tiny}
weights: {store: s3://models/tiny}
image: {repository: registry.example.com/llm/tiny, engine: {name: llama.cpp, version: "2026.10.11549"}}
"""


@dataclass(frozen=True)
class Pair:
    key: Path
    public: Path


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A key of cosign's own making, under a passphrase."""
    if process.which("cosign") is None:
        missing("cosign", "cosign is not installed")
    folder = tmp_path_factory.mktemp("keys")
    subprocess.run(["cosign", "generate-key-pair"], cwd=folder, env=os.environ | {"COSIGN_PASSWORD": PASSWORD},
                   capture_output=True, check=True)  # fmt: skip
    return Pair(folder / "cosign.key", folder / "cosign.pub")


@pytest.fixture
def secret() -> dict[str, str]:
    return dict(os.environ) | {"COSIGN_PASSWORD": PASSWORD}


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    image(tmp_path / "layout", files({"app": "x"}), name="registry.example.com/llm/tiny:v1")
    return tmp_path / "layout"


def described(layout: Path) -> attest.Attestations:
    moment = datetime(2026, 5, 4, tzinfo=UTC)
    return attest.describe(
        layout, base="debian:bookworm-slim", base_digest="sha256:" + "b" * 64, spec=parse_spec(DESCRIPTION, "builder.yaml"),
        context_digest="e" * 64, run=Run("run-1", moment, moment, {"docker": "28"}),
    )  # fmt: skip


def cosign(
    verb: str, reference: str, pair: Pair, *words: str, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    command = ["cosign", verb, f"--key={pair.public}", "--insecure-ignore-tlog", *words, reference]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


def statement(said: str) -> dict[str, Any]:
    """What a verified envelope holds (DSSE: the payload in base64)."""
    found: dict[str, Any] = json.loads(base64.b64decode(json.loads(said.splitlines()[-1])["payload"]))
    return found


def test_a_signed_image_is_verified_with_its_attestations(
    registry: Registry, pair: Pair, secret: dict[str, str], layout: Path
) -> None:
    reference = registry.reference("llm/tiny", registry.push(layout, "llm/tiny", "v1"))
    found = described(layout)
    signed = signing.sign(reference, str(pair.key), sbom=found.sbom, provenance=found.provenance, environment=secret)
    assert signed.to_json() == {"reference": reference, "attestations": ["cyclonedx", "slsaprovenance1"]}

    said = cosign("verify", reference, pair)
    assert said.returncode == 0, said.stderr
    (claim,) = json.loads(said.stdout)
    assert claim["critical"]["image"]["docker-manifest-digest"] == found.digest

    said = cosign("verify-attestation", reference, pair, "--type=cyclonedx")
    assert said.returncode == 0, said.stderr
    assert statement(said.stdout)["predicate"] == json.loads(found.sbom)

    said = cosign("verify-attestation", reference, pair, "--type=slsaprovenance1")
    assert said.returncode == 0, said.stderr
    inside, ours = statement(said.stdout), json.loads(found.provenance)
    assert inside["predicateType"] == "https://slsa.dev/provenance/v1"
    assert inside["subject"][0]["digest"] == ours["subject"][0]["digest"]
    assert inside["predicate"]["buildDefinition"] == ours["predicate"]["buildDefinition"]
    assert inside["predicate"]["runDetails"]["builder"]["id"] == ours["predicate"]["runDetails"]["builder"]["id"]


def test_another_image_and_another_key_are_not_verified(
    registry: Registry, pair: Pair, secret: dict[str, str], layout: Path, tmp_path: Path
) -> None:
    reference = registry.reference("llm/tiny", registry.push(layout, "llm/tiny", "v1"))
    signing.sign(reference, str(pair.key), environment=secret)
    image(tmp_path / "other", files({"app": "y"}))
    other = registry.reference("llm/tiny", registry.push(tmp_path / "other", "llm/tiny", "v1"))  # the tag moved
    assert cosign("verify", other, pair).returncode != 0
    assert cosign("verify", reference, pair).returncode == 0
    assert cosign("verify-attestation", reference, pair, "--type=cyclonedx").returncode != 0  # none was asked for
    subprocess.run(["cosign", "generate-key-pair"], cwd=tmp_path, env=secret, capture_output=True, check=True)
    assert cosign("verify", reference, Pair(pair.key, tmp_path / "cosign.pub")).returncode != 0


def test_neither_passphrase_nor_key_stands_on_a_command_line(
    registry: Registry, pair: Pair, secret: dict[str, str], layout: Path, tmp_path: Path
) -> None:
    """A cosign in front of the real one writes down its arguments."""
    real, fake = process.which("cosign"), tmp_path / "bin" / "cosign"
    fake.parent.mkdir()
    fake.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" >> {tmp_path}/argv\nexec {real} "$@"\n')
    fake.chmod(0o755)
    found = described(layout)
    reference = registry.reference("llm/tiny", registry.push(layout, "llm/tiny", "v1"))
    path = {"PATH": f"{fake.parent}:{os.environ['PATH']}"}
    signing.sign(reference, str(pair.key), sbom=found.sbom, environment=secret | path)
    words = (tmp_path / "argv").read_text()
    assert words.count("--tlog-upload=false\n") == 2  # nothing leaves for the public log
    assert PASSWORD not in words
    assert "PRIVATE KEY" not in words


def test_an_attested_image_can_be_signed_again(registry: Registry, pair: Pair, secret: dict[str, str], layout: Path) -> None:
    found = described(layout)
    reference = registry.reference("llm/tiny", registry.push(layout, "llm/tiny", "v1"))
    for _ in range(2):
        signing.sign(reference, str(pair.key), sbom=found.sbom, environment=secret)
    assert cosign("verify", reference, pair).returncode == 0
    assert cosign("verify-attestation", reference, pair, "--type=cyclonedx").returncode == 0


@pytest.fixture
def closed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """A registry with a login, behind a certificate of its own."""
    try:
        with registries.serve(tmp_path_factory.mktemp("closed"), users={"ci": "swordfish"}, tls=True) as served:
            yield served
    except CapabilityError as exc:
        missing("registry", str(exc))


def test_a_registry_with_login_and_certificate_is_reached_by_the_environment(
    closed: Registry, pair: Pair, secret: dict[str, str], layout: Path, tmp_path: Path
) -> None:
    reference = closed.reference("llm/tiny", closed.push(layout, "llm/tiny", "v1"))
    env = secret | closed.environment(tmp_path / "docker")
    signing.sign(reference, str(pair.key), environment=env)
    assert cosign("verify", reference, pair, env=env).returncode == 0


def test_a_missing_login_is_the_registrys_refusal(
    closed: Registry, pair: Pair, secret: dict[str, str], layout: Path, tmp_path: Path
) -> None:
    reference = closed.reference("llm/tiny", closed.push(layout, "llm/tiny", "v1"))
    env = secret | {"DOCKER_CONFIG": str(tmp_path), "SSL_CERT_FILE": str(closed.ca)}
    with pytest.raises(RemoteError, match="UNAUTHORIZED") as caught:
        signing.sign(reference, str(pair.key), environment=env)
    assert caught.value.exit_code == 5
    assert "docker login" in caught.value.hint


def test_a_registry_that_is_not_there_is_said_so(pair: Pair, secret: dict[str, str]) -> None:
    with pytest.raises(RemoteError, match="connection refused"):
        signing.sign("127.0.0.1:1/llm/tiny@sha256:" + "0" * 64, str(pair.key), environment=secret)


def test_a_wrong_passphrase_is_said_and_not_repeated(
    registry: Registry, pair: Pair, secret: dict[str, str], layout: Path
) -> None:
    reference = registry.reference("llm/tiny", registry.push(layout, "llm/tiny", "v1"))
    with pytest.raises(BuilderError, match="decrypt") as caught:
        signing.sign(reference, str(pair.key), environment=secret | {"COSIGN_PASSWORD": "tr0ub4dor"})
    assert caught.value.exit_code == 1
    assert "COSIGN_PASSWORD" in caught.value.hint
    assert "tr0ub4dor" not in caught.value.message
    assert registry.tags("llm/tiny") == ["v1"]


def test_a_tag_is_not_signed(pair: Pair) -> None:
    with pytest.raises(ConfigError, match="a tag may move"):
        signing.sign("registry.example.com/llm/tiny:v1", str(pair.key))


def test_a_key_that_is_not_there_is_refused_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such key file"):
        signing.sign("registry.example.com/llm/tiny@sha256:" + "0" * 64, str(tmp_path / "no.key"))


def test_a_key_itself_is_refused_and_not_repeated() -> None:
    key = "-----BEGIN " + "ENCRYPTED SIGSTORE PRIVATE KEY-----\nc2VjcmV0"
    with pytest.raises(ConfigError) as caught:
        signing.sign("registry.example.com/llm/tiny@sha256:" + "0" * 64, key)
    assert "c2VjcmV0" not in caught.value.message


def test_without_cosign_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "k").write_text("")
    monkeypatch.setattr(process, "which", lambda _: None)
    with pytest.raises(CapabilityError) as caught:
        signing.sign("registry.example.com/llm/tiny@sha256:" + "0" * 64, str(tmp_path / "k"))
    assert caught.value.exit_code == 4
    assert "install cosign" in caught.value.hint
