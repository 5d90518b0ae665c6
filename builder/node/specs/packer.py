"""Variables for the static templates in packer/, as JSON, and their rendering for Packer 1.6."""

from __future__ import annotations

from typing import Any

from builder.node.specs.gke import image_name
from builder.node.specs.ref import AWS, GIB, SnapshotRef, iops
from builder.node.specs.text import Hot, json_text


def files(ref: SnapshotRef, hot: Hot) -> dict[str, str]:
    return {".auto.pkrvars.json": json_text(variables(ref))}


def variables(ref: SnapshotRef) -> dict[str, Any]:
    """Values for what the templates of the target's cloud declare."""
    reference, digest = ref.images[0] if ref.images else ("", "")
    common = {
        "name": ref.name,
        "disk_file": str(ref.path),
        "volume_size": ref.gib,
        "builder_size": 16 + -(-2 * ref.nonzero_bytes // GIB),
        "content_sha256": ref.sha256,
    }
    if ref.target in AWS:
        volume = ref.settings.volume
        return common | {
            "region": ref.region,
            "volume_type": volume.type,
            "iops": iops(ref.disk_bytes, volume),
            "throughput": volume.throughput,
            "image_reference": reference,
            "image_digest": digest,
            "architecture": ref.machine.replace("aarch64", "arm64"),
            "instance_type": "c6i.large" if ref.arch == "amd64" else "c6g.large",
        }
    named = (
        {"image_name": image_name(ref)} if ref.target == "gke-secondary" else {"image_name": image_name(ref).replace("-", "_")}
    )
    machine = {
        ("gke-secondary", "amd64"): "n2-standard-4", ("gke-secondary", "arm64"): "t2a-standard-4",
        ("azure-data", "amd64"): "Standard_D4s_v5", ("azure-data", "arm64"): "Standard_D4ps_v5",
    }[ref.target, ref.arch]  # fmt: skip
    return common | named | {"machine_type": machine}


def packer_1_6(template: str) -> str:
    """The template without the lines between `# packer >= 1.8` and `# end`, so that Packer 1.6 can validate it.

    Distributions still carry 1.6, the last release before its plugins were split off.
    """
    return _without(template, "# packer >= 1.8")


def without_instance(template: str) -> str:
    """The template without the lines between `# on the instance` and `# end`: what an emulator of a cloud can build."""
    return _without(template, "# on the instance")


def _without(template: str, begin: str) -> str:
    kept, skip = [], False
    for line in template.splitlines(keepends=True):
        mark = line.strip()
        skip = skip or mark == begin
        if not skip:
            kept.append(line)
        skip = skip and mark != "# end"
    return "".join(kept)
