"""A store that is read and never written: GCS, Azure, any web server. What writes to one is refused before it begins.

Reading goes through `transfer`, as in a pull. A bucket elsewhere is filled by its own tools (gsutil, azcopy, a mirror) from a
store that builder wrote: chunks and manifests are plain objects, and every byte is checked when it is read.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO, NoReturn

from builder.errors import ConfigError
from builder.stores.base import Entry, Stored
from builder.transfer.checksum import Buffer
from builder.transfer.objects import ObjectSource
from builder.transfer.retry import first_request, retrying
from builder.transfer.source import Source


class ReadStore:
    """Thread-safe. Errors as the source's; ConfigError where something would be written, or a web server listed."""

    def __init__(self, source: ObjectSource) -> None:
        self._source = source
        self.url = source.url

    def size(self, key: str) -> int | None:
        return first_request(self._source).call(lambda: self._source.size(key))

    def stat(self, key: str) -> Stored | None:
        """The size alone: the digests that GCS and Azure keep (CRC32C, MD5) are not ours."""
        size = self.size(key)
        return None if size is None else Stored(size)

    def get(self, key: str, limit: int) -> Buffer | None:
        return first_request(self._source).read(key, limit=limit)

    def keys(self, prefix: str) -> Iterator[tuple[str, int]]:
        return ((entry.key, entry.size) for entry in self.entries(prefix))

    def entries(self, prefix: str) -> Iterator[Entry]:
        found = retrying(self._source).call(lambda: self._source.entries(prefix))
        if found is None:
            raise ConfigError(f"{self.url}: a web server cannot be listed", hint="name the model: NAME or NAME@TAG")
        return (Entry(*entry) for entry in found)

    def source(self) -> Source:
        return self._source

    def put(self, key: str, data: Buffer, *, sha256: str, crc64nvme: str, absent: bool = False) -> None:
        self._refuse()

    def replace(self, key: str, data: Buffer, *, sha256: str, crc64nvme: str) -> None:
        self._refuse()

    def upload(self, key: str, file: BinaryIO, size: int) -> None:
        self._refuse()

    def delete(self, key: str) -> None:
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise not_writable(self.url)


def not_writable(url: str) -> ConfigError:
    return ConfigError(f"{url}: chunks cannot be written there", hint="use a folder or s3://bucket/prefix")
