"""The models that a store holds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from builder.errors import IntegrityError
from builder.stores.base import Reader, Store
from builder.transfer.manifests import read_manifest


@dataclass(frozen=True)
class Entry:
    """One ref. digest: of the manifest.  chunks, bytes: distinct ones / of all files.  error: why it cannot be read, or ""."""

    ref: str
    digest: str = ""
    bytes: int = 0
    files: int = 0
    chunks: int = 0
    source: str = ""
    revision: str = ""
    error: str = ""

    def to_json(self) -> dict[str, Any]:
        return dict(vars(self))


def ls(store: Store) -> Iterator[Entry]:
    """Every ref by name; one whose manifest is missing or damaged carries its error."""
    for key, _ in store.keys("refs/"):
        ref = key.removeprefix("refs/")
        try:
            found = read_manifest(Reader(store), ref)
        except IntegrityError as exc:
            yield Entry(ref, error=exc.message)
            continue
        yield Entry(ref, found.digest, found.size, len(found.files), len(found.order), found.source, found.revision)
