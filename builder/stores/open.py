"""URL -> Store."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlsplit

from builder.errors import ConfigError
from builder.stores.base import Store
from builder.transfer.source import public

_ONE_SLASH = re.compile(r"(?!file:)([a-z][a-z0-9+.-]*):/(?!/)", re.IGNORECASE)


def open_store(url: str, *, endpoint_url: str | None = None, region: str | None = None, read_only: bool = False) -> Store:
    """The store at `url`: a folder, s3://bucket/prefix, or null: (keeps nothing). Nothing is contacted or made yet.

    read_only: also gs://, az:// and http(s)://, which refuse to be written.
    Raises ConfigError for an empty URL, user info in it, or a scheme that is unknown, mistyped or not for writing.
    """
    refuse_typos(url)
    if url.startswith("s3://"):
        from builder.stores.s3 import S3Store

        return S3Store(url, endpoint_url=endpoint_url, region=region)
    if url == "null:":
        from builder.stores.null import NullStore

        return NullStore()
    if "://" in url and not url.startswith("file://"):
        from builder.stores.readonly import ReadStore, not_writable
        from builder.transfer.objects import open_objects

        if not read_only:
            raise not_writable(public(url))
        return ReadStore(open_objects(url, endpoint_url=endpoint_url, region=region))
    from builder.stores.directory import DirectoryStore

    return DirectoryStore(Path(re.sub(r"\Afile:(//(?=/))?", "", url.removeprefix("file://"))).expanduser())


def refuse_typos(url: str) -> None:
    """A mistyped address must not become a folder of that name."""
    if not url.strip():
        raise ConfigError("the store's URL is empty", hint="use a folder or s3://bucket/prefix")
    if found := _ONE_SLASH.match(url):
        scheme = found[1].lower()
        raise ConfigError(f"{url}: one slash after {scheme}:", hint=f"write {scheme}://{url[found.end() :]}")
    if "://" in url and "@" in urlsplit(url).netloc:
        raise ConfigError(f"{public(url)}: the URL holds user info", hint="credentials come from the environment")
