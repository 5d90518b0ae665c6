"""The files of an image as its container sees them: layers applied base first, deletions honoured, a chosen few of them read.

Source: OCI image-spec 1.1, layer.md (whiteouts, opaque directories) and image-layout.md. Every blob that is read is checked
against the digest that names it, so what is said about an image is said about those bytes.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import sys
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol, cast

from builder.errors import IntegrityError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

BLOCK = 1 << 20
MAX_JSON = 16 << 20
MAX_BODY = 64 << 20  # the RECORD of the largest wheels is below 3 MB
HINT = "give an OCI archive or an OCI layout folder: `builder build --oci DIR`, or `docker save` of Docker 25 or newer"
MAX_LINKS = 40  # as Linux does


@dataclass(slots=True)
class Entry:
    """kind: file, dir, link or other. target: of a link. layer: the one that put it there, base is 0."""

    kind: str
    size: int
    target: str
    layer: int


@dataclass(slots=True)
class Rootfs:
    """Paths have no slash in front. digest: of the manifest that the layout names. name: as it calls the image, or "".

    bodies: of the files that were wanted.
    """

    digest: str
    name: str
    config: dict[str, Any]
    entries: dict[str, Entry] = field(default_factory=dict)
    bodies: dict[str, bytes] = field(default_factory=dict)

    def resolve(self, path: str) -> str:
        """`path` with every symbolic link in it followed, none of which leads out of the image."""
        todo, done, hops = path.split("/")[::-1], list[str](), 0
        while todo:
            part = todo.pop()
            if part == "..":
                done = done[:-1]
            elif part not in ("", "."):
                found = self.entries.get("/".join([*done, part]))
                if found is None or found.kind != "link":
                    done.append(part)
                    continue
                hops += 1
                if hops > MAX_LINKS:
                    return path
                todo += found.target.split("/")[::-1]
                done = [] if found.target.startswith("/") else done
        return "/".join(done)

    def text(self, path: str) -> str | None:
        """What the file at `path` says, links followed; None where there is none, or it was not wanted."""
        body = self.bodies.get(self.resolve(path))
        return None if body is None else body.decode(errors="replace")

    def files(self) -> Iterator[str]:
        """The regular files, sorted."""
        return (path for path, entry in sorted(self.entries.items()) if entry.kind == "file")


def read(image: Path, wanted: Callable[[str], bool]) -> Rootfs:
    """The image in `image`, an OCI archive (a tar) or an OCI layout (a folder). wanted: whether to keep a file's content.

    Raises IntegrityError if it is no such thing, holds more than one image, or a blob is not what its digest says.
    """
    with contextlib.ExitStack() as stack:
        blobs = _open(image, stack)
        try:
            digest, name, manifest = _manifest(blobs)
            found = Rootfs(digest, name, dict(blobs.json(manifest["config"]["digest"])))
            layers = [str(layer["digest"]) for layer in manifest["layers"]]
        except (ValueError, KeyError, TypeError, AttributeError) as exc:
            raise IntegrityError(f"{image}: not an OCI image: {type(exc).__name__}: {exc}", hint=HINT) from exc
        for number, layer in enumerate(layers):
            _apply(found, number, _members(blobs, layer), wanted)
    return found


class _Blobs(Protocol):
    name: str

    def open(self, path: str) -> IO[bytes]: ...

    def has(self, digest: str) -> bool: ...

    def json(self, digest: str) -> Any: ...


class _Layout:
    """A folder, or an archive of one."""

    def __init__(self, name: str, opener: Callable[[str], IO[bytes]]) -> None:
        self.name = name
        self._opener = opener

    def open(self, path: str) -> IO[bytes]:
        try:
            return self._opener(path)
        except (KeyError, OSError) as exc:
            raise IntegrityError(f"{self.name}: {path} is missing", hint=HINT) from exc

    def has(self, digest: str) -> bool:
        try:
            self._opener(_blob(digest)).close()
        except (KeyError, OSError):
            return False
        return True

    def json(self, digest: str) -> Any:
        with self.open(_blob(digest)) as file:
            body = file.read(MAX_JSON + 1)
        if hashlib.sha256(body).hexdigest() != digest.removeprefix("sha256:"):
            raise IntegrityError(f"{self.name}: {digest} holds other bytes than its name says", hint="write the image again")
        return json.loads(body)


def _open(image: Path, stack: contextlib.ExitStack) -> _Blobs:
    if image.is_dir():
        return _Layout(str(image), lambda path: (image / path).open("rb"))
    try:
        tar = stack.enter_context(tarfile.open(image))  # noqa: SIM115  # the stack closes it
    except (OSError, tarfile.TarError) as exc:
        raise IntegrityError(f"{image}: not an image archive: {exc}", hint=HINT) from exc
    return _Layout(str(image), lambda path: cast("IO[bytes]", tar.extractfile(path)))


def _manifest(blobs: _Blobs) -> tuple[str, str, dict[str, Any]]:
    """The digest and the name that the layout gives, and the manifest of the one image below it. An attestation is none."""
    with blobs.open("index.json") as file:
        index = json.loads(file.read(MAX_JSON))
    digests = sorted({str(entry["digest"]) for entry in index["manifests"]})
    if len(digests) != 1:
        raise IntegrityError(f"{blobs.name}: index.json names {len(digests)} images; expected 1", hint=HINT)
    found = blobs.json(digests[0])
    if "manifests" in found:
        images = [one for one in found["manifests"] if one.get("platform", {}).get("architecture") != "unknown"]
        here = [one["digest"] for one in images if blobs.has(one["digest"])]
        if not here:
            raise IntegrityError(f"{blobs.name}: its index names no image that it holds", hint=HINT)
        found = blobs.json(here[0])
    names = {str((entry.get("annotations") or {}).get("io.containerd.image.name", "")) for entry in index["manifests"]}
    return digests[0], min(names) if len(names) == 1 else "", found


class _Hashed(io.RawIOBase):
    """A file that hashes what is read of it."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.sha256 = file, hashlib.sha256()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self.file.read(len(buffer))
        self.sha256.update(data)
        buffer[: len(data)] = data
        return len(data)


