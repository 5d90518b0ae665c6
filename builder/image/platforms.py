"""Which platforms an image is for, by their names in OCI. Pure but for asking what machine this is."""

from __future__ import annotations

import platform

from builder.config.spec import Image

MACHINES = {"linux/amd64": "x86_64", "linux/arm64": "aarch64"}
"""Platform: what the kernel, wheels and Python call its processor."""


def own() -> str:
    """This machine's."""
    machine = platform.machine()
    return next((name for name, own in MACHINES.items() if own == machine), f"linux/{machine}")


def of(image: Image) -> tuple[str, ...]:
    """image.platforms, else that of this machine."""
    return image.platforms or (own(),)
