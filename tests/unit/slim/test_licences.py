"""Who may be changed: by the name of the file, the package, or what METADATA states."""

from __future__ import annotations

import pytest

from builder.slim.licences import CUDA, TABLE, decide, permissive

CLOSED = [
    ("libcublasLt.so.13", "nvidia-cublas"),
    ("libcublas.so.12", "nvidia-cublas-cu12"),
    ("libcudnn_engines_precompiled.so.9", "nvidia-cudnn-cu13"),
    ("libcufft.so.12", "nvidia-cufft"),
    ("libcusparse.so.12", "nvidia-cusparse"),
    ("libcusparseLt.so.0", "nvidia-cusparselt-cu13"),
    ("libnccl.so.2", "nvidia-nccl-cu13"),
    ("libnvshmem_host.so.3", "nvidia-nvshmem-cu13"),
    ("libnvrtc.so.13", "nvidia-cuda-nvrtc"),
    ("libcudart.so.13", "nvidia-cuda-runtime"),
    ("libanything.so", "nvidia-cuda-new-part"),
    ("_cutlass_ir.cu13.cpython-311-x86_64-linux-gnu.so", "nvidia-cutlass-dsl-libs-cu13"),
    ("libnvinfer.so.10", "tensorrt-cu13-libs"),
    # the same where no RECORD says whose they are, and as copies in packages with a free licence
    ("libcublasLt.so.13", ""),
    ("libcupti.so.12", "triton"),
    ("libnvjpeg.36e11081.so.13", "torchvision"),
    ("libcudart-c64a25f3.so.12.3.101", "pynvvideocodec"),
    ("libcudss.so.0", "torch"),
    ("libnvfatbin.so.13", "torch"),
    ("libcutensor.so.2", "cupy-cuda13x"),
    ("libnvcomp.so.4", "cupy-cuda13x"),
    ("libnvjpeg2k.so.0", "cupy-cuda13x"),
    # named as theirs are, in no row
    ("libcunew.so.1", "torch"),
    ("libnvnew-1234abcd.so.1", "vllm"),
]
FREE = [
    ("libtorch_cuda.so", "torch"),
    ("libtorch_cuda.so", ""),
    ("_C.so", "torchvision"),
    ("_vllm_fa2_C.abi3.so", "vllm"),
    ("libtriton.so", "triton"),
    ("libbitsandbytes_cuda128.so", "bitsandbytes"),
    ("_compiled_module.so", "nvidia-cudnn-frontend"),
    ("libnccl_ep.so", "nccl-extensions"),
    ("libggml-cuda.so.0", ""),
    ("_ext.so", "cupy-cuda13x"),
    ("libcuml++.so", "libcuml-cu13"),
    ("libnvimgcodec.so.0", "nvidia-nvimgcodec-cu13"),
]


@pytest.mark.parametrize(("file", "package"), CLOSED)
def test_the_default_profile_leaves_what_no_licence_allows_to_modify(file: str, package: str) -> None:
    found = decide("oss", file, package)
    assert not found.modify
    assert found.licence in found.reason
    assert found.where in found.reason
    assert decide("all", file, package).modify


@pytest.mark.parametrize(("file", "package"), FREE)
def test_free_libraries_are_modified(file: str, package: str) -> None:
    assert decide("oss", file, package).modify


def metadata(*lines: str) -> str:
    return "\n".join(["Metadata-Version: 2.4", "Name: x", *lines, "", "License: Proprietary, says the description"])


@pytest.mark.parametrize(
    ("lines", "free", "licence"),
    [
        (("License-Expression: Apache-2.0",), True, "Apache-2.0"),
        (("License-Expression: Apache-2.0 WITH LLVM-exception AND BSD-2-Clause",), True, None),
        (("License: MIT License",), True, "MIT License"),
        (("License: Apache 2.0",), True, None),
        (("License: UNKNOWN", "Classifier: License :: OSI Approved :: BSD License"), True, "BSD License"),
        (("License:           Apache License", "        Version 2.0, January 2004", "    Terms (AND conditions)"), True, None),
        (("License: MIT License", "        ", "        Copyright (c) 2022", "     (and so on)"), True, "MIT"),
        (("Classifier: License :: OSI Approved :: MIT License",), True, "MIT License"),
        (("License-Expression: LGPL-3.0-only",), False, "LGPL-3.0-only"),
        (("License-Expression: MIT AND LGPL-3.0-only",), False, None),
        (("License-Expression: LicenseRef-NVIDIA-Proprietary",), False, "LicenseRef-NVIDIA-Proprietary"),
        (("License: Apache 2.0", "Classifier: License :: Other/Proprietary License"), False, "Other/Proprietary License"),
        (("License: see the file",), False, "see the file"),
        ((), False, "unknown"),
    ],
)
def test_an_unknown_package_is_judged_by_its_metadata(lines: tuple[str, ...], free: bool, licence: str | None) -> None:
    found = decide("oss", "libx.so", "x", metadata(*lines))
    assert found.modify is free
    assert licence in (None, found.licence)
    assert decide("all", "libx.so", "x", metadata(*lines)).modify


def test_a_library_named_as_nvidias_in_a_free_package_is_left_whatever_the_package_states() -> None:
    found = decide("oss", "libcunew.so.1", "x", metadata("License-Expression: MIT"))
    assert not found.modify
    assert found.reason == "profile oss: unknown (named as NVIDIA's libraries are, in a package that is not theirs)"
    # in a package of theirs, METADATA has the word
    assert decide("oss", "libcunew.so.1", "nvidia-new", metadata("License-Expression: Apache-2.0")).modify


def test_the_rows_say_the_licence_of_the_library_itself() -> None:
    assert decide("oss", "libnvjpeg2k.so.0", "x").where == "License in METADATA"
    assert decide("oss", "libnvjpeg.so.13", "x").licence == CUDA


def test_what_belongs_to_no_package_is_left() -> None:
    assert decide("oss", "libx.so").reason == "profile oss: unknown (belongs to no package)"


def test_every_row_says_where_it_was_read() -> None:
    assert all(row.where and row.licence and row.packages for row in TABLE)
    assert len({row.title for row in TABLE}) == len(TABLE)


def test_nothing_is_no_licence() -> None:
    assert not permissive("")
