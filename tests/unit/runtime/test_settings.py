from __future__ import annotations

import re
from pathlib import Path

import pytest

from builder.errors import ConfigError
from builder.runtime import settings
from builder.transfer.cache import Budget


def test_an_empty_environment_gives_the_defaults() -> None:
    read = settings.read({})
    assert (read.port, read.control_port, read.queue, read.queue_limit) == (8000, 8001, True, 256)
    assert (read.engine, read.engine_args, read.models_root) == ("llama.cpp", (), (Path("/var/lib/builder/models"),))
    assert (read.store, read.model, read.phases, read.reported) == ("", "", None, {})
    assert read.cache_size is None


def test_everything_is_read() -> None:
    read = settings.read(
        {
            "BUILDER_MODEL": "llama@v2",
            "BUILDER_MODELS_ROOT": "/ro:/rw",
            "BUILDER_ENGINE_ARGS": '["--ctx-size", "4096"]',
            "BUILDER_WARMUP_BATCH": "1, 8",
            "BUILDER_QUEUE": "0",
            "BUILDER_VERIFY": "full",
            "BUILDER_CACHE_SIZE": "80%",
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
    assert read.cache_size == Budget(80, percent=True)
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
        ("BUILDER_CONTROL_PORT", "99999"),
        ("BUILDER_CONTROL_PORT", "\u00b2"),  # superscript two: a digit to str.isdigit, not to int
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
        ("BUILDER_CACHE_SIZE", "200"),
        ("BUILDER_CACHE_SIZE", "0GiB"),
        ("BUILDER_CACHE_SIZE", "101%"),
        ("BUILDER_GRACE_S", "0"),
        ("BUILDER_GRACE_S", "nan"),
        ("BUILDER_PHASES", "/no/such/folder/phases"),
        ("BUILDER_COMPILE_CACHE", "yes"),
        ("BUILDER_COMPILE_CACHE_ROOT", "opt/cache"),
        ("BUILDER_COMPILE_CACHE_DIR", "cache"),
        ("BUILDER_COMPILE_CACHE_NAME", "m@x"),
        ("BUILDER_PHASES", "/"),
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


@pytest.mark.parametrize("value", ["0", "65536", "99999", "-1", "http", "\u00b2", "8_001"])
def test_the_probe_reads_the_control_port_as_strictly(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("BUILDER_CONTROL_PORT", value)
    with pytest.raises(ConfigError) as caught:
        settings.control_port()
    assert caught.value.message == f"BUILDER_CONTROL_PORT={value!r}: expected a whole number from 1 to 65535"
    assert "BUILDER_CONTROL_PORT" in caught.value.hint


def test_the_probe_asks_the_default_control_port(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BUILDER_CONTROL_PORT", " ")
    assert settings.control_port() == settings.read({}).control_port


@pytest.mark.parametrize(
    ("name", "url"),
    [
        ("BUILDER_STORE", "s3://a@b/c"),
        ("BUILDER_STORE", "s3://key:hidden@bucket/x"),
        ("BUILDER_STORE", "s3://key:hidden/with/slash@bucket/x"),
        ("BUILDER_STORE", "https://user:hidden@host:9000/x"),
        ("BUILDER_ENDPOINT_URL", "http://user:hidden@host:9000"),
    ],
)
def test_credentials_in_a_url_are_refused_and_not_repeated(name: str, url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        settings.read({name: url})
    assert caught.value.message.startswith(f"{name}: the {url.partition(':')[0]}:// URL has credentials in it")
    assert "hidden" not in caught.value.message + caught.value.hint
    assert "AWS_ACCESS_KEY_ID" in caught.value.hint


@pytest.mark.parametrize("url", ["s3://bucket/team@v2/x", "http://host:9000/x", "https://[::1]:9000/a@b", "/srv/a@b", "gs://b"])
def test_other_store_urls_are_taken_as_they_are(url: str) -> None:
    assert settings.read({"BUILDER_STORE": url}).store == url


def test_a_phase_file_in_a_folder_that_is_there(tmp_path: Path) -> None:
    assert settings.read({"BUILDER_PHASES": str(tmp_path / "phases")}).phases == tmp_path / "phases"
    assert settings.read({"BUILDER_PHASES": "phases"}).phases == Path("phases")


def test_every_setting_is_on_its_page() -> None:
    root = Path(settings.__file__).parents[2]
    names = re.findall(r'=get\("([A-Z_]+)"', Path(settings.__file__).read_text())
    page = (root / "docs" / "serve.md").read_text()
    assert len(names) > 20
    assert [name for name in names if f"`BUILDER_{name}`" not in page] == []
    assert [name for name in settings.ENGINES if f"| `{name}` |" not in page] == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("BUILDER_GPU", "yes"),
        ("BUILDER_GPU_ARCHS", "9"),
        ("BUILDER_GPU_ARCHS", "sm_90"),
        ("BUILDER_GPU_ARCHS", "9.0,,8.0"),
        ("BUILDER_GPU_ARCHS", "9.0a"),
        ("BUILDER_CUDA", "cuda>=13.0"),
        ("BUILDER_GPU_TIMEOUT_S", "0"),
    ],
)
def test_a_wrong_need_of_a_gpu_is_refused(name: str, value: str) -> None:
    with pytest.raises(ConfigError, match=name):
        settings.read({name: value})


def test_the_need_of_a_gpu_is_read() -> None:
    read = settings.read({"BUILDER_GPU": "required", "BUILDER_GPU_ARCHS": "9.0, 12.0", "BUILDER_CUDA": "13.0"})
    assert (read.gpu, read.gpu_archs, read.cuda) == ("required", ("9.0", "12.0"), "13.0")
    read = settings.read({"BUILDER_GPU_ARCHS": "", "BUILDER_CUDA": ""})
    assert (read.gpu, read.gpu_archs, read.cuda, read.gpu_timeout_s) == ("auto", (), "", 120.0)
