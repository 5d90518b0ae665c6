"""Which library may be changed: what was read in its licence, and what each profile does with it.

    oss   modifies only what its licence allows to modify and to pass on
    all   modifies everything; the result is for those who made it, not for others

A file is judged by its own name first: wheels with a free licence carry copies of NVIDIA's libraries (libcupti in triton,
libnvjpeg in torchvision). One that is named as theirs are and stands in no free row is taken for such a copy. Then by its
package's row below, then by the licence that the package's METADATA states. What says nothing is left alone. docs/slim.md
prints this table; `where` is the file in which the fact was read.
"""

from __future__ import annotations

import fnmatch
import re
from dataclasses import dataclass

PROFILES = ("oss", "all")
CUDA = "NVIDIA CUDA EULA"
CUDA_SAYS = "License.txt in the wheel, 1.2 Limitations, 2: no modification of any portion of the SDK"


@dataclass(frozen=True)
class Row:
    """One library, or several under one licence.

    packages, files: patterns of names, as fnmatch has them; packages as the index compares names.
    where: the file that says so.  free: whether profile `oss` may modify it.  wheel: the one in which it was read.
    """

    title: str
    packages: tuple[str, ...]
    files: tuple[str, ...]
    licence: str
    where: str
    free: bool
    wheel: str = ""


def _cuda(title: str, package: str, files: str, wheel: str) -> Row:
    return Row(title, (package, f"{package}-*"), tuple(files.split()), CUDA, CUDA_SAYS, False, wheel)


