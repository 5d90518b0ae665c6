"""Rules on kubelet: whether it asks for credentials again, and when it collects and evicts."""

from __future__ import annotations

from collections.abc import Iterator

from builder.node.lint.disk import split
from builder.node.lint.facts import Facts, Kubelet
from builder.node.lint.machines import quantity
from builder.node.lint.part import Part
from builder.node.lint.rule import Hit, Rule

_GATE = "KubeletEnsureSecretPulledImages"
_HIGH, _LOW = 85, 80  # kubelet's defaults
_SIGNALS = ("nodefs.available", "imagefs.available")


def _credential_recheck(facts: Facts) -> Iterator[Hit]:
    for kubelet in facts.kubelets:
        policy = kubelet.options.get("imagePullCredentialsVerificationPolicy")
        gates = kubelet.options.get("featureGates")
        if policy is None or (gates is not None and gates.at(_GATE).raw is False):
            continue
        if policy.text == "AlwaysVerify":
            yield Hit(policy, "AlwaysVerify: baked images too are asked for at the registry before a pod may use them")
        if policy.text.lower() == "neververifyallowlistedimages":
            yield from _allowed(facts, kubelet, policy)


def _allowed(facts: Facts, kubelet: Kubelet, policy: Part) -> Iterator[Hit]:
    listed = kubelet.options.get("preloadedImagesVerificationAllowlist")
    patterns = [str(one.raw) for one in listed.each()] if listed is not None else []
    if not patterns:
        yield Hit(policy, "NeverVerifyAllowlistedImages with an empty list: baked images too are asked for at the registry")
    for image in facts.disk.images if patterns else ():
        if not any(_matches(pattern, image.repository) for pattern in patterns):
            yield Hit(listed or policy, f"{image.repository} is baked and not on the list: it is asked for at the registry")


def _matches(pattern: str, repository: str) -> bool:
    """kubelet's rule: a name, or a prefix that ends in /*."""
    if pattern.endswith("/*"):
        return repository.startswith(pattern[:-1])
    return split(pattern)[0] == repository


def _gc_thresholds(facts: Facts) -> Iterator[Hit]:
    for kubelet in facts.kubelets:
        high, low = kubelet.options.get("imageGCHighThresholdPercent"), kubelet.options.get("imageGCLowThresholdPercent")
        above, below = _percent(high, _HIGH), _percent(low, _LOW)
        stated = [part for part in (high, low) if part is not None and part.there]
        if not stated or above is None or below is None:
            continue
        if above <= below:
            yield Hit(
                stated[0], f"the high threshold of {above:g} % is not above the low one of {below:g} %; kubelet does not start"
            )
        used = facts.disk.used
        if used is not None and above <= used * 100 and above < 100:
            yield Hit(stated[0], f"collection begins at {above:g} %, and the disk is {used:.0%} full from the start")


def _percent(part: Part | None, default: float) -> float | None:
    return part.number if part is not None and part.there else default


def _eviction(facts: Facts) -> Iterator[Hit]:
    disk = facts.disk
    if disk.used is None:
        return
    for kubelet in facts.kubelets:
        for kind in ("evictionHard", "evictionSoft"):
            for signal in _SIGNALS if kind in kubelet.options else ():
                wanted = kubelet.options[kind].at(signal)
                share = _share(wanted, disk.size_bytes)
                if share is not None and share >= 1 - disk.used:
                    message = f"{signal} below {wanted.raw} evicts, and {1 - disk.used:.0%} of the disk is free from the start"
                    yield Hit(wanted, message)


def _share(part: Part, size_bytes: int) -> float | None:
    """A threshold as a share of the disk; None where there is none or it cannot be known."""
    if not part.there:
        return None
    text = str(part.raw).strip()
    if text.endswith("%"):
        try:
            return float(text[:-1]) / 100
        except ValueError:
            return None
    amount = quantity(text)
    return amount / size_bytes if amount is not None and size_bytes else None


RULES = (
    Rule(
        "credential-recheck", "error", "kubelet asks for credentials of baked images",
        "From Kubernetes 1.35 kubelet may verify credentials for images that lie on the node; the default spares what it did "
        "not pull itself, these policies do not, and a pod waits for the registry or is refused.",
        "imagePullCredentialsVerificationPolicy: NeverVerifyPreloadedImages, or list the baked repositories.",
        "KEP-2535; kubelet, pullmanager/image_pull_policies.go; kubernetes issues 137024 and 138175",
        _credential_recheck,
    ),
    Rule(
        "gc-thresholds", "error", "image collection that is on from the start",
        "kubelet collects above the high threshold down to the low one; pinned images are spared, so every other image is "
        "removed again and again.",
        "Thresholds above what is used from the start, or a larger volume; OUT.img.user-data.toml has them.",
        "kubelet, image_gc_manager.go; docs/bake.md",
        _gc_thresholds,
    ),
    Rule(
        "eviction", "error", "disk pressure from the start (`--disk`)",
        "The node reports disk pressure as soon as it is up, takes no pods and evicts those that it has.",
        "A larger volume, or a lower threshold.",
        "Kubernetes documentation, \"Node-pressure Eviction\"",
        _eviction,
    ),
)  # fmt: skip
