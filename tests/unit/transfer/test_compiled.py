"""Capturing a cache root and putting it back: what is taken, what is left out, and every damage found."""

from __future__ import annotations

import hashlib
import os
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from builder.errors import BuilderError, CapabilityError, ConfigError, IntegrityError
from builder.format.compiled import FILES, FINGERPRINT, IN_ROOT, TAR, Entry, Fingerprint, files_bytes, parse_files
from builder.transfer import compiled

MINE = Fingerprint({"engine": "vllm", "gpu": "H100"}, {"name": "m"})
FILES_OF = {"inductor/ab/k.py": b"kernel", "inductor/ab/k.so": b"\x7fELF", "vllm/torch_compile_cache/x": b"x" * 3000}


def cache_root(folder: Path, files: dict[str, bytes] = FILES_OF) -> Path:
    for name, body in {**files, IN_ROOT: MINE.to_bytes()}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(body)
    return folder


@pytest.fixture
def artifact(tmp_path: Path) -> compiled.Artifact:
    return compiled.pack(cache_root(tmp_path / "root"), tmp_path / "artifact", {"image": "i"})


def content(root: Path) -> dict[str, bytes]:
    return {name: path.read_bytes() for name, path in compiled.counted(root).items()}


def test_what_is_captured_comes_back(artifact: compiled.Artifact, tmp_path: Path) -> None:
    loaded = compiled.load(artifact.folder)
    assert loaded == artifact
    assert loaded.fingerprint.about == {"name": "m", "image": "i"}
    assert loaded.fingerprint.key == MINE.key
    compiled.verify(loaded)
    compiled.unpack(loaded, tmp_path / "other")
    assert content(tmp_path / "other") == FILES_OF
    compiled.unpack(loaded, tmp_path / "other")  # over itself
    assert sorted(path.name for path in (tmp_path / "other/inductor/ab").iterdir()) == ["k.py", "k.so"]


def test_equal_caches_make_equal_artifacts(artifact: compiled.Artifact, tmp_path: Path) -> None:
    root = cache_root(tmp_path / "again", dict(reversed(FILES_OF.items())))
    for path in root.rglob("*"):
        os.utime(path, (1000, 1000))
    again = compiled.pack(root, tmp_path / "second", {"image": "i"})
    assert all((again.folder / n).read_bytes() == (artifact.folder / n).read_bytes() for n in (FILES, TAR, FINGERPRINT))


@pytest.mark.parametrize(
    "name",
    ["inductor/locks/k.lock", "inductor/k.lock", "triton/tmp.pid_3_4/k.so", "tilelang/tmp/x", "k.pid", "vllm/w.safetensors"],
)
def test_locks_temporary_files_and_weights_stay_behind(tmp_path: Path, name: str) -> None:
    root = cache_root(tmp_path / "root", {**FILES_OF, name: b"?"})
    (root / "link").symlink_to("/etc/passwd")
    os.mkfifo(root / "pipe")
    assert set(content(root)) == set(FILES_OF)


def test_times_are_kept_only_where_ninja_compares_them(tmp_path: Path) -> None:
    files = {"flashinfer/op/.ninja_log": b"#", "flashinfer/op/sub/a.o": b"o", "triton/k/a.so": b"s"}
    root = cache_root(tmp_path / "root", files)
    for name in files:
        os.utime(root / name, ns=(5_000_000_123, 5_000_000_123))
    made = compiled.pack(root, tmp_path / "artifact", {})
    assert {e.path: e.mtime_ns for e in made.entries} == {
        "flashinfer/op/.ninja_log": 5_000_000_123, "flashinfer/op/sub/a.o": 5_000_000_123, "triton/k/a.so": 0
    }  # fmt: skip
    compiled.unpack(made, tmp_path / "other")
    assert (tmp_path / "other/flashinfer/op/sub/a.o").stat().st_mtime_ns == 5_000_000_123
    assert (tmp_path / "other/triton/k/a.so").stat().st_mtime_ns > 6_000_000_000


def test_a_root_that_the_runtime_never_saw_is_refused(tmp_path: Path) -> None:
    root = cache_root(tmp_path / "root")
    (root / IN_ROOT).unlink()
    with pytest.raises(ConfigError, match=r"fingerprint\.json: not there; the runtime writes it"):
        compiled.pack(root, tmp_path / "artifact", {})
    assert not (tmp_path / "artifact").exists()


def test_a_root_in_which_nothing_was_compiled_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing was compiled there"):
        compiled.pack(cache_root(tmp_path / "root", {"a.lock": b""}), tmp_path / "artifact", {})


def test_a_full_folder_is_left_alone(artifact: compiled.Artifact, tmp_path: Path) -> None:
    before = content(artifact.folder)
    with pytest.raises(ConfigError, match="not empty"):
        compiled.pack(tmp_path / "root", artifact.folder, {})
    assert content(artifact.folder) == before


def test_a_folder_that_is_no_artifact_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no captured compile cache"):
        compiled.load(tmp_path)


