"""One suite for every back end: what is built, that nothing half-built is visible, and how errors are told."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from builder.errors import BuilderError, CapabilityError, ClaimError, ConfigError
from builder.image import admission, backends, inspect, oci
from builder.image.backends.base import Options
from builder.image.built import BuiltImage
from builder.progress import NoProgress
from tests.integration.docker.backends import Ground, ground

pytestmark = pytest.mark.docker
TEXT = """\
FROM BASE AS one
RUN --mount=type=secret,id=word --mount=type=bind,source=given,target=/given \\
    cat /given /run/secrets/word >/opt/both; echo "$(cat /opt/base/gone)" >/opt/one
FROM BASE AS final
COPY --from=one /opt/one /opt/one
ENV WHAT=ever
USER 10001:0
ENTRYPOINT ["/bin/cat"]
"""
WORD = b"canary-4711"


@pytest.fixture(params=["buildx", "buildah"])
def site(
    request: pytest.FixtureRequest, docker_engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Ground]:
    with ground(str(request.param), tmp_path, monkeypatch) as found:
        yield found


def build(site: Ground, name: str = "a", *, text: str = TEXT, no_cache: bool = False) -> BuiltImage:
    word = site.folder / "word"
    word.write_bytes(WORD)
    return site.build(text, site.folder / f"{name}.tar", Options({"word": word}, no_cache=no_cache), given=b"given\n")


def script(site: Ground, text: str) -> Path:
    path = site.folder / "verify"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o700)  # the user's own umask; the image's user must be able to run it nevertheless
    return path


def admit(site: Ground, built: BuiltImage, name: str = "a", **how: Path) -> None:
    with admission.forgotten_if_refused(site.backend, built):
        admission.admit(site.backend, site.folder / f"{name}.tar", built, **how)


def test_two_builds_from_nothing_are_one_image(site: Ground) -> None:
    first = build(site, "a", no_cache=True)
    time.sleep(1.1)  # another second of the clock: any time that got in would differ
    second = build(site, "b", no_cache=True)
    assert site.backend.capabilities.reproducible
    assert (first.digest, first.layers) == (second.digest, second.layers)
    assert first.to_json()["reproducible"] is True


def test_layers_are_zstd_and_hold_no_secret(site: Ground) -> None:
    built = build(site)
    with tarfile.open(site.folder / "a.tar") as tar:
        manifest = json.loads(_member(tar, built.digest))
        assert {layer["mediaType"] for layer in manifest["layers"]} == {"application/vnd.oci.image.layer.v1.tar+zstd"}
        assert all(_member(tar, layer["digest"])[:4] == b"\x28\xb5\x2f\xfd" for layer in manifest["layers"])
    assert built.size == sum(layer["size"] for layer in manifest["layers"])
    assert inspect.scan(site.folder / "a.tar", also=[WORD]) == []
    leaky = build(site, "leaky", text=TEXT.replace("/opt/one /opt/one", "/opt/both /opt/both"))
    assert [one.kind for one in inspect.scan(site.folder / "leaky.tar", also=[WORD])] == ["given secret"], leaky


def test_no_mount_point_of_a_secret_is_left(site: Ground) -> None:
    built = build(site, text="FROM BASE\nRUN --mount=type=secret,id=word test -s /run/secrets/word\n")
    admit(site, built, proof=script(site, "test ! -e /run/secrets"))


def test_an_image_has_no_name_before_it_has_proved_itself(site: Ground) -> None:
    built = build(site)
    assert not site.exists(built.reference)
    admit(site, built, proof=script(site, 'test "$(id -u)" = 10001 && test "$WHAT" = ever && test ! -e /run/secrets/word'))
    assert site.exists(built.reference)


def test_an_image_that_fails_its_proof_gets_no_name_and_takes_none(site: Ground) -> None:
    good = build(site)
    admit(site, good)
    other = build(site, "a-2", text=TEXT.replace("ever", "never"))
    other = _named(other, good.reference)
    with pytest.raises(ClaimError, match=r"(?s)verify failed inside the image with status 3.*this says why") as caught:
        admit(site, other, "a-2", proof=script(site, "echo this says why; exit 3"))
    assert caught.value.exit_code == 7
    kept = site.backend.inspect(good.reference)
    assert kept is not None
    assert kept.id == good.id
    if not site.is_buildah:
        assert not site.exists(other.id)  # buildah keeps it as its cache


def test_the_proof_has_no_network_and_cannot_change_itself(site: Ground) -> None:
    built = build(site)
    admit(site, built, proof=script(site, "echo x >>/verify && exit 9; test $(cat /proc/net/dev | { n=0; "
          "while read -r l; do n=$((n+1)); done; echo $n; }) = 3"))  # fmt: skip


def test_the_layout_is_the_image(site: Ground) -> None:
    built = build(site)
    folder = site.folder / "layout"
    admit(site, built, layout=folder)
    index = json.loads((folder / "index.json").read_text())
    assert index["manifests"][0]["digest"] == built.digest
    assert index["manifests"][0]["annotations"]["io.containerd.image.name"] == f"docker.io/{built.reference}"
    assert all((folder / "blobs" / digest.replace(":", "/")).is_file() for digest in (built.digest, *built.layers))


def test_what_is_saved_again_has_the_same_digest(site: Ground) -> None:
    built = build(site)
    admit(site, built)
    site.backend.save(built.reference, site.folder / "saved.tar")
    assert oci.read(site.folder / "saved.tar", "x").digest == built.digest


def test_a_failing_step_is_named_with_its_own_last_words(site: Ground) -> None:
    text = "FROM BASE AS base\nRUN echo fine\nFROM base AS broken\nRUN echo these are the words; exit 3\n"
    with pytest.raises(BuilderError, match=r"(?s)failed in step broken \d/\d: RUN echo these.*\n  these are the words"):
        build(site, text=text)
    assert not (site.folder / "a.tar").exists()


def test_another_base_than_the_pinned_one(site: Ground) -> None:
    options = Options(pinned_base="sha256:" + "0" * 64)
    with pytest.raises(ConfigError, match=r"builder\.lock pins sha256:0000"):
        site.build(TEXT, site.folder / "a.tar", options)


def test_a_base_that_is_nowhere(site: Ground) -> None:
    with pytest.raises(CapabilityError, match=r"127\.0\.0\.1:1/none:1 is not here and cannot be pulled"):
        site.backend.base_digest("127.0.0.1:1/none:1")


def test_a_killed_client_leaves_nothing(site: Ground) -> None:
    done = threading.Event()
    killer = threading.Thread(target=_kill_child, args=(done,))
    killer.start()
    try:
        with pytest.raises(BuilderError, match=r"the build ended early: (docker|buildah) was killed by SIGKILL"):
            build(site, text="FROM BASE\nRUN echo now; sleep 30\n", no_cache=True)
    finally:
        done.set()
        killer.join()
    assert not (site.folder / "a.tar").exists()
    assert not site.exists(f"{site.name}:a")


def _kill_child(done: threading.Event) -> None:
    """kill -9 to the build's client, as soon as it runs its step."""
    while not done.wait(0.1):
        for number, (parent, line) in _processes().items():
            if parent == os.getpid() and ("buildx" in line or line.startswith("buildah build")) and _sleeping():
                os.kill(number, signal.SIGKILL)
                return