TABLE = (
    _cuda("cuBLAS", "nvidia-cublas", "libcublas*.so* libnvblas*.so*", "nvidia-cublas 13.1.1.3"),
    _cuda("cuFFT", "nvidia-cufft", "libcufft*.so*", "nvidia-cufft 12.0.0.61"),
    _cuda("cuRAND", "nvidia-curand", "libcurand*.so*", "nvidia-curand 10.4.0.35"),
    _cuda("cuSOLVER", "nvidia-cusolver", "libcusolver*.so*", "nvidia-cusolver 12.0.4.66"),
    _cuda("cuSPARSE", "nvidia-cusparse", "libcusparse.so* libcusparse-*.so*", "nvidia-cusparse 12.6.3.3"),
    _cuda("cuFile", "nvidia-cufile", "libcufile*.so*", "nvidia-cufile 1.15.1.6"),
    _cuda("nvJitLink", "nvidia-nvjitlink", "libnvJitLink*.so*", "nvidia-nvjitlink 13.5.37"),
    _cuda("NVVM", "nvidia-nvvm", "libnvvm*.so*", "nvidia-nvvm 13.5.37"),
    _cuda("NVRTC", "nvidia-cuda-nvrtc", "libnvrtc*.so*", "nvidia-cuda-nvrtc 13.0.88"),
    _cuda("CUDA runtime", "nvidia-cuda-runtime", "libcudart*.so* libcudadevrt*", "nvidia-cuda-runtime 13.0.96"),
    _cuda(
        "CUPTI",
        "nvidia-cuda-cupti",
        "libcupti*.so* libnvperf*.so* libcheckpoint.so* libpcsamplingutil.so*",
        "nvidia-cuda-cupti 13.0.85",
    ),
    _cuda("NVSHMEM", "nvidia-nvshmem", "libnvshmem*.so* nvshmem_*.so*", "nvidia-nvshmem-cu13 3.4.5"),
    _cuda("nvFatbin", "nvidia-nvfatbin", "libnvfatbin*.so*", "nvidia-nvfatbin 13.5.37"),
    Row(  # before the row with libnvjpeg*
        "nvJPEG2000", ("nvidia-nvjpeg2k", "nvidia-nvjpeg2k-*"), ("libnvjpeg2k*.so*",), "NVIDIA Proprietary Software",
        "License in METADATA", False, "nvidia-nvjpeg2k-cu13 0.11.0.51",
    ),
    _cuda("other CUDA parts", "nvidia-cuda", "libnvjpeg*.so* libnpp*.so* libcuda-* libcuda.so*", "nvidia-cuda-nvcc 13.5.37"),
    Row(
        "cuDNN", ("nvidia-cudnn", "nvidia-cudnn-cu*"), ("libcudnn*.so*",), "NVIDIA SDK licence, cuDNN",
        "License.txt in the wheel, 2.2: no modification of any portion of the SDK", False, "nvidia-cudnn-cu13 9.20.0.48",
    ),
    Row(
        "cuSPARSELt", ("nvidia-cusparselt", "nvidia-cusparselt-*"), ("libcusparseLt*.so*",), "NVIDIA SDK licence, cuSPARSELt",
        "nvidia/cusparselt/LICENSE.txt in the wheel, 2.2: no modification of any portion of the SDK", False,
        "nvidia-cusparselt-cu13 0.8.1",
    ),
    Row(
        "CUTLASS DSL", ("nvidia-cutlass-dsl", "nvidia-cutlass-dsl-*"), ("libcute_dsl*.so*",),
        "NVIDIA Software License Agreement", "LICENSE in the wheel, 2.4: no modification except of samples", False,
        "nvidia-cutlass-dsl-libs-cu13 4.8.0",
    ),
    Row(
        "NCCL", ("nvidia-nccl", "nvidia-nccl-*"), ("libnccl.so*", "libnccl-*.so*"), "unclear: a person should decide",
        "License.txt in the wheel is BSD-style, its METADATA says LicenseRef-NVIDIA-Proprietary", False,
        "nvidia-nccl-cu13 2.29.7",
    ),
    Row(
        "NVTX", ("nvidia-nvtx", "nvidia-nvtx-*"), ("libnvtx*.so*", "libnvToolsExt*.so*"), "unclear: a person should decide",
        "License.txt in the wheel is Apache-2.0, a classifier in its METADATA says proprietary", False, "nvidia-nvtx 13.0.85",
    ),
    Row(
        "cuTENSOR", ("cutensor", "cutensor-cu*"), ("libcutensor.so*", "libcutensor-*.so*", "libcutensorMg*.so*"),
        "NVIDIA Proprietary Software", "License in METADATA", False, "cutensor-cu13 2.8.1",
    ),
    Row(
        "nvCOMP", ("nvidia-nvcomp-*", "nvidia-libnvcomp-*"), ("libnvcomp*.so*",), "NVIDIA SDK licence", "License in METADATA",
        False, "nvidia-nvcomp-cu13 6.0.0.12",
    ),
    Row(
        "nvTIFF", ("nvidia-nvtiff", "nvidia-nvtiff-*"), ("libnvtiff*.so*",), "NVIDIA Proprietary Software",
        "License in METADATA", False, "nvidia-nvtiff-cu13 0.8.0.82",
    ),
    Row(
        "cuDSS", ("nvidia-cudss", "nvidia-cudss-*"), ("libcudss*.so*",), "not read", "nobody has read it yet", False,
    ),
    Row(
        "TensorRT", ("tensorrt", "tensorrt-*"), ("libnvinfer*.so*", "libnvonnxparser*.so*"), "not read",
        "nobody has read it yet", False,
    ),
    Row(
        "cuDNN frontend", ("nvidia-cudnn-frontend",), (), "Apache-2.0 AND MIT", "License in METADATA", True,
        "nvidia-cudnn-frontend 1.32.0",
    ),
    Row(
        "nvImageCodec", ("nvidia-nvimgcodec-*",), ("libnvimgcodec*.so*",), "Apache-2.0", "License in METADATA", True,
        "nvidia-nvimgcodec-cu13 0.9.0.20",
    ),
    Row(
        "cuML, cuGraph", ("libcuml-*", "libcugraph-*"), ("libcuml*.so", "libcugraph*.so"), "Apache-2.0",
        "LICENSE in rapidsai/cuml and rapidsai/cugraph", True,
    ),
    Row(
        "NCCL extensions", ("nccl-extensions", "nccl4py"), ("libnccl_ep.so*", "libnccl_m2n.so*"), "Apache-2.0",
        "License-Expression in METADATA", True, "nccl-extensions 0.1.0",
    ),
    Row(
        "PyTorch", ("torch",), ("libtorch*.so", "libc10*.so"), "BSD-3-Clause, with BSD, MIT, Apache-2.0 and BSL-1.0 parts",
        "License-Expression in METADATA", True, "torch 2.13.0",
    ),
    Row("torchvision", ("torchvision",), (), "BSD-3-Clause", "License in METADATA, LICENSE", True, "torchvision 0.28.0"),
    Row("torchaudio", ("torchaudio",), (), "BSD-2-Clause", "classifier in METADATA, LICENSE", True, "torchaudio 2.11.0"),
    Row("torchcodec", ("torchcodec",), (), "BSD-3-Clause", "LICENSE in the wheel", True, "torchcodec 0.17.0"),
    Row("vLLM", ("vllm",), ("_vllm_fa*_C*.so",), "Apache-2.0", "License-Expression in METADATA", True, "vllm 0.32.0"),
    Row("Triton", ("triton",), ("libtriton.so",), "MIT", "classifier in METADATA, LICENSE", True, "triton 3.7.1"),
    Row(
        "TokenSpeed's Triton", ("tokenspeed-triton", "tokenspeed-mla"), (), "MIT", "License in METADATA", True,
        "tokenspeed-triton 3.9.10.post20261028",
    ),
    Row("FlashInfer", ("flashinfer-python",), (), "Apache-2.0", "License-Expression in METADATA", True,
        "flashinfer-python 0.7.0.post1"),
    Row("TileLang", ("tilelang",), (), "MIT", "License-Expression in METADATA", True, "tilelang 0.1.12"),
    Row(
        "PyNvVideoCodec", ("pynvvideocodec",), (), "MIT (its FFmpeg: LGPL-3.0, without GPU code)",
        "License in METADATA, NOTICES.txt", True, "pynvvideocodec 2.0.4",
    ),
    Row(
        "bitsandbytes", ("bitsandbytes",), ("libbitsandbytes_*.so",), "MIT", "License-Expression in METADATA", True,
        "bitsandbytes 0.50.2",
    ),
    Row("xFormers", ("xformers",), (), "BSD-3-Clause", "LICENSE in facebookresearch/xformers", True),
    Row("CuPy", ("cupy-cuda*", "cupy"), (), "MIT", "LICENSE in cupy/cupy", True),
    Row(
        "ONNX Runtime", ("onnxruntime-gpu",), ("libonnxruntime_providers_cuda.so",), "MIT", "LICENSE in microsoft/onnxruntime",
        True,
    ),
    Row(
        "llama.cpp", ("llama-cpp-python",), ("libggml-cuda.so*",), "MIT",
        "LICENSE in ggml-org/llama.cpp and abetlen/llama-cpp-python", True,
    ),
)  # fmt: skip