@pytest.mark.parametrize("file", [FILES, TAR])
@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_every_damage_is_found(artifact: compiled.Artifact, tmp_path: Path, file: str, damage: str) -> None:
    path = artifact.folder / file
    body = bytearray(path.read_bytes())
    if damage == "gone":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(body[: len(body) // 3])
    else:
        at = body.index(b"x" * 100) + 5 if file == TAR else 5
        body[at] ^= 1
        path.write_bytes(body)
    with pytest.raises(IntegrityError, match=file):
        compiled.unpack(compiled.load(artifact.folder), tmp_path / "other")
    whole = content(tmp_path / "other") if (tmp_path / "other").exists() else {}
    assert all(FILES_OF[name] == found for name, found in whole.items())


@pytest.mark.parametrize("extra", ["../evil", "inductor/ab/k.py", "zz"])
def test_a_tar_with_more_than_its_list_is_refused(artifact: compiled.Artifact, tmp_path: Path, extra: str) -> None:
    with tarfile.open(artifact.folder / TAR, "a") as tar:
        tar.addfile(tarfile.TarInfo(extra))
    with pytest.raises(IntegrityError, match="the list no more"):
        compiled.unpack(artifact, tmp_path / "in" / "other")
    assert not (tmp_path / "in" / "evil").exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE])
def test_a_tar_with_a_link_in_a_files_place_is_refused(tmp_path: Path, kind: bytes) -> None:
    empty = compiled.pack(cache_root(tmp_path / "root", {"a": b""}), tmp_path / "artifact", {})
    link = tarfile.TarInfo("a")
    link.type, link.linkname = kind, "/etc/passwd"
    with tarfile.open(empty.folder / TAR, "w") as tar:
        tar.addfile(link)
    with pytest.raises(IntegrityError, match=r"files\.tar: holds"):
        compiled.unpack(empty, tmp_path / "other")


@pytest.mark.parametrize("path", ["../x", "/x", "a//b", ".builder/x", "a/../../x", ""])
def test_a_list_with_an_unsafe_path_is_refused(path: str) -> None:
    body = files_bytes([Entry(path, 1, "0" * 64, 0)])
    with pytest.raises(IntegrityError, match="path"):
        parse_files(body, "files.json", hashlib.sha256(body).hexdigest())


@pytest.mark.parametrize(
    "body", [b"", b"{}", b"[]", b'{"format":2}', b'{"format":1,"fields":{},"about":{},"files":""}', b"\xff",
             b'{"format":1,"fields":{"a":1},"about":{},"files":""}', b'{"format":1,"fields":{"a":"b"},"about":{},"files":"x"}']
)  # fmt: skip
def test_a_damaged_fingerprint_is_refused(artifact: compiled.Artifact, body: bytes) -> None:
    (artifact.folder / FINGERPRINT).write_bytes(body)
    with pytest.raises(IntegrityError, match=r"fingerprint\.json"):
        compiled.load(artifact.folder)


def test_the_key_follows_the_fields_alone() -> None:
    assert replace(MINE, about={"image": "other"}).key == MINE.key
    assert replace(MINE, fields={**MINE.fields, "driver": "580"}).key != MINE.key
    assert MINE.differences(replace(MINE, about={})) == []


def test_a_root_that_cannot_be_written_is_named(artifact: compiled.Artifact, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(BuilderError, match="file"):
        compiled.unpack(artifact, tmp_path / "file" / "root")


@pytest.mark.parametrize("file", [FILES, TAR, FINGERPRINT])
def test_a_folder_in_a_files_place_is_named(artifact: compiled.Artifact, file: str) -> None:
    (artifact.folder / file).unlink()
    (artifact.folder / file).mkdir()
    with pytest.raises(IntegrityError, match=f"{file}: not a regular file"):
        compiled.verify(compiled.load(artifact.folder))


@pytest.mark.parametrize("kind", ["pipe", "link"])
def test_a_fingerprint_that_is_no_file_is_not_read(tmp_path: Path, kind: str) -> None:
    path = cache_root(tmp_path / "root") / IN_ROOT
    path.rename(tmp_path / "real")
    os.mkfifo(path) if kind == "pipe" else path.symlink_to(tmp_path / "real")
    with pytest.raises(IntegrityError, match="not a regular file"):
        compiled.captured_fingerprint(tmp_path / "root")


def test_a_link_in_the_root_is_not_followed(artifact: compiled.Artifact, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other/inductor").symlink_to(tmp_path / "outside")
    with pytest.raises(ConfigError, match="inductor: a link"):
        compiled.unpack(artifact, tmp_path / "other")
    assert not list((tmp_path / "outside").iterdir())


def test_folders_are_the_group_s(artifact: compiled.Artifact, tmp_path: Path) -> None:
    compiled.unpack(artifact, tmp_path / "other")
    assert (tmp_path / "other/inductor/ab").stat().st_mode & 0o777 == 0o775


def test_a_capture_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = cache_root(tmp_path / "root")
    monkeypatch.setattr(compiled, "_has_ninja", lambda folder, _: (folder / "k.so").unlink(missing_ok=True))
    with pytest.raises(IntegrityError, match="changed while it was read"):
        compiled.pack(root, tmp_path / "artifact", {})
    assert not (tmp_path / "artifact").exists()


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, real = cache_root(tmp_path / "root"), os.scandir

    def closed(at: str) -> object:  # root may read everything, and the tests run as root
        if str(at).endswith("/inductor"):
            raise PermissionError(13, "Permission denied", at)
        return real(at)

    monkeypatch.setattr(os, "scandir", closed)
    with pytest.raises(CapabilityError, match="inductor: Permission denied") as caught:
        compiled.counted(root)
    assert "read" in caught.value.hint
    (root / "inductor").rename(root / "lost+found")
    assert set(content(root)) == {"vllm/torch_compile_cache/x"}


def test_a_full_disk_is_told_before_anything_is_written(artifact: compiled.Artifact) -> None:
    huge = replace(artifact, entries=(Entry("a", 1 << 40, "0" * 64, 0),))
    with pytest.raises(CapabilityError, match="bytes needed"):
        compiled.unpack(huge, artifact.folder.parent / "other")
