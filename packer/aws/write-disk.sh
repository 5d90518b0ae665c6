#!/bin/sh -eu
# Writes the disk in /tmp/disk.tar.zst onto $DEVICE, an empty EBS volume, and reads it back.
command -v zstd > /dev/null || { apt-get update -q && apt-get install -qy zstd || dnf install -qy zstd; }
device=$(readlink -f "$DEVICE")
test -b "$device"
mkdir -p /var/tmp/disk
tar --extract --sparse --zstd --file /tmp/disk.tar.zst --directory /var/tmp/disk
image=$(find /var/tmp/disk -type f)
test "$(blockdev --getsize64 "$device")" -ge "$(stat -c %s "$image")"
# A new volume reads as zeros, so only blocks that hold something are written: 512 KiB, the block of a snapshot.
dd if="$image" of="$device" bs=512K conv=sparse,notrunc,fsync status=none
blockdev --flushbufs "$device"
cmp --bytes="$(stat -c %s "$image")" "$image" "$device"
