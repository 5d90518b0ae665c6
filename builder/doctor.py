"""What this machine can do: one finding per thing builder needs, each with what it is for and how to get it.

Nothing is changed and nothing is sent anywhere. A finding fails only for the work that was asked about.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from builder import process, units
from builder.errors import BuilderError, CapabilityError

if TYPE_CHECKING:
    from builder.image.built import Capabilities

WORK = ("weights", "build", "bake", "verify", "demo")
ENGINE = "install Docker 26 or newer with buildx (in a checkout: make engine)"
NO_GPU = "verify.gpu: required makes this an error"
FREE_BYTES = 5 << 30  # the demo's image, its build cache and the volume take about 3 GiB


@dataclass(frozen=True)
class Finding:
    """ok: it is there.  work: what needs it; empty when nothing fails without it.  hint: one next step.

    data: what was found out, for `--format json`.
    """

    name: str
    ok: bool
    found: str
    work: tuple[str, ...]
    hint: str = ""
    data: dict[str, Any] | None = None

    def to_json(self) -> dict[str, object]:
        return asdict(self)


def examine() -> list[Finding]:
    """Every finding, in the order of the chain."""
    return [
        _module("xllamacpp", "llama.cpp engine for load tests in place", "pip install 'coldstart-builder[demo]'"),
        _rclone(),
        *_docker(),
        *_builders(),
        *_bake_programs(),
        _root(),
        _loop(),
        _program("igzip", (), "isal", "unpacks gzip layers in a third of the CPU time"),
        _program("packer", (), "packer", "validates the Packer templates"),
        _gpu(),
        _space(Path.cwd()),
    ]


def _docker() -> list[Finding]:
    if not process.which("docker"):
        return [Finding("docker", False, "no docker program", ("verify",), ENGINE)]
    try:
        told = process.run(["docker", "info", "--format", "{{json .}}"], check=False, timeout_s=process.ANSWER_S)
    except BuilderError:  # an engine that hangs takes the connection and says nothing
        hint = "look at the engine's log, then restart it"
        return [Finding("docker", False, f"no answer within {process.ANSWER_S:.0f} s", ("verify",), hint)]
    info = json.loads(told.stdout) if told.returncode == 0 else {}
    version = info.get("ServerVersion", "")
    if not version:
        denied = b"permission denied" in told.stderr + told.stdout
        hint = "add this user to the group docker, or use sudo" if denied else ENGINE
        return [Finding("docker", False, "permission denied" if denied else "no engine answers", ("verify",), hint)]
    store = "io.containerd" in json.dumps(info.get("DriverStatus", []))
    return [
        Finding("docker", True, f"engine {version}", ("verify",)),
        Finding(
            "containerd image store",
            store,
            "on" if store else "off: images lose their registry digests when exported",
            ("bake",),
            "" if store else "set features.containerd-snapshotter in daemon.json",
        ),
    ]


def _builders() -> list[Finding]:
    """The back end that builds, then each one that could, with what it can do as data."""
    from builder.image import backends

    probes = backends.probe()
    first = next((one for one in probes if one.backend), None)
    hint = "" if first else ENGINE + ", or buildah"
    found = [Finding("image builder", first is not None, first.name if first else "none answers", ("build",), hint)]
    for one in probes:
        can = one.backend.capabilities if one.backend else None
        data = can.to_json() if can else None
        found.append(Finding(f"builds by {one.name}", can is not None, _able(can) if can else one.why, (), one.hint, data))
    return found


def _able(can: Capabilities) -> str:
    words = [can.version, "reproducible" if can.reproducible else "not reproducible"]
    words += [
        text for text, there in (("zstd", can.zstd), ("OCI archive", can.archives), ("COPY --link", can.copy_link)) if there
    ]
    words += [f"cache: {' '.join(can.cache)}"] if can.cache else []
    return ", ".join([*words, " ".join(can.platforms)])


def _bake_programs() -> list[Finding]:
    needs = {
        "containerd": ("containerd", "fills the volume with a private instance"),
        "ctr": ("containerd", "its command line"),
        "runc": ("runc", "starts a container from the volume, as proof"),
        "sgdisk": ("gdisk", "writes the partition table"),
        "mkfs.xfs": ("xfsprogs", "makes the file system"),
    }
    return [_program(name, ("bake",), package, what) for name, (package, what) in needs.items()]


def _program(name: str, work: tuple[str, ...], package: str, what: str) -> Finding:
    found = process.which(name)
    return Finding(
        name, found is not None, str(found or f"missing; {what}"), work, "" if found else f"apt-get install {package}"
    )


def _module(name: str, what: str, hint: str) -> Finding:
    found = importlib.util.find_spec(name) is not None
    return Finding(name, found, "importable" if found else f"missing; {what}", ("demo",), "" if found else hint)


def _rclone() -> Finding:
    from builder.stores import rclone

    try:
        found = rclone.program()
    except CapabilityError as exc:
        return Finding("rclone", False, "missing; the S3 server of the demo and the tests", ("demo",), exc.hint)
    return Finding("rclone", True, str(found), ("demo",))


def _root() -> Finding:
    root = os.geteuid() == 0
    return Finding(
        "root", root, "yes" if root else f"user id {os.geteuid()}", ("bake",), "" if root else "sudo builder bake ..."
    )


def _loop() -> Finding:
    there = Path("/dev/loop-control").exists()
    hint = "" if there else "builder bake disk --no-loop writes ext4 without loop devices"
    return Finding("loop devices", there, "yes" if there else "no /dev/loop-control", (), hint)


def _gpu() -> Finding:
    smi = process.which("nvidia-smi")
    if smi is None:
        return Finding("gpu", False, "none; verify runs on the CPU", (), NO_GPU)
    try:
        told = process.run([smi, "--query-gpu=name,driver_version", "--format=csv,noheader"], timeout_s=process.ANSWER_S)
    except BuilderError as exc:  # a driver that does not fit its kernel module says so; one that lost its device may hang
        return Finding("gpu", False, f"none; {exc.message.splitlines()[-1].strip()}", (), NO_GPU)
    return Finding("gpu", True, told.stdout.decode().strip().replace("\n", "; "), ())


def _space(folder: Path) -> Finding:
    free = shutil.disk_usage(folder).free
    ok = free >= FREE_BYTES
    hint = "" if ok else f"free {units.format_size(FREE_BYTES - free)} more"
    return Finding("disk space", ok, f"{units.format_size(free)} free", ("build", "bake", "demo"), hint)