def _members(blobs: _Blobs, digest: str) -> Iterator[tuple[tarfile.TarInfo, IO[bytes] | None]]:
    with blobs.open(_blob(digest)) as file:
        magic = file.read(4)
        file.seek(0)
        hashed = _Hashed(file)
        raw = cast("IO[bytes]", io.BufferedReader(hashed, BLOCK))
        try:
            plain = _plain(raw, magic)
            with tarfile.open(fileobj=plain, mode="r|") as layer:
                for member in layer:
                    yield member, layer.extractfile(member) if member.isfile() else None
            for rest in (plain, raw):
                while rest.read(BLOCK):
                    pass
        except (tarfile.TarError, zstd.ZstdError, zlib.error, EOFError, OSError) as exc:
            raise IntegrityError(f"{blobs.name}: layer {digest} cannot be read: {exc}", hint="write the image again") from exc
    if hashed.sha256.hexdigest() != digest.removeprefix("sha256:"):
        raise IntegrityError(f"{blobs.name}: {digest} holds other bytes than its name says", hint="write the image again")


def _plain(raw: IO[bytes], magic: bytes) -> IO[bytes]:
    """What is unpacked, by the first bytes; media types differ between Docker and OCI."""
    if magic.startswith(b"\x1f\x8b"):
        return cast("IO[bytes]", gzip.GzipFile(fileobj=raw))
    if magic == b"\x28\xb5\x2f\xfd":
        return cast("IO[bytes]", zstd.ZstdFile(raw))
    return raw


def _apply(
    found: Rootfs, number: int, members: Iterator[tuple[tarfile.TarInfo, IO[bytes] | None]], wanted: Callable[[str], bool]
) -> None:
    for member, file in members:
        parts = [part for part in member.name.split("/") if part not in ("", ".")]
        if ".." in parts:
            raise IntegrityError(f"layer {number}: {member.name} leads out of the image")
        if not parts:
            continue
        *folder, name = parts
        parent = found.resolve("/".join(folder))
        if name == ".wh..wh..opq":
            _remove(found, parent, number, itself=False)
        elif name.startswith(".wh."):
            _remove(found, _join(parent, name.removeprefix(".wh.")), number)
        else:
            _put(found, _join(parent, name), member, file, number, wanted)


def _put(
    found: Rootfs, path: str, member: tarfile.TarInfo, file: IO[bytes] | None, number: int, wanted: Callable[[str], bool]
) -> None:
    old = found.entries.get(path)
    if old is not None and old.kind == "dir" and not member.isdir():
        _remove(found, path, number + 1)
    found.bodies.pop(path, None)
    if member.islnk():  # a hard link: the same file under a second name
        same = found.resolve(member.linkname)
        found.entries[path] = found.entries.get(same) or Entry("file", 0, "", number)
        if same in found.bodies:
            found.bodies[path] = found.bodies[same]
        return
    kind = "file" if member.isfile() else "dir" if member.isdir() else "link" if member.issym() else "other"
    found.entries[path] = Entry(kind, member.size, member.linkname, number)
    if file is not None and wanted(path):
        if member.size > MAX_BODY:
            raise IntegrityError(f"{path}: {member.size} bytes; expected at most {MAX_BODY}")
        found.bodies[path] = file.read()


def _remove(found: Rootfs, path: str, before: int, *, itself: bool = True) -> None:
    """`path` and all below it, as far as layers under `before` put it there."""
    gone = [one for one in found.entries if one.startswith(f"{path}/") or (itself and one == path) or not path]
    for one in gone:
        if found.entries[one].layer < before:
            del found.entries[one]
            found.bodies.pop(one, None)


def _join(parent: str, name: str) -> str:
    return f"{parent}/{name}" if parent else name


def _blob(digest: str) -> str:
    return "blobs/" + digest.replace(":", "/")
