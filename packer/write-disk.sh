#!/bin/sh
# Writes a baked disk onto $DEVICE, an empty volume of a cloud, and reads it back. The disk is $IMAGE if that is given,
# otherwise the one file in /var/tmp/disk.tar.zst; Amazon Linux 2023 keeps /tmp in memory, half of it at most.
set -eu # here: packer runs it as `sh FILE`, which passes over the first line
if [ -z "${IMAGE:-}" ]; then
  if ! command -v zstd > /dev/null; then
    if command -v apt-get > /dev/null; then apt-get update -q && apt-get install -qy zstd; else dnf install -qy zstd; fi
  fi
  mkdir -p /var/tmp/disk
  tar --extract --sparse --zstd --file /var/tmp/disk.tar.zst --directory /var/tmp/disk
  IMAGE=$(find /var/tmp/disk -type f)
fi
device=$(readlink -f "${DEVICE:?the device of the empty volume}")
test -b "$device"
test "$(blockdev --getsize64 "$device")" -ge "$(stat -c %s "$IMAGE")"
# A new volume reads as zeros, so only blocks that hold something are written: 512 KiB, the block of an EBS snapshot.
dd if="$IMAGE" of="$device" bs=512K conv=sparse,notrunc,fsync status=none
blockdev --flushbufs "$device"
cmp --bytes="$(stat -c %s "$IMAGE")" "$IMAGE" "$device"
