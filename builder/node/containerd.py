"""A private containerd: own root, state and socket, never the machine's. Driven by `ctr`, its own client.

The namespace is k8s.io and the snapshotter overlayfs, as on the node. Import keeps the registry's digests
(`--base-name REPO --digests`), so an image is found as `repo:tag` and as `repo@sha256:...`; both references carry
`managed` (the CRI plugin owns it) and `pinned` (kubelet's image GC spares it; containerd internal/cri/labels).
"""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from builder import process
from builder.errors import BuilderError
from builder.node import lent
from builder.node.cri_config import alone, for_pods
from builder.node.layout import Descriptor, Layout, OciImage
from builder.node.programs import Programs, find, gunzip
from builder.node.stream import stream

NAMESPACE = "k8s.io"
LABELS = {"io.cri-containerd.image": "managed", "io.cri-containerd.pinned": "pinned"}
_NOWHERE = "/builder-nowhere"  # where a view would be mounted; it is not
LAYER_REF = "containerd.io/gc.ref.content.l."
READY_S = 300.0
STOP_S = 60.0
CTR_S = 600.0
IMPORT_S = 3600.0
_CLIENTS = 4  # of ctr, at once; each lives for some 50 ms
Seen = Callable[[Descriptor, int], None]
_UNUSED = (
    "io.containerd.snapshotter.v1.aufs",
    "io.containerd.snapshotter.v1.blockfile",
    "io.containerd.snapshotter.v1.btrfs",
    "io.containerd.snapshotter.v1.devmapper",
    "io.containerd.snapshotter.v1.erofs",
    "io.containerd.snapshotter.v1.native",
    "io.containerd.snapshotter.v1.zfs",
    "io.containerd.internal.v1.opt",
    "io.containerd.internal.v1.tracing",
    "io.containerd.tracing.processor.v1.otlp",
    "io.containerd.nri.v1.nri",
)
_CRI = ("io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime")


@dataclass(frozen=True, slots=True)
class ImageRow:
    """One line of `ctr images ls`."""

    reference: str
    digest: str
    labels: dict[str, str]


