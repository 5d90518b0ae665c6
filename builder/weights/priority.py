"""Which bytes a server needs first: configs and headers, embeddings, layers ascending, final norm and head, the rest.

Groups come from tensor names: Hugging Face (LLaMA, Qwen, Mixtral, GPT-2, BERT, ...) and GGUF. Within a layer the router and
shared experts come before the routed experts. Names that match nothing keep the order of the file, at the end.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import PurePosixPath

from builder.format.manifest import SMALL_BYTES, File

Rank = tuple[int, int, int]
"""stage, layer, 1 for routed experts; smaller is needed earlier."""

FIRST: Rank = (0, 0, 0)
EMBED, LAYERS, FINAL, OTHER = 1, 2, 3, 4

# "model.layers.3.", "transformer.h.3.", "encoder.layer.3.", "blk.3.", "gpt_neox.layers.3."; the first number counts.
_LAYER = re.compile(r"(?:^|\.)(?:layers?|h|blk|blocks?)\.(\d{1,6})\.")
# "mlp.experts.7.w1", "block_sparse_moe.experts.7.", GGUF "ffn_gate_exps."; not "shared_expert(s)", not "ffn_gate_shexp".
_EXPERT = re.compile(r"(?:^|\.)experts(?:\.|$)|_exps(?:\.|$)")
_EMBED = re.compile(
    r"(?:^|[._])(?:embed_tokens|token_embd|tok_embeddings|word_embeddings|position_embd|wte|wpe|embeddings?)(?:[._]|$)"
)
_FINAL = re.compile(r"(?:^|\.)(?:lm_head|output|output_norm|norm|ln_f|final_layer_?norm|embed_out|head|pooler)(?:\.|$)")
# Not weights, whatever their size: what an engine reads before it opens the first tensor.
_CONFIG = {".json", ".txt", ".model", ".jinja", ".tiktoken", ".yaml", ".yml", ".py", ".md", ".vocab", ".bpe"}


def group(tensor: str) -> str:
    """`embed`, `layer.N`, `layer.N.expert`, `final` or `other`.

    >>> group("model.layers.3.mlp.experts.0.w1.weight"), group("blk.0.attn_q.weight"), group("lm_head.weight")
    ('layer.3.expert', 'layer.0', 'final')
    """
    if layer := _LAYER.search(tensor):
        return f"layer.{int(layer[1])}" + (".expert" if _EXPERT.search(tensor, layer.end() - 1) else "")
    if _EMBED.search(tensor):
        return "embed"
    return "final" if _FINAL.search(tensor) else "other"


def rank(group: str) -> Rank:
    """When a group is needed."""
    parts = group.split(".")
    if parts[0] == "layer" and len(parts) > 1:
        return LAYERS, int(parts[1]), int(parts[-1] == "expert")
    return {"embed": EMBED, "final": FINAL}.get(group, OTHER), 0, 0


def order(files: Iterable[File]) -> tuple[str, ...]:
    """Every chunk's sha256 once, in the order of need.

    A chunk with several tensors is needed when the first of them is; equal ranks keep the order of files and bytes.
    """
    ranked = [
        (chunk_rank, index, chunk.offset, chunk.sha256)
        for index, file in enumerate(files)
        for chunk, chunk_rank in zip(file.chunks, _ranks(file), strict=True)
    ]
    return tuple(dict.fromkeys(sha256 for *_, sha256 in sorted(ranked)))


def _ranks(file: File) -> list[Rank]:
    if not file.tensors:
        first = file.mode != "raw" or file.size <= SMALL_BYTES or PurePosixPath(file.path).suffix in _CONFIG
        return [FIRST if first else (OTHER, 0, 0)] * len(file.chunks)
    tensors = sorted((t.offset, t.offset + t.size, rank(t.group)) for t in file.tensors if t.size)
    ranks: list[Rank] = []
    at = 0
    for chunk in file.chunks:
        if chunk.offset < file.header:
            ranks.append(FIRST)
            continue
        while at < len(tensors) and tensors[at][1] <= chunk.offset:
            at += 1
        end, i, best = chunk.offset + chunk.size, at, (OTHER, 0, 0)
        while i < len(tensors) and tensors[i][0] < end:
            best = min(best, tensors[i][2])
            i += 1
        ranks.append(best)
    return ranks
