"""Every form of an image's archive is read alike; what is none, or is damaged, is one clear error."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import struct
import tarfile
from pathlib import Path
from typing import Any

import pytest
from backports import zstd

from builder.errors import BuilderError, ConfigError, IntegrityError
from builder.image import archive
from builder.image.archive import open_image, short
from builder.image.layout import open_layout
from builder.image.stream import Stream, is_tar, members
from tests.images import MEDIA, PACKERS, Layout, image, layer

FILES = {"etc/a": b"first", "opt/long/" + "n" * 180: b"second" * 100, "empty": b""}


def contents(path: Path, platform: str = "") -> list[tuple[str, str, bytes]]:
    """(layer's history line, name, bytes) of every file."""
    out = []
    with open_image(path, platform) as found:
        for blob in found.layers:
            with found.layer(blob) as stream:
                for member in members(stream, "layer"):
                    out.append((short(blob.made_by), member.name, b"".join(iter(lambda m=member: m.read(7), b""))))  # type: ignore[misc]
    return out


WANT = [("COPY step0 /", name, data) for name, data in FILES.items()] + [("COPY step1 /", "b", b"later")]


@pytest.mark.parametrize("packed", PACKERS)
@pytest.mark.parametrize("form", ["oci", "folder", "attested"])
def test_every_form_of_a_layout_holds_the_same(form: str, packed: str, tmp_path: Path) -> None:
    assert contents(image(tmp_path / "i", FILES, {"b": b"later"}, packed=packed, form=form)) == WANT


def test_what_docker_saved_before_it_knew_oci_holds_the_same(tmp_path: Path) -> None:
    path = image(tmp_path / "i", FILES, {"b": b"later"}, form="docker")
    assert contents(path) == WANT
    with open_image(path) as found:
        assert (found.digest, found.platform) == ("", "linux/amd64")
        assert found.layers[1].digest == "sha256:" + hashlib.sha256(layer({"b": b"later"})).hexdigest()


def test_a_layer_that_docker_saved_as_a_link_to_another(tmp_path: Path) -> None:
    tar = layer({"a": b"x"})
    config = {"architecture": "amd64", "rootfs": {"diff_ids": ["sha256:1", "sha256:2"]}}
    described = [{"Config": "c", "Layers": ["1/layer.tar", "2/layer.tar"]}]
    files = {"1/layer.tar": tar, "c": json.dumps(config).encode(), "manifest.json": json.dumps(described).encode()}
    (tmp_path / "i").write_bytes(layer(files, links={"2/layer.tar": "../1/layer.tar"}))
    assert [name for _, name, _ in contents(tmp_path / "i")] == ["a", "a"]


@pytest.mark.parametrize("kind", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_every_kind_of_tar_header(kind: int) -> None:
    name = "d" * 90 + "/" + "n" * (60 if kind == tarfile.USTAR_FORMAT else 160)
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=kind) as tar:
        info = tarfile.TarInfo("./" + name if kind == tarfile.GNU_FORMAT else name)
        info.size = 600
        tar.addfile(info, io.BytesIO(b"q" * 600))
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "t" * (90 if kind == tarfile.USTAR_FORMAT else 150)
        tar.addfile(link)
        tar.addfile(tarfile.TarInfo("after"))
    found = [(m.name, m.kind, m.size, m.link) for m in members(io.BytesIO(out.getvalue()), "x")]
    assert found == [(name, "file", 600, ""), ("link", "link", 0, link.linkname), ("after", "file", 0, "")]


def test_attributes_of_a_file_are_told() -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("a")
        info.pax_headers = {"SCHILY.xattr.user.note": "look at this"}
        info.uname = "someone"
        tar.addfile(info)
    [member] = members(io.BytesIO(out.getvalue()), "x")
    assert b"look at this" in member.extra
    assert b"someone" in member.extra


def test_a_large_attribute_is_refused_before_it_is_read() -> None:
    info = tarfile.TarInfo("././@PaxHeader")
    info.type, info.size = tarfile.XHDTYPE, 1 << 30
    with pytest.raises(IntegrityError, match="extended header of 1073741824 bytes"):
        list(members(io.BytesIO(info.tobuf()), "x"))


def test_the_tar_need_not_be_read_by_its_reader() -> None:
    """Members that nobody read are passed over, and what follows the end mark is left."""
    source = io.BytesIO(layer({"a": b"x" * 5000, "b": b"y"}) + b"behind")
    assert [m.name for m in members(source, "x")] == ["a", "b"]
    assert source.read().strip(b"\0") == b"behind"


def test_zstd_of_several_frames_and_one_to_skip() -> None:
    skip = b"\x50\x2a\x4d\x18" + struct.pack("<I", 5) + b"table"
    packed = zstd.compress(b"one ") + skip + zstd.compress(b"two")
    assert Stream(io.BytesIO(packed), "x").read(100) == b"one two"


def test_gzip_of_several_members() -> None:
    assert Stream(io.BytesIO(gzip.compress(b"one ") + gzip.compress(b"two")), "x").read(100) == b"one two"


@pytest.mark.parametrize("pack", [gzip.compress, zstd.compress])
def test_a_cut_off_stream_is_damage(pack: Any) -> None:
    packed = pack(bytes(range(256)) * 9000)
    stream = Stream(io.BytesIO(packed[:-20]), "layer 7")
    with pytest.raises(IntegrityError, match="layer 7: cannot be read"):
        stream.drain()


def test_is_tar() -> None:
    assert is_tar(layer({"a": b""}))
    assert not is_tar(b"")
    assert not is_tar(layer({"a": b""})[1:])


def two(tmp_path: Path, *platforms: str) -> Path:
    layout = Layout()
    entries = []
    for name in platforms:
        system, machine = name.split("/", 1)
        made = layout.image([layer({"which": name.encode()})], platform=name)
        entries.append(
            made
            | {"platform": {"os": system, "architecture": machine.split("/")[0], "variant": "".join(machine.split("/")[1:])}}
        )
    layout.index(layout.add({"manifests": entries}))
    return layout.to_tar(tmp_path / "two.tar")


def test_the_platform_that_is_named_is_read(tmp_path: Path) -> None:
    path = two(tmp_path, "linux/amd64", "linux/arm64/v8")
    assert contents(path, "linux/arm64")[0][2] == b"linux/arm64/v8"
    with open_image(path, "linux/arm64") as found:
        assert (found.platform, found.others) == ("linux/arm64/v8", ("linux/amd64",))
    with pytest.raises(ConfigError, match="holds linux/amd64, linux/arm64/v8; expected linux/s390x"):
        contents(path, "linux/s390x")


def test_without_a_name_it_is_the_machines_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = two(tmp_path, "linux/amd64", "linux/arm64")
    monkeypatch.setattr(archive.machine, "machine", lambda: "aarch64")
    assert contents(path)[0][2] == b"linux/arm64"


def test_the_only_platform_is_read_whatever_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive.machine, "machine", lambda: "riscv64")
    assert contents(two(tmp_path, "linux/arm64"))[0][2] == b"linux/arm64"


