"""The SBOM of a real image against what dpkg and Python say inside it; and of one that a later layer took things from."""

from __future__ import annotations

import json
import re
import subprocess
import uuid
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from builder import resources
from builder.cli.image import command as image_command
from builder.config.load import load
from builder.image import attest, engine, locked
from builder.image.lock import Lock, normal
from tests.conftest import DemoImage

pytestmark = pytest.mark.docker
SITE = "/opt/venv/lib/python3.11/site-packages"


@pytest.fixture(scope="module")
def lock() -> Lock:
    loaded = load(resources.folder("images") / "demo-llama-cpp" / "builder.yaml")
    return locked.read(loaded.folder, loaded.spec)


def inside(reference: str, *command: str) -> str:
    words = ["docker", "run", "--rm", "--network=none", f"--entrypoint={command[0]}", reference, *command[1:]]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout


def components(sbom: str, kind: str) -> dict[str, dict[str, Any]]:
    return {one["name"]: one for one in json.loads(sbom)["components"] if one.get("purl", "").startswith(f"pkg:{kind}/")}


def properties(component: dict[str, Any]) -> dict[str, str]:
    return {one["name"].removeprefix("builder:"): one["value"] for one in component["properties"]}


def test_it_says_what_dpkg_and_python_say_inside(demo_image: DemoImage, lock: Lock) -> None:
    found = attest.describe(demo_image.oci, demo_image.reference, lock=lock)
    assert found.digest == demo_image.digest
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(found.sbom) is None

    fields = "${Package} ${Version} ${Architecture} ${source:Package} ${source:Version}\n"
    told = [line.split() for line in inside(demo_image.reference, "dpkg-query", "-Wf", fields).splitlines()]
    debs = components(found.sbom, "deb")
    said = [
        [name, one["version"], one["purl"].partition("?arch=")[2].partition("&")[0],
         properties(one)["deb:source"], properties(one)["deb:source-version"]]
        for name, one in debs.items()
    ]  # fmt: skip
    assert sorted(said) == sorted(told)

    program = "import importlib.metadata as m\nfor d in m.distributions(): print(d.metadata['Name'], d.version)"
    told = [line.split() for line in inside(demo_image.reference, "/opt/venv/bin/python", "-c", program).splitlines()]
    told = [[normal(name), version] for name, version in told]
    wheels = components(found.sbom, "pypi")
    assert sorted([name, one["version"]] for name, one in wheels.items()) == sorted(told)
    assert {name: one["hashes"][0]["content"] for name, one in wheels.items()} == {w.name: w.sha256[0] for w in lock.wheels}
    assert found.mismatches == ()


def test_every_file_is_accounted_for_or_named(demo_image: DemoImage) -> None:
    """What is left over is state and settings: no program and no library."""
    found = attest.describe(demo_image.oci)
    named = [
        one["value"] for one in json.loads(found.sbom)["metadata"]["component"]["properties"] if "unowned:file" in one["name"]
    ]
    assert len(named) == found.unowned > 0
    assert all(
        path.startswith(("etc/", "var/", "root/", "opt/venv/", "usr/share/", "usr/lib/python3.11/__pycache__/"))
        for path in named
    )
    assert not [path for path in named if re.search(r"\.so(\.\d|$)", path) or path.startswith(("usr/bin/", "usr/sbin/"))]


def test_an_archive_the_layout_and_the_engine_give_the_same_bytes(demo_image: DemoImage, tmp_path: Path) -> None:
    engine.save(demo_image.reference, tmp_path / "image.tar")
    said = [
        CliRunner().invoke(image_command, ["sbom", place, "-q"], standalone_mode=False, catch_exceptions=False).stdout
        for place in (str(tmp_path / "image.tar"), str(demo_image.oci), demo_image.reference)
    ]
    assert said[0] == said[1] == said[2]
    assert json.loads(said[0])["metadata"]["component"]["name"] == f"docker.io/{demo_image.reference.rpartition(':')[0]}"


@pytest.fixture(scope="module")
def changed(demo_image: DemoImage, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A layer above: a wheel's record gone, a Debian package removed, a folder replaced, a file from nowhere."""
    tag, folder = f"builder-test/attest-{uuid.uuid4().hex[:12]}:latest", tmp_path_factory.mktemp("changed")
    steps = f"rm -r {SITE}/xllamacpp-*.dist-info && dpkg --purge --force-depends tzdata && rm -r /usr/share/doc/zlib1g"
    steps += " && mkdir /usr/share/doc/zlib1g && echo x >/srv/alien"
    (folder / "Dockerfile").write_text(f"FROM {demo_image.reference}\nUSER 0\nRUN {steps}\n")
    subprocess.run(["docker", "build", "-q", "--network=none", "-t", tag, folder], capture_output=True, check=True)
    try:
        engine.export_oci(tag, folder / "oci")
    finally:
        subprocess.run(["docker", "rmi", "-f", tag], capture_output=True, check=False)
    return folder / "oci"


def test_what_a_later_layer_removed_is_gone_and_what_it_added_is_named(
    changed: Path, demo_image: DemoImage, lock: Lock
) -> None:
    before, found = attest.describe(demo_image.oci), attest.describe(changed, lock=lock)
    assert components(before.sbom, "deb").keys() - components(found.sbom, "deb").keys() == {"tzdata"}
    assert [str(one) for one in found.mismatches] == ["xllamacpp 2026.10.11549 is in the lock, not in the image"]
    named = {one["value"] for one in json.loads(found.sbom)["metadata"]["component"]["properties"]}
    assert "srv/alien" in named
    assert any(path.startswith(f"{SITE[1:]}/xllamacpp/") for path in named)  # files whose record is gone are nobody's
    assert "licenses" in components(before.sbom, "deb")["zlib1g"]
    assert "licenses" not in components(found.sbom, "deb")["zlib1g"]
