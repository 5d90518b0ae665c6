"""For Azure: the disk as a snapshot, and a gallery image for scale sets whose data disk it is. Not for AKS; see AKS below.

Sources: Azure documentation, "Upload a VHD to Azure" (upload-size-bytes counts the footer; page blob; grant, copy, revoke) and
"Microsoft.Compute galleries/images/versions" (osDiskImage, dataDiskImages with lun and source); AKS: node pool snapshots pin
one of Microsoft's node images, and a custom node image is not offered (Azure/karpenter-provider-azure issue 252); "Reduce image
pull time with Artifact Streaming on AKS" (amd64).
"""

from __future__ import annotations

from typing import Any

from builder import render, units
from builder.node.specs.gke import image_name
from builder.node.specs.ref import SNAPSHOT, SnapshotRef
from builder.node.specs.text import Hot, json_text

AKS = (
    "AKS takes neither a custom node image nor a data disk from a snapshot for its nodes; a node pool snapshot pins one of"
    " Microsoft's own node images. On AKS use Artifact Streaming. This file is for scale sets and machines you run yourself."
)


def files(ref: SnapshotRef, hot: Hot) -> dict[str, str]:
    return {".azure.sh": script(ref), ".gallery.json": json_text(gallery(ref))}


def script(ref: SnapshotRef) -> str:
    return render.text("node/azure.sh.j2", disk=ref.file, name=image_name(ref), size=units.format_size(ref.nonzero_bytes),
                       sha256=ref.sha256, aks=AKS)  # fmt: skip


def gallery(ref: SnapshotRef) -> dict[str, Any]:
    """An ARM template: gallery, image definition, and a version whose data disk on LUN 0 is ours."""
    data_disk: dict[str, Any] = {"type": "string", "metadata": {"description": "The snapshot that the upload script printed."}}
    data_disk |= {} if ref.id == SNAPSHOT else {"defaultValue": ref.id}
    os_disk = {"type": "string", "metadata": {"description": "Snapshot or disk with the nodes' system, generalised, Gen2."}}
    image = {
        "type": "Microsoft.Compute/galleries/images",
        "apiVersion": "2024-03-03",
        "name": "[format('{0}/{1}', parameters('gallery'), parameters('image'))]",
        "location": "[parameters('location')]",
        "dependsOn": ["[resourceId('Microsoft.Compute/galleries', parameters('gallery'))]"],
        "properties": {
            "osType": "Linux",
            "osState": "Generalized",
            "hyperVGeneration": "V2",
            "architecture": {"amd64": "x64", "arm64": "Arm64"}[ref.arch],
            "identifier": {"publisher": "builder", "offer": "[parameters('image')]", "sku": ref.arch},
        },
    }
    version = {
        "type": "Microsoft.Compute/galleries/images/versions",
        "apiVersion": "2024-03-03",
        "name": "[format('{0}/{1}/{2}', parameters('gallery'), parameters('image'), parameters('version'))]",
        "location": "[parameters('location')]",
        "tags": {"builder-content-sha256": ref.sha256},
        "dependsOn": ["[resourceId('Microsoft.Compute/galleries/images', parameters('gallery'), parameters('image'))]"],
        "properties": {
            "publishingProfile": {"targetRegions": [{"name": "[parameters('location')]"}]},
            "storageProfile": {
                "osDiskImage": {"hostCaching": "ReadOnly", "source": {"id": "[parameters('osDisk')]"}},
                "dataDiskImages": [{"lun": 0, "hostCaching": "ReadOnly", "source": {"id": "[parameters('dataDisk')]"}}],
            },
        },
    }
    return {
        "$schema": "https://schema.management.azure.com/schemas/2019-04-01/deploymentTemplate.json#",
        "contentVersion": "1.0.0.0",
        "metadata": {"description": AKS},
        "parameters": {
            "location": {"type": "string", "defaultValue": "[resourceGroup().location]"},
            "gallery": {"type": "string", "defaultValue": "builder"},
            "image": {"type": "string", "defaultValue": image_name(ref).rsplit("-", 1)[0]},
            "version": {"type": "string", "defaultValue": "1.0.0"},
            "osDisk": os_disk,
            "dataDisk": data_disk,
        },
        "resources": [
            {
                "type": "Microsoft.Compute/galleries",
                "apiVersion": "2024-03-03",
                "name": "[parameters('gallery')]",
                "location": "[parameters('location')]",
                "properties": {},
            },
            image,
            version,
        ],
    }
