"""One suite for every store, and what only S3 can get wrong."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from builder.errors import ConfigError, IntegrityError, RemoteError
from builder.stores import s3 as s3_module
from builder.stores.base import Store
from builder.stores.directory import DirectoryStore
from builder.stores.open import open_store
from builder.stores.s3 import S3Store
from builder.transfer.checksum import crc64nvme_hex
from tests.conftest import S3
from tests.unit.weights.build import push

DATA = b"0123456789" * 1000


def digests(data: bytes) -> dict[str, str]:
    return {"sha256": hashlib.sha256(data).hexdigest(), "crc64nvme": crc64nvme_hex(data)}


@pytest.fixture(params=["directory", pytest.param("s3", marks=pytest.mark.s3)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "directory":
        return DirectoryStore(tmp_path / "store")
    s3: S3 = request.getfixturevalue("s3")
    return S3Store(f"{s3.url}/some/prefix", endpoint_url=s3.endpoint_url)


def test_what_was_put_is_there(store: Store) -> None:
    assert store.size("a/b") is None
    assert store.get("a/b", 10) is None
    store.put("a/b", DATA, **digests(DATA))
    assert store.size("a/b") == len(DATA)
    assert store.get("a/b", len(DATA)) == DATA
    found = store.stat("a/b")
    assert found is not None
    assert found.size == len(DATA)
    assert found.sha256 in ("", hashlib.sha256(DATA).hexdigest())
    assert found.crc64nvme in ("", crc64nvme_hex(DATA))


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_every_kind_of_buffer(store: Store, kind: type) -> None:
    store.put("k", kind(DATA), **digests(DATA))
    assert store.get("k", len(DATA)) == DATA


def test_an_empty_object(store: Store) -> None:
    store.put("k", b"", **digests(b""))
    assert store.size("k") == 0
    assert store.get("k", 0) == b""


def test_put_never_overwrites(store: Store) -> None:
    store.put("k", DATA, **digests(DATA))
    other = DATA[::-1]
    store.put("k", other, **digests(other))
    assert store.get("k", len(DATA)) == DATA
    with pytest.raises(IntegrityError, match=r"the store has 10000 bytes there, expected 5") as caught:
        store.put("k", b"short", **digests(b"short"))
    assert caught.value.where["object"] == "k"
    assert "repair" in caught.value.hint
    assert store.get("k", len(DATA)) == DATA


def test_replace_does(store: Store) -> None:
    store.put("k", DATA, **digests(DATA))
    store.replace("k", b"new", **digests(b"new"))
    assert store.get("k", 3) == b"new"


def test_an_object_above_the_limit_is_refused(store: Store) -> None:
    store.put("k", DATA, **digests(DATA))
    with pytest.raises(IntegrityError, match="has 10000 bytes, expected at most 9999"):
        store.get("k", len(DATA) - 1)


def test_keys_are_sorted_and_start_with_the_prefix(store: Store) -> None:
    for key in ("refs/b", "refs/a", "refs2/c", "chunks/x/y", "chunks/x/z"):
        store.put(key, key.encode(), **digests(key.encode()))
    assert list(store.keys("refs/")) == [("refs/a", 6), ("refs/b", 6)]
    assert [k for k, _ in store.keys("chunks/")] == ["chunks/x/y", "chunks/x/z"]
    assert [k for k, _ in store.keys("")] == ["chunks/x/y", "chunks/x/z", "refs/a", "refs/b", "refs2/c"]
    assert list(store.keys("nothing/")) == []


def test_delete(store: Store) -> None:
    store.put("k", DATA, **digests(DATA))
    store.delete("k")
    store.delete("k")
    assert store.size("k") is None


def test_upload_takes_size_bytes_from_where_the_file_stands(store: Store) -> None:
    file = io.BytesIO(b"head" + DATA + b"tail")
    file.seek(4)
    store.upload("k", file, len(DATA))
    assert store.get("k", len(DATA)) == DATA


def test_a_short_upload_leaves_nothing(store: Store) -> None:
    with pytest.raises(IntegrityError, match="the source ended after 10000 of 10001 bytes"):
        store.upload("k", io.BytesIO(DATA), len(DATA) + 1)
    assert store.size("k") is None
    assert list(store.keys("")) == []


def test_puts_from_many_threads(store: Store) -> None:
    """Each its own key, as in push, which sends equal chunks once."""

    def put(n: int) -> None:
        body = str(n % 10).encode() * 100_000
        store.put(f"chunks/{n:02d}", body, **digests(body))

    threads = [threading.Thread(target=put, args=(n,)) for n in range(16)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert [size for _, size in store.keys("chunks/")] == [100_000] * 16
    assert all(store.get(f"chunks/{n:02d}", 100_000) == str(n % 10).encode() * 100_000 for n in range(16))


def test_the_source_reads_the_same(store: Store) -> None:
    store.put("a/b", DATA, **digests(DATA))
    source = store.source()
    body = source.read("a/b", limit=len(DATA))
    assert body is not None
    assert bytes(body) == DATA
    assert source.read("a/c", limit=1) is None


# Only S3


@pytest.fixture
def bucket(s3: S3) -> S3Store:
    return S3Store(s3.url, endpoint_url=s3.endpoint_url, attempts=1)


@pytest.mark.s3
def test_the_checksum_leaves_with_the_request_and_is_signed(bucket: S3Store) -> None:
    sent: list[dict[str, str]] = []
    bucket._client.meta.events.register("before-send.s3.PutObject", lambda request, **_: sent.append(dict(request.headers)))
    bucket.put("k", DATA, **digests(DATA))
    headers = {k.lower(): v.decode() if isinstance(v, bytes) else str(v) for k, v in sent[0].items()}
    assert bytes.fromhex(hashlib.sha256(DATA).hexdigest()) == base64.b64decode(headers["x-amz-checksum-sha256"])
    assert "x-amz-checksum-sha256" in headers["authorization"]
    assert headers["x-amz-content-sha256"] == "UNSIGNED-PAYLOAD"
    assert headers["if-none-match"] == "*"


@pytest.mark.s3
def test_wrong_secret(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    store = S3Store(s3.url, endpoint_url=s3.endpoint_url)
    with pytest.raises(RemoteError, match=f"\\A{s3.url}: 403 SignatureDoesNotMatch\\Z") as caught:
        store.size("k")
    assert "SECRET" in caught.value.hint
    with pytest.raises(RemoteError, match="SignatureDoesNotMatch") as caught:
        list(store.keys(""))
    assert caught.value.exit_code == 5


@pytest.mark.s3
def test_wrong_access_key(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    with pytest.raises(RemoteError) as caught:
        list(S3Store(s3.url, endpoint_url=s3.endpoint_url).keys(""))
    assert caught.value.where["status"] == 403


def test_no_credentials() -> None:
    with pytest.raises(RemoteError, match="no AWS credentials"):
        S3Store("s3://bucket", endpoint_url="http://127.0.0.1:9").size("k")


@pytest.mark.s3
def test_no_such_bucket(s3: S3) -> None:
    store = S3Store("s3://no-such-bucket/x", endpoint_url=s3.endpoint_url)
    with pytest.raises(RemoteError, match="NoSuchBucket") as caught:
        store.put("k", DATA, **digests(DATA))
    assert "bucket" in caught.value.hint


@pytest.mark.s3
@pytest.mark.parametrize("dry_run", [True, False])
def test_push_says_why_before_it_reads(s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dry_run: bool) -> None:
    (tmp_path / "m.bin").write_bytes(DATA)
    source = tmp_path / "m.bin"
    with pytest.raises(RemoteError, match=r"\As3://nobkt: 404 NoSuchBucket\Z") as caught:
        push(source, S3Store("s3://nobkt", endpoint_url=s3.endpoint_url), dry_run=dry_run)
    assert caught.value.hint.startswith("make the bucket")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(RemoteError, match=f"\\A{s3.url}: 403 SignatureDoesNotMatch\\Z"):
        push(source, S3Store(s3.url, endpoint_url=s3.endpoint_url), dry_run=dry_run)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    with pytest.raises(RemoteError, match=f"\\A{s3.url}: 403 InvalidAccessKeyId\\Z"):
        push(source, S3Store(s3.url, endpoint_url=s3.endpoint_url), dry_run=dry_run)


@pytest.mark.s3
def test_pages_are_followed(bucket: S3Store) -> None:
    for n in range(5):
        bucket.put(f"refs/{n}", b"x", **digests(b"x"))
    bucket._client.meta.events.register("before-parameter-build.s3.ListObjectsV2", lambda params, **_: params.update(MaxKeys=2))
    assert bucket.size("refs/0") == 1  # answered once: from now on with the patient client
    assert [key for key, _ in bucket.keys("refs/")] == [f"refs/{n}" for n in range(5)]


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")


@pytest.mark.usefixtures("keys")
def test_unreachable() -> None:
    with pytest.raises(RemoteError, match="Could not connect") as caught:
        S3Store("s3://bucket", endpoint_url="http://127.0.0.1:9", attempts=2).size("k")
    assert "127.0.0.1:9" in caught.value.hint


@pytest.fixture
def deaf() -> Iterator[str]:
    """A server that takes connections and closes them."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def close() -> None:
            while True:
                try:
                    server.accept()[0].close()
                except OSError:
                    return

        thread = threading.Thread(target=close, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


@pytest.mark.usefixtures("keys")
def test_a_server_that_hangs_up(deaf: str) -> None:
    with pytest.raises(RemoteError):
        S3Store("s3://bucket", endpoint_url=deaf, attempts=2).put("k", DATA, **digests(DATA))


@pytest.fixture
def silent() -> Iterator[str]:
    """A server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.usefixtures("keys")
def test_the_first_request_does_not_wait_long_for_a_silent_server(silent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert s3_module.FIRST_ATTEMPTS * (s3_module.FIRST_SILENCE_S + 1) < 45  # the pause between two is below a second
    monkeypatch.setattr(s3_module, "FIRST_SILENCE_S", 1)
    start = time.monotonic()
    with pytest.raises(RemoteError, match="Read timeout") as caught:
        list(S3Store("s3://bucket", endpoint_url=silent).keys("refs/"))
    assert time.monotonic() - start < 40
    assert silent in caught.value.hint


@pytest.mark.usefixtures("keys")
def test_checksums_follow_the_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    aws, other = S3Store("s3://bucket", region="eu-west-1"), S3Store("s3://bucket", endpoint_url="http://127.0.0.1:9")
    assert (aws.endpoint_url, other.endpoint_url) == (None, "http://127.0.0.1:9")
    assert aws._client.meta.config.request_checksum_calculation == "when_supported"
    assert aws._client.meta.config.response_checksum_validation == "when_supported"
    assert other._client.meta.config.request_checksum_calculation == "when_required"
    assert other._client.meta.config.response_checksum_validation == "when_required"
    assert aws._client.meta.region_name == "eu-west-1"
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    assert S3Store("s3://bucket").endpoint_url == "http://127.0.0.1:9"


@pytest.mark.parametrize("url", ["s3://", "s3:///x", "s3://key:secret@bucket/x", "s3://bucket/x?versionId=1"])
def test_urls_that_are_none(url: str) -> None:
    with pytest.raises(ConfigError, match="expected s3://bucket/prefix") as caught:
        S3Store(url)
    assert "secret" not in caught.value.message


def test_open_store_tells_them_apart(tmp_path: Path) -> None:
    assert isinstance(open_store(str(tmp_path)), DirectoryStore)
    assert isinstance(open_store("s3://bucket", region="us-east-1"), S3Store)
    assert open_store("null:").size("x") is None
    with pytest.raises(ConfigError, match="cannot be written"):
        open_store("gs://bucket")
    assert not os.listdir(tmp_path)  # noqa: PTH208  # opening makes nothing
