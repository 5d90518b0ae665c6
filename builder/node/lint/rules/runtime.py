"""Rules on containerd and on scripts that run at boot: which store is read, and whether it is left alone."""

from __future__ import annotations

import re
from collections.abc import Iterator

from builder.node.lint.facts import Facts, Script
from builder.node.lint.rule import Hit, Rule

_OURS = "overlayfs"
_ROOT = "/var/lib/containerd"
_IMAGES = re.compile(
    r"\b(?:ctr\b[^\n;&|]*\bimages?\s+(?:rm|remove|delete|prune)|crictl\s+rmi|nerdctl\b[^\n;&|]*\b(?:rmi|image\s+(?:rm|prune)|system\s+prune)"
    r"|docker\s+(?:system|image)\s+prune)\b"
)
_FOLDER = re.compile(rf"\brm\s+(?:-\S+\s+)*[\"']?{_ROOT}(?:/\S*)?")
_MOUNT = re.compile(rf"^\s*(?:sudo\s+)?mount\b[^\n]*(?:{_ROOT}|\s-a\b)", re.MULTILINE)
_FORMAT = re.compile(r"\b(?:mkfs(?:\.\w+)?|cryptsetup\s+luksFormat|wipefs|pvcreate|sgdisk\s+(?:-Z|-o|--zap\S*))\b[^\n;&|]*")
_BASE = re.compile(r"/dev/(?:xvdb|sd[b-p]|disk/by-label/BUILDER-DATA|disk/by-partlabel/BOTTLEROCKET-DATA)")
_SED = re.compile(r"snapshotter[^\n]{0,12}=\s*[\\\"']*(soci|stargz|nydus|native|devmapper|zfs|btrfs|erofs)\b")


def _snapshotter(facts: Facts) -> Iterator[Hit]:
    for settings in facts.settings:
        found = settings.at("settings", "container-runtime", "snapshotter")
        if found.there and found.raw != _OURS:
            yield Hit(found, f"the snapshotter {found.raw!r} empties the baked {_ROOT} at boot")
    for config in facts.node_configs:
        gate = config.at("spec", "featureGates", "FastImagePull")
        if gate.raw is True:
            yield Hit(gate, "FastImagePull makes soci the snapshotter, which does not see what was baked")
    for containerd in facts.containerd:
        for part in containerd.at("plugins").walk():
            if part.key and part.key[-1] == "snapshotter" and part.text not in ("", _OURS):
                yield Hit(part, f"the snapshotter {part.text!r} does not see what was baked for {_OURS}")
    yield from _scripted(facts)


def _scripted(facts: Facts) -> Iterator[Hit]:
    for script in facts.scripts:
        for line, text in _lines(script):
            if match := _SED.search(text):
                yield Hit(script.part, f"the snapshotter {match[1]!r} does not see what was baked for {_OURS}", line=line)


def _containerd_root(facts: Facts) -> Iterator[Hit]:
    for containerd in facts.containerd:
        root = containerd.at("root")
        if root.text and root.text.rstrip("/") != _ROOT:
            yield Hit(root, f"containerd's root is {root.text}; the disk is mounted for {_ROOT}")


def _wipes(facts: Facts) -> Iterator[Hit]:
    for script in facts.scripts:
        mounted = _first(script, _MOUNT)
        for line, text in _lines(script):
            if match := _IMAGES.search(text):
                yield Hit(script.part, f"`{match[0].strip()}` at boot removes images from the store", line=line)
            if (match := _FOLDER.search(text)) and not line < mounted:
                yield Hit(script.part, f"`{match[0].strip()}` at boot empties the store", line=line)
            if (match := _FORMAT.search(text)) and _BASE.search(match[0]):
                yield Hit(script.part, f"`{match[0].strip()[:80]}` at boot formats the baked volume", line=line)


def _lines(script: Script) -> Iterator[tuple[int, str]]:
    """Lines that run, with their place in the file; packed text has the place of what it was packed in."""
    for number, text in enumerate(script.text.splitlines()):
        if not text.lstrip().startswith("#"):
            yield script.first_line + (0 if script.packed else number), text


def _first(script: Script, pattern: re.Pattern[str]) -> int:
    """The line of the first match; 0 if there is none: then nothing is before it."""
    return next((line for line, text in _lines(script) if pattern.search(text)), 0)


RULES = (
    Rule(
        "snapshotter", "error", "another snapshotter than overlayfs",
        "Layers are unpacked for one snapshotter and invisible to another; Bottlerocket even empties /var/lib/containerd when "
        "it changes.",
        "Leave the snapshotter alone on nodes with a baked volume; their images need no faster pull.",
        "bottlerocket-core-kit issues 580 and 582; amazon-eks-ami, nodeadm feature gate FastImagePull; containerd, "
        "docs/snapshotters",
        _snapshotter, ("soci",),
    ),
    Rule(
        "containerd-root", "error", "containerd's store somewhere else",
        "The baked store is bound to /var/lib/containerd; with another root containerd starts with an empty one.",
        "Remove `root`.",
        "containerd, docs/ops.md, root and state",
        _containerd_root,
    ),
    Rule(
        "boot-wipes", "error", "a boot script that removes what was baked",
        "User data runs before kubelet on every new node, so the store is gone before the first pod.",
        "Remove the line; to mount another volume there, empty the folder before the mount, not after.",
        "terraform-aws-eks-blueprints, ml-container-cache: its nodes empty the folder, then mount",
        _wipes,
    ),
)  # fmt: skip
