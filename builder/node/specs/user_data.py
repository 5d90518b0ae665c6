"""What a node is told at its first boot: Bottlerocket's TOML, AL2023's MIME parts, and the units that mount the disk.

Bottlerocket finds the disk by itself. Elsewhere the disk carries the label BUILDER-DATA: systemd mounts it, binds its folders
to where containerd and the runtime look, all before containerd starts. One shell script installs the units: a MIME part on
AL2023, custom data on Azure, run by hand or by cloud-init anywhere else.

Sources: Bottlerocket's documentation, settings.kubernetes; systemd.mount(5), systemd.unit(5); awslabs/amazon-eks-ami: nodeadm's
NodeConfig (node.eks.aws/v1alpha1), nodeadm-run.service (runs after cloud-init's scripts and starts containerd),
cache-pause-container (the pause image lies in the machine image's own /var/lib/containerd, which the mount hides, and as an
archive in /etc/eks/pause.tar).
"""

from __future__ import annotations

from builder import render
from builder.node.hot import reader
from builder.node.specs.ref import SnapshotRef
from builder.node.specs.text import NONE, Hot, yaml_text
from builder.node.targets import FS_LABEL

GC_HIGH, GC_LOW = 85, 80  # kubelet's defaults
BOUNDARY = "BUILDER"
MOUNTS = (
    "var-lib-builder-volume.mount",
    "var-lib-containerd.mount",
    "var-lib-builder-models.mount",
    "var-lib-builder-compiled.mount",
)
DROP_IN = "containerd.service.d/10-builder-volume.conf"
HOT = "builder-hot.service"


def bottlerocket(ref: SnapshotRef, hot: Hot) -> dict[str, str]:
    return {".user-data.toml": bottlerocket_toml(ref, hot)}


def al2023(ref: SnapshotRef, hot: Hot) -> dict[str, str]:
    return {".user-data.txt": al2023_mime(ref, hot)}


def units(ref: SnapshotRef, hot: Hot) -> dict[str, str]:
    """The units one by one, and the script that installs them all."""
    return {f".units/{name}": text for name, text in unit_files(ref, hot).items()} | {".setup.sh": setup_script(ref, hot)}


def of(ref: SnapshotRef, hot: Hot) -> str:
    """User data of an AWS target."""
    return bottlerocket_toml(ref, hot) if ref.target == "bottlerocket" else al2023_mime(ref, hot)


def thresholds(used: float) -> tuple[int, int]:
    """kubelet's (high, low) per cent for image collection, above what is full from the start: else it would collect for ever.

    >>> thresholds(0.1), thresholds(0.82)
    ((85, 80), (92, 87))
    """
    low = max(GC_LOW, min(round(used * 100) + 5, 94))
    return max(GC_HIGH, min(low + 5, 99)), low


def bottlerocket_toml(ref: SnapshotRef, hot: Hot = NONE) -> str:
    high, low = thresholds(ref.used)
    text = render.text(
        "node/user-data.toml.j2", disk=ref.file, used_percent=round(ref.used * 100), gc_low=str(low), gc_high=str(high)
    )
    return reader.need_room(text + (f"\n{hot['.hot.toml'].strip()}\n" if hot else ""))


def al2023_mime(ref: SnapshotRef, hot: Hot = NONE) -> str:
    """Two parts: nodeadm's configuration, and the script that mounts the volume."""
    high, low = thresholds(ref.used)
    config = {
        "apiVersion": "node.eks.aws/v1alpha1",
        "kind": "NodeConfig",
        "spec": {"kubelet": {"config": {"imageGCHighThresholdPercent": high, "imageGCLowThresholdPercent": low}}},
    }
    return reader.need_room(
        render.text("node/al2023.mime.j2", boundary=BOUNDARY, node_config=yaml_text(config), script=setup_script(ref, hot))
    )


def unit_files(ref: SnapshotRef, hot: Hot = NONE) -> dict[str, str]:
    """Units and drop-in by their path under /etc/systemd/system. A mount unit is named after where it mounts."""
    values = {"label": FS_LABEL, "filesystem": ref.filesystem, "disk": ref.file}
    texts = {name: render.text(f"node/units/{name}.j2", **values) for name in MOUNTS[:2]}
    for name, what in (("models", "Weights"), ("compiled", "Compile caches")):
        texts[f"var-lib-builder-{name}.mount"] = render.text("node/units/bind.mount.j2", folder=name, what=what, **values)
    texts[DROP_IN] = render.text("node/units/containerd.conf.j2", **values)
    return texts | ({HOT: hot[".hot.service"]} if hot else {})


def setup_script(ref: SnapshotRef, hot: Hot = NONE) -> str:
    high, low = thresholds(ref.used)
    files = {f"/etc/systemd/system/{name}": text for name, text in unit_files(ref, hot).items()}
    return render.text("node/setup.sh.j2", disk=ref.file, label=FS_LABEL, files=files, mounts=MOUNTS, hot=HOT if hot else "",
                       used_percent=round(ref.used * 100), gc_low=low, gc_high=high)  # fmt: skip
