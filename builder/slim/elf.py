"""The parts of an ELF file that pruning needs: header, segments, sections, and the relocations of a loader.

Layout after the System V gABI, chapters 4 and 5, and elf(5). 64-bit little-endian files only: there are no others with GPU
code. Nothing is read whole; every offset is checked against the file's size before it is used.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

PT_LOAD, PT_DYNAMIC, PT_PHDR = 1, 2, 6
SHT_PROGBITS, SHT_RELA, SHT_NOBITS, SHT_RELR = 1, 4, 8, 19
SHF_ALLOC, SHF_EXECINSTR = 2, 4
HEADER, SEGMENT, SECTION = struct.Struct("<16sHHIQQQIHHHHHH"), struct.Struct("<IIQQQQQQ"), struct.Struct("<IIQQQQIIQQ")
MACHINES = {62: "x86-64", 183: "aarch64", 190: "CUDA"}
MANY = 65_536


class Unfit(Exception):
    """This file cannot be pruned. error: a word for programs.  reason: a sentence for people, with section and byte range."""

    def __init__(self, error: str, reason: str) -> None:
        super().__init__(error, reason)  # both, so that it passes from process to process
        self.error, self.reason = error, reason


class Source:
    """A file to read from at any place. size: bytes, at the time it was opened.

    Small reads come from a window of 1 MiB: a library may hold 20,000 containers, each with headers to look at.
    """

    WINDOW, SMALL = 1 << 20, 1 << 16

    def __init__(self, descriptor: int) -> None:
        self.descriptor, self.size = descriptor, os.fstat(descriptor).st_size
        self._at, self._window = 0, b""

    def read(self, offset: int, size: int) -> bytes:
        """Exactly `size` bytes. Raises Unfit("truncated") where the file ends before."""
        if offset < 0 or size < 0 or offset + size > self.size:
            raise Unfit("truncated", f"bytes {offset:,} to {offset + size:,} lie behind the end of the file, {self.size:,}")
        if size > self.SMALL:
            return self._read(offset, size)
        if not self._at <= offset <= offset + size <= self._at + len(self._window):
            self._at, self._window = offset, self._read(offset, min(self.WINDOW, self.size - offset))
        return self._window[offset - self._at : offset - self._at + size]

    def _read(self, offset: int, size: int) -> bytes:
        parts = []
        while size:
            part = os.pread(self.descriptor, size, offset)
            if not part:
                raise Unfit("truncated", f"the file ended at byte {offset:,} while it was read")
            parts.append(part)
            offset, size = offset + len(part), size - len(part)
        return b"".join(parts)


@dataclass(frozen=True)
class Segment:
    """A program header."""

    kind: int
    flags: int
    offset: int
    vaddr: int
    paddr: int
    filesz: int
    memsz: int
    align: int

    def packed(self) -> bytes:
        return SEGMENT.pack(self.kind, self.flags, self.offset, self.vaddr, self.paddr, self.filesz, self.memsz, self.align)


@dataclass(frozen=True)
class Section:
    """A section header. size: bytes in the file; 0 for .bss, which has none."""

    index: int
    name: str
    kind: int
    flags: int
    addr: int
    offset: int
    size: int

    @property
    def end(self) -> int:
        return self.offset + self.size


@dataclass(frozen=True)
class Elf:
    """phoff, shoff: where the tables are.  shnum: section headers, the null one included."""

    machine: str
    phoff: int
    shoff: int
    shnum: int
    segments: tuple[Segment, ...]
    sections: tuple[Section, ...]

    def address(self, offset: int) -> int | None:
        """The virtual address of a byte of the file."""
        for s in self.segments:
            if s.kind == PT_LOAD and s.offset <= offset < s.offset + s.filesz:
                return s.vaddr + offset - s.offset
        return None

    def place(self, address: int) -> int | None:
        """The byte of the file that is mapped at a virtual address."""
        for s in self.segments:
            if s.kind == PT_LOAD and s.vaddr <= address < s.vaddr + s.filesz:
                return s.offset + address - s.vaddr
        return None


def read(source: Source) -> Elf:
    """Raises Unfit: not-elf, truncated, class, byte-order, machine, header."""
    if source.size < HEADER.size:
        short = source.read(0, source.size)
        raise Unfit(
            "truncated" if short[:4] == b"\x7fELF" else "not-elf", f"it has {source.size} bytes, less than an ELF header"
        )
    raw = source.read(0, HEADER.size)
    if raw[:4] != b"\x7fELF":
        raise Unfit("not-elf", f"it begins with {raw[:4].hex(' ')}, not with 7f 45 4c 46 (ELF)")
    if raw[4] != 2:
        raise Unfit("class", "it is a 32-bit ELF file; GPU code is in 64-bit ones only")
    if raw[5] != 1:
        raise Unfit("byte-order", "it is a big-endian ELF file; GPU code is in little-endian ones only")
    _, _, machine, _, _, phoff, shoff, _, ehsize, phentsize, phnum, shentsize, shnum, shstrndx = HEADER.unpack(raw)
    if machine not in MACHINES:
        raise Unfit("machine", f"it is for machine {machine}; expected x86-64 (62) or aarch64 (183)")
    if ehsize != HEADER.size or (phnum and phentsize != SEGMENT.size) or (shnum and shentsize != SECTION.size):
        raise Unfit("header", f"its ELF header gives sizes {ehsize}, {phentsize}, {shentsize}; expected 64, 56, 64")
    segments = tuple(Segment(*SEGMENT.unpack_from(raw)) for raw in _table(source, "program", phoff, phnum, SEGMENT.size))
    headers = [SECTION.unpack(raw) for raw in _table(source, "section", shoff, shnum, SECTION.size)]
    for s in segments:
        if s.kind == PT_LOAD and (s.offset + s.filesz > source.size or s.filesz > s.memsz):
            raise Unfit(
                "truncated", f"a segment at bytes {s.offset:,} to {s.offset + s.filesz:,} overruns the file, {source.size:,}"
            )
    return Elf(MACHINES[machine], phoff, shoff, shnum, segments, tuple(_sections(source, headers, shstrndx)))


def _table(source: Source, what: str, offset: int, count: int, size: int) -> Iterator[bytes]:
    if count and offset + count * size > source.size:
        raise Unfit(
            "truncated",
            f"its {what} headers, {count} from byte {offset:,} on, lie behind the end of the file, {source.size:,}",
        )
    raw = source.read(offset, count * size) if count else b""
    return (raw[i * size : (i + 1) * size] for i in range(count))


def _sections(source: Source, headers: list[tuple[int, ...]], names_at: int) -> Iterator[Section]:
    names = b""
    if headers:
        if names_at >= len(headers):
            raise Unfit("header", f"its section names are in section {names_at} of {len(headers)}")
        at, size = headers[names_at][4], headers[names_at][5]
        names = source.read(at, size) if size <= 1 << 20 else b""
    for index, (name, kind, flags, addr, offset, size, *_) in enumerate(headers):
        text = names[name : names.find(b"\0", name)].decode(errors="replace") if name < len(names) else ""
        held = 0 if kind == SHT_NOBITS or not kind else size
        if offset + held > source.size and held:
            raise Unfit(
                "truncated", f"section {text} at bytes {offset:,} to {offset + size:,} overruns the file, {source.size:,}"
            )
        yield Section(index, text, kind, flags, addr, offset, held)


@dataclass(frozen=True)
class Pointer:
    """A word that the loader fills with an address, load base added. at: the word's own virtual address.

    target: the address.  field: byte of the file where the linker keeps it: the relocation's addend, or with RELR the word
    itself; None where it also depends on a symbol.
    """

    at: int
    target: int
    field: int | None


RELATIVE = {"x86-64": {8, 37}, "aarch64": {1027, 1032}}
"""R_*_RELATIVE and R_*_IRELATIVE: the addend is an address."""
SYMBOLIC = {"x86-64": {1, 6, 7}, "aarch64": {257, 1025, 1026}}
"""R_X86_64_64, GLOB_DAT, JUMP_SLOT and their like on AArch64: a symbol's value and the addend."""
SHT_SYMTAB, SHT_DYNSYM = 2, 11
SYMBOL = struct.Struct("<IBBHQQ")


