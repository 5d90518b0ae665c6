"""Facts of the machine that ran the test: a cold-start time without them means nothing."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from builder import process
from builder.errors import BuilderError
from builder.verify.report import HostFacts

ASK_S = 20.0


def facts(*, docker: str = "") -> HostFacts:
    """This machine. docker: the engine's version, where one took part."""
    return HostFacts(
        cores=len(os.sched_getaffinity(0)),
        memory=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        cpu=_cpu(),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        gpus=gpus(),
        docker=docker,
    )


def gpus() -> tuple[str, ...]:
    """Names of the NVIDIA GPUs that the driver lists; empty without a driver."""
    program = process.which("nvidia-smi")
    if program is None:
        return ()
    try:
        done = process.run([program, "--query-gpu=name", "--format=csv,noheader"], timeout_s=ASK_S, check=False)
    except BuilderError:
        return ()
    lines = done.stdout.decode(errors="replace").splitlines() if done.returncode == 0 else []
    return tuple(line.strip() for line in lines if line.strip())


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
