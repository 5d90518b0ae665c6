"""What the database of the volume says of its images, read before the CRI plugin runs: that one mends labels as it starts."""

from __future__ import annotations

from typing import Any

from builder.node import containerd
from builder.node.proof.report import Notes


def audit_labels(daemon: containerd.Containerd, images: list[dict[str, Any]], notes: Notes) -> None:
    """kubelet's image GC spares what is pinned; the CRI plugin lists what is managed. And nothing is there but what was baked.

    images: of the build record.
    """
    rows = daemon.images()
    baked = {name for image in images for name in (image["reference"], by_digest(image))}
    findings = [
        f"{row.reference}: on the disk, not in the build record" for row in rows if images and row.reference not in baked
    ]
    findings += [
        f"{row.reference}: {key} is {row.labels.get(key)!r}, expected {value!r}"
        for row in rows
        for key, value in containerd.LABELS.items()
        if row.labels.get(key) != value
    ]
    notes.add("pinned and managed", f"{len(rows)} references", findings)


def audit_image(daemon: containerd.Containerd, image: dict[str, Any], notes: Notes) -> bool:
    """Whether the image is there by tag and digest, and unpacked."""
    reference, digest = image["reference"], image["digest"]
    rows = {row.reference: row.digest for row in daemon.images()}
    findings = [
        f"{name} is {rows.get(name, 'absent')}, expected {digest}"
        for name in (reference, by_digest(image))
        if rows.get(name) != digest
    ]
    snapshots = daemon.snapshots()
    chains = [layer["chain"] for layer in image["unpacked"]]
    findings += [
        f"snapshot {chain} is {snapshots.get(chain, 'missing')}" for chain in chains if snapshots.get(chain) != "Committed"
    ]
    notes.add(f"image {reference}", f"by tag, by {digest}, {len(chains)} layers unpacked", findings)
    return not findings


def by_digest(image: dict[str, Any]) -> str:
    """`repository@sha256:...`, as pods should name it."""
    return f"{image['reference'].rsplit(':', 1)[0]}@{image['digest']}"