# In a package of somebody else, such a file is taken for a copy of NVIDIA's, unless a free row has its name.
THEIRS = Row(
    "unlisted copies in other packages", (), ("libcu*", "libnv*"), "unknown",
    "named as NVIDIA's libraries are, in a package that is not theirs", False,
)  # fmt: skip

# The licences that allow to modify and to pass on, without asking for source code: SPDX names, and the words METADATA uses.
PERMISSIVE = {
    "0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC0-1.0", "HPND", "ISC", "MIT", "MIT-0", "MIT-CMU",
    "NCSA", "PSF-2.0", "Python-2.0", "Unlicense", "UPL-1.0", "Zlib",
}  # fmt: skip
WORDS = (
    (re.compile(r"(the )?apache( software)?( license|-)?,? ?(version |v)?(2(\.0)?)?$"), "Apache-2.0"),
    (re.compile(r"(the )?mit( license)?$"), "MIT"),
    (re.compile(r"(the )?(new |modified |3-clause )?bsd([- ][23][- ]clause)?( license)?$"), "BSD-3-Clause"),
    (re.compile(r"isc( license.*)?$"), "ISC"),
)


@dataclass(frozen=True)
class Decision:
    """What a profile does with a file. reason: one sentence, when it is left."""

    package: str
    licence: str
    where: str
    modify: bool
    reason: str = ""


