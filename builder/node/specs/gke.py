"""For Google Cloud: the disk as an image for GKE's secondary boot disks, and volumes of weights from a snapshot.

Sources: GKE, "Use secondary boot disks to preload data or container images" (Standard clusters from 1.28.3-gke.1067000;
image streaming must be on; the disk's size is the image's); Compute Engine, "Manually import boot disks" (a gzip tar in oldgnu
format with disk.raw in it); ai-on-gke/tools, gke-disk-image-builder (flags of the node pool); external-snapshotter's CRDs,
snapshot.storage.k8s.io/v1; compute-persistent-disk-csi-driver (handle projects/PROJECT/global/snapshots/NAME).
"""

from __future__ import annotations

import re
from typing import Any

from builder import render, units
from builder.node.specs.ref import SNAPSHOT, SnapshotRef
from builder.node.specs.text import Hot, comment, yaml_text

DRIVER = "pd.csi.storage.gke.io"


def files(ref: SnapshotRef, hot: Hot) -> dict[str, str]:
    return {".gke.sh": script(ref), ".volumesnapshot.yaml": volume_snapshot(ref)}


def image_name(ref: SnapshotRef) -> str:
    """A name for Compute Engine: lower case, digits and hyphens, at most 63 characters, a letter first.

    The content's digest is part of it: an image is never overwritten.
    """
    stem = re.sub(r"[^a-z0-9]+", "-", ref.name.lower()).strip("-")[:48] or "disk"
    return f"{stem if stem[0].isalpha() else 'd' + stem}-{ref.sha256[:12]}"


def script(ref: SnapshotRef) -> str:
    return render.text(
        "node/gke.sh.j2",
        disk=ref.file,
        image="" if ref.id == SNAPSHOT else ref.id,
        image_name=image_name(ref),
        cluster="" if ref.cluster.startswith("${") else ref.cluster,
        name=image_name(ref)[:39].strip("-"),
        arch={"amd64": "X86_64", "arm64": "ARM64"}[ref.arch],
        size=units.format_size(ref.nonzero_bytes),
        sha256=ref.sha256[:12],
    )


def volume_snapshot(ref: SnapshotRef) -> str:
    """An existing snapshot of a disk of weights, as a claim that many pods read. For weights baked with --target raw."""
    name = f"{ref.name}-weights"
    snapshot = {"apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshot"}
    at = {"name": name, "namespace": "default"}
    documents: tuple[dict[str, Any], ...] = (
        {
            "apiVersion": "storage.k8s.io/v1",
            "kind": "StorageClass",
            "metadata": {"name": name},
            "provisioner": DRIVER,
            "parameters": {"type": "pd-ssd", "csi.storage.k8s.io/fstype": "xfs"},
            "volumeBindingMode": "WaitForFirstConsumer",
            "reclaimPolicy": "Delete",
        },
        {
            "apiVersion": "snapshot.storage.k8s.io/v1",
            "kind": "VolumeSnapshotContent",
            "metadata": {"name": name},
            "spec": {
                "driver": DRIVER,
                "deletionPolicy": "Retain",
                "source": {"snapshotHandle": "${WEIGHTS_SNAPSHOT}"},
                "volumeSnapshotRef": {"name": name, "namespace": "default"},
            },
        },
        {**snapshot, "metadata": at, "spec": {"source": {"volumeSnapshotContentName": name}}},
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": at,
            "spec": {
                "accessModes": ["ReadOnlyMany"],
                "storageClassName": name,
                "dataSource": {"apiGroup": "snapshot.storage.k8s.io", "kind": "VolumeSnapshot", "name": name},
                "resources": {"requests": {"storage": f"{ref.gib}Gi"}},
            },
        },
    )
    note = comment(
        "Weights on a disk of their own, from a snapshot of one: builder bake disk weights.img --target raw --weights DIR",
        "Pods mount it with subPath var/lib/builder/models, read-only. The claim is at least as large as the snapshot.",
        "WEIGHTS_SNAPSHOT is projects/PROJECT/global/snapshots/NAME.",
        "WEIGHTS_SNAPSHOT=... envsubst '${WEIGHTS_SNAPSHOT}' < THIS_FILE | kubectl apply -f -",
    )
    return yaml_text(*documents, note=note)
