"""What a node does with a baked disk: mount it, start containerd on it, run a container. Timed from outside."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from builder import process
from builder.node import containerd, disk, volume, workplace
from builder.node.hot import start
from builder.node.programs import Programs
from builder.node.proof import pause
from builder.node.targets import CONTAINERD


@dataclass(frozen=True)
class Start:
    """Seconds. mount: of the file system. daemon: until containerd answers. run: from the order to the container's exit."""

    mount: float
    daemon: float
    run: float

    @property
    def whole(self) -> float:
        return self.mount + self.daemon + self.run


def fresh_copy(path: Path, to: Path) -> Path:
    """A copy, as a node's volume is one of the snapshot."""
    process.run(["cp", "--sparse=always", "--reflink=auto", path, to])
    return to


def start_on(path: Path, argv: Sequence[str], *, programs: Programs | None = None, device: Path | None = None) -> Start:
    """Mount the disk file `path` (or the device that shows it) and run its only image. It is written to, as a node would."""
    with ExitStack() as stack:
        place = stack.enter_context(workplace.workplace(path))
        device = device or stack.enter_context(disk.attached(path, start.extent(path)))
        begun = time.monotonic()
        root = stack.enter_context(disk.mounted(device, place.mount))
        mounted = time.monotonic()
        (image,) = json.loads((root / volume.RECORD).read_text())["images"]
        with containerd.containerd(root / CONTAINERD, place.folder, cri=pause.NAME, programs=programs) as daemon:
            ready = time.monotonic()
            name = f"{image['reference'].rsplit(':', 1)[0]}@{image['digest']}"
            daemon.ctr("run", "--rm", name, place.container, *image["entrypoint"], *argv, timeout_s=600)
            ended = time.monotonic()
    return Start(mounted - begun, ready - mounted, ended - ready)


@contextmanager
def lazily(path: Path, folder: Path, *, first_ms: float, at_once: int) -> Iterator[Path]:
    """A loop device of the file system on `path` whose blocks take time on first touch (benchmarks.lazy)."""
    folder.mkdir()
    part = start.extent(path)
    argv = [sys.executable, "-m", "benchmarks.lazy", path, folder, f"--first-ms={first_ms}", f"--at-once={at_once}"]
    with subprocess.Popen(argv) as server:
        try:
            shown = folder / "disk"
            while not shown.exists():
                if server.poll() is not None:
                    raise RuntimeError(f"benchmarks.lazy ended with {server.returncode}")
                time.sleep(0.05)
            # Direct, so that requests reach the server side by side: a buffered loop device serves one after the other.
            done = process.run(["losetup", "--find", "--show", "--direct-io=on", "--offset", str(part.offset),
                                "--sizelimit", str(part.size), shown])  # fmt: skip
            device = Path(done.stdout.decode().strip())
            try:
                yield device
            finally:
                process.run(["losetup", "--detach", device])
        finally:
            _unmount(folder)
            server.terminate()
    folder.rmdir()


def _unmount(folder: Path) -> None:
    for _ in range(50):  # a loop device lets go of its file a moment after it was detached
        if not folder.is_mount() or process.run(["umount", folder], check=False).returncode == 0:
            return
        time.sleep(0.1)
