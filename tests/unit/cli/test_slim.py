"""builder slim: what it prints, refuses and writes."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from builder.cli.group import run
from tests import fatbins

CODE: list[fatbins.Container] = [
    [("sm_80", fatbins.cubin("sm_80", 400_000)), ("sm_90", fatbins.cubin("sm_90", 300_000))],
    [("sm_75", fatbins.cubin("sm_75", 50_000)), ("compute_80", fatbins.ptx("compute_80"))],
]


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fatbins.make(tmp_path_factory.mktemp("built"), "libtorch_cuda.so", CODE)


@pytest.fixture
def site(tmp_path: Path, built: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One library that may be modified and one that may not. The current folder has no builder.yaml."""
    (tmp_path / "site").mkdir()
    shutil.copy(built, tmp_path / "site/libtorch_cuda.so")
    shutil.copy(built, tmp_path / "site/libcufft.so.12")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "site"


def builder(*words: object) -> int:
    with pytest.raises(SystemExit) as ended:
        run([str(word) for word in words])
    return int(ended.value.code or 0)


def said(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_what_is_printed_for_people(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert builder("slim", site, "--gpu", "9.0", "--workers", "1") == 0
    out = capsys.readouterr().out
    assert "libtorch_cuda.so  PyTorch " in out
    assert "1 of 2 files with GPU code; for 9.0, profile oss" in out
    assert "CUDA_CACHE_PATH" in out
    assert re.search(r"libcufft.so.12: 4\d\d KiB of GPU code for other chips, left by profile oss", " ".join(out.split()))
    assert "strip and objcopy can break a library that became shorter: use them before" in " ".join(out.split())
    assert "redistribution" not in out
    assert max(map(len, out.splitlines())) <= 100
    assert "\x1b" not in out


def test_the_other_profile_says_why_it_must_be_asked_for(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert builder("slim", site, "--gpu", "9.0", "--profile", "all", "--workers", "1") == 0
    captured = capsys.readouterr()
    assert "do not pass it on" in captured.err
    assert "not for redistribution" in captured.out
    assert "2 of 2 files" in captured.out


def test_json_is_one_object_and_the_report_is_the_same(site: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ("slim", site, "--gpu", "9.0,8.0", "--format", "json", "--report", tmp_path / "slim.json", "--workers", "1")
    assert builder(*command) == 0
    data = said(capsys)
    assert json.loads((tmp_path / "slim.json").read_text()) == data
    assert data["gpus"] == ["9.0", "8.0"]
    assert [one["status"] for one in data["files"]] == ["licence", "pruned"]
    assert data["without_code"] == {"9.0": [], "8.0": []}


def test_a_dry_run_writes_nothing(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.read_bytes() for path in site.iterdir()}
    assert builder("slim", site, "--gpu", "9.0", "--dry-run", "--workers", "1") == 0
    out = capsys.readouterr().out
    assert "would become" in out
    assert "objcopy" not in out
    assert "libtorch_cuda.so" in out
    assert {path: path.read_bytes() for path in site.iterdir()} == before


def test_a_file_that_cannot_be_pruned_is_named_after_the_result(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (site / "x.so").write_text("text")
    assert builder("slim", site / "x.so", site / "libtorch_cuda.so", "--gpu", "9.0", "--format", "json") == 2
    data = said(capsys)
    assert data["error"]["message"].startswith(f"{site / 'x.so'}: left as it was: ")
    assert {one["status"] for one in data["files"]} == {"left", "pruned"}


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ((), "no chip to keep code for"),
        (("--gpu", ""), "no chip to keep code for"),
        (("--gpu", "sm_90"), "'sm_90' is no compute capability"),
        (("--gpu", "9.0", "--verify", "--dry-run"), "--verify proves what --dry-run does not write"),
        (("--gpu", "9.0", "--report", "no/such/folder"), "no/such/folder: cannot be written"),
        (("--gpu", "9.0", "--profile", "some"), "profile"),
    ],
)
def test_wrong_use_is_refused_before_anything_is_done(
    site: Path, words: tuple[str, ...], error: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat() for path in site.iterdir()}
    assert builder("slim", site, *words) == 2
    assert error in capsys.readouterr().err
    assert {path: path.stat() for path in site.iterdir()} == before


def test_the_chips_of_the_description_are_the_default(site: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (
        "version: 1\nname: x\nmodel: {source: ./m}\nweights: {store: ./s}\n"
        'image: {repository: r, tag: v1, engine: {name: vllm, version: "0.32.0"}, gpu_archs: ["8.0"]}\n'
    )
    (tmp_path / "builder.yaml").write_text(text)
    assert builder("slim", site, "--format", "json", "--workers", "1") == 0
    assert said(capsys)["gpus"] == ["8.0"]
    (tmp_path / "builder.yaml").write_text(text.replace('["8.0"]', "[]"))
    assert builder("slim", site) == 2
    assert "image.gpu_archs is empty" in capsys.readouterr().err
