"""The GGUF header: magic, version, metadata, tensor table; then, aligned, the tensors' data.

Source: docs/gguf.md of ggml (versions 2 and 3; strings are 64-bit length and bytes; data starts at the next multiple of
`general.alignment`, 32 unless given; each tensor's offset counts from there and is aligned too), ggml/src/gguf.cpp (a
tensor starts where the one before ends, padded), and GGML_QUANT_SIZES of gguf-py for bytes per block. Dimensions are
stored fastest first; `Tensor.shape` here is row major, like safetensors, so that axis 0 is the row.

The input may be hostile: every count and length is checked against the bytes that are left before it is used.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import Any

from builder.errors import IntegrityError
from builder.format.manifest import Tensor
from builder.format.safetensors import Read, damaged, row_bytes

MAGIC = b"GGUF"
VERSIONS = (2, 3)
ALIGNMENT = "general.alignment"
DEFAULT_ALIGNMENT = 32
MAX_DIMS = 4  # GGML_MAX_DIMS
MAX_NAME = 1 << 16
# Of all metadata and the tensor table; a vocabulary takes 10 MB, a tokenizer.json as one string 20 MB. It bounds the time
# and the memory that a hostile header may cost, as the limit of safetensors does there.
MAX_HEADER_BYTES = 128 << 20
MAX_STRING = MAX_HEADER_BYTES
MAX_DEPTH = 8  # arrays of arrays; the format allows them, no writer makes more than one level
KEEP_ARRAY = 64  # longer arrays (vocabularies) are passed over, not kept
_WINDOW = 1 << 20

# ggml type -> (name, elements per block, bytes per block)
TYPES: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 40), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8), 28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56), 30: ("BF16", 1, 2), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17), 40: ("NVFP4", 64, 36), 41: ("Q1_0", 128, 18),
}  # fmt: skip
_UINT32, _STRING, _ARRAY = 4, 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}

Entry = tuple[str, tuple[int, ...], int, int]
"""name, row-major shape, ggml type, offset from the start of the data."""


@dataclass(frozen=True)
class Header:
    """size: bytes before the first tensor's data, padding included.  tensors: by offset from the start of the file.

    metadata: keys with their values; an array longer than KEEP_ARRAY is the number of its elements instead.
    """

    size: int
    tensors: tuple[Tensor, ...]
    metadata: dict[str, Any]
    version: int
    alignment: int


def parse(read: Read, size: int, *, path: str) -> Header:
    """The header of a file of `size` bytes; no tensor data is read. path: the file's name in messages.

    Raises IntegrityError that names the file, and the tensor and byte range where one is at fault.
    """
    cursor = _Cursor(read, size, path)
    version = _version(cursor)
    tensor_count, pairs = cursor.number("Q"), cursor.number("Q")
    # 24 and 13 bytes are the least that one tensor and one pair take: a larger count cannot be true.
    if tensor_count * 24 + pairs * 13 > cursor.end:
        raise cursor.bad(f"{tensor_count} tensors and {pairs} metadata pairs do not fit in {cursor.end} bytes", 8, 24)
    metadata = _metadata(cursor, pairs)
    alignment = metadata.get(ALIGNMENT, DEFAULT_ALIGNMENT)
    if alignment < 1 or alignment & (alignment - 1) or alignment > 1 << 20:
        raise cursor.bad(f"{ALIGNMENT} is {alignment}, expected a power of two")
    table = [_entry(cursor) for _ in range(tensor_count)]
    seen: set[str] = set()
    for name, *_ in table:
        if name in seen:
            raise cursor.bad(f"tensor {name!r} occurs twice", tensor=name)
        seen.add(name)
    data = min(_pad(cursor.at, alignment), size) if not table else _pad(cursor.at, alignment)
    return Header(data, _place(cursor, table, data, alignment), metadata, version, alignment)


class _Cursor:
    """Reads forward through the header with a small window; never past the file's end."""

    def __init__(self, read: Read, size: int, path: str) -> None:
        self.read, self.size, self.path = read, size, path
        self.end = min(size, MAX_HEADER_BYTES)
        self.at = 0
        self.order = "<"
        self.window, self.start = b"", 0

    def take(self, count: int) -> bytes:
        if count > self.end - self.at:
            raise self._past(count)
        if self.at + count > self.start + len(self.window):
            self.start, self.window = self.at, self.read(self.at, max(count, min(_WINDOW, self.size - self.at)))
            if len(self.window) < count:
                raise self.bad(f"file ends at byte {self.at + len(self.window)} of {self.size}", self.at, self.size)
        lo = self.at - self.start
        self.at += count
        return self.window[lo : lo + count]

    def skip(self, count: int) -> None:
        if count > self.end - self.at:
            raise self._past(count)
        self.at += count
        if self.at > self.start + len(self.window):
            self.window, self.start = b"", self.at

    def _past(self, count: int) -> IntegrityError:
        if count > self.size - self.at:
            return self.bad(f"header runs past the end: {count} bytes asked at {self.at}", self.at, self.size)
        return self.bad(f"header of more than {self.end} bytes: {count} more asked at {self.at}", self.at, self.size)

    def number(self, code: str) -> Any:
        form = self.order + code
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def string(self, limit: int = MAX_STRING) -> str:
        length = self.number("Q")
        if length > limit:
            raise self.bad(f"string of {length} bytes, expected at most {limit}", self.at - 8, self.at)
        return self.take(length).decode("utf-8", "replace")

    def bad(self, what: str, start: int | None = None, end: int | None = None, *, tensor: str = "") -> IntegrityError:
        return damaged(self.path, what, "GGUF", start, end, tensor)


