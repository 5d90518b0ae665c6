"""NVIDIA's fat binaries: containers that hold one piece of GPU code per chip, wherever in a file they are.

    container   u32 magic 0xBA55ED50, u16 version 1, u16 header size 16, u64 bytes of entries
    entry       u16 kind, u16 version 0x101, u32 header size, u64 payload size, ... u16 minor, u16 major, u32 sm at +28,
                u64 flags at +40, ... u64 uncompressed size at +56; then the payload, padded to 8 bytes

No public document gives the format. The fields are as cuobjdump 13.5 reads them, and as walking all libraries of torch 2.13
and vLLM 0.32 confirms: each container is consumed to its last byte. Containers stand in .nv_fatbin, where the CUDA runtime
finds them by wrappers in .nvFatBinSegment, but also in sections of a library's own (cuBLASLt's .cask_resource, cuFFT's .ldata).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from builder.slim.chips import Code
from builder.slim.elf import SHF_EXECINSTR, SHT_PROGBITS, Section, Source, Unfit

MAGIC = struct.pack("<I", 0xBA55ED50)
REGISTERED = (".nv_fatbin", "__nv_relfatbin")
"""Sections of nothing but containers, which the CUDA runtime registers as a library is loaded."""
KINDS = {1: "ptx", 2: "cubin", 8: "lto"}
SUFFIXES = {0: "", 0x100000: "a", 0x200000: "f"}
ENTRY = struct.Struct("<HHIQIIHHI")
WINDOW = 8 << 20
LEAST = 64


@dataclass(frozen=True)
class Entry:
    """offset: byte of the file where its header begins.  size: header and payload."""

    code: Code
    offset: int
    header: int
    size: int

    @property
    def payload(self) -> tuple[int, int]:
        """Offset and size of the payload."""
        return self.offset + self.header, self.size - self.header


@dataclass(frozen=True)
class Container:
    """offset: byte of the file where its magic begins."""

    section: Section
    offset: int
    entries: tuple[Entry, ...]

    @property
    def begin(self) -> int:
        """The first entry."""
        return self.offset + 16

    @property
    def end(self) -> int:
        return self.entries[-1].offset + self.entries[-1].size if self.entries else self.begin


def containers(source: Source, sections: tuple[Section, ...]) -> list[Container]:
    """All of them, in file order. Raises Unfit("container" or "version") where one is not understood to the last byte."""
    found: list[Container] = []
    for section in sections:
        if section.name in REGISTERED:
            found += _packed(source, section)
        elif section.kind == SHT_PROGBITS and not section.flags & SHF_EXECINSTR and not section.name.startswith(".debug"):
            found += _scattered(source, section)
    return sorted(found, key=lambda one: one.offset)


def _packed(source: Source, section: Section) -> Iterator[Container]:
    """A section that is one container after another, with zeros up to the next 8 or 16 bytes between them."""
    at = section.offset
    while at < section.end:
        head = source.read(at, min(16, section.end - at))
        if head[:4] == MAGIC:
            container = _container(source, section, at)
            yield container
            at = container.end
        elif not head[:8].strip(b"\0"):
            at = _next_nonzero(source, at, section.end)
        else:
            raise Unfit("container", f"{section.name}: neither a container nor padding at byte {at:,}: {head[:8].hex(' ')}")


def _next_nonzero(source: Source, at: int, end: int) -> int:
    """Where the zeros that begin at `at` end, rounded down to 8 bytes: pruned sections are full of them."""
    while at < end:
        block = source.read(at, min(WINDOW, end - at))
        left = block.lstrip(b"\0")
        if left:
            return at + (len(block) - len(left)) // 8 * 8
        at += len(block)
    return end


def _scattered(source: Source, section: Section) -> Iterator[Container]:
    """Containers among other data. Code is not searched: a parser of the format holds the magic as a constant."""
    at = section.offset
    while (at := _find(source, at, section.end)) < section.end:
        container = _container(source, section, at)
        yield container
        at = max(container.end, at + 16)


def _find(source: Source, at: int, end: int) -> int:
    """The next container; `end` if there is none. Raises Unfit("version") for one of another version."""
    step = Source.SMALL // 2  # the next container is mostly near
    while at < end:
        size = min(step + len(MAGIC) - 1, end - at)
        block = source.read(at, size)
        hit = block.find(MAGIC)
        while hit >= 0:
            if _begins(source, at + hit, end):
                return at + hit
            hit = block.find(MAGIC, hit + 1)
        at += min(step, size)
        step = min(step * 4, WINDOW)
    return end


def _begins(source: Source, at: int, end: int) -> bool:
    """Whether the magic at `at` begins a container, and is not just a number among other data.

    One of a version that is not known begins at a multiple of 8 as all do, with a header and a size that can be.
    """
    if at + 16 > end:
        return False
    version, header, size = struct.unpack("<4xHHQ", source.read(at, 16))
    if (version, header) == (1, 16):
        return True
    if at % 8 or header not in range(16, 72, 8) or not 0 < size <= end - at - header:
        return False
    raise Unfit("version", f"a container of version {version}, header {header} bytes, at byte {at:,}; known: 1, 16 bytes")


def _container(source: Source, section: Section, offset: int) -> Container:
    if offset + 16 > section.end:
        raise Unfit(
            "container", f"{section.name}: a container at byte {offset:,} overruns its section, which ends at {section.end:,}"
        )
    version, header, size = struct.unpack("<4xHHQ", source.read(offset, 16))
    if version != 1 or header != 16:
        raise Unfit(
            "version",
            f"{section.name}: a container of version {version}, header {header} bytes, at byte {offset:,}; known: 1, 16 bytes",
        )
    end = offset + 16 + size
    if end > section.end:
        raise Unfit(
            "container",
            f"{section.name}: a container at bytes {offset:,} to {end:,} overruns its section, which ends at {section.end:,}",
        )
    entries, at = [], offset + 16
    while at < end:
        entries.append(_entry(source, section, at, end))
        at += entries[-1].size
    return Container(section, offset, tuple(entries))


def _entry(source: Source, section: Section, offset: int, end: int) -> Entry:
    where = f"{section.name}: an entry at byte {offset:,} of a container that ends at {end:,}"
    if offset + LEAST > end:
        raise Unfit("container", f"{where} is shorter than its header of {LEAST} bytes")
    raw = source.read(offset, LEAST)
    kind, version, header, size, _, _, _, _, sm = ENTRY.unpack_from(raw)
    (flags,) = struct.unpack_from("<Q", raw, 40)
    if kind not in KINDS or version != 0x101:
        raise Unfit("version", f"{where} is of kind {kind}, version {version:#x}; known: {sorted(KINDS)}, 0x101")
    if header < LEAST or header > 4096 or header % 8 or size % 8 or offset + header + size > end:
        raise Unfit("container", f"{where} claims a header of {header} and a payload of {size} bytes")
    suffix = SUFFIXES.get(flags & 0x300000)
    if not 10 <= sm <= 999 or suffix is None:
        raise Unfit("container", f"{where} claims code for sm_{sm} with flags {flags:#x}")
    return Entry(Code(KINDS[kind], sm, suffix), offset, header, header + size)
