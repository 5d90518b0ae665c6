"""A baked disk, booted in a virtual machine: found by its label, mounted as a node does, its containers started."""
