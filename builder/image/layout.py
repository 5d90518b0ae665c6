"""The files of an image archive, in a tar or in a folder, and the JSON documents among them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Protocol

from builder.errors import IntegrityError
from builder.image.stream import BLOCK, compression

DOCUMENT_LIMIT = 16 << 20
"""Bytes of an index, manifest or configuration; registries take manifests of 4 MiB."""
HINT = "make one with `docker save`, or `docker buildx build --output type=oci,dest=FILE`"


class Layout(Protocol):
    """name: for errors. `in` is true for plain files alone."""

    name: str

    def __contains__(self, name: str, /) -> bool: ...
    def size(self, name: str, /) -> int: ...
    def open(self, name: str, /) -> IO[bytes]: ...


@contextlib.contextmanager
def open_layout(path: Path) -> Iterator[Layout]:
    """Raises IntegrityError if `path` is neither a folder nor a tar."""
    if path.is_dir():
        yield _Folder(path)
        return
    with _tar(path) as tar:
        yield _Tar(tar, path)


def _tar(path: Path) -> tarfile.TarFile:
    try:
        return tarfile.open(path, "r:")
    except tarfile.TarError as exc:
        with path.open("rb") as file:
            kind = compression(file.read(8))
        hint = f"it is {kind}: unpack it first" if kind else HINT
        raise IntegrityError(f"{path}: not an image archive: {exc}", hint=hint) from exc
    except OSError as exc:
        raise IntegrityError(f"{path}: not an image archive: {exc.strerror or exc}", hint=HINT) from exc


class _Folder:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.name = str(root)

    def __contains__(self, name: str, /) -> bool:
        return ".." not in Path(name).parts and not name.startswith("/") and (self.root / name).is_file()

    def size(self, name: str, /) -> int:
        return (self.root / name).stat().st_size

    def open(self, name: str, /) -> IO[bytes]:
        return (self.root / name).open("rb")


class _Tar:
    def __init__(self, tar: tarfile.TarFile, path: Path) -> None:
        self.tar = tar
        self.name = str(path)
        try:
            self.files = {member.name.removeprefix("./"): member for member in tar.getmembers() if not member.isdir()}
        except tarfile.TarError as exc:
            raise IntegrityError(f"{path}: not an image archive: {exc}", hint=HINT) from exc

    def __contains__(self, name: str, /) -> bool:
        return name in self.files

    def size(self, name: str, /) -> int:
        with self.open(name) as file:
            return file.seek(0, os.SEEK_END)

    def open(self, name: str, /) -> IO[bytes]:
        """Links are followed: `docker save` before 25 writes a layer once, and links to it."""
        try:
            file = self.tar.extractfile(self.files[name])
        except (KeyError, tarfile.TarError) as exc:
            raise IntegrityError(f"{self.name}: {name}: {exc}") from exc
        if file is None:
            raise IntegrityError(f"{self.name}: {name} is not a file")
        return file


def document(layout: Layout, name: str) -> Any:
    """The JSON file `name`.

    Raises IntegrityError if it is missing, too large, not JSON, or a blob of other bytes than its digest says.
    """
    if name not in layout:
        raise IntegrityError(f"{layout.name}: {name} is missing; not an image archive", hint=HINT)
    if (size := layout.size(name)) > DOCUMENT_LIMIT:
        raise IntegrityError(f"{layout.name}: {name} has {size} bytes; at most {DOCUMENT_LIMIT} are read")
    with layout.open(name) as file:
        data = b"".join(iter(lambda: file.read(BLOCK), b""))
    if name.startswith("blobs/sha256/") and (found := hashlib.sha256(data).hexdigest()) != name[13:]:
        raise IntegrityError(f"{layout.name}: sha256:{name[13:]}: its bytes have the digest sha256:{found}")
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as exc:
        raise IntegrityError(f"{layout.name}: {name}: not JSON: {exc}") from exc


def part(raw: Any, key: str, where: str) -> dict[str, Any]:
    """raw[key], an object. Raises IntegrityError if it is none."""
    found = raw.get(key) if isinstance(raw, dict) else None
    if not isinstance(found, dict):
        raise IntegrityError(f"{where}: expected an object with an object {key!r}; not an image archive", hint=HINT)
    return found


def objects(raw: Any, key: str, where: str) -> list[dict[str, Any]]:
    """raw[key], a list of objects."""
    found = raw.get(key) if isinstance(raw, dict) else None
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise IntegrityError(f"{where}: expected an object with a list {key!r}; not an image archive", hint=HINT)
    return found
