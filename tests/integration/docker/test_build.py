"""Real builds of images/demo-llama-cpp: it proves itself, holds nothing it must not, and comes out the same twice."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner

from builder import resources
from builder.cli.build import command as build_command
from builder.cli.image import command as image_command
from builder.config import lock
from builder.config.load import Loaded, load
from builder.errors import BuilderError, ClaimError, ConfigError
from builder.image import backends, context, engine, inspect, locked, machine
from builder.image.backends.base import Options
from builder.image.built import BuiltImage
from builder.pipeline import build_image

pytestmark = pytest.mark.docker
DEMO = resources.folder("images") / "demo-llama-cpp"
SYSTEM_CA = Path("/etc/ssl/certs/ca-certificates.crt")


@dataclass(frozen=True)
class Demo:
    """The demo image, built from nothing with a canary in every secret. tag: of this run alone."""

    loaded: Loaded
    built: BuiltImage
    canary: str
    archive: Path
    oci: Path


@pytest.fixture(scope="module")
def demo(docker_engine: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    folder = tmp_path_factory.mktemp("demo")
    canary = "canary-" + uuid.uuid4().hex
    tag = f"builder-test/{canary[:15]}:latest"
    ca = Path(machine.pip_settings().get("cert", SYSTEM_CA))
    (folder / "ca.pem").write_text(f"# {canary}\n{ca.read_text()}")
    text = (DEMO / "builder.yaml").read_text().replace('  python: "3.11"\n', '  python: "3.11"\n  ca_bundle: ca.pem\n')
    (folder / "builder.yaml").write_text(text)
    shutil.copy(DEMO / "requirements.lock", folder)
    loaded = load(folder / "builder.yaml")
    assert loaded.spec.image.ca_bundle
    built = build_image(loaded, tag=tag, no_cache=True, oci=folder / "oci")
    engine.save(tag, folder / "image.tar")
    yield Demo(loaded, built, canary, folder / "image.tar", folder / "oci")
    subprocess.run(["docker", "rmi", "-f", tag], capture_output=True, check=False)


def docker(*args: str) -> str:
    return subprocess.run(["docker", *args], capture_output=True, text=True, check=True).stdout


def inside(reference: str, *command: str) -> str:
    return docker("run", "--rm", "--network=none", "--entrypoint", command[0], reference, *command[1:])


def test_the_image_proves_itself(demo: Demo) -> None:
    run = ["docker", "run", "--rm", "--network=none", "-v", f"{DEMO / 'verify'}:/verify:ro", "--entrypoint", "sh"]
    done = subprocess.run(
        [*run, demo.built.reference, "-eux", "/verify"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_a_read_only_root_and_any_user_of_group_0_will_do(demo: Demo) -> None:
    python = ["-c", "import xllamacpp, pathlib; (pathlib.Path.home() / 'x').touch()"]
    docker(
        *("run", "--rm", "--network=none", "--read-only", "--tmpfs", "/home/app:mode=1777", "--user", "123456:0"),
        *("--entrypoint", "/opt/venv/bin/python", demo.built.reference, *python),
    )


def test_the_configuration_is_what_was_described(demo: Demo) -> None:
    config = json.loads(docker("image", "inspect", demo.built.reference))[0]["Config"]
    assert config["User"] == "10001:0"
    assert config["StopSignal"] == "SIGTERM"
    assert set(config["ExposedPorts"]) == {"8000/tcp", "8001/tcp"}
    assert config["Healthcheck"]["Test"][-2:] == ["probe", "live"]
    assert config["Entrypoint"] == ["/opt/venv/bin/python", "-m", "builder.runtime"]
    env = dict(item.split("=", 1) for item in config["Env"])
    assert env["CUDA_MODULE_LOADING"] == "LAZY"
    assert env["BUILDER_MODEL"] == demo.loaded.spec.name
    assert config["Labels"]["builder.engine"].startswith("llama.cpp ")


def test_no_layer_and_no_history_line_holds_a_secret_or_weights(demo: Demo) -> None:
    assert inspect.scan(demo.archive, also=[demo.canary.encode()]) == []
    assert demo.canary not in docker("history", "--no-trunc", demo.built.reference)
    ca = demo.loaded.path_of("ca.pem").read_text()
    assert demo.canary in ca  # the canary was there to be leaked


def test_no_mount_point_of_the_build_is_left(demo: Demo) -> None:
    look = "ls -d /run/secrets /steps /requirements /wheelhouse 2>/dev/null || true"
    assert inside(demo.built.reference, "sh", "-c", look) == ""


def test_the_oci_layout_has_the_digest_of_the_image(demo: Demo, tmp_path: Path) -> None:
    image_id = json.loads(docker("image", "inspect", demo.built.reference))[0]["Id"]
    assert image_id == demo.built.digest
    index = json.loads((demo.oci / "index.json").read_text())
    assert index["manifests"][0]["digest"] == demo.built.digest
    assert engine.export_oci(demo.built.reference, tmp_path / "again") == demo.built.digest
    assert (tmp_path / "again" / "blobs" / demo.built.digest.replace(":", "/")).is_file()


def test_another_build_from_nothing_has_the_same_digest(demo: Demo) -> None:
    again = build_image(load(DEMO), tag=demo.built.reference + "-again", no_cache=True)
    try:
        assert again.layers == demo.built.layers
        assert again.digest == demo.built.digest
    finally:
        docker("rmi", "-f", again.reference)


def test_report_explains_every_byte(demo: Demo) -> None:
    done = CliRunner().invoke(image_command, ["report", demo.built.reference, "--format", "json"], catch_exceptions=False)
    report = json.loads(done.stdout)
    assert report["digest"] == demo.built.digest
    assert report["packed"] == demo.built.size < 80_000_000
    for total in ("packed", "size"):
        assert sum(row[total] for row in report["causes"]) == report[total]
    engine_row = next(row for row in report["causes"] if row["cause"] == "engine")
    assert engine_row["size"] > 10_000_000
    installed = {row["package"]: row for row in report["installed"]}
    assert installed["xllamacpp"]["kept"] < installed["xllamacpp"]["installed"]
    assert {"symbols", "static archives"} & {row["cause"] for row in report["dropped"]}


def test_build_command_writes_the_lock(demo: Demo, tmp_path: Path) -> None:
    for name in ("builder.yaml", "requirements.lock", "ca.pem"):
        shutil.copy(demo.loaded.folder / name, tmp_path)
    args = ["-f", str(tmp_path / "builder.yaml"), "--tag", demo.built.reference + "-locked", "--format", "json"]
    done = CliRunner().invoke(build_command, args, catch_exceptions=False)
    shown, section = json.loads(done.stdout), lock.section(tmp_path / "builder.lock", "image")
    assert section["digest"] == shown["digest"] == json.loads(docker("image", "inspect", shown["reference"]))[0]["Id"]
    assert re.fullmatch(r"sha256:[0-9a-f]{64}", section["base_digest"])
    docker("rmi", "-f", shown["reference"])
    lock.update(tmp_path / "builder.lock", "image", section | {"base_digest": "sha256:" + "0" * 64})
    with pytest.raises(ConfigError, match=r"builder\.lock pins sha256:0000"):
        CliRunner().invoke(build_command, args, catch_exceptions=False)


def test_an_image_that_fails_its_scan_never_reaches_the_engine(demo: Demo, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scan finds a file that every image holds, as if it were a secret."""
    tag = demo.built.reference + "-dirty"
    finding = inspect.Finding("secret", "layer 1", "planted")
    real = inspect.scan_image
    monkeypatch.setattr(inspect, "scan_image", lambda *a, **k: dataclasses.replace(real(*a, **k), findings=(finding,)))
    with pytest.raises(ClaimError, match="no image may hold"):
        build_image(demo.loaded, tag=tag)
    assert docker("images", "-q", tag) == ""


