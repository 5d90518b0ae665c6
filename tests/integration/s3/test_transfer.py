"""The read path against a real S3 server that checks signatures."""

from __future__ import annotations

from typing import Any

import pytest

from builder.errors import IntegrityError, RemoteError
from builder.transfer.check import check_folder, repair_folder
from builder.transfer.manifests import names, read_manifest
from builder.transfer.restore import restore
from builder.transfer.source import Source, list_keys, open_source
from tests.unit.transfer.build import Model, random_model

pytestmark = pytest.mark.s3


@pytest.fixture
def built(s3: Any) -> Model:
    built = random_model(files=2, size=3_000_000, chunk_bytes=500_000)
    built.store(s3.folder / s3.bucket / "models")
    return built


def source(s3: Any) -> Source:
    return open_source(f"{s3.url}/models", endpoint_url=s3.endpoint_url)


def test_a_model_comes_back_byte_for_byte(s3: Any, built: Model, tmp_path: Any) -> None:
    assert names(source(s3)) == ["m"]
    manifest = read_manifest(source(s3))
    report = restore(manifest, source(s3), tmp_path / "m")
    assert built.same(tmp_path / "m")
    assert (report.fetched_chunks, report.fetched_bytes) == (12, 6_000_000)


def test_objects_of_no_and_of_one_byte(s3: Any, built: Model) -> None:
    """Where a range would span the whole object."""
    folder = s3.folder / s3.bucket / "models"
    (folder / "empty").touch()
    (folder / "one").write_bytes(b"1")
    assert source(s3).read("empty", limit=0) == b""
    assert source(s3).read("one", limit=1) == b"1"
    assert source(s3).read("none", limit=1) is None
    assert list_keys(source(s3), "refs/") == ["refs/m", "refs/m@r1"]


def test_a_flipped_byte_in_the_store_is_named_and_the_rest_is_kept(s3: Any, built: Model, tmp_path: Any) -> None:
    chunk = built.manifest.files[1].chunks[2]
    path = s3.folder / s3.bucket / "models" / chunk.key
    good = path.read_bytes()
    path.write_bytes(good[:1000] + bytes([good[1000] ^ 1]) + good[1001:])
    with pytest.raises(IntegrityError, match=r"part-1\.safetensors, tensors layers\.2\.w, bytes \[1000000, 1500000\)"):
        restore(built.manifest, source(s3), tmp_path / "m")
    assert not (tmp_path / "m").exists()
    path.write_bytes(good)
    assert restore(built.manifest, source(s3), tmp_path / "m").fetched_chunks == 1
    assert built.same(tmp_path / "m")


def test_a_damaged_folder_is_mended_from_the_store(s3: Any, built: Model, tmp_path: Any) -> None:
    restore(built.manifest, source(s3), tmp_path / "m")
    with (tmp_path / "m/part-0.safetensors").open("r+b") as file:
        file.seek(1_234_567)
        file.write(b"wrong")
    (fault,) = check_folder(tmp_path / "m")
    assert (fault.start, fault.end) == (1_000_000, 1_500_000)
    assert repair_folder(tmp_path / "m", source(s3)).fetched_bytes == 500_000
    assert built.same(tmp_path / "m")


def test_wrong_credentials_are_said_at_once(s3: Any, built: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-secret-key")
    with pytest.raises(RemoteError, match="403 SignatureDoesNotMatch") as caught:
        read_manifest(source(s3))
    assert caught.value.where["tries"] == 1
    assert caught.value.hint == "check the secret key"
    assert "not-the-secret-key" not in f"{caught.value.message}{caught.value.hint}{caught.value.where}"


def test_a_credential_provider_is_asked(s3: Any, built: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {"access_key_id": s3.env["AWS_ACCESS_KEY_ID"], "secret_access_key": s3.env["AWS_SECRET_ACCESS_KEY"]}
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    given = open_source(f"{s3.url}/models", endpoint_url=s3.endpoint_url, credentials=lambda: {**keys, "expires_at": None})
    assert read_manifest(given).digest == built.manifest.digest


def test_a_bucket_that_is_not_there_is_not_an_empty_store(s3: Any) -> None:
    with pytest.raises(RemoteError, match="NoSuchBucket") as caught:
        open_source("s3://nowhere/models", endpoint_url=s3.endpoint_url).read("refs/m", limit=10)
    assert "bucket" in caught.value.hint
