"""What kubelet would be told of an image: the answers of containerd's CRI plugin."""

from __future__ import annotations

from typing import Any

from builder.node.proof.cri import Cri
from builder.node.proof.references import by_digest
from builder.node.proof.report import Notes

PINNED_SINCE = (1, 7)  # 1.6 knows neither the label nor the field (containerd 1.7 release notes; measured on 1.6.20)


def audit(cri: Cri, image: dict[str, Any], version: str, notes: Notes) -> bool:
    """Whether the image is found by every name that a pod may use, as the same image, and pinned."""
    findings = []
    reports_pins = tuple(map(int, version.split(".")[:2])) >= PINNED_SINCE
    for name in names(image):
        answer = cri.call("ImageStatus", image={"image": name})
        if not answer.HasField("image"):
            findings.append(f"{name} is absent")
            continue
        found = answer.image
        if found.id != image["config"]:
            findings.append(f"{name} is {found.id}, expected {image['config']}")
        if by_digest(image) not in found.repo_digests:
            findings.append(f"{name} has the digests {', '.join(found.repo_digests) or 'none'}, expected {by_digest(image)}")
        if reports_pins and not found.pinned:
            findings.append(f"{name} is not pinned")
    listed = [one.id for one in cri.call("ListImages").images]
    findings += [] if image["config"] in listed else [f"{image['config']} is not listed"]
    pinned = "pinned" if reports_pins else f"{version} does not report pins"
    notes.add(f"CRI {image['reference']}", f"by tag, digest, tag@digest and id; listed; {pinned}", findings)
    return not findings


def names(image: dict[str, Any]) -> tuple[str, ...]:
    """Every way to name the image."""
    reference = image["reference"]
    return reference, by_digest(image), f"{reference}@{image['digest']}", image["config"]
