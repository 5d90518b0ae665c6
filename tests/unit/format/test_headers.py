"""Well-formed safetensors and GGUF headers, and the corners of both formats that must pass."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from builder.format import gguf, safetensors
from tests.attacks.hostile import ALIGN, entry, text
from tests.attacks.hostile import gguf as gguf_bytes
from tests.attacks.hostile import safetensors as safetensors_bytes
from tests.models import gguf_model, safetensors_model


def parse_safetensors(body: bytes) -> safetensors.Header:
    return safetensors.parse(lambda offset, size: body[offset : offset + size], len(body), path="x")


def parse_gguf(body: bytes) -> gguf.Header:
    return gguf.parse(lambda offset, size: body[offset : offset + size], len(body), path="x")


def test_safetensors_offsets_count_from_the_start_of_the_file(tmp_path: Path) -> None:
    body = (safetensors_model(tmp_path, metadata="hello") / "model.safetensors").read_bytes()
    header = parse_safetensors(body)
    assert header.size == 8 + struct.unpack("<Q", body[:8])[0]
    assert header.metadata == {"note": "hello"}
    embed = header.tensors[0]
    assert (embed.name, embed.dtype, embed.shape) == ("model.embed_tokens.weight", "BF16", (256, 64))
    assert (embed.offset, embed.size, embed.row_bytes) == (header.size, 256 * 64 * 2, 128)
    assert header.tensors[-1].offset + header.tensors[-1].size == len(body)


def test_no_tensor_data_is_read() -> None:
    read: list[tuple[int, int]] = []
    body = safetensors_bytes({"a": {"dtype": "U8", "shape": [1 << 20], "data_offsets": [0, 1 << 20]}}, bytes(1 << 20))

    def reader(offset: int, size: int) -> bytes:
        read.append((offset, size))
        return body[offset : offset + size]

    header = safetensors.parse(reader, len(body), path="x")
    assert max(offset + size for offset, size in read) <= header.size


@pytest.mark.parametrize(
    ("dtype", "shape", "size"),
    [("BF16", [3, 5], 30), ("F4", [4, 3], 6), ("F6_E2M3", [4], 3), ("F8_E8M0", [7], 7), ("C64", [2], 16), ("F64", [], 8)],
)
def test_sizes_of_dtypes(dtype: str, shape: list[int], size: int) -> None:
    body = safetensors_bytes({"t": {"dtype": dtype, "shape": shape, "data_offsets": [0, size]}}, bytes(size))
    assert parse_safetensors(body).tensors[0].size == size


def test_an_unknown_dtype_passes_as_raw_bytes() -> None:
    body = safetensors_bytes({"t": {"dtype": "F2_NEW", "shape": [4, 3], "data_offsets": [0, 8]}})
    (tensor,) = parse_safetensors(body).tensors
    assert (tensor.dtype, tensor.size, tensor.row_bytes) == ("F2_NEW", 8, 2)


def test_zero_size_tensors_pass_anywhere() -> None:
    zero = {"dtype": "F32", "shape": [0, 7], "data_offsets": [0, 0]}
    whole = {"dtype": "U8", "shape": [8], "data_offsets": [0, 8]}
    after = {"dtype": "F32", "shape": [3, 0], "data_offsets": [8, 8]}
    header = parse_safetensors(safetensors_bytes({"w": whole, "z": zero, "y": after}))
    assert [(t.name, t.size) for t in header.tensors] == [("z", 0), ("w", 8), ("y", 0)]


def test_a_file_without_tensors_passes() -> None:
    assert parse_safetensors(safetensors_bytes({}, b"")).tensors == ()
    assert parse_gguf(gguf_bytes([], b"")).tensors == ()


def test_spaces_after_the_json_belong_to_the_header() -> None:
    text = json.dumps({"t": {"dtype": "U8", "shape": [8], "data_offsets": [0, 8]}}).encode() + b"   "
    assert parse_safetensors(safetensors_bytes(text)).size == 8 + len(text)


def test_gguf_shapes_are_row_major_and_offsets_absolute(tmp_path: Path) -> None:
    body = gguf_model(tmp_path / "m.gguf", layers=1).read_bytes()
    header = parse_gguf(body)
    embed, q, norm, final = header.tensors
    assert (embed.dtype, embed.shape, embed.row_bytes) == ("F16", (256, 64), 128)
    assert (q.dtype, q.shape, q.size, q.row_bytes) == ("Q8_0", (64, 64), 64 * 64 // 32 * 34, 68)
    assert norm.size == 65 * 4  # not a multiple of the alignment: padding follows
    assert final.offset == norm.offset + 288
    assert header.size % header.alignment == 0
    assert header.metadata["general.architecture"] == "llama"
    assert header.metadata["tokenizer.ggml.tokens"] == 256


@pytest.mark.parametrize("alignment", [1, 8, 32, 4096])
def test_gguf_alignment_is_honoured(tmp_path: Path, alignment: int) -> None:
    header = parse_gguf(gguf_model(tmp_path / "m.gguf", alignment=alignment).read_bytes())
    assert header.alignment == alignment
    assert all(t.offset % alignment == 0 for t in header.tensors)


def test_gguf_of_an_unknown_type_takes_the_room_up_to_the_next_tensor() -> None:
    header = parse_gguf(gguf_bytes([entry(b"a", [8], 77, 0), entry(b"b", [8], 0, 64)], bytes(96)))
    assert [(t.dtype, t.size) for t in header.tensors] == [("ggml-77", 64), ("F32", 32)]


def test_big_endian_gguf_passes() -> None:
    name = struct.pack(">Q", 1) + b"a"
    head = b"GGUF" + struct.pack(">IQQ", 3, 1, 0) + name + struct.pack(">IQIQ", 1, 8, 0, 0)
    body = head + bytes(-len(head) % 32) + bytes(32)
    assert parse_gguf(body).tensors[0].shape == (8,)


def test_every_metadata_type_is_passed_over() -> None:
    pairs = []
    for kind, code in {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}.items():
        pairs.append(text(f"k{kind}".encode()) + struct.pack("<I" + code, kind, 1))
        many = struct.pack(f"<100{code}", *[1] * 100)
        pairs.append(text(f"k{kind}a".encode()) + struct.pack("<IIQ", 9, kind, 100) + many)
    nested = struct.pack("<Q", 1) + b"n" + struct.pack("<IIQ", 9, 9, 2) + struct.pack("<IQBB", 0, 2, 1, 2) * 2
    header = parse_gguf(gguf_bytes([entry(b"t", [8], 0, 0)], bytes(32), meta=[*pairs, nested, ALIGN + struct.pack("<I", 32)]))
    assert header.metadata["k12"] == 1.0
    assert header.metadata["k4a"] == 100  # only its length is kept
    assert header.metadata["n"] == [[1, 2], [1, 2]]
    assert header.tensors[0].name == "t"
