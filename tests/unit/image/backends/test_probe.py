"""Who builds here: the first that answers, from what the programs themselves say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from builder.errors import CapabilityError
from builder.image import backends
from builder.image.backends.base import Options, is_folder
from builder.image.built import Capabilities, full_name

# As Docker 26.1.5 and 20.10.24, buildx 0.13.1 and buildah 1.28.2 answer; cut to what is read.
INSPECT = """\
Name:          default
Driver:        docker
Last Activity: 2026-01-01 00:00:00 +0000 UTC

Nodes:
Name:             default
Endpoint:         default
Status:           running
BuildKit version: {kit}
Platforms:        linux/amd64*, linux/amd64/v2, linux/amd64/v3, linux/arm64
"""
STORE = '[["driver-type","io.containerd.snapshotter.v1"]]'


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is the whole PATH, but for a shell's own programs."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("sh", "cat"):
        (folder / name).symlink_to(f"/bin/{name}")
    monkeypatch.setenv("PATH", str(folder))
    return folder


def docker(path: Path, *, client: str, server: str, status: str = STORE, buildx: str = "", driver: str = "docker") -> None:
    """A `docker` that knows the commands of the probe and no other. server: "" where no engine answers."""
    version = json.dumps({"Client": {"Version": client}, "Server": {"Version": server, "Os": "linux", "Arch": "amd64"}})
    kit = "v0.14.1" if driver != "docker" else "v0.0.0+unknown"
    inspect = INSPECT.format(kit=kit).replace("Driver:        docker", f"Driver:        {driver}")
    cases = {
        "version --format {{json .}}": version,
        "info --format {{json .DriverStatus}}\n{{.DockerRootDir}}": f"{status}\n/var/lib/docker",
    }
    if buildx:
        cases |= {"buildx version": f"github.com/docker/buildx {buildx} {buildx}-3", "buildx inspect": inspect}
    if not server:
        cases = {}
    program(path, "docker", cases, "Cannot connect to the Docker daemon at unix:///var/run/docker.sock.")


def buildah(path: Path, version: str = "1.28.2") -> None:
    info = {"host": {"arch": "amd64"}, "store": {"GraphRoot": "/var/lib/containers/storage"}}
    program(
        path, "buildah", {"--version": f"buildah version {version} (image-spec 1.1.0)", "info": json.dumps(info)}, "unknown"
    )


def program(path: Path, name: str, answers: dict[str, str], refusal: str) -> None:
    for number, text in enumerate(answers.values()):
        (path / f"{name}.{number}").write_text(text)
    cases = "".join(f"  '{words}') exec cat '{path}/{name}.{number}' ;;\n" for number, words in enumerate(answers))
    script = path / name
    script.write_text(f"#!/bin/sh\ncase \"$*\" in\n{cases}  *) echo '{refusal}' >&2; exit 1 ;;\nesac\n")
    script.chmod(0o755)


def found() -> Capabilities:
    return backends.find().capabilities


def test_nothing_at_all_exits_4_with_every_reason(path: Path) -> None:
    with pytest.raises(CapabilityError) as caught:
        backends.find()
    assert caught.value.exit_code == 4
    assert caught.value.message.splitlines() == [
        "nothing here can build an image",
        "  docker: program not found",
        "  buildah: program not found",
    ]
    assert "buildah" in caught.value.hint


def test_a_docker_without_an_engine_leaves_it_to_buildah(path: Path) -> None:
    docker(path, client="28.2.2", server="")
    with pytest.raises(CapabilityError, match=r"docker: Cannot connect to the Docker daemon at unix:"):
        backends.find()
    buildah(path)
    assert found().name == "buildah"


def test_buildx_with_the_containerd_store_can_do_everything(path: Path) -> None:
    docker(path, client="28.2.2", server="26.1.5+dfsg1", buildx="0.13.1+ds1")
    buildah(path)
    can = found()
    assert (can.name, can.version) == ("buildx", "0.13.1+ds1")
    assert can.archives
    assert can.zstd
    assert can.reproducible
    assert can.copy_link
    assert can.cache == ("local", "registry")
    assert can.platforms == ("linux/amd64", "linux/arm64")
    assert can.multi_platform


def test_an_engine_before_26_cannot_rewrite_times(path: Path) -> None:
    docker(path, client="28.2.2", server="25.0.5", buildx="0.13.1")
    can = found()
    assert can.archives
    assert can.unreproducible == "BuildKit before 0.13 cannot set the times of files in layers"
    assert can.to_json()["reproducible"] is False


def test_an_engine_with_the_old_store_keeps_no_archive(path: Path) -> None:
    docker(path, client="28.2.2", server="26.1.5", buildx="0.13.1", status='[["Backing Filesystem","extfs"]]')
    can = found()
    assert can.name == "buildx"
    assert not can.archives
    assert not can.zstd
    assert not can.multi_platform
    assert can.cache == ()
    assert "containerd-snapshotter" in can.unreproducible


def test_a_builder_in_a_container_of_its_own_needs_no_store(path: Path) -> None:
    """Its BuildKit tells its own version."""
    docker(path, client="28.2.2", server="24.0.0", buildx="0.13.1", status="[]", driver="docker-container")
    can = found()
    assert can.archives
    assert can.reproducible


def test_an_old_client_speaks_buildkit_itself(path: Path) -> None:
    docker(path, client="20.10.24+dfsg1", server="20.10.24+dfsg1", status="[]")
    can = found()
    assert (can.name, can.version) == ("docker", "20.10.24+dfsg1")
    assert not can.reproducible
    assert not can.copy_link
    assert can.platforms == ("linux/amd64",)


def test_a_new_client_without_buildx_cannot_build(path: Path) -> None:
    docker(path, client="28.2.2", server="26.1.5")
    with pytest.raises(CapabilityError, match=r"28\.2\.2 has no BuildKit client of its own"):
        backends.find()


def test_an_engine_too_old_for_buildkit(path: Path) -> None:
    docker(path, client="17.12.0", server="17.12.0")
    with pytest.raises(CapabilityError, match=r"engine 17\.12\.0 is too old"):
        backends.find()


def test_buildah_learned_copy_link_in_1_41(path: Path) -> None:
    buildah(path)
    assert not found().copy_link
    assert not found().healthcheck
    buildah(path, "1.41.4")
    assert found().copy_link


def test_every_back_end_is_told_as_data(path: Path) -> None:
    buildah(path)
    told = {one["name"]: one for one in (probe.to_json() for probe in backends.probe())}
    assert list(told) == ["buildx", "docker", "buildah"]
    assert told["buildx"]["capabilities"] is None
    assert told["buildx"]["why"] == "docker: program not found"
    assert told["buildah"]["capabilities"]["version"] == "1.28.2"


CAN = Capabilities(
    "buildx", "0.13", archives=True, cache=("local", "registry"), platforms=("linux/amd64",), multi_platform=True
)
CANNOT = Capabilities("docker", "20.10", platforms=("linux/amd64",))


@pytest.mark.parametrize(
    ("can", "options", "said"),
    [
        (CANNOT, Options(cache_to="./cache"), "has no build cache of its own to share; ./cache is a local one"),
        (CANNOT, Options(cache_from=("r.example.com/c",)), "r.example.com/c is a registry one"),
        (CANNOT, Options(platforms=("linux/amd64", "linux/arm64")), "builds for one platform at a time"),
        (CAN, Options(platforms=("linux/amd64", "linux/arm64")), "asks for linux/arm64 (no binfmt emulator)"),
        (CAN, Options(platforms=("linux/arm64",)), "this machine runs linux/amd64"),
    ],
)
def test_what_a_back_end_cannot_do_is_said_before_it_begins(can: Capabilities, options: Options, said: str) -> None:
    with pytest.raises(CapabilityError) as caught:
        backends.require(can, options)
    assert said in caught.value.message
    assert caught.value.hint


def test_what_it_can_do_passes() -> None:
    backends.require(CAN, Options(cache_from=("./a", "r.example.com/c"), cache_to="/b", platforms=("linux/amd64",)))
    backends.require(CANNOT, Options())


@pytest.mark.parametrize(
    ("given", "full"),
    [
        ("llm/tiny:1", "docker.io/llm/tiny:1"),
        ("debian:bookworm-slim", "docker.io/library/debian:bookworm-slim"),
        ("127.0.0.1:5000/a/b:1", "127.0.0.1:5000/a/b:1"),
        ("localhost/a:1", "localhost/a:1"),
        ("registry.example.com/a:1", "registry.example.com/a:1"),
    ],
)
def test_names_in_full(given: str, full: str) -> None:
    assert full_name(given) == full


def test_a_folder_is_told_by_its_look() -> None:
    assert [is_folder(place) for place in ("./c", "../c", "/c", "c", "r.example.com/c")] == [True, True, True, False, False]
