"""Signatures of an image in its registry, and signed attestations beside it, by the program `cosign`.

    cosign sign   --key K --tlog-upload=false IMAGE@sha256:...
    cosign attest --key K --tlog-upload=false --type cyclonedx --predicate FILE IMAGE@sha256:...

A digest is signed, never a tag. With a key nothing is sent to the public transparency log unless asked, so that it works
without the internet; without a key cosign asks for an identity by its own means, which needs that log. Tested with cosign
2.5. cosign takes a key's passphrase from COSIGN_PASSWORD and a registry's login from DOCKER_CONFIG: never from arguments.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from builder import process
from builder.errors import BuilderError, CapabilityError, ConfigError, RemoteError
from builder.image.attest.names import parse

TIMEOUT_S = 300
HINT = "install cosign 2.x (Debian 13: apt-get install cosign)"
KEY_HINT = "check the key; its passphrase goes into COSIGN_PASSWORD"
REMOTE_HINT = "docker login, and push the image first; cosign reads the same configuration"
# What cosign says when it is the registry, or the way to it: its own codes (distribution-spec, Error Codes), and Go's.
REMOTE = re.compile(
    r"UNAUTHORIZED|DENIED|NAME_UNKNOWN|MANIFEST_UNKNOWN|TOOMANYREQUESTS|UNSUPPORTED|connection refused|no such host|x509:|"
    r"i/o timeout|context deadline exceeded|unexpected status code|status code [45]\d\d|HTTP response to HTTPS"
)
SERVICE = re.compile(r"[a-z0-9]+://.+")


@dataclass(frozen=True, slots=True)
class Signed:
    """reference: with its digest. kinds: the attestations made, as `cosign verify-attestation --type` calls them."""

    reference: str
    kinds: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {"reference": self.reference, "attestations": list(self.kinds)}


def sign(
    reference: str,
    key: str,
    *,
    sbom: str = "",
    provenance: str = "",
    tlog: bool = False,
    environment: Mapping[str, str] | None = None,
) -> Signed:
    """Sign the image `reference`, NAME@sha256:..., then the documents that are not empty.

    Push the image first: cosign signs the digest, and does not look whether the registry has it.

    key: a file of cosign's, a service's URI such as awskms:///alias/images, env://NAME; "": keyless, with the log.
    sbom: CycloneDX JSON.  provenance: in-toto statement; cosign makes its own around the same predicate.
    environment: of the child, in place of this process's own; where COSIGN_PASSWORD stands.
    Raises ConfigError for a reference without digest or a key that is not there, CapabilityError without cosign, RemoteError
    where the registry refuses, BuilderError with what cosign said.
    """
    if not parse(reference).digest:
        raise ConfigError(f"{reference}: expected NAME@sha256:..., for a tag may move", hint="sign what the push printed")
    options = [*_key(key), f"--tlog-upload={'true' if tlog or not key else 'false'}", "--yes"]
    if process.which("cosign") is None:
        raise CapabilityError("cosign: program not found; it signs images", hint=HINT)
    _cosign("sign", [*options, reference], environment)
    documents = {"cyclonedx": sbom, "slsaprovenance1": json.dumps(json.loads(provenance)["predicate"]) if provenance else ""}
    kinds = tuple(kind for kind, body in documents.items() if body)
    with tempfile.TemporaryDirectory(prefix="builder-attest-") as private:
        for kind in kinds:
            predicate = Path(private) / f"{kind}.json"
            predicate.write_text(documents[kind])
            _cosign("attest", [*options, f"--type={kind}", f"--predicate={predicate}", reference], environment)
    return Signed(reference, kinds)


def require(key: str) -> None:
    """Raises ConfigError for a key that is not there, CapabilityError without cosign."""
    _key(key)
    if process.which("cosign") is None:
        raise CapabilityError("cosign: program not found; it signs images", hint=HINT)


def _key(key: str) -> list[str]:
    if not key:
        return []
    if "-----BEGIN" in key:
        raise ConfigError(
            "key: expected a file or a service's URI, found a key itself", hint="a secret on a command line is seen by all"
        )
    if not SERVICE.fullmatch(key) and not Path(key).is_file():
        raise ConfigError(f"{key}: no such key file", hint="cosign generate-key-pair makes one")
    return [f"--key={key}"]


def _cosign(verb: str, words: list[str], environment: Mapping[str, str] | None) -> None:
    done = process.run(["cosign", verb, *words], env=environment, hint=HINT, timeout_s=TIMEOUT_S, check=False)
    if done.returncode == 0:
        return
    said = [line for line in done.stderr.decode(errors="replace").strip().splitlines() if line.strip()]
    errors = [line for line in said if line.lower().startswith("error")] or said[-3:] or [f"exit status {done.returncode}"]
    text = "\n".join(line[:500] for line in errors[:3])
    if REMOTE.search(text):
        raise RemoteError(f"cosign {verb} {words[-1]}: {text}", hint=REMOTE_HINT)
    raise BuilderError(f"cosign {verb} {words[-1]}: {text}", hint=KEY_HINT)