@dataclass(frozen=True, slots=True)
class Containerd:
    """A running private containerd over `root`."""

    root: Path
    socket: Path
    log: Path
    programs: Programs
    process: subprocess.Popen[bytes]

    @property
    def version(self) -> str:
        """Such as `1.7.24`."""
        return self.programs.version

    def ctr(self, *args: str | Path, timeout_s: float = CTR_S) -> str:
        """Standard output of `ctr ARGS` in the node's namespace. Raises BuilderError with the tail of containerd's log."""
        done = process.run([*self._argv(), *args], check=False, timeout_s=timeout_s)
        if done.returncode:
            raise self.failed(args, done.stderr.decode(errors="replace"), done.returncode)
        return done.stdout.decode(errors="replace")

    def load(self, layout: Layout, image: OciImage, seen: Seen | None = None, *, copied: bool = True) -> None:
        """Import one image, unpacked, under its tag and its digest. Every digest is checked.

        seen(blob, bytes): told of each piece that was handed over; unpacking goes on after the last.
        copied: False where the compressed layers are dropped later: then those that are files are read where they lie.
        """
        there = {} if copied else lent.lend(layout, image, self.root, seen)
        with ThreadPoolExecutor(_CLIENTS) as pool:
            list(pool.map(lambda layer: self._take(layer, there), [x for x in set(image.layers) if x.digest in there]))
        # From 2.0 on ctr hands the archive to the transfer service, which makes no reference by digest of a named image.
        local = ["--local"] if int(self.version.split(".")[0]) >= 2 else []
        args = ["images", "import", *local, "--base-name", image.repository, "--digests", "--platform", image.platform, "-"]
        with tempfile.TemporaryFile() as said:
            child = subprocess.Popen([*self._argv(), *args], stdin=subprocess.PIPE, stdout=said, stderr=said)
            over = threading.Event()
            watcher = threading.Thread(target=self._watch, args=(child, over))
            watcher.start()
            try:
                assert child.stdin is not None
                with suppress(BrokenPipeError):  # ctr has left; its own words say why
                    stream(layout, image, child.stdin, seen, without=there)
                with suppress(BrokenPipeError):
                    child.stdin.close()
                child.wait(IMPORT_S)
            finally:
                over.set()
                watcher.join()
                if child.poll() is None:
                    child.kill()
                    child.wait()
            if child.returncode:
                said.seek(0)
                raise self.failed(args, said.read().decode(errors="replace"), child.returncode)
        self._expect(image)

    def _take(self, layer: Descriptor, files: Mapping[str, Path]) -> None:
        """Make a layer that the store has known in the namespace."""
        args = [
            "content",
            "ingest",
            "--expected-size",
            str(layer.size),
            "--expected-digest",
            layer.digest,
            f"builder-{layer.digest}",
        ]
        with files[layer.digest].open("rb") as body:
            done = subprocess.run([*self._argv(), *args], stdin=body, capture_output=True, timeout=CTR_S, check=False)
        if done.returncode:
            raise self.failed(args, done.stderr.decode(errors="replace"), done.returncode)

    def ended(self) -> str:
        """How containerd ended, such as `ended with status 1`; "" while it runs."""
        status = self.process.poll()
        if status is None:
            return ""
        return f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"

    def _watch(self, client: subprocess.Popen[bytes], over: threading.Event) -> None:
        """End a client whose containerd is gone: it would wait for an answer, and we for it to read."""
        while not over.wait(0.2):
            if self.ended():
                client.kill()
                return

    def label(self, reference: str) -> None:
        self.ctr("images", "label", reference, *(f"{key}={value}" for key, value in LABELS.items()))

    def images(self) -> list[ImageRow]:
        """Every image reference in the namespace."""
        rows = []
        for line in self.listed().splitlines()[1:]:
            words = line.split()  # REF TYPE DIGEST SIZE UNIT PLATFORMS LABELS; labels are k=v,k=v or -
            rows.append(ImageRow(words[0], words[2], dict(pair.split("=", 1) for pair in words[-1].split(",") if "=" in pair)))
        return rows

    def listed(self) -> str:
        """What `ctr images ls` says."""
        return self.ctr("images", "ls")

    def drop_layers(self, image: OciImage) -> None:
        """Let go of the compressed layers; the unpacked ones stay. Takes effect with `collect`.

        The image lists, reports pinned and starts all the same: `images.Check` only asks for the manifest
        (containerd core/images/image.go).
        """
        names = [f"{LAYER_REF}{i}=" for i in range(len(image.layers))]
        self.ctr("content", "label", image.manifest.digest, *names)

    def collect(self) -> None:
        """Run the garbage collector now and wait for it: a lease made and removed with --sync."""
        self.ctr("leases", "create", "--id", "builder-collect")
        self.ctr("leases", "rm", "--sync", "builder-collect")

    def blobs(self) -> set[str]:
        """Digests in the content store."""
        return set(self.ctr("content", "ls", "--quiet").split())

    def snapshots(self) -> dict[str, str]:
        """Snapshot key to kind (Committed, Active, View)."""
        rows = (line.split() for line in self.ctr("snapshots", "ls").splitlines()[1:])
        return {words[0]: words[-1] for words in rows if words}

    def layer_folders(self, image: OciImage) -> list[Path]:
        """The unpacked layers, bottom first. Read from the mount that a container's snapshot on the top one would use.

        `prepare`, not `view`: ctr makes only the former a root of the garbage collection, which may be under way.
        """
        key = f"builder-view-{image.manifest.digest[7:19]}"
        self.ctr("snapshots", "prepare", key, image.chain_ids[-1])
        try:
            said = self.ctr("snapshots", "mounts", _NOWHERE, key)
        finally:
            self.ctr("snapshots", "rm", key)
        return _layers(said)

    def end(self, container: str) -> None:
        """Kill and forget a container, if it is still there."""
        for args in (["tasks", "kill", "--signal", "SIGKILL", container], ["tasks", "rm", "--force", container],
                     ["containers", "rm", container]):  # fmt: skip
            process.run([*self._argv(), *args], check=False, timeout_s=CTR_S)

    def failed(self, args: tuple[str | Path, ...] | list[str], said: str, code: int) -> BuilderError:
        tail = said.strip().splitlines()[-process.TAIL_LINES :]
        log = self.log.read_text(errors="replace").splitlines()
        # The CRI plugin complains about the missing network configuration of every machine that is no node.
        tail += [line for line in log if re.search("level=(error|fatal)", line) and "cni" not in line][-5:]
        text = "".join(f"\n  {line}" for line in tail)
        return BuilderError(f"exit status {code} from: ctr {shlex.join(map(str, args))}{text}")

    def _argv(self) -> list[str | Path]:
        return [self.programs.ctr, "--address", self.socket, "--namespace", NAMESPACE]

    def _expect(self, image: OciImage) -> None:
        found = {row.reference: row.digest for row in self.images()}
        for reference in (image.reference, image.by_digest):
            if found.get(reference) != image.target.digest:
                raise BuilderError(f"import: {reference} is {found.get(reference, 'absent')}, expected {image.target.digest}",
                                   hint=f"containerd {self.version} imports in another way; use 1.7 or 2.1")  # fmt: skip


