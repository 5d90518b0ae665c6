"""What part of the need order means: which chunks hold the embeddings and the first layer.

Groups are named by the splitter: `embed`, `layer.<n>`, `layer.<n>.expert`, `final`, `other`.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator

from builder.format.manifest import Chunk, File, Manifest, Tensor

_LAYER = re.compile(r"layer\.(\d+)(?:\.|\Z)")


def first_layers(manifest: Manifest) -> set[str]:
    """sha256 of the chunks with a byte of the embeddings or of the lowest layer; empty if no tensor names a layer."""
    numbers = [int(match[1]) for f in manifest.files for t in f.tensors if (match := _LAYER.match(t.group))]
    if not numbers:
        return set()
    lowest = min(numbers)
    found: set[str] = set()
    for file in manifest.files:
        for tensor in file.tensors:
            match = _LAYER.match(tensor.group)
            if tensor.group == "embed" or (match and int(match[1]) == lowest):
                found.update(chunk.sha256 for chunk in chunks_of(file, tensor))
    return found


def chunks_of(file: File, tensor: Tensor) -> Iterator[Chunk]:
    """The chunks that hold the tensor's bytes, in order."""
    if not tensor.size:
        return
    at = bisect_right(file.chunks, tensor.offset, key=lambda chunk: chunk.offset) - 1
    for chunk in file.chunks[at:]:
        if chunk.offset >= tensor.offset + tensor.size:
            return
        yield chunk
