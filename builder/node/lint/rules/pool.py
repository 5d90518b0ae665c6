"""Rules on Karpenter's node pools, and on the architecture that pods ask for."""

from __future__ import annotations

import re
from collections.abc import Iterator

from builder.node.lint.disk import split
from builder.node.lint.facts import Facts, Pool, Requirement
from builder.node.lint.part import Part
from builder.node.lint.rule import Hit, Rule
from builder.node.lint.rules.pod import concerned

_ARCH = "kubernetes.io/arch"
_ARCHITECTURES = ("amd64", "arm64")
_FAMILY, _TYPE = "karpenter.k8s.aws/instance-family", "node.kubernetes.io/instance-type"
_GPU = re.compile(r"karpenter\.k8s\.aws/instance-(gpu|accelerator)-")
_GPU_FAMILY = re.compile(r"(?:g|p|inf|trn|dl)\d|(?:g|p|inf|trn|dl)$")
_ARM = re.compile(r"[a-z]+\d+[a-z]*g[a-z]*(?:[.-]|$)|a1(?:\.|$)|p6e-gb")  # m7g, c7gn, g5g, x2gd; Grace: p6e-gb200
_PATIENCE_S = 300
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
# Taints that the named agents take off themselves.
_AGENTS = re.compile(
    r"agent-not-ready$|^node\.cilium\.io/|^node\.kubernetes\.io/|^node\.cloudprovider\.kubernetes\.io/|^karpenter\.sh/"
)


def seeded(facts: Facts) -> Iterator[Pool]:
    """Pools whose nodes have the baked volume: by their class in these files, or all of them where only the disk is given."""
    classes: dict[str, bool] = {}
    for machine in facts.machines:
        classes[machine.name] = classes.get(machine.name, False) or machine.seeded
    for pool in facts.pools:
        if classes.get(pool.node_class, bool(facts.disk.size_bytes and not classes)):
            yield pool


def _mixed_arch(facts: Facts) -> Iterator[Hit]:
    for pool in seeded(facts):
        yield from _pool_arch(pool, facts.disk.architectures)
    for pod, one in concerned(facts):
        for image in facts.disk.images:
            wanted = pod.part.at("nodeSelector", _ARCH)
            if (
                split(one.image.text)[0] == image.repository
                and image.architecture
                and wanted.text not in ("", image.architecture)
            ):
                yield Hit(wanted, f"{image} was baked for {image.architecture}, and the pod asks for {wanted.text}")


def _pool_arch(pool: Pool, baked: frozenset[str]) -> Iterator[Hit]:
    stated = pool.requirement(_ARCH)
    allowed = _allowed(stated)
    families = [one for key in (_FAMILY, _TYPE) for one in pool.requirement(key) if one.operator == "In"]
    if not stated and families:
        allowed = {architecture(value) for one in families for value in one.values}
    at = (
        stated[0].part if stated else families[0].part if families else pool.part.at("spec", "template", "spec", "requirements")
    )
    if len(allowed) > 1:
        severity = "" if stated or families else "warning"
        yield Hit(at, f"nodes may be {' or '.join(sorted(allowed))}, and a disk holds one architecture", severity)
    elif baked and not allowed & baked:
        yield Hit(at, f"nodes are {', '.join(allowed)}, and the disk was baked for {', '.join(sorted(baked))}")


def architecture(name: str) -> str:
    """Of an EC2 instance type or family: Graviton has a g after the generation's number, and Grace is in its name.

    Source: EC2 documentation, "Amazon EC2 instance type naming conventions".
    """
    return "arm64" if _ARM.match(name) else "amd64"


def _allowed(stated: list[Requirement]) -> set[str]:
    allowed = set(_ARCHITECTURES)
    for one in stated:
        if one.operator == "In":
            allowed &= set(one.values)
        elif one.operator == "NotIn":
            allowed -= set(one.values)
    return allowed


def _consolidation(facts: Facts) -> Iterator[Hit]:
    baked = {id(pool) for pool in seeded(facts)}
    for pool in facts.pools:
        if id(pool) not in baked and not _has_gpus(pool):
            continue
        disruption = pool.part.at("spec", "disruption")
        policy = disruption.at("consolidationPolicy").text or "WhenEmptyOrUnderutilized"
        after = disruption.at("consolidateAfter")
        wait = _seconds(after)
        if wait is None:
            continue
        if policy != "WhenEmpty" and wait < _PATIENCE_S:
            at = disruption.at("consolidationPolicy")
            yield Hit(at, f"{policy} after {after.raw or '0s'} moves pods off warm nodes, and each move is a cold start")
        elif wait == 0:
            yield Hit(after, "a node that is empty for a moment is given back at once, warm as it is")


def _has_gpus(pool: Pool) -> bool:
    taints = [str(taint.at("key").raw) for taint in pool.part.at("spec", "template", "spec", "taints").each()]
    return "nvidia.com/gpu" in taints or any(
        (_GPU.match(one.key) and one.operator not in ("DoesNotExist", "NotIn"))
        or (one.key in (_FAMILY, _TYPE, "karpenter.k8s.aws/instance-category") and one.operator == "In"
            and all(_GPU_FAMILY.match(value) for value in one.values))
        for one in pool.requirements
    )  # fmt: skip


def _seconds(part: Part) -> float | None:
    """None: never, or not known."""
    if not part.there:
        return 0.0
    parts = _DURATION.findall(part.text)
    return sum(float(number) * _SECONDS[unit] for number, unit in parts) if parts else 0.0 if part.raw == 0 else None


def _startup_taint(facts: Facts) -> Iterator[Hit]:
    for pool in facts.pools:
        for taint in pool.part.at("spec", "template", "spec", "startupTaints").each():
            key = taint.at("key").text
            if key and not _AGENTS.search(key) and not _named(facts, pool.part, key):
                yield Hit(taint, f"nothing in these files names {key}, and nodes keep it until something takes it off")


def _named(facts: Facts, pool: Part, key: str) -> bool:
    """Whether another object, or a script, has the taint's key in it."""
    others = (part for document in facts.documents if document.raw is not pool.raw for part in document.walk())
    said = any(key in part.text or (isinstance(part.raw, dict) and key in part.raw) for part in others)
    return said or any(key in script.text for script in facts.scripts)


RULES = (
    Rule(
        "mixed-arch", "error", "nodes or pods of another architecture than the disk",
        "A disk holds one architecture; on a node of the other one containerd finds no matching image and pulls it.",
        "kubernetes.io/arch In [amd64], and a disk, a node class and a pool of its own for each architecture.",
        "containerd, platforms; Kubernetes, well-known labels; EC2 naming of instance types",
        _mixed_arch,
    ),
    Rule(
        "consolidation", "warning", "a pool that gives warm nodes back",
        "Karpenter's default policy consolidates after 0 s: a node with all in memory goes, and a new one starts cold.",
        "consolidationPolicy: WhenEmpty and consolidateAfter of at least some minutes.",
        "Karpenter, \"Disruption\", consolidation",
        _consolidation,
    ),
    Rule(
        "startup-taint", "warning", "a start-up taint that nothing takes off",
        "Karpenter takes it for temporary and waits; pods stay pending on nodes that are ready.",
        "Ship what removes it together with the pool, or leave the taint out.",
        "Karpenter, \"NodePools\", spec.template.spec.startupTaints",
        _startup_taint,
    ),
)  # fmt: skip
