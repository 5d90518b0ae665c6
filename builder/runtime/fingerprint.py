"""What a compile cache is compared by: this node's chips, this image's wheels, this engine and its settings."""

from __future__ import annotations

import hashlib
import os
import platform
import re
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from builder.format.compiled import Fingerprint

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
_SECRET = re.compile(r"(token|password|passwd|secret|credential|api[-_]?key|access[-_]?key)", re.IGNORECASE)


def here(settings: Settings, name: str, model: str, found: gpu.Found | None) -> Fingerprint:
    """This stack. name, model: the model's name and digest.  found: what the driver said; None where nobody asked it."""
    devices = found.devices if found else ()
    fields = {
        "cpu": cpu(Path("/proc/cpuinfo")),
        "cuda": settings.cuda,
        "driver": f"{found.release or 'unknown'} (CUDA {found.cuda})" if found and found.cuda else "",
        "engine": " ".join([settings.engine, *versions(settings.engine)]),
        "engine_args": hidden(settings.engine_args),
        "gpu": ", ".join(f"{device.name} ({device.capability})" for device in devices),
        "lock": settings.lock,
        "model": model,
        "python": platform.python_version(),
        "root": str(settings.compile_cache_root or ""),
    }
    if not devices:  # Inductor's C++ is compiled for a number of threads: torch 2.13.0, FxGraphHashDetails
        fields["cpus"] = str(len(os.sched_getaffinity(0)))
    environ = {f"env.{variable}": value for variable, value in settings.compile_env.items()}
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


def hidden(args: Sequence[str]) -> str:
    """The arguments in one line, without the values of those that say secret.

    >>> hidden(["--hf-token", "abc", "--tp", "2", "--password=x"])
    '--hf-token *** --tp 2 --password=***'
    """
    out, hide = [], False
    for arg in args:
        name, equals, _ = arg.partition("=")
        secret = arg.startswith("-") and bool(_SECRET.search(name))
        out.append("***" if hide else f"{name}=***" if secret and equals else arg)
        hide = secret and not equals
    return " ".join(out)
