#!/bin/sh
# Makes this node use the volume baked as data.img: label BUILDER-DATA, 10 % full from the start.
# Run as root before containerd and kubelet start, or stop them first. A second run changes nothing.
# kubelet: imageGCHighThresholdPercent 85, imageGCLowThresholdPercent 80, above what is full.
set -eu
root=${ROOT:-}
mkdir -p "$root/etc/systemd/system"
cat > "$root/etc/systemd/system/var-lib-builder-volume.mount" <<'FILE'
[Unit]
Description=Baked volume data.img

[Mount]
What=/dev/disk/by-label/BUILDER-DATA
Where=/var/lib/builder/volume
Type=xfs
Options=noatime

[Install]
WantedBy=local-fs.target
FILE
mkdir -p "$root/etc/systemd/system"
cat > "$root/etc/systemd/system/var-lib-containerd.mount" <<'FILE'
[Unit]
Description=Images baked on data.img
Requires=var-lib-builder-volume.mount
After=var-lib-builder-volume.mount
Before=containerd.service kubelet.service

[Mount]
What=/var/lib/builder/volume/var/lib/containerd
Where=/var/lib/containerd
Type=none
Options=bind

[Install]
WantedBy=multi-user.target
FILE
mkdir -p "$root/etc/systemd/system"
cat > "$root/etc/systemd/system/var-lib-builder-models.mount" <<'FILE'
[Unit]
Description=Weights baked on data.img
Requires=var-lib-builder-volume.mount
After=var-lib-builder-volume.mount
Before=kubelet.service
# A disk without them has no such folder. A prefetch job may add to it.
ConditionPathIsDirectory=/var/lib/builder/volume/var/lib/builder/models

[Mount]
What=/var/lib/builder/volume/var/lib/builder/models
Where=/var/lib/builder/models
Type=none
Options=bind

[Install]
WantedBy=multi-user.target
FILE
mkdir -p "$root/etc/systemd/system"
cat > "$root/etc/systemd/system/var-lib-builder-compiled.mount" <<'FILE'
[Unit]
Description=Compile caches baked on data.img
Requires=var-lib-builder-volume.mount
After=var-lib-builder-volume.mount
Before=kubelet.service
# A disk without them has no such folder. A prefetch job may add to it.
ConditionPathIsDirectory=/var/lib/builder/volume/var/lib/builder/compiled

[Mount]
What=/var/lib/builder/volume/var/lib/builder/compiled
Where=/var/lib/builder/compiled
Type=none
Options=bind

[Install]
WantedBy=multi-user.target
FILE
mkdir -p "$root/etc/systemd/system/containerd.service.d"
cat > "$root/etc/systemd/system/containerd.service.d/10-builder-volume.conf" <<'FILE'
# containerd waits for the volume. Wants, not Requires: a node whose disk is missing pulls its images as any other does.
[Unit]
Wants=var-lib-containerd.mount
After=var-lib-containerd.mount

[Service]
# The pause image of EKS machine images lies in the folder that the mount hides; its archive does not.
ExecStartPost=-/bin/sh -c 'test ! -e /etc/eks/pause.tar || ctr -n k8s.io images import /etc/eks/pause.tar'
ExecStartPost=-/bin/sh -c 'test ! -e /etc/eks/pause.tar || ctr -n k8s.io images label localhost/kubernetes/pause:latest io.cri-containerd.image=managed io.cri-containerd.pinned=pinned'
FILE
systemctl ${root:+--root "$root"} enable var-lib-builder-volume.mount var-lib-containerd.mount var-lib-builder-models.mount var-lib-builder-compiled.mount
# START=no: for a machine image that is being made, whose nodes will start them.
[ "${START:-yes}" = yes ] || exit 0
systemctl daemon-reload
systemctl start var-lib-builder-volume.mount var-lib-containerd.mount var-lib-builder-models.mount var-lib-builder-compiled.mount
