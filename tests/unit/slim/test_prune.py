"""One shared object, made by hand (tests/fatbins.py), pruned: what stays, what moves, and what is left alone."""

from __future__ import annotations

import ctypes
import hashlib
import itertools
import os
import pickle
import struct
import subprocess
from pathlib import Path

import pytest
from backports import zstd
from elftools.elf.elffile import ELFFile

from builder.errors import CapabilityError, ConfigError
from builder.slim import chips, elf, layout, prune, shrink
from builder.slim.chips import Chip, Code
from tests import fatbins
from tests.fatbins import container, cubin, make, pointers, ptx

H100, A100 = Chip(9, 0), Chip(8, 0)
ALL = ("sm_75", "sm_80", "sm_86", "sm_90", "sm_90a", "sm_100", "compute_120")


def fat(seed: int = 0, names: tuple[str, ...] = ALL) -> list[tuple[str, bytes]]:
    return [(name, ptx(name) if name.startswith("compute") else cubin(name, seed=seed)) for name in names]


def only(entries: list[tuple[str, bytes]], *names: str) -> bytes:
    return container([one for one in entries if one[0] in names])


def parse(text: str) -> Code:
    kind = {"sm": "cubin", "compute": "ptx", "lto": "lto"}[text.split("_")[0]]
    number = text.split("_")[1]
    return Code(kind, int(number.rstrip("af")), number.lstrip("0123456789"))


@pytest.mark.parametrize(
    ("gpus", "codes", "kept"),
    [
        ("9.0", "sm_80 sm_90 sm_100", "sm_90"),
        ("9.0", "sm_80 sm_90 sm_90a compute_90", "sm_90 sm_90a"),
        ("9.0", "sm_80 compute_80", "compute_80"),
        ("9.0", "sm_80 compute_75 compute_80 compute_100", "compute_80"),
        ("9.0", "sm_80 sm_100", ""),
        ("8.0 9.0", "sm_75 sm_80 sm_86 sm_90 compute_90", "sm_80 sm_90"),
        ("8.6", "sm_80 sm_86 sm_89", "sm_86"),
        ("8.9", "sm_80 sm_86 sm_87", "sm_86"),
        ("8.7", "sm_80 sm_86 sm_87", "sm_87"),
        ("8.7", "sm_80 compute_80", "compute_80"),
        ("10.1", "sm_100 compute_100", "compute_100"),
        ("10.3", "sm_100 sm_100a sm_100f sm_103f", "sm_100 sm_103f"),
        ("12.1", "sm_120 sm_120f sm_121a", "sm_120 sm_120f sm_121a"),
        ("10.0", "compute_90a compute_80", "compute_80"),
        ("9.0", "lto_75 lto_100 sm_90", "lto_75 sm_90"),
        ("7.5", "sm_80 compute_80", ""),
    ],
)
def test_what_a_chip_can_select_stays(gpus: str, codes: str, kept: str) -> None:
    given = [parse(text) for text in codes.split()]
    stays = chips.keep(given, [Chip.parse(gpu) for gpu in gpus.split()])
    assert " ".join(str(code) for code, stay in zip(given, stays, strict=True) if stay) == kept


@pytest.mark.parametrize("text", ["", "9", "90", "sm_90", "9.0a", "9.00", "0.9", "x", "9.0\n"])
def test_no_capability(text: str) -> None:
    with pytest.raises(ConfigError, match="expected one such as"):
        Chip.parse(text)


@pytest.mark.parametrize("flags", [(), ("-Wl,-z,pack-relative-relocs",), ("-g",), ("-Wl,-z,max-page-size=65536",)], ids=str)
def test_containers_move_together_and_their_pointers_follow(tmp_path: Path, flags: tuple[str, ...]) -> None:
    many = [fat(seed) for seed in range(24)]
    path = make(tmp_path, "lib.so", many, flags=flags)
    result = prune.prune(path, tmp_path / "out.so", [H100])
    assert (result.status, result.unmoved, result.runs_on, result.jit) == ("pruned", "", ("9.0",), ())
    assert pointers(tmp_path / "out.so") == [only(one, "sm_90", "sm_90a") for one in many]
    size = (tmp_path / "out.so").stat().st_size
    assert size == result.size_after
    # 24 containers each lost four cubins of 4 KiB and some PTX; at most two of the widest pages stay free
    assert result.size_before - size > 24 * 4 * 4096 - (131072 if "65536" in str(flags) else 8192)
    payloads = [payload for one in many for name, payload in one if name in ("sm_90", "sm_90a")]
    assert [digest for _, digest in result.kept] == [hashlib.sha256(payload).hexdigest() for payload in payloads]
    sound(tmp_path / "out.so")


