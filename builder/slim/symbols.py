"""What a shared object offers to others and asks of them: its dynamic symbols with their versions.

Read as the dynamic loader reads it, through program headers and the dynamic section; section headers may be gone. Every
offset is checked against the file before it is read, and every count has a limit, so damaged input ends in an error and
never in a long loop.
Sources: System V gABI, chapters 4 and 5; "ELF symbol versioning" by Ulrich Drepper, with the Linux Standard Base's tables.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from builder.errors import ConfigError, IntegrityError

MACHINES = {62: "x86_64", 183: "aarch64"}
PT_LOAD, PT_DYNAMIC, PT_NOTE, PF_X = 1, 2, 4, 1
DT_NEEDED, DT_HASH, DT_STRTAB, DT_SYMTAB, DT_STRSZ, DT_SYMENT, DT_SONAME = 1, 4, 5, 6, 10, 11, 14
DT_GNU_HASH, DT_VERSYM, DT_VERDEF, DT_VERDEFNUM, DT_VERNEED, DT_VERNEEDNUM = (
    0x6FFFFEF5,
    0x6FFFFFF0,
    0x6FFFFFFC,
    0x6FFFFFFD,
    0x6FFFFFFE,
    0x6FFFFFFF,
)
SHN_UNDEF, SHN_ABS = 0, 0xFFF1
KINDS = {0: "none", 1: "object", 2: "function", 5: "object", 6: "tls", 10: "ifunc"}
BINDINGS = {1: "global", 2: "weak", 10: "unique"}
HIDDEN_VERSION = 0x8000
BASE_VERSION = 1  # VER_FLG_BASE: the name of the file itself; and the index of symbols without a version
MAX_SYMBOLS, MAX_STRINGS, MAX_VERSIONS, MAX_NOTE = 4 << 20, 256 << 20, 1 << 15, 1 << 20
"""Limits, some ten times what the largest library at hand has (libtorch_cpu: 90 thousand symbols, 18 MB of names)."""


@dataclass(frozen=True, slots=True)
class Symbol:
    """One symbol that a library defines.

    version: "" where it has none.  default: what a linker binds to where no version is asked for (`name@@version`).
    kind: function, object, tls, ifunc; or none, for data of no declared type.  bind: global, weak, unique.
    value: address, before loading.  size: bytes.  absolute: a number, not a place in the file.
    """

    name: str
    version: str
    default: bool
    kind: str
    bind: str
    protected: bool
    value: int
    size: int
    absolute: bool

    @property
    def text(self) -> str:
        """As `nm -D` writes it.

        >>> Symbol("f", "V1", True, "function", "global", False, 0, 0, False).text
        'f@@V1'
        """
        return self.name + (("@@" if self.default else "@") + self.version if self.version else "")


@dataclass(frozen=True, slots=True)
class Import:
    """One symbol that a library takes from others. file: the soname that the version is of; "" without version."""

    name: str
    version: str
    file: str
    weak: bool


@dataclass(frozen=True, slots=True)
class Version:
    """A version that a library defines, and those that it is built on."""

    name: str
    parents: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Library:
    """versions: in the order of the file, without the base version, which is the file's own name."""

    machine: str
    soname: str
    needed: tuple[str, ...]
    versions: tuple[Version, ...]
    exports: tuple[Symbol, ...]
    imports: tuple[Import, ...]


def read(path: Path) -> Library:
    """The dynamic symbols of a 64-bit little-endian shared object for x86-64 or aarch64.

    Raises ConfigError for another kind of file, IntegrityError for one that is damaged; both name the file.
    """
    with path.open("rb") as file:
        return _Reader(_Window(path, file.fileno())).library()


def notes(path: Path) -> Iterator[tuple[str, int, bytes]]:
    """(owner, type, description) of every note in the file's note segments. Raises as `read` does."""
    with path.open("rb") as file:
        reader = _Reader(_Window(path, file.fileno()))
        for _, segment in reader.segments(PT_NOTE):
            yield from _notes(reader.window, segment[2], segment[5])