@dataclass(frozen=True)
class Symbol:
    """A row of a symbol table. row: byte of the file.  kind: STT_*.  section: index of its section header."""

    number: int
    row: int
    kind: int
    section: int
    value: int


def symbols(source: Source, table: Section) -> Iterator[Symbol]:
    """The rows of a table, in order."""
    for at in range(table.offset, table.end - SYMBOL.size + 1, SYMBOL.size * MANY):
        count = min(MANY, (table.end - at) // SYMBOL.size)
        for i, (_, info, _, section, value, _) in enumerate(SYMBOL.iter_unpack(source.read(at, count * SYMBOL.size))):
            yield Symbol((at - table.offset) // SYMBOL.size + i, at + SYMBOL.size * i, info & 15, section, value)


def pointers(source: Source, elf: Elf, within: Sequence[tuple[int, int]]) -> Iterator[Pointer]:
    """What the loader fills with an address in one of the ranges `within`, by relocations with addends and by packed relative
    ones (DT_RELR); and each name that it knows there, as a pointer at -1. Raises Unfit for tables that make no sense.
    """
    named = {
        one.number: one.value
        for table in elf.sections
        if table.kind == SHT_DYNSYM
        for one in symbols(source, table)
        if one.section and _inside(one.value, within)
    }
    yield from (Pointer(-1, value, None) for value in named.values())
    for section in elf.sections:
        if section.flags & SHF_ALLOC and section.kind in (SHT_RELA, SHT_RELR):
            found = _rela(source, elf, section, named) if section.kind == SHT_RELA else _relr(source, elf, section)
            yield from (pointer for pointer in found if _inside(pointer.target, within))


def _inside(address: int, within: Sequence[tuple[int, int]]) -> bool:
    return any(begin <= address < end for begin, end in within)


def _rela(source: Source, elf: Elf, section: Section, named: Mapping[int, int]) -> Iterator[Pointer]:
    relative, symbolic = RELATIVE.get(elf.machine, set()), SYMBOLIC.get(elf.machine, set())
    step, end = 24 * MANY, section.end - section.size % 24
    for at in range(section.offset, end, step):
        block = source.read(at, min(step, end - at))
        for i, (where, info, addend) in enumerate(struct.iter_unpack("<QQq", block)):
            kind, symbol = info & 0xFFFFFFFF, info >> 32
            if kind in relative:
                yield Pointer(where, addend, at + 24 * i + 16)
            elif kind in symbolic and (symbol in named or not symbol):
                yield Pointer(where, named.get(symbol, 0) + addend, None)


def _relr(source: Source, elf: Elf, section: Section) -> Iterator[Pointer]:
    """The generic ABI's compact relative relocations: an even entry is an address, an odd one marks the 63 words after it."""
    words = struct.unpack(f"<{section.size // 8}Q", source.read(section.offset, section.size // 8 * 8))
    where = 0
    for word in words:
        if word & 1:
            marked = [where + 8 * bit for bit in range(63) if word >> (bit + 1) & 1]
            where += 63 * 8
        else:
            marked, where = [word], word + 8
        for address in marked:
            field = elf.place(address)
            if field is None:
                raise Unfit("relocation", f"{section.name} marks address {address:#x}, which no segment holds")
            yield Pointer(address, struct.unpack("<Q", source.read(field, 8))[0], field)