def _processes() -> dict[int, tuple[int, str]]:
    found = {}
    for place in Path("/proc").glob("[0-9]*"):
        try:
            line = (place / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            found[int(place.name)] = (int((place / "stat").read_text().rpartition(")")[2].split()[1]), line)
        except (OSError, ValueError):
            continue
    return found


def _sleeping() -> bool:
    return any(line.strip() == "sleep 30" for _, line in _processes().values())


@pytest.fixture
def tiny(tmp_path: Path, loop_root: None) -> Iterator[Path]:
    """A file system of 1 MiB."""
    place = tmp_path / "tiny"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], check=True)
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_full_disk_for_the_archive_is_named(site: Ground, tiny: Path) -> None:
    word = site.folder / "word"
    word.write_bytes(WORD)
    with pytest.raises(CapabilityError, match="no space left on") as caught:
        site.build(TEXT, tiny / "a.tar", Options({"word": word}), given=b"x")
    assert str(tiny) in caught.value.message.splitlines()[0]
    assert "TMPDIR" in caught.value.hint
    assert list(tiny.iterdir()) == []


def test_a_full_disk_for_the_layout_leaves_no_layout_and_no_name(site: Ground, tiny: Path) -> None:
    built = build(site)
    with pytest.raises(CapabilityError, match=f"no space left on {tiny}"):
        admit(site, built, layout=tiny)
    assert list(tiny.iterdir()) == []
    assert not site.exists(built.reference)


def test_a_place_for_a_cache_that_this_back_end_lacks(
    docker_engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ground("buildah", tmp_path, monkeypatch) as site, pytest.raises(CapabilityError, match="is a local one"):
        site.build(TEXT, tmp_path / "a.tar", Options(cache_to="./cache"))


def test_the_probe_skips_what_does_not_answer(docker_engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with buildah and without a Docker engine builds."""
    with ground("buildah", tmp_path, monkeypatch) as site:
        monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
        found = backends.find()
        assert found.capabilities.name == "buildah"
        assert [one.name for one in backends.probe() if one.backend] == ["buildah"]
        built = backends.build(found, site.context("FROM BASE\nRUN true\n"), reference=f"{site.name}:p", base=site.base,
                               archive=tmp_path / "p.tar", progress=NoProgress())  # fmt: skip
        assert built.backend == found.capabilities


def _named(built: BuiltImage, reference: str) -> BuiltImage:
    import dataclasses

    return dataclasses.replace(built, reference=reference)


def _member(tar: tarfile.TarFile, digest: str) -> bytes:
    file = tar.extractfile("blobs/" + digest.replace(":", "/"))
    assert file is not None
    return file.read()
