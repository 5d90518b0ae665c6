"""The reader of dynamic symbols: what binutils see it sees, and damage ends in an error."""

from __future__ import annotations

import random
import struct
import subprocess
from pathlib import Path

import pytest

from builder.errors import BuilderError, ConfigError, IntegrityError
from builder.slim import symbols
from tests.libraries import build

SOURCE = """
int plain(void) { return 1; }
__attribute__((weak)) int weakly(void) { return 2; }
int table[6] = {1};
__thread long per_thread;
int one_v1(void) { return 11; }
int one_v2(void) { return 12; }
__asm__(".symver one_v1, one@V1");
__asm__(".symver one_v2, one@@V2");
extern int puts(const char *);
__attribute__((weak)) extern int nowhere(void);
int said(void) { return puts("x") + (nowhere ? nowhere() : 0); }
static int chosen_one(void) { return 5; }
static int (*pick(void))(void) { return chosen_one; }
int chosen(void) __attribute__((ifunc("pick")));
"""
VERSIONS = "V1 { global: plain; weakly; table; said; local: one_v*; }; V2 { global: per_thread; chosen; } V1;"


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("symbols"), "libsome.so.4", SOURCE, versions=VERSIONS)


def test_kinds_bindings_and_versions(library: Path) -> None:
    found = symbols.read(library)
    here = {one.text: (one.kind, one.bind, one.size) for one in found.exports if not one.absolute}
    assert (found.soname, found.needed[0][:7]) == ("libsome.so.4", "libc.so")
    assert [(one.name, one.parents) for one in found.versions] == [("V1", ()), ("V2", ("V1",))]
    assert {name: here[name][:2] for name in ("plain@@V1", "weakly@@V1", "one@V1", "one@@V2", "chosen@@V2")} == {
        "plain@@V1": ("function", "global"),
        "weakly@@V1": ("function", "weak"),
        "one@V1": ("function", "global"),
        "one@@V2": ("function", "global"),
        "chosen@@V2": ("ifunc", "global"),
    }
    assert here["table@@V1"] == ("object", "global", 24)
    assert here["per_thread@@V2"] == ("tls", "global", 8)
    assert not [name for name in here if name.startswith("one_v")]


def test_imports_name_their_version_and_its_file(library: Path) -> None:
    found = {one.name: one for one in symbols.read(library).imports}
    assert (found["puts"].version[:6], found["puts"].file) == ("GLIBC_", "libc.so.6")
    assert (found["nowhere"].version, found["nowhere"].file, found["nowhere"].weak) == ("", "", True)


@pytest.mark.parametrize("style", ["sysv", "gnu", "both"])
def test_the_same_with_either_hash_table(tmp_path: Path, library: Path, style: str) -> None:
    path = build(tmp_path, "libsome.so.4", SOURCE, f"-Wl,--hash-style={style}", versions=VERSIONS)
    assert {one.text for one in symbols.read(path).exports} == {one.text for one in symbols.read(library).exports}


def test_no_section_header_is_needed(tmp_path: Path, library: Path) -> None:
    body = bytearray(library.read_bytes())
    body[40:48], body[60:64] = bytes(8), bytes(4)  # e_shoff; e_shnum and e_shstrndx
    path = tmp_path / "bare.so"
    path.write_bytes(body)
    assert symbols.read(path) == symbols.read(library)


@pytest.mark.parametrize("name", ["libc.so.6", "libstdc++.so.6"])
def test_it_finds_what_nm_finds(name: str) -> None:
    """The C library has every kind: 37 versions, IFUNCs, TLS; the C++ one some 6000 symbols, unique ones among them."""
    listed = subprocess.run(["/sbin/ldconfig", "-p"], capture_output=True, text=True, check=True).stdout
    path = Path(
        next(line.split("=> ")[1] for line in listed.splitlines() if line.strip().startswith(f"{name} ") and "64" in line)
    )
    done = subprocess.run(["nm", "-D", "--defined-only", path], capture_output=True, text=True, check=True)
    wanted = {line.split()[-1] for line in done.stdout.splitlines()}
    assert len(wanted) > 2000
    assert {one.text for one in symbols.read(path).exports if not one.absolute} == {
        one for one in wanted if not one.startswith(("GLIBC", "CXXABI"))
    }


def changed(library: Path, folder: Path, at: int, value: bytes) -> Path:
    body = bytearray(library.read_bytes())
    body[at : at + len(value)] = value
    path = folder / library.name
    path.write_bytes(body)
    return path


@pytest.mark.parametrize(
    ("at", "value", "said"),
    [
        (0, b"MZ\0\0", "not an ELF file"),
        (4, b"\1", "expected a 64-bit little-endian file"),
        (5, b"\2", "expected a 64-bit little-endian file"),
        (16, struct.pack("<H", 2), "not a shared object"),
        (18, struct.pack("<H", 243), "ELF machine 243"),
    ],
)
def test_other_files_are_refused(library: Path, tmp_path: Path, at: int, value: bytes, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        symbols.read(changed(library, tmp_path, at, value))


@pytest.mark.parametrize(
    ("at", "value", "said"),
    [
        (32, struct.pack("<Q", 1 << 62), "beyond the file's end"),
        (54, struct.pack("<H", 55), "program headers of 55 bytes"),
        (56, struct.pack("<H", 0), "0 program headers"),
    ],
)
def test_damaged_headers_are_an_error(library: Path, tmp_path: Path, at: int, value: bytes, said: str) -> None:
    with pytest.raises(IntegrityError, match=said):
        symbols.read(changed(library, tmp_path, at, value))


def test_a_table_longer_than_its_segment_is_an_error(library: Path, tmp_path: Path) -> None:
    """Not longer than the file: what follows in the file is of another segment, and no name."""
    body = library.read_bytes()
    size = int(subprocess.run(["readelf", "-dW", library], capture_output=True, text=True, check=True).stdout
               .split("(STRSZ)")[1].split()[0])  # fmt: skip
    at = body.index(struct.pack("<QQ", symbols.DT_STRSZ, size)) + 8
    with pytest.raises(IntegrityError, match="of them in its segment"):
        symbols.read(changed(library, tmp_path, at, struct.pack("<Q", 0x2000)))


def test_a_truncated_file_is_an_error_at_every_length(library: Path, tmp_path: Path) -> None:
    body, path = library.read_bytes(), tmp_path / "short.so"
    whole = symbols.read(library)
    for size in [*range(0, 200, 7), *range(200, len(body), 501)]:
        path.write_bytes(body[:size])
        try:
            assert symbols.read(path) == whole  # what was cut off is no part of what is read
        except BuilderError:
            assert size < 0x4000


def test_damage_never_ends_in_anything_but_an_error(library: Path, tmp_path: Path) -> None:
    """Bytes of the tables that are read, replaced at random; the seed is fixed."""
    body, path, chance = library.read_bytes(), tmp_path / "damaged.so", random.Random(5)
    refused = 0
    for _ in range(600):
        copy = bytearray(body)
        for _ in range(chance.randrange(1, 5)):
            at = chance.choice([chance.randrange(64, 0x700), chance.randrange(0x2D00, min(0x3400, len(body)))])
            copy[at] = chance.choice([0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)])
        path.write_bytes(copy)
        try:
            symbols.read(path)
            list(symbols.notes(path))
        except BuilderError:
            refused += 1
    assert refused > 100
