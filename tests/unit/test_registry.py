"""The registry that other tests use is a real one, and strict: it refuses what a registry refuses."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from builder.errors import CapabilityError
from tests.conftest import missing
from tests.oci import write_layout
from tests.servers import registry as registries
from tests.servers.registry import Registry


def test_what_is_pushed_comes_back_under_its_digest(registry: Registry, tmp_path: Path) -> None:
    digest = write_layout(tmp_path / "layout")
    assert registry.push(tmp_path / "layout", "llm/tiny", "v1") == digest
    found, manifest = registry.manifest("llm/tiny", "v1")
    assert found == digest
    assert [len(registry.blob("llm/tiny", layer["digest"])) for layer in manifest["layers"]] == [
        layer["size"] for layer in manifest["layers"]
    ]
    assert registry.tags("llm/tiny") == ["v1"]
    assert registry.tags("llm/other") == []
    assert ("PUT", "/v2/llm/tiny/manifests/v1", 201) in registry.requests()


def test_a_damaged_body_is_refused(registry: Registry, tmp_path: Path) -> None:
    write_layout(tmp_path / "layout")
    blob = max((tmp_path / "layout" / "blobs" / "sha256").iterdir(), key=lambda p: p.stat().st_size)
    blob.write_bytes(blob.read_bytes()[:-1] + b"?")
    with pytest.raises(AssertionError, match="status 400"):
        registry.push(tmp_path / "layout", "llm/tiny", "v1")
    assert registry.tags("llm/tiny") == []


def test_what_it_keeps_lies_in_files_and_outlives_it(tmp_path: Path) -> None:
    digest = write_layout(tmp_path / "layout")
    with _serve(tmp_path / "registry") as first:
        first.push(tmp_path / "layout", "llm/tiny", "v1")
        assert first.blob_path(digest).is_file()
    with _serve(tmp_path / "registry", read_only=True) as second:
        assert second.manifest("llm/tiny", "v1")[0] == digest
        assert second.ask("POST", "llm/tiny/blobs/uploads/", b"").status == 405


def test_a_login_and_a_certificate_are_asked_for(tmp_path: Path) -> None:
    write_layout(tmp_path / "layout")
    with _serve(tmp_path / "registry", users={"ci": "pass word"}, tls=True) as registry:
        assert registry.url.startswith("https://")
        assert registry.ask("GET", "", login=False).status == 401
        registry.push(tmp_path / "layout", "llm/tiny", "v1")
        curl = ["curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", "--noproxy", "*", f"{registry.url}/v2/"]
        assert subprocess.run(curl, capture_output=True, check=False).returncode == 60  # no trust in its certificate
        said = subprocess.run([*curl, "--cacert", str(registry.ca)], capture_output=True, text=True, check=True)
        assert said.stdout == "401"


def _serve(folder: Path, **options: object):  # type: ignore[no-untyped-def]  # a context manager, or a skip
    try:
        for program, package in (("docker-registry", ""), ("htpasswd", "apache2-utils")):
            registries.process.need(program, package)
    except CapabilityError as exc:
        missing("registry", str(exc))
    return registries.serve(folder, **options)  # type: ignore[arg-type]
