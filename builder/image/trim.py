"""What no server reads, by rule: the table behind the `trim` step of a build (templates/image/steps/trim.py).

A rule takes whole files away. Changing a file is another matter: the guarded strip leaves those alone whose wheel is
under NVIDIA's own licence or calls itself proprietary. Every byte is counted by cause and package, in
/opt/builder/layers/LAYER.json of the image. The smoke stage imports the engine afterwards, as the image's user; figures
per rule are in docs/benchmarks.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Rule:
    """patterns: globs below site-packages, `**` for any folders; a folder goes whole.

    toolkit: set aside in a layer of its own, which only images have that compile kernels at run time. So the layers of
    torch and its libraries are the same, digest for digest, in images that compile and in images that do not.
    """

    cause: str
    patterns: tuple[str, ...]
    why: str
    toolkit: bool = False

    def to_json(self) -> dict[str, Any]:
        return {"cause": self.cause, "patterns": list(self.patterns), "toolkit": self.toolkit}


RULES = (
    Rule("bytecode", ("**/__pycache__",), "compiled again later, for what a start imports, with no tie to file times"),
    Rule(
        "tests",
        ("**/tests", "torch/test", "transformers/testing_utils.py"),
        "run by the package's developers; nothing imports them",
    ),
    Rule(
        "CUDA's static archives",
        ("nvidia/**/libcudart_static.a", "nvidia/**/libcudadevrt.a", "nvidia/**/libcufilt.a"),
        "linked in by nvcc; there where the image compiles kernels at run time",
        toolkit=True,
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
        ("**/backends/amd/lib", "**/backends/amd/include", "**/3rdparty/composable_kernel"),
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
            "**/backends/nvidia/bin/cuobjdump",
            "**/backends/nvidia/bin/nvdisasm",
            "nvidia/**/bin/cuobjdump",
            "nvidia/**/bin/nvdisasm",
        ),
        "for reading compiled kernels by eye",
    ),
    Rule("profilers", ("**/backends/nvidia/lib/cupti",), "Proton's own CUPTI; torch's profiler has that of its wheel"),
    Rule(
        "headers",
        ("torch/include", "nvidia/*/include", "nvidia/*/*/include", "**/backends/nvidia/include"),
        "read by a compiler; there where the image compiles kernels at run time",
        toolkit=True,
    ),
    Rule(
        "compilers",
        ("nvidia/*/bin", "nvidia/*/nvvm", "**/backends/nvidia/bin/ptxas*"),
        "nvcc, NVVM and ptxas; there where the image compiles kernels at run time",
        toolkit=True,
    ),
)

SYMBOLS = "symbols that only a debugger reads, taken by a guarded strip; not where the licence is NVIDIA's or proprietary"
DUPLICATES = "files with the same bytes in one layer, stored once as hard links"


def settings(epoch: int) -> dict[str, Any]:
    """What the trim step reads: steps/trim.json of the build folder. The same for every image."""
    return {"epoch": epoch, "rules": [rule.to_json() for rule in RULES]}