class _Window:
    """A file that is read by ranges; none outside of it."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path, self.descriptor = path, descriptor
        self.size = os.fstat(descriptor).st_size

    def read(self, offset: int, size: int, what: str, limit: int = MAX_STRINGS) -> bytes:
        if size > limit:
            raise self.damaged(f"{what} at {offset:#x}: {size} bytes or more; expected at most {limit}")
        if offset + size > self.size:
            raise self.damaged(f"{what} at {offset:#x} to {offset + size:#x} lies beyond the file's end {self.size:#x}")
        data = os.pread(self.descriptor, size, offset)
        if len(data) != size:
            raise self.damaged(f"{what} at {offset:#x}: {len(data)} of {size} bytes; the file changed while it was read")
        return data

    def damaged(self, what: str) -> IntegrityError:
        return IntegrityError(f"{self.path}: {what}", hint="install the library again")


class _Reader:
    def __init__(self, window: _Window) -> None:
        self.window = window
        self.machine = self._machine()
        head = window.read(0, 64, "the ELF header")
        table, entry, count = *struct.unpack_from("<Q", head, 32), *struct.unpack_from("<HH", head, 54)
        if entry != 56 or not 0 < count < 0xFFFF:
            raise window.damaged(f"{count} program headers of {entry} bytes; expected some of 56 bytes")
        raw = window.read(table, entry * count, "the program headers")
        self.headers = [struct.unpack_from("<IIQQQQQQ", raw, at) for at in range(0, len(raw), entry)]

    def _machine(self) -> str:
        path, head = self.window.path, os.pread(self.window.descriptor, 64, 0)
        if head[:4] != b"\x7fELF":
            raise ConfigError(f"{path}: not an ELF file; it begins with {head[:4].hex() or 'nothing'}")
        if len(head) < 64:
            raise self.window.damaged(f"{len(head)} bytes; the ELF header alone has 64")
        if head[4] != 2 or head[5] != 1:
            raise ConfigError(f"{path}: expected a 64-bit little-endian file, found class {head[4]}, byte order {head[5]}")
        kind, machine = struct.unpack_from("<HH", head, 16)
        if kind != 3:
            raise ConfigError(f"{path}: not a shared object: ELF type {kind}, expected 3")
        if machine not in MACHINES:
            raise ConfigError(f"{path}: ELF machine {machine}; expected {' or '.join(MACHINES.values())}")
        return MACHINES[machine]

    def segments(self, kind: int) -> Iterator[tuple[int, tuple[int, ...]]]:
        return ((index, one) for index, one in enumerate(self.headers) if one[0] == kind)

    def place(self, address: int, what: str) -> tuple[int, int]:
        """(file offset, bytes left in its segment) of an address."""
        for _, (_, _, offset, start, _, filled, _, _) in self.segments(PT_LOAD):
            if start <= address < start + filled:
                return offset + address - start, filled - (address - start)
        raise self.window.damaged(f"{what}: address {address:#x} is in no segment of the file")

    def at(self, address: int, size: int, what: str) -> bytes:
        offset, left = self.place(address, what)
        if size > left:
            raise self.window.damaged(f"{what} at {offset:#x}: {size} bytes, {left} of them in its segment")
        return self.window.read(offset, size, what)

    def executable(self, address: int) -> bool:
        return any(one[1] & PF_X and one[3] <= address < one[3] + one[6] for _, one in self.segments(PT_LOAD))

    def dynamic(self) -> list[tuple[int, int]]:
        found = next(self.segments(PT_DYNAMIC), None)
        if found is None:
            raise self.window.damaged("no dynamic segment; expected a shared object with symbols")
        raw = self.window.read(found[1][2], found[1][5], "the dynamic section", 1 << 20)
        pairs: list[tuple[int, int]] = []
        for at in range(0, len(raw) - 15, 16):
            tag, value = struct.unpack_from("<QQ", raw, at)
            if tag == 0:
                return pairs
            pairs.append((tag, value))
        raise self.window.damaged("the dynamic section does not end")

    def library(self) -> Library:
        pairs = self.dynamic()
        tags = dict(pairs)
        if DT_STRTAB not in tags or DT_SYMTAB not in tags or tags.get(DT_SYMENT) != 24:
            raise self.window.damaged("no dynamic symbols; expected a symbol table of 24-byte entries, and its names")
        self.strings = self.at(tags[DT_STRTAB], tags.get(DT_STRSZ, 0), "the symbol names")
        count = self.count(tags)
        table = self.at(tags[DT_SYMTAB], 24 * count, "the symbol table")
        indices = self.at(tags[DT_VERSYM], 2 * count, "the symbol versions") if DT_VERSYM in tags else b"\1\0" * count
        defined = self.definitions(tags)
        needed = self.needs(tags)
        exports, imports = [], []
        for number, at in enumerate(range(24, len(table), 24), 1):
            entry = struct.unpack_from("<IBBHQQ", table, at)
            (index,) = struct.unpack_from("<H", indices, 2 * number)
            if entry[1] >> 4 not in BINDINGS:
                continue  # local: some linkers leave those of sections in
            if entry[3] == SHN_UNDEF:
                version, file = needed.get(index & 0x7FFF, ("", ""))
                imports.append(Import(self.string(entry[0]), version, file, entry[1] >> 4 == 2))
            elif entry[2] & 3 in (0, 3):  # default or protected: what others see
                exports.append(self.export(entry, index, defined))
        return Library(
            self.machine,
            self.string(tags[DT_SONAME]) if DT_SONAME in tags else "",
            tuple(self.string(value) for tag, value in pairs if tag == DT_NEEDED),
            tuple(Version(names[0], names[1:]) for index, names in defined.items() if index > BASE_VERSION),
            tuple(exports),
            tuple(imports),
        )

    def export(self, entry: tuple[int, ...], index: int, defined: dict[int, tuple[str, ...]]) -> Symbol:
        name, info, other, section, value, size = entry
        number = index & 0x7FFF
        if number > BASE_VERSION and number not in defined:
            raise self.window.damaged(f"symbol {self.string(name)}: version {number} is not defined")
        kind = KINDS.get(info & 15, "none")
        if kind == "none" and self.executable(value):
            kind = "function"
        return Symbol(
            self.string(name),
            defined[number][0] if number > BASE_VERSION else "",
            number <= BASE_VERSION or not index & HIDDEN_VERSION,
            kind,
            BINDINGS[info >> 4],
            other & 3 == 3,
            value,
            size,
            section == SHN_ABS,
        )

    def string(self, at: int) -> str:
        end = self.strings.find(b"\0", at)
        if at >= len(self.strings) or end < 0:
            raise self.window.damaged(f"a name at {at:#x} of {len(self.strings):#x} bytes of names, or without an end")
        return self.strings[at:end].decode(errors="surrogateescape")

    def count(self, tags: dict[int, int]) -> int:
        """How many symbols there are: no tag says it, the hash table that finds them does."""
        if DT_HASH in tags:
            (count,) = struct.unpack("<4xI", self.at(tags[DT_HASH], 8, "the hash table"))
        elif DT_GNU_HASH in tags:
            count = self.gnu_count(tags[DT_GNU_HASH])
        else:
            raise self.window.damaged("no hash table, so the number of symbols is unknown")
        if not 0 < count <= MAX_SYMBOLS:
            raise self.window.damaged(f"{count} symbols; expected 1 to {MAX_SYMBOLS}")
        return int(count)

    def gnu_count(self, address: int) -> int:
        """One more than the last symbol of the last chain; a chain ends where the lowest bit is set."""
        buckets, first, blooms, _ = struct.unpack("<IIII", self.at(address, 16, "the hash table"))
        if not 0 < buckets <= MAX_SYMBOLS or blooms > MAX_SYMBOLS:
            raise self.window.damaged(f"a hash table of {buckets} buckets and {blooms} filter words")
        start = address + 16 + 8 * blooms
        last = max(struct.unpack(f"<{buckets}I", self.at(start, 4 * buckets, "the hash buckets")))
        if last < first:
            return int(first)
        chain = start + 4 * buckets + 4 * (last - first)
        while last <= MAX_SYMBOLS:
            (value,) = struct.unpack("<I", self.at(chain, 4, "a hash chain"))
            last, chain = last + 1, chain + 4
            if value & 1:
                return int(last)
        raise self.window.damaged("a hash chain does not end")

    def definitions(self, tags: dict[int, int]) -> dict[int, tuple[str, ...]]:
        """Index to the names of a version and of its parents; the base version, the file's own name, has index 1."""
        found: dict[int, tuple[str, ...]] = {}
        at = tags.get(DT_VERDEF, 0)
        for _ in range(self.versions(tags, DT_VERDEFNUM) if at else 0):
            _, _, index, count, _, aux, onward = struct.unpack("<HHHHIII", self.at(at, 20, "a version definition"))
            names, place = [], at + aux
            for _ in range(count):
                name, step = struct.unpack("<II", self.at(place, 8, "a version's name"))
                names.append(self.string(name))
                place += step
            if not names or not 0 < index < 0x8000 or index in found:
                raise self.window.damaged(f"version definition {index}: without a name, or there twice")
            found[index] = tuple(names)
            at += onward
        return found

    def needs(self, tags: dict[int, int]) -> dict[int, tuple[str, str]]:
        """Index to (version, the soname of the file that has it)."""
        found: dict[int, tuple[str, str]] = {}
        at = tags.get(DT_VERNEED, 0)
        for _ in range(self.versions(tags, DT_VERNEEDNUM) if at else 0):
            _, count, file, aux, onward = struct.unpack("<HHIII", self.at(at, 16, "a version need"))
            place = at + aux
            for _ in range(count):
                _, _, index, name, step = struct.unpack("<IHHII", self.at(place, 16, "a needed version"))
                found[index & 0x7FFF] = (self.string(name), self.string(file))
                place += step
            at += onward
        return found

    def versions(self, tags: dict[int, int], tag: int) -> int:
        count = tags.get(tag, 0)
        if count > MAX_VERSIONS:
            raise self.window.damaged(f"{count} versions; expected at most {MAX_VERSIONS}")
        return count


def _notes(window: _Window, offset: int, size: int) -> Iterator[tuple[str, int, bytes]]:
    raw, at = window.read(offset, size, "a note segment", MAX_NOTE), 0
    while at + 12 <= len(raw):
        names, bytes_, kind = struct.unpack_from("<III", raw, at)
        start = at + 12 + -(-names // 4) * 4
        if start + bytes_ > len(raw):
            raise window.damaged(f"a note at {offset + at:#x} is longer than its segment")
        yield raw[at + 12 : at + 12 + names].rstrip(b"\0").decode(errors="replace"), kind, raw[start : start + bytes_]
        at = start + -(-bytes_ // 4) * 4
