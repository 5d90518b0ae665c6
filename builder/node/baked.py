"""A finished disk, as data."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class DataVolume:
    """A finished disk.

    size: bytes of the disk. blocks, nonzero_bytes, sha256: see builder.node.blocks. images: as on the disk, with the
    digest of every unpacked layer. weights: manifest digest to bytes. filesystem: "xfs" or "ext4".
    used: share of the disk that holds anything, 0 to 1.
    cleaned: what killed predecessors had left. seconds: per step. compiled: key of each compile cache to bytes.
    exports: further forms of the disk, for a cloud's image import.
    """

    path: Path
    size: int
    nonzero_bytes: int
    blocks: int
    sha256: str
    images: tuple[dict[str, Any], ...]
    weights: dict[str, int]
    filesystem: str
    containerd: str
    used: float
    cleaned: tuple[str, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)
    target: str = "bottlerocket"
    compiled: dict[str, int] = field(default_factory=dict)
    exports: tuple[Path, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "path": str(self.path),
            "target": self.target,
            "size": self.size,
            "nonzero_bytes": self.nonzero_bytes,
            "blocks": self.blocks,
            "sha256": self.sha256,
            "images": list(self.images),
            "weights": self.weights,
            "compiled": self.compiled,
            "filesystem": self.filesystem,
            "containerd": self.containerd,
            "used": round(self.used, 4),
            "exports": [str(path) for path in self.exports],
            "cleaned": list(self.cleaned),
            "seconds": {name: round(value, 3) for name, value in self.seconds.items()},
        }
