"""OCI image layouts: a folder or a .tar, read without unpacking, with the registry's own digests.

Only layouts are taken: an archive of an older `docker save` (docker-archive) has no manifest, and importing it makes a
new one, so a pod that names the registry's digest would not find the image (docs/bake.md).
Format: github.com/opencontainers/image-spec, image-layout.md and image-index.md.
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

from builder.errors import ConfigError, IntegrityError

NAMED = "name it: --oci REPOSITORY:TAG=PATH"
EXPORT = "export with `skopeo copy docker://IMAGE oci-archive:image.tar`, or docker save with the containerd image store"
NAME_KEY = "io.containerd.image.name"
TAG_KEY = "org.opencontainers.image.ref.name"
INDEX_TYPES = ("application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json")
_MAX_JSON = 16 << 20
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}\Z")
_REFERENCE = re.compile(r"[a-z0-9][a-z0-9._:/-]*:[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_GOARCH = {"x86_64": "amd64", "aarch64": "arm64"}


class Layout(Protocol):
    """path: for messages."""

    path: Path

    def size(self, name: str) -> int | None:
        """Bytes of the member `name`; None if it is not there."""

    def open(self, name: str) -> IO[bytes]: ...

    def file(self, name: str) -> Path | None:
        """The member as a file of its own; None where it is part of an archive."""


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A blob by digest, with its size in bytes."""

    media_type: str
    digest: str
    size: int

    @property
    def member(self) -> str:
        return "blobs/" + self.digest.replace(":", "/")


@dataclass(frozen=True, slots=True)
class OciImage:
    """One image of a layout, for one platform.

    reference: normalised `registry/repository:tag`.  target: what the tag points at, an index or a manifest; its digest
    is the one that pods name.  diff_ids: of the uncompressed layers, bottom first.  user, entrypoint: from its config.
    """

    reference: str
    target: Descriptor
    manifest: Descriptor
    config: Descriptor
    layers: tuple[Descriptor, ...]
    diff_ids: tuple[str, ...]
    user: str
    entrypoint: tuple[str, ...]
    platform: str

    @property
    def repository(self) -> str:
        return self.reference.rsplit(":", 1)[0]

    @property
    def by_digest(self) -> str:
        """`repository@sha256:...`"""
        return f"{self.repository}@{self.target.digest}"

    @property
    def size(self) -> int:
        """Compressed bytes of all layers."""
        return sum(layer.size for layer in self.layers)

    @property
    def chain_ids(self) -> tuple[str, ...]:
        """Names of its snapshots, bottom first. Rule: image-spec config.md, "Layer ChainID"."""
        chain: list[str] = []
        for diff in self.diff_ids:
            text = f"{chain[-1]} {diff}" if chain else diff
            chain.append("sha256:" + hashlib.sha256(text.encode()).hexdigest() if len(chain) else diff)
        return tuple(chain)

    def blobs(self) -> tuple[Descriptor, ...]:
        """Everything an import of this platform reads, each once."""
        every = (self.target, self.manifest, self.config, *self.layers)
        return tuple({blob.digest: blob for blob in every}.values())

    def to_json(self) -> dict[str, Any]:
        return {
            "reference": self.reference,
            "digest": self.target.digest,
            "manifest": self.manifest.digest,
            "config": self.config.digest,
            "layers": [[layer.digest, layer.size] for layer in self.layers],
            "diff_ids": list(self.diff_ids),
            "user": self.user,
            "entrypoint": list(self.entrypoint),
            "platform": self.platform,
            "compressed_bytes": self.size,
        }


def host_platform() -> str:
    """`linux/amd64` or so: the platform of this machine."""
    machine = platform.machine()
    return f"linux/{_GOARCH.get(machine, machine)}"


def normalise(reference: str) -> str:
    """The full name that kubelet and containerd look up. Rule: distribution/reference, ParseNormalizedNamed.

    >>> normalise("debian:12"), normalise("acme/llm:v1"), normalise("registry.example.com/llm:v1")
    ('docker.io/library/debian:12', 'docker.io/acme/llm:v1', 'registry.example.com/llm:v1')
    >>> normalise("docker.io/debian:12")
    'docker.io/library/debian:12'
    """
    if not _REFERENCE.fullmatch(reference):
        raise ConfigError(
            f"{reference!r} is not an image reference", hint="write repository:tag, such as registry.example.com/llm:v1"
        )
    host, slash, rest = reference.partition("/")
    if not slash or not ("." in host or ":" in host or host == "localhost"):
        host, rest = "docker.io", reference
    if host in ("docker.io", "index.docker.io"):
        return f"docker.io/{'' if '/' in rest else 'library/'}{rest}"
    return reference


