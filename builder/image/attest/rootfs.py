"""The files of an image as its container sees them: layers applied base first, deletions honoured, a chosen few of them read.

Source: OCI image-spec 1.1, layer.md (whiteouts, opaque directories). Every blob that is read is checked against the digest
that names it (builder/image/archive.py), so what is said about an image is said about those bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from builder.errors import IntegrityError
from builder.image.archive import Archive, open_image
from builder.image.stream import Member, members

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

    Raises IntegrityError if it is no such thing, or a blob is not what its digest says.
    """
    with open_image(image) as archive:
        if not archive.digest:
            raise IntegrityError(f"{image}: its layers have no digests to describe it by", hint=HINT)
        found = Rootfs(*_named(archive), dict(archive.config))
        for number, blob in enumerate(archive.layers):
            with archive.layer(blob) as stream:
                for member in members(stream, f"layer {blob.digest[:19]}"):
                    _apply(found, number, member, wanted)
    return found


def _named(archive: Archive) -> tuple[str, str]:
    """The digest and the name, or "", by which the layout knows its one image."""
    index: dict[str, Any] = next((text for place, text in archive.texts if place == "index.json"), {})
    entries = index.get("manifests", ())
    digests = sorted({str(entry["digest"]) for entry in entries})
    if len(digests) != 1:
        raise IntegrityError(f"{archive.path}: index.json names {len(digests)} images; expected 1", hint=HINT)
    names = {str((entry.get("annotations") or {}).get("io.containerd.image.name", "")) for entry in entries}
    return digests[0], min(names) if len(names) == 1 else ""


def _apply(found: Rootfs, number: int, member: Member, wanted: Callable[[str], bool]) -> None:
    parts = [part for part in member.name.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise IntegrityError(f"layer {number}: {member.name} leads out of the image")
    if not parts:
        return
    *folder, name = parts
    parent = found.resolve("/".join(folder))
    if name == ".wh..wh..opq":
        _remove(found, parent, number, itself=False)
    elif name.startswith(".wh."):
        _remove(found, _join(parent, name.removeprefix(".wh.")), number)
    else:
        _put(found, _join(parent, name), member, number, wanted)


def _put(found: Rootfs, path: str, member: Member, number: int, wanted: Callable[[str], bool]) -> None:
    old = found.entries.get(path)
    if old is not None and old.kind == "dir" and member.kind != "dir":
        _remove(found, path, number + 1)
    found.bodies.pop(path, None)
    if member.kind == "hardlink":  # the same file under a second name
        same = found.resolve(member.link)
        found.entries[path] = found.entries.get(same) or Entry("file", 0, "", number)
        if same in found.bodies:
            found.bodies[path] = found.bodies[same]
        return
    found.entries[path] = Entry(member.kind, member.size, member.link, number)
    if member.kind == "file" and wanted(path):
        if member.size > MAX_BODY:
            raise IntegrityError(f"{path}: {member.size} bytes; expected at most {MAX_BODY}")
        found.bodies[path] = b"".join(iter(lambda: member.read(1 << 20), b""))


def _remove(found: Rootfs, path: str, before: int, *, itself: bool = True) -> None:
    """`path` and all below it, as far as layers under `before` put it there."""
    gone = [one for one in found.entries if one.startswith(f"{path}/") or (itself and one == path) or not path]
    for one in gone:
        if found.entries[one].layer < before:
            del found.entries[one]
            found.bodies.pop(one, None)


def _join(parent: str, name: str) -> str:
    return f"{parent}/{name}" if parent else name
