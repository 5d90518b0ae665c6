"""The image of a pod's first process, for the copy only: a node's system brings its own, so none is baked.

containerd starts one such container per pod to hold its namespaces. Ours is one executable of some 150 bytes without any
library: an ELF header, one program header, and code that waits in a loop. The kernel ends it (SIGKILL) with the pod.
Sources: elf(5); system call numbers of Linux: x86-64 pause 34, arm64 ppoll 73 (it has no pause).
"""

from __future__ import annotations

import hashlib
import io
import json
import struct
import tarfile
from pathlib import Path
from typing import Any

from builder.errors import CapabilityError
from builder.node import layout
from builder.node.containerd import Containerd

NAME = "builder.invalid/pause:1"  # .invalid never resolves (RFC 2606): it cannot be pulled
_BASE = 0x400000
_CODE = {
    # mov eax, 34; syscall; jmp back to the start
    "linux/amd64": (62, bytes.fromhex("b822000000" "0f05" "ebf7")),
    # mov x0..x3, 0; mov x8, 73; svc 0; b back to the start: ppoll of nothing, without a time limit
    "linux/arm64": (183, b"".join(struct.pack("<I", word) for word in (
        0xD2800000, 0xD2800001, 0xD2800002, 0xD2800003, 0xD2800928, 0xD4000001, 0x17FFFFFA))),
}  # fmt: skip


def executable(platform: str) -> bytes:
    """A static program that waits until it is killed. Raises CapabilityError for a processor that is not known here."""
    if platform not in _CODE:
        raise CapabilityError(f"{platform}: no pause program for it, expected one of {', '.join(_CODE)}")
    machine, code = _CODE[platform]
    at = 64 + 56  # the headers; the code follows
    ident = b"\x7fELF" + bytes([2, 1, 1]) + bytes(9)  # 64 bits, little endian, version 1
    header = ident + struct.pack("<HHIQQQIHHHHHH", 2, machine, 1, _BASE + at, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, _BASE, _BASE, at + len(code), at + len(code), 0x1000)  # PT_LOAD, read + execute
    return header + segment + code


def add(daemon: Containerd, folder: Path) -> None:
    """Import the image into a containerd of the copy. folder: scratch for its layout."""
    write(folder, layout.host_platform())
    with layout.open_layout(folder) as opened:
        image = layout.find_image(opened)
        daemon.load(opened, image)
        for reference in (image.reference, image.by_digest):
            daemon.label(reference)


def write(folder: Path, platform: str) -> None:
    """An OCI layout with the one image, called NAME."""
    layer = _tar("pause", executable(platform))
    diff = "sha256:" + hashlib.sha256(layer).hexdigest()
    system, arch = platform.split("/")[:2]
    config = {"os": system, "architecture": arch, "config": {"Entrypoint": ["/pause"]},
              "rootfs": {"type": "layers", "diff_ids": [diff]}}  # fmt: skip
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": _blob(folder, json.dumps(config).encode(), "application/vnd.oci.image.config.v1+json"),
        "layers": [_blob(folder, layer, "application/vnd.oci.image.layer.v1.tar")],
    }
    entry = _blob(folder, json.dumps(manifest).encode(), str(manifest["mediaType"]))
    entry["annotations"] = {layout.NAME_KEY: NAME}
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')


def _blob(folder: Path, body: bytes, kind: str) -> dict[str, Any]:
    digest = hashlib.sha256(body).hexdigest()
    path = folder / "blobs" / "sha256" / digest
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(body)
    return {"mediaType": kind, "digest": f"sha256:{digest}", "size": len(body)}


def _tar(name: str, body: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        info = tarfile.TarInfo(name)
        info.size, info.mode = len(body), 0o755
        tar.addfile(info, io.BytesIO(body))
    return out.getvalue()
