"""Is the GPU here the one this image was made for, and how long does its driver take? Asked in a child (cuda.py).

    Driver    the child, and what it says
    refusal   why the image cannot run on what the driver found; pure

A refusal is one line and exit 4, while the weights still load: an engine would say less, minutes later.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from builder.errors import CapabilityError

if TYPE_CHECKING:
    from builder.runtime.children import Children
    from builder.runtime.settings import Settings

PROGRAM = Path(__file__).with_name("cuda.py")
CONTROL_DEVICE = Path("/dev/nvidiactl")
HINTS = {  # by CUresult; source: CUDA Driver API reference, CUresult
    803: "libcuda.so.1 and the kernel module are of different drivers: the node's driver was changed while it ran, or a "
    "libcuda.so.1 of the image hides the node's; restart the node, or remove that library",
    804: "a forward compatibility package (cuda-compat) works on data-centre GPUs only: remove it from LD_LIBRARY_PATH, and "
    "install a newer driver on the node",
    802: "the node's GPUs are not up yet; where they are joined by NVSwitch, the fabric manager must run",
}
NO_GPU = "give the pod a GPU (limits: nvidia.com/gpu) and the NVIDIA container runtime, or set BUILDER_GPU=none"
OLD_DRIVER = (
    "install a driver of CUDA {cuda} or later on the node, or build for an older CUDA; data-centre GPUs may also run a "
)
OLD_DRIVER += "forward compatibility package (cuda-compat) in the image"


@dataclass(frozen=True)
class Device:
    """index: as the driver counts, after CUDA_VISIBLE_DEVICES.  capability: "9.0"."""

    index: int
    name: str
    capability: str

    def __str__(self) -> str:
        return f"GPU {self.index} ({self.name}, compute capability {self.capability})"


@dataclass(frozen=True)
class Found:
    """What the driver says. cuda: version it supports, "13.0", "" if not known; release: its own version, "" if not known.

    error: why it says no more, or "".  code: the CUresult of that; 0 when it was not the driver that said it.
    """

    cuda: str = ""
    release: str = ""
    devices: tuple[Device, ...] = ()
    error: str = ""
    code: int = 0


def visible() -> bool:
    """True if the container runtime has put an NVIDIA device here."""
    return CONTROL_DEVICE.exists()


def runs_on(capability: str, archs: tuple[str, ...]) -> bool:
    """Whether code for one of `archs` runs on a device of `capability`: the same major version, and no newer minor one.

    Source: CUDA Programming Guide, Compute Capabilities: cubins are compatible within a major version, upwards.

    >>> runs_on("8.6", ("9.0", "8.0")), runs_on("8.0", ("8.6",)), runs_on("10.0", ("9.0",)), runs_on("7.5", ())
    (True, False, False, True)
    """
    major, minor = _version(capability)
    return not archs or any(major == m and minor >= n for m, n in map(_version, archs))


def refusal(found: Found, settings: Settings) -> CapabilityError | None:
    """Why this image, which needs a GPU (BUILDER_GPU=required), cannot run on what was found; None if it can."""
    if found.cuda and settings.cuda and _version(found.cuda) < _version(settings.cuda):
        driver = f"driver {found.release}" if found.release else "this node's driver"
        return CapabilityError(
            f"{driver} supports CUDA {found.cuda} at most, and this image needs CUDA {settings.cuda} (BUILDER_CUDA)",
            hint=OLD_DRIVER.format(cuda=settings.cuda),
        )
    if found.error:
        return _silent(found, settings.reported)
    wrong = [device for device in found.devices if not runs_on(device.capability, settings.gpu_archs)]
    if wrong:
        archs = ", ".join(settings.gpu_archs)
        return CapabilityError(
            f"this image has GPU code for compute capability {archs} only (BUILDER_GPU_ARCHS), and cannot run on "
            + ", ".join(map(str, wrong)),
            hint="add it to image.gpu_archs and build again, or choose other nodes (a nodeSelector on nvidia.com/gpu.product)",
        )
    return None


def _silent(found: Found, reported: Mapping[str, str]) -> CapabilityError:
    """The driver gives no devices. What hides them is named, where a variable may be what hides them."""
    text = f"BUILDER_GPU=required, but no GPU can be used: {found.error}"
    if not visible():
        text += f"; there is no {CONTROL_DEVICE}"
    if found.code in (100, 101):
        hiding = [
            f"{name}={reported[name]!r}" for name in ("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES") if name in reported
        ]
        text += "".join(f"; {pair}" for pair in hiding)
    if found.code in HINTS:
        hint = HINTS[found.code]
    elif visible():
        hint = "see nvidia-smi and the kernel's log (NVRM, Xid) on the node; BUILDER_GPU_TIMEOUT_S gives a slow driver longer"
    else:
        hint = NO_GPU
    return CapabilityError(text, hint=hint)


class Driver:
    """The child that asks. Close it: a context that hangs would hold device memory for as long as the server runs."""

    def __init__(self, children: Children) -> None:
        read, write = os.pipe()
        self._pipe = open(read, "rb", buffering=0)  # noqa: PTH123, SIM115 - a descriptor; close() ends it
        self._child = children.spawn([sys.executable, "-I", "-S", str(PROGRAM)], stdout=write)
        os.close(write)
        self._lines = asyncio.StreamReader()
        self._opened: asyncio.ReadTransport | None = None
        self._said: dict[str, Any] = {}

    async def found(self, timeout_s: float) -> Found:
        """Driver and devices. Whatever goes wrong is in `error`: a crash, a hang of more than timeout_s, a CUresult."""
        said = await self._until(("devices", "error"), timeout_s)
        version = said.get("driver")
        devices = [Device(i, name, capability) for i, (name, capability) in enumerate(said.get("devices", ()))]
        cuda = f"{version // 1000}.{version % 1000 // 10}" if version else ""
        return Found(cuda, said.get("release", ""), tuple(devices), said.get("error", ""), said.get("code", 0))

    async def timing(self, timeout_s: float) -> dict[str, Any]:
        """After `found`: {"devices", "init_s", "context_s"}, or {"error"}; for the phase cuda_init."""
        said = await self._until(("context_s", "error"), timeout_s)
        kept: dict[str, Any] = {key: said[key] for key in ("error", "init_s", "context_s") if key in said}
        return kept | ({"devices": len(said["devices"])} if "devices" in said else {})

    def close(self) -> None:
        self._child.kill_group()
        if self._opened:
            self._opened.close()
        else:
            self._pipe.close()

    async def _until(self, keys: tuple[str, ...], timeout_s: float) -> dict[str, Any]:
        """All that was said so far, once one of `keys` was."""
        try:
            await asyncio.wait_for(self._listen(keys), timeout_s)
        except asyncio.TimeoutError:
            self._said["error"] = f"{self._said.get('call', 'Python')} did not return within {timeout_s:g} s"
        return self._said

    async def _listen(self, keys: tuple[str, ...]) -> None:
        if not self._opened:
            protocol = asyncio.StreamReaderProtocol(self._lines)
            self._opened, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, self._pipe)
        while not any(key in self._said for key in keys):
            line = await self._lines.readline()
            if not line.endswith(b"\n"):
                self._said["error"] = await self._end()
            else:
                self._said |= json.loads(line)

    async def _end(self) -> str:
        """How the child ended, without having said why."""
        code = await self._child.ended
        call = self._said.get("call", "Python")
        if code - 128 in {int(number) for number in signal.Signals}:
            return f"{call} crashed ({signal.Signals(code - 128).name})"
        return f"{call} ended the process with exit code {code}"


def _version(text: str) -> tuple[int, int]:
    major, _, minor = text.partition(".")
    return int(major), int(minor or 0)
