"""The command lines: secrets travel as files, never as values."""

from __future__ import annotations

from pathlib import Path

from builder.image.backends import buildah, buildx, docker
from builder.image.backends.base import Options
from builder.image.dockerfile import EPOCH


def options(folder: Path) -> Options:
    secrets = {"ca": folder / "ca.pem", "pip_conf": folder / "pip.conf"}
    return Options(secrets, "host", no_cache=True, platforms=("linux/amd64", "linux/arm64"))


def test_buildkit_gets_secrets_as_files(tmp_path: Path) -> None:
    words = docker.arguments(options(tmp_path))
    assert f"--secret=id=ca,src={tmp_path}/ca.pem" in words
    assert f"--secret=id=pip_conf,src={tmp_path}/pip.conf" in words
    assert {"--network=host", "--no-cache", "--platform=linux/amd64,linux/arm64"} <= set(words)
    values = [word for word in words if word.startswith("--build-arg=") and word.count("=") > 1]
    assert values == [f"--build-arg=SOURCE_DATE_EPOCH={EPOCH}"]  # proxies go by name alone
    assert not {"--network=default", "--no-cache"} & set(docker.arguments(Options()))


def test_the_files_proxies_are_the_clients(tmp_path: Path) -> None:
    """Valueless build arguments take them from there."""
    given = Options(environ={"https_proxy": "http://proxy.example.com:3128", "no_proxy": ""})
    assert given.client("A=1") == ["env", "A=1", "https_proxy=http://proxy.example.com:3128", "no_proxy="]
    assert "--build-arg=https_proxy" in docker.arguments(given)


def test_buildah_gets_secrets_as_files(tmp_path: Path) -> None:
    words = buildah._arguments(options(tmp_path), tmp_path)
    assert f"--secret=id=ca,src={tmp_path}/ca.pem" in words
    assert {"--network=host", "--no-cache", f"--timestamp={EPOCH}", "--layers", f"--volume={tmp_path}/run:/run"} <= set(words)
    assert not [word for word in words if word.startswith("--build-arg")]


def test_the_archive_has_zstd_layers_fixed_times_and_no_name(tmp_path: Path) -> None:
    output = buildx._output(tmp_path / "i.tar").split(",")
    assert f"dest={tmp_path}/i.tar" in output
    assert {"compression=zstd", "force-compression=true", "rewrite-timestamp=true"} <= set(output)
    assert not [word for word in output if word.startswith("name=")]


def test_a_cache_is_a_folder_or_a_repository_by_its_look() -> None:
    words = buildx._caches(Options(cache_from=("./c", "r.example.com/c:main"), cache_to="/var/c"))
    assert words == [
        "--cache-from=type=local,src=./c",
        "--cache-from=type=registry,ref=r.example.com/c:main",
        "--cache-to=type=local,dest=/var/c,mode=max",
    ]
    assert buildx._caches(Options()) == []
