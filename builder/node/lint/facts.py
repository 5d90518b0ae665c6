"""What the rules look at: volumes, machines, settings, pods and node pools, whatever kind of file they were in."""

from __future__ import annotations

from dataclasses import dataclass, field

from builder.node.lint.disk import Disk
from builder.node.lint.part import Part

BOTTLEROCKET, AL2023 = "bottlerocket", "al2023"


@dataclass(frozen=True, slots=True)
class Volume:
    """A block device of a machine. size_bytes: None where the file does not say, or by a placeholder."""

    part: Part
    device: Part
    snapshot: Part
    size: Part
    size_bytes: int | None
    rate: Part
    encrypted: Part
    kms: Part

    @property
    def seeded(self) -> bool:
        return bool(self.snapshot.raw)


@dataclass(frozen=True, slots=True)
class Machine:
    """An EC2NodeClass, a node group of eksctl or a launch template.

    os: bottlerocket, al2023 or "" where the file does not say.  store_policy: what is done with local disks.
    images: what names the machine image.  user_data: as text, out of whatever packs it, "" where there is none.
    """

    part: Part
    name: str
    os: str
    volumes: tuple[Volume, ...]
    images: tuple[Part, ...]
    store_policy: Part
    user_data: str = ""

    @property
    def seeded(self) -> bool:
        return any(volume.seeded for volume in self.volumes)


@dataclass(frozen=True, slots=True)
class Kubelet:
    """options: by their names in KubeletConfiguration."""

    part: Part
    options: dict[str, Part]


@dataclass(frozen=True, slots=True)
class Script:
    """text: as it runs, whatever it was packed in.  packed: its lines are not those of the file."""

    part: Part
    text: str
    first_line: int
    packed: bool = False


@dataclass(frozen=True, slots=True)
class Container:
    """image: of a container, or of an image volume."""

    part: Part
    image: Part
    policy: Part


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod template, wherever in an object it stands."""

    part: Part
    containers: tuple[Container, ...]


@dataclass(frozen=True, slots=True)
class Requirement:
    """Of a NodePool: key, operator, values."""

    part: Part
    key: str
    operator: str
    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Pool:
    """A Karpenter NodePool.  node_class: the name of its EC2NodeClass."""

    part: Part
    node_class: str
    requirements: tuple[Requirement, ...]

    def requirement(self, key: str) -> list[Requirement]:
        return [one for one in self.requirements if one.key == key]


@dataclass(frozen=True, slots=True)
class Fault:
    """A file, or a part of one, that is not what it should be. severity: where it is not the rule's."""

    part: Part
    message: str
    line: int
    severity: str = ""


@dataclass(frozen=True, slots=True)
class Facts:
    """All that was understood in all files.

    settings: Bottlerocket's, the part that has a table `settings`.  node_configs: of nodeadm.  containerd: its configuration.
    variants: of Bottlerocket, the part that has `package`.  documents: everything, for rules that ask what else is there.
    """

    disk: Disk
    machines: list[Machine] = field(default_factory=list)
    settings: list[Part] = field(default_factory=list)
    node_configs: list[Part] = field(default_factory=list)
    kubelets: list[Kubelet] = field(default_factory=list)
    containerd: list[Part] = field(default_factory=list)
    scripts: list[Script] = field(default_factory=list)
    variants: list[Part] = field(default_factory=list)
    pods: list[Pod] = field(default_factory=list)
    pools: list[Pool] = field(default_factory=list)
    documents: list[Part] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)

    @property
    def volumes(self) -> list[tuple[Machine, Volume]]:
        return [(machine, volume) for machine in self.machines for volume in machine.volumes]

    @property
    def understood(self) -> int:
        """How many things the rules could look at."""
        lists = (self.machines, self.settings, self.node_configs, self.kubelets, self.containerd, self.scripts,
                 self.variants, self.pods, self.pools)  # fmt: skip
        return sum(len(one) for one in lists)
