"""Layers that containerd reads where they lie: no copy of them is written onto the new disk, to be deleted there again.

A link in the folder of the content store is a blob to containerd. Asked to take in a digest that its store has, in whatever
namespace, it takes it over and reads nothing (metadata/content.go, content sharing policy `shared`, the default; seen with
1.6.20, 1.7.24 and 2.1.9). A version that copied it all the same would be slower, and as right: it is given the file to read.

containerd does not hash such a blob, so it is done here; what it unpacks to, containerd compares as always. When the layers
are dropped the links go with them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from builder.errors import BuilderError, IntegrityError
from builder.node.layout import Descriptor, Layout, OciImage

_BLOBS = Path("io.containerd.content.v1.content/blobs")
_PIECE = 1 << 20
Seen = Callable[[Descriptor, int], None]


def lend(layout: Layout, image: OciImage, root: Path, seen: Seen | None = None) -> dict[str, Path]:
    """Put links to the image's layers into the content store below the containerd root; digest to file, of each.

    Layers that are part of an archive, and no files of their own, are left out. seen(blob, bytes): told of each piece that
    was hashed. Raises IntegrityError if a layer is not what its digest says.
    """
    files = {}
    for blob in dict.fromkeys(image.layers):  # an image may hold one layer twice
        if file := layout.file(blob.member):
            _check(layout, image, blob, file, seen)
            link = root / _BLOBS / blob.digest.replace(":", "/")
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.exists():  # images share layers
                link.symlink_to(file.resolve())
            files[blob.digest] = file
    return files


def lends(layout: Layout, blob: Descriptor, *, keep_blobs: bool) -> bool:
    """Whether the blob takes no room on the new disk, not even for the time of the bake."""
    return not keep_blobs and layout.file(blob.member) is not None


def _check(layout: Layout, image: OciImage, blob: Descriptor, file: Path, seen: Seen | None) -> None:
    outer = hashlib.sha256()
    with file.open("rb") as body:
        while piece := body.read(_PIECE):
            outer.update(piece)
            if seen:
                seen(blob, len(piece))
    if f"sha256:{outer.hexdigest()}" != blob.digest:
        raise IntegrityError(f"{layout.path}: {image.reference}: {blob.digest} has sha256:{outer.hexdigest()}",
                             hint="export the image again", where={"object": blob.digest})  # fmt: skip


def expect_none(root: Path) -> None:
    """Raises BuilderError if a link has stayed: on the node it would lead nowhere."""
    left = [path.name for path in (root / _BLOBS).rglob("*") if path.is_symlink()]
    if left:
        raise BuilderError(f"containerd did not let go of {len(left)} layers, such as sha256:{left[0]}",
                           hint="bake with --keep-blobs")  # fmt: skip