def decide(profile: str, file: str, package: str = "", metadata: str = "") -> Decision:
    """Whether `profile` modifies the file named `file` of `package`.

    package: "" where no dist-info lists the file.  metadata: the text of the package's METADATA.
    """
    row, stated = _row(file, package), _stated(metadata)
    if row:
        found = Decision(package or row.title, row.licence, row.where, row.free)
    elif stated:
        found = Decision(package, stated, "METADATA", permissive(stated))
    else:
        found = Decision(package, "unknown", "METADATA names no licence" if package else "belongs to no package", False)
    if found.modify or profile == "all":
        return Decision(found.package, found.licence, found.where, True)
    return Decision(found.package, found.licence, found.where, False, f"profile oss: {found.licence} ({found.where})")


def _row(file: str, package: str) -> Row | None:
    """A closed row by the file's name, else any row by the package, else any row by the file's name."""
    by_name = [row for row in TABLE if _any(file, row.files)]
    by_package = [row for row in TABLE if _any(package, row.packages)]
    for row in by_name:
        if not row.free:
            return row
    if not by_name and package and not package.startswith("nvidia-") and _any(file, THEIRS.files):
        return next((row for row in by_package if not row.free), THEIRS)
    # The longest pattern is the closest: nvidia-cudnn-frontend is not nvidia-cudnn, nor nvidia-cuda-nvrtc nvidia-cuda.
    by_package.sort(key=lambda row: max(len(p.rstrip("*")) for p in row.packages if fnmatch.fnmatchcase(package, p)))
    if by_package:
        return by_package[-1]
    return by_name[0] if by_name and not package else None


def _any(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _stated(metadata: str) -> str:
    """The licence that METADATA states; a classifier that says proprietary wins, since then a person should look."""
    head = re.sub(r"\n[ \t|]+", " ", metadata.partition("\n\n")[0])
    found: list[tuple[str, str]] = re.findall(r"(?m)^(License-Expression|License|Classifier): *(.*)$", head)
    classes = [text.rsplit(" :: ", 1)[-1] for name, text in found if name == "Classifier" and text.startswith("License ")]
    words = [text.strip() for name, text in found if name != "Classifier" and text.strip().upper() not in ("", "UNKNOWN")]
    ordered = [one for one in classes if "Proprietary" in one] + words + [one for one in classes if one != "OSI Approved"]
    return _short(ordered[0]) if ordered else ""


def _short(stated: str) -> str:
    """The name of a licence whose whole text stands there."""
    text = " ".join(stated.split())
    if re.match(r"apache license,? version 2\.0, january 2004 ", text, re.I):
        return "Apache-2.0"
    return "MIT" if re.match(r"(the )?mit license \W?copyright", text, re.I) else text[:120]


def permissive(expression: str) -> bool:
    """Whether every licence of an SPDX expression, or of the looser words of older METADATA, allows to modify and pass on.

    >>> permissive("Apache-2.0 WITH LLVM-exception AND MIT"), permissive("MIT AND LGPL-3.0-only"), permissive("BSD License")
    (True, False, True)
    """
    names = re.split(r"\s+(?:AND|OR)\s+|[();]", re.sub(r"\s+WITH\s+[\w.-]+", "", expression))
    return bool(expression.strip()) and all(_named(name.strip()) in PERMISSIVE for name in names if name.strip())


def _named(name: str) -> str:
    for pattern, licence in WORDS:
        if pattern.match(name.lower()):
            return licence
    return name


def page() -> str:
    """The table as Markdown, for docs/slim.md."""
    lines = [
        "| library | files besides the package's | licence | read in | profile oss | profile all |",
        "|---|---|---|---|---|---|",
    ]
    for row in (*TABLE, THEIRS):
        files = ", ".join(f"`{one}`" for one in row.files) or "none"
        read = row.where + (f"; {row.wheel}" if row.wheel else "")
        lines.append(f"| {row.title} | {files} | {row.licence} | {read} | {'modifies' if row.free else 'leaves'} | modifies |")
    return "\n".join(lines) + "\n"
