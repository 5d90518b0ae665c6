"""`builder render` and `builder build` as a user meets them, with no engine."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from builder import resources
from builder.cli.group import run
from tests.conftest import GOLDEN

DEMO = resources.folder("images") / "demo-llama-cpp"


def call(*args: str) -> int:
    with pytest.raises(SystemExit) as caught:
        run(list(args))
    return int(caught.value.code or 0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copytree(DEMO, tmp_path / "image", ignore=shutil.ignore_patterns("builder.lock"))
    return tmp_path / "image"


def test_render_prints_the_dockerfile_and_nothing_else(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert call("render", "-f", str(folder / "builder.yaml")) == 0
    assert capfd.readouterr().out == (GOLDEN / "demo-llama-cpp.Dockerfile").read_text()


def test_render_pins_the_weights_that_the_lock_knows(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    digest = "sha256:" + "c" * 64
    (folder / "builder.lock").write_text(json.dumps({"version": 1, "weights": {"manifest": digest}}))
    assert call("render", "-f", str(folder / "builder.yaml")) == 0
    assert f'BUILDER_MODEL="{digest}"' in capfd.readouterr().out


def test_render_out_writes_a_folder_that_any_buildkit_can_build(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = folder / "context"
    assert call("render", "-f", str(folder / "builder.yaml"), "--out", str(out), "--format", "json") == 0
    shown = json.loads(capfd.readouterr().out)
    assert shown["files"] == sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    text = (out / "Dockerfile").read_text()
    mounted = {word.split("source=")[1].split(",")[0] for word in text.split() if "source=" in word}
    assert {"steps/apt", "steps/trim.json", "requirements/engine.txt", "wheelhouse/engine"} <= mounted
    assert all((out / name).exists() for name in mounted)


def test_render_check_tells_a_stale_file_by_exit_7(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = str(folder / "builder.yaml")
    dockerfile = folder / "Dockerfile"
    shutil.copy(GOLDEN / "demo-llama-cpp.Dockerfile", dockerfile)
    assert call("render", "-f", file, "--check", str(dockerfile)) == 0
    dockerfile.write_text(dockerfile.read_text().replace("USER 10001:0", "USER root"))
    assert call("render", "-f", file, "--check", str(dockerfile)) == 7
    assert "-USER root" in capfd.readouterr().err


def test_build_without_docker_exits_4_with_the_command_that_installs_it(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert call("build", "-f", str(folder / "builder.yaml"), "--format", "json") == 4
    captured = capfd.readouterr()
    assert json.loads(captured.out)["error"]["hint"] == (
        "install Docker 26 or newer with buildx (in a checkout: make engine), or buildah"
    )
    assert "make engine" in captured.err
    assert not (folder / "builder.lock").exists()


def test_scan_of_an_archive_needs_no_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.tar").write_text("not an archive")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert call("image", "scan", str(tmp_path / "x.tar")) == 3
    assert "not an image archive" in capfd.readouterr().err
