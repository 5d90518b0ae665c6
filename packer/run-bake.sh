#!/bin/sh
# Bakes $TARGET of $SIZE on this instance from /var/tmp/image.tar, an OCI archive, under the name $REFERENCE; leaves it, the proof
# and the files for a cluster in /var/tmp/baked. $PACKAGE is what pip installs: a wheel that was copied here, or a name.
# $RUN, if it is given, is what the proof gives to the image's entry point.
set -eu # here: packer runs it as `sh FILE`, which passes over the first line
export DEBIAN_FRONTEND=noninteractive
apt-get update -q
apt-get install -qy --no-install-recommends containerd runc iproute2 xfsprogs e2fsprogs python3-venv
python3 -m venv /opt/builder
/opt/builder/bin/pip install --quiet --disable-pip-version-check "$PACKAGE" 'coldstart-builder[bake]'
mkdir -p /var/tmp/baked
/opt/builder/bin/builder bake disk /var/tmp/baked/data.img --target "$TARGET" --size "$SIZE" --oci "$REFERENCE=/var/tmp/image.tar" \
  ${RUN:+--run "$RUN"}
