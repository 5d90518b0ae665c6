"""How long the NVIDIA driver takes to come up, measured in a process of its own, through ctypes.

A context takes some 300 to 500 MiB of device memory while it lives, so the process ends with the measurement.
Source: CUDA Driver API reference: cuInit, cuDeviceGetCount, cuDevicePrimaryCtxRetain; a return of 0 is success.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from builder.runtime.children import Children

LIMIT_S = 120.0


def visible() -> bool:
    """True if the container runtime has put an NVIDIA device here."""
    return Path("/dev/nvidiactl").exists()


async def initialise(children: Children) -> dict[str, Any]:
    """What `measure` printed in a child process; {"error": ...} if it failed or took longer than 120 s."""
    read, write = os.pipe()
    child = children.spawn([sys.executable, "-S", __file__], stdout=write)
    os.close(write)
    await asyncio.wait({child.ended}, timeout=LIMIT_S)
    child.kill_group()
    os.set_blocking(read, False)
    with open(read, "rb") as pipe:  # noqa: PTH123 - a descriptor, not a path
        body = pipe.read() or b""
    try:
        return dict(json.loads(body))
    except ValueError:
        return {"error": "no answer from the driver"}


def measure() -> dict[str, Any]:
    """Seconds for cuInit and for a context on device 0, and the number of devices."""
    started = time.monotonic()
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError as exc:
        return {"error": str(exc)}
    count, context = ctypes.c_int(), ctypes.c_void_p()
    if code := cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count)):
        return {"error": f"cuInit: CUresult {code}"}
    initialised = time.monotonic()
    if code := cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0):
        return {"error": f"cuDevicePrimaryCtxRetain: CUresult {code}", "devices": count.value}
    ended = time.monotonic()
    return {"devices": count.value, "init_s": round(initialised - started, 6), "context_s": round(ended - initialised, 6)}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(measure()))
