#!/bin/sh
# Puts data.img (12.0 GiB of content) into Azure as a managed disk, and makes a snapshot of it. Prints the snapshot's id.
# AKS takes neither a custom node image nor a data disk from a snapshot for its nodes; a node pool snapshot pins one of
# Microsoft's own node images. On AKS use Artifact Streaming. This file is for scale sets and machines you run yourself.
set -eu
: "${RESOURCE_GROUP:?the resource group}"
: "${LOCATION:?the region}"
vhd=${VHD:-$(dirname "$0")/data.img.vhd}
disk=llama-c0c0c0c0c0c0
# A fixed VHD: the disk in whole MiB, and a footer of 512 bytes, which the size to upload counts.
bytes=$(stat -c %s "$vhd")
test $((bytes % 1048576)) = 512 || { echo "$vhd: $bytes bytes; expected whole MiB and 512 bytes" >&2; exit 1; }
az disk create --resource-group "$RESOURCE_GROUP" --name "$disk" --location "$LOCATION" --sku Premium_LRS \
  --upload-type Upload --upload-size-bytes "$bytes" \
  --tags builder-content-sha256=c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0 --output none
trap 'az disk revoke-access --resource-group "$RESOURCE_GROUP" --name "$disk" --output none' EXIT
# The address lets whoever has it write this one disk until the upload ends. azcopy takes it as an argument, and nowhere else.
address=$(az disk grant-access --resource-group "$RESOURCE_GROUP" --name "$disk" --access-level Write \
  --duration-in-seconds 86400 --query 'accessSAS || accessSas' --output tsv)
azcopy copy "$vhd" "$address" --blob-type PageBlob
trap - EXIT
az disk revoke-access --resource-group "$RESOURCE_GROUP" --name "$disk" --output none
az snapshot create --resource-group "$RESOURCE_GROUP" --name "$disk" --location "$LOCATION" --source "$disk" \
  --incremental true --tags builder-content-sha256=c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0 --query id --output tsv
