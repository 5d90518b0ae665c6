"""Ask the NVIDIA driver through ctypes: `python -I -S cuda.py`, a program of its own, for what it calls may hang or crash.

A context takes some 300 to 500 MiB of device memory while it lives, so the process ends with the measurement. One JSON
object per line on stdout, each written as soon as it is known:

    {"call": "cuInit"}                          about to call; the last one says where it hung or crashed
    {"driver": 13000, "release": "580.65.06"}   before cuInit; CUDA 13.0, and the driver's own version ("" if not readable)
    {"devices": [["NVIDIA H100", "9.0"]]}       those CUDA_VISIBLE_DEVICES leaves: name, compute capability
    {"error": "cuInit: CUDA_ERROR_NO_DEVICE (100)", "code": 100}   the end; code 0: there is no libcuda.so.1 to call
    {"init_s": 0.2, "context_s": 0.3}           the end: seconds for cuInit with the count, and for a context on device 0

Source: CUDA Driver API reference, CUDA 13: a CUresult of 0 is success; cuDriverGetVersion (1000 x major + 10 x minor) and
cuGetErrorName may be called before cuInit; CUdevice_attribute 75 and 76 are the compute capability.
"""

from __future__ import annotations

import ctypes
import json
import re
import sys
import time
from ctypes import POINTER, byref, c_char_p, c_int, c_uint, c_void_p
from typing import Any

MAJOR, MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*
_SIGNATURES: dict[str, list[Any]] = {
    "cuInit": [c_uint],
    "cuDriverGetVersion": [POINTER(c_int)],
    "cuDeviceGetCount": [POINTER(c_int)],
    "cuDeviceGet": [POINTER(c_int), c_int],
    "cuDeviceGetName": [c_char_p, c_int, c_int],
    "cuDeviceGetAttribute": [POINTER(c_int), c_int, c_int],
    "cuDevicePrimaryCtxRetain": [POINTER(c_void_p), c_int],
}
_MODULE = re.compile(r"Kernel Module(?: for \S+)?\s+(\d+(?:\.\d+)+)")


class Failed(Exception):
    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.code = code


class Driver:
    def __init__(self) -> None:
        say(call="dlopen")
        try:
            self._cuda = ctypes.CDLL("libcuda.so.1")
        except OSError as exc:
            raise Failed(str(exc), 0) from exc

    def call(self, name: str, *args: Any) -> None:
        say(call=name)
        try:
            function = getattr(self._cuda, name)
        except AttributeError as exc:
            raise Failed(f"libcuda.so.1 has no {name}", 0) from exc
        function.argtypes, function.restype = _SIGNATURES[name], c_int
        if code := function(*args):
            raise Failed(f"{name}: {self._name(code)} ({code})", code)

    def _name(self, code: int) -> str:
        text = c_char_p()
        try:
            failed = self._cuda.cuGetErrorName(c_int(code), byref(text))
        except AttributeError:
            failed = True
        return "CUresult" if failed or not text.value else text.value.decode(errors="replace")

    def whole(self, name: str, *args: Any) -> int:
        value = c_int()
        self.call(name, byref(value), *args)
        return value.value

    def device(self, handle: int) -> list[str]:
        """[name, compute capability]"""
        name = ctypes.create_string_buffer(256)
        self.call("cuDeviceGetName", name, len(name), handle)
        capability = [self.whole("cuDeviceGetAttribute", number, handle) for number in (MAJOR, MINOR)]
        return [name.value.decode(errors="replace"), "{}.{}".format(*capability)]


def say(**line: Any) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def module_version(text: str) -> str:
    """The driver's version in /proc/driver/nvidia/version; "" if it does not say.

    >>> module_version("NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024")
    '550.54.15'
    >>> module_version("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build")
    '580.65.06'
    """
    match = _MODULE.search(text)
    return match[1] if match else ""


def release() -> str:
    """The driver's own version, such as 580.65.06: as the kernel module tells it, else as NVML does; "" if neither does."""
    try:
        with open("/proc/driver/nvidia/version") as file:  # noqa: PTH123 - pathlib costs this program 10 ms
            if found := module_version(file.read()):
                return found
    except OSError:
        pass
    say(call="nvmlInit_v2")
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
        text = ctypes.create_string_buffer(80)  # NVML_SYSTEM_DRIVER_VERSION_BUFFER_SIZE
        if nvml.nvmlInit_v2() or nvml.nvmlSystemGetDriverVersion(text, c_uint(len(text))):
            return ""
        return text.value.decode(errors="replace")
    except (OSError, AttributeError):
        return ""


def main() -> None:
    try:
        cuda = Driver()
        say(driver=cuda.whole("cuDriverGetVersion"), release=release())
        started = time.monotonic()
        cuda.call("cuInit", 0)
        handles = [cuda.whole("cuDeviceGet", i) for i in range(cuda.whole("cuDeviceGetCount"))]
        initialised = time.monotonic()
        say(devices=[cuda.device(handle) for handle in handles])
        if not handles:
            raise Failed("cuDeviceGetCount: 0 devices", 100)
        before = time.monotonic()
        cuda.call("cuDevicePrimaryCtxRetain", byref(c_void_p()), handles[0])
        say(init_s=round(initialised - started, 6), context_s=round(time.monotonic() - before, 6))
    except Failed as exc:
        say(error=str(exc), code=exc.code)


if __name__ == "__main__":
    main()
