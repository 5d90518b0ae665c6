"""Rules on pods: whether they name what was baked, and let kubelet take it."""

from __future__ import annotations

import re
from collections.abc import Iterator

from builder.node.lint.disk import split
from builder.node.lint.facts import Container, Facts, Pod
from builder.node.lint.part import Part
from builder.node.lint.rule import Hit, Rule

_ADMISSION = re.compile(r"(?:^|,)AlwaysPullImages(?:,|$)")
_UNNAMED = re.compile(r"\$\{|\{\{|\$\(|^\s*$|\s")  # filled in later, so nothing can be said about it


def concerned(facts: Facts) -> Iterator[tuple[Pod, Container]]:
    """Containers of pods that run from the disk: all, where it is not known what is on it."""
    for pod in facts.pods:
        baked = [one for one in pod.containers if facts.disk.repository(split(one.image.text)[0])]
        if baked or not facts.disk.images:
            yield from ((pod, one) for one in pod.containers if not _UNNAMED.search(one.image.text))


def _pull_always(facts: Facts) -> Iterator[Hit]:
    for _, one in concerned(facts):
        if one.policy.text == "Always":
            yield Hit(one.policy, "imagePullPolicy Always asks the registry although the image is there")
    for document in facts.documents:
        for part in document.walk():
            if any(_ADMISSION.search(value) for value in _plugins(part)):
                yield Hit(part, "the admission plugin AlwaysPullImages makes every pod's policy Always")


def _plugins(part: Part) -> Iterator[str]:
    """Values of --enable-admission-plugins: in a command line, in kubeadm's extraArgs of either form."""
    flag, _, value = part.text.partition("=")
    if flag == "--enable-admission-plugins":
        yield value
    if isinstance(part.raw, str) and part.key and part.key[-1] == "enable-admission-plugins":
        yield part.raw
    if isinstance(part.raw, dict) and part.raw.get("name") == "enable-admission-plugins":
        yield str(part.raw.get("value"))


def _tag_latest(facts: Facts) -> Iterator[Hit]:
    for _, one in concerned(facts):
        _, tag, digest = split(one.image.text)
        if not one.policy.there and not digest and tag in ("", "latest"):
            yield Hit(one.image, f"{one.image.text}: without a policy, kubelet's for :latest is Always")


def _no_digest(facts: Facts) -> Iterator[Hit]:
    for _, one in concerned(facts):
        if not split(one.image.text)[2]:
            yield Hit(one.image, f"{one.image.text}: a tag can move away from what was baked")


def _reference_not_baked(facts: Facts) -> Iterator[Hit]:
    if not facts.disk.images:
        return
    for _, one in concerned(facts):
        repository, tag, digest = split(one.image.text)
        baked = facts.disk.repository(repository)
        there = ", ".join(sorted({image.tag for image in baked} | {d for image in baked for d in image.digests}))
        if not baked:
            yield Hit(one.image, f"{one.image.text} is not on the disk, so the pod waits for its pull", "warning")
        elif not any(digest in image.digests if digest else (tag or "latest") == image.tag for image in baked):
            yield Hit(one.image, f"{one.image.text} is not on the disk, which has of it {there}")


RULES = (
    Rule(
        "pull-always", "error", "a policy that asks the registry each time",
        "kubelet resolves the name at the registry before it uses what is there: no start while that is away.",
        "imagePullPolicy: IfNotPresent; without AlwaysPullImages on the API server.",
        "Kubernetes documentation, \"Images\", image pull policy; bottlerocket-images-cache issue 5",
        _pull_always,
    ),
    Rule(
        "tag-latest", "error", "no tag or :latest, and no policy",
        "kubelet's default for them is Always.",
        "Name the digest, or set IfNotPresent.",
        "Kubernetes documentation, \"Images\", default image pull policy",
        _tag_latest,
    ),
    Rule(
        "no-digest", "warning", "a tag without a digest",
        "The baked image and the one that others pull under the same tag may differ, and nothing says so.",
        "Name repository@sha256:..., which is baked too.",
        "containerd, internal/cri/server/images/image_pull.go; measured, docs/bake.md",
        _no_digest,
    ),
    Rule(
        "reference-not-baked", "error", "an image that the disk does not have (`--disk`)",
        "kubelet finds an image by the name in the pod; another tag or digest of the same repository is pulled whole.",
        "Name what the record says is baked, or bake that too.",
        "kubelet, image_manager.go; measured, docs/bake.md",
        _reference_not_baked,
    ),
)  # fmt: skip
