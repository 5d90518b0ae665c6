"""The libraries that image.stubs may name: by which file each is known, and what stops working without it.

Each is linked by torch and therefore loaded at every start, but called by some features only. What a stub does, and how
it is made, is in stub.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from builder.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Stub:
    """files: regular expression of the file names, which carry the soname.  wheels: of the wheels that bring them.

    loses: what ends the process with the stub's message.  callers: libraries that call it, beside torch.
    carries: regular expression of names that the library exports but has of others: their code is linked into it.
    """

    name: str
    files: str
    wheels: str
    loses: str
    callers: tuple[str, ...] = ()
    carries: str = ""


STUBS = (
    Stub(
        "cufft",
        r"libcufft\.so\.\d+",
        r"nvidia-cufft(-cu\d+)?",
        "`torch.fft`, `torch.stft` and `torch.istft` on a GPU: audio and some vision encoders",
    ),
    Stub(
        "cufile",
        r"libcufile\.so\.\d+",
        r"nvidia-cufile(-cu\d+)?",
        "GPUDirect Storage: `torch.cuda.gds`, and loaders that read files into GPU memory with it",
        carries=r"ck_\w+",  # Concurrency Kit, in the build for aarch64
    ),
    Stub(
        "curand",
        r"libcurand\.so\.\d+",
        r"nvidia-curand(-cu\d+)?",
        "nothing in torch: it links the library, and calls none of it",
    ),
    Stub(
        "cusolver",
        r"libcusolver\.so\.\d+",
        r"nvidia-cusolver(-cu\d+)?",
        "`torch.linalg` on a GPU: decompositions, `inv`, `solve`, `eigh`, `svd`, `qr`",
    ),
    Stub(
        "cusparse",
        r"libcusparse\.so\.\d+",
        r"nvidia-cusparse(-cu\d+)?",
        "sparse tensors on a GPU: `torch.sparse`, CSR and COO products",
        ("cusolver",),
    ),
    Stub(
        "cusparselt",
        r"libcusparseLt\.so\.\d+",
        r"nvidia-cusparselt(-cu\d+)?",
        "2:4 sparsity through torch: `torch.sparse.to_sparse_semi_structured`",
    ),
    Stub(
        "nccl",
        r"libnccl\.so\.\d+",
        r"nvidia-nccl(-cu\d+)?",
        "`torch.distributed` with NCCL: every use of several GPUs; and vLLM and SGLang, which open a group for one GPU too",
        ("nvshmem",),
    ),
    Stub(
        "nvjitlink",
        r"libnvJitLink\.so\.\d+",
        r"nvidia-nvjitlink(-cu\d+)?",
        "linking at run time: cuSPARSE's and cuFFT's own generated kernels, numba's and CuPy's link step",
        ("cusparse", "cusolver", "cufft"),
    ),
    Stub(
        "nvshmem",
        r"libnvshmem_host\.so\.\d+",
        r"nvidia-nvshmem(-cu\d+)?",
        "one-sided transfers between GPUs: symmetric memory over NVSHMEM, DeepEP's expert parallel kernels",
    ),
)
NAMES = tuple(stub.name for stub in STUBS)


def chosen(names: Iterable[str]) -> tuple[Stub, ...]:
    """The stubs of these names, in the table's order. Raises ConfigError for a name that is not in it."""
    wanted = set(names)
    if unknown := sorted(wanted - set(NAMES)):
        raise ConfigError(f"no stub is known for {', '.join(unknown)}", hint=f"expected some of {', '.join(NAMES)}")
    return tuple(stub for stub in STUBS if stub.name in wanted)


def of_file(file: str, package: str, names: Iterable[str]) -> str:
    """Which of the stubs `names` takes the place of `file` of the wheel `package`; "" where none does.

    file: a name without folder.  package: as the index compares names; "" where it is not known.

    >>> of_file("libcurand.so.10", "nvidia-curand", ["curand", "cufft"])
    'curand'
    """
    for stub in chosen(names):
        if re.fullmatch(stub.files, file) and (not package or re.fullmatch(stub.wheels, package)):
            return stub.name
    return ""
