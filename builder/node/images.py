"""The images of one disk: every input opened, found, and for one platform."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass

from builder.errors import ConfigError
from builder.node.inputs import ImageInput
from builder.node.layout import Layout, OciImage, find_image, host_platform, offered, open_layout


@dataclass(frozen=True, slots=True)
class Opened:
    """An image and the layout that its blobs are read from."""

    layout: Layout
    image: OciImage


def open_images(stack: ExitStack, inputs: Iterable[ImageInput], platform: str = "") -> list[Opened]:
    """Every input, open until `stack` ends. platform: of all of them; "" is this machine's.

    Raises ConfigError with every name if some are not for it: a node is of one platform, and layers of another are dead
    weight on its disk. ConfigError too if two inputs have one name.
    """
    wanted = platform or host_platform()
    layouts = [(stack.enter_context(open_layout(one.path)), one.reference) for one in inputs]
    offers = [offered(layout, reference) for layout, reference in layouts]
    if len(offers) > 1 and any(wanted not in platforms for _, platforms in offers):
        lines = "".join(f"\n  {name}: {', '.join(platforms)}" for name, platforms in offers)
        raise ConfigError(f"one disk serves one platform, {wanted} here:{lines}",
                          hint="bake one disk per platform, with --platform")  # fmt: skip
    opened = [Opened(layout, find_image(layout, reference=name, platform=wanted)) for layout, name in layouts]
    names = [one.image.reference for one in opened]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"{', '.join(twice)}: named twice", hint="give each image a name of its own: --oci REF=PATH")
    return opened
