"""builder cache capture from real containers: what is copied out of one, and why another is refused."""

from __future__ import annotations

import json
import subprocess
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from builder.cli.group import run
from tests.unit.transfer.test_compiled import FILES_OF, MINE, cache_root, content

pytestmark = pytest.mark.docker
BASE = "debian:bookworm-slim"
ROOT = ("-e", "BUILDER_COMPILE_CACHE_ROOT=/opt/cache")
Create = Callable[..., str]


@pytest.fixture
def create(docker_engine: str) -> Iterator[Create]:
    """`create(*docker arguments)`: the name of a container that was made and not started."""
    names: list[str] = []

    def made(*args: str) -> str:
        names.append(name := f"builder-test-{uuid.uuid4().hex[:12]}")
        subprocess.run(["docker", "create", "--name", name, *args, BASE, "true"], capture_output=True, check=True)
        return name

    yield made
    subprocess.run(["docker", "rm", "-f", "-v", *names], capture_output=True, check=False)


def capture(*words: object) -> int:
    with pytest.raises(SystemExit) as ended:
        run(["cache", "capture", "--format", "json", *map(str, words)])
    return int(ended.value.code or 0)


def said(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_a_container_s_cache_root_is_captured(create: Create, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    container = create(*ROOT)
    subprocess.run(["docker", "cp", cache_root(tmp_path / "cache"), f"{container}:/opt"], capture_output=True, check=True)
    (tmp_path / "store").mkdir()
    assert capture(container, "--to", tmp_path / "artifact", "--store", tmp_path / "store") == 0
    told = said(capsys)
    assert (told["key"], told["files"], told["ref"]) == (MINE.key, len(FILES_OF), f"m@{MINE.short}")
    assert told["about"] | {"image_id": ""} == {"name": "m", "image": BASE, "image_id": ""}
    assert told["about"]["image_id"].startswith("sha256:")
    with pytest.raises(SystemExit) as ended:
        run(["weights", "pull", told["ref"], "--store", str(tmp_path / "store"), "--to", str(tmp_path / "pulled"), "-q"])
    assert not ended.value.code
    assert all((tmp_path / "pulled" / n).read_bytes() == (tmp_path / "artifact" / n).read_bytes() for n in
               ("files.tar", "files.json", "fingerprint.json"))  # fmt: skip


@pytest.mark.parametrize(
    ("args", "code", "why"),
    [
        ((), 2, "its image sets no BUILDER_COMPILE_CACHE_ROOT"),
        ((*ROOT, "--tmpfs", "/opt/cache"), 4, "/opt/cache is a tmpfs"),
        ((*ROOT, "--mount", "type=tmpfs,dst=/opt/cache"), 4, "/opt/cache is a tmpfs"),
        (ROOT, 1, "Could not find the file /opt/cache"),
        ((*ROOT, "-v", "/opt/cache"), 2, "fingerprint.json: not there"),
    ],
)
def test_a_container_that_cannot_be_captured_is_refused(
    create: Create, tmp_path: Path, capsys: pytest.CaptureFixture[str], args: tuple[str, ...], code: int, why: str
) -> None:
    assert capture(create(*args), "--to", tmp_path / "artifact") == code
    assert why in said(capsys)["error"]["message"]
    assert not (tmp_path / "artifact").exists()


@pytest.mark.parametrize("name", ["builder-test-none", "-v", "--privileged"])
def test_no_such_container(docker_engine: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    assert capture("--to", tmp_path / "artifact", "--", name) == 2
    assert "container" in said(capsys)["error"]["message"]


def test_a_folder_is_captured_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = cache_root(tmp_path / "root")
    assert capture("--from", root, "--to", tmp_path / "artifact") == 0
    assert said(capsys)["key"] == MINE.key
    assert content(root) == FILES_OF
