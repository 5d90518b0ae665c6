#!/bin/sh
# Puts data.img (12.0 GiB of content, sha256 c0c0c0c0c0c0) into Compute Engine as an image, and makes a GKE node pool that
# starts containers from it. Needs a Standard cluster of 1.28.3-gke.1067000 or later, and gcloud with a login.
# Image streaming must be on: the part of the node that reads the disk belongs to it.
set -eu
: "${PROJECT:?the project of the image and the cluster}"
: "${LOCATION:?zone or region of the cluster}"
cluster=${CLUSTER_NAME:?the name of the cluster}
pool=${POOL:-llama-c0c0c0c0c0c0}
machine=${MACHINE_TYPE:-g2-standard-12}
: "${BUCKET:?a bucket of Cloud Storage, for the time of the import}"
archive=${ARCHIVE:-$(dirname "$0")/data.img.tar.gz}
image=projects/$PROJECT/global/images/llama-c0c0c0c0c0c0
if ! gcloud compute images describe llama-c0c0c0c0c0c0 --project="$PROJECT" > /dev/null 2>&1; then
  gcloud storage cp "$archive" "gs://$BUCKET/llama-c0c0c0c0c0c0.tar.gz"
  gcloud compute images create llama-c0c0c0c0c0c0 --project="$PROJECT" --source-uri="gs://$BUCKET/llama-c0c0c0c0c0c0.tar.gz" \
    --architecture=X86_64 --labels=builder-content-sha256=c0c0c0c0c0c0
  gcloud storage rm "gs://$BUCKET/llama-c0c0c0c0c0c0.tar.gz"
fi
gcloud container node-pools create "$pool" --project="$PROJECT" --location="$LOCATION" --cluster="$cluster" \
  --machine-type="$machine" --image-type=COS_CONTAINERD --disk-type=pd-ssd --num-nodes=1 --enable-image-streaming \
  --secondary-boot-disk=disk-image="$image",mode=CONTAINER_IMAGE_CACHE