def sound(path: Path) -> None:
    """readelf finds nothing to complain about, and every section in memory is where a segment maps it."""
    done = subprocess.run(["readelf", "--all", "--wide", path], capture_output=True, text=True, check=True)
    assert "arning" not in done.stderr
    assert "rror" not in done.stderr
    with path.open("rb") as file:
        read = ELFFile(file)
        loads = [s for s in read.iter_segments() if s["p_type"] == "PT_LOAD"]
        for load, after in itertools.pairwise(loads):
            assert load["p_vaddr"] + load["p_memsz"] <= after["p_vaddr"]
        for load in loads:
            assert load["p_offset"] % load["p_align"] == load["p_vaddr"] % load["p_align"]
            assert load["p_offset"] + load["p_filesz"] <= path.stat().st_size
        for section in read.iter_sections():
            if section["sh_flags"] & 2 and section["sh_type"] != "SHT_NOBITS" and section["sh_size"]:
                assert any(
                    load["p_vaddr"] <= section["sh_addr"]
                    and section["sh_addr"] + section["sh_size"] <= load["p_vaddr"] + load["p_filesz"]
                    and section["sh_addr"] - section["sh_offset"] == load["p_vaddr"] - load["p_offset"]
                    for load in loads
                ), section.name


@pytest.mark.parametrize(
    ("section", "relocations", "why"),
    [(".nv_fatbin", False, "reached by no wrapper"), (".cask_resource", True, "no section .nv_fatbin")],
)
def test_where_they_cannot_move_they_shrink_in_place(tmp_path: Path, section: str, relocations: bool, why: str) -> None:
    many = [fat(seed) for seed in range(8)]
    path = make(tmp_path, "lib.so", many, section=section, relocations=relocations)
    result = prune.prune(path, tmp_path / "out.so", [A100])
    assert result.status == "pruned"
    assert why in result.unmoved
    assert result.size_after == result.size_before == (tmp_path / "out.so").stat().st_size
    assert pointers(tmp_path / "out.so") == [only(one, "sm_80") for one in many]
    assert result.zeroed > 8 * 5 * 4096
    assert (tmp_path / "out.so").stat().st_blocks * 512 < result.size_before - 8 * 4 * 4096
    sound(tmp_path / "out.so")


def test_a_first_container_without_a_pointer_stays_and_the_others_move(tmp_path: Path) -> None:
    """As in cuSPARSE: code takes the address of the first one, so its wrapper needs no relocation."""
    many = [fat(seed) for seed in range(6)]
    path = make(tmp_path, "lib.so", many)
    with path.open("rb") as file:
        rela = ELFFile(file).get_section_by_name(".rela.dyn")
        begin = ELFFile(file).get_section_by_name(".nv_fatbin")["sh_addr"]
        rows = {row["r_addend"]: rela["sh_offset"] + 24 * i for i, row in enumerate(rela.iter_relocations())}
    for addend, moves in ((begin, True), (max(rows), False)):
        changed = bytearray(path.read_bytes())
        struct.pack_into("<QQ", changed, rows[addend], 0, 0)  # R_X86_64_NONE
        (tmp_path / "one.so").write_bytes(changed)
        result = prune.prune(tmp_path / "one.so", None, [H100])
        assert (result.unmoved == "") == moves, result.unmoved
        assert (result.size_after < result.size_before) == moves


def test_a_symbol_that_others_can_name_holds_the_containers_where_they_are(tmp_path: Path) -> None:
    path = make(tmp_path, "lib.so", [fat(), fat(1)])
    one = path.read_bytes()
    with path.open("rb") as file:
        section = ELFFile(file).get_section_by_name(".nv_fatbin")
        number = next(i for i, s in enumerate(ELFFile(file).iter_sections()) if s.name == ".nv_fatbin")
        at = ELFFile(file).get_section_by_name(".dynsym")["sh_offset"] + 24
        assert section["sh_size"]
    changed = bytearray(one)
    struct.pack_into("<HQ", changed, at + 6, number, section["sh_addr"])  # the loader's first name is the first container
    path.write_bytes(changed)
    assert "the loader knows a symbol" in prune.prune(path, None, [H100]).unmoved


