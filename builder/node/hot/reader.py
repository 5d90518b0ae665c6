"""The program that reads the hot blocks on a node, and what starts it there.

    DISK.hot.sh         POSIX sh and dd; holds the list
    DISK.hot.toml       Bottlerocket: a bootstrap container that runs it before kubelet starts, never essential
    DISK.hot.service    other nodes: a unit that runs it beside the boot; the program is in it

It reads the raw device with O_DIRECT, many blocks at a time: a volume made from a snapshot loads a block when it is first
read, and page cache of the device would be of no use to the file system on it. When it has read the list it ends: the rest
of the volume is the business of volumeInitializationRate.
Sources: Bottlerocket's documentation, "Bootstrap Containers" (run before kubelet, the boot waits for them, user data at
/.bottlerocket/bootstrap-containers/current/user-data) and core-kit sources/host-ctr/cmd/host-ctr/main.go, `withBootstrap`
(all devices allowed, the host's root at /.bottlerocket/rootfs); EC2 user guide, "Work with instance user data" (16 KB before
base64).
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from builder import render
from builder.errors import ConfigError
from builder.node.blocks import BLOCK
from builder.node.hot.hotlist import HotList, runs
from builder.node.targets import FS_LABEL, target

PARALLEL = 32  # reads in flight: at the 100 ms that users see for a first touch this is 160 MiB/s
LIMIT_S = 60
LIST_BYTES = 8 << 10  # of the list; with the script, in base64, 13 of the 16 KiB that EC2 allows, the rest for settings
USER_DATA_BYTES = 16 << 10
IMAGE = "${HOT_READER_IMAGE}"
_LONG = 8  # blocks read by one dd where there are many


@dataclass(frozen=True, slots=True)
class Reader:
    """script: the text. blocks: its list.

    count: blocks that it reads. ordered: in order of first use. extra: only to keep the list short.
    """

    script: str
    blocks: str
    count: int
    ordered: bool
    extra: int

    def to_json(self) -> dict[str, Any]:
        return {"blocks": self.count, "bytes": self.count * BLOCK, "ordered": self.ordered, "extra_blocks": self.extra,
                "script_bytes": len(self.script.encode())}  # fmt: skip


def reader(
    hot: HotList, disk: str, *, parallel: int = PARALLEL, limit_s: int = LIMIT_S, list_bytes: int = LIST_BYTES
) -> Reader:
    """The script for `hot`. disk: its name, for the comment. list_bytes: what the list itself may take.

    A list that is too long is given up step by step: first the order, then exactness, gaps being read too.
    """
    first = hot.offset // BLOCK  # the node finds the partition by its label, so blocks are counted from there
    pieces, ordered = short([index - first for index in hot.blocks], parallel, list_bytes)
    count = sum(length for _, length in pieces)
    devices = _devices(hot.target)
    text = listed(pieces)
    script = render.text(
        "node/hot-read.sh.j2", disk=disk, count=count, ordered=ordered and hot.ordered, limit_s=limit_s, blocks=f"'{text}'",
        parallel=max(1, min(parallel, len(pieces))), devices=devices,
    )  # fmt: skip
    return Reader(script, text, count, ordered and hot.ordered, count - len(hot.blocks))


def files(hot: HotList, disk: str, *, image: str = IMAGE) -> dict[str, str]:
    """Texts by file name suffix. image: for Bottlerocket's bootstrap container; left out, ${HOT_READER_IMAGE} for envsubst."""
    suffix = ".hot.toml" if hot.target == "bottlerocket" else ".hot.service"
    return {".hot.sh": reader(hot, disk).script, suffix: starter(hot, disk, image=image)}


def starter(hot: HotList, disk: str, *, image: str = "") -> str:
    """What runs the reader on the node, for `specs.render(hot=...)`: settings for Bottlerocket, a unit for others."""
    return bootstrap_container(hot, disk, image=image or IMAGE) if hot.target == "bottlerocket" else unit(hot, disk)


def bootstrap_container(hot: HotList, disk: str, *, image: str = IMAGE) -> str:
    """Bottlerocket's settings, to be appended to the node's user data. Raises ConfigError if they alone exceed EC2's limit."""
    packed = base64.b64encode(reader(hot, disk).script.encode()).decode()
    return need_room(render.text("node/hot.toml.j2", disk=disk, limit_s=LIMIT_S, image=image, user_data=packed))


def unit(hot: HotList, disk: str) -> str:
    """A systemd unit that reads the list as soon as the volume's device is there. One file: the program is in it, in base64."""
    made = reader(hot, disk)
    program = made.script.replace(f"blocks='{made.blocks}'", "blocks=$BLOCKS")
    escaped = FS_LABEL.replace("-", "\\x2d")
    device = f"dev-disk-by\\x2dlabel-{escaped}.device"
    return render.text(
        "node/hot.service.j2", disk=disk, unit=device, script=base64.b64encode(program.encode()).decode(), blocks=made.blocks,
        device=f"/dev/disk/by-label/{FS_LABEL}",
    )  # fmt: skip


def need_room(user_data: str) -> str:
    """Itself. Raises ConfigError if EC2 would refuse it."""
    size = len(user_data.encode())
    if size > USER_DATA_BYTES:
        raise ConfigError(
            f"user data of {size} bytes, EC2 takes {USER_DATA_BYTES}", hint="leave the list of hot blocks out of it"
        )
    return user_data


def short(blocks: Sequence[int], parallel: int, limit: int) -> tuple[list[tuple[int, int]], bool]:
    """(pieces, whether in the given order) whose text takes at most `limit` bytes.

    >>> short([9, 4, 5, 6, 0], 4, 80)
    ([(9, 1), (4, 1), (5, 1), (6, 1), (0, 1)], True)
    >>> short([9, 4, 5, 6, 0], 4, 8)
    ([(9, 1), (4, 3), (0, 1)], True)
    >>> short([9, 4, 5, 6, 0], 4, 7)
    ([(0, 7), (9, 1)], False)
    """
    few = max(1, min(_LONG, len(blocks) // (4 * parallel)))
    for most in (few, _LONG, len(blocks)):
        pieces = [piece for run in runs(blocks) for piece in _cut(run, most)]
        if len(listed(pieces)) <= limit:
            return pieces, True
    gap = 0
    while len(listed(pieces)) > limit:
        pieces, gap = _bridged(sorted(blocks), gap), 2 * gap + 1
    return pieces, False


def listed(pieces: Sequence[tuple[int, int]]) -> str:
    """
    >>> listed([(4, 3), (9, 1)])
    '4+3 9'
    """
    return " ".join(f"{first}+{count}" if count > 1 else str(first) for first, count in pieces)


def _cut(run: tuple[int, int], most: int) -> list[tuple[int, int]]:
    first, count = run
    return [(first + at, min(most, count - at)) for at in range(0, count, max(1, most))]


def _bridged(ascending: Sequence[int], gap: int) -> list[tuple[int, int]]:
    """Runs, with those at most `gap` blocks apart as one."""
    found: list[tuple[int, int]] = []
    for first, count in runs(ascending):
        if found and first - sum(found[-1]) <= gap:
            found[-1] = (found[-1][0], first + count - found[-1][0])
        else:
            found.append((first, count))
    return found


def _devices(name: str) -> list[str]:
    """Where the node may have the file system; inside a bootstrap container the host's /dev is below its root."""
    table = target(name).table
    path = f"/dev/disk/by-partlabel/{table.label}" if table else f"/dev/disk/by-label/{FS_LABEL}"
    return [path, f"/.bottlerocket/rootfs{path}"] if table else [path]
