"""URL -> Store."""

from __future__ import annotations

from pathlib import Path

from builder.errors import ConfigError
from builder.stores.base import Store


def open_store(url: str, *, endpoint_url: str | None = None, region: str | None = None) -> Store:
    """The store at `url`: a folder, s3://bucket/prefix, or null: (keeps nothing). Nothing is contacted or made yet."""
    if url.startswith("s3://"):
        from builder.stores.s3 import S3Store

        return S3Store(url, endpoint_url=endpoint_url, region=region)
    if url == "null:":
        from builder.stores.null import NullStore

        return NullStore()
    if "://" in url and not url.startswith("file://"):
        raise ConfigError(f"{url}: chunks cannot be written there", hint="use a folder or s3://bucket/prefix")
    from builder.stores.directory import DirectoryStore

    return DirectoryStore(Path(url.removeprefix("file://")).expanduser())