def derived(demo: Demo, folder: Path, name: str, data: bytes) -> str:
    (folder / name).write_bytes(data)
    (folder / "Dockerfile").write_text(f"FROM {demo.built.reference}\nCOPY {name} /app/{name}\n")
    tag = demo.built.reference + "-planted"
    docker("build", "-q", "-t", tag, str(folder))
    return tag


@pytest.mark.parametrize(("name", "data"), [("settings.txt", b"hf_" + b"a1B2" * 9), ("model.gguf", b"GGUF" + bytes(100))])
def test_scan_finds_what_was_planted(name: str, data: bytes, demo: Demo, tmp_path: Path) -> None:
    tag = derived(demo, tmp_path, name, data)
    try:
        with pytest.raises(ClaimError, match=f"/app/{name}"):
            CliRunner().invoke(image_command, ["scan", tag], catch_exceptions=False)
    finally:
        docker("rmi", "-f", tag)


def test_a_failed_smoke_test_fails_the_build_and_leaves_no_image(demo: Demo, tmp_path: Path) -> None:
    pins = locked.read(demo.loaded.folder, demo.loaded.spec)
    made = context.write(tmp_path / "context", demo.loaded.spec, pins)
    broken = made.folder / "builder" / "runtime" / "__main__.py"
    broken.write_text("raise SystemExit('the runtime cannot start')\n")
    given = machine.gather(demo.loaded, tmp_path)
    tag = demo.built.reference + "-broken"
    with pytest.raises(BuilderError, match=r"(?s)failed in step smoke 1/1.*the runtime cannot start"):
        backends.build(
            backends.find(),
            made.folder,
            reference=tag,
            base="debian:bookworm-slim",
            archive=tmp_path / "i.tar",
            options=Options(given.secrets),
        )
    assert tag not in docker("images", "--format", "{{.Repository}}:{{.Tag}}")
