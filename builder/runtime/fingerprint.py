"""What a compile cache is compared by: this node's chips, this image's wheels, this engine and its settings."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shlex
import subprocess
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from builder.format import secret
from builder.format.compiled import Fingerprint, canonical
from builder.runtime.settings import environment

if TYPE_CHECKING:
    from builder.runtime import gpu
    from builder.runtime.settings import Settings

WHEELS = {
    "llama.cpp": ("xllamacpp",),
    "transformers": ("transformers", "torch"),
    "vllm": ("vllm", "torch"),
    "sglang": ("sglang", "torch"),
    "tensorrt-llm": ("tensorrt-llm", "torch"),
    "onnxruntime": ("onnxruntime-gpu", "onnxruntime"),
    "triton": ("nvidia-pytriton",),
    "command": ("torch",),
}
# Instruction sets that gcc's -march=native looks at; the other flags of /proc/cpuinfo change with kernel and microcode.
_ISA = re.compile(
    r"(avx|amx|sse|fma|bmi|aes|vaes|pclmul|vpclmul|sha|f16c|popcnt|abm|lzcnt|movbe|adx|gfni|sve|neon|asimd|fp16|bf16|i8mm)"
)
COMPILER_TIMEOUT_S = 60


def here(settings: Settings, name: str, model: str, found: gpu.Found | None) -> Fingerprint:
    """This stack. name, model: the model's name and digest.  found: what the driver said; None where nobody asked it."""
    devices = found.devices if found else ()
    fields = {
        "cpu": cpu(Path("/proc/cpuinfo")),
        "cuda": settings.cuda,
        "driver": f"{found.release or 'unknown'} (CUDA {found.cuda})" if found and found.cuda else "",
        "engine": " ".join([settings.engine, *versions(settings.engine)]),
        "engine_args": arguments(settings),
        "gpu": ", ".join(f"{device.name} ({device.capability})" for device in devices),
        "lock": settings.lock,
        "model": model,
        "python": platform.python_version(),
        "root": str(settings.compile_cache_root or ""),
        "system": system(settings.compile_env.get("CC", "")),
    }
    if not devices:  # Inductor's C++ is compiled for a number of threads: torch 2.13.0, FxGraphHashDetails
        fields["cpus"] = str(len(os.sched_getaffinity(0)))
    environ = {f"env.{variable}": secret.masked(value) for variable, value in settings.compile_env.items()}
    return Fingerprint(fields | environ, {"name": name, "uid": str(os.getuid())})


def cpu(cpuinfo: Path) -> str:
    """Architecture, model and a digest of the instruction sets: what code compiled for "native" may use.

    Source: proc(5): the lines vendor_id, cpu family, model and flags (x86), CPU implementer, part and Features (ARM).
    """
    try:
        lines = [line.partition(":") for line in cpuinfo.read_text().split("\n\n")[0].splitlines()]
    except OSError:
        lines = []
    said = {name.strip(): value.strip() for name, _, value in lines}
    flags = sorted(flag for flag in (said.get("flags") or said.get("Features", "")).split() if _ISA.match(flag))
    names = ("vendor_id", "cpu family", "model", "CPU implementer", "CPU part")
    digest = hashlib.sha256(" ".join(flags).encode()).hexdigest()[:12]
    return " ".join([platform.machine(), *(said[name] for name in names if name in said), f"isa:{digest}"])


def versions(engine: str) -> list[str]:
    """The installed wheels of the engine, as `name==version`."""
    found = []
    for name in WHEELS[engine]:
        try:
            found.append(f"{name}=={metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    return found


def arguments(settings: Settings) -> str:
    """The engine's arguments in one line, without secrets. Of a command only a digest: any word of it may be one."""
    args = secret.hidden(settings.engine_args)
    return f"sha256:{hashlib.sha256(canonical(args)).hexdigest()}" if settings.engine == "command" and args else " ".join(args)


def system(cc: str) -> str:
    """The distribution, the C library and the C compiler: what compiled libraries are linked with, and by.

    cc: the command in $CC; without one gcc, or clang, as Triton does.
    """
    try:
        release = platform.freedesktop_os_release()
    except OSError:
        release = {}
    names = [release.get("ID", ""), release.get("VERSION_ID", ""), *platform.libc_ver(), compiler(cc)]
    return " ".join(name for name in names if name)


def compiler(cc: str) -> str:
    """The first line of `$CC --version`, or of the first compiler that is there; "" for none."""
    for command in [cc] if cc else ["gcc", "clang"]:
        try:
            asked = [*shlex.split(command), "--version"]
            env = environment({"LC_ALL": "C"})
            said = subprocess.run(
                asked, env=env, stdin=subprocess.DEVNULL, capture_output=True, timeout=COMPILER_TIMEOUT_S, check=False
            )
        except (OSError, ValueError, subprocess.SubprocessError):
            continue
        if lines := said.stdout.decode(errors="replace").splitlines():
            return lines[0].strip()
    return ""