@contextmanager
def open_layout(path: Path) -> Iterator[Layout]:
    """The layout at `path`: a folder, or an uncompressed .tar of one. Raises ConfigError for anything else."""
    if path.is_dir():
        yield _checked(_Folder(path))
    elif path.is_file():
        try:
            with tarfile.open(path, "r:") as tar:
                yield _checked(_Tar(path, tar))
        except tarfile.ReadError as exc:
            raise ConfigError(
                f"{path}: not an OCI layout: {exc}", hint="skopeo copy docker://IMAGE oci-archive:image.tar"
            ) from exc
    else:
        raise ConfigError(f"{path}: no such file or folder")


def find_image(layout: Layout, *, reference: str = "", platform: str = "") -> OciImage:
    """The image called `reference` in the layout, or its only one, for `platform` (default: this machine's).

    Every blob is there and has its size; digests are checked later, by the import itself.
    Raises ConfigError if the name is missing or ambiguous, IntegrityError if a blob is missing or malformed.
    """
    wanted = platform or host_platform()
    with _well_formed(layout):
        image = _image(layout, reference, wanted)
        _complete(layout, image, wanted)
    return image


def _image(layout: Layout, reference: str, wanted: str) -> OciImage:
    entry, name = _entry(layout, reference)
    target = _descriptor(entry, layout)
    manifest = _for_platform(layout, target, wanted)
    body = _json(layout, manifest)
    config = _descriptor(body.get("config", {}), layout)
    layers = tuple(_descriptor(raw, layout) for raw in body.get("layers", []))
    settings = _json(layout, config)
    diff_ids = tuple(settings.get("rootfs", {}).get("diff_ids", []))
    inner = settings.get("config") or {}
    found = f"{settings.get('os', '?')}/{settings.get('architecture', '?')}"
    return OciImage(
        name, target, manifest, config, layers, diff_ids, inner.get("User") or "", tuple(inner.get("Entrypoint") or ()), found
    )


def offered(layout: Layout, reference: str = "") -> tuple[str, tuple[str, ...]]:
    """(full name, platforms) of the image called `reference` in the layout, or of its only one."""
    with _well_formed(layout):
        entry, name = _entry(layout, reference)
        target = _descriptor(entry, layout)
        if target.media_type in INDEX_TYPES:
            return name, tuple(where for where, _ in _children(layout, target))
        settings = _json(layout, _descriptor(_json(layout, target).get("config", {}), layout))
    return name, (f"{settings.get('os', '?')}/{settings.get('architecture', '?')}",)


@contextmanager
def _well_formed(layout: Layout) -> Iterator[None]:
    """Within, JSON of another shape than the specification's is an IntegrityError."""
    try:
        yield
    except (AttributeError, KeyError, TypeError) as exc:
        raise IntegrityError(f"{layout.path}: an index, manifest or configuration of another shape: {exc}",
                             hint="export the image again") from exc  # fmt: skip


class _Folder:
    def __init__(self, path: Path) -> None:
        self.path = path

    def size(self, name: str) -> int | None:
        file = self.path / name
        return file.stat().st_size if file.is_file() else None

    def open(self, name: str) -> IO[bytes]:
        return (self.path / name).open("rb")

    def file(self, name: str) -> Path | None:
        return self.path / name


class _Tar:
    def __init__(self, path: Path, tar: tarfile.TarFile) -> None:
        self.path = path
        self._tar = tar
        self._members = {m.name.removeprefix("./"): m for m in tar if m.isfile()}

    def size(self, name: str) -> int | None:
        member = self._members.get(name)
        return member.size if member else None

    def open(self, name: str) -> IO[bytes]:
        body = self._tar.extractfile(self._members[name])
        assert body is not None  # only regular files are members
        return body

    def file(self, name: str) -> Path | None:
        return None


def _checked(layout: Layout) -> Layout:
    if layout.size("oci-layout") is not None and layout.size("index.json") is not None:
        return layout
    if layout.size("manifest.json") is not None:
        raise ConfigError(
            f"{layout.path}: a docker-archive, not an OCI layout; the registry's digests are lost in it",
            hint=EXPORT,
        )
    raise ConfigError(f"{layout.path}: no oci-layout and index.json in it; not an OCI layout")


def _entry(layout: Layout, reference: str) -> tuple[dict[str, Any], str]:
    """(the entry of index.json, its full name)"""
    raw = _load(layout, "index.json", layout.size("index.json") or 0)
    entries = [e for e in raw.get("manifests", []) if isinstance(e, dict)]
    names = [_entry_name(e) for e in entries]
    if not reference and len(entries) == 1:
        if not names[0]:
            raise ConfigError(
                f"{layout.path}: the image has no name in its index.json", hint="give one: --oci REPOSITORY:TAG=PATH"
            )
        return entries[0], names[0]
    wanted = normalise(reference) if reference else ""
    found = [e for e, name in zip(entries, names, strict=True) if name == wanted]
    if not found and len(entries) == 1 and wanted:
        found = entries  # the only image there is, under the name that was asked for
    if len(found) != 1:
        what = reference or "no name asked for"
        raise ConfigError(f"{layout.path}: {what}; the layout holds {', '.join(n or '(unnamed)' for n in names) or 'nothing'}",
                          hint=NAMED)  # fmt: skip
    return found[0], wanted


