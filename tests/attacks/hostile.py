"""Hostile inputs, each named by its fault, each with the words of its refusal. Small enough to read."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable
from typing import Any

from builder.format.manifest import MAX_CHUNK_BYTES

TWO = {"a": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}, "b": {"dtype": "U8", "shape": [4], "data_offsets": [4, 8]}}


def safetensors(header: Any, data: bytes = bytes(8), *, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def two(**changes: Any) -> bytes:
    """TWO, with some keys of tensor b changed."""
    return safetensors({"a": TWO["a"], "b": {**TWO["b"], **changes}})


SAFETENSORS: dict[str, tuple[bytes, str]] = {
    "empty_file": (b"", "0 bytes, expected at least the 8"),
    "three_bytes": (b"abc", "3 bytes, expected at least the 8"),
    "git_lfs_pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "Git LFS pointer"),
    "header_longer_than_file": (safetensors(TWO, length=1 << 20), "is longer than the file"),
    "header_above_100_mb": (safetensors(TWO, length=100_000_001), "expected at most 100000000"),
    "header_length_of_2_to_63": (safetensors(TWO, length=1 << 63), "expected at most 100000000"),
    "not_json": (safetensors(b"{nope}"), "not JSON"),
    "not_utf8": (safetensors(b'{"\xff\xfe": 1}'), "not JSON"),
    "nested_too_deep": (safetensors(b'{"a":' * 100_000), "not JSON"),
    "a_list": (safetensors([]), "expected an object"),
    "metadata_with_a_number": (safetensors({**TWO, "__metadata__": {"x": 1}}), "must map strings to strings"),
    "duplicate_name": (
        safetensors(
            b'{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"a":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}}'
        ),
        "'a' occurs twice",
    ),
    "truncated_data": (safetensors(TWO, bytes(7)), "tensor 'b': bytes [132, 136) lie outside a file of 135"),
    "truncated_header": (safetensors(TWO)[:40], "is longer than the file"),
    "trailing_bytes": (safetensors(TWO, bytes(9)), "belong to no tensor"),
    "overlap": (two(data_offsets=[2, 6]), "overlap 'a'"),
    "same_range_twice": (two(data_offsets=[0, 4]), "overlap 'a'"),
    "hole": (two(data_offsets=[5, 8], shape=[3]), "leave a hole"),
    "out_of_range": (two(data_offsets=[4, 1 << 40], shape=[(1 << 40) - 4]), "lie outside"),
    "backwards": (two(data_offsets=[8, 4]), "run backwards"),
    "negative_offset": (two(data_offsets=[-4, 0]), "of a wrong type"),
    "offset_is_true": (two(data_offsets=[True, 8]), "of a wrong type"),
    "size_disagrees_with_shape": (two(shape=[5]), "U8[5] takes 5 bytes, data_offsets give 4"),
    "size_disagrees_with_dtype": (two(dtype="F64"), "F64[4] takes 32 bytes"),
    "half_a_byte": (two(dtype="F4", shape=[9]), "F4[9] takes 4.5 bytes"),
    "million_dimensions": (two(shape=[1 << 62] * 100_000), "of a wrong type"),
    "no_dtype": (safetensors({"a": {"shape": [8], "data_offsets": [0, 8]}}), "lacks dtype"),
    "tensor_is_a_string": (safetensors({"a": "x"}), "lacks dtype"),
}


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def entry(name: bytes, shape: list[int], kind: int, offset: int) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def gguf(
    entries: list[bytes], data: bytes = bytes(128), *, meta: list[bytes] | None = None, tensors: int | None = None,
    pairs: int | None = None, version: int = 3, magic: bytes = b"GGUF",
) -> bytes:  # fmt: skip
    meta = meta or []
    count = len(entries) if tensors is None else tensors
    head = magic + struct.pack("<IQQ", version, count, len(meta) if pairs is None else pairs)
    head += b"".join(meta) + b"".join(entries)
    return head + bytes(-len(head) % 32) + data


A, B = entry(b"a", [8], 0, 0), entry(b"b", [16], 0, 32)
ALIGN = text(b"general.alignment") + struct.pack("<I", 4)
ARRAY = text(b"x") + struct.pack("<I", 9)

GGUF: dict[str, tuple[bytes, str]] = {
    "empty_file": (b"", "runs past the end"),
    "other_magic": (gguf([A], magic=b"GGML"), "starts with b'GGML'"),
    "version_1": (gguf([A], version=1), "version 1, expected 2 or 3"),
    "version_4": (gguf([A], version=4), "version 4, expected 2 or 3"),
    "tensor_count_of_2_to_62": (gguf([A], tensors=1 << 62), "do not fit"),
    "pair_count_of_2_to_62": (gguf([A], pairs=1 << 62), "do not fit"),
    "more_tensors_than_listed": (gguf([A], tensors=3), "'' occurs twice"),
    "string_longer_than_file": (gguf([A], meta=[text(b"k") + struct.pack("<IQ", 8, 1 << 40)]), "expected at most"),
    "string_past_the_end": (gguf([A], meta=[text(b"k") + struct.pack("<IQ", 8, 100_000)]), "runs past the end"),
    "array_of_2_to_60": (gguf([A], meta=[ARRAY + struct.pack("<IQ", 0, 1 << 60)]), "array of"),
    "array_past_the_end": (gguf([A], meta=[ARRAY + struct.pack("<IQ", 10, 1000)]), "array of 1000 elements"),
    "arrays_nested_without_end": (gguf([A], meta=[ARRAY + struct.pack("<IQ", 9, 1) * 40]), "at depth"),
    "unknown_value_type": (gguf([A], meta=[text(b"k") + struct.pack("<I", 99)]), "value type 99"),
    "duplicate_key": (gguf([A], meta=[ALIGN + struct.pack("<I", 32)] * 2), "occurs twice"),
    "alignment_zero": (gguf([A], meta=[ALIGN + struct.pack("<I", 0)]), "expected a power of two"),
    "alignment_of_a_gigabyte": (gguf([A], meta=[ALIGN + struct.pack("<I", 1 << 30)]), "expected a power of two"),
    "duplicate_tensor": (gguf([A, entry(b"a", [16], 0, 32)]), "'a' occurs twice"),
    "five_dimensions": (gguf([entry(b"a", [1] * 5, 0, 0)]), "5 dimensions"),
    "overlap": (gguf([A, entry(b"b", [16], 0, 0)]), "overlaps the tensor before it"),
    "hole": (gguf([A, entry(b"b", [8], 0, 64)]), "leaves a hole"),
    "offset_of_2_to_63": (gguf([A, entry(b"b", [8], 0, 1 << 63)]), "leaves a hole"),
    "truncated_data": (gguf([A, B], bytes(95)), "lie outside"),
    "no_data": (gguf([A, B], b""), "lie outside"),
    "shape_of_2_to_248": (gguf([entry(b"a", [1 << 62] * 4, 0, 0)]), "lie outside"),
    "half_a_block": (gguf([entry(b"a", [33], 8, 0)]), "not whole blocks"),
    "name_of_a_megabyte": (gguf([struct.pack("<Q", 1 << 20) + bytes(1 << 20)]), "expected at most 65536"),
}

DIGEST = hashlib.sha256(b"12345678").hexdigest()


def manifest(change: Callable[[dict[str, Any]], None] | None = None, **top: Any) -> bytes:
    """A canonical manifest of one file of 8 bytes, with something changed."""
    file: dict[str, Any] = {
        "path": "model.bin", "size": 8, "sha256": DIGEST, "crc64nvme": "0" * 16, "mode": "raw", "header": 0,
        "chunks": [[DIGEST, 0, 8, "0" * 16]],
        "tensors": {"t": {"dtype": "U8", "shape": [8], "offset": 0, "size": 8, "row_bytes": 1, "group": "other"}},
    }  # fmt: skip
    if change:
        change(file)
    body: dict[str, Any] = {
        "files": [file], "format": 1, "name": "m", "order": [DIGEST], "revision": "", "small": {}, "source": "s", "tool": "t",
    }  # fmt: skip
    return json.dumps({**body, **top}, sort_keys=True, separators=(",", ":")).encode()


def path(value: str) -> bytes:
    return manifest(lambda f: f.update(path=value))


def chunks(*rows: list[Any], size: int = 8) -> bytes:
    return manifest(lambda f: f.update(chunks=list(rows), size=size), order=sorted({r[0] for r in rows}))


OTHER = "ab" * 32
MANIFESTS: dict[str, tuple[bytes, str]] = {
    "not_json": (b"{", "not JSON"),
    "a_list": (b"[]", "not a builder manifest"),
    "nested_too_deep": (b"[" * 200_000, "not JSON"),
    "newer_format": (manifest(format=2), "format 2, this builder reads up to 1"),
    "no_format": (json.dumps({"files": []}).encode(), "not a builder manifest"),
    "duplicate_key": (b'{"format":1,"format":1}', "occurs twice"),
    "no_files": (json.dumps({"format": 1}).encode(), "missing key 'files'"),
    "parent_folder": (path("../etc/cron.d/x"), "not a plain relative path"),
    "parent_folder_inside": (path("a/../../x"), "not a plain relative path"),
    "absolute_path": (path("/etc/passwd"), "not a plain relative path"),
    "backslash": (path("..\\x"), "not a plain relative path"),
    "nul_in_path": (path("a\0b"), "not a plain relative path"),
    "empty_path": (path(""), "not a plain relative path"),
    "dot_path": (path("./a"), "not a plain relative path"),
    "reserved_folder": (path(".builder/complete"), "reserved folder"),
    "path_twice": (manifest(files=[json.loads(manifest())["files"][0]] * 2), "occurs twice"),
    "chunk_leaves_a_hole": (chunks([DIGEST, 1, 7, "0" * 16]), "expected offset 0"),
    "chunks_overlap": (chunks([DIGEST, 0, 8, "0" * 16], [OTHER, 4, 4, "0" * 16]), "expected offset 8"),
    "chunks_too_short": (chunks([DIGEST, 0, 7, "0" * 16]), "cover 7 of 8 bytes"),
    "empty_chunk": (chunks([DIGEST, 0, 0, "0" * 16], size=0), "0 bytes"),
    "chunk_of_a_terabyte": (chunks([DIGEST, 0, 1 << 40, "0" * 16], size=1 << 40), f"1 to {MAX_CHUNK_BYTES}"),
    "negative_size": (manifest(lambda f: f.update(size=-1)), "not a count"),
    "size_is_true": (manifest(lambda f: f.update(size=True)), "not a count"),
    "size_is_a_fraction": (manifest(lambda f: f.update(size=8.0)), "not a count"),
    "digest_in_capitals": (chunks([DIGEST.upper(), 0, 8, "0" * 16]), "does not match"),
    "digest_with_a_path": (chunks(["../" + DIGEST[3:], 0, 8, "0" * 16]), "does not match"),
    "chunk_with_two_sizes": (
        chunks([DIGEST, 0, 8, "0" * 16], [DIGEST, 8, 4, "0" * 16], size=12),
        "has two sizes",
    ),
    "order_lacks_a_chunk": (manifest(order=[]), "order does not name every chunk"),
    "order_names_a_stranger": (manifest(order=[DIGEST, OTHER]), "order does not name every chunk"),
    "tensor_outside_the_file": (manifest(lambda f: f["tensors"]["t"].update(offset=4)), "lie outside a file of 8"),
    "unknown_mode": (manifest(lambda f: f.update(mode="exec")), "mode 'exec'"),
    "name_with_a_path": (manifest(name="../m"), "does not match"),
    "small_file_differs": (manifest(small={"model.bin": "AAAA"}), "differs from its own sha256"),
    "small_file_elsewhere": (manifest(small={"../x": "AAAA"}), "not a plain relative path"),
    "format_is_true": (manifest(format=True), "not a builder manifest"),
    "format_is_a_fraction": (manifest(format=1.0), "not a builder manifest"),
    "format_is_negative": (manifest(format=-1), "not a builder manifest"),
    "number_of_5000_digits": (manifest().replace(b'"size":8', b'"size":' + b"9" * 5000, 1), "not JSON"),
    "size_of_4000_digits": (manifest(lambda f: f.update(size=10**4000)), "not a count"),
    "size_with_an_exponent": (manifest().replace(b'"size":8', b'"size":8e0', 1), "not a count"),
    "size_is_minus_zero": (manifest().replace(b'"header":0', b'"header":-0', 1), "not in canonical form"),
    "not_a_number": (manifest().replace(b'"size":8', b'"size":NaN', 1), "not a count"),
    "header_longer_than_the_file": (manifest(lambda f: f.update(header=9)), "header of 9 bytes"),
    "mode_is_a_list": (manifest(lambda f: f.update(mode=["raw"])), "mode ['raw']"),
    "in_utf16": (manifest().decode().encode("utf-16-le"), "not in canonical form"),
    "byte_order_mark": (b"\xef\xbb\xbf" + manifest(), "not in canonical form"),
    "trailing_slash": (path("a/"), "not a plain relative path"),
    "path_is_a_number": (path(1), "is not a string"),  # type: ignore[arg-type]
    "file_inside_a_file": (
        manifest(files=[{**json.loads(manifest())["files"][0], "path": p} for p in ("a", "a/b")]),
        "both a file and a folder",
    ),
    "files_is_an_object": (manifest(files={"a": 1}), "manifest: "),
    "files_is_a_number": (manifest(files=1), "manifest: "),
    "chunks_is_null": (manifest(lambda f: f.update(chunks=None)), "manifest: "),
    "chunk_of_three_values": (manifest(lambda f: f.update(chunks=[[DIGEST, 0, 8]])), "manifest: "),
    "chunk_offset_is_true": (chunks([DIGEST, False, 8, "0" * 16]), "not a count"),
    "checksum_in_capitals": (chunks([DIGEST, 0, 8, "A" * 16]), "does not match"),
    "chunk_twice_in_order": (manifest(order=[DIGEST, DIGEST]), "order does not name every chunk"),
    "order_is_an_object": (manifest(order={DIGEST: 1}), "is not a list"),
    "tensor_with_a_negative_axis": (manifest(lambda f: f["tensors"]["t"].update(shape=[-8])), "not a count"),
    "tensor_is_a_list": (manifest(lambda f: f.update(tensors=[1])), "manifest: "),
    "small_file_that_is_no_file": (manifest(small={"other": "AAAA"}), "differs from its own sha256"),
    "small_file_is_a_number": (manifest(small={"model.bin": 1}), "manifest: "),
    "small_file_not_base64": (manifest(small={"model.bin": "*"}), "manifest: "),
    "small_file_of_a_megabyte": (manifest(small={"model.bin": "A" * (1 << 20)}), "differs from its own sha256"),
    "name_with_a_line_end": (manifest(name="m\n"), "does not match"),
    "spaces": (manifest() + b" ", "not in canonical form"),
    "another_key": (manifest(extra=1), "unknown key"),
}
