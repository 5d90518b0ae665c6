"""The safetensors header: 8 bytes of length, JSON, then tensors without gap or overlap up to the end of the file.

Source: the safetensors README, section Format, and its reader safetensors/src/tensor.rs (0.6): header of at most
100 000 000 bytes, little endian, row major, `__metadata__` maps strings to strings. Refused here as there: a header longer
than the file, tensors that overlap, leave a hole or end elsewhere than the file does, duplicate names, sizes that
disagree with dtype and shape. A dtype this code does not know passes as raw bytes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from builder.errors import IntegrityError
from builder.format.manifest import Tensor, unique

MAX_HEADER_BYTES = 100_000_000
MAX_DIMS = 64  # no framework goes higher; a hostile shape must not make a number of a million digits
MAX_SHOWN = 1000  # characters of a stranger's names in one message
METADATA = "__metadata__"
# Bits per element; F4 and F6 are packed, so a tensor of them must fill whole bytes.
DTYPE_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64,
    "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip
_LFS = b"version https://git-lfs"

Read = Callable[[int, int], bytes]
"""read(offset, size): up to `size` bytes of the file from `offset`; fewer only at its end."""


@dataclass(frozen=True)
class Header:
    """size: bytes before the first tensor's data.  tensors: by offset, which counts from the start of the file."""

    size: int
    tensors: tuple[Tensor, ...]
    metadata: Mapping[str, str]


def parse(read: Read, size: int, *, path: str) -> Header:
    """The header of a file of `size` bytes; no tensor data is read.

    path: the file's name in messages.
    Raises IntegrityError that names the file, and the tensor and byte range where one is at fault.
    """
    length = _length(read, size, path)
    body = read(8, length)
    if len(body) != length:
        raise _bad(path, f"header ends after {len(body)} of {length} bytes", 8, 8 + length)
    raw = _json(path, body)
    metadata = raw.pop(METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise _bad(path, f"{METADATA} must map strings to strings", 8, 8 + length)
    tensors = sorted((_tensor(path, name, info, 8 + length) for name, info in raw.items()), key=lambda t: (t.offset, t.size))
    _contiguous(path, tensors, 8 + length, size)
    return Header(8 + length, tuple(tensors), metadata)


def _length(read: Read, size: int, path: str) -> int:
    start = read(0, min(64, size))
    if start.startswith(_LFS):
        what = f"{path}: is a Git LFS pointer, not the file itself"
        raise IntegrityError(what, hint="run `git lfs pull` in the model's folder", where={"file": path})
    if len(start) < 8:
        raise _bad(path, f"{size} bytes, expected at least the 8 of the header's length", 0, size)
    length = int.from_bytes(start[:8], "little")
    if length > MAX_HEADER_BYTES:
        raise _bad(path, f"header of {length} bytes, expected at most {MAX_HEADER_BYTES}", 0, 8)
    if 8 + length > size:
        raise _bad(path, f"header of {length} bytes is longer than the file, {size} bytes", 0, size)
    return length


def _json(path: str, body: bytes) -> dict[str, Any]:
    """The header's object. Other readers take UTF-8 that starts with "{", and no half of a surrogate pair."""
    if not body.startswith(b"{"):
        raise _bad(path, f"header starts with {body[:1]!r}, expected an object: {b'{'!r}", 8, 8 + len(body))
    try:
        raw: dict[str, Any] = json.loads(body.decode(), object_pairs_hook=unique)
        if b"\\u" in body:
            json.dumps(raw, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as exc:
        raise _bad(path, f"header is not JSON: {exc}", 8, 8 + len(body)) from exc
    return raw


def _tensor(path: str, name: str, info: Any, data: int) -> Tensor:
    try:
        dtype, shape, (start, end) = info["dtype"], info["shape"], info["data_offsets"]
    except (KeyError, TypeError, ValueError) as exc:
        raise _bad(path, f"tensor {name!r} lacks dtype, shape or data_offsets", tensor=name) from exc
    counts = isinstance(shape, list) and len(shape) <= MAX_DIMS and all(_count(n) for n in [*shape, start, end])
    if not counts or not isinstance(dtype, str):
        raise _bad(path, f"tensor {name!r}: dtype, shape or data_offsets of a wrong type", tensor=name)
    if end < start:
        raise _bad(path, f"tensor {name!r}: data_offsets [{start}, {end}) run backwards", data + start, data + end, name)
    bits = math.prod(shape) * DTYPE_BITS.get(dtype, 0)
    if dtype in DTYPE_BITS and bits != 8 * (end - start):
        need = f"{bits / 8:g}" if bits < 1 << 64 else "over 2^61"  # 64 axes make a number that no float holds
        what = f"tensor {name!r}: {dtype}{shape} takes {need} bytes, data_offsets give {end - start}"
        raise _bad(path, what, data + start, data + end, name)
    return Tensor(name, dtype, tuple(shape), data + start, end - start, row_bytes(end - start, shape))


def row_bytes(size: int, shape: list[int] | tuple[int, ...]) -> int:
    """Bytes per index of axis 0; the whole tensor where it has no axis or its bytes do not divide evenly."""
    return size // shape[0] if shape and shape[0] and size % shape[0] == 0 else size


def _contiguous(path: str, tensors: list[Tensor], at: int, size: int) -> None:
    last = ""
    for t in tensors:
        end = t.offset + t.size
        what = f"tensor {t.name!r}: bytes [{t.offset}, {end})"
        if end > size:
            raise _bad(path, f"{what} lie outside a file of {size}", t.offset, end, t.name)
        if t.offset < at:
            raise _bad(path, f"{what} overlap {last!r}, which ends at {at}", t.offset, at, t.name)
        if t.offset > at:
            raise _bad(path, f"{what} leave a hole before them, [{at}, {t.offset})", at, t.offset, t.name)
        at, last = end, t.name
    if at != size:
        raise _bad(path, f"bytes [{at}, {size}) after the last tensor belong to no tensor", at, size)


def _count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


def _bad(path: str, what: str, start: int | None = None, end: int | None = None, tensor: str = "") -> IntegrityError:
    return damaged(path, what, "safetensors", start, end, tensor)


def damaged(path: str, what: str, form: str, start: int | None, end: int | None, tensor: str) -> IntegrityError:
    """The refusal of a file. A name in it may be as long as the header: what is shown of it is not."""
    where: dict[str, Any] = {"file": path}
    if tensor:
        where["tensor"] = tensor[:MAX_SHOWN]
    if start is not None:
        where |= {"start": start, "end": end}
    shown = what if len(what) <= MAX_SHOWN else f"{what[:MAX_SHOWN]}..."
    return IntegrityError(f"{path}: {shown}", hint=f"get the file again; it is damaged or not {form}", where=where)