def _entry_name(entry: dict[str, Any]) -> str:
    notes = entry.get("annotations") or {}
    for name in (notes.get(NAME_KEY, ""), notes.get(TAG_KEY, "")):
        if isinstance(name, str) and _REFERENCE.fullmatch(name):  # a bare tag, or a digest, is no name that pods could use
            return normalise(name)
    return ""


def _for_platform(layout: Layout, target: Descriptor, wanted: str) -> Descriptor:
    if target.media_type not in INDEX_TYPES:
        return target
    children = _children(layout, target)
    if of_platform := [child for where, child in children if where == wanted]:
        return _descriptor(min(of_platform, key=_beyond_baseline), layout)
    raise ConfigError(
        f"{layout.path}: no image for {wanted}; the index offers {', '.join(where for where, _ in children)}",
        hint="one disk serves one platform: --platform",
    )


def _beyond_baseline(entry: dict[str, Any]) -> bool:
    """Whether it is for some processors of the platform only, such as amd64/v3: containerd prefers what all of them run."""
    return entry["platform"].get("variant", "") not in ("", "v1", "v8")


def _children(layout: Layout, index: Descriptor) -> list[tuple[str, dict[str, Any]]]:
    """(platform, entry) of each image of the index; attestations, of platform unknown/unknown, are none."""
    found = []
    for raw in _json(layout, index).get("manifests", []):
        where = raw.get("platform") or {}
        found.append((f"{where.get('os')}/{where.get('architecture')}", raw))
    return [(where, raw) for where, raw in found if where != "unknown/unknown"]


def _complete(layout: Layout, image: OciImage, wanted: str) -> None:
    if image.platform != wanted:
        raise ConfigError(
            f"{layout.path}: {image.reference} is for {image.platform}, expected {wanted}",
            hint=f"one disk serves one platform: --platform {image.platform}",
        )
    faults = [
        f"  {blob.digest}: {_found(layout.size(blob.member))}, expected {blob.size} bytes"
        for blob in image.blobs()
        if layout.size(blob.member) != blob.size
    ]
    if len(image.diff_ids) != len(image.layers) or not image.layers:
        faults.append(f"  {image.config.digest}: {len(image.diff_ids)} diff_ids for {len(image.layers)} layers")
    if faults:
        raise IntegrityError(
            f"{layout.path}: {image.reference} is not whole:\n" + "\n".join(faults), hint="export the image again"
        )
    if layout.size("repositories") is not None:
        # Engines of 25 and later write a layout from the classic store too, with manifests made up on the spot; only
        # that exporter adds the legacy file `repositories` (moby image/tarexport/save.go).
        raise ConfigError(
            f"{layout.path}: written by `docker save` from a classic image store; its digests are not the registry's",
            hint=EXPORT,
        )


def _descriptor(raw: dict[str, Any], layout: Layout) -> Descriptor:
    digest, size = raw.get("digest"), raw.get("size")
    if not isinstance(digest, str) or not _DIGEST.match(digest) or not isinstance(size, int) or size < 0:
        raise IntegrityError(f"{layout.path}: descriptor with digest {digest!r} and size {size!r}")
    return Descriptor(str(raw.get("mediaType", "")), digest, size)


def _json(layout: Layout, blob: Descriptor) -> dict[str, Any]:
    return _load(layout, blob.member, blob.size, blob.digest)


def _load(layout: Layout, member: str, size: int, digest: str = "") -> dict[str, Any]:
    found = layout.size(member)
    if found is None or found > _MAX_JSON:
        raise IntegrityError(
            f"{layout.path}: {member}: {'missing' if found is None else f'{found} bytes of JSON'}, expected {size} bytes"
        )
    with layout.open(member) as stream:
        body = stream.read()
    if digest and "sha256:" + hashlib.sha256(body).hexdigest() != digest:
        raise IntegrityError(f"{layout.path}: {member}: sha256 is {hashlib.sha256(body).hexdigest()}", where={"object": member})
    try:
        raw = json.loads(body)
    except ValueError as exc:
        raise IntegrityError(f"{layout.path}: {member}: not JSON: {exc}") from exc
    if not isinstance(raw, dict):
        raise IntegrityError(f"{layout.path}: {member}: a JSON {type(raw).__name__}, expected an object")
    return raw


def _found(size: int | None) -> str:
    return "missing" if size is None else f"{size} bytes"
