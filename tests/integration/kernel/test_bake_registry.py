"""Images out of a real registry: digests kept, logins by the user's own means, one clear error per refusal."""

from __future__ import annotations

import contextlib
import hashlib
import json
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from builder.cli.group import run
from builder.errors import BuilderError, CapabilityError, ConfigError, IntegrityError, RemoteError
from builder.node import layout, registry
from builder.node.layout import host_platform
from builder.node.registry import Access
from tests import oci
from tests.conftest import missing
from tests.servers import registry as registries
from tests.servers.registry import Registry

NAME = "llm/tiny"
SECRET = "kept-3d1f-secret"


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("oci") / "layout"
    oci.write_layout(folder)
    return folder


@pytest.fixture(scope="module")
def served(image: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """With a login and a certificate of its own; llm/tiny:v1 is there."""
    try:
        with registries.serve(tmp_path_factory.mktemp("registry"), users={"ci": SECRET}, tls=True) as found:
            found.push(image, NAME, "v1")
            yield found
    except CapabilityError as exc:
        missing("registry", str(exc))


def login(served: Registry, folder: Path, word: str = SECRET) -> Access:
    """As `docker login` leaves it."""
    found = registries.Registry(served.host, served.folder, served.log, {"ci": word}, served.ca)
    found.environment(folder)
    return Access(folder / "config.json", served.ca)


def fetch(reference: str, folder: Path, access: Access) -> layout.OciImage:
    name = registry.fetch(reference, folder, platform=host_platform(), access=access)
    with layout.open_layout(folder) as opened:
        return layout.find_image(opened, reference=name)


def index(served: Registry, image: Path, tag: str) -> str:
    """Push an index of the image and one for another machine, and an attestation; Docker's media types."""
    (entry,) = json.loads((image / "index.json").read_text())["manifests"]
    kind = "application/vnd.oci.image.manifest.v1+json"
    operating, machine = host_platform().split("/")
    children = [
        {"mediaType": kind, "digest": entry["digest"], "size": entry["size"],
         "platform": {"os": where, "architecture": which}}
        for where, which in (("unknown", "unknown"), (operating, machine))
    ]  # fmt: skip
    body = json.dumps({"schemaVersion": 2, "mediaType": registries.MANIFESTS[0], "manifests": children}).encode()
    answer = served.ask("PUT", f"{NAME}/manifests/{tag}", body, Content_Type=registries.MANIFESTS[0])
    assert answer.status == 201, answer.body
    return answer.headers["docker-content-digest"]


def test_an_image_keeps_the_digest_of_the_registry(served: Registry, image: Path, tmp_path: Path) -> None:
    digest, _ = served.manifest(NAME, "v1")
    found = fetch(served.reference(NAME, "v1"), tmp_path / "a", login(served, tmp_path))
    assert (found.target.digest, found.reference) == (digest, served.reference(NAME, "v1"))
    pinned = fetch(f"{served.reference(NAME, 'v1')}@{digest}", tmp_path / "b", login(served, tmp_path))
    assert pinned == found
    for blob in found.blobs():
        body = (tmp_path / "a" / blob.member).read_bytes()
        assert f"sha256:{hashlib.sha256(body).hexdigest()}" == blob.digest


def test_of_an_index_the_index_and_one_platform_are_taken(served: Registry, image: Path, tmp_path: Path) -> None:
    digest = index(served, image, "many")
    found = fetch(served.reference(NAME, "many"), tmp_path / "a", login(served, tmp_path))
    assert found.target.digest == digest != found.manifest.digest
    with pytest.raises(ConfigError, match=f"no image for linux/s390x; the index offers {host_platform()}"):
        registry.fetch(served.reference(NAME, "many"), tmp_path / "b", platform="linux/s390x", access=login(served, tmp_path))


def test_dockers_own_manifest_is_taken_as_it_is(served: Registry, image: Path, tmp_path: Path) -> None:
    (entry,) = json.loads((image / "index.json").read_text())["manifests"]
    manifest = json.loads((image / "blobs" / entry["digest"].replace(":", "/")).read_text())
    manifest["mediaType"] = registries.MANIFESTS[3]
    manifest["config"]["mediaType"] = "application/vnd.docker.container.image.v1+json"
    for one in manifest["layers"]:
        one["mediaType"] = "application/vnd.docker.image.rootfs.diff.tar.gzip"
    body = json.dumps(manifest).encode()
    assert served.ask("PUT", f"{NAME}/manifests/docker", body, Content_Type=manifest["mediaType"]).status == 201
    found = fetch(served.reference(NAME, "docker"), tmp_path / "a", login(served, tmp_path))
    assert found.target.digest == f"sha256:{hashlib.sha256(body).hexdigest()}"
    assert found.target.media_type == manifest["mediaType"]


@pytest.mark.parametrize("every", [False, True], ids=["credHelpers", "credsStore"])
def test_a_credential_helper_is_asked(served: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: bool) -> None:
    helper = tmp_path / "bin" / "docker-credential-ours"
    helper.parent.mkdir()
    helper.write_text(f'#!/bin/sh\nread -r host\necho "$1 $host" >> {tmp_path}/asked\n'
                      f'echo \'{{"ServerURL": "x", "Username": "ci", "Secret": "{SECRET}"}}\'\n')  # fmt: skip
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", str(helper.parent), prepend=":")
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"credsStore": "ours"} if every else {"credHelpers": {served.host: "ours"}}))
    fetch(served.reference(NAME, "v1"), tmp_path / "a", Access(config, served.ca))
    assert f"get {served.host}" in (tmp_path / "asked").read_text()


