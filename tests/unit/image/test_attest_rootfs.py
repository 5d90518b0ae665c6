"""An image's files are read as a container runtime would lay them out, and only from bytes that match their digests."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from builder.errors import IntegrityError
from builder.image.attest import rootfs
from tests.images import file, files, folder, hard, image, layer, link
from tests.oci import tar_layout


def paths(place: Path) -> list[str]:
    return list(rootfs.read(place, lambda _: False).files())


@pytest.mark.parametrize("pack", ["plain", "gzip", "zstd"])
@pytest.mark.parametrize("form", ["folder", "archive"])
def test_every_packing_and_form_reads_the_same(pack: str, form: str, tmp_path: Path) -> None:
    digest = image(tmp_path / "i", files({"etc/a": "one", "./b": "two"}), pack=pack, name="registry.example.com/m:1")
    place = tmp_path / "i" if form == "folder" else tar_layout(tmp_path / "i", tmp_path / "i.tar")
    found = rootfs.read(place, lambda path: path == "etc/a")
    assert (found.digest, found.name) == (digest, "registry.example.com/m:1")
    assert found.config["architecture"] == "amd64"
    assert list(found.files()) == ["b", "etc/a"]
    assert found.bodies == {"etc/a": b"one"}


@pytest.mark.parametrize("pack", ["plain", "gzip", "zstd"])
def test_a_layer_is_hashed_to_its_end_and_not_to_the_end_of_its_tar(pack: str, tmp_path: Path) -> None:
    """Some programs pad a tar far beyond its last record."""
    image(tmp_path / "i", layer(files({"a": ""})) + random.Random(1).randbytes(3 << 20), pack=pack)
    assert paths(tmp_path / "i") == ["a"]


def test_an_image_beside_an_attestation_is_found(tmp_path: Path) -> None:
    digest = image(tmp_path / "i", files({"a": ""}), attested=True)
    found = rootfs.read(tmp_path / "i", lambda _: False)
    assert found.digest == digest
    assert list(found.files()) == ["a"]


def test_a_whiteout_takes_away_a_file_or_a_tree_of_the_layers_below(tmp_path: Path) -> None:
    base = files({"a": "", "d/x": "", "d/e/y": "", "dd": ""})
    image(tmp_path / "i", base, files({".wh.a": "", ".wh.d": ""}), files({"a": "again"}))
    assert paths(tmp_path / "i") == ["a", "dd"]


def test_an_opaque_folder_keeps_what_its_own_layer_puts_there_in_whatever_order(tmp_path: Path) -> None:
    top = [file("d/before"), file("d/.wh..wh..opq"), file("d/after")]
    image(tmp_path / "i", files({"d/old": "", "d/e/old": "", "other": ""}), top)
    assert paths(tmp_path / "i") == ["d/after", "d/before", "other"]


def test_what_replaces_a_folder_takes_its_content_away(tmp_path: Path) -> None:
    image(tmp_path / "i", [folder("d"), file("d/x")], [link("d", "elsewhere")], [file("e")])
    assert paths(tmp_path / "i") == ["e"]


def test_a_folder_that_a_later_layer_names_again_keeps_its_content(tmp_path: Path) -> None:
    image(tmp_path / "i", [folder("d"), file("d/x")], [folder("d"), file("d/y")])
    assert paths(tmp_path / "i") == ["d/x", "d/y"]


def test_a_file_below_a_linked_folder_lands_where_the_link_leads(tmp_path: Path) -> None:
    image(tmp_path / "i", [folder("usr/lib"), link("lib", "usr/lib")], [file("lib/x"), file("lib/.wh.gone")])
    found = rootfs.read(tmp_path / "i", lambda _: True)
    assert list(found.files()) == ["usr/lib/x"]
    assert found.resolve("lib/x") == "usr/lib/x"


def test_links_are_followed_and_never_lead_out(tmp_path: Path) -> None:
    members = [
        file("usr/share/doc/gcc/copyright", "text"),
        link("usr/share/doc/libgcc", "gcc"),
        link("up", "../../../usr/share"),
    ]
    image(tmp_path / "i", [*members, link("ring", "ring"), link("absolute", "/usr")])
    found = rootfs.read(tmp_path / "i", lambda path: path.endswith("copyright"))
    assert found.text("usr/share/doc/libgcc/copyright") == "text"
    assert found.text("up/doc/gcc/copyright") == "text"
    assert found.text("absolute/share/doc/libgcc/copyright") == "text"
    assert found.text("ring/copyright") is None


def test_a_hard_link_has_the_content_of_its_file(tmp_path: Path) -> None:
    image(tmp_path / "i", [file("a", "body"), hard("b", "a")])
    found = rootfs.read(tmp_path / "i", lambda _: True)
    assert found.bodies == {"a": b"body", "b": b"body"}


def test_a_replaced_file_keeps_nothing_of_the_old_one(tmp_path: Path) -> None:
    image(tmp_path / "i", [file("a", "old"), file("b", "old")], [file("a", "new"), link("b", "a")])
    found = rootfs.read(tmp_path / "i", lambda _: True)
    assert found.bodies == {"a": b"new"}


@pytest.mark.parametrize("what", ["layer", "manifest", "config"])
@pytest.mark.parametrize("pack", ["plain", "zstd"])
def test_bytes_that_are_not_their_digest_are_refused(what: str, pack: str, tmp_path: Path) -> None:
    digest = image(tmp_path / "i", files({"a": "text" * 300}), pack=pack)
    blobs = tmp_path / "i" / "blobs" / "sha256"
    manifest = json.loads((blobs / digest[7:]).read_bytes())
    victim = {"layer": manifest["layers"][0]["digest"], "manifest": digest, "config": manifest["config"]["digest"]}[what]
    body = (blobs / victim[7:]).read_bytes()
    (blobs / victim[7:]).write_bytes(body + b"\n")  # still JSON, still a tar
    with pytest.raises(IntegrityError, match=r"other bytes than its name says|cannot be read") as caught:
        paths(tmp_path / "i")
    assert victim in caught.value.message


def test_a_cut_layer_is_refused(tmp_path: Path) -> None:
    for pack in ("gzip", "zstd", "plain"):
        digest = image(tmp_path / pack, files({"a": bytes(range(256)) * 400}), pack=pack)
        manifest = json.loads((tmp_path / pack / "blobs/sha256" / digest[7:]).read_bytes())
        victim = tmp_path / pack / "blobs/sha256" / manifest["layers"][0]["digest"][7:]
        victim.write_bytes(victim.read_bytes()[: victim.stat().st_size // 2])
        with pytest.raises(IntegrityError, match=r"layer|other bytes"):
            paths(tmp_path / pack)


def test_a_member_that_leads_out_is_refused(tmp_path: Path) -> None:
    image(tmp_path / "i", [file("a/../../etc/passwd")])
    with pytest.raises(IntegrityError, match="leads out"):
        paths(tmp_path / "i")


@pytest.mark.parametrize("index", ["", "[]", "{}", '{"manifests": [{}]}', '{"manifests": [3]}', '{"manifests": []}'])
def test_what_is_no_layout_is_refused(index: str, tmp_path: Path) -> None:
    image(tmp_path / "i", files({"a": ""}))
    (tmp_path / "i" / "index.json").write_text(index)
    with pytest.raises(IntegrityError):
        paths(tmp_path / "i")


def test_two_images_in_one_layout_are_refused(tmp_path: Path) -> None:
    image(tmp_path / "i", files({"a": ""}))
    index = json.loads((tmp_path / "i" / "index.json").read_text())
    index["manifests"].append(index["manifests"][0] | {"digest": "sha256:" + "0" * 64})
    (tmp_path / "i" / "index.json").write_text(json.dumps(index))
    with pytest.raises(IntegrityError, match="names 2 images"):
        paths(tmp_path / "i")


@pytest.mark.parametrize("body", [b"", b"no tar at all"])
def test_a_file_that_is_no_archive_is_refused(body: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(body)
    with pytest.raises(IntegrityError):
        paths(tmp_path / "x.tar")
    with pytest.raises(IntegrityError):
        paths(tmp_path)
