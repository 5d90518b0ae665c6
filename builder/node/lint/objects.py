"""Kubernetes objects: pod templates wherever they stand, node pools, configurations of kubelet, containerd and nodeadm."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from builder.node.lint import machines, userdata
from builder.node.lint.facts import Container, Facts, Machine, Pod, Pool, Requirement
from builder.node.lint.part import Part

_CONTAINERS = ("initContainers", "containers", "ephemeralContainers")
_SERVING = ("predictor", "transformer", "explainer")  # of KServe's InferenceService, whose `model` is a container
_INLINE = ("model", "huggingface", "pytorch", "triton", "onnx", "sklearn", "xgboost", "tensorflow", "lightgbm")


def collect(facts: Facts, root: Part) -> None:
    """What a YAML or JSON document says, if it says anything that concerns nodes."""
    raw = root.raw
    if not isinstance(raw, dict):
        return
    kind, api = str(raw.get("kind") or ""), str(raw.get("apiVersion") or "").partition("/")[0]
    if isinstance(raw.get("items"), list) and (not kind or kind.endswith("List")):
        for item in root.at("items").each():
            collect(facts, labelled(item))
        return
    if kind == "CustomResourceDefinition":
        return  # a schema, of up to 2 MB, in which `containers` describes and does not ask
    facts.documents.append(root)
    _KINDS.get((kind, api), _other)(facts, root)


def labelled(item: Part) -> Part:
    """A member of a List under its own name."""
    kind, name = item.at("kind").raw, item.at("metadata", "name").raw
    return replace(item, source=replace(item.source, label=f"{kind}/{name}")) if kind and name else item


def pods(root: Part) -> list[Pod]:
    """Every pod template in an object: Pod and Deployment, but also CronJob, InferenceService, LeaderWorkerSet, RayCluster."""
    found = []
    for part in root.walk():
        if not isinstance(part.raw, dict):
            continue
        containers = [_container(one) for group in _CONTAINERS for one in part.at(group).each()]
        containers += [_container(part.at(name)) for name in _INLINE if part.key and part.key[-1] in _SERVING]
        containers += [_image_volume(one) for one in part.at("volumes").each()]
        named = tuple(one for one in containers if one.image.text)
        if named:
            found.append(Pod(part, named))
    return found


def _container(part: Part) -> Container:
    return Container(part, part.at("image"), part.at("imagePullPolicy"))


def _image_volume(part: Part) -> Container:
    return Container(part, part.at("image", "reference"), part.at("image", "pullPolicy"))


def _machine(facts: Facts, machine: Machine, user_data: Part) -> None:
    facts.machines.append(machine)
    text, packed = machines.decoded(user_data)
    if machine.seeded:
        userdata.collect(facts, user_data, text, machine.os, packed=packed)


def _node_class(facts: Facts, root: Part) -> None:
    machine = machines.node_class(root)
    _machine(facts, machine, root.at("spec", "userData"))
    if machine.seeded and root.at("spec", "kubelet").there:
        facts.kubelets.append(userdata.kubelet_of(root.at("spec", "kubelet")))


def _launch_templates(facts: Facts, root: Part) -> None:
    for machine in machines.launch_templates(root):
        _machine(facts, machine, machine.part.at("UserData"))


def _kubelet(facts: Facts, root: Part) -> None:
    facts.kubelets.append(userdata.kubelet_of(root))


def _other(facts: Facts, root: Part) -> None:
    facts.pods.extend(pods(root))


def _pool(facts: Facts, root: Part) -> None:
    template = root.at("spec", "template", "spec")
    requirements = []
    for one in template.at("requirements").each():
        values = tuple(str(value.raw) for value in one.at("values").each())
        requirements.append(Requirement(one, one.at("key").text, one.at("operator").text, values))
    facts.pools.append(Pool(root, str(template.at("nodeClassRef", "name").raw or ""), tuple(requirements)))


def _eksctl(facts: Facts, root: Part) -> None:
    for machine in machines.node_groups(root):
        facts.machines.append(machine)
        group = machine.part
        if not machine.seeded:
            continue
        if group.at("bottlerocket", "settings").there:
            userdata.settings(facts, group.at("bottlerocket"))
        if group.at("kubeletExtraConfig").there:
            facts.kubelets.append(userdata.kubelet_of(group.at("kubeletExtraConfig")))
        for part in machines.commands(group):
            userdata.collect(facts, part, part.text, machine.os)


_KINDS: dict[tuple[str, str], Callable[[Facts, Part], None]] = {
    ("EC2NodeClass", "karpenter.k8s.aws"): _node_class,
    ("NodePool", "karpenter.sh"): _pool,
    ("KubeletConfiguration", "kubelet.config.k8s.io"): _kubelet,
    ("NodeConfig", "node.eks.aws"): userdata.node_config,
    ("ClusterConfig", "eksctl.io"): _eksctl,
    ("", ""): _launch_templates,
}