def test_no_password_is_in_a_process_list_or_a_message(served: Registry, tmp_path: Path) -> None:
    seen, over = set[str](), threading.Event()

    def watch() -> None:
        while not over.is_set():
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                with contextlib.suppress(OSError):
                    seen.add(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
            time.sleep(0.002)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        fetch(served.reference(NAME, "v1"), tmp_path / "a", login(served, tmp_path / "good"))
        with pytest.raises(RemoteError) as caught:
            fetch(served.reference(NAME, "v1"), tmp_path / "b", login(served, tmp_path / "bad", f"{SECRET}-wrong"))
    finally:
        over.set()
        watcher.join()
    assert any("skopeo" in line and served.host in line for line in seen)
    assert not [line for line in seen if SECRET in line]
    assert SECRET not in caught.value.message + caught.value.hint


def refused(kind: type[BuilderError], reference: str, folder: Path, access: Access) -> BuilderError:
    with pytest.raises(kind) as caught:
        fetch(reference, folder, access)
    assert "\n" not in caught.value.message
    return caught.value


def test_each_refusal_is_one_clear_error(served: Registry, tmp_path: Path) -> None:
    good, host = login(served, tmp_path), served.host
    error = refused(RemoteError, served.reference(NAME, "v1"), tmp_path / "a", Access(None, served.ca))
    assert f"{host} refuses the login" in error.message
    assert f"docker login {host}" in error.hint
    error = refused(RemoteError, served.reference(NAME, "v2"), tmp_path / "b", good)
    assert f"{NAME}:v2: {host} has no such image" in error.message
    error = refused(RemoteError, served.reference("llm/none", "v1"), tmp_path / "c", good)
    assert "has no such image" in error.message
    error = refused(RemoteError, "registry.example.com.invalid/a:1", tmp_path / "d", Access())
    assert "registry.example.com.invalid does not answer" in error.message
    error = refused(ConfigError, f"{host}/{NAME}", tmp_path / "e", good)
    assert "expected registry/repository:tag" in error.message
    other = registries._certificate(tmp_path, "127.0.0.2")[0]
    error = refused(RemoteError, served.reference(NAME, "v1"), tmp_path / "f", Access(good.authfile, other))
    assert "shows a certificate that is not trusted" in error.message
    error = refused(ConfigError, served.reference(NAME, "v1"), tmp_path / "g", Access(good.authfile, tmp_path / "nowhere"))
    assert "nowhere: No such file" in error.message
    error = refused(RemoteError, "127.0.0.1:1/a:1", tmp_path / "h", Access())
    assert "127.0.0.1:1 does not answer" in error.message


def test_other_bytes_than_the_digest_names_are_not_taken(served: Registry, image: Path, tmp_path: Path) -> None:
    """A layer that rots in the registry; and a digest that it does not have under that name."""
    good = login(served, tmp_path)
    error = refused(RemoteError, f"{served.reference(NAME, 'v1')}@sha256:{'0' * 64}", tmp_path / "a", good)
    assert "has no such image" in error.message
    digest, manifest = served.manifest(NAME, "v1")
    path = served.blob_path(manifest["layers"][1]["digest"])
    body = path.read_bytes()
    path.write_bytes(body[:50] + bytes([body[50] ^ 1]) + body[51:])
    try:
        refused(IntegrityError, f"{served.reference(NAME, 'v1')}@{digest}", tmp_path / "b", good)
    finally:
        path.write_bytes(body)
    path = served.blob_path(digest)
    body = path.read_bytes()
    path.write_bytes(body.replace(b"schemaVersion", b"schemaversion"))
    try:
        refused(IntegrityError, f"{served.reference(NAME, 'v1')}@{digest}", tmp_path / "c", good)
    finally:
        path.write_bytes(body)


@pytest.mark.root
def test_a_disk_out_of_a_registry(loop_root: None, served: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                  capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    access = login(served, tmp_path / "docker")
    assert access.authfile
    monkeypatch.setenv("DOCKER_CONFIG", str(access.authfile.parent))
    out, name = tmp_path / "d.img", served.reference(NAME, "v1")
    with pytest.raises(SystemExit) as caught:
        run(["bake", "disk", str(out), "--image", f"docker://{name}", "--size", "1GiB", "--ca-bundle", str(served.ca),
             "--no-verify", "--format", "json"])  # fmt: skip
    assert caught.value.code == 0
    (row,) = json.loads(capsys.readouterr().out)["volume"]["images"]
    assert (row["reference"], row["digest"]) == (name, served.manifest(NAME, "v1")[0])
    assert [path.name for path in tmp_path.iterdir() if ".inputs" in path.name] == []
    subprocess.run(["test", "-s", out], check=True)