@pytest.mark.parametrize(("section", "kind"), [(".nv_fatbin", 8), (".nv_fatbin", 1), (".cask_resource", 8)])
def test_a_pointer_into_the_middle_of_what_would_change_leaves_the_file(tmp_path: Path, section: str, kind: int) -> None:
    """Whoever follows it knows more of the bytes than we do. kind: R_X86_64_RELATIVE, or R_X86_64_64 without a symbol."""
    path = make(tmp_path, "lib.so", [fat(seed) for seed in range(4)], section=section)
    changed = bytearray(path.read_bytes())
    with path.open("rb") as file:
        rela = ELFFile(file).get_section_by_name(".rela.dyn")
        begin = ELFFile(file).get_section_by_name(section)["sh_addr"]
        rows = {row["r_addend"]: rela["sh_offset"] + 24 * i for i, row in enumerate(rela.iter_relocations())}
    struct.pack_into("<QQ", changed, rows[begin] + 8, kind, begin + 16 + 64)
    path.write_bytes(changed)
    result = prune.prune(path, tmp_path / "out.so", [H100])
    assert (result.status, result.error) == ("left", "pointer"), result
    assert path.read_bytes() == changed
    assert not (tmp_path / "out.so").exists()


def test_a_pointer_of_another_kind_holds_the_containers_where_they_are(tmp_path: Path) -> None:
    path = make(tmp_path, "lib.so", [fat(seed) for seed in range(4)])
    changed = bytearray(path.read_bytes())
    with path.open("rb") as file:
        rela = ELFFile(file).get_section_by_name(".rela.dyn")
        begin = ELFFile(file).get_section_by_name(".nv_fatbin")["sh_addr"]
        row = next(rela["sh_offset"] + 24 * i for i, row in enumerate(rela.iter_relocations()) if row["r_addend"] == begin)
    struct.pack_into("<Q", changed, row + 8, 1)  # R_X86_64_64 of no symbol: the addend all the same
    path.write_bytes(changed)
    result = prune.prune(path, tmp_path / "out.so", [H100])
    assert "is in no wrapper" in result.unmoved
    assert result.size_after == result.size_before


@pytest.mark.parametrize("by", [64, 0])
def test_a_pointer_that_does_not_follow_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: int) -> None:
    path = make(tmp_path, "lib.so", [fat(seed) for seed in range(4)])
    right = shrink._pointers

    def wrong(*args):  # type: ignore[no-untyped-def]
        found = list(right(*args))
        return ((field, struct.pack("<Q", struct.unpack("<Q", word)[0] + by)) for field, word in found if by)

    monkeypatch.setattr(shrink, "_pointers", wrong)
    with pytest.raises(layout.Mismatch):
        prune.prune(path, tmp_path / "out.so", [H100])


def test_packed_relocations_that_mark_nothing_leave_the_file(tmp_path: Path) -> None:
    path = make(tmp_path, "lib.so", [fat()], flags=("-Wl,-z,pack-relative-relocs",))
    changed = bytearray(path.read_bytes())
    with path.open("rb") as file:
        struct.pack_into("<Q", changed, ELFFile(file).get_section_by_name(".relr.dyn")["sh_offset"], 1 << 40)
    path.write_bytes(changed)
    assert prune.prune(path, tmp_path / "out.so", [H100]).error == "relocation"


def test_sections_that_share_bytes_leave_the_file(tmp_path: Path) -> None:
    path = make(tmp_path, "lib.so", [fat(), fat(1)])
    changed = bytearray(path.read_bytes())
    with path.open("rb") as file:
        read = ELFFile(file)
        fatbin = read.get_section_by_name(".nv_fatbin")
        number = next(i for i, one in enumerate(read.iter_sections()) if one.name == ".comment")
        row = read["e_shoff"] + 64 * number
        struct.pack_into("<QQ", changed, row + 24, fatbin["sh_offset"] + 64, 100)
    path.write_bytes(changed)
    result = prune.prune(path, tmp_path / "out.so", [H100])
    assert (result.status, result.error) == ("left", "header")
    assert "share bytes" in result.reason


def test_a_fault_passes_from_process_to_process() -> None:
    again = pickle.loads(pickle.dumps(elf.Unfit("version", "why")))
    assert (again.error, again.reason) == ("version", "why")


