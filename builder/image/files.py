"""What lies in each layer: every file with its size, its share of the layer's compressed bytes, and whether a later layer
hides it.

Compressed bytes of a file are an estimate that adds up: while a layer is read, files of 64 KiB and more are compressed
alone, smaller ones together with their neighbours in the tar, up to 1 MiB at a time, and share by size (zstd, level 1); at
the end all are scaled so that they sum to the layer's true size. One pass: whose a file is may stand behind it in the tar.
"""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from dataclasses import dataclass

from builder.image.archive import Archive, Blob
from builder.image.owners import RECORDS
from builder.image.stream import BLOCK, Member, members, zstd

LARGE = 65536
RECORD_LIMIT = 64 << 20
"""Bytes of one record that are kept; the largest seen is torch's RECORD, 1.5 MB."""
INSTALLED = "opt/builder/layers/"
SLIMMED = "opt/builder/slim/"


@dataclass(slots=True)
class Entry:
    """One member of a layer. packed: its share of the compressed layer. kind: as in stream.Member."""

    path: str
    kind: str
    size: int
    packed: int = 0


@dataclass(frozen=True, slots=True)
class Contents:
    """A layer, read. packed: its compressed bytes. estimated: they are a guess, for the archive holds it uncompressed.

    records: what package managers wrote, and the builder's own record, by path. links: symbolic links of the root folder.
    """

    blob: Blob
    entries: tuple[Entry, ...]
    packed: int
    estimated: bool
    records: dict[str, bytes]
    links: dict[str, str]

    @property
    def size(self) -> int:
        return sum(entry.size for entry in self.entries)


def read(image: Archive, blob: Blob) -> Contents:
    """The layer `blob`, read once to its end."""
    packer = _Packer()
    entries: list[Entry] = []
    records: dict[str, bytes] = {}
    links: dict[str, str] = {}
    with image.layer(blob) as stream:
        for member in members(stream, stream.where):
            entry = Entry(member.name, member.kind, member.size)
            entries.append(entry)
            if member.kind == "link" and "/" not in member.name:
                links[member.name] = member.link
            keep = bool(member.size and _is_record(member.name))
            kept = packer.add(entry, member, keep=keep)
            if keep:
                records[member.name] = kept
        packer.flush()
    packed = blob.size if stream.compression else sum(entry.packed for entry in entries)
    _scale(entries, packed)
    return Contents(blob, tuple(entries), packed, not stream.compression, records, links)


def _is_record(name: str) -> bool:
    return bool(RECORDS.fullmatch(name)) or (name.startswith((INSTALLED, SLIMMED)) and name.endswith(".json"))


class _Packer:
    """Sets `packed` of each entry, not yet scaled."""

    def __init__(self) -> None:
        self._small: list[Entry] = []
        self._bytes = bytearray()

    def add(self, entry: Entry, member: Member, *, keep: bool) -> bytes:
        """Read the member. Returns its bytes if they are to be kept."""
        if member.size >= LARGE:
            return self._large(entry, member, keep=keep)
        data = member.read(LARGE)
        while len(data) < member.size:
            data += member.read(LARGE)
        if data:
            self._small.append(entry)
            self._bytes += data
        if len(self._bytes) >= BLOCK:
            self.flush()
        return data

    def flush(self) -> None:
        if self._bytes:
            packed, size = len(zstd.compress(self._bytes, level=1)), len(self._bytes)
            for entry in self._small:
                entry.packed = packed * entry.size // size
        self._small, self._bytes = [], bytearray()

    def _large(self, entry: Entry, member: Member, *, keep: bool) -> bytes:
        packer = zstd.ZstdCompressor(level=1)
        kept = bytearray()
        while data := member.read(BLOCK):
            entry.packed += len(packer.compress(data))
            if keep and len(kept) + len(data) <= RECORD_LIMIT:
                kept += data
        entry.packed += len(packer.flush())
        return bytes(kept)


def _scale(entries: Sequence[Entry], total: int) -> None:
    """Make `packed` of all entries sum to `total`, each within a byte of its share; the last has it all if all are empty."""
    found = sum(entry.packed for entry in entries)
    if entries and not found:
        entries[-1].packed = found = total or 1
    so_far = given = 0
    for entry in entries:
        so_far += entry.packed
        share = so_far * total // found
        entry.packed, given = share - given, share


def hidden(layers: Sequence[Sequence[Entry]], links: dict[str, str] | None = None) -> set[tuple[int, int]]:
    """Which entries, as (layer, index), are not in the image's file system because a later one replaces or removes them.

    Source: OCI image-spec, layer.md, "Changeset": .wh.NAME removes NAME of lower layers, .wh..wh..opq all that lower layers
    have in its folder; a file replaces a folder and all in it, folders are merged.
    links: symbolic links of the root folder; paths through them are one with their targets'.
    """
    real = links or {}
    gone: set[tuple[int, int]] = set()
    covered = _Cover()
    for number in range(len(layers) - 1, -1, -1):
        own, marks = _Cover(), _Cover()
        for index in range(len(layers[number]) - 1, -1, -1):
            entry = layers[number][index]
            first, slash, rest = entry.path.partition("/")
            path = posixpath.join(real[first].strip("/"), rest) if slash and first in real else entry.path
            if posixpath.basename(path).startswith(".wh."):
                marks.remove(path)
            elif covered.hides(path, entry.kind) or path in own.paths:
                gone.add((number, index))
            else:
                own.take(path, entry.kind)
        covered.add(own)
        covered.add(marks)  # they are for the layers below, not for this one
    return gone


class _Cover:
    """What a layer lays over those below it. paths: not folders. folders. emptied: folders that start anew."""

    def __init__(self) -> None:
        self.paths: set[str] = set()
        self.folders: set[str] = set()
        self.emptied: set[str] = set()

    def take(self, path: str, kind: str) -> None:
        (self.folders if kind == "dir" else self.paths).add(path)

    def remove(self, mark: str) -> None:
        folder, _, name = mark.rpartition("/")
        if name == ".wh..wh..opq":
            self.emptied.add(folder)
        else:
            self.paths.add(posixpath.join(folder, name.removeprefix(".wh.")))

    def hides(self, path: str, kind: str) -> bool:
        if path in self.paths or (kind != "dir" and path in self.folders):
            return True
        while path:
            path = path.rpartition("/")[0]
            if path in self.emptied or path in self.paths:
                return True
        return False

    def add(self, other: _Cover) -> None:
        self.paths |= other.paths
        self.folders |= other.folders
        self.emptied |= other.emptied
