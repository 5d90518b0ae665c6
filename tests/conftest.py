"""Fixtures shared by all tests. A missing engine, root or S3 server skips; named in BUILDER_REQUIRE, it fails."""

from __future__ import annotations

import difflib
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from builder.errors import CapabilityError
from builder.stores import rclone
from tests.bounds import BOUND_S
from tests.servers import registry as registries
from tests.servers.registry import Registry

GOLDEN = Path(__file__).parent / "golden"
Golden = Callable[[str, str], None]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite tests/golden; read the difference before committing")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests marked `vm` run when `-m` names them, and are not counted otherwise."""
    if "vm" in config.option.markexpr.split():
        return
    left_out = [item for item in items if item.get_closest_marker("vm")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("vm")]


def required(what: str) -> bool:
    return what in os.environ.get("BUILDER_REQUIRE", "").split(",")


def missing(what: str, why: str) -> None:
    """Skip the test, or fail it where BUILDER_REQUIRE names `what`."""
    if required(what):
        pytest.fail(f"BUILDER_REQUIRE names {what}, but {why}")
    pytest.skip(why)


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees the user's proxies or AWS account."""
    for name in list(os.environ):
        if name.startswith(("AWS_", "BUILDER_")) and name not in ("AWS_CA_BUNDLE", "BUILDER_REQUIRE"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Golden:
    """`golden(name, text)`: text equals tests/golden/name, byte for byte."""

    def check(name: str, text: str) -> None:
        path = GOLDEN / name
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        want = path.read_text() if path.exists() else ""
        if text != want:
            diff = difflib.unified_diff(want.splitlines(), text.splitlines(), f"golden/{name}", "rendered", lineterm="")
            pytest.fail("\n".join(diff) or f"golden/{name}: only line ends differ")

    return check


@dataclass(frozen=True)
class S3:
    """A running S3 server with one empty bucket. folder: where its objects lie as files, folder/bucket/key."""

    endpoint_url: str
    bucket: str
    folder: Path
    env: dict[str, str]

    @property
    def url(self) -> str:
        return f"s3://{self.bucket}"


@pytest.fixture(scope="session")
def _s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[rclone.Endpoint]:
    try:
        with rclone.serve(tmp_path_factory.mktemp("s3"), host="0.0.0.0") as endpoint:
            yield endpoint
    except CapabilityError as exc:
        missing("s3", str(exc))


@pytest.fixture
def s3(_s3_server: rclone.Endpoint, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> S3:
    """The server, and a bucket of this test's own; the AWS variables are set."""
    bucket = "t-" + tmp_path.name.lower().replace("_", "-").strip("-")[:50]
    (_s3_server.folder / bucket).mkdir(exist_ok=True)
    time.sleep(0.15)  # the server lists its root again after 50 ms (stores/rclone.py); until then the bucket is not there
    for name, value in _s3_server.env.items():
        monkeypatch.setenv(name, value)
    return S3(_s3_server.endpoint_url, bucket, _s3_server.folder, _s3_server.env)


@pytest.fixture(scope="session")
def docker_engine() -> str:
    """The version of the Docker engine that answers."""
    try:
        done = subprocess.run(
            ["docker", "version", "--format", "{{.Server.Version}}"], capture_output=True, timeout=BOUND_S, check=True
        )
    except (OSError, subprocess.SubprocessError):
        missing("docker", "no Docker engine answers (make engine)")
        raise
    return done.stdout.decode().strip()


@pytest.fixture(scope="session")
def loop_root() -> None:
    """Root, and loop devices."""
    if os.geteuid() != 0 or not Path("/dev/loop-control").exists():
        missing("root", "needs root and loop devices")


@dataclass(frozen=True)
class DemoImage:
    """images/demo-llama-cpp, built in the local engine. oci: the same as an OCI layout."""

    reference: str
    digest: str
    oci: Path


@pytest.fixture(scope="session")
def demo_image(docker_engine: str, tmp_path_factory: pytest.TempPathFactory) -> DemoImage:
    """Built once per run; layers that an earlier run built are taken from BuildKit's cache."""
    from builder import pipeline, resources
    from builder.config.load import load

    oci = tmp_path_factory.mktemp("demo-image") / "oci"
    loaded = load(resources.folder("images") / "demo-llama-cpp" / "builder.yaml")
    built = pipeline.build_image(loaded, manifest="", oci=oci)
    return DemoImage(built.reference, built.digest, oci)


@pytest.fixture
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """An image registry of this test's own: plain HTTP, no login. For more see tests/servers/registry.py."""
    try:
        with registries.serve(tmp_path_factory.mktemp("registry")) as served:
            yield served
    except CapabilityError as exc:
        missing("registry", str(exc))
