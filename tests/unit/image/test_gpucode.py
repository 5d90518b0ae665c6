"""What an image tells of its GPU code: read from its build's own records, shown to people, programs and on the page."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from builder.cli.image import command
from builder.errors import IntegrityError
from builder.image import gpucode
from builder.image.measure import report
from builder.image.page import html
from tests.images import image
from tests.secrets import SECRETS

ROW: dict[str, Any] = {
    "path": "/opt/venv/lib/python3.11/site-packages/torch/lib/libtorch_cuda.so",
    "package": "torch",
    "licence": "BSD-3-Clause",
    "decision": "modify",
    "status": "pruned",
    "reason": "",
    "size_before": 9_000_000,
    "size_after": 4_000_000,
    "zeroed": 0,
    "before": {"sm_80": 3_000_000, "sm_90": 2_000_000, "sm_90a": 500_000, "compute_80": 1_000_000},
    "after": {"sm_90": 2_000_000, "sm_90a": 500_000},
    "jit": [],
    "runs_on": ["9.0"],
}
LEFT = ROW | {
    "path": "/opt/venv/lib/libcublas.so.13",
    "package": "nvidia-cublas",
    "status": "licence",
    "reason": "its licence forbids changes",
    "before": {"sm_100": 7_000_000, "sm_90": 1_000_000},
    "after": {"sm_100": 7_000_000, "sm_90": 1_000_000},
}
JIT = ROW | {
    "path": "/opt/venv/lib/fa2.so",
    "package": "vllm",
    "before": {"sm_80": 100, "compute_80": 50},
    "after": {"compute_80": 50},
    "jit": ["compute_80"],
    "zeroed": 2_097_152,
}


UNREAD = ROW | {
    "path": "/opt/venv/lib/odd.so",
    "status": "left",
    "reason": ".nv_fatbin: a container at byte 4,096 is of version 9",
    "error": "version",
    "before": {},
    "after": {},
    "runs_on": [],
    "notes": [],
}
NOTED = ROW | {"path": "/opt/venv/lib/_C.so", "notes": ["does not load here, nor did the original: libcuda.so.1: no such file"]}
STUB = {
    "path": "/opt/venv/lib/libcufft.so.12",
    "package": "nvidia-cufft",
    "stub": "cufft",
    "bytes_before": 300_000_000,
    "bytes_after": 9_000,
}


def record(
    layer: str, *rows: dict[str, Any], gpus: tuple[str, ...] = ("9.0", "8.0"), stubs: tuple[dict[str, Any], ...] = ()
) -> bytes:
    return json.dumps({"layer": layer, "gpus": gpus, "profile": "oss", "libraries": rows, "stubs": stubs}).encode()


def made(folder: Path, *more: dict[str, bytes]) -> Path:
    first = {"opt/builder/slim/torch.json": record("torch", ROW), "opt/builder/slim/nvidia.json": record("nvidia", LEFT, JIT)}
    return image(folder / "image.tar", first, *more)


def test_code_is_summed_by_chip_and_libraries_stand_by_what_they_hold(tmp_path: Path) -> None:
    found = report(made(tmp_path), "r/m:1").gpu_code
    assert found
    assert (found.gpus, found.profile) == (("9.0", "8.0"), "oss")
    assert [one.name for one in found.libraries] == ["libcublas.so.13", "libtorch_cuda.so", "fa2.so"]
    assert found.chips == [
        ("sm_80", 3_000_100, 0),
        ("sm_90", 3_000_000, 3_000_000),
        ("sm_90a", 500_000, 500_000),
        ("sm_100", 7_000_000, 7_000_000),
        ("compute_80", 1_000_050, 50),
    ]
    assert (found.before, found.after) == (14_500_150, 10_500_050)
    assert found.runs_on == {"9.0": (), "8.0": ("libcublas.so.13", "libtorch_cuda.so", "fa2.so")}
    assert {one.name: one.remark for one in found.libraries} == {
        "libcublas.so.13": "left: its licence forbids changes",
        "libtorch_cuda.so": "",
        "fa2.so": "the driver compiles compute_80; of the file 2.00 MiB are zeros",
    }


def test_people_programs_and_the_page_are_told_the_same(tmp_path: Path) -> None:
    path = made(tmp_path)
    page = tmp_path / "page.html"
    done = CliRunner().invoke(command, ["report", str(path), "--html", str(page)], catch_exceptions=False)
    assert "GPU code for 9.0, 8.0, profile oss: 10.0 MiB of 13.8 MiB in 3 files kept" in done.stdout
    assert "9.0: 3 of 3 have code for it\n8.0: 0 of 3 have code for it; not libcublas.so.13, libtorch_cuda.so" in done.stdout
    assert "left: its licence forbids changes" in done.stdout
    few = CliRunner().invoke(command, ["report", str(path), "--top", "1"], catch_exceptions=False).stdout
    assert "into CUDA_CACHE_PATH, in every new container: fa2.so\n" in few  # though it is not among the largest
    told = json.loads(CliRunner().invoke(command, ["report", str(path), "--format", "json"], catch_exceptions=False).stdout)
    assert told["gpu_code"]["chips"][0] == {"chip": "sm_80", "before": 3_000_100, "after": 0}
    assert told["gpu_code"]["runs_on"][0] == {"gpu": "9.0", "without_code": []}
    assert told["gpu_code"]["libraries"][0]["path"] == LEFT["path"].lstrip("/")
    text = page.read_text()
    for word in (
        "<h2>GPU code</h2>",
        "libtorch_cuda.so",
        "its licence forbids changes",
        "the driver compiles compute_80",
        "sm_90a",
    ):
        assert word in text


def test_what_was_not_understood_or_not_proven_is_told_and_counts_as_neither(tmp_path: Path) -> None:
    path = image(tmp_path / "i.tar", {"opt/builder/slim/x.json": record("x", ROW, UNREAD, NOTED, gpus=("9.0",))})
    page = tmp_path / "page.html"
    arguments = ["report", str(path), "--html", str(page)]
    said = CliRunner().invoke(command, arguments, catch_exceptions=False).stdout
    assert "9.0: 2 of 2 have code for it\n" in said
    assert "in 2 files kept" in said
    assert "not understood, and left whole: odd.so: .nv_fatbin: a container at byte 4,096 is of version 9\n" in said
    assert "not proven: _C.so: does not load here, nor did the original: libcuda.so.1: no such file" in said
    text = page.read_text()
    assert ".nv_fatbin: a container at byte 4,096 is of version 9" in text
    assert "Not proven of _C.so: does not load here" in text
    told = json.loads(CliRunner().invoke(command, ["report", str(path), "--format", "json"], catch_exceptions=False).stdout)
    [odd] = [one for one in told["gpu_code"]["libraries"] if one["error"] == "version"]
    assert (odd["status"], odd["before"], odd["notes"]) == ("left", {}, [])


def test_stubs_are_told_also_where_nothing_was_pruned(tmp_path: Path) -> None:
    path = image(tmp_path / "i.tar", {"opt/builder/slim/fft.json": record("fft", gpus=(), stubs=(STUB,))})
    page = tmp_path / "page.html"
    said = CliRunner().invoke(command, ["report", str(path), "--html", str(page)], catch_exceptions=False).stdout
    assert "libcufft.so.12  nvidia-cufft  286 MiB  8.79 KiB  cufft" in said
    assert "GPU code" not in said
    assert "libcufft.so.12" in page.read_text()
    assert "<h2>GPU code" not in page.read_text()


def test_an_image_that_names_no_chips_has_no_such_part(tmp_path: Path) -> None:
    found = report(image(tmp_path / "i.tar", {"etc/x": b"y"}), "r/m:1")
    assert found.gpu_code is None
    assert found.to_json()["gpu_code"] is None
    assert "GPU code" not in html(found)


def test_a_record_that_a_later_layer_removes_is_not_read(tmp_path: Path) -> None:
    found = report(made(tmp_path, {"opt/builder/slim/.wh.nvidia.json": b""}), "r/m:1").gpu_code
    assert found
    assert [one.package for one in found.libraries] == ["torch"]


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"[]",
        b"{}",
        b'{"gpus": 1, "profile": "oss", "layer": "x", "libraries": []}',
        record("x", {"path": "p"}),
        record("x", ROW | {"before": [1]}),
        record("x", ROW | {"zeroed": "many"}),
        record("x", stubs=({"path": "p"},)),
        b'{"gpus": [' + b"[" * 100_000,
    ],
)
def test_a_record_of_another_form_is_named(body: bytes, tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match=r"/opt/builder/slim/x\.json: not a record of GPU code"):
        report(image(tmp_path / "i.tar", {"opt/builder/slim/x.json": body}), "r/m:1")


@pytest.mark.parametrize("key", ["path", "package", "reason", "error", "notes"])
def test_a_secret_in_a_record_is_not_shown(key: str, tmp_path: Path) -> None:
    secret = SECRETS["Hugging Face token"][0].decode()
    value = f"/opt/{secret}/lib.so"
    body = record("x", ROW | {key: [value] if key == "notes" else value, "status": "left"})
    found = report(image(tmp_path / "i.tar", {"opt/builder/slim/x.json": body}), "r/m:1")
    assert found.gpu_code
    assert secret not in json.dumps(found.to_json())
    assert secret not in html(found)


def test_values_of_the_page_are_escaped(tmp_path: Path) -> None:
    found = report(made(tmp_path), "r/m:1")
    assert found.gpu_code
    rows = tuple(replace(one, reason="<script>x", status="left") for one in found.gpu_code.libraries)
    assert "<script>" not in html(replace(found, gpu_code=replace(found.gpu_code, libraries=rows)))


def test_no_records_are_no_report() -> None:
    assert gpucode.read([]) is None
