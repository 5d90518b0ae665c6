"""Bytes of an archive, unpacked while they are read, and the members of a tar stream: never more than a block in memory.

zstd comes from `backports.zstd`, which mirrors the `compression.zstd` of Python 3.14's standard library: BuildKit writes
zstd layers, and Python 3.11 to 3.13 read none. Its window is held at 128 MiB, the library's own limit for a stream.

Not tarfile for the layers: it keeps every member it has seen, reads extended headers of any length into memory, and stops
at the end mark, behind which bytes can hide. Its parser of one 512-byte header is used.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import lzma
import sys
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING or sys.version_info < (3, 14):
    from backports import zstd as zstd
else:
    from compression import zstd as zstd

from builder.errors import IntegrityError

BLOCK = 1 << 20
HEADER_LIMIT = 1 << 20
"""Bytes of one member's extended headers; Linux allows 64 KiB of attributes to a file."""
DAMAGE = (OSError, EOFError, zlib.error, lzma.LZMAError, zstd.ZstdError, tarfile.TarError)
MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"\x1f\x8b", "gzip"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ\x00", "xz"),
)
_OPEN: dict[str, Callable[[Any], Any]] = {
    "gzip": lambda file: gzip.GzipFile(fileobj=file, mode="rb"),
    "zstd": lambda file: zstd.ZstdFile(file, "rb"),
    "bzip2": lambda file: bz2.BZ2File(file, "rb"),
    "xz": lambda file: lzma.LZMAFile(file, "rb"),  # noqa: SIM115  # the stream owns it
}


class Reader(Protocol):
    def read(self, size: int, /) -> bytes:
        """Up to `size` bytes; none at the end."""


class Raw(io.RawIOBase):
    """A Reader as a raw file, hashed on its way and counted."""

    def __init__(self, source: Reader) -> None:
        self.source = source
        self.sha256 = hashlib.sha256()
        self.count = 0

    def readable(self) -> bool:
        return True

    def readinto(self, target: Any) -> int:
        data = self.source.read(len(target))
        self.sha256.update(data)
        self.count += len(data)
        target[: len(data)] = data
        return len(data)


class Stream:
    """What `source` holds, unpacked by what its first bytes say (as containerd does, whatever the media type claims).

    where: names it in errors. Damage is an IntegrityError.
    """

    def __init__(self, source: Reader, where: str) -> None:
        self.where = where
        self.raw = Raw(source)
        self._packed = io.BufferedReader(self.raw, BLOCK)
        self.compression = compression(self._packed.peek(8)[:8])
        self._file: Any = _OPEN[self.compression](self._packed) if self.compression else self._packed

    def read(self, size: int, /) -> bytes:
        try:
            data: bytes = self._file.read(size)
        except DAMAGE as exc:
            raise IntegrityError(f"{self.where}: cannot be read: {exc}") from exc
        return data

    def drain(self) -> None:
        """Read what is left, of the unpacked bytes and behind them."""
        while self.read(BLOCK):
            pass
        while self._packed.read(BLOCK):
            pass


def compression(head: bytes) -> str:
    """gzip, zstd, bzip2, xz, or "" for none of them."""
    return next((name for magic, name in MAGIC if head.startswith(magic)), "")


@dataclass(slots=True)
class Member:
    """One entry of a tar stream. Its bytes are there until the next one is asked for.

    name: without leading or trailing slash. kind: file, dir, link (symbolic), hardlink or other. size: bytes that follow.
    link: what a link names. extra: the rest of what its headers hold: attributes, owners.
    """

    name: str
    kind: str
    size: int
    link: str
    extra: bytes
    _source: Reader
    _left: int = field(init=False)

    def __post_init__(self) -> None:
        self._left = self.size

    def read(self, size: int, /) -> bytes:
        data = self._source.read(min(size, self._left))
        if not data and self._left and size:
            where = getattr(self._source, "where", "archive")
            raise IntegrityError(f"{where}: {self.name}: ends {self._left} bytes early")
        self._left -= len(data)
        return data


_KINDS = {
    tarfile.DIRTYPE: "dir",
    tarfile.SYMTYPE: "link",
    tarfile.LNKTYPE: "hardlink",
    tarfile.CHRTYPE: "other",
    tarfile.BLKTYPE: "other",
    tarfile.FIFOTYPE: "other",
}
_PAX, _PAX_GLOBAL, _NAME, _LINK = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)


def is_tar(head: bytes) -> bool:
    """Whether a tar stream starts like this: the magic of pax or GNU, and a header whose checksum holds."""
    if head[257:262] != b"ustar":
        return False
    try:
        tarfile.TarInfo.frombuf(head[:512], "utf-8", "replace")
    except tarfile.HeaderError:
        return False
    return True


