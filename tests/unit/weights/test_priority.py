"""The order of need."""

from __future__ import annotations

import pytest

from builder.format.manifest import Chunk, File, Tensor
from builder.weights import priority


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("model.embed_tokens.weight", "embed"),
        ("model.layers.11.self_attn.q_proj.weight", "layer.11"),
        ("model.layers.3.mlp.gate.weight", "layer.3"),
        ("model.layers.3.mlp.experts.7.up_proj.weight", "layer.3.expert"),
        ("model.layers.3.block_sparse_moe.experts.0.w1.weight", "layer.3.expert"),
        ("model.layers.3.mlp.shared_experts.up_proj.weight", "layer.3"),
        ("model.layers.3.mlp.shared_expert.up_proj.weight", "layer.3"),
        ("model.norm.weight", "final"),
        ("lm_head.weight", "final"),
        ("transformer.wte.weight", "embed"),
        ("wpe.weight", "embed"),
        ("h.0.attn.c_attn.weight", "layer.0"),
        ("transformer.ln_f.bias", "final"),
        ("embeddings.word_embeddings.weight", "embed"),
        ("encoder.layer.5.attention.self.query.weight", "layer.5"),
        ("pooler.dense.weight", "final"),
        ("token_embd.weight", "embed"),
        ("blk.21.attn_norm.weight", "layer.21"),
        ("blk.21.ffn_gate_exps.weight", "layer.21.expert"),
        ("blk.21.ffn_gate_shexp.weight", "layer.21"),
        ("blk.21.ffn_gate_inp.weight", "layer.21"),
        ("output_norm.weight", "final"),
        ("output.weight", "final"),
        ("model.language_model.layers.2.mlp.down_proj.weight", "layer.2"),
        ("rope_freqs.weight", "other"),
        ("model.layers.99999999.x", "other"),
    ],
)
def test_groups(name: str, group: str) -> None:
    assert priority.group(name) == group


def test_ranks_are_in_the_order_of_need() -> None:
    groups = ["embed", "layer.0", "layer.0.expert", "layer.2", "layer.10", "layer.10.expert", "final", "other"]
    ranks = [priority.rank(g) for g in groups]
    assert ranks == sorted(ranks)
    assert len(set(ranks)) == len(groups)
    assert ranks[0] > priority.FIRST


def file(path: str, groups: list[str], mode: str = "safetensors") -> File:
    """A header chunk of 10 bytes, then one chunk and tensor of 10 bytes per group; a chunk's sha256 says what it is."""
    chunks = [Chunk(f"{path}:header", 0, 10, "")]
    tensors = []
    for i, group in enumerate(groups):
        chunks.append(Chunk(f"{path}:{group}", 10 + 10 * i, 10, ""))
        tensors.append(Tensor(f"t{i}", "U8", (10,), 10 + 10 * i, 10, 1, group))
    return File(path, 10 + 10 * len(groups), "", "", mode, 10, tuple(chunks), tuple(tensors))


def test_order_crosses_files() -> None:
    config = File("config.json", 5, "", "", "raw", 0, (Chunk("config", 0, 5, ""),))
    binary = File("pytorch_model.bin", 1 << 30, "", "", "raw", 0, (Chunk("bin", 0, 1 << 30, ""),))
    one = file("1", ["layer.1", "final", "embed"])
    two = file("2", ["layer.0.expert", "layer.0", "other"])
    assert priority.order([binary, config, one, two]) == (
        "config", "1:header", "2:header", "1:embed", "2:layer.0", "2:layer.0.expert", "1:layer.1", "1:final", "bin", "2:other",
    )  # fmt: skip


def test_a_shared_chunk_is_needed_when_its_first_tensor_is() -> None:
    chunk = Chunk("both", 10, 20, "")
    tensors = (Tensor("a", "U8", (10,), 10, 10, 1, "final"), Tensor("b", "U8", (10,), 20, 10, 1, "embed"))
    mixed = File("m", 30, "", "", "gguf", 10, (Chunk("h", 0, 10, ""), chunk), tensors)
    assert priority.order([file("1", ["layer.0"]), mixed]) == ("1:header", "h", "both", "1:layer.0")


def test_a_large_tensor_gives_its_rank_to_all_its_chunks() -> None:
    chunks = tuple(Chunk(str(i), 10 * i, 10, "") for i in range(4))
    big = File("m", 40, "", "", "gguf", 10, chunks, (Tensor("a", "U8", (30,), 10, 30, 1, "embed"),))
    assert priority.order([file("1", ["embed", "layer.0"]), big])[-4:] == ("1", "2", "3", "1:layer.0")


def test_equal_chunks_are_named_once_at_the_earlier_need() -> None:
    one = file("1", ["final"])
    two = File("2", 20, "", "", "gguf", 10, (Chunk("h", 0, 10, ""), Chunk("1:final", 10, 10, "")), one.tensors[:0])
    assert priority.order([one, two]).count("1:final") == 1
