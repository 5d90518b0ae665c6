"""A real image registry on this machine: Debian's docker-registry (CNCF distribution 2.8), over a folder of its own.

    with serve(tmp_path / "registry") as registry:                         # plain HTTP on a free port of 127.0.0.1
        digest = registry.push(layout, "llm/tiny", "v1")                   # an OCI layout folder, no engine needed
        subprocess.run(["docker", "push", registry.reference("llm/tiny", "v2")])   # engines take 127.0.0.0/8 without TLS
    with serve(folder, users={"ci": "secret"}, tls=True) as registry:      # basic authentication, and its own authority
        subprocess.run([...], env=os.environ | registry.environment(private))      # DOCKER_CONFIG and SSL_CERT_FILE

It keeps blobs as files, so that a test may damage one, and a log of requests, so that a test may see what was asked.
"""

from __future__ import annotations

import base64
import contextlib
import json
import re
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from builder import process
from builder.errors import CapabilityError
from tests.bounds import BOUND_S

MANIFESTS = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
LISTENING = re.compile(r"listening on (?P<host>[\d.]+):(?P<port>\d+)")
REQUEST = re.compile(r'"(?P<method>[A-Z]+) (?P<path>\S+) HTTP/[\d.]+" (?P<status>\d{3}) ')


@dataclass(frozen=True)
class Answer:
    """status: also of a refusal. headers: names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Registry:
    """A running registry. host: as it stands in references, address:port. folder: its data. ca: PEM file where it has TLS."""

    host: str
    folder: Path
    log: Path
    users: Mapping[str, str] = field(default_factory=dict, repr=False)
    ca: Path | None = None

    @property
    def url(self) -> str:
        return f"{'https' if self.ca else 'http'}://{self.host}"

    def reference(self, name: str, version: str = "latest") -> str:
        """version: a tag, or sha256:..."""
        return f"{self.host}/{name}{'@' if version.startswith('sha256:') else ':'}{version}"

    def environment(self, private: Path) -> dict[str, str]:
        """What a client's environment needs to be let in. private: a folder for its DOCKER_CONFIG, made if missing."""
        private.mkdir(parents=True, exist_ok=True)
        login = {self.host: {"auth": self._login()}} if self.users else {}
        (private / "config.json").write_text(json.dumps({"auths": login}))
        return {"DOCKER_CONFIG": str(private)} | ({"SSL_CERT_FILE": str(self.ca)} if self.ca else {})

    def ask(self, method: str, path: str, body: bytes | None = None, *, login: bool = True, **headers: str) -> Answer:
        """One request below /v2/, or to an absolute URL. headers: underscores stand for dashes."""
        request = urllib.request.Request(path if "://" in path else f"{self.url}/v2/{path}", data=body, method=method)
        for name, value in headers.items():
            request.add_header(name.replace("_", "-"), value)
        if self.users and login:
            request.add_header("Authorization", f"Basic {self._login()}")
        context = ssl.create_default_context(cafile=str(self.ca)) if self.ca else None
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context))
        try:
            with opener.open(request, timeout=BOUND_S) as answer:
                return Answer(answer.status, {k.lower(): v for k, v in answer.headers.items()}, answer.read())
        except urllib.error.HTTPError as refusal:
            with refusal:
                return Answer(refusal.code, {k.lower(): v for k, v in refusal.headers.items()}, refusal.read())

    def tags(self, name: str) -> list[str]:
        """Sorted; empty where there is no such repository."""
        answer = self.ask("GET", f"{name}/tags/list")
        return sorted(answer.json()["tags"] or ()) if answer.status == 200 else []

    def manifest(self, name: str, version: str) -> tuple[str, dict[str, Any]]:
        """Its digest and itself. version: a tag, or sha256:..."""
        answer = self._done(self.ask("GET", f"{name}/manifests/{version}", Accept=", ".join(MANIFESTS)))
        return answer.headers["docker-content-digest"], answer.json()

    def blob(self, name: str, digest: str) -> bytes:
        return self._done(self.ask("GET", f"{name}/blobs/{digest}")).body

    def push(self, layout: Path, name: str, tag: str) -> str:
        """The one image of the OCI layout folder `layout`, as name:tag. Returns its manifest's digest."""
        (entry,) = json.loads((layout / "index.json").read_bytes())["manifests"]
        body = self._send(layout, name, entry)
        kind = str(entry.get("mediaType", MANIFESTS[1]))
        answer = self._done(self.ask("PUT", f"{name}/manifests/{tag}", body, Content_Type=kind))
        assert answer.headers["docker-content-digest"] == entry["digest"]
        return str(entry["digest"])

    def blob_path(self, digest: str) -> Path:
        """Where the blob lies as a file; to be damaged, or removed."""
        kind, _, value = digest.partition(":")
        return self.folder / "docker/registry/v2/blobs" / kind / value[:2] / value / "data"

    def requests(self) -> list[tuple[str, str, int]]:
        """(method, path with query, status) of each request so far, in the order of their ends."""
        found = REQUEST.finditer(self.log.read_text(errors="replace"))
        return [(match["method"], match["path"], int(match["status"])) for match in found]

    def _login(self) -> str:
        """The first user, as basic authentication writes it."""
        user, word = next(iter(self.users.items()))
        return base64.b64encode(f"{user}:{word}".encode()).decode()

    def _send(self, layout: Path, name: str, entry: Mapping[str, Any]) -> bytes:
        """Everything below the manifest `entry`, then the manifest's bytes, which the caller sends under a name."""
        body = _blob(layout, entry["digest"])
        manifest = json.loads(body)
        for child in manifest.get("manifests", ()):
            inner = self._send(layout, name, child)
            self._done(self.ask("PUT", f"{name}/manifests/{child['digest']}", inner, Content_Type=child["mediaType"]))
        for part in (*manifest.get("layers", ()), *([manifest["config"]] if "config" in manifest else ())):
            if self.ask("HEAD", f"{name}/blobs/{part['digest']}").status == 200:
                continue
            place = self._done(self.ask("POST", f"{name}/blobs/uploads/", b"")).headers["location"]
            place += ("&" if "?" in place else "?") + f"digest={part['digest']}"
            self._done(self.ask("PUT", place, _blob(layout, part["digest"]), Content_Type="application/octet-stream"))
        return body

    def _done(self, answer: Answer) -> Answer:
        assert answer.status < 300, f"{self.host}: status {answer.status}: {answer.body[:300]!r}"
        return answer


