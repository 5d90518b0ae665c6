"""A baked disk that need not exist, and what is rendered for it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from builder.config.spec import Bake
from builder.node import specs
from builder.node.hot import hotlist, reader

GIB = 1 << 30
DIGEST = "sha256:" + "ab" * 32
UUID = "00000000-0000-0000-0000-000000000000"
TARGETS = tuple(specs.FILES)
IDS = {
    "bottlerocket": "snap-0123456789abcdef0",
    "al2023-volume": "snap-0123456789abcdef0",
    "gke-secondary": "projects/some-project/global/images/llama-c0c0c0c0c0c0",
    "azure-data": f"/subscriptions/{UUID}/resourceGroups/llm/providers/Microsoft.Compute/snapshots/llama",
    "raw": "${SNAPSHOT_ID}",
}  # fmt: skip


def volume(path: Path = Path("/srv/data.img"), *, size: int = 120 * GIB, nonzero: int = 12 * GIB, used: float = 0.1,
           platform: str = "linux/amd64", filesystem: str = "xfs", target: str = "bottlerocket") -> dict[str, Any]:  # fmt: skip
    """As DataVolume.to_json says it."""
    image = {"reference": "registry.example.com/llm/llama:v1", "digest": DIGEST, "platform": platform}
    return {"path": str(path), "target": target, "size": size, "nonzero_bytes": nonzero, "blocks": nonzero >> 19,
            "sha256": "c0" * 32, "images": [image], "weights": {}, "compiled": {}, "filesystem": filesystem,
            "containerd": "1.7.24", "used": used, "exports": [], "cleaned": [], "seconds": {}}  # fmt: skip


def ref(target: str = "bottlerocket", bake: Bake | None = None, **more: Any) -> specs.SnapshotRef:
    given = {name: more.pop(name) for name in ("snapshot_id", "cluster", "kms_key") if name in more}
    return specs.snapshot_ref(volume(target=target, **more), bake or Bake(), name="llama", **given)


def made(
    target: str = "bottlerocket", bake: Bake | None = None, *, hot: Mapping[str, str] | None = None, **more: Any
) -> dict[str, str]:
    """Texts by suffix."""
    return specs.render(ref(target, bake, **more), hot=hot or {})


def hot_texts(target: str) -> dict[str, str]:
    """What reads four blocks of the disk at boot."""
    found = hotlist.HotList("c0" * 32, 120 * GIB, 0, 24576, target, (), hotlist.TRACED, (2, 900, 901, 7))
    return reader.files(found, "data.img", image="registry.example.com/reader:v1")
