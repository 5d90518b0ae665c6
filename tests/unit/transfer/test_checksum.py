"""CRC64NVME against its published value, and against itself."""

from __future__ import annotations

import hashlib

from hypothesis import given
from hypothesis import strategies as st

from builder.format.manifest import Chunk
from builder.transfer import checksum
from builder.transfer.checksum import Digests, combine, crc64_hex, crc64nvme, crc64nvme_hex, file_crc64

CHECK = 0xAE8B14860A799888  # of b"123456789", published with the polynomial


def reference(data: bytes) -> int:
    """Bit by bit, from the definition: reflected, polynomial 0xad93d23594c93659, all ones at both ends."""
    reflected = int(f"{0xAD93D23594C93659:064b}"[::-1], 2)
    crc = (1 << 64) - 1
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (reflected if crc & 1 else 0)
    return crc ^ (1 << 64) - 1


def test_the_published_check_value() -> None:
    assert crc64nvme(b"123456789") == CHECK
    assert reference(b"123456789") == CHECK
    assert crc64nvme_hex(b"123456789") == "ae8b14860a799888"
    assert crc64nvme_hex(b"") == checksum.EMPTY_CRC64


@given(st.binary(max_size=300))
def test_any_buffer_agrees_with_the_definition(data: bytes) -> None:
    assert crc64nvme(data) == crc64nvme(bytearray(data)) == crc64nvme(memoryview(b"-" + data)[1:]) == reference(data)


@given(st.binary(max_size=300), st.integers(0, 300))
def test_parts_join_both_ways(data: bytes, at: int) -> None:
    first, second = data[:at], data[at:]
    assert crc64nvme(second, crc64nvme(first)) == crc64nvme(data)
    assert combine(crc64nvme(first), crc64nvme(second), len(second)) == crc64nvme(data)


@given(st.lists(st.binary(min_size=1, max_size=50), max_size=8))
def test_a_file_follows_from_its_chunks(parts: list[bytes]) -> None:
    data = b"".join(parts)
    chunks = [Chunk(hashlib.sha256(p).hexdigest(), 0, len(p), crc64nvme_hex(p)) for p in parts]
    assert file_crc64(chunks) == crc64nvme_hex(data)
    digests = Digests()
    for part in parts:
        digests.update(part)
    assert (digests.size, digests.crc64nvme, digests.sha256) == (
        len(data),
        crc64nvme_hex(data),
        hashlib.sha256(data).hexdigest(),
    )


def test_hex_keeps_leading_zeros() -> None:
    assert crc64_hex(0xAB) == "00000000000000ab"
