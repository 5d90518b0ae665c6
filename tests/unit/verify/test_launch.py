"""What a server is given, and what nobody gets to see."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from builder.config.spec import Serve, Spec
from builder.errors import CapabilityError
from builder.format.volume import MARKER
from builder.verify import launch as launching
from builder.verify.launch import Launch, is_loopback, redact, store_environment, whole_environment, with_host

DIGEST = "sha256:" + "a1" * 32
SPEC = Spec.model_validate(
    {
        "version": 1,
        "name": "demo",
        "model": {"source": "m.gguf"},
        "weights": {"store": "s3://bucket/x", "endpoint_url": "http://127.0.0.1:9000", "region": "eu-central-1"},
        "image": {"repository": "demo", "engine": {"name": "llama.cpp", "version": "1.0"}, "env": {"THREADS": "2"}},
        "serve": {"args": ("--ctx-size", "512"), "warmup": {"batch": (1, 4), "tokens": (16,)}, "queue": False},
    }
)
ENVIRON = {"AWS_SECRET_ACCESS_KEY": "s3cr3t-key", "AWS_REGION": "eu", "HOME": "/root", "GITHUB_TOKEN": "not-for-the-server"}


def made(**changes: object) -> Launch:
    base = {"name": "demo", "manifest": DIGEST, "store": "s3://bucket/x", "environ": ENVIRON, **changes}
    return launching.of(SPEC, **base)  # type: ignore[arg-type]


def test_an_image_is_told_where_its_weights_are_and_nothing_else() -> None:
    assert store_environment(made()) == {
        "AWS_SECRET_ACCESS_KEY": "s3cr3t-key",
        "AWS_REGION": "eu",
        "BUILDER_STORE": "s3://bucket/x",
        "BUILDER_MODEL": DIGEST,
        "BUILDER_ENDPOINT_URL": "http://127.0.0.1:9000",
        "BUILDER_REGION": "eu-central-1",
    }


def test_in_place_gets_what_the_image_would_hold() -> None:
    env = whole_environment(made(), port=1, control_port=2, models_root="/m")
    assert json.loads(env["BUILDER_ENGINE_ARGS"]) == ["--ctx-size", "512"]
    assert (env["BUILDER_WARMUP_BATCH"], env["BUILDER_WARMUP_TOKENS"], env["BUILDER_QUEUE"]) == ("1,4", "16", "0")
    assert (env["CUDA_MODULE_LOADING"], env["BUILDER_ENGINE"]) == ("LAZY", "llama.cpp")


def test_the_runtime_accepts_what_in_place_gives() -> None:
    from builder.runtime import settings

    env = whole_environment(made(), port=8100, control_port=8101, models_root="/m")
    found = settings.read(env)
    assert (found.port, found.model, found.engine_args) == (8100, DIGEST, ("--ctx-size", "512"))


def test_credentials_are_neither_shown_nor_kept_in_text() -> None:
    one = made()
    assert "s3cr3t-key" not in repr(one)
    assert redact("using s3cr3t-key now, in eu", one) == "using *** now, in eu"


def test_short_values_stay_readable() -> None:
    assert redact("a b c", Launch("m", DIGEST, "s", "e", env={"API_KEY": "b"})) == "a b c"


@pytest.mark.parametrize(
    ("url", "there"),
    [("http://127.0.0.1:9000", True), ("http://localhost/x", True), ("http://[::1]:1", True), ("http://10.0.0.1", False),
     ("https://s3.eu-west-1.amazonaws.com", False), (None, False)],
)  # fmt: skip
def test_loopback(url: str | None, there: bool) -> None:
    assert is_loopback(url) is there


def test_only_loopback_endpoints_are_moved() -> None:
    assert with_host(made(), "host.docker.internal").endpoint_url == "http://host.docker.internal:9000"
    http = Launch("m", DIGEST, "http://localhost:1/a", "e", serve=Serve())
    assert with_host(http, "gate").store == "http://gate:1/a"
    far = Launch("m", DIGEST, "s3://b", "e", endpoint_url="https://r2.example.com")
    assert with_host(far, "gate") == far


def test_a_models_root_without_the_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CapabilityError, match="holds no complete model"):
        made(models=tmp_path)
    folder = tmp_path / ("a1" * 32)
    (folder / ".builder").mkdir(parents=True)
    (folder / MARKER).write_text(DIGEST + "\n")
    assert made(models=tmp_path).models == str(tmp_path)