def members(source: Reader, where: str) -> Iterator[Member]:
    """The entries up to the end mark; what follows it is left in `source`. Raises IntegrityError for anything but a tar.

    Formats: ustar, pax and GNU (POSIX.1-2017 pax, "ustar Interchange Format"; GNU tar manual, "Basic Tar Format"). A
    sparse file is its stored bytes.
    """
    headers = _Headers(source, where)
    while member := headers.next():
        yield member
        while member.read(BLOCK):
            pass
        _exactly(source, -member.size % 512, where)


class _Headers:
    """Reads headers, and the extended ones that come before them."""

    def __init__(self, source: Reader, where: str) -> None:
        self.source = source
        self.where = where
        self.common: dict[str, str] = {}

    def next(self) -> Member | None:
        own: dict[str, str] = {}
        extra = b""
        while block := self._header():
            info = self._parse(block)
            if info.type not in (_PAX, _PAX_GLOBAL, _NAME, _LINK):
                return self._member(info, block, self.common | own, extra)
            data = self._data(info.size, len(extra))
            extra += data
            if info.type == _PAX_GLOBAL:
                self.common |= _pax(data, self.where)
            elif info.type == _PAX:
                own |= _pax(data, self.where)
            else:
                key = "path" if info.type == _NAME else "linkpath"
                own[key] = data.rstrip(b"\0").decode(errors="replace")
        return None

    def _header(self) -> bytes:
        block = self.source.read(512)
        while 0 < len(block) < 512 and (more := self.source.read(512 - len(block))):
            block += more
        if block and len(block) < 512:
            raise IntegrityError(f"{self.where}: cannot be read: ends within a header")
        return b"" if block == bytes(512) else block

    def _parse(self, block: bytes) -> tarfile.TarInfo:
        try:
            return tarfile.TarInfo.frombuf(block, "utf-8", "replace")
        except tarfile.HeaderError as exc:
            raise IntegrityError(f"{self.where}: cannot be read: not a tar header: {exc}") from exc

    def _data(self, size: int, so_far: int) -> bytes:
        if not 0 <= size <= HEADER_LIMIT - so_far:
            raise IntegrityError(f"{self.where}: an extended header of {size} bytes; at most {HEADER_LIMIT} are read")
        return _exactly(self.source, size + -size % 512, self.where)[:size]

    def _member(self, info: tarfile.TarInfo, block: bytes, pax: dict[str, str], extra: bytes) -> Member:
        name = pax.get("GNU.sparse.name") or pax.get("path") or info.name
        kind = _KINDS.get(info.type, "file")
        size = _number(pax.get("size", ""), info.size) if kind == "file" else 0
        if size < 0:
            raise IntegrityError(f"{self.where}: {name}: a size of {size}")
        if info.type == tarfile.GNUTYPE_SPARSE:
            more = block[482]  # more of the map of holes follows, in blocks of its own
            while more:
                more = _exactly(self.source, 512, self.where)[504]
        owners = f"{info.uname}\n{info.gname}\n".encode()
        return Member(_clean(name), kind, size, pax.get("linkpath") or info.linkname, owners + extra, self.source)


def _clean(name: str) -> str:
    """
    >>> _clean("./usr//bin/"), _clean("/a/./b"), _clean("./")
    ('usr/bin', 'a/b', '')
    """
    if "//" in name or "./" in name or name in (".", ".."):
        return "/".join(part for part in name.split("/") if part not in ("", "."))
    return name.strip("/")


def _pax(data: bytes, where: str) -> dict[str, str]:
    """Records of the form "LENGTH KEY=VALUE\\n", LENGTH counting all of it."""
    found: dict[str, str] = {}
    at = 0
    while at < len(data) and data[at]:
        digits, _, _ = data[at : at + 20].partition(b" ")
        length = int(digits) if digits.isdigit() else 0
        record = data[at : at + length]
        key, equals, value = record[len(digits) + 1 : -1].partition(b"=")
        if not equals or not record.endswith(b"\n"):
            raise IntegrityError(f"{where}: cannot be read: a damaged extended header")
        found[key.decode(errors="replace")] = value.decode(errors="replace")
        at += length
    return found


def _number(text: str, otherwise: int) -> int:
    return int(text) if text.isascii() and text.isdigit() else otherwise


def _exactly(source: Reader, size: int, where: str) -> bytes:
    data = b""
    while len(data) < size:
        more = source.read(size - len(data))
        if not more:
            raise IntegrityError(f"{where}: cannot be read: ends {size - len(data)} bytes early")
        data += more
    return data