@contextmanager
def containerd(root: Path, folder: Path, *, cri: bool = False, sandbox_image: str = "",
               programs: Programs | None = None, patient: bool = False) -> Iterator[Containerd]:  # fmt: skip
    """A private containerd over `root`, its socket, state, config and log in `folder`; stopped at the end.

    cri: with the CRI plugin, which then takes stock of the images as it does on a node. sandbox_image: of a pod's first
    process; with it the plugin also starts pods, and containerd and all that it starts have no network but an own loopback.
    programs: None finds them. patient: nothing is collected as garbage until `collect` asks for it.
    """
    found = programs or find()
    socket, log = folder / "containerd.sock", folder / "containerd.log"
    file = folder / "containerd.toml"
    pods = for_pods(sandbox_image, folder) if sandbox_image else []
    file.write_text(config(root, folder / "state", socket, cri=cri or bool(pods), pods=pods, patient=patient))
    # A parent killed by SIGKILL cannot clean up; the kernel then ends containerd, so that the mount is not held.
    argv: list[str | Path] = [
        *found.with_path(*gunzip(folder / "bin")),
        process.need("setpriv", "util-linux"),
        "--pdeathsig",
        "KILL",
        *(alone() if sandbox_image else []),
        found.containerd,
        "--config",
        file,
    ]
    with log.open("wb") as out:
        # An own session: Ctrl-C goes to this process alone, which stops containerd when its work is undone.
        child = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True)
    try:
        running = Containerd(root, socket, log, found, child)
        _wait(running, child)
        yield running
    finally:
        child.terminate()
        try:
            child.wait(STOP_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def config(root: Path, state: Path, socket: Path, *, cri: bool, pods: Sequence[str] = (), patient: bool = False) -> str:
    """containerd's configuration, version 2, which 1.6 to 2.x read. Strings are JSON, which is also TOML.

    pods: more lines for the CRI plugin.
    """
    disabled = list(_UNUSED) + ([] if cri else list(_CRI))
    lines = [
        "version = 2",
        f"root = {json.dumps(str(root))}",
        f"state = {json.dumps(str(state))}",
        f"disabled_plugins = {json.dumps(disabled)}",
        "[grpc]",
        f"address = {json.dumps(str(socket))}",
    ]
    if patient:
        lines += ['[plugins."io.containerd.gc.v1.scheduler"]', 'startup_delay = "24h"', "mutation_threshold = 1000000000"]
    if cri:
        lines += [
            '[plugins."io.containerd.grpc.v1.cri"]',
            'stream_server_port = "0"',
            "restrict_oom_score_adj = true",  # containers here may lack CAP_SYS_RESOURCE
            *pods,
        ]
    return "\n".join(lines) + "\n"


def _wait(running: Containerd, child: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + READY_S
    while child.poll() is None and time.monotonic() < deadline:
        if running.socket.exists():
            done = process.run([*running._argv(), "version"], check=False, timeout_s=READY_S)
            if done.returncode == 0:
                return
        time.sleep(0.02)
    tail = running.log.read_text(errors="replace").splitlines()[-process.TAIL_LINES :]
    how = "did not answer" if child.poll() is None else f"ended with status {child.returncode}"
    raise BuilderError(f"the private containerd {how}:" + "".join(f"\n  {line}" for line in tail))


def _layers(mounts: str) -> list[Path]:
    """Folders of the layers out of `mount -t overlay ... -o lowerdir=TOP:...:BOTTOM` or `mount -t bind DIR ...`."""
    if match := re.search(r"lowerdir=([^,\n]+)", mounts):  # ctr quotes nothing, and a folder's name may hold spaces
        return [Path(part) for part in reversed(match[1].split(":"))]
    match = re.search(rf"-t bind (.+) {_NOWHERE}", mounts)
    if match is None:
        raise BuilderError(f"ctr snapshots mounts: expected an overlay or bind mount, found {mounts.strip()!r}")
    return [Path(match[1])]
