"""What is wrong with which bytes: one record per fault, and one error for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from builder.errors import BuilderError, CapabilityError, IntegrityError, RemoteError, printable
from builder.format.manifest import Chunk, File

SHOWN_FAULTS = 20
SHOWN_TENSORS = 4


@dataclass(frozen=True)
class Fault:
    """Bytes that are not what they should be, or did not come.

    object: the store key of the chunk, "" where none is concerned.  path: the model's file.
    tensors: those with a byte in [start, end), which counts from the start of the file.
    expected, found: digests, sizes, or a few words.
    """

    object: str
    path: str
    tensors: tuple[str, ...]
    start: int
    end: int
    expected: str
    found: str

    def __str__(self) -> str:
        parts = [self.path or "-"]
        if self.tensors:
            more = len(self.tensors) - SHOWN_TENSORS
            parts.append("tensors " + ", ".join(self.tensors[:SHOWN_TENSORS]) + (f" and {more} more" if more > 0 else ""))
        if self.end > self.start:
            parts.append(f"bytes [{self.start}, {self.end})")
        if self.object:
            parts.append(self.object)
        return printable(f"{', '.join(parts)}: expected {self.expected}, found {self.found}")

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def chunk_fault(file: File, chunk: Chunk, found: str, expected: str = "") -> Fault:
    """expected: "" for the chunk's CRC64NVME.  found: may be an error's message; the object's key is cut from its front."""
    start, end = chunk.offset, chunk.offset + chunk.size
    tensors = tuple(file.tensors_in(start, end))
    return Fault(
        chunk.key, file.path, tensors, start, end, expected or f"crc64nvme {chunk.crc64nvme}", without_key(found, chunk.key)
    )


def without_key(message: str, key: str) -> str:
    """What `message` says of `key`, for a line that names the key already.

    >>> without_key("s3://b/chunks/x: 503 SlowDown", "chunks/x")
    '503 SlowDown'
    """
    _, found, said = message.partition(f"{key}: ")
    return said if key and found else message


def refused(errors: Sequence[BuilderError]) -> BuilderError:
    """One line for a store that fails: the first error; the others are the same one met by other chunks."""
    first = errors[0]
    if len(errors) == 1:
        return first
    more = len(errors) - 1
    message = f"{first.message} (and {more} more chunk{'s' if more > 1 else ''})"
    return type(first)(message, hint=first.hint, where=first.where)


def failure(what: str, faults: Sequence[tuple[Fault, BuilderError]]) -> BuilderError:
    """One error for all faults, of the gravest class among them: integrity before environment before remote."""
    errors = [error for _, error in faults]
    kind = next(
        k for k in (IntegrityError, CapabilityError, RemoteError, BuilderError) if any(isinstance(e, k) for e in errors)
    )
    first = next(e for e in errors if isinstance(e, kind))
    lines = [f"  {fault}" for fault, _ in faults[:SHOWN_FAULTS]]
    if len(faults) > SHOWN_FAULTS:
        lines.append(f"  and {len(faults) - SHOWN_FAULTS} more")
    where: dict[str, Any] = {**first.where, "faults": [fault.to_json() for fault, _ in faults]}
    return kind("\n".join([what, *lines]), hint=first.hint, where=where)
