"""Which chunks the first layers need."""

from __future__ import annotations

from builder.format.manifest import Chunk, File, Manifest, Tensor
from builder.transfer.order import chunks_of, first_layers


def file(path: str, tensors: list[tuple[str, int, int]], chunk: int = 10, size: int = 100) -> File:
    """tensors: (group, offset, size)."""
    chunks = tuple(Chunk(f"{path}-{at // chunk}", at, chunk, "0" * 16) for at in range(0, size, chunk))
    return File(
        path, size, "", "", "safetensors", 0, chunks, tuple(Tensor(f"t{n}", "U8", (), at, n, 1, g) for g, at, n in tensors)
    )


def manifest(*files: File) -> Manifest:
    return Manifest("m", "", "", "", files, ())


def test_embeddings_and_the_lowest_layer_with_its_experts() -> None:
    one = file(
        "a", [("embed", 5, 10), ("layer.3", 20, 15), ("layer.3.expert", 50, 10), ("layer.12", 60, 10), ("final", 90, 10)]
    )
    two = file("b", [("layer.4", 0, 10), ("embed", 99, 1)])
    assert first_layers(manifest(one, two)) == {"a-0", "a-1", "a-2", "a-3", "a-5", "b-9"}


def test_no_layer_is_no_answer() -> None:
    assert first_layers(manifest(file("a", [("embed", 0, 10), ("other", 10, 10)]))) == set()


def test_an_empty_tensor_has_no_chunk() -> None:
    one = file("a", [("layer.0", 10, 0)])
    assert list(chunks_of(one, one.tensors[0])) == []
