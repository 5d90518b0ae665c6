"""What no server reads, by rule: the table behind the `trim` step of a build (templates/image/steps/trim.py).

A rule takes whole files away. What it must not do is change one that a licence forbids to change, so the guarded strip
leaves NVIDIA's libraries alone. Every byte dropped is counted by cause and package, in /opt/builder/layers/LAYER.json of
the image. The smoke stage imports the engine afterwards, as the image's user; figures per rule are in docs/image.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Rule:
    """patterns: globs below site-packages, `**` for any folders; a folder goes whole. jit: kept where the image compiles."""

    cause: str
    patterns: tuple[str, ...]
    why: str
    jit: bool = False

    def to_json(self) -> dict[str, Any]:
        return {"cause": self.cause, "patterns": list(self.patterns)}


RULES = (
    Rule("bytecode", ("**/__pycache__",), "compiled again later, for what a start imports, with no tie to file times"),
    Rule(
        "tests",
        ("**/tests", "torch/test", "transformers/testing_utils.py"),
        "run by the package's developers; nothing imports them",
    ),
    Rule("static archives", ("**/*.a", "**/*.lib"), "input of a linker; a process loads shared objects only"),
    Rule("interfaces", ("**/*.pyi", "**/*.pyx", "**/*.pxd"), "read by type checkers and by Cython, not by Python"),
    Rule(
        "unlinked libraries",
        (
            "nvidia/**/libcusolverMg.so*",
            "nvidia/**/libnvrtc*.alt.so*",
            "nvidia/**/libnvperf_*.so*",
            "nvidia/**/libcheckpoint.so*",
            "nvidia/**/libpcsamplingutil.so*",
            "nvidia/**/libcufftw.so*",
            "nvidia/**/libnvblas.so*",
        ),
        "no library of the image names them as needed, and no engine opens them by name",
    ),
    Rule(
        "plugins that cannot load",
        (
            "nvidia/nvshmem/lib/nvshmem_bootstrap_mpi.so*",
            "nvidia/nvshmem/lib/nvshmem_bootstrap_pmi*.so*",
            "nvidia/nvshmem/lib/nvshmem_bootstrap_shmem.so*",
            "nvidia/nvshmem/lib/nvshmem_transport_libfabric.so*",
            "nvidia/nvshmem/lib/nvshmem_transport_ucx.so*",
        ),
        "they need MPI, PMI, libfabric or UCX, which no wheel brings",
    ),
    Rule(
        "AMD",
        ("triton/backends/amd/lib", "triton/backends/amd/include", "**/3rdparty/composable_kernel"),
        "for AMD GPUs; the Python files of Triton's AMD back end stay, because its import lists all back ends",
    ),
    Rule(
        "build files",
        ("torch/bin/protoc*", "torch/share/cmake", "**/*.cmake", "**/pkgconfig"),
        "for building software against the package",
    ),
    Rule(
        "disassemblers",
        (
            "triton/backends/nvidia/bin/cuobjdump",
            "triton/backends/nvidia/bin/nvdisasm",
            "nvidia/**/bin/cuobjdump",
            "nvidia/**/bin/nvdisasm",
        ),
        "for reading compiled kernels by eye",
    ),
    Rule(
        "headers",
        ("torch/include", "nvidia/*/include", "nvidia/*/*/include", "triton/backends/nvidia/include"),
        "read by a compiler; kept where the image compiles kernels at run time",
        jit=True,
    ),
    Rule(
        "compilers",
        ("nvidia/*/bin", "nvidia/*/nvvm", "triton/backends/nvidia/bin/ptxas*"),
        "nvcc, NVVM and ptxas; kept where the image compiles kernels at run time",
        jit=True,
    ),
)

SYMBOLS = "symbols that only a debugger reads, taken by a guarded strip; never from NVIDIA's libraries"
DUPLICATES = "files with the same bytes in one layer, stored once as hard links"


def settings(*, jit: bool, epoch: int) -> dict[str, Any]:
    """What the trim step reads: steps/trim.json of the build folder."""
    return {"epoch": epoch, "rules": [rule.to_json() for rule in RULES if not (jit and rule.jit)]}
