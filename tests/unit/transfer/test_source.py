"""Folder stores, addresses, manifests by reference."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from builder.errors import CapabilityError, ConfigError, IntegrityError, RemoteError
from builder.format.manifest import manifest_key
from builder.transfer.manifests import names, read_manifest, resolve
from builder.transfer.restore import restore
from builder.transfer.source import FolderSource, list_keys, open_source, public
from tests.unit.transfer.build import DictSource, model, random_model


def test_a_folder_gives_whole_objects_and_none_for_what_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/b").write_bytes(b"hello")
    (tmp_path / "empty").touch()
    source = open_source(str(tmp_path))
    assert source.read("a/b", limit=5) == b"hello"
    assert source.read("empty", limit=0) == b""
    for absent in ("a", "a/c", "a/b/c"):
        assert source.read(absent, limit=5) is None
    assert list_keys(source, "a/") == ["a/b"]
    assert list_keys(source, "none/") == []


def test_a_larger_object_is_refused_unread(tmp_path: Path) -> None:
    (tmp_path / "big").touch()
    os.truncate(tmp_path / "big", 1 << 40)
    with pytest.raises(IntegrityError, match="1099511627776 bytes, expected at most 10"):
        FolderSource(tmp_path).read("big", limit=10)


@pytest.mark.parametrize("key", ["../x", "a/../../x", "/etc/passwd"])
def test_no_key_leaves_the_store(tmp_path: Path, key: str) -> None:
    with pytest.raises(IntegrityError, match="leaves the store"):
        FolderSource(tmp_path).read(key, limit=10)


@pytest.fixture
def nobody() -> Iterator[Path]:
    """A readable folder, and for the test no rights of root."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        user = os.geteuid()
        if user == 0:
            (Path(name) / "k").touch(0o600)
            os.seteuid(65534)
        else:
            (Path(name) / "k").touch(0o000)
        try:
            yield Path(name)
        finally:
            os.seteuid(user)


def test_no_permission_is_named(nobody: Path) -> None:
    with pytest.raises(CapabilityError, match=f"{nobody}/k: Permission denied") as caught:
        FolderSource(nobody).read("k", limit=10)
    assert caught.value.hint


def test_no_permission_to_write_is_named(nobody: Path) -> None:
    built = random_model()
    with pytest.raises(CapabilityError, match="Permission denied"):
        restore(built.manifest, DictSource(built.objects), nobody / "sub/m")


def test_a_pipe_in_a_store_hangs_nobody(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert FolderSource(tmp_path).read("pipe", limit=10) is None


def test_a_mistyped_folder_is_not_an_empty_store(tmp_path: Path) -> None:
    with pytest.raises(RemoteError, match="no such folder"):
        open_source(str(tmp_path / "nope"))


def test_an_unknown_scheme_is_named_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="ftp://") as caught:
        open_source("ftp://user:secret@host/x")
    assert "s3://" in caught.value.message
    assert "secret" not in caught.value.message


def test_an_address_shows_no_secret() -> None:
    assert public("https://u:p@h:1/a/b?sig=x#y") == "https://h:1/a/b"
    assert public("s3://bucket/prefix") == "s3://bucket/prefix"
    assert public("/a/folder") == "/a/folder"


# References


def test_every_form_of_reference_finds_the_manifest() -> None:
    built = random_model()
    source = Listed(built.objects)
    for ref in ("", "m", "m@r1", built.manifest.digest):
        assert resolve(source, ref) == built.manifest.digest
        assert read_manifest(source, ref).digest == built.manifest.digest


def test_a_missing_name_lists_what_is_there() -> None:
    with pytest.raises(IntegrityError, match="no model 'other'") as caught:
        resolve(Listed(random_model().objects), "other")
    assert caught.value.hint == "models here: m"


def test_several_names_must_be_chosen_from() -> None:
    objects = {**model({"a": b"1"}, name="one").objects, **model({"b": b"2"}, name="two").objects}
    assert names(Listed(objects)) == ["one", "two"]
    with pytest.raises(ConfigError, match="2 models") as caught:
        resolve(Listed(objects))
    assert "one, two" in caught.value.hint


def test_an_empty_store_says_so() -> None:
    with pytest.raises(IntegrityError, match="no model here"):
        resolve(Listed({}))


def test_a_store_that_cannot_list_needs_a_name() -> None:
    with pytest.raises(ConfigError, match="cannot list"):
        resolve(DictSource({}))


@pytest.mark.parametrize("ref", ["../x", "a/b", "a@b@c", "@r", "a@", ".hidden", "a b"])
def test_a_malformed_reference_reads_nothing(ref: str) -> None:
    source = DictSource({})
    with pytest.raises(ConfigError, match="not a model reference"):
        resolve(source, ref)
    assert source.reads == []


@pytest.mark.parametrize("body", [b"", b"sha256:12", b"\xff\xfe", b"sha512:" + b"0" * 64])
def test_a_ref_that_holds_no_digest_is_integrity(body: bytes) -> None:
    with pytest.raises(IntegrityError, match="expected sha256"):
        resolve(DictSource({"refs/m": body}), "m")


def test_a_missing_or_changed_manifest_is_integrity() -> None:
    built = random_model()
    key = manifest_key(built.manifest.digest)
    rest = {k: v for k, v in built.objects.items() if k != key}
    with pytest.raises(IntegrityError, match="is not there"):
        read_manifest(Listed(rest), "m")
    source = Listed({**rest, key: built.objects[key].replace(b'"m"', b'"n"')})
    with pytest.raises(IntegrityError, match=f"expected {built.manifest.digest}"):
        read_manifest(source, "m")


class Listed(DictSource):
    """A dict that can list."""

    def keys(self, prefix: str) -> list[str]:
        return [key for key in self.objects if key.startswith(prefix)]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.ENOENT, errno.EACCES])
def test_what_the_writer_of_the_pieces_raises_is_no_fault_of_the_store(tmp_path: Path, number: int) -> None:
    """A full disk at the target must not read as a store that fails, nor as an object that is not there."""
    (tmp_path / "a").write_bytes(b"x" * 100)

    def seen(piece: memoryview) -> None:
        raise OSError(number, os.strerror(number), "target")

    with pytest.raises(OSError, match="target") as caught:
        FolderSource(tmp_path).stream("a", memoryview(bytearray(64)), limit=100, seen=seen)
    assert caught.value.errno == number
