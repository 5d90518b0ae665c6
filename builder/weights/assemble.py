"""From a plan and the digests of its pieces to the manifest: one machine's push and a cluster's end here alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from builder import __version__
from builder.format.manifest import SMALL_BYTES, Chunk, File, Manifest
from builder.transfer.checksum import file_crc64
from builder.weights import priority
from builder.weights.split import ChunkPlan, FilePlan

MAX_SMALL_BYTES = 32 << 20  # of all files inlined in one manifest; every server reads it whole
TOOL = f"coldstart-builder {__version__}"


def inlined(plan: ChunkPlan) -> frozenset[str]:
    """Paths of the files that also travel inside the manifest: configs, while they are small and few."""
    total, paths = 0, []
    for f in plan.files:
        if f.mode == "raw" and f.file.size <= SMALL_BYTES and total + f.file.size <= MAX_SMALL_BYTES:
            total += f.file.size
            paths.append(f.file.path)
    return frozenset(paths)


def assemble(
    plan: ChunkPlan,
    *,
    name: str,
    chunks: Mapping[str, Sequence[Chunk]],
    sha256: Mapping[str, str],
    small: Mapping[str, bytes],
) -> Manifest:
    """The manifest. Equal arguments give equal bytes, whoever computed the digests and in whatever order.

    chunks: of each file by its path, one for each of its pieces and in their order.  sha256: hex, of each whole file.
    small: the bytes of the files of `inlined(plan)`.
    """
    files = tuple(_file(f, tuple(chunks[f.file.path]), sha256[f.file.path]) for f in plan.files)
    snapshot = plan.snapshot
    return Manifest(name, snapshot.source, snapshot.revision, TOOL, files, priority.order(files), dict(small))


def _file(plan: FilePlan, chunks: tuple[Chunk, ...], sha256: str) -> File:
    tensors = tuple(sorted(plan.tensors, key=lambda t: t.name))  # as the canonical form has them
    file = plan.file
    return File(file.path, file.size, sha256, file_crc64(chunks), plan.mode, plan.header, chunks, tensors)
