"""`docker push` and `buildah push` to a real registry: the digest stays, nothing is sent twice, refusals are one line."""

from __future__ import annotations

import dataclasses
import json
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from builder.errors import RemoteError
from builder.image import admission, registry
from builder.image.backends.base import Options
from builder.image.built import BuiltImage
from tests.conftest import missing
from tests.integration.docker.backends import Ground, ground
from tests.servers.registry import Registry, serve

pytestmark = pytest.mark.docker
TEXT = "FROM BASE\nRUN echo pushed >/opt/x\n"


@pytest.fixture(params=["buildx", "buildah"])
def site(
    request: pytest.FixtureRequest, docker_engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Ground]:
    if shutil.which("docker-registry") is None:
        missing("registry", "no docker-registry (apt-get install docker-registry)")
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))  # the user's logins stay out of this
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(tmp_path / "docker" / "config.json"))
    (tmp_path / "docker").mkdir()
    (tmp_path / "docker" / "config.json").write_text("{}")
    with ground(str(request.param), tmp_path, monkeypatch) as found:
        yield found


def built_for(site: Ground, place: Registry, text: str = TEXT) -> BuiltImage:
    archive = site.folder / "image.tar"
    archive.unlink(missing_ok=True)
    built = dataclasses.replace(site.build(text, archive), reference=place.reference(f"{site.name}/image", "v1"))
    admission.admit(site.backend, archive, built)
    return built


def uploads(place: Registry) -> list[tuple[str, str, int]]:
    return [one for one in place.requests() if one[0] in ("POST", "PATCH", "PUT") and "/blobs/" in one[1]]


def test_what_the_registry_shows_is_what_was_built(site: Ground, tmp_path: Path) -> None:
    with serve(tmp_path / "registry") as place:
        built = built_for(site, place)
        pushed = registry.push(site.backend, built)
        assert pushed.pushed == built.digest == place.manifest(f"{site.name}/image", "v1")[0]
        assert uploads(place)
        before = len(uploads(place))
        registry.push(site.backend, built)
        assert len(uploads(place)) == before  # an unchanged image sends no layer
        registry.push(site.backend, built_for(site, place, TEXT + "RUN echo more >/opt/y\n"))
        posts = [one for one in uploads(place)[before:] if one[0] == "POST"]
        assert len(posts) == 2  # the one new layer, and the configuration


def test_only_who_logged_in_may_push_and_no_error_shows_the_password(site: Ground, tmp_path: Path) -> None:
    with serve(tmp_path / "registry", users={"ci": "right-4711"}) as place:
        built = built_for(site, place)
        for password in ("", "wrong-4711"):
            if password:
                assert not login(site, place, password)
            with pytest.raises(RemoteError, match="refuses the login") as caught:
                registry.push(site.backend, built)
            assert len(caught.value.message.splitlines()) == 1
            assert "4711" not in json.dumps(caught.value.to_json())
        assert login(site, place, "right-4711")
        assert registry.push(site.backend, built).pushed == built.digest


def outside() -> str:
    """An address of this machine that is not loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # sends nothing
        return str(probe.getsockname()[0])


def login(site: Ground, place: Registry, password: str) -> bool:
    command = ["buildah", "login", "--tls-verify=false"] if site.is_buildah else ["docker", "login"]
    command += ["--username=ci", "--password-stdin", place.host]
    return subprocess.run(command, input=password.encode(), capture_output=True, check=False).returncode == 0


def test_a_wrong_password_that_is_stored_is_refused(site: Ground, tmp_path: Path) -> None:
    with serve(tmp_path / "registry", users={"ci": "right-4711"}) as place:
        built = built_for(site, place)
        dataclasses.replace(place, users={"ci": "wrong-4711"}).environment(tmp_path / "docker")
        with pytest.raises(RemoteError, match="refuses the login") as caught:
            registry.push(site.backend, built)
        assert "4711" not in json.dumps(caught.value.to_json())


def test_a_registry_that_is_gone(site: Ground, tmp_path: Path) -> None:
    with serve(tmp_path / "registry") as place:
        built = built_for(site, place)
    with pytest.raises(RemoteError, match="does not answer") as caught:
        registry.push(site.backend, built)
    assert caught.value.exit_code == 5
    assert len(caught.value.message.splitlines()) == 1


def test_a_registry_with_an_unknown_authority(site: Ground, tmp_path: Path) -> None:
    """Not on 127.0.0.0/8, where engines take any certificate, and none."""
    with serve(tmp_path / "registry", tls=True, host=outside()) as place:
        built = built_for(site, place)
        with pytest.raises(RemoteError, match="a certificate that the engine does not trust") as caught:
            registry.push(site.backend, built)
    assert f"certs.d/{place.host}/ca.crt" in caught.value.hint


def test_a_registry_that_takes_nothing(site: Ground, tmp_path: Path) -> None:
    with serve(tmp_path / "registry", read_only=True) as place:
        built = built_for(site, place)
        with pytest.raises(RemoteError, match=r"not pushed") as caught:
            registry.push(site.backend, built)
        assert len(caught.value.message.splitlines()) == 1


def test_a_cache_in_a_registry(site: Ground, tmp_path: Path) -> None:
    with serve(tmp_path / "registry") as place:
        cache = f"{place.host}/{site.name}/cache"
        check_cache(site, cache)
        assert any(method == "PUT" and "/manifests/" in path for method, path, _ in place.requests())


def test_a_cache_in_a_folder(docker_engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ground("buildx", tmp_path, monkeypatch) as site:
        check_cache(site, str(tmp_path / "cache"))


def check_cache(site: Ground, cache: str) -> None:
    """A builder that has forgotten a random step runs it again, and takes it from the cache where it may."""
    mark = site.name.replace("/", "-")
    step = f"RUN while read -r l; do echo $l; done </proc/sys/kernel/random/uuid >/opt/{mark}"
    text = f"FROM BASE AS one\n{step}\nFROM BASE\nCOPY --from=one /opt/{mark} /opt/z\n"
    first = site.build(text, site.folder / "first.tar", Options(cache_to=cache))
    forget(site, mark)
    assert site.build(text, site.folder / "other.tar").digest != first.digest
    forget(site, mark)
    assert site.build(text, site.folder / "again.tar", Options(cache_from=(cache,))).digest == first.digest


def forget(site: Ground, mark: str) -> None:
    """Remove the build cache of the steps that mention `mark`, and no other."""
    if site.is_buildah:
        site.renew()
        return
    shown = subprocess.run(["docker", "buildx", "du", "--verbose"], capture_output=True, text=True, check=True).stdout
    records = [record for record in shown.split("\n\n") if mark in record]
    assert records
    for record in records:
        number = record.split("ID:")[1].split()[0]
        subprocess.run(["docker", "buildx", "prune", "--force", f"--filter=id={number}"], capture_output=True, check=True)
