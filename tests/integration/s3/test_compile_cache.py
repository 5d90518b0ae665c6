"""A compile cache through a real S3 server: captured to it, found by fingerprint, fetched and verified."""

from __future__ import annotations

from pathlib import Path

import pytest

from builder.cli.group import run
from builder.errors import IntegrityError
from builder.runtime import compiled, fingerprint
from builder.runtime.settings import Settings, read
from tests.conftest import S3

MODEL = "sha256:" + "0" * 64


def settings(s3: S3, root: Path, **more: str) -> Settings:
    env = {"COMPILE_CACHE_STORE": f"{s3.url}/caches", "ENDPOINT_URL": s3.endpoint_url, "REGION": "us-east-1"}
    env |= {"COMPILE_CACHE_ROOT": str(root), "COMPILE_CACHE_DIR": "/nowhere", "ENGINE": "vllm"} | more
    return read({f"BUILDER_{name}": value for name, value in env.items()}).named("m")


def capture(s3: S3, root: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        run(["cache", "capture", "--from", str(root), "--store", f"{s3.url}/caches", "--endpoint-url", s3.endpoint_url, "-q"])
    assert not ended.value.code


@pytest.fixture
def warm(s3: S3, tmp_path: Path) -> Settings:
    """What a start that compiled 3 MB left in the store; the root is empty again."""
    root = tmp_path / "root"
    chosen = settings(s3, root)
    assert compiled.install(chosen, fingerprint.here(chosen, "m", MODEL, None)).result == "none"
    (root / "vllm").mkdir()
    (root / "vllm/kernel").write_bytes(b"k" * 3_000_000)
    capture(s3, root)
    root.rename(tmp_path / "first")
    return chosen


def test_it_is_found_by_fingerprint_and_fetched(warm: Settings, tmp_path: Path) -> None:
    done = compiled.install(warm, fingerprint.here(warm, "m", MODEL, None))
    assert (done.result, done.files) == ("hit", 1)
    assert (tmp_path / "root/vllm/kernel").read_bytes() == b"k" * 3_000_000


def test_another_model_s_is_not(warm: Settings, tmp_path: Path) -> None:
    done = compiled.install(warm, fingerprint.here(warm, "m", "sha256:" + "1" * 64, None))
    assert done.result == "differs"
    assert "model: captured with sha256:0000" in done.reason
    assert not (tmp_path / "root/vllm").exists()


def test_a_damaged_chunk_ends_the_start(warm: Settings, s3: S3, tmp_path: Path) -> None:
    chunks = [path for path in (s3.folder / s3.bucket / "caches/chunks").rglob("*") if path.is_file()]
    largest = max(chunks, key=lambda path: path.stat().st_size)
    body = bytearray(largest.read_bytes())
    body[1_000_000] ^= 1
    largest.write_bytes(body)
    with pytest.raises(IntegrityError):
        compiled.install(warm, fingerprint.here(warm, "m", MODEL, None))
    assert not (tmp_path / "root/vllm").exists()