def test_another_version_outside_the_usual_section(tmp_path: Path) -> None:
    later = container(fat(), version=2)
    for number, blobs in enumerate(([later], [container(fat()), later])):
        path = make(tmp_path, f"{number}.so", blobs, section=".cask_resource")
        result = prune.prune(path, tmp_path / "out.so", [H100])
        assert (result.status, result.error) == ("left", "version"), number
    path = make(tmp_path, "no.so", [later[:4] + b"\0\0\0\0" + later[8:], container(fat())], section=".cask_resource")
    assert prune.prune(path, None, [H100]).status == "pruned"  # four bytes that are no container


def test_without_libzstd_nothing_is_guessed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make(tmp_path, "lib.so", [zstd.compress(cubin("sm_80"))], section=".ldata")

    def none(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", none)
    with pytest.raises(CapabilityError, match="libzstd"):
        prune.prune(path, tmp_path / "out.so", [H100])
    assert prune.prune(make(tmp_path, "other.so", [fat()]), None, [H100]).status == "pruned"  # which has none


def test_on_aarch64(tmp_path: Path) -> None:
    """The same file with the other machine's numbers: nothing here can link or load a real one."""
    path = make(tmp_path, "lib.so", [fat(seed) for seed in range(4)])
    changed = bytearray(path.read_bytes())
    with path.open("rb") as file:
        rela = ELFFile(file).get_section_by_name(".rela.dyn")
        for at in range(rela["sh_offset"], rela["sh_offset"] + rela["sh_size"], 24):
            if struct.unpack_from("<I", changed, at + 8)[0] == 8:
                struct.pack_into("<I", changed, at + 8, 1027)  # R_AARCH64_RELATIVE
    struct.pack_into("<H", changed, 18, 183)
    path.write_bytes(changed)
    result = prune.prune(path, tmp_path / "out.so", [H100])
    assert (result.status, result.unmoved) == ("pruned", "")
    assert result.size_after < result.size_before - 4 * 3 * 4096


def test_ptx_that_will_be_compiled_is_named(tmp_path: Path) -> None:
    path = make(tmp_path, "lib.so", [fat(names=("sm_80", "compute_80")), fat(names=("sm_80", "sm_90"))])
    result = prune.prune(path, None, [H100, A100])
    assert result.jit == ("compute_80",)
    assert result.runs_on == ("9.0", "8.0")
    assert result.after is not None
    assert set(result.after) == {"sm_80", "sm_90", "compute_80"}


def test_cubins_outside_containers(tmp_path: Path) -> None:
    frames = [zstd.compress(cubin(name, seed=i)) for i, name in enumerate(("sm_80", "sm_90", "sm_90", "sm_120"))]
    other = zstd.compress(b"no cubin" * 100)
    blob = b"".join(part + bytes(-len(part) % 8) for part in (*frames, other))
    path = make(tmp_path, "lib.so", [blob], section=".ldata")
    result = prune.prune(path, tmp_path / "out.so", [H100])
    assert result.before is not None
    assert result.before.keys() == {"sm_80 (loose)", "sm_90 (loose)", "sm_120 (loose)"}
    assert result.after == {"sm_90 (loose)": len(frames[1]) + len(frames[2])}
    made = (tmp_path / "out.so").read_bytes()
    assert [frame in made for frame in (*frames, other)] == [False, True, True, False, True]
    assert len(made) == path.stat().st_size


@pytest.mark.parametrize("relocations", [True, False])
def test_twice_changes_nothing(tmp_path: Path, relocations: bool) -> None:
    path = make(tmp_path, "lib.so", [fat(seed) for seed in range(4)], relocations=relocations)
    prune.prune(path, tmp_path / "out.so", [H100])
    again = prune.prune(tmp_path / "out.so", tmp_path / "third.so", [H100])
    assert again.status == "nothing-to-drop"
    assert not (tmp_path / "third.so").exists()


def test_a_dry_run_says_what_a_run_does(tmp_path: Path) -> None:
    path = make(tmp_path, "lib.so", [fat(seed) for seed in range(4)])
    dry = prune.prune(path, None, [H100])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["lib.so"]
    assert dry == prune.prune(path, tmp_path / "out.so", [H100])


def test_a_library_without_gpu_code(tmp_path: Path) -> None:
    assert prune.prune(Path("/bin/sh").resolve(), tmp_path / "out", [H100]).status == "no-gpu-code"


GOOD = container(fat())


@pytest.mark.parametrize(
    ("blob", "error", "says"),
    [
        (GOOD[:8] + struct.pack("<Q", len(GOOD)) + GOOD[16:], "container", "overruns its section"),
        (GOOD[:8] + struct.pack("<Q", len(GOOD) - 24) + GOOD[16:], "container", "claims a header of"),
        (GOOD[:4] + struct.pack("<H", 2) + GOOD[6:], "version", "a container of version 2"),
        (GOOD[:16] + struct.pack("<H", 64) + GOOD[18:], "version", "is of kind 64"),
        (GOOD[:20] + struct.pack("<I", 8) + GOOD[24:], "container", "claims a header of 8"),
        (GOOD[:24] + struct.pack("<Q", 1 << 62) + GOOD[32:], "container", "claims a header of 64 and a payload of"),
        (GOOD[:44] + struct.pack("<I", 0) + GOOD[48:], "container", "claims code for sm_0"),
        (GOOD + b"not GPU code", "container", "neither a container nor padding"),
        (fatbins.container(fat(names=("sm_80", "sm_120"))), "nothing-left", "none that 9.0 could use"),
    ],
)
def test_what_is_not_understood_is_left(tmp_path: Path, blob: bytes, error: str, says: str) -> None:
    path = make(tmp_path, "lib.so", [blob])
    before = path.read_bytes()
    result = prune.prune(path, tmp_path / "out.so", [H100])
    assert (result.status, result.error) == ("left", error)
    assert says in result.reason
    assert not (tmp_path / "out.so").exists()
    assert path.read_bytes() == before


def cut(body: bytes) -> bytes:
    return body[: len(body) // 2]


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda body: b"#!/bin/sh\n" + body, "not-elf"),
        (lambda body: body[:40], "truncated"),
        (lambda body: b"x", "not-elf"),
        (cut, "truncated"),
        (lambda body: body[:4] + b"\x01" + body[5:], "class"),
        (lambda body: body[:5] + b"\x02" + body[6:], "byte-order"),
        (lambda body: body[:18] + struct.pack("<H", 21) + body[20:], "machine"),
        (lambda body: body[:52] + struct.pack("<H", 52) + body[54:], "header"),
        (lambda body: body[:40] + struct.pack("<Q", 1 << 63) + body[48:], "truncated"),
        (lambda body: body[: 64 + 48] + struct.pack("<Q", 0x238) + body[64 + 56 :], "header"),  # the first segment's alignment
    ],
)
def test_a_file_that_is_no_library_of_ours(tmp_path: Path, change, error: str) -> None:  # type: ignore[no-untyped-def]
    path = make(tmp_path, "lib.so", [fat()])
    path.write_bytes(change(path.read_bytes()))
    result = prune.prune(path, tmp_path / "out.so", [H100])
    assert (result.status, result.error) == ("left", error)
    assert result.reason
    assert not (tmp_path / "out.so").exists()


