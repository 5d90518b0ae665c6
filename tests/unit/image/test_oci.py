"""OCI archives: one image, or an index of several platforms; and layouts that are complete or not there."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from builder.errors import CapabilityError, IntegrityError
from builder.image import oci, platforms
from tests import oci as layouts


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    layouts.write_layout(tmp_path / "layout")
    return layouts.tar_layout(tmp_path / "layout", tmp_path / "image.tar")


def add(archive: Path, name: str, body: bytes) -> None:
    with tarfile.open(archive, "a") as tar:
        info = tarfile.TarInfo(name)
        info.size = len(body)
        tar.addfile(info, io.BytesIO(body))


def with_index(path: Path, index: dict[str, Any]) -> Path:
    add(path, "index.json", json.dumps(index).encode())
    return path


def two_platforms(folder: Path) -> tuple[Path, dict[str, str]]:
    """An archive whose index.json names one index, of two images and an attestation."""
    entries = []
    for arch in ("amd64", "arm64"):
        layouts.write_layout(folder / arch, extra=arch.encode())
        entry = json.loads((folder / arch / "index.json").read_text())["manifests"][0]
        entries.append(
            {key: entry[key] for key in ("mediaType", "digest", "size")} | {"platform": {"os": "linux", "architecture": arch}}
        )
    both = folder / "both"
    for arch in ("amd64", "arm64"):
        for blob in (folder / arch / "blobs/sha256").iterdir():
            (both / "blobs/sha256").mkdir(parents=True, exist_ok=True)
            (both / "blobs/sha256" / blob.name).write_bytes(blob.read_bytes())
    unknown = entries[0] | {"platform": {"os": "unknown", "architecture": "unknown"}}
    body = json.dumps({"schemaVersion": 2, "manifests": [*entries, unknown]}).encode()
    top = layouts.blob(both, body, "application/vnd.oci.image.index.v1+json")
    (both / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [top]}))
    return layouts.tar_layout(both, folder / "both.tar"), {
        f"linux/{e['platform']['architecture']}": e["digest"] for e in entries
    }


def test_an_image_is_read_with_its_compressed_size(archive: Path, tmp_path: Path) -> None:
    built = oci.read(archive, "r/m:1")
    entry = json.loads((tmp_path / "layout/index.json").read_text())["manifests"][0]
    assert built.digest == entry["digest"]
    files = [tmp_path / "layout/blobs" / digest.replace(":", "/") for digest in built.layers]
    assert built.size == sum(file.stat().st_size for file in files)
    assert built.platforms == {}


def test_an_index_of_several_platforms_is_one_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive, digests = two_platforms(tmp_path)
    built = oci.read(archive, "r/m:1")
    assert built.platforms == digests
    assert built.digest not in digests.values()
    layers = {}
    for platform in digests:
        monkeypatch.setattr(platforms, "own", lambda platform=platform: platform)
        layers[platform] = oci.read(archive, "r/m:1").layers
    assert layers["linux/amd64"] != layers["linux/arm64"]
    monkeypatch.setattr(platforms, "own", lambda: "linux/riscv64")
    assert oci.read(archive, "r/m:1").layers == layers["linux/amd64"]  # neither is ours: the first


def test_an_index_without_images_is_refused(tmp_path: Path) -> None:
    body = json.dumps({"manifests": []}).encode()
    top = layouts.blob(tmp_path / "none", body, "application/vnd.oci.image.index.v1+json")
    (tmp_path / "none" / "index.json").write_text(json.dumps({"manifests": [top]}))
    with pytest.raises(IntegrityError, match="names no image"):
        oci.read(layouts.tar_layout(tmp_path / "none", tmp_path / "none.tar"), "r")


def test_two_images_in_one_archive_are_refused(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match="2 manifests"):
        oci.read(with_index(tmp_path / "a.tar", {"manifests": [{"digest": "a"}, {"digest": "b"}]}), "r")


def test_an_archive_without_its_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match="is missing from the archive"):
        oci.read(with_index(tmp_path / "a.tar", {"manifests": [{"digest": "sha256:aa"}]}), "r")


def test_what_is_no_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("x")
    with pytest.raises(IntegrityError, match="not an image archive"):
        oci.read(tmp_path / "x", "r")


def test_a_layout_is_the_archive_with_a_name(archive: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    oci.write_layout(archive, "llm/tiny:v1", folder)
    index = json.loads((folder / "index.json").read_text())
    assert index["manifests"][0]["annotations"]["io.containerd.image.name"] == "docker.io/llm/tiny:v1"
    there = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    with tarfile.open(archive) as tar:
        assert there == {member.name for member in tar if member.isfile()}


@pytest.mark.parametrize("name", ["../outside", "/outside", "blobs/../../outside"])
def test_nothing_is_written_outside_and_nothing_is_left(name: str, archive: Path, tmp_path: Path) -> None:
    add(archive, name, b"x")
    with pytest.raises(IntegrityError, match="does not belong into an OCI layout"):
        oci.write_layout(archive, "a:1", tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*"))
    assert not (tmp_path / "outside").exists()


def test_another_file_in_the_way_stays(archive: Path, tmp_path: Path) -> None:
    mine = tmp_path / "out" / "oci-layout"
    mine.parent.mkdir()
    mine.write_text("mine")
    with pytest.raises(CapabilityError, match="cannot be written: File exists"):
        oci.write_layout(archive, "a:1", tmp_path / "out")
    assert mine.read_text() == "mine"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["oci-layout"]
