"""How a private containerd serves the CRI, the interface that kubelet speaks, without being a node.

No network at all: containerd runs in a network namespace of its own, and a pod that asks for the node's namespace gets
that one. So nothing can be pulled, no container reaches anything, and no CNI plugin is needed. The loopback is up, because
a server in a container may be asked by its own load test.
"""

from __future__ import annotations

import json
from pathlib import Path

from builder import process


def for_pods(sandbox_image: str, folder: Path) -> list[str]:
    """More lines for the plugin's table of the configuration, version 2; 2.x moves what it has renamed since.

    Source: containerd docs/cri/config.md of 1.6, 1.7 and 2.1.
    """
    return [
        f"sandbox_image = {json.dumps(sandbox_image)}",
        '[plugins."io.containerd.grpc.v1.cri".cni]',
        f"conf_dir = {json.dumps(str(folder / 'cni'))}",  # the plugin makes the folder; the machine's own is not touched
    ]


def alone() -> list[str | Path]:
    """Begins a command line whose program, and all that it starts, has no network but an own loopback."""
    up = f'{process.need("ip", "iproute2")} link set lo up && exec "$@"'
    return [process.need("unshare", "util-linux"), "--net", process.need("sh"), "-c", up, "sh"]
