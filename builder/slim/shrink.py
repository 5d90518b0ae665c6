"""Take freed bytes out of the file itself: the containers of .nv_fatbin move together, and the rest of the section goes.

Addresses of everything else stay. One LOAD segment becomes two, with a gap between them in memory; what lay behind the gap
moves in the file only. That is safe where every way to a container is known. The CUDA runtime reaches them by wrappers
(magic 0x466243B1, version, pointer), and the loader fills the pointers. So it is done only if each container that moves is
the target of such a pointer, and nothing else points into the section: no symbol, no other relocation. Code that computes a
container's address itself could not be seen, but it leaves that container without a wrapper's pointer (cuSPARSE, cuSOLVER,
cuRAND have one, the first of the section, which so stays where it is). Where such a one would have to move, the file is
repacked in place, and its freed bytes stay as zeros.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from builder.slim.elf import (
    HEADER,
    PT_LOAD,
    PT_PHDR,
    SECTION,
    SEGMENT,
    SHF_ALLOC,
    SHT_SYMTAB,
    Elf,
    Section,
    Segment,
    Source,
    pointers,
    symbols,
)
from builder.slim.fatbin import Container
from builder.slim.layout import Layout

WRAPPER = 0x466243B1
PAGE = 4096
STT_SECTION = 3
Held = Sequence["tuple[Container, Sequence[int]]"]
"""Containers, and the numbers of the entries that each keeps."""


class Unmovable(Exception):
    """Why the containers must stay where they are, in a few words."""


@dataclass(frozen=True)
class Cut:
    """What leaves the file: its bytes from `begin` to `end`. table: where the new program headers are, before `begin`."""

    begin: int
    end: int
    table: int

    @property
    def size(self) -> int:
        return self.end - self.begin

    def moved(self, offset: int) -> int:
        """Where a byte of the old file is in the new one."""
        return offset if offset < self.begin else max(offset, self.end) - self.size


def shrunk(source: Source, elf: Elf, held: Held) -> Layout:
    """The file with the containers of .nv_fatbin moved together. Raises Unmovable."""
    section = _section(elf)
    mine = [(container, kept) for container, kept in held if container.section == section]
    places = _places(section, mine)
    load = _load(elf, section)
    addresses = {
        section.addr + container.offset - section.offset: section.addr + place - section.offset
        for (container, _), place in zip(mine, places, strict=True)
    }
    words = [*_pointers(source, elf, section, addresses), *_symbols(source, elf, section, addresses)]
    used = places[-1] + _size(*mine[-1])
    cut = _cut(elf, section, used)
    made = Layout()
    made.copy(0, section.offset)
    for (container, kept), place in zip(mine, places, strict=True):
        _place(made, container, kept, place)
    made.zero(cut.begin - made.size + section.end - cut.end)
    made.copy(section.end, source.size)
    made.words += [(cut.moved(at), word) for at, word in words]
    made.words += _headers(source, elf, section, load, cut)
    made.words += [(_row(elf, section.index, cut) + 32, struct.pack("<Q", used - section.offset))]
    return made


def _section(elf: Elf) -> Section:
    found = [section for section in elf.sections if section.name == ".nv_fatbin"]
    if len(found) != 1 or not found[0].flags & SHF_ALLOC:
        raise Unmovable("no section .nv_fatbin" if not found else "several sections .nv_fatbin")
    return found[0]


def _places(section: Section, mine: Held) -> list[int]:
    """Where each container begins in the new file; aligned as all of them were."""
    if not mine:
        raise Unmovable("no containers in .nv_fatbin")
    unit = 16 if all(container.offset % 16 == 0 for container, _ in mine) else 8
    if any(container.offset % unit for container, _ in mine):
        raise Unmovable("containers at uneven places")
    places, at = [], section.offset
    for container, kept in mine:
        places.append(_up(at, unit))
        at = places[-1] + _size(container, kept)
    return places


def _size(container: Container, kept: Sequence[int]) -> int:
    return 16 + sum(container.entries[i].size for i in kept)


def _up(value: int, unit: int) -> int:
    return -(-value // unit) * unit


def _cut(elf: Elf, section: Section, used: int) -> Cut:
    """Whole pages, and of the widest alignment, so that every segment's offset and address go on to agree."""
    align = max(PAGE, *(s.align for s in elf.segments if s.kind == PT_LOAD))
    table = _up(used, 8)  # there is no room for one more header where the old ones are
    begin = _up(table + (len(elf.segments) + 1) * SEGMENT.size, PAGE)
    size = (section.end // PAGE * PAGE - begin) // align * align
    if size <= 0:
        raise Unmovable("less than a page would be free")
    return Cut(begin, begin + size, table)


def _load(elf: Elf, section: Section) -> Segment:
    """The LOAD segment of the section; no other segment may reach into it, or its size would be wrong afterwards."""
    over = [s for s in elf.segments if s.offset < section.end and section.offset < s.offset + s.filesz]
    if len(over) != 1 or over[0].kind != PT_LOAD:
        raise Unmovable("other segments than one LOAD hold .nv_fatbin")
    load = over[0]
    if section.end > load.offset + load.filesz or load.vaddr - load.offset != section.addr - section.offset:
        raise Unmovable(".nv_fatbin is not mapped as its section says")
    return load


def _pointers(source: Source, elf: Elf, section: Section, moved: dict[int, int]) -> Iterator[tuple[int, bytes]]:
    """The words to change: every pointer into the section is a wrapper's, to a container; every one that moves has one."""
    reached = set()
    for pointer in pointers(source, elf, [(section.addr, section.addr + section.size)]):
        if pointer.at < 0:
            raise Unmovable("the loader knows a symbol in .nv_fatbin")
        wrapper = elf.place(pointer.at - 8)
        if pointer.target not in moved or wrapper is None:
            raise Unmovable("a pointer into .nv_fatbin is to no container")
        if pointer.field is None or struct.unpack("<I", source.read(wrapper, 4))[0] != WRAPPER:
            raise Unmovable("a pointer to a container is in no wrapper")
        reached.add(pointer.target)
        yield pointer.field, struct.pack("<Q", moved[pointer.target])
    if missing := sum(old != new and old not in reached for old, new in moved.items()):
        raise Unmovable(f"{missing} of {len(moved)} containers are reached by no wrapper's pointer")


def _symbols(source: Source, elf: Elf, section: Section, moved: dict[int, int]) -> Iterator[tuple[int, bytes]]:
    """Names of containers for debuggers move along; a name inside one is too much."""
    for table in elf.sections:
        for one in symbols(source, table) if table.kind == SHT_SYMTAB else ():
            if one.section == section.index and one.kind != STT_SECTION:
                if one.value not in moved:
                    raise Unmovable("a symbol is inside .nv_fatbin")
                yield one.row + 8, struct.pack("<Q", moved[one.value])


def _place(made: Layout, container: Container, kept: Sequence[int], place: int) -> None:
    made.zero(place - made.size)
    made.words.append((place + 8, struct.pack("<Q", _size(container, kept) - 16)))
    made.copy(container.offset, container.begin)
    for i in kept:
        made.copy(container.entries[i].offset, container.entries[i].offset + container.entries[i].size)


def _headers(source: Source, elf: Elf, section: Section, load: Segment, cut: Cut) -> Iterator[tuple[int, bytes]]:
    """The new program headers, the section headers' offsets, and the ELF header's."""
    table: list[Segment] = []
    for one in elf.segments:
        if one is load:
            table += _halves(load, cut)
        elif one.kind == PT_PHDR:
            at = section.addr + cut.table - section.offset
            table.append(replace(one, offset=cut.table, vaddr=at, paddr=at))
        else:
            table.append(replace(one, offset=cut.moved(one.offset)))
    size = len(table) * SEGMENT.size
    yield cut.table, b"".join((replace(s, filesz=size, memsz=size) if s.kind == PT_PHDR else s).packed() for s in table)
    for number in range(1, elf.shnum):
        (offset,) = struct.unpack("<Q", source.read(elf.shoff + number * SECTION.size + 24, 8))
        yield _row(elf, number, cut) + 24, struct.pack("<Q", cut.moved(offset))
    fields = list(HEADER.unpack(source.read(0, HEADER.size)))
    fields[5], fields[6], fields[10] = cut.table, cut.moved(elf.shoff), len(table)
    yield 0, HEADER.pack(*fields)


def _row(elf: Elf, number: int, cut: Cut) -> int:
    """Where a section's header is in the new file."""
    return cut.moved(elf.shoff) + number * SECTION.size


def _halves(load: Segment, cut: Cut) -> Iterator[Segment]:
    """The segment before the gap and after it."""
    size = cut.begin - load.offset
    gone = size + cut.size
    yield replace(load, filesz=size, memsz=size)
    if load.memsz > gone:
        yield replace(
            load,
            offset=cut.begin,
            vaddr=load.vaddr + gone,
            paddr=load.paddr + gone,
            filesz=load.filesz - gone,
            memsz=load.memsz - gone,
        )