def _version(cursor: _Cursor) -> int:
    if (magic := cursor.take(4)) != MAGIC:
        raise cursor.bad(f"starts with {magic!r}, expected {MAGIC!r}", 0, 4)
    raw = cursor.take(4)
    version = int.from_bytes(raw, "little")
    if version & 0xFFFF == 0:  # big-endian file: gguf.md, "if the version looks byte-swapped"
        version, cursor.order = int.from_bytes(raw, "big"), ">"
    if version not in VERSIONS:
        raise cursor.bad(f"GGUF version {version}, expected 2 or 3", 4, 8)
    return version


def _metadata(cursor: _Cursor, pairs: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for _ in range(pairs):
        key = cursor.string(MAX_NAME)
        if key in found:
            raise cursor.bad(f"metadata key {key!r} occurs twice")
        kind = cursor.number("I")
        if key == ALIGNMENT and kind != _UINT32:
            raise cursor.bad(f"{key} has value type {kind}, expected {_UINT32}")
        found[key] = _value(cursor, kind, key, 0)
    return found


def _value(cursor: _Cursor, kind: int, key: str, depth: int) -> Any:
    if kind in _SCALARS:
        return cursor.number(_SCALARS[kind])
    if kind == _STRING:
        return cursor.string()
    if kind != _ARRAY or depth >= MAX_DEPTH:
        raise cursor.bad(f"metadata {key!r} has value type {kind} at depth {depth}")
    inner, count = cursor.number("I"), cursor.number("Q")
    width = struct.calcsize("<" + _SCALARS[inner]) if inner in _SCALARS else 8
    if count * width > cursor.size - cursor.at:
        raise cursor.bad(f"metadata {key!r}: array of {count} elements runs past the end", cursor.at, cursor.size)
    if count <= KEEP_ARRAY:
        return [_value(cursor, inner, key, depth + 1) for _ in range(count)]
    if inner in _SCALARS:
        cursor.skip(count * width)
    else:
        for _ in range(count):
            _pass(cursor, inner, key, depth + 1)
    return count


def _pass(cursor: _Cursor, kind: int, key: str, depth: int) -> None:
    if kind == _STRING:
        cursor.skip(cursor.number("Q"))
    else:
        _value(cursor, kind, key, depth)


def _entry(cursor: _Cursor) -> Entry:
    name = cursor.string(MAX_NAME)
    dims = cursor.number("I")
    if dims > MAX_DIMS:
        raise cursor.bad(f"tensor {name!r} has {dims} dimensions, expected at most {MAX_DIMS}", tensor=name)
    shape = tuple(cursor.number("Q") for _ in range(dims))[::-1]
    if any(n >= 1 << 63 for n in shape):
        raise cursor.bad(f"tensor {name!r} has shape {shape}, expected signed 64-bit numbers", tensor=name)
    return name, shape, cursor.number("I"), cursor.number("Q")


def _place(cursor: _Cursor, table: list[Entry], data: int, alignment: int) -> tuple[Tensor, ...]:
    """The tensors by offset; each starts where the one before ends, padded."""
    table = sorted(table, key=lambda entry: entry[3])
    placed: list[Tensor] = []
    at = data
    for i, (name, shape, kind, offset) in enumerate(table):
        start = data + offset
        if offset % alignment:  # after a tensor of an unknown type, nothing else says where this one starts
            raise cursor.bad(f"tensor {name!r} starts at byte {start}, which is not aligned to {alignment}", tensor=name)
        if start != at:
            fault = "overlaps the tensor before it" if start < at else "leaves a hole before it"
            what = f"tensor {name!r} starts at byte {start} and {fault}; expected {at}"
            raise cursor.bad(what, min(at, start), max(at, start), tensor=name)
        following = data + table[i + 1][3] if i + 1 < len(table) else cursor.size
        size = _bytes(cursor, name, shape, kind, following - start)
        if start + size > cursor.size:
            what = f"tensor {name!r}: bytes [{start}, {start + size}) lie outside a file of {cursor.size}"
            raise cursor.bad(what, start, start + size, tensor=name)
        dtype = TYPES[kind][0] if kind in TYPES else f"ggml-{kind}"
        placed.append(Tensor(name, dtype, shape, start, size, row_bytes(size, shape)))
        at = _pad(start + size, alignment) if kind in TYPES else following
    return tuple(placed)


def _bytes(cursor: _Cursor, name: str, shape: tuple[int, ...], kind: int, room: int) -> int:
    """Bytes of a tensor. An unknown type takes all the room up to the next one, and passes as raw bytes."""
    if kind not in TYPES:
        return max(0, room)
    _, block, width = TYPES[kind]
    elements = math.prod(shape)
    if shape and shape[-1] % block:
        raise cursor.bad(f"tensor {name!r}: rows of {shape[-1]} elements are not whole blocks of {block}", tensor=name)
    return elements // block * width


def _pad(offset: int, alignment: int) -> int:
    return (offset + alignment - 1) // alignment * alignment