def test_two_images_of_one_platform_are_refused(tmp_path: Path) -> None:
    layout = Layout()
    layout.index(layout.image([layer({"a": b"1"})]), layout.image([layer({"a": b"2"})]))
    with pytest.raises(ConfigError, match="2 different images"):
        contents(layout.to_tar(tmp_path / "i"), "linux/amd64")


@pytest.mark.parametrize(
    ("media", "message"),
    [
        (MEDIA + "+gzip+encrypted", "encrypted"),
        (MEDIA + "+br", "media type .*br; expected a tar, plain, gzip or zstd"),
        ("application/vnd.cncf.helm.chart.content.v1.tar+gzip", "media type"),
    ],
)
def test_a_layer_of_another_kind_is_refused(media: str, message: str, tmp_path: Path) -> None:
    layout = Layout()
    layout.index(layout.image([layer({"a": b""})], media=media))
    with pytest.raises(IntegrityError, match=message):
        contents(layout.to_tar(tmp_path / "i"))


@pytest.mark.parametrize("data", [b"", b"not a tar", layer({"readme": b"x"})])
def test_something_else_is_no_image(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(IntegrityError, match="not an image archive"):
        contents(tmp_path / "x")


def test_a_compressed_archive_says_so(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(gzip.compress(b"x" * 1000))
    with pytest.raises(IntegrityError) as caught:
        contents(tmp_path / "x")
    assert caught.value.hint == "it is gzip: unpack it first"


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match="No such file"):
        contents(tmp_path / "x")


@pytest.mark.parametrize(
    "index",
    [b"[]", b"{", b'{"manifests": {}}', b'{"manifests": [1]}', b'{"manifests": []}', b"[" * 100_000,
     b'{"manifests": [{"digest": "sha256:../../index.json"}]}'],
)  # fmt: skip
def test_a_damaged_index_is_one_error(index: bytes, tmp_path: Path) -> None:
    (tmp_path / "index.json").write_bytes(index)
    with pytest.raises(IntegrityError):
        contents(tmp_path)


@pytest.mark.parametrize(
    "document", [{}, {"layers": []}, {"layers": [], "config": {}}, {"layers": [], "config": {"digest": "x"}}, [], 7]
)
def test_a_damaged_manifest_is_one_error(document: Any, tmp_path: Path) -> None:
    layout = Layout()
    layout.index(layout.add(json.dumps(document).encode()))
    with pytest.raises(IntegrityError):
        contents(layout.to_tar(tmp_path / "i"))


def test_a_layer_that_is_missing(tmp_path: Path) -> None:
    path = image(tmp_path / "i", {"a": b"x"}, form="folder")
    with open_image(path) as found:
        name = found.layers[0].name
    (path / name).unlink()
    with pytest.raises(IntegrityError, match="not in"):
        contents(path)


def test_a_name_does_not_lead_out_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "in" / "blobs").mkdir(parents=True)
    (tmp_path / "outside").write_bytes(b"{}")
    with open_layout(tmp_path / "in") as layout:
        assert "blobs/../../outside" not in layout
        assert str(tmp_path / "outside") not in layout


