"""What only a folder store can get wrong: leftovers, permissions, file systems without links, keys that leave it."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from builder.errors import CapabilityError, ConfigError, RemoteError
from builder.stores.directory import INCOMING, DirectoryStore
from builder.stores.open import open_store
from builder.weights.listing import ls

D = {"sha256": "0" * 64, "crc64nvme": "0" * 16}


@pytest.mark.parametrize("key", ["../x", "/etc/passwd", "a//b", "a/../b", "", f"{INCOMING}/x"])
def test_keys_stay_inside(tmp_path: Path, key: str) -> None:
    store = DirectoryStore(tmp_path / "s")
    for act in (
        lambda: store.put(key, b"x", **D),
        lambda: store.get(key, 1),
        lambda: store.size(key),
        lambda: store.delete(key),
    ):
        with pytest.raises(ConfigError, match="not a plain relative path"):
            act()


def test_objects_being_written_do_not_show(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    store.put("a", b"x", **D)
    (tmp_path / INCOMING / "half").write_bytes(b"half")
    assert list(store.keys("")) == [("a", 1)]


def test_a_mistyped_folder_is_not_an_empty_store(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "nope")
    for act in (lambda: list(store.keys("refs/")), lambda: list(ls(store))):
        with pytest.raises(RemoteError, match="nope: no such folder"):
            act()
    assert not store.root.exists()


@pytest.mark.parametrize("url", ["", " ", "s3:/bucket", "S3:/bucket", "gs:/b", "file://user:secret@host/x", "s3://k:secret@b"])
def test_urls_that_are_no_store(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        open_store(url)
    assert caught.value.hint
    assert "secret" not in caught.value.message


@pytest.mark.parametrize("form", ["{}", "file:{}", "file://{}"])
def test_forms_of_a_folder(tmp_path: Path, form: str) -> None:
    assert open_store(form.format(tmp_path)).url == str(tmp_path)


def test_old_leftovers_are_removed_and_young_ones_kept(tmp_path: Path) -> None:
    incoming = tmp_path / INCOMING
    incoming.mkdir()
    for name, age in (("old", 90_000), ("young", 60)):
        (incoming / name).touch()
        os.utime(incoming / name, (time.time() - age,) * 2)
    DirectoryStore(tmp_path).put("a", b"x", **D)
    assert [p.name for p in incoming.iterdir()] == ["young"]


def test_a_file_system_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_link(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_link)
    store = DirectoryStore(tmp_path)
    store.put("a/b", b"x", **D)
    assert store.get("a/b", 1) == b"x"
    assert list((tmp_path / INCOMING).iterdir()) == []


AS_NOBODY = """
import json, os, sys
from pathlib import Path
from builder.errors import BuilderError
from builder.stores.directory import DirectoryStore
import builder.transfer.source
if os.geteuid() == 0:  # after the imports: another user may not be allowed to read this checkout
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
store, out = DirectoryStore(Path(sys.argv[1])), {}
acts = {"get": lambda: store.get("secret", 9), "put": lambda: store.put("new", b"x", sha256="0" * 64, crc64nvme="0" * 16)}
for name, act in acts.items():
    try:
        act(); out[name] = "done"
    except BuilderError as exc:
        out[name] = [exc.exit_code, exc.message, exc.hint]
print(json.dumps(out))
"""


def test_no_permission_is_an_error_of_the_machine() -> None:
    with tempfile.TemporaryDirectory() as parent:  # pytest's own folders are closed to other users
        Path(parent).chmod(0o755)
        root = Path(parent) / "s"
        DirectoryStore(root).put("secret", b"x", **D)
        (root / "secret").chmod(0)
        (root / INCOMING).chmod(0o555)
        root.chmod(0o555)
        env = {"PYTHONPATH": str(Path(__file__).resolve().parents[3]), "PATH": os.environ["PATH"]}
        done = subprocess.run([sys.executable, "-c", AS_NOBODY, str(root)], env=env, capture_output=True, check=True)
        found = json.loads(done.stdout)
        for act in ("get", "put"):
            code, message, hint = found[act]
            assert code == CapabilityError.exit_code
            assert str(root) in message
            assert "Permission denied" in message
            assert "permissions" in hint
        assert not (root / "new").exists()
        root.chmod(0o755)
        (root / INCOMING).chmod(0o755)
