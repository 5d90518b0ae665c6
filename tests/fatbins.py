"""Shared objects with GPU code inside, made by hand: small, loadable, and laid out as nvcc lays them out.

    .nv_fatbin        container, container, ...   each: 16-byte header, then entries
    .nvFatBinSegment  wrapper, wrapper, ...       each: magic, version, pointer to its container (a RELATIVE relocation), 0

An entry is a 64-byte header and a payload padded to 8 bytes. Read in libnccl.so.2 (nvidia-nccl-cu13 2.29.7) and vLLM 0.32.0.
`pointers` loads the result in a child and reads the containers through the pointers that the loader filled in.
"""

from __future__ import annotations

import ctypes
import random
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

Entry = tuple[str, bytes]
Container = list[Entry] | bytes  # bytes: as they are, for damaged ones

MAGIC, WRAPPER = 0xBA55ED50, 0x466243B1
PTX, CUBIN = 1, 2
SUFFIX = {"": 0, "a": 0x100000, "f": 0x200000}
EM_CUDA = 190
AFTER = 0x5EED1234  # a variable that lies behind the containers in the file: a shrink must not lose it

SOURCE = """
extern const unsigned char builder_containers[] __attribute__((visibility("hidden")));
struct wrapper { unsigned magic, version; const unsigned char *data; void *name; };
static const unsigned long offsets[] = { @OFFSETS@ };
#if @RELOCATIONS@
static struct wrapper wrappers[] __attribute__((used, section(".nvFatBinSegment"), aligned(8))) = { @WRAPPERS@ };
const void *container(int i) { return wrappers[i].data; }
#else
const void *container(int i) { return builder_containers + offsets[i]; }
#endif
int containers(void) { return @COUNT@; }
static volatile int written = @AFTER@;
static int cleared[4096];
int after(void) { cleared[17] += 1; return written + cleared[17] - 1; }
"""
ASSEMBLY = """
.section @SECTION@,"a",@progbits
.balign 16
.globl builder_containers
.hidden builder_containers
builder_containers:
.incbin "@BLOB@"
.section .note.GNU-stack,"",@progbits
"""
PROBE = """
import ctypes, json, sys
lib = ctypes.CDLL(sys.argv[1])
lib.container.restype = ctypes.c_void_p
out = []
for i in range(lib.containers()):
    at = lib.container(i)
    head = ctypes.string_at(at, 16)
    out.append((head + ctypes.string_at(at + 16, int.from_bytes(head[8:], "little"))).hex())
print(json.dumps([lib.after(), out]))
"""


def entry(chip: str, payload: bytes) -> bytes:
    """One entry. chip: "sm_90", "sm_90a", "compute_80" (PTX). Not compressed, as the file's own header says."""
    kind, number, suffix = re.fullmatch(r"(sm|compute)_(\d+)([af]?)", chip).groups()  # type: ignore[union-attr]
    padded = payload + bytes(-len(payload) % 8)
    flags = 0x11 | SUFFIX[suffix]  # 64-bit, made on Linux
    more = struct.pack("<IIQ", 72, 0, 0) if kind == "compute" else b""  # where ptxas's options lie: none
    head = struct.pack("<HHIQIIHHIIIQQQ", PTX if kind == "compute" else CUBIN, 0x101, 64 + len(more), len(padded), 0,
                       64 if more else 0, *((0, 9) if more else (1, 8)), int(number), 0, 0, flags, 0, 0)  # fmt: skip
    return head + more + padded


def container(entries: list[Entry], *, version: int = 1) -> bytes:
    body = b"".join(entry(chip, payload) for chip, payload in entries)
    return struct.pack("<IHHQ", MAGIC, version, 16, len(body)) + body


def cubin(chip: str, size: int = 4096, seed: int = 0) -> bytes:
    """An ELF file as long as `size` that says it is code for `chip`, with sections enough for cuobjdump; its body does not
    compress."""
    number = int(re.sub(r"\D", "", chip))
    names = b"\0.shstrtab\0".ljust(16, b"\0")
    body = random.Random(f"{chip} {seed}").randbytes(size - 64 - len(names) - 128)
    head = b"\x7fELF\x02\x01\x01\x41\x08" + bytes(7)
    flags = 0x6000000 | number << 8 | (4 if chip[-1] == "a" else 2)
    head += struct.pack("<HHIQQQIHHHHHH", 2, EM_CUDA, 1, 0, 0, size - 128, flags, 64, 56, 0, 64, 2, 1)
    return head + names + body + bytes(64) + struct.pack("<IIQQQQIIQQ", 1, 3, 0, 0, 64, len(names), 0, 0, 1, 0)


def ptx(chip: str, size: int = 2048) -> bytes:
    text = f".version 8.0\n.target {chip.replace('compute', 'sm')}\n.address_size 64\n"
    return (text + "// filler\n" * (size // 10))[: size - 1].encode() + b"\0"


def make(
    folder: Path, name: str, containers: list[Container], *, section: str = ".nv_fatbin", relocations: bool = True,
    debug: bool = False, flags: tuple[str, ...] = (),
) -> Path:  # fmt: skip
    """FOLDER/NAME, a shared object that holds `containers` in `section`.

    relocations: a pointer to each container, filled in by the loader, as cudart registers them; without: addressed from code,
    so that no container may move.  flags: more of gcc's.
    """
    offsets, blob = [], b""
    for one in containers:
        blob += bytes(-len(blob) % 8)
        offsets.append(len(blob))
        blob += one if isinstance(one, bytes) else container(one)
    folder = folder.absolute()
    build = folder / f".{name}.build"
    build.mkdir(parents=True)
    (build / "blob").write_bytes(blob)
    wrappers = [f"{{ {WRAPPER}u, 1, builder_containers + {offset}, 0 }}" for offset in offsets]
    words = {
        "OFFSETS": ", ".join(map(str, offsets)),
        "WRAPPERS": ", ".join(wrappers),
        "COUNT": str(len(offsets)),
        "AFTER": str(AFTER),
        "RELOCATIONS": str(int(relocations)),
        "SECTION": section,
        "BLOB": str(build / "blob"),
    }
    for file, text in (("code.c", SOURCE), ("blob.s", ASSEMBLY)):
        for word, value in words.items():
            text = text.replace(f"@{word}@", value)
        (build / file).write_text(text)
    command = ["gcc", "-shared", "-fPIC", "-O1", "-nostdlib", *(["-g"] if debug else []), *flags, "-o", str(folder / name)]
    done = subprocess.run([*command, "code.c", "blob.s"], cwd=build, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    shutil.rmtree(build)
    return folder / name


def pointers(path: Path) -> list[bytes]:
    """Every container, read through the library's own pointers in a child that loaded it."""
    import json

    done = subprocess.run([sys.executable, "-c", PROBE, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    after, found = json.loads(done.stdout)
    assert ctypes.c_uint(after).value == AFTER, f"data behind the containers is {after:#x}"
    return [bytes.fromhex(one) for one in found]
