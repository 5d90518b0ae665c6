"""The boot under SELinux: a policy of our own, compiled here, and what it let a container do.

The policy (templates/node/vm/policy.cil) models who may change what is cached; see its head. The container is labelled as
containerd's CRI plugin labels one: processes container_t, its root and mounts data_t, both with a pair of categories.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from builder import process, render, resources
from builder.errors import ConfigError
from builder.node import targets
from builder.node.vm.initrd import Entry

POLICY_VERSION = "33"  # Linux 5.14 and later
APPEND = " security=selinux selinux=1 enforcing=1"


@dataclass(frozen=True, slots=True)
class Contexts:
    """Contexts of containerd and its helpers, of a container's processes, and of its files."""

    runtime: str = "system_u:system_r:runtime_t:s0-s0:c0.c2"
    process: str = "system_u:system_r:container_t:s0:c1,c2"
    file: str = "system_u:object_r:data_t:s0:c1,c2"


CONTEXTS = Contexts()


def check(target: targets.Target, images: int) -> None:
    """Raises ConfigError where there is nothing to prove."""
    if target != targets.BOTTLEROCKET:
        raise ConfigError(f"the policy is for bottlerocket disks, not {target.name}", hint="leave --selinux out")
    if not images:
        raise ConfigError("SELinux is proven with a container, and there is no image to start", hint="leave --selinux out")


def entries(busybox: Path, folder: Path) -> dict[str, Entry]:
    """What the machine needs besides. folder: for the compiler's work."""
    sources, out = resources.folder("templates") / "node" / "vm", folder / "policy"
    process.run([process.need("secilc"), "-c", POLICY_VERSION, "-o", out, "-f", "/dev/null", sources / "policy.cil"])
    wrapper = render.text("node/vm/runc.sh.j2", selinux=CONTEXTS, trees=trees())
    return {
        "etc/policy": Entry(body=out.read_bytes()),
        "usr/bin/runc-labelled": Entry(body=wrapper.encode(), mode=0o755),
        "probe/busybox": Entry(source=busybox, mode=0o755),
        "probe/probe.sh": Entry(source=sources / "probe.sh"),
    }


def trees() -> list[str]:
    """The labelled folders of containerd; the last holds the snapshots."""
    return [f"{targets.CONTAINERD}/{tree}" for tree in targets.CACHE_TREES]


def findings(said: dict[str, str]) -> list[str]:
    """What of the probe's words contradicts the claim that containers read what is cached, and cannot change it."""
    if "context" not in said:
        return [f"SELinux: the container that tries to write did not start: {said.get('failure', 'no result')}"]
    found = []
    denied = [name for name in ("layers", "models") if said.get(name, "").endswith("denied")]
    if said.get("user") != "0" or (denied and "denial" not in said):  # something besides the policy may have denied it
        by = said.get("denial", "no rule")
        found.append(f"SELinux: tried as user {said.get('user')}, denied by {by}, expected root and a rule")
    if ":container_t:" not in said["context"]:
        found.append(f"SELinux: the container ran as {said['context']}, expected container_t")
    for name, expected in (("layers", ("read denied",)), ("models", ("read denied", "none"))):
        if (is_ := said.get(name, "no result")) not in expected:
            found.append(
                f"SELinux: {name}: a root container with the folder mounted for writing: {is_}, expected {expected[0]}"
            )
    return found
