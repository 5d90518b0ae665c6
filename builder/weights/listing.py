"""The models that a store holds: each version with its names, and what one version is made of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from builder.errors import ConfigError, IntegrityError
from builder.format.manifest import Manifest, manifest_key
from builder.stores.base import Reader, Store
from builder.transfer.manifests import read_manifest
from builder.weights import priority, refs


@dataclass(frozen=True)
class Entry:
    """One version under one name.

    ref: how to ask for it: the name where that leads to it, else name@tag.  current: whether the bare name leads to it.
    tags: the others of its refs.  digest: of the manifest; "" if the ref holds none.  chunks, bytes: distinct ones / of all
    files.  pushed: when the manifest was written, epoch seconds by the store's clock, 0.0 where unknown.  signed: whether
    signatures lie beside it; they are not checked here.  error: why it cannot be read, or "".
    """

    ref: str
    name: str
    current: bool
    tags: tuple[str, ...]
    digest: str = ""
    bytes: int = 0
    files: int = 0
    chunks: int = 0
    source: str = ""
    revision: str = ""
    pushed: float = 0.0
    signed: bool = False
    error: str = ""

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "tags": list(self.tags)}


@dataclass(frozen=True)
class Group:
    """Tensors that are needed together. bytes: theirs."""

    name: str
    tensors: int
    bytes: int


@dataclass(frozen=True)
class Description:
    """What one version is made of. groups: in the order of need."""

    store: str
    ref: str
    manifest: Manifest = field(repr=False)
    groups: tuple[Group, ...]

    def to_json(self) -> dict[str, Any]:
        m = self.manifest
        files = [
            {"path": f.path, "bytes": f.size, "mode": f.mode, "chunks": len(f.chunks), "tensors": len(f.tensors)}
            for f in m.files
        ]
        return {
            "store": self.store,
            "ref": self.ref,
            "name": m.name,
            "digest": m.digest,
            "source": m.source,
            "revision": m.revision,
            "tool": m.tool,
            "bytes": m.size,
            "chunks": len(m.order),
            "files": files,
            "groups": [vars(g) for g in self.groups],
        }


def ls(store: Store) -> Iterator[Entry]:
    """Every version that a ref leads to, by name, the current one first; one that cannot be read carries its error.

    Reads every such manifest. Versions without a ref are not listed: `gc` shows those.
    """
    versions: dict[tuple[str, str], list[refs.Ref]] = {}
    for ref in refs.refs(store):
        versions.setdefault((ref.name, ref.digest), []).append(ref)
    written = {e.key: e.modified for e in store.entries("manifests/")}
    for found in sorted(versions.values(), key=lambda found: (found[0].name, all(r.tag for r in found), found[0].ref)):
        yield _entry(store, found, written)


def describe(store: Store, ref: str = "") -> Description:
    """The version that `ref` leads to. Raises as transfer.manifests.read_manifest."""
    manifest = read_manifest(Reader(store), ref)
    totals: dict[str, list[int]] = {}
    for file in manifest.files:
        for tensor in file.tensors:
            total = totals.setdefault(tensor.group, [0, 0])
            total[0] += 1
            total[1] += tensor.size
    groups = tuple(Group(name, n, size) for name, (n, size) in sorted(totals.items(), key=lambda item: _need(item[0])))
    return Description(store.url, ref or manifest.name, manifest, groups)


def _need(group: str) -> priority.Rank:
    try:
        return priority.rank(group)
    except ValueError:  # a name that this version does not know
        return priority.OTHER, 0, 0


def _entry(store: Store, found: list[refs.Ref], written: dict[str, float]) -> Entry:
    name, digest = found[0].name, found[0].digest
    current = any(not r.tag for r in found)
    tags = tuple(sorted(r.tag for r in found if r.tag))
    ref = name if current else f"{name}@{tags[0]}"
    key = manifest_key(digest)
    known = Entry(ref, name, current, tags, digest, pushed=written.get(key, 0.0), signed=f"{key}.sig" in written)
    try:
        m = read_manifest(Reader(store), digest or ref)
    except (IntegrityError, ConfigError) as exc:
        return replace(known, error=exc.message)
    return replace(known, bytes=m.size, files=len(m.files), chunks=len(m.order), source=m.source, revision=m.revision)
