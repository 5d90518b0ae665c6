"""Which image runs on which GPU, decided with values; tests/integration/test_runtime_gpu.py asks a driver."""

from __future__ import annotations

from pathlib import Path

import pytest

from builder.runtime import gpu, settings
from builder.runtime.cuda import module_version
from builder.runtime.gpu import Device, Found, refusal, runs_on

H100, A100, L4 = Device(0, "NVIDIA H100", "9.0"), Device(1, "NVIDIA A100", "8.0"), Device(2, "NVIDIA L4", "8.9")


@pytest.mark.parametrize(
    ("capability", "archs", "runs"),
    [
        ("9.0", "9.0", True),
        ("8.9", "8.0", True),
        ("8.0", "8.6", False),
        ("8.0", "9.0", False),
        ("10.0", "9.0", False),
        ("12.0", "10.0,12.0", True),
        ("10.3", "10.0", True),  # 10 is one number, not 1 and 0
        ("10.0", "1.0", False),
        ("7.5", "", True),
    ],
)
def test_code_runs_within_its_major_version_and_upwards(capability: str, archs: str, runs: bool) -> None:
    read = settings.read({"BUILDER_GPU_ARCHS": archs})
    assert runs_on(capability, read.gpu_archs) is runs


def said(found: Found, **env: str) -> str:
    error = refusal(found, settings.read({"BUILDER_GPU": "required"} | env))
    return error.message if error else ""


def test_every_wrong_device_is_named_and_no_right_one() -> None:
    found = Found("13.0", "580.1", (H100, A100, L4))
    assert said(found, BUILDER_GPU_ARCHS="9.0, 8.6") == (
        "this image has GPU code for compute capability 9.0, 8.6 only (BUILDER_GPU_ARCHS), and cannot run on "
        "GPU 1 (NVIDIA A100, compute capability 8.0)"
    )
    assert said(found, BUILDER_GPU_ARCHS="10.0").count("GPU ") == 4  # three devices, and "GPU code"
    assert said(found, BUILDER_GPU_ARCHS="9.0,8.0") == said(found) == ""


@pytest.mark.parametrize(
    ("driver", "needed", "refused"),
    [("12.4", "13.0", True), ("13.0", "13.0", False), ("13.1", "13", False), ("12.9", "12.10", True), ("12.10", "12.9", False)],
)
def test_a_driver_is_compared_by_number(driver: str, needed: str, refused: bool) -> None:
    text = said(Found(driver, "550.54.15", (H100,)), BUILDER_CUDA=needed)
    assert text == (
        f"driver 550.54.15 supports CUDA {driver} at most, and this image needs CUDA {needed} (BUILDER_CUDA)" if refused else ""
    )


def test_an_old_driver_is_said_before_what_it_failed_at() -> None:
    assert "supports CUDA 12.4" in said(Found("12.4", "", (), "cuInit: x (999)", 999), BUILDER_CUDA="13.0")


def test_what_hides_a_gpu_is_named() -> None:
    found = Found("13.0", "", (), "cuInit: CUDA_ERROR_NO_DEVICE (100)", 100)
    assert "CUDA_VISIBLE_DEVICES=''" in said(found, CUDA_VISIBLE_DEVICES="")
    assert "NVIDIA_VISIBLE_DEVICES='void'" in said(found, NVIDIA_VISIBLE_DEVICES="void")
    assert "VISIBLE" not in said(Found("13.0", "", (), "cuInit: x (999)", 999), CUDA_VISIBLE_DEVICES="0")


def test_the_control_device_is_named_only_where_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = Found(error="libcuda.so.1: cannot open shared object file")
    for device, told in [(tmp_path / "none", True), (tmp_path, False)]:
        monkeypatch.setattr(gpu, "CONTROL_DEVICE", device)
        assert ("there is no" in said(found)) is told


@pytest.mark.parametrize(
    ("text", "version"),
    [
        (
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5\nGCC version:  gcc version 12.2.0\n",
            "550.54.15",
        ),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build  (dvs)\n", "580.65.06"),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  575.57\n", "575.57"),
        ("GCC version: 12\n", ""),
    ],
)
def test_the_kernel_module_tells_its_version(text: str, version: str) -> None:
    assert module_version(text) == version