def test_a_layer_with_other_bytes_than_its_digest_says(tmp_path: Path) -> None:
    path = image(tmp_path / "i", {"a": b"one"}, packed="", form="folder")
    with open_image(path) as found:
        blob = path / found.layers[0].name
    blob.write_bytes(layer({"a": b"two"}))
    with pytest.raises(IntegrityError, match="its bytes have the digest"):
        contents(path)


def test_a_layer_that_is_not_a_tar(tmp_path: Path) -> None:
    layout = Layout()
    layout.index(layout.image([b"x" * 2000]))
    with pytest.raises(IntegrityError, match="cannot be read: not a tar header"):
        contents(layout.to_tar(tmp_path / "i"))


def test_every_cut_of_an_archive_is_an_error_and_not_a_traceback(tmp_path: Path) -> None:
    whole = image(tmp_path / "i", {"a": b"x" * 700, "b": b"y"}).read_bytes()
    for size in range(0, len(whole) - 1024, 97):
        (tmp_path / "cut").write_bytes(whole[:size])
        try:
            found = contents(tmp_path / "cut")
        except BuilderError:
            continue
        assert [name for _, name, _ in found] == ["a", "b"]  # only what follows the last blob was cut off


@pytest.mark.parametrize(
    ("line", "want"),
    [
        ("RUN /bin/sh -c --mount=type=secret,id=ca apt-get   update # buildkit", "RUN apt-get update"),
        ("/bin/sh -c #(nop) ADD file:1 in / ", "RUN ADD file:1 in /"),
    ],
)
def test_history_lines_lose_their_decoration(line: str, want: str) -> None:
    assert short(line) == want
