"""Compressed cubins outside containers: cuBLASLt keeps some in .ldata, each a zstd frame of its own.

Rule: a frame that decompresses to a cubin for a chip that no target can run is zeroed where it stands; every other byte of
the section stays. Nothing else says which of these a library would choose, so whatever a target could run is kept. Only
frames are counted that are whole, begin at a multiple of 8 in a section whose name says data, and hold an ELF file for CUDA.
They are read with libzstd.so.1, which Debian's dpkg needs too; without it a file that has such frames is not touched, so that
the result is the same on every machine.
"""

from __future__ import annotations

import ctypes
import functools
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from builder.errors import CapabilityError
from builder.slim.chips import Code
from builder.slim.elf import SHF_EXECINSTR, SHT_PROGBITS, Section, Source

FRAME = b"\x28\xb5\x2f\xfd"
SECTIONS = (".ldata", ".lrodata")
EM_CUDA = 190
HEAD = 64
MOST = 64 << 20  # bytes of one frame
STEP = 4 << 20


@dataclass(frozen=True)
class Loose:
    """offset, size: the whole zstd frame in the file."""

    section: Section
    code: Code
    offset: int
    size: int


Decoder = Callable[[bytes], "tuple[int, bytes] | None"]
"""The size of the frame that a block begins with and the first bytes that it holds; None if it is none."""


def decoder() -> Decoder:
    """libzstd by way of ctypes: the frame's size and a partial result are needed, and no Python binding gives the first.

    Raises CapabilityError without it.
    """
    try:
        zstd = ctypes.CDLL("libzstd.so.1")
    except OSError as exc:
        raise CapabilityError(
            "libzstd.so.1: not here; cubins outside containers are zstd frames", hint="install Debian's libzstd1"
        ) from exc
    size_t, pointer = ctypes.c_size_t, ctypes.c_void_p
    zstd.ZSTD_findFrameCompressedSize.restype, zstd.ZSTD_findFrameCompressedSize.argtypes = size_t, [pointer, size_t]
    zstd.ZSTD_createDStream.restype = pointer
    zstd.ZSTD_freeDStream.argtypes = [pointer]
    zstd.ZSTD_decompressStream.restype, zstd.ZSTD_decompressStream.argtypes = size_t, [pointer, pointer, pointer]

    class Buffer(ctypes.Structure):
        _fields_ = (("data", pointer), ("size", size_t), ("at", size_t))

    def decode(block: bytes) -> tuple[int, bytes] | None:
        size = zstd.ZSTD_findFrameCompressedSize(block, len(block))
        if size > len(block):  # an error code, or more than there is
            return None
        stream, out = zstd.ZSTD_createDStream(), ctypes.create_string_buffer(HEAD)
        given = Buffer(ctypes.cast(ctypes.c_char_p(block), pointer), size, 0)
        taken = Buffer(ctypes.cast(out, pointer), HEAD, 0)
        try:
            while taken.at < HEAD and given.at < size:
                before = taken.at, given.at
                left = zstd.ZSTD_decompressStream(stream, ctypes.byref(taken), ctypes.byref(given))
                if left > 1 << 60 or (taken.at, given.at) == before:
                    return None
        finally:
            zstd.ZSTD_freeDStream(stream)
        return size, out.raw[: taken.at]

    return decode


def cubins(source: Source, sections: tuple[Section, ...], taken: Sequence[tuple[int, int]]) -> list[Loose]:
    """All of them, in file order. taken: sorted ranges of the file that containers hold. Raises CapabilityError as decoder."""
    found: list[Loose] = []
    decode = functools.cache(decoder)
    for section in sections:
        if section.name in SECTIONS and section.kind == SHT_PROGBITS and not section.flags & SHF_EXECINSTR:
            at = section.offset
            for begin, end in [*(one for one in taken if at <= one[0] < section.end), (section.end, section.end)]:
                found += _between(source, section, at, begin, decode)
                at = end
    return found


def _between(source: Source, section: Section, at: int, end: int, decode: Callable[[], Decoder]) -> Iterator[Loose]:
    """The frames from `at` on that end before `end`."""
    while at < end:
        block = source.read(at, min(STEP, end - at))
        hit = block.find(FRAME)
        while hit >= 0 and (at + hit) % 8:
            hit = block.find(FRAME, hit + 1)
        if hit < 0:
            at += max(len(block) - len(FRAME) + 1, 1)
            continue
        begin = at + hit
        one = _cubin(source, section, begin, end, decode)
        if one:
            yield one
        at = begin + (one.size if one else 8)


def _cubin(source: Source, section: Section, offset: int, end: int, decode: Callable[[], Decoder]) -> Loose | None:
    """Frames are small; the block doubles until one is whole."""
    size = 1 << 20
    while True:
        size = min(size, end - offset)
        held = decode()(source.read(offset, size))
        if held or size >= min(MOST, end - offset):
            break
        size *= 4
    code = code_of(held[1]) if held else None
    return Loose(section, code, offset, held[0]) if held and code else None


def code_of(head: bytes) -> Code | None:
    """What an uncompressed cubin was compiled for, by the first 64 bytes of it; None if it is no cubin.

    The chip is in e_flags: bits 8 to 15 from ABI version 8 on (CUDA 12.9 and later), bits 0 to 7 before.
    """
    if len(head) < HEAD or head[:6] != b"\x7fELF\x02\x01" or struct.unpack_from("<H", head, 18)[0] != EM_CUDA:
        return None
    (flags,) = struct.unpack_from("<I", head, 48)
    sm = flags >> 8 & 0xFF if head[8] >= 8 else flags & 0xFF
    return Code("cubin", sm) if 10 <= sm <= 255 else None
