"""User data: Bottlerocket's TOML; MIME parts, a NodeConfig or a script for Amazon Linux 2023.

Forms: bottlerocket.dev, "Using user data"; the nodeadm documentation in awslabs/amazon-eks-ami; Karpenter's "NodeClasses",
spec.userData.
"""

from __future__ import annotations

import email
import email.policy
from collections.abc import Iterator
from dataclasses import replace
from email.errors import MessageError
from email.message import Message

from builder.node.lint import tomls, yamls
from builder.node.lint.facts import BOTTLEROCKET, Facts, Fault, Kubelet, Script
from builder.node.lint.part import Mark, Part

# Bottlerocket's names of what kubelet calls otherwise; settings.kubernetes in bottlerocket.dev's reference.
_KUBERNETES = {
    "image-gc-high-threshold-percent": "imageGCHighThresholdPercent",
    "image-gc-low-threshold-percent": "imageGCLowThresholdPercent",
    "eviction-hard": "evictionHard",
    "eviction-soft": "evictionSoft",
}
_FLAGS = {
    "--image-gc-high-threshold": "imageGCHighThresholdPercent",
    "--image-gc-low-threshold": "imageGCLowThresholdPercent",
}
_NODE_CONFIG = "application/node.eks.aws"


def collect(facts: Facts, part: Part, text: str, os: str, *, packed: bool = False) -> None:
    """What is in user data. part: where it stands.  os: as Machine has it.  packed: it was base64, so it has no lines."""
    if not text.strip():
        return
    packed = packed or not part.mark.text_line
    first = part.mark.line if packed else part.line_of(0)
    stripped = text.lstrip()
    if os == BOTTLEROCKET or stripped.startswith(("[settings", "settings.")):
        _toml(facts, part, text, first, packed)
    elif stripped.lower().startswith(("mime-version:", "content-type: multipart")):
        _mime(facts, part, text, first, packed)
    elif stripped.startswith(("apiVersion:", "kind:", "---")) and "node.eks.aws" in text:
        _node_config(facts, part, text, first, packed)
    else:
        facts.scripts.append(Script(part, text, first, packed))


def settings(facts: Facts, part: Part) -> None:
    """Bottlerocket's settings, from its TOML or from eksctl's YAML: the part that has `settings`."""
    facts.settings.append(part)
    kubernetes = part.at("settings", "kubernetes")
    if kubernetes.there:
        facts.kubelets.append(Kubelet(kubernetes, {name: kubernetes.at(key) for key, name in _KUBERNETES.items()}))


def node_config(facts: Facts, part: Part) -> None:
    """A NodeConfig of nodeadm."""
    facts.node_configs.append(part)
    kubelet = part.at("spec", "kubelet")
    if kubelet.there:
        options = kubelet_of(kubelet.at("config")).options
        facts.kubelets.append(Kubelet(kubelet, options | _flags(kubelet.at("flags"))))
    containerd = part.at("spec", "containerd", "config")
    if containerd.text:
        first = containerd.line_of(0)
        try:
            inside = tomls.read(containerd.text, part.source.path, first_line=first, label=containerd.where)
        except yamls.Unreadable as exc:
            facts.faults.append(Fault(containerd, str(exc), exc.line if containerd.mark.text_line else first))
        else:
            facts.containerd.append(_placed(inside, containerd, not containerd.mark.text_line))


def _flags(flags: Part) -> dict[str, Part]:
    """Of kubelet's command line, which wins over its configuration."""
    pairs = ((flag, *flag.text.partition("=")[::2]) for flag in flags.each())
    return {_FLAGS[name]: replace(flag, raw=value) for flag, name, value in pairs if name in _FLAGS}


def kubelet_of(part: Part) -> Kubelet:
    """Options that stand as KubeletConfiguration has them."""
    return Kubelet(part, {str(key): part.at(key) for key in part.raw} if isinstance(part.raw, dict) else {})


def _toml(facts: Facts, part: Part, text: str, first: int, packed: bool) -> None:
    try:
        inside = tomls.read(text, part.source.path, first_line=first, label=part.where)
    except yamls.Unreadable as exc:
        message = f"{exc}; Bottlerocket takes nothing else as user data"
        facts.faults.append(Fault(part, message, first if packed else exc.line))
    else:
        inside = _placed(inside, part, packed)
        settings(facts, inside)
        facts.documents.append(inside)


def _node_config(facts: Facts, part: Part, text: str, first: int, packed: bool) -> None:
    try:
        parts, twice = yamls.read(text, part.source.path, first_line=first)
    except yamls.Unreadable as exc:
        facts.faults.append(Fault(part, str(exc), first if packed else exc.line))
        return
    facts.faults.extend(Fault(part, str(one), first if packed else one.line) for one in twice)
    for one in parts:
        if isinstance(one.raw, dict) and one.raw.get("kind") == "NodeConfig":
            inside = _placed(one, part, packed)
            facts.documents.append(inside)
            node_config(facts, inside)


def _placed(inside: Part, part: Part, packed: bool) -> Part:
    """`inside` with its own lines, or where those are not the file's, all on the line of what it was packed in."""
    if not packed:
        return inside
    mark = Mark(part.mark.line, part.mark.column)
    return replace(inside, source=replace(inside.source, marks={(): mark}, silenced={}))


def _mime(facts: Facts, part: Part, text: str, first: int, packed: bool) -> None:
    try:
        message = email.message_from_string(text.lstrip(), policy=email.policy.compat32)
    except (MessageError, ValueError) as exc:
        facts.faults.append(Fault(part, f"not MIME: {exc}", first))
        return
    if not message.is_multipart():
        facts.faults.append(Fault(part, "MIME without parts: the boundary of its header is not in it", first))
        return
    for one, body, raw in _bodies(message):
        line = first if packed else first + text[: max(0, text.find(raw.strip()))].count("\n")
        if one.get_content_type() == _NODE_CONFIG:
            _node_config(facts, part, body.strip("\n"), line, packed)
        elif one.get_content_maintype() == "text":
            facts.scripts.append(Script(part, body.strip("\n"), line, packed or body.strip() != raw.strip()))


def _bodies(message: Message) -> Iterator[tuple[Message, str, str]]:
    """Each part, its text, and the text as it stands in the file."""
    for one in message.walk():
        if not one.is_multipart():
            body = one.get_payload(decode=True)
            yield one, body.decode(errors="replace") if isinstance(body, bytes) else "", str(one.get_payload())
