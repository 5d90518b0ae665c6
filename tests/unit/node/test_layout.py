"""OCI layouts: what is taken, what is refused, and that a stream of one keeps every digest."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from builder.errors import BuilderError, ConfigError, IntegrityError
from builder.node import layout, stream
from builder.node.layout import OciImage
from tests import oci


def find(path: Path, reference: str = "", platform: str = "") -> OciImage:
    with layout.open_layout(path) as opened:
        return layout.find_image(opened, reference=reference, platform=platform)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    oci.write_layout(tmp_path / "layout")
    return tmp_path / "layout"


def test_a_folder_and_a_tar_of_it_are_the_same(folder: Path, tmp_path: Path) -> None:
    found = find(folder)
    assert found == find(oci.tar_layout(folder, tmp_path / "image.tar"))
    assert found.reference == "registry.example.com/llm/tiny:v1"
    assert found.by_digest == f"registry.example.com/llm/tiny@{found.target.digest}"
    assert (found.user, len(found.layers), found.platform) == ("10001:0", 2, layout.host_platform())


def test_chain_ids_follow_the_specification(folder: Path) -> None:
    found = find(folder)
    first, second = found.diff_ids
    assert found.chain_ids == (first, "sha256:" + hashlib.sha256(f"{first} {second}".encode()).hexdigest())


def test_the_stream_is_a_layout_with_the_same_digests(folder: Path, tmp_path: Path) -> None:
    found, out = find(folder, "other.example.com/a/b:v2"), io.BytesIO()
    with layout.open_layout(folder) as opened:
        stream.stream(opened, found, out)
    path = tmp_path / "stream.tar"
    path.write_bytes(out.getvalue())
    again = find(path)
    assert again == found
    assert again.reference == "other.example.com/a/b:v2"
    with tarfile.open(path) as tar:
        for blob in found.blobs():
            member = tar.extractfile(blob.member)
            assert member is not None
            assert "sha256:" + hashlib.sha256(member.read()).hexdigest() == blob.digest


def test_a_platform_is_chosen_out_of_an_index(tmp_path: Path) -> None:
    folder = tmp_path / "layout"
    manifest = oci.write_layout(folder)
    entry = json.loads((folder / "index.json").read_text())["manifests"][0]
    system, arch = layout.host_platform().split("/")
    rows = [
        {**entry, "platform": {"os": "linux", "architecture": "s390x"}, "digest": "sha256:" + "0" * 64},  # not in the layout
        {**entry, "platform": {"os": system, "architecture": arch}},
    ]
    kind = "application/vnd.oci.image.index.v1+json"
    index = oci.blob(folder, json.dumps({"schemaVersion": 2, "mediaType": kind, "manifests": rows}).encode(), kind)
    index["annotations"] = entry["annotations"]
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [index]}))
    found = find(folder)
    assert (found.target.digest, found.manifest.digest) == (index["digest"], manifest)
    with pytest.raises(ConfigError, match=r"no image for linux/riscv64; the index offers linux/s390x, linux/"):
        find(folder, platform="linux/riscv64")


def test_of_one_architecture_the_image_that_every_processor_runs_is_chosen(tmp_path: Path) -> None:
    folder = tmp_path / "layout"
    manifest = oci.write_layout(folder)
    entry = json.loads((folder / "index.json").read_text())["manifests"][0]
    system, arch = layout.host_platform().split("/")
    here = {"os": system, "architecture": arch}
    rows = [
        {**entry, "platform": {**here, "variant": "v3"}, "digest": "sha256:" + "0" * 64},  # not in the layout
        {**entry, "platform": here},
    ]
    kind = "application/vnd.oci.image.index.v1+json"
    index = oci.blob(folder, json.dumps({"schemaVersion": 2, "mediaType": kind, "manifests": rows}).encode(), kind)
    index["annotations"] = entry["annotations"]
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [index]}))
    assert find(folder).manifest.digest == manifest


def _edit_index(change: Callable[[dict[str, object]], None]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        raw = json.loads((folder / "index.json").read_text())
        change(raw)
        (folder / "index.json").write_text(json.dumps(raw))

    return edit


def _layer(folder: Path) -> Path:
    return max((folder / "blobs" / "sha256").iterdir(), key=lambda p: p.stat().st_size)


def _docker_archive(folder: Path) -> None:
    (folder / "oci-layout").unlink()
    (folder / "manifest.json").write_text("[]")


@pytest.mark.parametrize(
    ("damage", "error", "says"),
    [
        (lambda f: _layer(f).unlink(), IntegrityError, "missing, expected"),
        (lambda f: _layer(f).write_bytes(b"short"), IntegrityError, "5 bytes, expected"),
        (_docker_archive, ConfigError, "docker-archive"),
        (lambda f: (f / "repositories").write_text("{}"), ConfigError, "classic image store"),
        (lambda f: (f / "oci-layout").unlink(), ConfigError, "not an OCI layout"),
        (lambda f: (f / "index.json").write_text("{"), IntegrityError, "index.json: not JSON"),
        (lambda f: (f / "index.json").write_text("[]"), IntegrityError, "a JSON list"),
        (_edit_index(lambda r: r.update(manifests=[])), ConfigError, "the layout holds nothing"),
        (_edit_index(lambda r: r["manifests"][0].update(digest="sha256:../../x")), IntegrityError, "digest 'sha256:../../x'"),
        (_edit_index(lambda r: r["manifests"][0].update(size=-1)), IntegrityError, "size -1"),
        (_edit_index(lambda r: r["manifests"][0].update(annotations={})), ConfigError, "has no name"),
        (_edit_index(lambda r: r.update(manifests=r["manifests"] * 2)), ConfigError, "no name asked for"),
        (_edit_index(lambda r: r.update(manifests=None)), IntegrityError, "of another shape"),
        (_edit_index(lambda r: r["manifests"][0].update(annotations=[1])), IntegrityError, "of another shape"),
    ],
)
def test_a_bad_layout_is_refused(folder: Path, damage: Callable[[Path], object], error: type[BuilderError], says: str) -> None:
    damage(folder)
    with pytest.raises(error, match=says):
        find(folder)


def test_a_changed_manifest_is_refused(folder: Path) -> None:
    found = find(folder)
    blob = folder / found.manifest.member
    blob.write_bytes(blob.read_bytes().replace(b"schemaVersion", b"schemaversion"))
    with pytest.raises(IntegrityError, match=f"blobs/sha256/{found.manifest.digest[7:]}: sha256 is"):
        find(folder)


def test_a_compressed_archive_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "image.tar.gz"
    path.write_bytes(b"\x1f\x8b\x08\x00 not a tar")
    with pytest.raises(ConfigError, match="not an OCI layout"):
        find(path)


@pytest.mark.parametrize(
    ("short", "full"),
    [
        ("debian:12", "docker.io/library/debian:12"),
        ("acme/llm:v1", "docker.io/acme/llm:v1"),
        ("localhost/llm:v1", "localhost/llm:v1"),
        ("registry:5000/llm:v1", "registry:5000/llm:v1"),
        ("docker.io/debian:12", "docker.io/library/debian:12"),
        ("index.docker.io/acme/llm:v1", "docker.io/acme/llm:v1"),
    ],
)
def test_names_are_completed_as_kubelet_does(short: str, full: str) -> None:
    assert layout.normalise(short) == full


@pytest.mark.parametrize("text", ["debian", "UPPER:1", "a b:1", "x@sha256:abc", "registry:5000/llm", "-x:1", ""])
def test_a_name_without_a_tag_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="not an image reference"):
        layout.normalise(text)


@pytest.mark.parametrize("name", ["docker.io/library/debian@sha256:" + "a" * 64, "UPPER:1"])
def test_another_image_with_a_name_of_no_use_is_passed_over(folder: Path, name: str) -> None:
    """An engine that exports by digest writes such a name; it is none that a pod could give."""
    (entry,) = json.loads((folder / "index.json").read_text())["manifests"]
    _edit_index(lambda r: r["manifests"].append({**entry, "annotations": {layout.NAME_KEY: name}}))(folder)
    assert find(folder, "registry.example.com/llm/tiny:v1").reference == "registry.example.com/llm/tiny:v1"