def test_a_result_that_is_not_what_it_should_be_does_not_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make(tmp_path, "lib.so", [fat(seed) for seed in range(4)])
    write = layout.Layout.write

    def spoiled(self: layout.Layout, source, descriptor: int) -> None:  # type: ignore[no-untyped-def]
        write(self, source, descriptor)
        layout.put(descriptor, b"\xff", self.size - 100)

    monkeypatch.setattr(layout.Layout, "write", spoiled)
    with pytest.raises(layout.Mismatch):
        prune.prune(path, tmp_path / "out.so", [H100])
    assert not (tmp_path / "out.so").exists()


def test_a_kept_cubin_that_changed_is_noticed_by_its_digest_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make(tmp_path, "lib.so", [fat(seed) for seed in range(4)])
    write = layout.Layout.write

    def spoiled(self: layout.Layout, source, descriptor: int) -> None:  # type: ignore[no-untyped-def]
        write(self, source, descriptor)
        body = os.pread(descriptor, self.size, 0)
        layout.put(descriptor, b"\xff\x00\xff", body.index(cubin("sm_90", seed=2)) + 2000)

    monkeypatch.setattr(layout.Layout, "write", spoiled)
    monkeypatch.setattr(layout.Layout, "compare", lambda *_: None)
    with pytest.raises(layout.Mismatch, match="another sha256"):
        prune.prune(path, tmp_path / "out.so", [H100])


def test_a_target_that_is_there_stays(tmp_path: Path) -> None:
    path = make(tmp_path, "lib.so", [fat()])
    (tmp_path / "out.so").write_text("mine")
    with pytest.raises(FileExistsError):
        prune.prune(path, tmp_path / "out.so", [A100])
    assert (tmp_path / "out.so").read_text() == "mine"
