"""`builder build --push --sign --attest` as CI runs it, against a real registry, and what a cluster's policy then verifies."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from builder import process, resources
from tests.conftest import DemoImage, missing
from tests.servers.registry import Registry

pytestmark = pytest.mark.docker
PASSPHRASE = "four words of passphrase"


def builder(*words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from builder.cli import main; main()", *words, "--format", "json"]
    return subprocess.run(command, env=os.environ | environ, capture_output=True, text=True, check=False)


@pytest.fixture
def folder(tmp_path: Path, demo_image: DemoImage) -> Path:
    """The demo's description; its layers are in the cache."""
    shutil.copytree(
        resources.folder("images") / "demo-llama-cpp",
        tmp_path / "demo",
        ignore=shutil.ignore_patterns("verify", "builder.lock"),
    )
    return tmp_path / "demo"


def test_a_build_is_described_pushed_and_signed(registry: Registry, folder: Path, tmp_path: Path) -> None:
    if process.which("cosign") is None:
        missing("cosign", "cosign is not installed")
    secret = os.environ | {"COSIGN_PASSWORD": PASSPHRASE}
    subprocess.run(["cosign", "generate-key-pair"], cwd=tmp_path, env=secret, capture_output=True, check=True)
    name = registry.reference("llm/demo", "v1")
    asked = ["build", "-f", str(folder / "builder.yaml"), "--tag", name, "--push"]
    done = builder(
        *asked, "--sign", str(tmp_path / "cosign.key"), "--attest", str(tmp_path / "said"), COSIGN_PASSWORD=PASSPHRASE
    )
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    assert shown["pushed"] == shown["digest"]
    assert PASSPHRASE not in done.stdout + done.stderr

    sbom = json.loads((tmp_path / "said" / "sbom.cdx.json").read_text())
    assert {"xllamacpp", "awscrt", "libc6"} <= {one["name"] for one in sbom["components"]}
    statement = json.loads((tmp_path / "said" / "provenance.intoto.json").read_text())
    assert statement["subject"][0]["digest"]["sha256"] == shown["digest"].removeprefix("sha256:")
    inputs = statement["predicate"]["buildDefinition"]["resolvedDependencies"]
    assert next(one for one in inputs if one["name"] == "base")["digest"]["sha256"] == shown["base_digest"].removeprefix(
        "sha256:"
    )

    reference = registry.reference("llm/demo", shown["digest"])
    for verb in (["verify"], ["verify-attestation", "--type=cyclonedx"], ["verify-attestation", "--type=slsaprovenance1"]):
        command = ["cosign", *verb, f"--key={tmp_path}/cosign.pub", "--insecure-ignore-tlog", reference]
        said = subprocess.run(command, capture_output=True, text=True, check=False)
        assert said.returncode == 0, said.stderr


def test_what_cannot_be_signed_is_not_built_and_not_pushed(registry: Registry, folder: Path, tmp_path: Path) -> None:
    name = registry.reference("llm/unsigned", "v1")
    asked = ["build", "-f", str(folder / "builder.yaml"), "--tag", name, "--push"]
    done = builder(*asked, "--sign", str(tmp_path / "no.key"))
    assert done.returncode == 2
    assert "no such key file" in json.loads(done.stdout)["error"]["message"]
    assert registry.tags("llm/unsigned") == []
    done = builder(*asked[:-1], "--sign", str(tmp_path / "no.key"))
    assert done.returncode == 2
    assert "--push" in json.loads(done.stdout)["error"]["hint"]


def test_the_same_inputs_are_not_built_twice_and_still_pushed(registry: Registry, folder: Path, tmp_path: Path) -> None:
    name = registry.reference("llm/demo", "same")
    asked = ["build", "-f", str(folder / "builder.yaml"), "--tag", name]
    first = json.loads(builder(*asked, XDG_CACHE_HOME=str(tmp_path)).stdout)
    second = json.loads(builder(*asked, "--push", XDG_CACHE_HOME=str(tmp_path)).stdout)
    assert (first["unchanged"], second["unchanged"]) == (False, True)
    assert second["pushed"] == first["digest"] == second["digest"]
    text = (folder / "builder.yaml").read_text()
    (folder / "builder.yaml").write_text(text.replace("image:\n", "image:\n  env: {A: b}\n", 1))
    third = json.loads(builder(*asked, XDG_CACHE_HOME=str(tmp_path)).stdout)
    assert not third["unchanged"]
    assert third["digest"] != first["digest"]
    (folder / "builder.yaml").write_text(text + "  budget: {image_size: 1MiB}\n")
    done = builder(*asked, XDG_CACHE_HOME=str(tmp_path))
    assert done.returncode == 6, done.stdout
    subprocess.run(["docker", "rmi", "-f", name], capture_output=True, check=False)
