"""Why a bake failed, found out after the fact, from the machine and the input rather than from the words of a program.

Asked in this order, since each explains what comes after it: is the host's disk full, did the private containerd die, is the
new disk full, is a blob or a layer not what its digest says. What is none of these stays as it was.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import subprocess
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from builder import process, units
from builder.errors import BuilderError, CapabilityError, ConfigError, IntegrityError, RemoteError
from builder.node import disk
from builder.node.images import Opened
from builder.node.layout import Descriptor, Layout
from builder.node.lent import lends
from builder.node.plan import SPARE, UNPACKED_RATIO, BakePlan, local_bytes

FULL = 8 << 20  # bytes; below, a file system counts as full
FREE = 0.15  # share that has to stay free: kubelet evicts pods below it
_PIECE = 1 << 20


@dataclass
class Scene:
    """Where it happened.

    root: of the new file system, once there is one. searched: the input was looked through, and nothing found.
    """

    plan: BakePlan
    opened: list[Opened] = field(default_factory=list)
    root: Path | None = None
    searched: bool = False


@contextmanager
def explained(scene: Scene, *, ended: Callable[[], str] = str) -> Iterator[None]:
    """Within, an error that has a deeper cause is raised as that cause.

    ended: how the private containerd ended, "" while it runs, or where there is none.
    """
    try:
        yield
    except (BuilderError, OSError) as exc:
        if isinstance(exc, (ConfigError, IntegrityError, RemoteError)):
            raise
        found = cause(scene, str(exc), ended())
        if found is not None:
            raise found from exc
        if isinstance(exc, BuilderError):
            raise
        raise BuilderError(f"{exc.filename or scene.plan.out}: {exc.strerror or exc}") from exc


def cause(scene: Scene, said: str, ended: str) -> BuilderError | None:
    """The deeper cause of a failure that said this much; None where there is none. ended: how containerd did, "" if not."""
    plan = scene.plan
    host = shutil.disk_usage(plan.out.parent).free
    if host < FULL:
        return CapabilityError(f"{plan.out.parent}: no space left; {units.format_size(host)} free",
                               hint="free some space, or bake to another folder")  # fmt: skip
    if ended:
        return BuilderError(
            f"the private containerd {ended} during the bake", hint="bake again; if it was killed, see `dmesg` for memory"
        )
    if _full(scene, said):
        return too_small(plan, scene.opened)
    if scene.searched:
        return None
    scene.searched = True
    return damaged(scene.opened)


def _full(scene: Scene, said: str) -> bool:
    if "no space left" in said.lower() or os.strerror(errno.ENOSPC) in said or "Could not allocate" in said:
        return True
    return scene.root is not None and scene.root.is_mount() and shutil.disk_usage(scene.root).free < FULL


def too_small(plan: BakePlan, opened: list[Opened]) -> ConfigError:
    """The disk is full. Names the size that would do: everything at once, and the share that has to stay free."""
    layers = {blob.digest: (one.layout, blob) for one in opened for blob in one.image.layers}  # images share layers
    unpacked = sum(_unpacked(layout, blob) for layout, blob in layers.values())
    stored = (blob.size for layout, blob in layers.values() if not lends(layout, blob, keep_blobs=plan.keep_blobs))
    need = sum(stored) + round(1.05 * unpacked) + local_bytes(plan) + SPARE
    size = max(-(-round(need / (1 - FREE)) // disk.GIB) * disk.GIB, plan.size + disk.GIB)
    return ConfigError(
        f"a disk of {units.format_size(plan.size)} is too small: {units.format_size(need)} are needed at the bake's height",
        hint=f"--size {size // disk.GIB}GiB would do",
    )


def damaged(opened: list[Opened]) -> IntegrityError | None:
    """The first blob that is not what its digest says, or layer that is not what the image's configuration says."""
    for one in opened:
        for blob in one.image.blobs():
            found = _sha256(one.layout, blob)
            if found != blob.digest:
                return IntegrityError(f"{one.layout.path}: {one.image.reference}: {blob.digest} has {found}",
                                      hint="export the image again", where={"object": blob.digest})  # fmt: skip
        for blob, diff in zip(one.image.layers, one.image.diff_ids, strict=True):
            outer, what = hashlib.sha256(), ""
            try:
                for piece in unpacked(one.layout, blob):
                    outer.update(piece)
            except NotImplementedError:
                continue
            except (zlib.error, EOFError, BuilderError) as exc:
                what = f"cannot be unpacked: {exc}"
            if not what and f"sha256:{outer.hexdigest()}" != diff:
                what = f"unpacks to sha256:{outer.hexdigest()}, its configuration says {diff}"
            if what:
                return IntegrityError(f"{one.layout.path}: {one.image.reference}: layer {blob.digest} {what}",
                                      hint="build and export the image again", where={"object": blob.digest})  # fmt: skip
    return None


def unpacked(layout: Layout, blob: Descriptor) -> Iterator[bytes]:
    """The layer's tar in pieces. Raises NotImplementedError where this machine cannot unpack it."""
    with layout.open(blob.member) as body:
        if blob.media_type.endswith("zstd"):
            yield from _zstd(body)
        elif blob.media_type.endswith("gzip"):
            yield from _gunzip(body)
        else:
            while piece := body.read(_PIECE):
                yield piece


def _gunzip(body: IO[bytes]) -> Iterator[bytes]:
    """Every member of the stream, as `gzip -dc` writes it. Raises zlib.error, EOFError."""
    left = b""
    while left or (left := body.read(_PIECE)):
        one = zlib.decompressobj(16 + zlib.MAX_WBITS)
        while not one.eof:
            piece = left or body.read(_PIECE)
            if not piece:
                raise EOFError("the gzip stream ends early")
            yield one.decompress(piece)
            left = b""
        left = one.unused_data


def _zstd(body: IO[bytes]) -> Iterator[bytes]:
    program = process.which("zstd")
    if program is None:
        raise NotImplementedError
    with subprocess.Popen([program, "-dcq"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        feeder = threading.Thread(target=_feed, args=(body, child.stdin))
        feeder.start()
        while piece := child.stdout.read(_PIECE):
            yield piece
        feeder.join()
    if child.returncode:
        raise BuilderError("the zstd stream is damaged")


def _feed(body: IO[bytes], sink: IO[bytes]) -> None:
    with suppress(BrokenPipeError):
        shutil.copyfileobj(body, sink, _PIECE)
    with suppress(BrokenPipeError):
        sink.close()


def _unpacked(layout: Layout, blob: Descriptor) -> int:
    """Bytes of the layer, unpacked; a guess where this machine cannot tell."""
    try:
        return sum(len(piece) for piece in unpacked(layout, blob))
    except (NotImplementedError, zlib.error, EOFError, BuilderError):
        return round(blob.size * UNPACKED_RATIO)


def _sha256(layout: Layout, blob: Descriptor) -> str:
    outer = hashlib.sha256()
    with layout.open(blob.member) as body:
        while piece := body.read(_PIECE):
            outer.update(piece)
    return f"sha256:{outer.hexdigest()}"
