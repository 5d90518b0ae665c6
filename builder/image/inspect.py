"""What an image holds: its layers and what fills them; and whether there is a secret or a model's weights among it.

Reads an archive as `docker save` or BuildKit's OCI exporter writes it, layer by layer, without unpacking it to disk.
"""

from __future__ import annotations

import collections
import json
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from builder.errors import ClaimError, IntegrityError
from builder.image.dockerfile import SECRET_NAME
from builder.progress import NoProgress, Progress, step
from builder.units import format_size

BLOCK = 8 << 20
OVERLAP = 4096  # longer than any pattern's fixed part, so that a match across two blocks is seen
MODEL_FILE = re.compile(r"\.(safetensors|gguf|ggml|onnx_data)$", re.I)
MAYBE_MODEL = re.compile(r"\.(bin|pt|pth|ckpt|h5|onnx|msgpack)$", re.I)
MAYBE_MODEL_BYTES = 50_000_000
SECRET_FILE = re.compile(
    r"(^|/)(\.netrc|\.pypirc|\.git-credentials|id_(rsa|dsa|ecdsa|ed25519)|\.aws/credentials|\.docker/config\.json"
    r"|run/secrets/.+|\.cache/huggingface/token|\.huggingface/token)$"
)
# Where an address with a password is somebody's and not documentation.
ADDRESS_FILE = re.compile(r"(pip\.conf|\.npmrc|\.condarc|uv\.toml|/auth\.conf|\.list|\.sources|/environment)$")
ADDRESS = re.compile(rb"[a-z][a-z0-9+.-]*://[^\s/:@\"']+:[^\s/@\"']+@")
# A fixed part that `in` finds at memory speed, and the whole. A private key must have a body: TLS libraries hold the
# bare header.
SECRETS: tuple[tuple[str, bytes, re.Pattern[bytes]], ...] = (
    ("Hugging Face token", b"hf_", re.compile(rb"\bhf_[A-Za-z0-9]{30,}\b")),
    ("AWS access key", b"AKIA", re.compile(rb"\bAKIA(?![A-Z0-9]*EXAMPLE)[A-Z0-9]{16}\b")),
    ("GitHub token", b"gh", re.compile(rb"\bgh[pousr]_[A-Za-z0-9]{30,}\b")),
    ("API key", b"sk-", re.compile(rb"\bsk-(proj-|ant-)?[A-Za-z0-9]{32,}\b")),
    ("private key", b"PRIVATE KEY-----", re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----\s+[A-Za-z0-9+/=\s]{100,}-----END")),
)


@dataclass(frozen=True, slots=True)
class Finding:
    """kind: what it looks like. place: layer digest and path, or the part of the image's configuration."""

    kind: str
    place: str
    detail: str = ""

    def to_json(self) -> dict[str, str]:
        return {"kind": self.kind, "place": self.place, "detail": self.detail}


@dataclass(frozen=True, slots=True)
class Layer:
    """compressed, unpacked: bytes. made_by: the Dockerfile line, as history tells it."""

    digest: str
    compressed: int
    unpacked: int
    files: int
    made_by: str

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class ImageReport:
    """What an image consists of. causes: unpacked bytes by what put them there, largest first."""

    reference: str
    digest: str
    layers: tuple[Layer, ...]
    causes: dict[str, int]
    user: str
    entrypoint: tuple[str, ...]
    env: dict[str, str]
    labels: dict[str, str]

    @property
    def compressed(self) -> int:
        return sum(layer.compressed for layer in self.layers)

    @property
    def unpacked(self) -> int:
        return sum(layer.unpacked for layer in self.layers)

    def to_json(self) -> dict[str, Any]:
        own = {name: getattr(self, name) for name in ("reference", "digest", "causes", "user", "env", "labels")}
        totals = {"compressed": self.compressed, "unpacked": self.unpacked, "entrypoint": list(self.entrypoint)}
        return own | totals | {"layers": [layer.to_json() for layer in self.layers]}


@dataclass(frozen=True, slots=True)
class _Contents:
    """The parts of an archive. blobs: member names of the layers, base first."""

    digest: str
    config: dict[str, Any]
    blobs: tuple[str, ...]


def report(archive: Path, reference: str) -> ImageReport:
    """What the image in `archive` consists of."""
    causes: collections.Counter[str] = collections.Counter()
    layers = []
    with _open(archive) as tar:
        found = _contents(tar)
        lines = [entry.get("created_by", "") for entry in found.config.get("history", ()) if not entry.get("empty_layer")]
        lines += [""] * (len(found.blobs) - len(lines))
        for blob, line in zip(found.blobs, lines, strict=False):
            unpacked = files = 0
            for member, _ in _members(tar, blob):
                unpacked, files = unpacked + member.size, files + 1
                causes[cause(member.name)] += member.size
            layers.append(Layer(_digest(blob), tar.getmember(blob).size, unpacked, files, _short(line)))
    config = found.config.get("config", {})
    env = dict(item.split("=", 1) for item in config.get("Env") or ())
    entrypoint = tuple(config.get("Entrypoint") or ())
    labels = config.get("Labels") or {}
    return ImageReport(
        reference, found.digest, tuple(layers), dict(causes.most_common()), config.get("User", ""), entrypoint, env, labels
    )


def cause(path: str) -> str:
    """What put a file into the image, by where it lies.

    >>> cause("opt/venv/lib/python3.11/site-packages/xllamacpp/memory.py"), cause("usr/lib/python3.11/ast.py")
    ('package xllamacpp', 'python')
    """
    match = re.match(r"opt/venv/lib(?:64)?/python[\d.]+/site-packages/([^/]+)", path)
    if match:
        return "package " + re.split(r"-[\d]|\.", match[1])[0].removesuffix("_libs")
    if path.startswith("opt/builder/"):
        return "builder runtime"
    if re.match(r"(usr/(local/)?)?lib/python3|usr/(local/)?bin/python3|opt/venv/", path):
        return "python"
    return "system"


def scan(archive: Path, *, also: Sequence[bytes] = (), platform: str = "", progress: Progress | None = None) -> list[Finding]:
    """Secrets and weights in the configuration, the history, or any layer (a file deleted later is still in its layer).

    also: further byte strings that must occur nowhere.  platform: which image, where the archive holds several.
    """
    findings: list[Finding] = []
    with step(progress or NoProgress(), "image: scan for secrets and weights"), _open(archive) as tar:
        found = _contents(tar, platform)
        text = json.dumps(found.config).encode()
        findings += [
            Finding(kind, "configuration or history", _hidden(hit)) for kind, hit in _secrets(text, also, address=True)
        ]
        for setting in (found.config.get("config") or {}).get("Env") or ():
            name, _, value = str(setting).partition("=")
            if value and SECRET_NAME.search(name):
                findings.append(Finding("variable named like a secret", "environment", name))
        for blob in found.blobs:
            for member, file in _members(tar, blob):
                findings += _scan_file(f"{_digest(blob)[:19]}:/{member.name}", member, file, also)
    return findings


def require_clean(findings: Sequence[Finding], reference: str) -> None:
    """Raise ClaimError (exit 7) that lists every finding."""
    if findings:
        lines = "".join(f"\n  {one.kind}: {one.place}{' ' + one.detail if one.detail else ''}" for one in findings)
        raise ClaimError(
            f"{reference}: {len(findings)} thing(s) that no image may hold{lines}",
            hint="do not push it; find the step that added it with `builder image report`, and revoke a secret that was real",
            where={"findings": [one.to_json() for one in findings]},
        )


def _scan_file(place: str, member: tarfile.TarInfo, file: IO[bytes] | None, also: Sequence[bytes]) -> Iterator[Finding]:
    if file is None or member.size == 0:
        return
    if MODEL_FILE.search(member.name) or (MAYBE_MODEL.search(member.name) and member.size >= MAYBE_MODEL_BYTES):
        yield Finding("model weights", place, format_size(member.size))
    if SECRET_FILE.search(member.name):
        yield Finding("file that holds credentials", place)
    address = bool(ADDRESS_FILE.search(member.name))
    seen, kept, program = set(), b"", None
    while block := file.read(BLOCK):
        program = block.startswith(b"\x7fELF") if program is None else program
        for kind, hit in _secrets(kept + block, also, address=address):
            # TLS libraries carry the keys of their own self-tests (libgnutls: five).
            if (kind, hit) not in seen and not (program and kind == "private key"):
                seen.add((kind, hit))
                yield Finding(kind, place, _hidden(hit))
        kept = block[-OVERLAP:]


def _secrets(data: bytes, also: Sequence[bytes], *, address: bool) -> Iterator[tuple[str, bytes]]:
    for kind, fixed, pattern in SECRETS:
        if fixed in data:
            yield from ((kind, match[0]) for match in pattern.finditer(data))
    yield from (("given secret", one) for one in also if one in data)
    if address:
        yield from (("address with a password", match[0]) for match in ADDRESS.finditer(data))


def _hidden(hit: bytes) -> str:
    """Enough of a secret to find it, not enough to use it."""
    return hit[:6].decode(errors="replace") + "..."


def _open(archive: Path) -> tarfile.TarFile:
    try:
        return tarfile.open(archive)
    except (OSError, tarfile.TarError) as exc:
        raise IntegrityError(f"{archive}: not an image archive: {exc}", hint="make one with `docker save`") from exc


def _contents(tar: tarfile.TarFile, platform: str = "") -> _Contents:
    """OCI layout (BuildKit, and docker save since 25), else the older manifest.json of docker save."""
    names = set(tar.getnames())
    if "index.json" in names:
        digest = str(_json(tar, "index.json")["manifests"][0]["digest"])
        manifest = _manifest(tar, _json(tar, _blob(digest)), names, platform)
        layers = tuple(_blob(layer["digest"]) for layer in manifest["layers"])
        return _Contents(digest, _json(tar, _blob(manifest["config"]["digest"])), layers)
    if "manifest.json" in names:
        old = _json(tar, "manifest.json")[0]
        return _Contents("", _json(tar, old["Config"]), tuple(old["Layers"]))
    raise IntegrityError(f"{tar.name!r}: neither index.json nor manifest.json; not an image archive")


def _manifest(tar: tarfile.TarFile, found: dict[str, Any], names: set[str], platform: str) -> dict[str, Any]:
    """`found`, or where it is an index the one image in it that the archive holds; attestations are not images."""
    if "manifests" not in found:
        return found
    for entry in found["manifests"]:
        of = entry.get("platform", {})
        if platform and f"{of.get('os')}/{of.get('architecture')}" != platform:
            continue
        if of.get("architecture") != "unknown" and _blob(entry["digest"]) in names:
            manifest: dict[str, Any] = _json(tar, _blob(entry["digest"]))
            return manifest
    raise IntegrityError(f"{tar.name!r}: its index names no image that the archive holds")


def _members(tar: tarfile.TarFile, blob: str) -> Iterator[tuple[tarfile.TarInfo, IO[bytes] | None]]:
    file = tar.extractfile(blob)
    assert file is not None
    zstd = file.read(4) == b"\x28\xb5\x2f\xfd"
    file.seek(0)
    try:
        with tarfile.open(
            fileobj=_zstd(file) if zstd else file, mode="r|*"
        ) as layer:  # a stream: each member's data is there while it is current
            for member in layer:
                yield member, layer.extractfile(member) if member.isfile() else None
    except tarfile.ReadError as exc:
        raise IntegrityError(f"{blob}: layer cannot be read: {exc}", hint="gzip, zstd and plain layers are read") from exc


def _zstd(file: IO[bytes]) -> IO[bytes]:
    from backports.zstd import ZstdFile

    return cast("IO[bytes]", ZstdFile(file))


def _json(tar: tarfile.TarFile, name: str) -> Any:
    file = tar.extractfile(name)
    assert file is not None
    return json.load(file)


def _blob(digest: str) -> str:
    return "blobs/" + digest.replace(":", "/")


def _digest(blob: str) -> str:
    return blob.removeprefix("blobs/").replace("/", ":", 1)


def _short(line: str) -> str:
    """A history line without BuildKit's decoration."""
    line = re.sub(r"^(RUN )?/bin/sh -c (#\(nop\) )?", "RUN ", line).removesuffix(" # buildkit")
    return re.sub(r"\s+", " ", re.sub(r"--mount=\S+ *", "", line)).strip()
