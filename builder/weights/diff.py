"""What differs between two versions of a model, from their manifests alone: no chunk is read.

A tensor is `same` where the same bytes of the same chunks hold it in both, and `changed` where its dtype or shape differs or
a chunk that holds nothing else does. One that shares a differing chunk with its neighbours may be either: `unclear`.
"""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from builder.format.manifest import Chunk, File, Manifest, Tensor


@dataclass(frozen=True)
class Place:
    """A tensor in its file. end: where the next one begins, so padding counts as the tensor's."""

    file: File
    tensor: Tensor
    end: int


@dataclass(frozen=True)
class FileChange:
    """change: added, removed, or changed (other bytes). before, after: bytes; 0 where there is none.

    new_bytes: of its chunks that the first version has nowhere, each counted once in the whole diff.
    """

    path: str
    change: str
    before: int
    after: int
    new_bytes: int


@dataclass(frozen=True)
class TensorChange:
    """change: added, removed, changed or unclear. before, after: dtype and shape, as "BF16 [2, 3]"; "" where there is none."""

    name: str
    file: str
    change: str
    before: str
    after: str


@dataclass(frozen=True)
class DiffReport:
    """before, after: digests; before is "" where there is no first version. Counts of chunks are of distinct ones.

    new_*: chunks that only the second version has; shared_*: those of both; gone_*: those that only the first has.
    same_*: files and tensors with equal bytes (a tensor under its name, wherever it lies).
    send_*: what the store lacks of the second version; None where no store was asked.
    """

    name: str
    before: str
    after: str
    before_bytes: int
    after_bytes: int
    files: tuple[FileChange, ...]
    same_files: int
    tensors: tuple[TensorChange, ...]
    same_tensors: int
    new_chunks: int
    new_bytes: int
    shared_chunks: int
    shared_bytes: int
    gone_chunks: int
    gone_bytes: int
    send_chunks: int | None = None
    send_bytes: int | None = None

    @property
    def same(self) -> bool:
        """The same files; what was noted of their source may differ."""
        return not self.files

    def to_json(self) -> dict[str, Any]:
        return {
            **vars(self),
            "same": self.same,
            "files": [vars(f) for f in self.files],
            "tensors": [vars(t) for t in self.tensors],
        }


def diff(
    before: Manifest | None, after: Manifest, *, send_chunks: int | None = None, send_bytes: int | None = None
) -> DiffReport:
    """What changes from `before` (None: nothing there yet) to `after`."""
    old, new = _sizes(before), _sizes(after)
    files, same_files = _files(before, after, old)
    tensors, same_tensors = _tensors(before, after)
    only_new, both, only_old = new.keys() - old.keys(), new.keys() & old.keys(), old.keys() - new.keys()
    return DiffReport(
        name=after.name,
        before=before.digest if before else "",
        after=after.digest,
        before_bytes=before.size if before else 0,
        after_bytes=after.size,
        files=files,
        same_files=same_files,
        tensors=tensors,
        same_tensors=same_tensors,
        new_chunks=len(only_new),
        new_bytes=sum(new[c] for c in only_new),
        shared_chunks=len(both),
        shared_bytes=sum(new[c] for c in both),
        gone_chunks=len(only_old),
        gone_bytes=sum(old[c] for c in only_old),
        send_chunks=send_chunks,
        send_bytes=send_bytes,
    )


def _sizes(manifest: Manifest | None) -> dict[str, int]:
    return {c.sha256: c.size for f in manifest.files for c in f.chunks} if manifest else {}


def _files(before: Manifest | None, after: Manifest, old_chunks: dict[str, int]) -> tuple[tuple[FileChange, ...], int]:
    old = {f.path: f for f in before.files} if before else {}
    new = {f.path: f for f in after.files}
    seen = set(old_chunks)
    changes, same = [], 0
    for path in sorted(old.keys() | new.keys()):
        a, b = old.get(path), new.get(path)
        if a and b and a.sha256 == b.sha256:
            same += 1
            continue
        fresh = {c.sha256: c.size for c in b.chunks if c.sha256 not in seen} if b else {}
        seen.update(fresh)
        change = "changed" if a and b else "added" if b else "removed"
        changes.append(FileChange(path, change, a.size if a else 0, b.size if b else 0, sum(fresh.values())))
    return tuple(changes), same


def _tensors(before: Manifest | None, after: Manifest) -> tuple[tuple[TensorChange, ...], int]:
    scoped = _repeated(before) | _repeated(after)
    old, new = _places(before, scoped), _places(after, scoped)
    changes, same = [], 0
    for name in sorted(old.keys() | new.keys()):
        a, b = old.get(name), new.get(name)
        change = _compare(a, b) if a and b else "added" if b else "removed"
        if change == "same":
            same += 1
            continue
        place = b or a
        assert place is not None  # the name is of one of the two
        changes.append(TensorChange(place.tensor.name, place.file.path, change, _form(a), _form(b)))
    return tuple(changes), same


def _repeated(manifest: Manifest | None) -> set[str]:
    """Names that several files of one model have, as the networks of a diffusion model do: only they depend on the file."""
    counts = Counter(t.name for f in manifest.files for t in f.tensors) if manifest else Counter()
    return {name for name, times in counts.items() if times > 1}


def _places(manifest: Manifest | None, scoped: set[str]) -> dict[str, Place]:
    found: dict[str, Place] = {}
    for file in manifest.files if manifest else ():
        tensors = sorted(file.tensors, key=lambda t: (t.offset, t.size))
        ends = [*(t.offset for t in tensors[1:]), file.size]
        for tensor, end in zip(tensors, ends[: len(tensors)], strict=True):
            found[f"{tensor.name}\0{file.path}" if tensor.name in scoped else tensor.name] = Place(file, tensor, end)
    return found


def _compare(a: Place, b: Place) -> str:
    if (a.tensor.dtype, a.tensor.shape, a.tensor.size) != (b.tensor.dtype, b.tensor.shape, b.tensor.size):
        return "changed"
    old, new = list(_pieces(a)), list(_pieces(b))
    if old == new or (a.file.sha256 == b.file.sha256 and a.tensor.offset == b.tensor.offset):
        return "same"
    own = {(p.at, p.size): p.sha256 for p in old if p.alone}
    return "changed" if any(p.alone and own.get((p.at, p.size), p.sha256) != p.sha256 for p in new) else "unclear"


@dataclass(frozen=True)
class _Piece:
    """Part of a tensor. skip: bytes of the chunk before it.  at: its place in the tensor.  alone: no other tensor is there."""

    sha256: str
    skip: int
    at: int
    size: int
    alone: bool = field(compare=False)


def _pieces(place: Place) -> Iterator[_Piece]:
    start, end = place.tensor.offset, place.tensor.offset + place.tensor.size
    chunks = place.file.chunks
    for index in range(max(0, bisect.bisect_right(chunks, start, key=_offset) - 1), len(chunks)):
        chunk = chunks[index]
        if chunk.offset >= end:
            return
        first, last = max(start, chunk.offset), min(end, chunk.offset + chunk.size)
        if last > first:
            alone = chunk.offset >= start and chunk.offset + chunk.size <= max(end, place.end)
            yield _Piece(chunk.sha256, first - chunk.offset, first - start, last - first, alone)


def _offset(chunk: Chunk) -> int:
    return chunk.offset


def _form(place: Place | None) -> str:
    return f"{place.tensor.dtype} {list(place.tensor.shape)}" if place else ""
