"""Stores that are only read: GCS and Azure by their own protocols, through obstore, and any web server."""

from __future__ import annotations

import hashlib
import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from builder.errors import CapabilityError
from builder.stores.directory import DirectoryStore
from builder.transfer.source import open_source
from tests.conftest import missing
from tests.integration.s3.faulty import cli, good, push_small, same
from tests.models import safetensors_model
from tests.servers.clouds import BUCKET, Cloud, serve
from tests.servers.proxy import FaultProxy, first_times


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return safetensors_model(tmp_path_factory.mktemp("m") / "model", layers=2, hidden=64, vocab=512, shards=2)


@pytest.fixture(scope="module")
def store(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models in one store: `m`, and `other`, which differs in its config."""
    root = tmp_path_factory.mktemp("store")
    push_small(model, DirectoryStore(root), name="other")
    config = model / "config.json"
    was = config.read_text()
    config.write_text(json.dumps({**json.loads(was), "of": "m"}))
    push_small(model, DirectoryStore(root), name="m")
    return root


@pytest.fixture(scope="module", params=["gs", "az", "http"])
def cloud(request: pytest.FixtureRequest, store: Path) -> Iterator[Cloud]:
    try:
        with serve(request.param, store) as cloud:
            yield cloud
    except CapabilityError as exc:
        missing("azurite" if request.param == "az" else "s3", exc.message)


def test_a_model_comes_back_byte_for_byte(cloud: Cloud, model: Path, tmp_path: Path) -> None:
    report = good("pull", "m", "--to", tmp_path / "out", *cloud.options, env=dict(cloud.env))
    assert report["fetched_chunks"] > 10
    assert same(model, tmp_path / "out")


def test_what_only_reads_works(cloud: Cloud, store: Path, tmp_path: Path) -> None:
    env = dict(cloud.env)
    report = good("verify", "m", *cloud.options, env=env)
    assert report["ok"]
    assert report["by_digest"] == report["chunks"]
    assert good("verify", "m", "--remote", *cloud.options, env=env)["by_size"] == report["chunks"]
    assert good("diff", "m", "other", *cloud.options, env=env)["name"] == "other"
    copied = good("copy", "m", "--to-store", tmp_path / "copy", *cloud.options, env=env)
    assert (copied["sent_chunks"], copied["guarded"]) == (report["chunks"], False)
    assert good("verify", "m", "--store", tmp_path / "copy")["ok"]
    assert (tmp_path / "copy/refs/m").read_bytes() == (store / "refs/m").read_bytes()


def test_the_models_are_listed_where_the_server_lists(cloud: Cloud) -> None:
    ended = cli("ls", *cloud.options, env=dict(cloud.env))
    if cloud.url.startswith("http"):
        assert (ended.code, ended.error["hint"]) == (2, "name the model: NAME or NAME@TAG")
    else:
        assert {entry["ref"] for entry in ended.data["models"]} == {"m", "other"}


def test_a_push_is_refused_before_anything_is_read(cloud: Cloud, tmp_path: Path) -> None:
    ended = cli("push", tmp_path / "nothing", *cloud.options, env=dict(cloud.env))
    assert ended.code == 2
    assert "cannot be written" in ended.error["message"]


def test_what_is_not_there_is_named(cloud: Cloud, tmp_path: Path) -> None:
    ended = cli("pull", "none", "--to", tmp_path / "out", *cloud.options, env=dict(cloud.env))
    assert ended.code == 3
    assert "no model 'none'" in ended.error["message"]
    if not cloud.url.startswith("http"):
        elsewhere = cloud.url.replace(BUCKET, "no-such-bucket")
        ended = cli("pull", "m", "--to", tmp_path / "out", "--store", elsewhere, *cloud.options[2:], env=dict(cloud.env))
        assert ended.code == 5, ended.data
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("fault", ["busy", "cut", "flip"])
def test_a_pull_finishes_where_every_object_fails_once(cloud: Cloud, model: Path, tmp_path: Path, fault: str) -> None:
    with FaultProxy(cloud.server, plan=first_times(fault)) as proxy:
        good("pull", "m", "--to", tmp_path / "out", *cloud.through(proxy.endpoint_url).options, env=dict(cloud.env))
    assert proxy.failed[fault] > 0
    assert same(model, tmp_path / "out")


def test_a_damaged_object_is_named_and_nothing_is_visible(cloud: Cloud, store: Path, tmp_path: Path) -> None:
    chunk = max((store / "chunks").rglob("*"), key=lambda p: p.stat().st_size if p.is_file() else 0)
    name = hashlib.sha256(chunk.read_bytes()).hexdigest()
    with FaultProxy(cloud.server, plan=lambda asked: "flip" if name in asked.key else "") as proxy:
        ended = cli("pull", "m", "--to", tmp_path / "out", *cloud.through(proxy.endpoint_url).options, env=dict(cloud.env))
    assert ended.code == 3
    assert name in ended.error["message"]
    assert not (tmp_path / "out").exists()


def test_a_small_object_takes_little_memory_whatever_the_limit(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in cloud.env.items():
        monkeypatch.setenv(name, value)
    source = open_source(cloud.url, endpoint_url=cloud.endpoint_url or None)
    source.read("refs/m", limit=256)  # what is loaded at the first use
    tracemalloc.start()
    try:
        body = source.read("refs/m", limit=1 << 30)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert body is not None
    assert bytes(body).startswith(b"sha256:")
    assert peak < 4 << 20
