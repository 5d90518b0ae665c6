"""A baked disk, booted in a virtual machine: found by its label, mounted as a node does, its containers started."""

from builder.node.vm.boot import boot
from builder.node.vm.plan import VmBoot, VmCommand, VmPlan, VmRun

__all__ = ["VmBoot", "VmCommand", "VmPlan", "VmRun", "boot"]
