"""Images out of a registry, as OCI layouts with the registry's own digests, by skopeo and the user's own logins.

skopeo reads the logins itself (`docker login` wrote them; credential helpers are run by it), so no password passes through
here, a process list or a log. The manifest is taken as the registry has it: of an index its own bytes, and of the image for
the one platform that is asked for the manifest, configuration and layers, as they are (`--preserve-digests` into a `dir:`
folder, which unlike `oci:` also holds manifests of Docker's own format).
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from builder import process
from builder.errors import BuilderError, CapabilityError, ConfigError, IntegrityError, RemoteError
from builder.node.layout import INDEX_TYPES, normalise

PREFIX = "docker://"
INSPECT_S, COPY_S = 120.0, 6 * 3600.0
_REFERENCE = re.compile(r"(?P<name>[^@]+:[A-Za-z0-9_][A-Za-z0-9._-]{0,127})(@(?P<digest>sha256:[0-9a-f]{64}))?")
_SCHEME = re.compile(r"^https?://")
_LOOPBACK = re.compile(r"(localhost|127(\.\d+){3}|\[::1\])(:\d+)?/")
# The first that matches wins. Texts: skopeo 1.9 (containers/image 5.22), distribution 2.8, Docker Hub.
CAUSES: Sequence[tuple[str, str, str]] = (
    (r"unauthorized|authentication required|401|denied|403 Forbidden|error getting credentials|incorrect username",
     "refuses the login", "docker login {host}, with an account that may pull there"),
    (r"manifest unknown|name unknown|not found|404|repository name not known", "has no such image",
     "see that name and tag are right"),
    (r"x509|certificate|tls: ", "shows a certificate that is not trusted", "give its authority with --ca-bundle"),
    (r"server gave HTTP response to HTTPS client", "speaks no TLS", "give it TLS"),
    (r"toomanyrequests|429", "asks to come back later", "log in, or wait"),
    (r"connection refused|no such host|i/o timeout|no route to host|network is unreachable|EOF|connection reset|timeout",
     "does not answer", "see that {host} is right and can be reached from here"),
)  # fmt: skip
_ALTERED = re.compile(r"digest (mismatch|did not match|verification)|does not match.*digest|unexpected (digest|size)|"
                      r"Digest did not match|invalid checksum|manifest .*does not match", re.IGNORECASE)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Access:
    """authfile: logins as Docker keeps them (config.json), asked first; None: where skopeo looks by itself.

    ca: PEM file of authorities.
    """

    authfile: Path | None = None
    ca: Path | None = None


def fetch(reference: str, folder: Path, *, platform: str, access: Access) -> str:
    """The image `registry/repository:tag[@digest]` for one platform, as an OCI layout in the new folder. Returns its full name.

    Raises RemoteError where the registry refuses, does not answer or has no such image; IntegrityError where it sends other
    bytes than a digest names; ConfigError for a name without tag, or a platform that the image is not made for.
    """
    match = _REFERENCE.fullmatch(reference)
    if not match:
        raise ConfigError(f"{reference!r}: expected registry/repository:tag, and @sha256:... if you like",
                          hint="a disk holds an image by tag and by digest, so it needs both: name the tag")  # fmt: skip
    name, asked = normalise(match["name"]), match["digest"] or ""
    remote = _Remote(name, access, folder.with_name(folder.name + ".ca"))
    at = f"{remote.repository}@{asked}" if asked else name
    body = remote.raw(at)
    digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
    if asked and asked != digest:
        raise IntegrityError(f"{reference}: the registry sent {digest}", hint="ask who runs it; nothing was baked")
    target = _document(body, reference)
    kind = str(target.get("mediaType") or _kind(target))
    entry = {"mediaType": kind, "digest": digest, "size": len(body)}
    chosen = _choose(target, kind, platform, reference) or digest
    remote.copy(f"{remote.repository}@{chosen}", folder)
    _as_layout(folder, chosen, body, entry)
    return name


@dataclass(frozen=True, slots=True)
class _Remote:
    """name: registry/repository:tag. certificates: a folder to be made if there is an authority to hand over."""

    name: str
    access: Access
    certificates: Path

    @property
    def repository(self) -> str:
        return self.name.rsplit(":", 1)[0]

    def raw(self, reference: str) -> bytes:
        """The manifest or index as the registry has it, byte for byte."""
        command = ["inspect", "--raw", *self._options(""), PREFIX + reference]
        return self._run(command, INSPECT_S)

    def copy(self, reference: str, folder: Path) -> None:
        command = ["copy", "--quiet", "--preserve-digests", *self._options("src-"), PREFIX + reference, f"dir:{folder}"]
        self._run(command, COPY_S)

    def _options(self, side: str) -> list[str]:
        options = ["--retry-times", "2"]
        if self.access.authfile and (logins := self._logins(self.access.authfile)):
            options += ["--authfile", str(logins)]
        if self.access.ca:
            self.certificates.mkdir(exist_ok=True)
            try:
                shutil.copyfile(self.access.ca, self.certificates / "ca.crt")
            except OSError as exc:
                raise ConfigError(
                    f"{self.access.ca}: {exc.strerror}", hint="name a PEM file of certificate authorities"
                ) from exc
            options += [f"--{side}cert-dir", str(self.certificates)]
        elif _LOOPBACK.match(self.name):  # as Docker treats 127.0.0.0/8: TLS unverified, or none
            options += [f"--{side}tls-verify=false"]
        return options

    def _logins(self, file: Path) -> Path | None:
        """The file to name to skopeo; None where `file` says nothing of this registry, and skopeo's own places are asked.

        skopeo passes over Docker's `credsStore`, the helper for every registry (github.com/containers/image issue 111), so
        that one is named as the helper of this registry, in a file of its own, which holds no login.
        """
        host = self.name.split("/")[0]
        try:
            raw = json.loads(file.read_bytes())
            helpers, store = raw.get("credHelpers") or {}, raw.get("credsStore")
            known = {
                _SCHEME.sub("", key).split("/")[0].replace("index.docker.io", "docker.io") for key in raw.get("auths") or {}
            }
        except (ValueError, AttributeError, TypeError):
            return file  # skopeo says what is wrong with it
        if host in helpers or not store:
            return file if host in helpers or host in known else None
        own = self.certificates.with_suffix(".logins")
        own.write_text(json.dumps({"credHelpers": {host: store}}))
        return own

    def _run(self, words: list[str], timeout_s: float) -> bytes:
        # A policy of its own would be the machine's; what is taken is decided by the digest.
        command = [str(process.need("skopeo")), "--insecure-policy", *words]
        try:
            return process.run(command, timeout_s=timeout_s).stdout
        except CapabilityError:
            raise
        except BuilderError as exc:
            raise refusal(self.name, exc.message) from exc


def refusal(reference: str, said: str) -> BuilderError:
    """One line from what skopeo printed.

    >>> refusal("r.example.com/a:1", "exit status 1 from: skopeo\\n  manifest unknown").message
    'r.example.com/a:1: r.example.com has no such image: manifest unknown'
    """
    host = reference.split("/")[0]
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    last = re.sub(r'^time="[^"]*" level=\w+ msg=', "", lines[-1]) if lines else "no reason given"
    if _ALTERED.search(last):
        return IntegrityError(f"{reference}: {host} sent other bytes than a digest names: {last}", hint="push the image again")
    for pattern, what, hint in CAUSES:
        if re.search(pattern, last, re.IGNORECASE):
            return RemoteError(f"{reference}: {host} {what}: {last}", hint=hint.format(host=host))
    return RemoteError(f"{reference}: {last}", hint="try again")


def _document(body: bytes, reference: str) -> dict[str, Any]:
    try:
        raw = json.loads(body)
    except ValueError as exc:
        raise IntegrityError(f"{reference}: the registry sent no manifest: {exc}") from exc
    if not isinstance(raw, dict) or raw.get("schemaVersion") != 2:
        raise ConfigError(f"{reference}: a manifest of schema {raw.get('schemaVersion') if isinstance(raw, dict) else raw!r}",
                          hint="build and push the image anew; schema 1 has no layers by digest")  # fmt: skip
    return raw


def _kind(target: dict[str, Any]) -> str:
    """Media type of a document that does not say it itself, which OCI allows."""
    return INDEX_TYPES[0] if "manifests" in target else "application/vnd.oci.image.manifest.v1+json"


def _choose(target: dict[str, Any], kind: str, platform: str, reference: str) -> str:
    """Digest of the image for `platform` in an index; "" where the document is no index."""
    if kind not in INDEX_TYPES:
        return ""
    offered: dict[str, str] = {}
    for child in target.get("manifests", []):
        where = child.get("platform") or {}
        offered.setdefault(f"{where.get('os')}/{where.get('architecture')}", str(child.get("digest")))
    offered.pop("unknown/unknown", None)  # attestations
    if platform not in offered:
        raise ConfigError(f"{reference}: no image for {platform}; the index offers {', '.join(offered)}",
                          hint="one disk serves one platform: --platform")  # fmt: skip
    return offered[platform]


def _as_layout(folder: Path, chosen: str, body: bytes, entry: dict[str, Any]) -> None:
    """Rename what skopeo wrote (manifest.json, version, blobs by hex digest) into an OCI layout; add the index."""
    manifest = (folder / "manifest.json").read_bytes()
    if chosen != f"sha256:{hashlib.sha256(manifest).hexdigest()}":
        raise IntegrityError(f"{folder.name}: skopeo wrote another manifest than {chosen}", hint="use skopeo 1.9 or newer")
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    for path in list(folder.iterdir()):
        if re.fullmatch(r"[0-9a-f]{64}", path.name):
            path.rename(blobs / path.name)
    (folder / "manifest.json").rename(blobs / chosen.removeprefix("sha256:"))
    (folder / "version").unlink()
    (blobs / entry["digest"].removeprefix("sha256:")).write_bytes(body)
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    (folder / "oci-layout").write_text(json.dumps({"imageLayoutVersion": "1.0.0"}))