@contextlib.contextmanager
def serve(
    folder: Path, *, users: Mapping[str, str] | None = None, tls: bool = False, read_only: bool = False, host: str = "127.0.0.1"
) -> Iterator[Registry]:
    """A registry over the new or earlier `folder`, on a free port of `host`, stopped on exit.

    users: name to password; none: anybody may read and write. read_only: writes get 405. A second call with the same folder
    finds what the first one kept. Raises CapabilityError where docker-registry, htpasswd or openssl is missing.
    """
    program = process.need("docker-registry")
    private, data = folder / "private", folder / "data"
    private.mkdir(parents=True, exist_ok=True)
    settings: dict[str, Any] = {
        "version": "0.1",
        "log": {"level": "info", "accesslog": {"disabled": False}},
        "storage": {"filesystem": {"rootdirectory": str(data)}, "delete": {"enabled": True},
                    "maintenance": {"uploadpurging": {"enabled": False}, "readonly": {"enabled": read_only}}},
        "http": {"addr": f"{host}:0", "secret": "of this test"},
    }  # fmt: skip
    if users:
        settings["auth"] = {"htpasswd": {"realm": "registry", "path": str(_passwords(private, users))}}
    ca = None
    if tls:
        ca, key = _certificate(private, host)
        settings["http"]["tls"] = {"certificate": str(ca), "key": str(key)}
    (private / "config.yml").write_text(json.dumps(settings))  # JSON is YAML
    log = private / "log"
    log.write_bytes(b"")
    env = {"PATH": "/usr/bin:/bin", "OTEL_TRACES_EXPORTER": "none"}
    with log.open("ab") as out:
        server = subprocess.Popen([program, "serve", private / "config.yml"], env=env, stdin=subprocess.DEVNULL, stdout=out,
                                  stderr=out)  # fmt: skip
    try:
        port = _port(server, log)
        yield Registry(f"{host}:{port}", data, log, dict(users or {}), ca)
    finally:
        server.terminate()
        try:
            server.wait(BOUND_S)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _port(server: subprocess.Popen[bytes], log: Path, within_s: float = BOUND_S) -> int:
    """The port that the kernel chose, as the log tells it once the socket listens."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        text = log.read_text(errors="replace")
        if match := LISTENING.search(text):
            return int(match["port"])
        if server.poll() is not None:
            raise CapabilityError(f"docker-registry ended with status {server.returncode}: {text.strip()[-500:]}")
        time.sleep(0.02)
    raise CapabilityError(f"docker-registry did not listen within {within_s:.0f} s")


def _passwords(private: Path, users: Mapping[str, str]) -> Path:
    """An Apache password file; bcrypt, the one form that the registry takes."""
    htpasswd = process.need("htpasswd", "apache2-utils")
    lines = [process.run([htpasswd, "-niB", user], input_bytes=word.encode()).stdout.strip() for user, word in users.items()]
    path = private / "htpasswd"
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def _certificate(private: Path, host: str) -> tuple[Path, Path]:
    """A certificate for `host` and localhost that is its own authority, and its key."""
    certificate, key = private / "ca.pem", private / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    command += ["-subj", "/CN=registry of a test", "-keyout", str(key), "-out", str(certificate)]
    command += ["-addext", f"subjectAltName=IP:{'127.0.0.1' if host == '0.0.0.0' else host},DNS:localhost"]
    command += ["-addext", "keyUsage=critical,keyCertSign,digitalSignature"]
    process.need("openssl")
    process.run(command)
    return certificate, key


def _blob(layout: Path, digest: str) -> bytes:
    return (layout / "blobs" / digest.replace(":", "/")).read_bytes()
