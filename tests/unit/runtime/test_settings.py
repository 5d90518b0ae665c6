from __future__ import annotations

from pathlib import Path

import pytest

from builder.errors import ConfigError
from builder.runtime import settings


def test_an_empty_environment_gives_the_defaults() -> None:
    read = settings.read({})
    assert (read.port, read.control_port, read.queue, read.queue_limit) == (8000, 8001, True, 256)
    assert (read.engine, read.engine_args, read.models_root) == ("llama.cpp", (), (Path("/var/lib/builder/models"),))
    assert (read.store, read.model, read.phases, read.reported) == ("", "", None, {})


def test_everything_is_read() -> None:
    read = settings.read(
        {
            "BUILDER_MODEL": "llama@v2",
            "BUILDER_MODELS_ROOT": "/ro:/rw",
            "BUILDER_ENGINE_ARGS": '["--ctx-size", "4096"]',
            "BUILDER_WARMUP_BATCH": "1, 8",
            "BUILDER_QUEUE": "0",
            "BUILDER_VERIFY": "full",
            "CUDA_MODULE_LOADING": "LAZY",
            "HOME": "/root",
        }
    )
    assert read.model == "llama@v2"
    assert read.models_root == (Path("/ro"), Path("/rw"))
    assert read.engine_args == ("--ctx-size", "4096")
    assert read.warmup_batch == (1, 8)
    assert not read.queue
    assert read.verify_full
    assert read.reported == {"CUDA_MODULE_LOADING": "LAZY"}


def test_blank_counts_as_unset() -> None:
    assert settings.read({"BUILDER_PORT": " "}).port == 8000


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("BUILDER_PORT", "0"),
        ("BUILDER_PORT", "65536"),
        ("BUILDER_PORT", "８０"),  # noqa: RUF001 - digits, but not ASCII
        ("BUILDER_CONTROL_PORT", "http"),
        ("BUILDER_QUEUE", "true"),
        ("BUILDER_QUEUE_LIMIT", "-1"),
        ("BUILDER_ENGINE", "vllm2"),
        ("BUILDER_ENGINE_ARGS", "--ctx-size 4096"),
        ("BUILDER_ENGINE_ARGS", '{"ctx": 1}'),
        ("BUILDER_ENGINE_ARGS", "[1]"),
        ("BUILDER_MODEL", "../x"),
        ("BUILDER_MODEL", "a@"),
        ("BUILDER_MODEL", "sha256:12"),
        ("BUILDER_MODELS_ROOT", "models"),
        ("BUILDER_WARMUP_BATCH", "1,,2"),
        ("BUILDER_WARMUP_TOKENS", "0"),
        ("BUILDER_VERIFY", "yes"),
        ("BUILDER_GRACE_S", "0"),
        ("BUILDER_GRACE_S", "nan"),
    ],
)
def test_a_wrong_value_is_named(name: str, value: str) -> None:
    with pytest.raises(ConfigError) as caught:
        settings.read({name: value})
    assert caught.value.message.startswith(f"{name}={value!r}: expected")
    assert name in caught.value.hint


def test_the_two_ports_differ() -> None:
    with pytest.raises(ConfigError, match="are both 8001"):
        settings.read({"BUILDER_PORT": "8001"})
